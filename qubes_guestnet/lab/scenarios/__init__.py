# SPDX-License-Identifier: GPL-2.0-or-later
"""The end-to-end scenarios, one function each; `SCENARIOS` has them by id, in order."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from ..stage import Stage
from . import (
    attach,
    comeback,
    company,
    document,
    endure,
    faked,
    firewall,
    hostile,
    ipv6,
    isolation,
    keys,
    names,
    paused,
    vpn,
)


class Scenario(NamedTuple):
    """One scenario.

    `ipv6` and `gateway` say in which forms it runs besides plain IPv4 with a device route.
    """

    id: str
    title: str
    play: Callable[[Stage], None]
    ipv6: bool = False
    gateway: bool = False


class Variant(NamedTuple):
    """A scenario in one form."""

    scenario: Scenario
    ipv6: bool
    gateway: bool

    @property
    def name(self) -> str:
        """Such as "S-000", "S-000-6", "S-000-g", "S-000-6g"."""
        form = "6" * self.ipv6 + "g" * self.gateway
        return f"{self.scenario.id}-{form}" if form else self.scenario.id


SCENARIOS = (
    Scenario("S-000", "a qube starts and reaches the world; no DHCP", attach.s_000, ipv6=True, gateway=True),
    Scenario("S-001a", "paused without a provider, gets one, unpaused", attach.s_001a, ipv6=True),
    Scenario("S-001b", "paused, loses its provider, unpaused", attach.s_001b, ipv6=True),
    Scenario("S-001c", "paused, moved to another provider, the former one ends", paused.s_001c, ipv6=True),
    Scenario("S-001d", "paused, moved to another provider, the former one is deleted", paused.s_001d, ipv6=True),
    Scenario("S-001e", "paused, its provider restarts, unpaused", paused.s_001e, ipv6=True),
    Scenario("S-001f", "paused, its provider ends, unpaused, its provider starts", paused.s_001f, ipv6=True),
    Scenario("S-010", "a proxy loses its provider, and regains it elsewhere", names.s_010, ipv6=True, gateway=True),
    Scenario("S-020", "NetworkManager owns a proxy's uplink; nmcli down and up", company.s_020, ipv6=True),
    Scenario(
        "S-030", "rules of a qube, one after the other: exactly what is allowed passes", firewall.s_030, ipv6=True
    ),
    Scenario("S-031", "a rule ends one of two connections", firewall.s_031, ipv6=True),
    Scenario("S-033", "rules by name: the name moves, is dead, and comes back", firewall.s_033, ipv6=True),
    Scenario("S-040", "two qubes behind the same provider, or not, are apart", isolation.s_040, ipv6=True),
    Scenario("S-050", "a qube takes addresses that are not its own", isolation.s_050, ipv6=True),
    Scenario("S-100", "the vif is there before its provider is ready", comeback.s_100),
    Scenario("S-110", "runs without a provider, gets one", attach.s_110),
    Scenario("S-111", "detached and attached 50 times, configuration slowed", attach.s_111),
    Scenario("S-112", "the proxy is shut down and starts again", comeback.s_112, ipv6=True),
    Scenario("S-113", "the proxy is killed and starts again", comeback.s_113, ipv6=True),
    Scenario("S-114", "the proxy crashes and starts again", comeback.s_114, ipv6=True),
    Scenario("S-200", "a fake address, gateway and netmask", faked.s_200, gateway=True),
    Scenario("S-201", "a fake address alone", faked.s_201, ipv6=True),
    Scenario("S-202", "a fake address behind a proxy, with rules", firewall.s_202),
    Scenario("S-203", "a user lets a qube through to one with a fake address", faked.s_203),
    Scenario("S-204", "a proxy with a fake address", faked.s_204, gateway=True),
    Scenario("S-210", "a qube with addresses of the user's", faked.s_210, ipv6=True),
    Scenario("S-211", "a proxy with addresses of the user's", faked.s_211, ipv6=True),
    Scenario("S-212", "addresses of the user's, with rules", firewall.s_212, ipv6=True),
    Scenario("S-300", "the routing tables of the reference document", document.s_300),
    Scenario("S-301", "no port of a provider is open, no DHCP, no DNS of its own", document.s_301),
    Scenario("S-302", "real DNS servers change; names at every depth", names.s_302),
    Scenario("S-310", "first figure: IPv6 for all but one qube", document.s_310),
    Scenario("S-311", "second figure: IPv6 only behind a tunnel", document.s_311),
    Scenario("S-312", "IPv6 on and off in a running tree, no ping lost", ipv6.s_312),
    Scenario("S-320", "a name with an IPv6 address only", names.s_320),
    Scenario("S-400", "100 changes of keys on a live interface", keys.s_400, ipv6=True),
    Scenario("S-401", "QubesDB restarts, hangs, breaks off, is gone", endure.s_401),
    Scenario("S-402", "the agent is killed again and again meanwhile", keys.s_402, ipv6=True),
    Scenario("S-403", "a VPN's and a user's own settings stay", endure.s_403),
    Scenario("S-404", "hostile values in every key", keys.s_404, ipv6=True),
    Scenario("S-410a", "a VPN's tunnel up and down, by systemd-resolved", vpn.s_410a, ipv6=True),
    Scenario("S-410b", "a VPN's tunnel up and down, by resolvconf", vpn.s_410b, ipv6=True),
    Scenario("S-410c", "a VPN's tunnel up and down, as wg-quick does", vpn.s_410c, ipv6=True),
    Scenario("S-410d", "a VPN's tunnel up and down, by NetworkManager", vpn.s_410d, ipv6=True),
    Scenario("S-410e", "the same without a kill switch, names by systemd-resolved", vpn.s_410e, ipv6=True),
    Scenario("S-410f", "the same without a kill switch, names by resolvconf", vpn.s_410f, ipv6=True),
    Scenario("S-410g", "the same without a kill switch, names as wg-quick does", vpn.s_410g, ipv6=True),
    Scenario("S-410h", "the same without a kill switch, names by NetworkManager", vpn.s_410h, ipv6=True),
    Scenario("S-420", "a hostile qube among four: the others lose nothing", hostile.s_420, ipv6=True),
)

VARIANTS = tuple(
    Variant(scenario, ipv6, gateway)
    for scenario in SCENARIOS
    for ipv6 in (False, True)[: 1 + scenario.ipv6]
    for gateway in (False, True)[: 1 + scenario.gateway]
)
