# SPDX-License-Identifier: GPL-2.0-or-later
"""Findings about other network programs in this qube, and their effect on ours. Pure: facts in, findings out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from .. import wording
from ..namedtuple import NamedTuple
from ..report import InterfaceReport, Report
from ..uplink.desired import Style
from ..uplink.networkmanager import profile_name


class DefaultRoute(NamedTuple):
    """An IPv4 default route that is up.

    Args:
        interface: its name.
        metric: of the route.
        half: it covers one half of all addresses; some VPNs add two such routes and leave the default route alone.
    """

    interface: str
    metric: int = 0
    half: bool = False


class Presence(NamedTuple):
    """The other programs in this qube.

    Args:
        programs: names of running processes, which the kernel shortens to 15 characters.
        tunnels: interfaces of VPNs: WireGuard and tun.
        defaults: the IPv4 default routes, in the kernel's order.
        pasta: the installed program that connects rootless containers (pasta or passt); "" for none.
    """

    programs: frozenset[str] = frozenset()
    tunnels: tuple[str, ...] = ()
    defaults: tuple[DefaultRoute, ...] = ()
    pasta: str = ""

    @property
    def leading(self) -> str:
        """Return the interface of the default route in force, "" for none. A half precedes, then the lowest metric."""
        ranked = sorted(self.defaults, key=lambda route: (not route.half, route.metric))
        return ranked[0].interface if ranked else ""


ABSENT = Presence()


class Remark(NamedTuple):
    """One finding: code, severity, problem and remedy; see `findings.Finding`."""

    code: str
    severity: str
    problem: str
    remedy: str


_NETWORKMANAGER, _RESOLVED, _NETWORKD = "NetworkManager", "systemd-resolve", "systemd-network"
_DHCP = ("dhclient", "dhcpcd", "udhcpc", "connmand")
_NOTHING = "nothing to do"


def programs(presence: Presence) -> tuple[str, ...]:
    """Return the programs that affect an uplink, for a line of text."""
    known = (_NETWORKMANAGER, _RESOLVED, _NETWORKD, *_DHCP, "dockerd", "openvpn", "tailscaled", "iwd")
    return tuple(_full(name) for name in known if name in presence.programs) + tuple(
        f"VPN {name}" for name in presence.tunnels
    )


def _full(name: str) -> str:
    return {_RESOLVED: "systemd-resolved", _NETWORKD: "systemd-networkd"}.get(name, name)


def remarks(report: Report, presence: Presence) -> Iterator[Remark]:
    """Yield the findings about other programs."""
    there = [interface for interface in report.interfaces if interface.link is not None and not interface.removed]
    yield from _networkmanager(there, presence)
    if not there:
        return
    if presence.pasta and any(each.choice.style is Style.DEVICE and each.observed.routes for each in there):
        problem = f"{presence.pasta} is installed, but finds no outward interface: the default route has no gateway"
        remedy = "if you use it (rootless podman), set the service flag guestnet-gateway-route"
        yield Remark("gateway-wanted", "note", problem, remedy)
    if _RESOLVED in presence.programs:
        problem = (
            "systemd-resolved is running: the agent sets the uplink's servers in it; resolv.conf does not depend on it"
        )
        yield Remark("resolved-present", "note", problem, _NOTHING)
    if _NETWORKD in presence.programs:
        problem = "systemd-networkd is running: at its start it may remove foreign routes, including ours"
        remedy = "the agent restores them at once; ManageForeignRoutes=no in networkd.conf prevents it"
        yield Remark("networkd-present", "note", problem, remedy)
    for name in _DHCP:
        if name in presence.programs:
            problem = f"{name} is running: Qubes has no DHCP server, and this client may overwrite resolv.conf"
            yield Remark(
                "dhcp-client", "warning", problem, f"switch it off for the uplink, unless {name} serves another"
            )
    if presence.leading and presence.leading not in [interface.link.name for interface in there if interface.link]:
        problem = f"the default route in force uses {presence.leading}: it has precedence over the uplink's"
        yield Remark("foreign-default-route", "note", problem, "nothing to do if it is a VPN's")
    elif presence.tunnels:
        problem = (
            f"{', '.join(presence.tunnels)}: a VPN is up; the agent leaves its routes, rules and name servers alone"
        )
        yield Remark("vpn-present", "note", problem, _NOTHING)


def _networkmanager(interfaces: Iterable[InterfaceReport], presence: Presence) -> Iterator[Remark]:
    running = _NETWORKMANAGER in presence.programs
    for interface in interfaces:
        name, owner = interface.link.name if interface.link else "", interface.manager.networkmanager
        if owner and not running:
            problem = f"NetworkManager must configure {name} (service flag network-manager), but is not running"
            yield Remark("networkmanager-not-running", "error", problem, "systemctl status NetworkManager")
        elif owner and interface.waiting:
            problem = f"NetworkManager has not configured {name} with dom0's settings: {interface.waiting}"
            remedy = f'was it disconnected? nmcli connection up "{profile_name(name)}"'
            yield Remark("networkmanager-waiting", "warning", problem, remedy)
        elif owner:
            problem = f"NetworkManager configures {name} from our profile, and writes resolv.conf"
            yield Remark("networkmanager-present", "note", problem, _NOTHING)
        elif running:
            problem = f"NetworkManager is running, but {name} is configured by {wording.manager(interface.manager)}"
            remedy = "nothing to do; or switch on the service network-manager, and install nmcli"
            yield Remark("networkmanager-present", "note", problem, remedy)
        elif "nmcli=no" in interface.manager.reasons:
            problem = f"the service network-manager is on, but nmcli is not installed: the agent configures {name}"
            yield Remark("networkmanager-missing", "warning", problem, "install it, or switch the service off")
