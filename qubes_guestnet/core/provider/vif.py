# SPDX-License-Identifier: GPL-2.0-or-later
"""A vif: its data, and their text form in records and messages.

The file of a vif below /run and the message on the agent's socket are the same lines, one fact each, closed by a line
`end`: a truncated record is recognised and ignored, because it decides which addresses a qube may send from.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable
from functools import lru_cache

from ...errors import shown
from .. import checks
from ..namedtuple import NamedTuple
from ..values import IPAddress, IPInterface
from ..vif_name import HIGHEST_DOMID, VifName, parse_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_MAC_CHARACTERS = frozenset("0123456789abcdef:")
# dom0 gives two. What is done for each is told in one message of the agent's socket, which has its limit.
MOST_ADDRESSES = 64
_EMULATED = "vif_ioemu"
ONLINE, OFFLINE = "online", "offline"
_ACTIONS = {action.encode(): action for action in (ONLINE, OFFLINE)}
_END, _TOLD, _HOOKED = "end", "told", "hooked"


def metric(domid: int) -> int:
    """Return the metric of the routes to a domain: the later one started is preferred (behaviour B58)."""
    return HIGHEST_DOMID - domid


class Mapping(NamedTuple):
    """A qube that believes to have another address than it has (`/mapped-ip/`).

    Args:
        real: the one that this qube and the others see.
        visible: the one that it sees.
        gateway: the one that it sees of its gateway; None for the real one.
    """

    real: ipaddress.IPv4Address
    visible: ipaddress.IPv4Address
    gateway: ipaddress.IPv4Address | None = None


class _DeviceFields(NamedTuple):
    ifindex: int
    mac: str


class Device(_DeviceFields):
    """Which of the kernel's interfaces of one name it is: another one has another index (behaviour B117).

    Args:
        ifindex: interface index; 0 for the device of a vif that is out of service while its name is in use.
        mac: its own address, lower-case, "" when it has none.
    """

    __slots__ = ()

    def __new__(cls, ifindex: int, mac: str) -> Device:
        """Raise ValueError for what no interface has."""
        if ifindex < 0 or not _MAC_CHARACTERS.issuperset(mac):
            raise ValueError(f"no interface has index {ifindex} and address {mac!r}")
        return super().__new__(cls, ifindex, mac)


GONE = Device(0, "")


class _VifFields(NamedTuple):
    name: VifName
    mac: str
    kind: str
    addresses: tuple[IPAddress, ...]
    mappings: tuple[Mapping, ...]
    gateways: frozenset[IPInterface]
    told: bool
    device: Device | None
    hooked: tuple[IPAddress, ...] | None


class Vif(_VifFields):
    """A vif.

    Args:
        name: of the interface.
        mac: of the other end, lower-case.
        kind: what the toolstack calls it ("vif", "vif_ioemu"), "" when it is not known.
        addresses: what the qube may use, without repetition; none: it may send nothing.
        mappings: of those that it sees as others.
        gateways: addresses of ours that we put on the interface.
        told: dom0 had said what the qube sees when the vif was set up, see `late_mappings`.
        device: the interface that this is about; None where that is not known: hotplug tells names only, and so did the
            records of former releases.
        hooked: addresses that the user's hooks were told of since this device is there; None: they did not run.
    """

    __slots__ = ()

    def __new__(
        cls,
        name: VifName,
        mac: str,
        kind: str = "",
        addresses: tuple[IPAddress, ...] = (),
        mappings: tuple[Mapping, ...] = (),
        gateways: frozenset[IPInterface] = frozenset(),
        told: bool = False,
        device: Device | None = None,
        hooked: tuple[IPAddress, ...] | None = None,
    ) -> Vif:
        """Raise ValueError for a MAC, kind or address that is not one, and what is said of an address it has not."""
        if checks.mac(mac.encode()) != mac or checks.word(kind.encode()) != kind:
            raise ValueError(f"{mac!r} is not a lower-case MAC address")
        wrong = [address for address in addresses if not checks.is_host(address) or address in checks.LINK_LOCAL6]
        # A scope (fd09::5%eth0) would be text in the rules (behaviour B122).
        wrong += [each for each in (*addresses, *gateways) if getattr(each, "scope_id", None) is not None]
        wrong += [mapping.real for mapping in mappings if mapping.real not in addresses]
        wrong += [address for address in hooked or () if address not in addresses]
        if wrong:
            raise ValueError(f"{wrong[0]} cannot be an address of {name.text}")
        own = tuple(dict.fromkeys(addresses))
        return super().__new__(cls, name, mac, kind, own, mappings, gateways, told, device, hooked)


def duplicates(vifs: Iterable[Vif]) -> dict[tuple[str, ...], tuple[IPAddress, ...]]:
    """Return addresses that more than one qube has (behaviour B144).

    Args:
        vifs: those that are there.

    Returns:
        By the names of the vifs that share them, the addresses.
    """
    holders = dict[IPAddress, list[Vif]]()
    for vif in vifs:
        for address in vif.addresses:
            holders.setdefault(address, []).append(vif)
    found = dict[tuple[str, ...], tuple[IPAddress, ...]]()
    for address, several in holders.items():
        names = tuple(one.name.text for one in several if not all(_are_one_qubes(one, other) for other in several))
        if names:
            found[names] = (*found.get(names, ()), address)
    return found


def _are_one_qubes(one: Vif, other: Vif) -> bool:
    """Return whether two vifs belong to one qube: an HVM and its stub domain, started next to it, have one each (B58).

    The toolstack calls their card an emulated one, and it has one MAC address.
    """
    apart = abs(one.name.domid - other.name.domid)
    emulated = _EMULATED in (one.kind, other.kind) and one.mac == other.mac
    return apart == 0 or (apart == 1 and emulated)


def described(name: str, untrusted_mac: bytes, untrusted_kind: bytes, untrusted_addresses: bytes) -> Vif:
    """Return a vif as the toolstack tells of it.

    Args:
        name: of the interface.
        untrusted_mac: of the other end.
        untrusted_kind: `type` in xenstore, empty when there is none.
        untrusted_addresses: separated by blanks; empty for none.

    Raises:
        ValueError: in one line, what is wrong with it.
    """
    known = parse_name(name)
    mac = _checked(name, "MAC address", checks.mac, untrusted_mac)
    kind = _checked(name, "type", checks.word, untrusted_kind)
    addresses = tuple(_checked(name, "address", checks.address, word) for word in untrusted_addresses.split())
    if len(addresses) > MOST_ADDRESSES:
        raise ValueError(f"{name}: {len(addresses)} addresses are not valid, at most {MOST_ADDRESSES}")
    return Vif(known, mac, kind, addresses)


def _checked(name: str, what: str, check: Callable[[bytes], Any], untrusted_value: bytes) -> Any:
    try:
        return check(untrusted_value)
    except ValueError:
        raise ValueError(f"{name}: {shown(untrusted_value)} is not a valid {what}") from None


def render(vif: Vif) -> bytes:
    """Return the lines of a vif, in a stable order."""
    lines = [f"vif {vif.name.text} {vif.mac} {vif.kind}".rstrip()]
    lines += [f"address {address}" for address in vif.addresses]
    lines += [f"mapping {mapping.real} {mapping.visible} {mapping.gateway or ''}".rstrip() for mapping in vif.mappings]
    lines += sorted(f"gateway {gateway}" for gateway in vif.gateways)
    lines += [_TOLD] * vif.told
    if vif.device is not None:
        lines.append(f"device {vif.device.ifindex} {vif.device.mac}".rstrip())
    if vif.hooked is not None:
        lines.append(" ".join((_HOOKED, *map(str, vif.hooked))))
    return "".join(f"{line}\n" for line in (*lines, _END)).encode("ascii")


@lru_cache(maxsize=512)  # the records of 250 vifs are read by several parts of a pass, and seldom differ
def parse(data: bytes) -> Vif | None:
    """Return the vif that these lines are of; None when they are damaged."""
    try:
        first, *facts = _lines(data)
        word, name, mac, *kind = first.split(" ")
        addresses, mappings, gateways = list[IPAddress](), list[Mapping](), set[IPInterface]()
        told, device, hooked = False, None, None
        for fact in facts:
            key, *values = fact.split(" ")
            if key == "address" and len(values) == 1:
                addresses.append(ipaddress.ip_address(values[0]))
            elif key == "mapping" and len(values) in (2, 3):
                mappings.append(Mapping(*map(ipaddress.IPv4Address, values)))
            elif key == "gateway" and len(values) == 1:
                gateways.add(ipaddress.ip_interface(values[0]))
            elif fact == _TOLD:
                told = True
            elif key == "device" and len(values) in (1, 2) and device is None and checks.is_decimal(values[0], 10):
                device = Device(int(values[0]), "".join(values[1:]))
            elif key == _HOOKED and hooked is None:
                hooked = tuple(map(ipaddress.ip_address, values))
            else:
                return None
        if word != "vif" or len(kind) > 1:
            return None
        known, own = parse_name(name), tuple(addresses)
        return Vif(known, mac, "".join(kind), own, tuple(mappings), frozenset(gateways), told, device, hooked)
    except ValueError:  # also UnicodeDecodeError
        return None


def unhooked(vif: Vif, known: Vif | None) -> tuple[str, ...]:
    """Return the addresses that the user's hooks have not been run for, as words; "" instead of none (behaviour B148).

    Args:
        vif: as it is set up now.
        known: its record, None where there is none.
    """
    if known is None or known.hooked is None:
        return tuple(map(str, vif.addresses)) or ("",)
    return tuple(str(address) for address in vif.addresses if address not in known.hooked)


def ask(action: str, vif: Vif) -> bytes:
    """Return the message to the agent: do `ONLINE` or `OFFLINE` with this vif."""
    return f"{action}\n".encode("ascii") + render(vif)


def asked(data: bytes) -> tuple[str, Vif]:
    """Return the action and vif of a message.

    Raises:
        ValueError: it is not one, or not the whole of it.
    """
    untrusted_action, _, rest = data.partition(b"\n")
    action = _ACTIONS.get(untrusted_action)
    vif = parse(rest)
    if action is None or vif is None:
        raise ValueError(f"not a request about a vif: {shown(data)}")
    return action, vif


def answer(problem: str, done: Iterable[str]) -> bytes:
    """Return the agent's answer.

    Args:
        problem: what went wrong, "" for nothing.
        done: what was done, a line each.
    """
    lines = (f"problem {problem}", *(f"done {line}" for line in done))
    return "".join(f"{' '.join(line.split())}\n" for line in (*lines, _END)).encode()


def answered(data: bytes) -> tuple[str, tuple[str, ...]]:
    """Return the problem and what was done, of an answer.

    Raises:
        ValueError: it is not one, or not the whole of it: what was done then is not known.
    """
    first, *rest = _lines(data)
    problem, *done = (line.partition(" ") for line in (first, *rest))
    if problem[0] != "problem" or any(word != "done" for word, _, _ in done):
        raise ValueError(f"not an answer about a vif: {shown(data)}")
    return problem[2], tuple(text for _, _, text in done)


def _lines(data: bytes) -> list[str]:
    """Return the lines before the closing one, at least one; ValueError when that is not there."""
    *lines, end, nothing = ["", "", *data.decode().split("\n")]
    if (end, nothing) != (_END, "") or not lines[2:]:
        raise ValueError(f"truncated: {shown(data[-60:])}")
    return lines[2:]
