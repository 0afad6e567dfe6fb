# SPDX-License-Identifier: GPL-2.0-or-later
"""IPv6 is switched off for a provider with qubes attached: nothing of it is left, and what others added stays."""

from __future__ import annotations

import pytest

from tests.support.eventually import eventually
from tests.support.qubes.provider import ENTRIES6, GATEWAY6, Provider


@pytest.mark.behaviour("B95")
def test_what_a_vif_had_of_ipv6_goes_with_it_and_comes_again() -> None:
    host = Provider(ENTRIES6)
    behind = host.attach()
    own, foreign = f"{behind.vif} {behind.ip6}", f"{behind.vif} fd09::77"
    host.nft(f'add element ip6 qubes allowed {{ "{behind.vif}" . fd09::77 }}')
    assert own in host.elements("allowed", "ip6")
    # With the list still there the provider would refuse IPv6, see test_provider_refuses_ipv6.
    host.write("/connected-ips6", "")
    host.write("/qubes-netvm-gateway6", "")
    eventually(lambda: host.elements("allowed", "ip6") == {foreign}, what="only the foreign element is left")
    eventually(lambda: not host.forwards(6), what="forwarding is off")
    assert host.routes(behind.vif, 6) == []
    assert f"{behind.vif} {behind.ip}" in host.elements("allowed")
    assert host.works(behind)
    host.write("/qubes-netvm-gateway6", GATEWAY6)
    eventually(lambda: {own, foreign} <= host.elements("allowed", "ip6"), what="it may send again")
    eventually(lambda: host.routes(behind.vif, 6) != [], what="and is reached")
    assert host.qube.guestnet("plan").stdout == ""


def test_settings_that_come_back_are_set_although_another_vif_cannot_be() -> None:
    """What was in force before a sweep that failed in part must not count as in force after it."""
    host = Provider(ENTRIES6)
    behind = host.attach()

    def gateways() -> set[str]:
        (link,) = host.qube.ip("address", "show", "dev", behind.vif)
        return {entry["local"] for entry in link["addr_info"] if entry["local"].startswith("fd09:")}

    assert gateways() == {GATEWAY6}
    other = GATEWAY6[:-1] + "9"
    host.qube.run("mkdir", "/run/qubes-guestnet/vifs/vif9.0")  # a record that cannot be read
    host.write("/qubes-netvm-gateway6", other)
    eventually(lambda: gateways() == {other}, trouble=host.trouble)
    eventually(lambda: "vif9.0" in host.trouble(), trouble=host.trouble)
    host.write("/qubes-netvm-gateway6", GATEWAY6)
    eventually(lambda: gateways() == {GATEWAY6}, trouble=host.trouble)
