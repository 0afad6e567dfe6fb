# SPDX-License-Identifier: GPL-2.0-or-later
"""Rules in `custom-forward` that drop or refuse, and which of them are a kill switch."""

from __future__ import annotations

import pytest

from qubes_guestnet.core.check.cut_off import drops


@pytest.mark.behaviour("B142")
@pytest.mark.parametrize(
    ("rules", "found"),
    [
        ([], []),
        (["counter", "ip saddr 10.137.0.5 accept", 'ct state new log prefix "new"'], []),
        (["oifgroup 1 counter drop"], [True]),
        (['oifname "eth0" drop', 'oif "eth0" reject with icmp admin-prohibited'], [True, True]),
        (["counter drop"], [True]),
        (['oifname "wg0" drop'], [False]),
        (["oifgroup 1 ip daddr 10.0.0.0/8 drop"], [False]),
        (["oifgroup != 2 drop", "oifgroup != 1 drop"], [True, False]),
        (["iifgroup 2 oifgroup 1 drop", 'oifname != "tun0" drop', 'oifgroup 1 log prefix "x" drop'], [True] * 3),
        (['iifname "vif*" oifname "eth0" drop', "iifgroup 2 oifgroup != 9 drop", "ct state new oifgroup 1 drop"],
         [True] * 3),
        (["meta l4proto { tcp, udp } oifgroup 1 drop", 'oifname "eth*" drop', 'oifname { "eth0", "tun0" } drop'],
         [True] * 3),
        (['log prefix "a b " group 2 oifgroup 1 counter reject', "oifgroup 1 log level debug drop"], [True, True]),
        (["meta l4proto udp oifgroup 1 drop", "ct state invalid drop", "oifgroup 1 limit rate 1/second drop"],
         [False] * 3),
        (['accept comment "drop"', 'oifgroup 1 drop comment "kill switch"'], [True]),
    ],
)  # fmt: skip
def test_rules_that_refuse(rules: list[str], found: list[bool]) -> None:
    listing = "table ip qubes {\n\tchain custom-forward {\n" + "".join(f"\t\t{rule}\n" for rule in rules) + "\t}\n}\n"
    assert [drop.uplink for drop in drops([("ip", listing), ("ip6", "")], ["eth0"])] == found
