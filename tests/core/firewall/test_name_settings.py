# SPDX-License-Identifier: GPL-2.0-or-later
"""The table `[firewall]` of guestnet.toml."""

from __future__ import annotations

import pytest

from qubes_guestnet.core.firewall import name_settings
from qubes_guestnet.core.firewall.name_settings import NameSettings


def test_without_a_table_each_entry_stands_for_itself() -> None:
    assert name_settings.parse({}) == NameSettings("block-entry", 60)
    assert not name_settings.parse({}).blocks_qube


def test_what_the_owner_chose() -> None:
    chosen = name_settings.parse({"unresolved": "block-qube", "least_ttl": 300})
    assert (chosen.blocks_qube, chosen.least_ttl) == (True, 300)
    assert {name_settings.parse({"least_ttl": number}).least_ttl for number in (30, 1800)} == {30, 1800}


@pytest.mark.parametrize(
    ("table", "named"),
    [
        ({"unresolved": "block"}, "[firewall] unresolved: 'block'"),
        ({"unresolved": 1}, "[firewall] unresolved"),
        ({"unresolved": ["block-qube"]}, "[firewall] unresolved"),
        ({"least_ttl": 29}, "[firewall] least_ttl: '29'"),
        ({"least_ttl": 1801}, "[firewall] least_ttl"),
        ({"least_ttl": True}, "[firewall] least_ttl"),
        ({"least_ttl": "60"}, "[firewall] least_ttl"),
    ],
)
def test_what_is_not_valid_is_named(table: dict[str, object], named: str) -> None:
    with pytest.raises(ValueError, match=r"firewall") as caught:
        name_settings.parse(table)
    assert named in str(caught.value)
