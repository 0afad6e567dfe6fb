# SPDX-License-Identifier: GPL-2.0-or-later
"""`firewall test`: follow the first packet of a client qube's connection, and name the rule that decides."""

from __future__ import annotations

import ipaddress
import os
import socket

from ..core.checks import is_decimal
from ..core.firewall import shown as lists_shown
from ..core.packet import loaded, way
from ..core.packet.match import PROTOCOLS, TCP, UDP, Asked, Device, Packet
from ..core.provider import closed_forwarding
from ..core.render import firewall_way
from ..core.render.firewall_way import Judged
from ..core.values import IPAddress
from ..errors import GuestnetError, KernelError, UsageError, shown
from ..provider.forwarding import apart, forwarded
from ..system import devices
from ..system.netlink import rtnl as netlink
from ..system.nft import kernel as nft_kernel
from ..system.nft import program as nft
from ..system.owned_state import Ledger
from ..system.paths import Paths
from . import firewall_ground
from .firewall_ground import Ground
from .options import EXIT_DONE, EXIT_REFUSED, EXIT_UNCLEAR
from .output import print_json, show

TYPE_CHECKING = False  # of `typing`, which costs 5 ms and 1 MB (see system/deferred_imports)
if TYPE_CHECKING:
    from .options import Options

_STATUS = {way.PASSES: EXIT_DONE, way.UNCLEAR: EXIT_UNCLEAR}
_ECHO = {4: 8, 6: 128}
_ICMP = {4: PROTOCOLS["icmp"], 6: PROTOCOLS["icmpv6"]}
_LOOPBACK = 1  # the interface index of lo, to which all addresses of this qube are routed
_TRIES = 4
_WHY = "`firewall test QUBE TO [PROTOCOL [PORT | ICMPTYPE]]`, such as: firewall test vif4.0 192.0.2.1 tcp 443"


def run(options: Options, paths: Paths) -> int:
    """Print the path of the packet. Return 0 if it passes, 3 if not, 4 if the verdict is unknown."""
    qube, target, *rest = options.arguments
    wire = _transport(rest)
    ground = firewall_ground.look(paths)
    if ground.unseen is not None:
        raise ground.unseen
    sources = firewall_ground.addresses_of(qube, ground.vifs)
    name, destinations = _destinations(target, ground)
    test = _Test(paths, ground)
    tested = [test.one(source, each, *wire) for each in destinations for source in _of_family(sources, each, ground)]
    if not tested:
        family = " or ".join(sorted({f"IPv{each.version}" for each in destinations}))
        problem = f"{qube} has no {family} address, and {target} has no address of another family"
        raise UsageError(problem, "give a destination of a family that the qube has")
    outcome = firewall_way.together(tested)
    if options.json:
        print_json(firewall_way.all_data(name, tested, outcome))
    else:
        for number, each in enumerate(tested):
            if number:
                print()
            show(firewall_way.as_text(each), options.color)
    return _STATUS.get(outcome, EXIT_REFUSED)


def _transport(words: list[str]) -> tuple[int | None, int | None]:
    """Return the protocol (None for ICMP) and its port or ICMP type (None if it has none). Raises UsageError."""
    protocol = words[0].lower() if words else "icmp"
    if is_decimal(protocol, 3) and int(protocol) < 256:
        number = int(protocol)
    elif protocol in PROTOCOLS:
        number = PROTOCOLS[protocol]
    else:
        problem = f"{shown(os.fsencode(words[0]))} is not a protocol"
        raise UsageError(problem, "give tcp, udp, icmp, or a number up to 255")
    icmp = number in _ICMP.values()
    most = 255 if icmp else 65535
    value = int(words[1]) if len(words) > 1 and is_decimal(words[1], 5) else -1
    if number in (TCP, UDP) or (icmp and len(words) > 1):
        if not 0 <= value <= most:
            what = f"an ICMP type is a number from 0 to {most}" if icmp else f"a port is a number from 0 to {most}"
            raise UsageError(f"{words[1] if len(words) > 1 else protocol}: {what}".replace("\n", " "), _WHY)
        return None if icmp else number, value
    if len(words) > 1:
        raise UsageError(f"protocol {protocol} has no ports that rules can match", _WHY)
    return None if icmp else number, None


