# SPDX-License-Identifier: GPL-2.0-or-later
"""The report of a pass. `render.status` formats it, and `check.findings` derives findings from it."""

from __future__ import annotations

from collections.abc import Iterator

from ..errors import GuestnetError
from .dns.resolv_conf import KEPT, Decision, parse
from .namedtuple import NamedTuple
from .plan import Op, Verb
from .settings import Settings, UplinkSettings
from .uplink.desired import Flags, Style, StyleChoice
from .uplink.networkmanager import ManagerChoice
from .values import DEFAULT, IPV4, Link, State

TYPE_CHECKING = False  # of `typing`, which costs 5 ms and 1 MB (see system/deferred_imports)
if TYPE_CHECKING:
    from .provider.provider_report import ProviderReport


class Note(NamedTuple):
    """A fact about a successful pass that the owner of the qube should know. `check` prints it as a finding.

    Args:
        code: code of the finding.
        severity: its severity.
        problem: one line.
        remedy: one line.
    """

    code: str
    severity: str
    problem: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.problem}; {self.remedy}"


class InterfaceReport(NamedTuple):
    """The report of one uplink.

    Args:
        settings: settings from dom0.
        link: the interface; None if it does not exist.
        choice: default-route style, and the reason.
        desired: desired state.
        observed: state at the end of the pass.
        plan: operations still pending then; unless the pass was dry, any of them is an error.
        detached: the interface went, and dom0 has written nothing since.
        removed: `uplink remove` took it down, and it stays down.
        manager: the program that configures it.
        waiting: the pending step of NetworkManager, "" for none.
        rank: 0 for the interface of /qubes-mac, 1 and up for further ones.
        no_ipv6: why IPv6 is left out although dom0 gives it; "" if it is not left out.
    """

    settings: UplinkSettings
    link: Link | None
    choice: StyleChoice
    desired: State = State()
    observed: State = State()
    plan: tuple[Op, ...] = ()
    detached: bool = False
    removed: bool = False
    manager: ManagerChoice = ManagerChoice()
    waiting: str = ""
    rank: int = 0
    no_ipv6: str = ""

    @property
    def asked(self) -> UplinkSettings:
        """Return dom0's settings, without IPv6 if it is left out."""
        return self.settings._replace(ipv6=None) if self.no_ipv6 else self.settings

    @property
    def notes(self) -> Iterator[Note]:
        """Yield notes on differences from dom0's probable intention."""
        link, ipv4 = self.link, self.settings.ipv4
        if link is None or self.removed:
            return
        if self.no_ipv6:
            problem = f"IPv6 is off on {link.name} ({self.no_ipv6}): dom0's IPv6 settings for this qube are left out"
            yield Note("ipv6-off", "note", problem, "nothing, if that is intended")
        if ipv4 is None or ipv4.gateway is not None or self.rank or self.settings.custom:
            return
        missing = f"dom0 gives {link.name} an IPv4 address but no gateway (/qubes-gateway)"
        remedy = "set the provider again: qvm-prefs QUBE netvm PROVIDER"
        if DEFAULT[IPV4] in {route.destination for route in self.desired.routes}:
            yield Note("gateway-missing", "warning", f"{missing}: the device route needs none", remedy)
        elif self.choice.style is Style.GATEWAY:
            problem = f"{missing}, which the style `gateway` requires: no default route ({self.choice.reason})"
            yield Note("no-default-route", "error", problem, remedy)

    @property
    def expected(self) -> bool:
        """Return whether the interface exists or is about to appear."""
        asked = self.asked.ipv4 is not None or self.asked.ipv6 is not None or bool(self.settings.held)
        return asked and not self.removed and (self.link is not None or not self.detached)

    @property
    def configured(self) -> bool:
        """Return whether the interface is present, up and completely configured, with at least one valid family.

        A sysctl that another program has changed since (udev runs systemd-sysctl for a new interface) is ignored: the
        qube has its network, the rules drop the same packets as the sysctl, and the next pass writes it.
        """
        there = self.link is not None and self.observed.up and not self.removed
        left = any(op.verb is not Verb.TUNABLE for op in self.plan)
        return there and not left and not self.waiting and bool(self.desired.addresses)


