# SPDX-License-Identifier: GPL-2.0-or-later
"""What one chain makes of a packet."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

import pytest

from qubes_guestnet.core.packet.chains import ACCEPT, DROP, REJECT, Passed, passed
from qubes_guestnet.core.packet.loaded import Loaded
from qubes_guestnet.core.packet.match import Packet
from tests.core.packet.made import loaded, match, meta, packet, payload

MINE, OTHER = match(meta("iifname"), "vif4.0"), match(meta("iifname"), "vif5.0")
ODD = match(meta("skuid"), 0)
YES, NO, TOLD, BACK = {"accept": None}, {"drop": None}, {"reject": {"type": "tcp reset"}}, {"return": None}
COUNTER: dict[str, Any] = {"counter": {"packets": 0, "bytes": 0}}


def jump(chain: str, kind: str = "jump") -> dict[str, Any]:
    return {kind: {"target": chain}}


def result(rules: Loaded, sent: Packet | None = None) -> tuple[str, str | None, list[str]]:
    """Verdict, text of the rule that decided, and the doubts."""
    found = of(rules, sent)
    assert all(place.rule is not None for place in found.doubts)
    doubts = [place.rule.text for place in found.doubts if place.rule is not None]
    return found.verdict, found.place.rule.text if found.place.rule is not None else None, doubts


def of(rules: Loaded, sent: Packet | None = None) -> Passed:
    return passed(rules.bases[0], sent or packet(), rules)


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        (loaded(), (ACCEPT, None, [])),
        (loaded(policy="drop"), (DROP, None, [])),
        (loaded([OTHER, NO], [COUNTER, YES], [NO]), (ACCEPT, "rule 1", [])),
        (loaded([MINE, TOLD]), (REJECT, "rule 0", [])),
        (loaded([BACK], [NO]), (ACCEPT, None, [])),
        (loaded([{"continue": None}], [NO]), (DROP, "rule 1", [])),
        (loaded([jump("a")], [NO], a=[[OTHER, YES]]), (DROP, "rule 1", [])),
        (loaded([jump("a")], [NO], a=[[MINE, YES]]), (ACCEPT, "rule 0", [])),
        (loaded([jump("a", "goto")], [NO], a=[[OTHER, YES]]), (ACCEPT, None, [])),
        (loaded([jump("a")], a=[[jump("a")]]), (ACCEPT, None, ["rule 0"])),  # deeper than the kernel lets it
        (loaded([jump("missing")], [NO]), (DROP, "rule 1", [])),
        (loaded([ODD, NO]), (ACCEPT, None, ["rule 0"])),
        (loaded([ODD, OTHER, NO]), (ACCEPT, None, [])),  # not met, whatever the first is
        (loaded([ODD, COUNTER, {"log": None}]), (ACCEPT, None, [])),
        (loaded([ODD, jump("a")], a=[[COUNTER]]), (ACCEPT, None, [])),
        (loaded([ODD, jump("a")], a=[[COUNTER, NO]]), (ACCEPT, None, ["rule 0"])),
        (loaded([{"queue": {"num": 1}}]), (ACCEPT, None, ["rule 0"])),
        (loaded([{"xt": None, "odd": 1}]), (ACCEPT, None, ["rule 0"])),
        (loaded([{"jump": "odd"}]), (ACCEPT, None, ["rule 0"])),
        (loaded([{"jump": {"target": 5}}]), (ACCEPT, None, [])),
        (loaded([{"limit": {"rate": 1, "per": "second"}}, NO]), (DROP, "rule 0", [])),
        (loaded([{"limit": {"rate": 1, "per": "second", "inv": True}}, NO]), (ACCEPT, None, [])),
        (loaded([{"quota": {"val": 1, "inv": True}}, NO]), (ACCEPT, None, [])),
        (loaded([{"vmap": {"key": meta("iifname"), "data": "@m"}}], set_m=[["vif4.0", NO]]), (DROP, "rule 0", [])),
        (loaded([{"vmap": {"key": meta("iifname"), "data": "@m"}}], set_m=[]), (ACCEPT, None, [])),
        (loaded([{"vmap": {"key": meta("oifname"), "data": "@m"}}], set_m=[["vif4.0", NO]]), (ACCEPT, None, [])),
        (loaded([{"vmap": {"key": meta("iifname"), "data": "@gone"}}]), (ACCEPT, None, ["rule 0"])),
        (loaded([{"vmap": {"key": meta("iifname"), "data": 5}}]), (ACCEPT, None, ["rule 0"])),
        (
            loaded([{"vmap": {"key": meta("iifname"), "data": {"set": [["vif4.0", "odd"]]}}}]),
            (ACCEPT, None, ["rule 0"]),
        ),
        (
            loaded([{"vmap": {"key": meta("iifname"), "data": {"set": [["vif4.0", jump("a")]]}}}], a=[[TOLD]]),
            (REJECT, "rule 0", []),
        ),
    ],
)
def test_verdicts(rules: Loaded, expected: tuple[str, str | None, list[str]]) -> None:
    assert result(rules) == expected


def test_a_full_set_takes_no_connection_and_the_rule_ends() -> None:
    """As the limits of single qubes: what is not in the set is dropped."""
    update = {"set": {"op": "update", "elem": {"ct": {"key": "id"}}, "set": "@s"}}
    missing = match({"ct": {"key": "id"}}, "@s", "!=")
    for members, expected in (([1, 2], DROP), ([1], ACCEPT)):
        assert of(loaded([update], [missing, NO], set_s=members, size_s=2)).verdict == expected
    assert of(loaded([update], [missing, NO], set_s=[])).verdict == ACCEPT


def test_a_mark_is_changed_for_what_comes_after_and_not_by_a_rule_that_is_in_doubt() -> None:
    mangle = {"mangle": {"key": meta("mark"), "value": 5}}
    marked = match(meta("mark"), 5)
    assert of(loaded([mangle], [marked, NO])).verdict == DROP
    found = of(loaded([mangle, {"odd": 1}], [marked, NO]))
    assert (found.verdict, found.packet.mark, len(found.doubts)) == (ACCEPT, 0, 1)


@pytest.mark.parametrize(
    ("statement", "changed"),
    [
        ({"dnat": {"addr": "192.0.2.53"}}, {"destination": ip_address("192.0.2.53")}),
        ({"dnat": {"addr": "192.0.2.53", "port": 5}}, {"destination": ip_address("192.0.2.53"), "port": 5}),
        ({"snat": {"addr": "192.0.2.7"}}, {"source": ip_address("192.0.2.7")}),
        ({"masquerade": None}, {"source": ip_address("192.0.2.2")}),
    ],
)
def test_translation(statement: dict[str, Any], changed: dict[str, Any]) -> None:
    sent = packet(leaves_as=ip_address("192.0.2.2"))
    found = of(loaded([match(payload("tcp", "dport"), 443), statement], [NO], kind="nat"), sent)
    assert (found.verdict, found.translation) == (ACCEPT, *statement)
    assert found.packet == sent._replace(**changed)


def test_where_the_own_address_is_not_known_the_sender_stays() -> None:
    assert of(loaded([{"masquerade": None}], kind="nat")).packet == packet()


@pytest.mark.parametrize(
    "statement",
    [{"redirect": {"port": 5}}, {"dnat": {"addr": {"map": 1}}}, {"dnat": {"addr": "odd"}}, {"dnat": {"port": 5}},
     {"dnat": {"addr": "192.0.2.1", "port": "odd"}}],
)  # fmt: skip
def test_a_translation_that_is_not_understood_is_a_doubt(statement: dict[str, Any]) -> None:
    assert result(loaded([statement], kind="nat")) == (ACCEPT, None, ["rule 0"])
