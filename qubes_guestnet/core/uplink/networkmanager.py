# SPDX-License-Identifier: GPL-2.0-or-later
"""NetworkManager as the manager of the uplink: the choice, its profile, and our remaining operations. All pure.

With the service flag `network-manager`, and where its `nmcli` is installed, NetworkManager configures the device from
a profile that we write (behaviours B25 to B29). We then keep our hands off addresses, routes and the link's state: two
that configure one device undo each other's work. A user's `nmcli device disconnect` therefore holds. The permanent
neighbour entries and the interface group stay ours; NetworkManager knows neither.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterable

from ..enumeration import Enum
from ..namedtuple import NamedTuple
from ..plan import Op, Verb
from ..settings import Family, UplinkSettings
from ..values import IPV4, IPV6, IPAddress, State
from .desired import Flags, Style, device_route

FOLDER = "/etc/NetworkManager/system-connections"
UNREAD = "unread"  # in the owned record: a profile that was in force was written again and must be loaded
# The former scripts used the same names, so an upgrade replaces their profile instead of adding a second one.
_FILE = "qubes-uplink-"
_NAME = "VM uplink "
_UUID = "de85f79b-8c3d-405f-a652-"

# The operations that we still carry out on an interface that NetworkManager configures.
OUR_VERBS = frozenset({Verb.TUNABLE, Verb.LINK_GROUP, Verb.NEIGHBOUR_SET, Verb.NEIGHBOUR_DEL})


class Manager(Enum):
    """The program that configures the uplink."""

    NETWORKMANAGER = "networkmanager"
    DIRECT = "direct"


class ManagerFacts(NamedTuple):
    """The facts for the choice of the manager.

    Args:
        flag: service flag `network-manager`.
        nmcli: the program is installed.
    """

    flag: bool = False
    nmcli: bool = False


class ManagerChoice(NamedTuple):
    """The program that configures the uplink, and the facts of the decision, in one line."""

    manager: Manager = Manager.DIRECT
    reasons: str = "network-manager=no manager=direct"

    @property
    def networkmanager(self) -> bool:
        """Return whether it is NetworkManager."""
        return self.manager is Manager.NETWORKMANAGER


def choose_manager(facts: ManagerFacts) -> ManagerChoice:
    """Return NetworkManager if the user switched it on and it is installed, never just because it runs."""
    manager = Manager.NETWORKMANAGER if facts.flag and facts.nmcli else Manager.DIRECT
    words = [f"network-manager={_yes(facts.flag)}"]
    if facts.flag:
        words.append(f"nmcli={_yes(facts.nmcli)}")
    return ManagerChoice(manager, " ".join([*words, f"manager={manager.value}"]))


def _yes(fact: bool) -> str:
    return "yes" if fact else "no"


def file_name(interface: str) -> str:
    """Return the name of the profile's file in FOLDER."""
    return _FILE + interface


def is_ours(name: str) -> bool:
    """Return whether a file in FOLDER is a profile that we write."""
    return name.startswith(_FILE)


def profile_name(interface: str) -> str:
    """Return the profile as `nmcli connection up` takes it."""
    return _NAME + interface


def profile_uuid(mac: str) -> str:
    """Return the profile's uuid: the same for the same interface, so that a replugged one has no second profile."""
    return _UUID + mac.replace(":", "")


class ProfileOptions(NamedTuple):
    """The fields of the profile that are not in the interface's own settings.

    Args:
        style: default-route style of IPv4.
        flags: service flags.
        servers: name servers.
        mtu: 0 for the driver's own.
        rank: 0 for the interface of /qubes-mac.
    """

    style: Style = Style.DEVICE
    flags: Flags = Flags()
    servers: tuple[IPAddress, ...] = ()
    mtu: int = 0
    rank: int = 0


def keyfile(interface: str, settings: UplinkSettings, options: ProfileOptions) -> bytes:
    """Return the profile's text, as nm-settings-keyfile(5) has it.

    No metric is given: NetworkManager's own (100 for Ethernet) lets a VPN's default route (50) win, as users expect.
    `cloned-mac-address` is given because the qube's MAC is how dom0 knows the interface, whatever the user's default.

    Args:
        interface: its name.
        settings: validated settings; a held family is written as not asked for, so ask `plan.held` first.
        options: the rest.
    """
    lines = [
        "# Made by qubes-guestnet from what dom0 wrote into QubesDB. Changes here do not last.",
        "[connection]",
        f"id={profile_name(interface)}",
        f"uuid={profile_uuid(settings.mac)}",
        "type=ethernet",
        "",
        "[ethernet]",
        f"mac-address={settings.mac.upper()}",
        "cloned-mac-address=preserve",
        *([f"mtu={options.mtu}"] if options.mtu else []),
        "",
        "[ipv4]",
        *(_family(settings.ipv4, settings, options) if settings.ipv4 else ["method=disabled"]),
        *_dns(options),
        "",
        "[ipv6]",
        # "disabled" would set disable_ipv6 in the kernel, which is not ours to do
        *(_family(settings.ipv6, settings, options) if settings.ipv6 else ["method=ignore"]),
        "",
    ]
    return "\n".join(lines).encode("utf-8")