class ResolverReport(NamedTuple):
    """The report of resolv.conf.

    Args:
        path: the file.
        decision: its owner, and the reason.
        wanted: desired content; None if another program owns the file.
        current: content at the end of the pass; b"" if it is not a file.
        written: whether this pass wrote it.
        replaced: another program's servers in the file before that, in words.
        down: the device of the VPN that owns the file, while the device is set down; "" for none.
    """

    path: str
    decision: Decision
    wanted: bytes | None
    current: bytes
    written: bool
    replaced: str = ""
    down: str = ""

    @property
    def in_force(self) -> bool:
        """Return whether the file has the desired content."""
        return self.wanted is not None and not self.pending

    @property
    def kept(self) -> bool:
        """Return whether another program or a hook owns the file, and names servers of its own."""
        return self.decision.owner in KEPT

    @property
    def written_back(self) -> str:
        """Return the line for the journal after another program's servers were overwritten."""
        remedy = f"list {self.path} in a file in /rw/config/protected-files.d to keep such content"
        return f"{self.path} named {self.replaced}, and neither a VPN nor a hook explains that; {remedy}"

    @property
    def operation(self) -> str:
        """Return the line of a plan for writing the file."""
        return f"publish {self.path}: {server_words(self.wanted or b'')}"

    @property
    def pending(self) -> bool:
        """Return whether the file still differs from the desired content."""
        return self.wanted is not None and self.wanted != self.current


class Uplinks(NamedTuple):
    """The state of a pass before it handles the other services.

    Args:
        settings: validated settings.
        flags: flags of this qube.
        interfaces: the uplinks.
        complete: `interfaces` has all uplinks.
    """

    settings: Settings
    flags: Flags
    interfaces: tuple[InterfaceReport, ...]
    complete: bool


class Report(NamedTuple):
    """The report of one pass.

    Args:
        settings: parsed settings.
        interfaces: one entry per uplink that the keys name.
        resolver: None if there is no interface, or if the file could not be read.
        applied: operations carried out in the kernel, in order.
        errors: all errors, those of settings first.
        done: operations carried out on the other services, in words.
        todo: pending operations on them, as values, and steps that must come first, in words.
        provided: the report of the provider role; None if the pass did not include it.
        rules_todo: pending operations for lost base rules, in a qube that is not a provider.
        rules_done: operations carried out for them, in words.
        blind: the pass did not observe the uplinks, because of an error or of `late`, so none of them counts as gone.
        late: an uplink appeared after the entries were read; the next pass, with newer entries, handles the uplinks.
    """

    settings: Settings
    interfaces: tuple[InterfaceReport, ...] = ()
    resolver: ResolverReport | None = None
    applied: tuple[Op, ...] = ()
    errors: tuple[GuestnetError, ...] = ()
    done: tuple[str, ...] = ()
    todo: tuple[object, ...] = ()
    provided: ProviderReport | None = None
    rules_todo: tuple[object, ...] = ()
    rules_done: tuple[str, ...] = ()
    blind: bool = False
    late: bool = False

    @property
    def plan(self) -> tuple[str, ...]:
        """Return the pending operations, one line each."""
        lines = [str(op) for interface in self.interfaces for op in interface.plan]
        if self.resolver is not None and self.resolver.pending:
            lines.append(self.resolver.operation)
        before, after = (self.provided.before.todo, self.provided.after.todo) if self.provided is not None else ((), ())
        return (*map(str, self.rules_todo + before), *lines, *map(str, self.todo), *map(str, after))

    @property
    def notes(self) -> tuple[Note, ...]:
        """Return the notes of all interfaces."""
        return tuple(note for interface in self.interfaces for note in interface.notes)

    @property
    def waited_for(self) -> bool:
        """Return whether a running NetworkManager is configuring an interface."""
        return any(interface.waiting for interface in self.interfaces) and not self.todo

    @property
    def waiting(self) -> str:
        """Return the pending steps of other programs, for a line of text."""
        return next((interface.waiting for interface in self.interfaces if interface.waiting), "interface missing")

    @property
    def unready(self) -> tuple[InterfaceReport, ...]:
        """Return attached interfaces with pending operations of ours, which do not wait for NetworkManager's start.

        Interfaces with invalid settings are not included: nothing can be done before dom0 writes others.
        """
        there = (report for report in self.interfaces if report.link is not None and report.expected)
        asked = (report for report in there if report.desired.addresses and not report.configured)
        return tuple(report for report in asked if report.plan or not report.manager.networkmanager)

    @property
    def settled(self) -> bool:
        """Return whether every expected interface exists and is configured; True if none is expected."""
        known = not self.settings.held or any(report.configured for report in self.interfaces)
        return known and not self.late and all(report.configured for report in self.interfaces if report.expected)


class Standing(NamedTuple):
    """The state of the resident agent, which it publishes in /run.

    Args:
        running: whether an agent is running.
        since: when it reached the present state, ISO 8601; "" if unknown.
        error: its last error; "" if the last pass had none.
    """

    running: bool = False
    since: str = ""
    error: str = ""


def server_words(content: bytes) -> str:
    """Return the nameservers of a resolv.conf, for a line of text."""
    return " ".join(map(str, parse(content).servers)) or "no nameserver"
