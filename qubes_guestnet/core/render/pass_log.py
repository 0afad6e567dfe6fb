# SPDX-License-Identifier: GPL-2.0-or-later
"""The journal's lines about a pass: its cause, its operations, and interfaces that appeared or disappeared.

A cause is a hint for people. No decision depends on it: a wake-up carries no data, and a pass reads everything afresh.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from ..namedtuple import NamedTuple
from ..plural import amount

TYPE_CHECKING = False  # of `typing`, which costs 5 ms and 1 MB (see system/deferred_imports)
if TYPE_CHECKING:
    from ..report import Report

START, KEYS, RELOAD, STORE = "start", "keys", "reload", "store"
LINK, ADDRESS, ROUTE, RULES, FILES, BUS = "link", "address", "route", "rules", "files", "bus"
RETRY, SETTLE, PROBE, HOTPLUG, OWN, FIREWALL, NAMES = "retry", "settle", "probe", "hotplug", "own", "firewall", "names"

# The timers of the agent.
TIMERS = {"retry": RETRY, "bus": BUS, "again": SETTLE, "firewall": FIREWALL}

# In the order in which they are printed.
_WORDS = {
    START: "the start of the agent",
    STORE: "QubesDB, which answers again",
    KEYS: "QubesDB",
    RELOAD: "SIGHUP",
    HOTPLUG: "Xen's hotplug",
    LINK: "a change of a link",
    ADDRESS: "a change of an address",
    ROUTE: "a change of a route",
    RULES: "a change of nft rules",
    FILES: "a change in the folder of resolv.conf",
    BUS: "DNS or NetworkManager (a message of the system bus)",
    PROBE: "the ARP probe of the device route",
    SETTLE: "a timer (systemd-udevd has applied sysctl.d)",
    OWN: "the changes of the pass before",
    FIREWALL: "a timer (dom0 has not written all rules of a qube yet)",
    NAMES: "the name look-up (a name in firewall rules has other addresses)",
    RETRY: "a timer (operations were pending)",
}
# Other programs cause these; changes in a pass with no other cause are a repair.
_FOREIGN = {LINK: "a link", ADDRESS: "an address", ROUTE: "a route", RULES: "nft rules", FILES: "resolv.conf"}
# Requests to the agent: if there is one, events of the kernel are not the cause.
_ORDERS = frozenset({START, STORE, KEYS, RELOAD})
_MOST_PATHS = 6


class Causes(NamedTuple):
    """The causes of a pass.

    Args:
        kinds: some of the constants above.
        paths: written paths of QubesDB.
    """

    kinds: frozenset[str] = frozenset()
    paths: frozenset[str] = frozenset()

    def plus(self, kinds: Iterable[str], paths: Iterable[str] = ()) -> Causes:
        """Return these causes and more."""
        return Causes(self.kinds.union(kinds), self.paths.union(paths))

    @property
    def words(self) -> str:
        """Return the causes, for a line of text."""
        said = self.kinds - set(_FOREIGN) if self.kinds & _ORDERS else self.kinds
        return ", ".join(self._named(kind) for kind in _WORDS if kind in said) or "nothing known"

    def _named(self, kind: str) -> str:
        if kind != KEYS or not self.paths:
            return _WORDS[kind]
        paths = sorted(self.paths)
        more = f" and {len(paths) - _MOST_PATHS} more" if len(paths) > _MOST_PATHS else ""
        return f"{_WORDS[kind]} ({' '.join(paths[:_MOST_PATHS])}{more})"

    @property
    def foreign(self) -> str:
        """Return the changes of other programs, if they are the only causes; else ""."""
        if not self.kinds or not self.kinds <= set(_FOREIGN):
            return ""
        return ", ".join(words for kind, words in _FOREIGN.items() if kind in self.kinds)

    @property
    def echoes(self) -> frozenset[str]:
        """Return the causes that a pass may produce by its own changes."""
        return self.kinds.intersection(_FOREIGN)

    def explained(self, echoes: Causes, *, changed: bool, pending: bool) -> Causes:
        """Return the causes of a pass, also where all wake-ups came directly after the pass before.

        Args:
            echoes: those wake-ups, which the changes of the pass before explain.
            changed: this pass changed something, so another program changed something too, unless
            pending: the pass before left something to this one.
        """
        if self.kinds or not echoes.kinds:
            return self
        return echoes if changed and not pending else self.plus((OWN,))


class PassLine(NamedTuple):
    """The line of one pass.

    Args:
        text: its cause, and the number of operations and errors.
        told: whether the journal gets it without --verbose; `monitor` gets every line.
    """

    text: str
    told: bool


def pass_line(causes: Causes, operations: int, errors: int = 0, *, moved: bool = False) -> PassLine:
    """Return the line of a pass.

    Args:
        causes: its causes.
        operations: number of operations carried out.
        errors: number of errors that the former pass did not have.
        moved: an interface appeared or disappeared, which explains the operations.
    """
    counts = [amount(count, word) for count, word in ((operations, "operation"), (errors, "error")) if count]
    did = ", ".join(counts) or "nothing to do"
    if operations and causes.foreign and not moved:
        return PassLine(f"repair, because another program changed {causes.foreign}: {did}", True)
    return PassLine(f"woken by {causes.words}: {did}", bool(operations or errors))


def start_line(version: str, roles: str) -> str:
    """Return the first line of an agent."""
    return f"qubes-guestnet {version} started: {roles}"


def roles(report: Report) -> str:
    """Return the roles of this qube, in words."""
    uplink = bool(report.settings.uplinks) or report.settings.held
    provider = report.provided is not None and report.provided.active
    named = [word for word, has in (("uplink", uplink), ("provider", provider)) if has]
    return f"role {' and '.join(named)}" if named else "no role (dom0 names no interface)"


Interfaces = Mapping[str, tuple[str, int]]  # MAC → name, index; 0 while it is gone


def interfaces(before: Interfaces, report: Report) -> dict[str, tuple[str, int]]:
    """Return the known uplinks after a pass, including the name of an uplink that is gone."""
    if report.blind:
        return dict(before)
    found = {}
    for interface in report.interfaces:
        mac, link = interface.settings.mac, interface.link
        if link is not None:
            found[mac] = (link.name, link.ifindex)
        elif mac in before:
            found[mac] = (before[mac][0], 0)
    return found


def moves(before: Interfaces, after: Interfaces) -> Iterator[str]:
    """Yield a line for each interface that appeared, disappeared or was renamed between two passes."""
    for mac, (name, index) in after.items():
        former, was = before.get(mac, ("", 0))
        if mac not in before:
            yield f"{name} found ({mac})"
        elif was and not index:
            yield f"{name} gone"
        elif index and not was:
            yield f"{name} back" if name == former else f"{former} back, as {name}"
        elif index != was:
            yield f"{name} gone and back"
        elif name != former:
            yield f"{former} renamed to {name}"
