# SPDX-License-Identifier: GPL-2.0-or-later
"""What a pass found and did. How it reads is in `render.status`, what it means for a person in `check.findings`."""

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
    """What the owner of the qube should know of a pass that went well. `check` gives it as a finding.

    Args:
        code: of the finding.
        severity: of it.
        problem: what is so, one line.
        remedy: what to do about it.
    """

    code: str
    severity: str
    problem: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.problem}; {self.remedy}"


class InterfaceReport(NamedTuple):
    """One uplink in one pass.

    Args:
        settings: what dom0 asks for.
        link: the interface, None while it is not there.
        choice: default-route style and why.
        desired: state asked for.
        observed: state found at the end of the pass.
        plan: what was still to do then; after a pass that was not dry, empty or an error.
        detached: it was there and went, and dom0 has written nothing since.
        removed: `uplink remove` took it down, and it stays down.
        manager: the program that configures it.
        waiting: what NetworkManager has still to do on it, "" for nothing.
        rank: 0 for the interface of /qubes-mac, 1 and up for further ones.
        no_ipv6: why IPv6, which dom0 asks for, is left out; "" where it is not.
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
        """What dom0 asks for, without what cannot be had here."""
        return self.settings._replace(ipv6=None) if self.no_ipv6 else self.settings

    @property
    def notes(self) -> Iterator[Note]:
        """What is different from what dom0 may have meant."""
        link, ipv4 = self.link, self.settings.ipv4
        if link is None or self.removed:
            return
        if self.no_ipv6:
            problem = f"IPv6 is off on {link.name} ({self.no_ipv6}): what dom0 gives this qube of it is left out"
            yield Note("ipv6-off", "note", problem, "nothing to do if that is meant")
        if ipv4 is None or ipv4.gateway is not None or self.rank or self.settings.custom:
            return
        missing = f"dom0 gives {link.name} an IPv4 address and no gateway (/qubes-gateway)"
        anew = "set the provider anew: qvm-prefs QUBE netvm PROVIDER"
        if DEFAULT[IPV4] in {route.destination for route in self.desired.routes}:
            yield Note("gateway-missing", "warning", f"{missing}: the default route does without it", anew)
        elif self.choice.style is Style.GATEWAY:
            problem = f"{missing}, and the style `gateway` has none to use: no default route ({self.choice.reason})"
            yield Note("no-default-route", "error", problem, anew)

    @property
    def expected(self) -> bool:
        """Whether the interface is there or about to come."""
        asked = self.asked.ipv4 is not None or self.asked.ipv6 is not None or bool(self.settings.held)
        return asked and not self.removed and (self.link is not None or not self.detached)

    @property
    def configured(self) -> bool:
        """Present, up and as the settings ask, of which at least one family is valid.

        A setting of the kernel's that another program changed since (udev runs systemd-sysctl for a new interface) does
        not count: the qube has its network, the rules keep out what the setting would, and the next pass writes it.
        """
        there = self.link is not None and self.observed.up and not self.removed
        left = any(op.verb is not Verb.TUNABLE for op in self.plan)
        return there and not left and not self.waiting and bool(self.desired.addresses)


class ResolverReport(NamedTuple):
    """resolv.conf in one pass.

    Args:
        path: the file.
        decision: its owner, and the reason.
        wanted: content asked for, None where the file is not ours to write.
        current: content at the end of the pass, b"" where it is no file.
        written: whether this pass wrote it.
        replaced: servers of another program's that it named before that, in words.
        down: the VPN's device whose file it is, while that is set down; "" for none.
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
        """Whether the file holds what we want it to."""
        return self.wanted is not None and not self.pending

    @property
    def kept(self) -> bool:
        """Whether the file is another program's or a hook's to write, and names servers of its own."""
        return self.decision.owner in KEPT

    @property
    def written_back(self) -> str:
        """For the journal, after another program's servers were overwritten."""
        remedy = f"list {self.path} in a file in /rw/config/protected-files.d to keep such content"
        return f"{self.path} named {self.replaced}, and neither a VPN nor a hook explains that; {remedy}"

    @property
    def operation(self) -> str:
        """How a plan names the writing of it."""
        return f"publish {self.path}: {server_words(self.wanted or b'')}"

    @property
    def pending(self) -> bool:
        """Whether the file still differs from what is wanted."""
        return self.wanted is not None and self.wanted != self.current


class Uplinks(NamedTuple):
    """What a pass has found and done so far, for the services beside the kernel.

    Args:
        settings: validated.
        flags: of this qube.
        interfaces: the uplinks.
        complete: they are all there are.
    """

    settings: Settings
    flags: Flags
    interfaces: tuple[InterfaceReport, ...]
    complete: bool


class Report(NamedTuple):
    """One pass.

    Args:
        settings: as parsed.
        interfaces: one entry an uplink that the keys name.
        resolver: None where no interface is there, or the file could not be looked at.
        applied: operations of the kernel's carried out, in order.
        errors: everything that went wrong, settings first.
        done: operations carried out on the other services, in words.
        todo: those that are still to be carried out, as values, and what has to come first, in words.
        provided: what it does for the qubes behind this one; None where that is not asked.
        rules_todo: pending operations for lost base rules, in a qube that is no provider.
        rules_done: what was done for them, in words.
        blind: the pass did not look at the uplinks, because of an error or of `late`, so none of them counts as gone.
        late: an uplink came after the entries were read; the next pass, with newer entries, handles the uplinks.
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
        """What is still to do, one line an operation."""
        lines = [str(op) for interface in self.interfaces for op in interface.plan]
        if self.resolver is not None and self.resolver.pending:
            lines.append(self.resolver.operation)
        before, after = (self.provided.before.todo, self.provided.after.todo) if self.provided is not None else ((), ())
        return (*map(str, self.rules_todo + before), *lines, *map(str, self.todo), *map(str, after))

    @property
    def notes(self) -> tuple[Note, ...]:
        """Of all interfaces."""
        return tuple(note for interface in self.interfaces for note in interface.notes)

    @property
    def waited_for(self) -> bool:
        """Whether NetworkManager is at work on an interface, and not only to be started some day."""
        return any(interface.waiting for interface in self.interfaces) and not self.todo

    @property
    def waiting(self) -> str:
        """Pending steps of other programs, for a line of text."""
        return next((interface.waiting for interface in self.interfaces if interface.waiting), "interface missing")

    @property
    def unready(self) -> tuple[InterfaceReport, ...]:
        """Interfaces that are attached and have something of ours to do; NetworkManager may start only after us.

        One whose settings are not valid is none of them: nothing is done before dom0 writes others.
        """
        there = (report for report in self.interfaces if report.link is not None and report.expected)
        asked = (report for report in there if report.desired.addresses and not report.configured)
        return tuple(report for report in asked if report.plan or not report.manager.networkmanager)

    @property
    def settled(self) -> bool:
        """True when every interface that is expected is there and configured, at once when none is expected."""
        known = not self.settings.held or any(report.configured for report in self.interfaces)
        return known and not self.late and all(report.configured for report in self.interfaces if report.expected)


class Standing(NamedTuple):
    """What the resident agent left in /run for others to read.

    Args:
        running: whether an agent is there now.
        since: when the present state was reached, ISO 8601; "" when unknown.
        error: its last error, "" when the last pass had none.
    """

    running: bool = False
    since: str = ""
    error: str = ""


def server_words(content: bytes) -> str:
    """Return the nameservers of a resolv.conf, for a line of text."""
    return " ".join(map(str, parse(content).servers)) or "no nameserver"
