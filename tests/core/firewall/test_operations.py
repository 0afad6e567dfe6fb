# SPDX-License-Identifier: GPL-2.0-or-later
"""The operations of the firewall in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from qubes_guestnet.core.firewall.operations import (
    ChangeName,
    LoadFirewallTable,
    RemoveName,
    RemoveQubeChain,
    RemoveQubeRules,
    SetDnsServers,
    SetQubeRules,
)
from tests.core.firewall.made import FOUR, SIX, A, bound

if TYPE_CHECKING:
    from qubes_guestnet.core.firewall.operations import Operation


@pytest.mark.parametrize(
    ("operation", "words"),
    [
        (LoadFirewallTable(4, ("forward",)), "nft -f: table ip qubes-firewall, our rules in forward"),
        (LoadFirewallTable(6, ()), "nft -f: table ip6 qubes-firewall"),
        (SetDnsServers(4, (A("10.139.1.1"),)), "nft -f: name servers of ip qubes-firewall: 10.139.1.1"),
        (SetDnsServers(6, ()), "nft -f: name servers of ip6 qubes-firewall: none"),
        (
            ChangeName(4, "a.org", (A("192.0.2.1"),), (A("192.0.2.2"),)),
            "nft -f: IPv4 addresses of a.org: +192.0.2.1 -192.0.2.2",
        ),
        (ChangeName(6, "a.org", ()), "nft -f: IPv6 addresses of a.org: none"),
        (SetQubeRules(bound("action=accept")), f"nft -f: firewall of {FOUR}: 1 rule"),
        (SetQubeRules(bound()), f"nft -f: firewall of {FOUR}: 0 rules"),
        (SetQubeRules(bound("foo")), f"nft -f: firewall of {FOUR}: everything is refused"),
        (RemoveQubeRules(A(SIX)), f"nft -f: firewall of {SIX}: removed, everything is dropped"),
        (RemoveQubeChain(4, "qbs-1-2-3-4"), "nft -f: chain ip qubes-firewall qbs-1-2-3-4: removed"),
        (
            RemoveQubeChain(4, "qbs-1-2-3-4", True),
            "nft -f: chain ip qubes-firewall qbs-1-2-3-4: emptied, a rule of another program jumps to it",
        ),
        (RemoveName(6, "a.org"), "nft -f: IPv6 addresses of a.org: no rule uses the name, removed"),
    ],
)
def test_an_operation_in_words(operation: Operation, words: str) -> None:
    assert str(operation) == words