def _destinations(target: str, ground: Ground) -> tuple[str | None, tuple[IPAddress, ...]]:
    """Return the name of a target (None for an address), and its addresses.

    The addresses of a name are those in the rules; if the rules have none, this qube looks the name up.

    Raises:
        UsageError: the target is neither an address nor a known name.
    """
    try:
        return None, (ipaddress.ip_address(target),)
    except ValueError:
        pass
    known = lists_shown.names(ground.vifs, ground.facts)
    found = {
        address for (_, host), each in known.items() if host == target.lower().rstrip(".") for address in each.addresses
    }
    if not found:
        try:
            answers = socket.getaddrinfo(target, None, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            problem = f"{shown(os.fsencode(target))} is neither an address nor a name that this qube can look up"
            raise UsageError(problem, "give an address") from None
        found = {ipaddress.ip_address(str(answer[4][0]).partition("%")[0]) for answer in answers}
    return target, tuple(sorted(found, key=lambda each: (each.version, int(each))))


def _of_family(sources: tuple[IPAddress, ...], target: IPAddress, ground: Ground) -> tuple[IPAddress, ...]:
    """Return the addresses of a qube that can send a packet to a target, by address family."""
    own = tuple(each for each in sources if each.version == target.version)
    if own:
        return own
    vifs = {ground.vifs[each] for each in sources}
    return tuple(each for each, vif in ground.vifs.items() if vif in vifs and each.version == target.version)


class _Test:
    """The facts that all tested packets share, read once."""

    def __init__(self, paths: Paths, ground: Ground) -> None:
        self._ground, self._kernel, self._names = ground, netlink.Kernel(), devices.names()
        self._loaded = _ruleset()
        with Ledger(paths.run, reading=True) as ledger:
            provided = ledger.record.provided
        self._provided = provided
        self._facts = (forwarded(), closed_forwarding.reason(provided), frozenset(name for name, _ in apart()))

    def one(self, source: IPAddress, target: IPAddress, protocol: int | None, detail: int | None) -> Judged:
        """Follow one packet, and return its verdict."""
        vif, icmp = self._ground.vifs[source], protocol is None
        number = _ICMP[target.version] if protocol is None else protocol
        kind = (_ECHO[target.version] if detail is None else detail) if icmp else None
        port = None if icmp else detail
        index = {name: each for each, name in self._names.items()}.get(vif, 0)
        packet = Packet(self._device(vif), source, target, number, port, kind, Asked(source, target, port))
        facts = way.Facts(self._loaded, *self._facts, lambda address: self._way(address, source, index))
        walked = way.walk(packet, facts)
        shown = (
            lists_shown.lists((source,), self._ground.facts)[0] if source in self._ground.facts.stored.sets else None
        )
        listed = self._ground.facts.listed or {}
        servers = listed[source.version].dns if source.version in listed else None
        said = firewall_way.explained(shown, walked.packet, servers or frozenset())
        return Judged(packet, walked, said, shown, tuple(self._notes(walked, shown, index)))

    def _way(self, address: IPAddress, source: IPAddress, ifindex: int) -> way.Way:
        """Return the route of a packet; if its interface does not forward, the route that it would take."""
        try:
            out = self._kernel.way(address, source, ifindex)
        except KernelError:
            out = 0
        out = out or self._kernel.way(address)
        if out == _LOOPBACK:
            return way.Way(None, own=True)
        name = self._names.get(out)
        if name is None:
            return way.Way(None)
        return way.Way(self._device(name), leaves_as=self._kernel.own_address(address))

    def _device(self, name: str) -> Device:
        link = self._kernel.link_named(name)
        return Device(name, link.group if link is not None else 0)

    def _notes(self, walked: way.Walked, shown: lists_shown.ListShown | None, index: int) -> list[str]:
        notes = []
        if not index:
            notes.append("the interface of the qube no longer exists")
        if shown is not None and shown.same is False:
            notes.append("the list in QubesDB differs from the one in force: the one in force decides")
        if walked.outcome == way.PASSES and walked.packet.oif is not None:
            notes.append(f"once it is established: offload {self._provided.offload or 'not decided yet'}")
        notes += [f"not evaluated: chain {name}, at an interface" for name in way.unjudged(self._loaded)]
        return notes


def _ruleset() -> loaded.Loaded:
    """Return a consistent snapshot of all rules. Raises GuestnetError."""
    for _ in range(_TRIES):
        generation = nft_kernel.generation()
        objects, text = nft.ruleset()
        asleep = nft_kernel.dormant()
        if nft_kernel.generation() == generation:
            break
    try:
        return loaded.parse(objects, text, asleep)
    except ValueError as error:
        raise GuestnetError(f"nft -j list ruleset: {error}", "report it as a bug of qubes-guestnet") from None
