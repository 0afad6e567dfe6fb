# SPDX-License-Identifier: GPL-2.0-or-later
"""Which tables and keys guestnet.toml can have."""

from __future__ import annotations

import tomllib

import pytest

from qubes_guestnet.core import config
from qubes_guestnet.core.firewall import name_settings
from qubes_guestnet.core.nft import limits


def judged(text: str) -> str:
    try:
        config.check_lines(text)
        document = tomllib.loads(text)
        config.check_tables(document)
        for name in document:
            config.check_keys(name, document[name])
    except config.Unknown as error:
        return f"{error}; {error.remedy}"
    return ""


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[uplink]",
        '[uplink]\ndefault-route = "device"',
        "[provider]\nhold_after_flush = true\nunanswered_names = 500\nunanswered_connections = 5000",
        "[dns]\nservers = []\nhold = 1",
    ],
)
def test_what_there_is(text: str) -> None:
    assert judged(text) == ""


@pytest.mark.behaviour("B122")
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("provider = true", "provider is not a table; write [provider] on a line of its own, and its keys below"),
        ('uplink = "gateway"', "uplink is not a table; write [uplink] on a line of its own, and its keys below"),
        ("[provider]\nhold-after-flush = true", "[provider] 'hold-after-flush' is not a known key; the keys are "),
        (
            '[uplink]\ndefault_route = "device"',
            "[uplink] 'default_route' is not a known key; the keys are default-route",
        ),
        ("[DNS]\nservers = []", "'DNS' is not a known table; the tables are dns, firewall, provider, uplink"),
        ("servers = []", "'servers' is not a known table; meant: [dns] servers"),
        (".".join(["a"] * 20_000) + " = 1", "line 1 has 40003 characters; the limit is 1024; split it"),
        ("hold_after_flush = true", "'hold_after_flush' is not a known table; meant: [provider] hold_after_flush"),
        ('["\\u001b[31m"]', "'\\x1b[31m' is not a known table; the tables are dns, firewall, provider, uplink"),
    ],
)
def test_a_mistake_is_named_with_what_is_right(text: str, said: str) -> None:
    assert judged(text).startswith(said), judged(text)


def test_each_key_that_a_parser_reads_is_known() -> None:
    assert config.KNOWN["firewall"] == frozenset(name_settings.KEYS)
    assert config.KNOWN["provider"] == {"hold_after_flush", *limits.KEYS}
