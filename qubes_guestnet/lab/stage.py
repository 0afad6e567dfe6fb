# SPDX-License-Identifier: GPL-2.0-or-later
"""The stage of the scenarios: providers with worlds, qubes with agents, and what "reaches" and "is configured" mean.

What is expected comes from the entries dom0 wrote, by rules written anew here; what is there is asked of `ip -json`,
of the files and of real packets. None of it uses the agent's own code.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from typing import Any

from . import probes, world
from .dom0 import Dom0, Vm
from .namespaces import LabError
from .progress import Teller
from .provider import BACKEND_MAC, VIRTUAL_DNS
from .qube import Qube, eventually

GATEWAY_FLAG = "guestnet-gateway-route"
FOREIGN_ADDRESS = "192.168.77.7/32"
FOREIGN_MAC = "02:00:"
REACH_DEADLINE = 10.0
_FELL_BACK = "falling back to the gateway route"


class Stage:
    """One lab with `netvm1` and, when asked for, more.

    Args:
        ipv6: `ipv6 = "1"` on the providers.
        gateway: default-route style `gateway` in every qube, else `device`.
        teller: where steps are told.
        plain: providers by plain commands and not by the real role, which alone can be slow or silent.
    """

    def __init__(
        self, ipv6: bool = False, gateway: bool = False, teller: Teller | None = None, plain: bool = False
    ) -> None:
        self.ipv6 = ipv6
        self.gateway = gateway
        self.teller = teller or Teller()
        self.dom0 = Dom0(plain)
        self.step = self.teller.step
        self.note = self.teller.note
        # Whether qubes have things that are not the agent's, see scenarios.foreign: they are no difference then.
        self.foreign = False
        self.netvm1 = self.dom0.create_provider("netvm1", ipv6)

    def provider(self, name: str, ipv6: bool | None = None) -> Vm:
        """Add a provider with a world of its own."""
        return self.dom0.create_provider(name, self.ipv6 if ipv6 is None else ipv6)

    def start(self, name: str, netvm: Vm | None, agent: bool = True) -> Vm:
        """Create and start a qube, and its agent."""
        vm = self.dom0.create(name, netvm)
        self.boot(vm, agent)
        return vm

    def proxy(self, name: str, netvm: Vm | None = None, ipv6: bool | None = None, agent: bool = True) -> Vm:
        """Create and start a qube that passes on the network it has itself, from `netvm1` if nothing else is said."""
        vm = self.dom0.create(name, netvm or self.netvm1, ipv6, provides_network=True)
        self.boot(vm, agent)
        return vm

    def boot(self, vm: Vm, agent: bool = True) -> None:
        """Start a qube that was created with settings of its own."""
        if self.gateway:
            vm.flags.add(GATEWAY_FLAG)
        self.dom0.start(vm, agent)

    # --- what must hold ----------------------------------------------------------------------------------------

    def reaches(self, vm: Vm, deadline: float = REACH_DEADLINE) -> None:
        """Pings the world by address and by name, IPv4 and, where it has it, IPv6; within `deadline` seconds."""
        self._hold(vm, f"{vm.name} reaches the world", lambda: not unreached(vm), deadline, lambda: unreached(vm))

    def reaches_nothing(self, vm: Vm) -> None:
        """Check that no address and no route is left, and that nothing answers."""
        eventually(f"{vm.name} has no network", lambda: not network_of(vm.running))
        if probes.ping(vm.running, world.HOST, 0.3) is not None:
            raise LabError(f"{vm.name} reaches {world.HOST} and must not")

    def configured(self, vm: Vm, deadline: float = REACH_DEADLINE) -> None:
        """Addresses, routes, neighbours and resolv.conf are what the entries ask for, and nothing besides."""
        self._hold(vm, f"{vm.name} is configured", lambda: not self.difference(vm), deadline,
                   lambda: self.difference(vm))  # fmt: skip

    def works(self, *vms: Vm) -> None:
        """Check that each qube is configured and reaches the world."""
        for vm in vms:
            self.reaches(vm)
            self.configured(vm)

    def answered(self, vm: Vm) -> None:
        """Wait until its agent knows that the provider answers ARP for others, and so keeps the device route.

        A provider that loses its own uplink earlier answers no ARP request, and the qube uses the gateway route.
        """
        if not self.gateway:
            eventually(f"{vm.name} got its ARP answers", lambda: set(VIRTUAL_DNS) <= _neighbours(vm))

    def difference(self, vm: Vm) -> str:
        """Return the first thing that is not as the entries ask; "" when all is."""
        found, agent = difference(vm, self.gateway, self.foreign), vm.running.agent
        if found and agent is not None and _FELL_BACK in agent.output():
            # A machine under load answers ARP late, and the agent is right to take the gateway route then.
            return difference(vm, True, self.foreign)
        return found

    def _hold(self, vm: Vm, what: str, probe: Callable[[], bool], deadline: float, why: Callable[[], str]) -> None:
        try:
            eventually(what, probe, deadline)
        except LabError as error:
            agent = vm.running.agent
            log = agent.tail(1500) if agent else "no agent"
            raise LabError(f"{error.problem}: {why()}", f"the agent's log:\n{log}") from None


def _neighbours(vm: Vm) -> set[str]:
    """Return addresses for which the qube has got an answer."""
    return {entry["dst"] for entry in vm.running.ip("neigh") if "lladdr" in entry}


def unreached(vm: Vm) -> str:
    """Return what of the world the qube does not reach; "" when all of it."""
    qube = vm.running
    targets = [(4, world.HOST), *([(6, world.HOST6)] if vm.reaches6 else [])]
    for version, address in targets:
        if probes.ping(qube, address) is None:
            return f"no answer from {address}"
        found = probes.resolve(qube, world.NAME, version)
        if found != [address]:
            return f"{world.NAME} is {found} and should be {address}"
        if probes.ping(qube, found[0]) is None:
            return f"no answer from {world.NAME}"
    return ""


def interface_of(qube: Qube, mac: str) -> dict[str, Any] | None:
    """Return the interface with that address, as `ip -json address` shows it."""
    return next((link for link in qube.ip("address") if link.get("address") == mac), None)


def network_of(qube: Qube) -> list[str]:
    """Return addresses and routes of a qube, all but loopback and what the kernel makes by itself."""
    found = []
    for link in qube.ip("address"):
        if link["ifname"] != "lo":
            found += addresses(link)
    return found + [f"{route['dst']} dev {route.get('dev')}" for route in routes(qube, 4) + routes(qube, 6)]


def addresses(link: dict[str, Any]) -> list[str]:
    """Return addresses of a link as 10.137.0.5/32, without IPv6 link-local ones."""
    return [f"{a['local']}/{a['prefixlen']}" for a in link["addr_info"] if "fe80:" not in a.get("local", "fe80:")]


def routes(qube: Qube, version: int) -> list[dict[str, Any]]:
    """Return the main table, without what the kernel makes for addresses, link-local and loopback."""
    found = qube.ip(f"-{version}", "route", "show", "table", "main")
    # IPv6 routes that differ only in the gateway are shown as one with several next hops.
    single = [{**route, **hop} for route in found for hop in route.get("nexthops", ({},))]
    return [route for route in single if route.get("protocol") != "kernel"]


def default_routes(qube: Qube, version: int = 4) -> list[dict[str, Any]]:
    """Default routes of the main table."""
    return [route for route in routes(qube, version) if route["dst"] == "default"]


def nameservers(qube: Qube) -> list[str]:
    """Return servers in its resolv.conf."""
    lines = (line.split() for line in qube.read("/etc/resolv.conf").splitlines())
    return [words[1] for words in lines if len(words) > 1 and words[0] == "nameserver"]


def difference(vm: Vm, gateway_style: bool, foreign: bool = False) -> str:
    """Return the first thing that is not as the entries ask; "" when all is. For entries that are valid.

    With `foreign` what `scenarios.foreign` adds is left out of account.
    """
    entries = {key: value.decode("ascii") for key, value in vm.database.items() if key.startswith("/qubes-")}
    qube = vm.running
    link = interface_of(qube, entries["/qubes-mac"])
    if link is None or "UP" not in link["flags"]:
        return f"interface {entries['/qubes-mac']}: {link and link['flags']}"
    name = link["ifname"]
    seen4, seen6 = routes(qube, 4), default_routes(qube, 6)
    if vm.provides_network:
        seen4 = [route for route in seen4 if route.get("dev") == name]
    if foreign:
        seen4 = [route for route in seen4 if route.get("dev") == name and route.get("protocol") != "static"]
    checks = (
        ("addresses", set(addresses(link)) - ({FOREIGN_ADDRESS} if foreign else set()), _wanted_addresses(entries)),
        ("IPv4 routes", _shown(seen4), _wanted_routes4(entries, name, gateway_style)),
        ("IPv6 default routes", _shown(seen6), _wanted_routes6(entries, name)),
        ("neighbours", _permanent(qube, name, foreign), _wanted_neighbours(entries)),
        ("group", link.get("group"), "1"),
    )
    found = next((f"{what} are {seen}, expected {wanted}" for what, seen, wanted in checks if seen != wanted), "")
    if found or foreign:
        return found
    servers, wanted_servers = nameservers(qube), _wanted_servers(entries)
    return "" if servers == wanted_servers else f"nameservers are {servers}, expected {wanted_servers}"


def _wanted_addresses(entries: dict[str, str]) -> set[str]:
    found = {ipaddress.ip_interface(f"{entries['/qubes-ip']}/{entries.get('/qubes-netmask', 32)}").with_prefixlen}
    if "/qubes-ip6" in entries:
        found.add(ipaddress.ip_interface(f"{entries['/qubes-ip6']}/{entries.get('/qubes-netmask6', 128)}").compressed)
    return found


def _shown(found: list[dict[str, Any]]) -> set[str]:
    """Return routes in words that do not depend on the version of iproute2."""
    return {
        " ".join(
            [route["dst"], *(["via", route["gateway"]] if "gateway" in route else []), "dev", route.get("dev", "-")]
            + (["scope", route["scope"]] if route.get("scope", "global") != "global" else [])
            + (["onlink"] if "onlink" in route.get("flags", ()) else [])
        )
        for route in found
    }


def _wanted_routes4(entries: dict[str, str], interface: str, gateway_style: bool) -> set[str]:
    gateway = entries.get("/qubes-gateway")
    if gateway is None:
        return set()
    if gateway_style:
        return {f"{gateway} dev {interface} scope link", f"default via {gateway} dev {interface} onlink"}
    return {f"default dev {interface} scope link"}


def _wanted_routes6(entries: dict[str, str], interface: str) -> set[str]:
    gateway = entries.get("/qubes-gateway6")
    return {f"default via {gateway} dev {interface} onlink"} if gateway and "/qubes-ip6" in entries else set()


def _wanted_neighbours(entries: dict[str, str]) -> dict[str, str]:
    keys = ["/qubes-gateway", *(["/qubes-gateway6"] if "/qubes-ip6" in entries else [])]
    return {entries[key]: BACKEND_MAC for key in keys if key in entries}


def _wanted_servers(entries: dict[str, str]) -> list[str]:
    keys = ("/qubes-primary-dns", "/qubes-secondary-dns")
    return [entries[key] for key in keys if entries.get(key)]


def _permanent(qube: Qube, interface: str, foreign: bool) -> dict[str, str]:
    found = qube.ip("neighbour", "show", "dev", interface)
    return {
        entry["dst"]: entry["lladdr"]
        for entry in found
        if "PERMANENT" in entry.get("state", ()) and not (foreign and entry["lladdr"].startswith(FOREIGN_MAC))
    }
