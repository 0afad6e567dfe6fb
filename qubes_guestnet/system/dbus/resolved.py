# SPDX-License-Identifier: GPL-2.0-or-later
"""systemd-resolved's settings of one link: over the bus, or without a bus by resolvectl.

Each function raises a GuestnetError, after which a retry may succeed; if the service is not running, it returns None or
does nothing.
The creator of a bus imports `bus`: most qubes have no bus.
"""

from __future__ import annotations

import ipaddress
import os

from ...core.dns.resolved import LinkNames, parse_resolvectl
from ...errors import GuestnetError
from .. import plain_socket as socket
from .. import programs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ...core.dns.resolved_servers import Answer
    from ...core.dns.upstream_servers import Heard, LinkServers
    from .bus import Bus

SERVICE = "org.freedesktop.resolve1"
FOLDER = "/run/systemd/resolve"
# What was set for single links; it writes here also what it tells by no signal, as DefaultRoute.
LINKS_FOLDER = f"{FOLDER}/netif"
ABSENT, SILENT = "is not running", "does not answer"
_MANAGER = (SERVICE, "/org/freedesktop/resolve1", "org.freedesktop.resolve1.Manager")
_SECONDS = 0.9
_UPSTREAM_SECONDS = 0.5
_LOOKS = 4
_VERBS = ("dns", "domain", "default-route", "dnsovertls")
_PROPERTIES = "org.freedesktop.DBus.Properties"
_NOT_PROVIDED = "not provided by any .service"
_FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}


def present() -> bool:
    """Return whether it runs or ran: one look at a folder, and then nothing else is asked in a qube without it."""
    return os.path.isdir(FOLDER)


