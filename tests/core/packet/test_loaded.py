# SPDX-License-Identifier: GPL-2.0-or-later
"""What nft prints of all rules, as values."""

from __future__ import annotations

from typing import Any

import pytest

from qubes_guestnet.core.packet.loaded import Base, Rule, parse

OBJECTS = [
    {"metainfo": {"version": "1.0.6"}},
    {"table": {"family": "ip", "name": "t", "handle": 1}},
    {
        "chain": {
            "family": "ip",
            "table": "t",
            "name": "late",
            "type": "filter",
            "hook": "forward",
            "prio": 10,
            "policy": "drop",
        }
    },
    {"chain": {"family": "ip", "table": "t", "name": "early", "type": "nat", "hook": "prerouting", "prio": -100}},
    {"chain": {"family": "ip", "table": "t", "name": "regular"}},
    {"chain": {"family": "ip", "table": "asleep", "name": "c", "type": "filter", "hook": "forward", "prio": 0}},
    {"set": {"family": "ip", "table": "t", "name": "s", "type": "ipv4_addr", "elem": ["192.0.2.1"], "size": 5}},
    {"map": {"family": "ip", "table": "t", "name": "m", "type": "ifname", "map": "verdict"}},
    {
        "rule": {
            "family": "ip",
            "table": "t",
            "chain": "regular",
            "handle": 5,
            "comment": "0003",
            "expr": [{"drop": None}],
        }
    },
    {"rule": {"family": "ip", "table": "t", "chain": "unheard", "handle": 6, "expr": [{"accept": None}]}},
]
TEXT = """\
table ip t { # handle 1
\tchain regular { # handle 2
\t\tcounter packets 12 bytes 720 drop comment "0003" # handle 5
\t\tcounter packets 0 bytes 0 accept
\t}
}
table ip asleep { # handle 2
}
"""


def test_chains_rules_and_sets() -> None:
    found = parse(OBJECTS, TEXT, {("ip", "asleep")})
    assert found.bases == (
        Base(("ip", "t", "early"), "nat", "prerouting", -100, "accept"),
        Base(("ip", "t", "late"), "filter", "forward", 10, "drop"),
    )
    assert found.rules["ip", "t", "regular"] == (Rule('counter drop comment "0003"', "0003", ({"drop": None},)),)
    assert found.rules["ip", "t", "unheard"][0].text == "rule with handle 6"
    assert found.rules["ip", "asleep", "c"] == ()
    assert found.sets == {("ip", "t", "s"): ("192.0.2.1",), ("ip", "t", "m"): ()}
    assert found.sizes == {("ip", "t", "s"): 5}


@pytest.mark.parametrize("odd", [{"rule": {}}, {"chain": None}, {"set": {"family": "ip"}}, 5])
def test_another_output_is_an_error(odd: Any) -> None:
    with pytest.raises(ValueError, match="unexpected object"):
        parse([odd], "")
