# SPDX-License-Identifier: GPL-2.0-or-later
"""IPv6 is switched off for a provider with qubes attached: nothing of it is left, and what others added stays."""

from __future__ import annotations

import pytest

from tests.support.eventually import eventually
from tests.support.qubes.provider import ENTRIES6, GATEWAY6, Hosting


@pytest.mark.behaviour("B95")
def test_what_a_vif_had_of_ipv6_goes_with_it_and_comes_again() -> None:
    hosting = Hosting(ENTRIES6)
    behind = hosting.attach()
    own, foreign = f"{behind.vif} {behind.ip6}", f"{behind.vif} fd09::77"
    hosting.nft(f'add element ip6 qubes allowed {{ "{behind.vif}" . fd09::77 }}')
    assert own in hosting.elements("allowed", "ip6")
    # With the list still there the provider would refuse IPv6, see test_provider_refuses_ipv6.
    hosting.write("/connected-ips6", "")
    hosting.write("/qubes-netvm-gateway6", "")
    eventually(lambda: hosting.elements("allowed", "ip6") == {foreign}, what="only the foreign element is left")
    eventually(lambda: not hosting.forwards(6), what="forwarding is off")
    assert hosting.routes(behind.vif, 6) == []
    assert f"{behind.vif} {behind.ip}" in hosting.elements("allowed")
    assert hosting.works(behind)
    hosting.write("/qubes-netvm-gateway6", GATEWAY6)
    eventually(lambda: {own, foreign} <= hosting.elements("allowed", "ip6"), what="it may send again")
    eventually(lambda: hosting.routes(behind.vif, 6) != [], what="and is reached")
    assert hosting.qube.guestnet("plan").stdout == ""