def _family(family: Family, settings: UplinkSettings, options: ProfileOptions) -> Iterable[str]:
    yield "method=manual"
    gateway = family.gateway
    metric = f",0.0.0.0,{100 + 100 * options.rank}" if options.rank else ""
    if options.flags.disable_default_route:
        yield f"address1={family.interface}"
        if gateway is not None:
            yield f"route1={ipaddress.ip_network(gateway)}"
            yield "never-default=true"
    elif device_route(family, settings, options.style, options.rank):
        yield f"address1={family.interface}"
        yield f"route1=0.0.0.0/0{metric}"
    elif gateway is None:
        yield f"address1={family.interface}"
    else:
        yield f"address1={family.interface},{gateway}"
        if options.rank:
            yield f"route-metric={100 + 100 * options.rank}"


def _dns(options: ProfileOptions) -> Iterable[str]:
    if options.servers and not options.flags.disable_dns_server:
        yield "dns=" + "".join(f"{server};" for server in options.servers)


def left_to_us(ops: Collection[Op], observed: State) -> tuple[Op, ...]:
    """Return the operations of a plan that we carry out on an interface of NetworkManager.

    A neighbour only once its family has an address: before that NetworkManager switches IPv6 off and on, and the kernel
    refuses or forgets the entry. A sysctl only if it is another one: before a link-up of ours all of them are made
    again, and this link-up is not ours (behaviour B151).
    """
    families = {address.version for address in observed.addresses} if observed.up else set()
    early = (op for op in ops if op.verb is Verb.NEIGHBOUR_SET and op.family not in families)
    done = (op for op in ops if op.verb is Verb.TUNABLE and op.subject in observed.tunables)
    left_out = {*early, *done}
    return tuple(op for op in ops if op.verb in OUR_VERBS and op not in left_out)


def waiting(desired: State, observed: State) -> str:
    """Return the missing part of NetworkManager's configuration of the interface; "" for none.

    Its routes have metrics and a protocol of its own, so a default route of the right family is enough.
    """
    if desired.addresses and not observed.up:
        return "link is down"
    missing = sorted(map(str, desired.addresses - observed.addresses))
    if missing:
        return f"address {missing[0]} is missing"
    has = {route.destination.version for route in observed.routes if not route.destination.prefixlen}
    wanted = {route.destination.version for route in desired.routes if not route.destination.prefixlen}
    for version in (IPV4, IPV6):
        if version in wanted - has:
            return f"IPv{version} default route is missing"
    return ""


# From Qubes 4.2 to 4.3 the names of passed-through network cards lost the function of a single-function device:
# ens6f0 became ens6, and enp0s6f0np0 enp0s6np0 (#10154).
_FUNCTION = "f0"
_INTERFACE_KEY = "interface-name="


def mend(text: str, interfaces: Collection[str]) -> str:
    """Return a saved profile with the interface name of the former release changed to the present one (behaviour B31).

    Args:
        text: a keyfile.
        interfaces: names of the interfaces there are.

    Returns:
        The text; changed only if no interface has its name, and exactly one way to drop `f0` gives an existing name.
    """
    lines = text.splitlines(keepends=True)
    section = ""
    for number, line in enumerate(lines):
        stripped = line.strip()
        if stripped.startswith("["):
            section = stripped
        if section == "[connection]" and stripped.startswith(_INTERFACE_KEY):
            former = stripped.removeprefix(_INTERFACE_KEY)
            present = _present_name(former, interfaces)
            if present:
                lines[number] = line.replace(former, present)
    return "".join(lines)


def _present_name(former: str, interfaces: Collection[str]) -> str:
    if former in interfaces:
        return ""
    starts = [at for at in range(len(former)) if former.startswith(_FUNCTION, at)]
    shorter = {former[:at] + former[at + len(_FUNCTION) :] for at in starts} & set(interfaces)
    return shorter.pop() if len(shorter) == 1 else ""
