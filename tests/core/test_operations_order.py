# SPDX-License-Identifier: GPL-2.0-or-later
"""The order of operations, which is safety; those that are one transaction of nft are in pieces where they are many."""

from __future__ import annotations

from typing import Any

import pytest

from qubes_guestnet.core.operations import ORDER, PIECE_LINES, together
from qubes_guestnet.core.provider.provider_operations import CloseForwarding, OpenForwarding
from qubes_guestnet.core.provider.vif_operations import SetElement, SetLimits

Operation = Any  # the sum of all kinds is for the type checker


# What has to be before what, and why.
SAFE = [
    ("EndFlowtable", "CloseForwarding", "what is offloaded passes by the switch"),
    ("CloseForwarding", "LoadRules", "rules that were lost come back while nothing is forwarded"),
    ("CloseForwarding", "UnloadRules", "nothing is forwarded without rules"),
    ("LoadRules", "PurgeUntranslated", "no other connection begins without translation"),
    ("LoadRules", "OpenForwarding", "nothing is forwarded without them"),
    ("LoadRules", "UnitJob", "a service that makes rules finds ours"),
    ("CloseForwarding", "ChangeDownstream", "nothing is forwarded while anything else changes"),
    ("ChangeDownstream", "OpenForwarding", "a halted qube is not impersonated"),
    ("LoadRedirection", "PurgeConntrack", "a connection that begins between goes by the new one"),
    ("LoadRedirection", "SetFirewallServers", "what is told of it is in force"),
    ("LoadRedirection", "OpenForwarding", "no question leaves as it is"),
    ("SetFirewallServers", "OpenForwarding", "a restricted qube has names once it is forwarded"),
    ("Op", "OpenForwarding", "the way out is there"),
    ("OpenForwarding", "LoadFlowtable", "nothing is offloaded that was not forwarded"),
    ("CloseVif", "RemoveElements", "nothing passes while the rest goes"),
    ("RemoveElements", "PurgeConntrack", "no connection begins any more that would be left"),
    ("PurgeConntrack", "RemoveVifRecord", "what is not forgotten yet is tried again"),
    ("PurgeConntrack", "OpenVif", "no door of a former holder is open (B53)"),
    ("WriteVifRecord", "SetElement", "the record is ahead"),
    ("SetElement", "OpenVif", "it sends in its own name alone (B50)"),
    ("WriteTunable", "PrepareVif", "with IPv6 off it takes no IPv6 address"),
    ("PrepareVif", "OpenVif", "the first packet needs no ARP"),
    ("ApplySysctl", "Op", "the files of sysctl.d count before a link goes up"),
    ("Op", "SetLinkNames", "a service that hangs takes nothing away from the kernel"),
    ("PublishProfile", "LoadProfile", "NetworkManager reads the file"),
    ("LoadProfile", "ReapplyProfile", "what is put in force was read"),
    ("ReapplyProfile", "ActivateProfile", "the device goes down only where it has to"),
    ("ActivateProfile", "RemoveProfile", "add before delete"),
    ("StartHooks", "SetLinkNames", "systemd-resolved may hang"),
]


@pytest.mark.parametrize(("before", "after", "why"), SAFE, ids=lambda each: str(each)[:30])
def test_order_is_safety(before: str, after: str, why: str) -> None:
    assert ORDER.index(before) < ORDER.index(after), why


def test_a_transaction_of_many_is_in_pieces() -> None:
    def limits(number: int, lines: int = 92) -> Operation:
        return SetLimits(f"vif{number}.0", "line\n" * lines)

    many_limits = tuple(limits(number) for number in range(1, 13))
    element = SetElement("vif1.0", 'add element ip qubes allowed { "vif1.0" . 10.137.0.1 }')
    before, after = CloseForwarding(4), OpenForwarding(4)
    parts = list(together((before, *many_limits, element, after)))
    assert [len(part) for part in parts] == [1, 5, 5, 3, 1]
    assert [op for part in parts for op in part] == [before, *many_limits, element, after]
    for part in parts:
        assert sum(getattr(op, "text", "").count("\n") for op in part) <= PIECE_LINES
    longest = limits(1, 2 * PIECE_LINES)
    assert list(together((longest, limits(2), limits(3)))) == [(longest,), (limits(2), limits(3))]
    assert list(together(())) == []