class ByBus:
    """Its D-Bus interface (org.freedesktop.resolve1(5))."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    def link(self, ifindex: int, _interface: str) -> LinkNames | None:
        """Return what the link has; None while the service is not running."""
        from .bus import BusError

        try:
            if not self._bus.owner(SERVICE):
                return None
            (path,) = self._bus.call(*_MANAGER, "GetLink", "i", (ifindex,))
            names = (_PROPERTIES, "GetAll", "s", ("org.freedesktop.resolve1.Link",))
            (found,) = self._bus.call(SERVICE, path, *names)
        except BusError as error:
            if error.absent or error.name.endswith(".NoSuchLink"):
                return None
            raise
        properties = {name: value[1] for name, value in found.items()}
        servers = tuple(str(ipaddress.ip_address(bytes(octets))) for _, octets in properties.get("DNS", ()))
        domains = tuple(("~" if routing else "") + name for name, routing in properties.get("Domains", ()))
        # The property tells what is in force, which after SetLinkDefaultRoute is what was set.
        return LinkNames(servers, domains, bool(properties.get("DefaultRoute", False)))

    def everything(self) -> Answer:
        """Return servers and domains of all links, and how they are to be asked.

        Raises:
            BusError: the service is not running (`absent`), or does not answer one of these calls in time.
            ValueError: its answer is not understood.
        """
        from ...core.dns.resolved_servers import bus_answer, bus_ways

        answer = bus_answer(self._properties(*_MANAGER[1:]))
        ways = dict(answer.ways)
        for ifindex in sorted({ifindex for ifindex, _ in answer.servers} - {0}):
            found = self._link_properties(ifindex)
            if found is not None:
                ways[ifindex] = bus_ways(found)
        return answer._replace(ways=ways)

    def _link_properties(self, ifindex: int) -> object:
        """None for a link that went meanwhile."""
        from .bus import BusError

        try:
            path = _only(self._bus.call(*_MANAGER, "GetLink", "i", (ifindex,)))
            return self._properties(str(path), "org.freedesktop.resolve1.Link")
        except BusError as error:
            if error.name.endswith((".NoSuchLink", ".UnknownObject")):
                return None
            raise

    def _properties(self, path: str, interface: str) -> object:
        return _only(self._bus.call(SERVICE, path, _PROPERTIES, "GetAll", "s", (interface,)))

    def set(self, ifindex: int, _interface: str, names: LinkNames) -> None:
        """Give the link these servers and domains."""
        addresses = [ipaddress.ip_address(server) for server in names.servers]
        dns = [(int(_FAMILY[address.version]), address.packed) for address in addresses]
        domains = [(name.removeprefix("~"), name.startswith("~")) for name in names.domains]
        self._bus.call(*_MANAGER, "SetLinkDNS", "ia(iay)", (ifindex, dns))
        self._bus.call(*_MANAGER, "SetLinkDomains", "ia(sb)", (ifindex, domains))
        self._bus.call(*_MANAGER, "SetLinkDefaultRoute", "ib", (ifindex, names.default_route))

    def revert(self, ifindex: int, _interface: str) -> None:
        """Take away what anybody set by this interface; what networkd says is in force again."""
        from .bus import BusError

        try:
            self._bus.call(*_MANAGER, "RevertLink", "i", (ifindex,))
        except BusError as error:
            if not error.absent and not error.name.endswith(".NoSuchLink"):
                raise


class _Absent(GuestnetError):
    """The service is not running; it left its files behind when it was killed."""

    absent = True


class ByCommand:
    """resolvectl. Asked only once for each start of the service, because a program takes 10 ms."""

    def __init__(self, program: str) -> None:
        self._program = program
        self._seen: dict[tuple[int, object], LinkNames] = {}

    def link(self, ifindex: int, interface: str) -> LinkNames | None:
        """See ByBus."""
        started = _started()
        if started is None:
            return None
        if (ifindex, started) not in self._seen:
            try:
                servers, domains = parse_resolvectl(self._run("dns", interface), self._run("domain", interface))
                default = self._run("default-route", interface).endswith("yes")
            except _Absent:
                return None
            self._seen = {(ifindex, started): LinkNames(servers, domains, default)}
        return self._seen[ifindex, started]

    def everything(self) -> Answer:
        """See ByBus. All programs run at the same time."""
        from ...core.dns.resolved_servers import printed_answer

        if _started() is None:
            raise _Absent("systemd-resolved is not running")  # and asking would start it
        done = programs.run_together(((self._program, verb) for verb in _VERBS), _UPSTREAM_SECONDS)
        for each in done:
            if each.status:
                raise _absent_or_not(f"resolvectl: {each.output[-200:]}")
        return printed_answer(*(each.output for each in done))

    def set(self, _ifindex: int, interface: str, names: LinkNames) -> None:
        """See ByBus."""
        self._seen = {}
        self._run("dns", interface, *names.servers)
        self._run("domain", interface, *names.domains)
        self._run("default-route", interface, "yes" if names.default_route else "no")

    def revert(self, _ifindex: int, interface: str) -> None:
        """See ByBus."""
        self._seen = {}
        try:
            if _started() is not None:
                self._run("revert", interface)
        except _Absent:
            return

    def _run(self, *words: str) -> str:
        done = programs.run((self._program, *words), _SECONDS / 3)
        if done.status and _NOT_PROVIDED in done.output:
            raise _Absent("systemd-resolved is not running")
        if done.status:
            raise GuestnetError(f"resolvectl {' '.join(words)}: {done.output[-200:]}")
        return done.output


def ask(
    port: ByBus | ByCommand | None, uplinks: frozenset[int], former: tuple[LinkServers, ...] | None = None
) -> Heard:
    """Return the servers of every link, in bounded time.

    Args:
        port: the way to the service; None when there is none.
        uplinks: interface indexes of this qube's uplinks.
        former: what it said last; None for nothing.

    Returns:
        What was heard; what follows from that it was not heard is for `core.dns.upstream_servers`.
    """
    from ...core.dns.upstream_servers import Heard

    if port is None:
        return Heard(problem="is unreachable without the system bus and resolvectl")
    try:
        return Heard(_whole(port, uplinks, former))
    except ValueError:
        return Heard(problem="gave a malformed answer")
    except GuestnetError as error:
        # Behaviour B35: an unexpected error name once broke all networking. So all error names are handled alike.
        return Heard(problem=ABSENT if getattr(error, "absent", False) else SILENT)


def _whole(
    port: ByBus | ByCommand, uplinks: frozenset[int], former: tuple[LinkServers, ...] | None
) -> tuple[LinkServers, ...]:
    """Return a consistent answer: one that was read twice in a row.

    An answer takes several calls, and a VPN that comes up between them may appear with its servers, but without its
    domain `~.`. If the answer changes each time, the last one is used; the change wakes the agent.
    """
    from ...core.dns.resolved_servers import link_servers

    for _ in range(_LOOKS):
        answer = link_servers(port.everything(), uplinks)
        if answer == former:
            break
        former = answer
    return answer


def _only(body: object) -> object:
    """Return what a reply with one value says. Raises ValueError for any other."""
    if not isinstance(body, tuple) or len(body) != 1:
        raise ValueError("no reply with one value")
    return body[0]


def _absent_or_not(problem: str) -> GuestnetError:
    return _Absent(problem) if _NOT_PROVIDED in problem else GuestnetError(problem)


def _started() -> object:
    """Return something that differs after each start of the service; None while it is not running."""
    try:
        status = os.stat(f"{FOLDER}/io.systemd.Resolve")
    except OSError:
        return None
    return status.st_ino, status.st_ctime_ns
