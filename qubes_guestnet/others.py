# SPDX-License-Identifier: GPL-2.0-or-later
"""The other programs in a qube that have to do with its uplink: NetworkManager, systemd-resolved, a user's hooks.

A pass asks this last, when kernel and resolv.conf are as they should be: whatever hangs or is missing here takes
nothing away from those. What it decides by is in `core`; this is the order of things, and what is remembered between
passes.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterable
from functools import partial

from .bus import BusHolder
from .core import hooks as hook_rules
from .core import networkmanager as nm
from .core import resolved as resolved_rules
from .core.networkmanager import ManagerChoice, ProfileOptions
from .core.record import Interface, checksum
from .core.report import Attended, InterfaceReport
from .core.settings import Settings
from .core.uplink import Flags
from .errors import GuestnetError
from .system import networkmanager, programs, resolved, sysctl
from .system.owned import Ledger

TYPE_CHECKING = False  # of `typing`, which costs 5 ms and 1 MB (see system/lean)
if TYPE_CHECKING:
    from .core.nameservers import Heard

# After systemd-resolved let us wait in vain once, passes do not wait for it again for so long.
PATIENCE_SECONDS = 3.0


class Others:
    """What a pass asks of the other programs.

    Args:
        flags: folder of the service flags.
        resident: stay connected to the bus, to be woken when a service comes or goes.
        attending: False for who only looks whether the interface is configured.
    """

    def __init__(self, flags: str, *, resident: bool = False, attending: bool = True) -> None:
        self._flags, self._attending = flags, attending
        self._bus = BusHolder(resident)
        self._mended = False
        self._resolved_again = 0.0
        self._resolved_error: GuestnetError | None = None
        self._silent: tuple[float, Heard] | None = None  # until when it is not asked for names again, and what it said

    # --- wake-ups, for the agent ---------------------------------------------------------------------------------

    def fileno(self) -> int:
        """For poll; -1 while there is no bus."""
        return self._bus.fileno()

    def drain(self) -> bool:
        """Read what the bus sent, a bounded part of it; True if a service came or went, or the bus did."""
        if not self._bus.drain():
            return False
        self._silent = None
        return True

    def timers(self) -> dict[str, float]:
        """When a pass is to follow for the sake of the bus, of the monotonic clock; to be asked after each."""
        due = self._bus.due()
        if due is None:
            return {}
        self._silent = None  # what came while something was asked may be the late answer
        return {"bus": due}

    @property
    def wakes(self) -> bool:
        """Whether it will be noticed when NetworkManager starts; else somebody has to look from time to time."""
        return self._bus.fileno() >= 0

    def follow_names(self) -> None:
        """Be woken too when systemd-resolved gets other servers: a provider's virtual DNS follows them."""
        self._bus.follow_names()

    # --- what a pass asks ----------------------------------------------------------------------------------------

    def manager(self) -> ManagerChoice:
        """Who configures the uplink."""
        return nm.choose_manager(networkmanager.facts(self._flags))

    def going_up(self, interface: str) -> None:
        """Its link is about to go up for the first time."""
        sysctl.apply(interface)

    def attend(
        self,
        settings: Settings,
        flags: Flags,
        interfaces: Iterable[InterfaceReport],
        ledger: Ledger,
        dry_run: bool,
        everything: bool,
    ) -> Attended:
        """Bring the others up to date.

        Args:
            settings: validated.
            flags: of this qube.
            interfaces: what the pass has found and done.
            ledger: the owned record.
            dry_run: only say what is to do.
            everything: `interfaces` are all there are.
        """
        if not self._attending:
            return Attended()
        self._bus.open()
        work = _Work(settings, flags, ledger, dry_run)
        interfaces = tuple(interfaces)
        if self.manager().networkmanager and not self._mended and not dry_run:
            self._mended = True
            work.attempt(work.mend_profiles)
        for interface in interfaces:
            work.attempt(partial(work.profile, interface))
        if everything:
            work.attempt(partial(work.stale_profiles, interfaces))
        for interface in interfaces:
            work.hooks(interface)
        self._tell_resolved(work, interfaces)
        return Attended(tuple(work.done), tuple(work.todo), tuple(work.errors))

    def _tell_resolved(self, work: _Work, interfaces: Iterable[InterfaceReport]) -> None:
        port = self._bus.resolved() if resolved.present() else None
        if port is None:
            return
        if self._resolved_error is not None and time.monotonic() < self._resolved_again:
            work.errors.append(self._resolved_error)  # so that somebody tries again
            return
        self._resolved_error = None
        try:
            try:
                work.all_names(interfaces, port)
            except GuestnetError:
                port = self._bus.instead()
                if port is None:
                    raise
                work.all_names(interfaces, port)
        except GuestnetError as error:
            self._resolved_again = time.monotonic() + PATIENCE_SECONDS
            error.retryable = True
            self._resolved_error = error
            work.errors.append(error)

    def hear_names(self, uplinks: frozenset[int]) -> Heard:
        """The servers that systemd-resolved asks, or why they are not to be had (behaviour B35).

        Args:
            uplinks: interface indexes of this qube's uplinks.
        """
        if self._silent is not None and time.monotonic() < self._silent[0]:
            return self._silent[1]
        self._silent = None
        if not resolved.present():
            from .core.nameservers import NEVER_THERE  # a provider's alone

            return NEVER_THERE
        self._bus.open()
        heard = resolved.ask(self._bus.resolved(), uplinks)
        if heard.links is None and (port := self._bus.instead()) is not None:
            heard = resolved.ask(port, uplinks)
        if heard.problem == resolved.SILENT:
            self._silent = (time.monotonic() + PATIENCE_SECONDS, heard)
        return heard

    def published(self, settings: Settings, flags: Flags, interfaces: Iterable[InterfaceReport]) -> bool:
        """Whether NetworkManager, when it starts, finds a profile of each interface that it is to configure."""
        profiles = (_profile(interface, settings, flags) for interface in interfaces)
        return all(networkmanager.holds(*profile) for profile in profiles if profile is not None)

    def take_down(self, entry: Interface, interface: str) -> None:
        """`uplink remove`: NetworkManager and systemd-resolved let go of it. What they refuse is harmless then."""
        if entry.profile:
            _forget(nm.file_name(interface), nm.profile_uuid(entry.mac))
        self._bus.open()
        port = self._bus.resolved() if entry.resolved and resolved.present() else None
        if port is not None:
            try:
                port.revert(entry.ifindex, interface)
            except GuestnetError:
                return  # the link goes down in a moment, and its servers with it


class _Work:
    """One pass over the others: what is done, and what is not."""

    def __init__(self, settings: Settings, flags: Flags, ledger: Ledger, dry_run: bool) -> None:
        self._settings, self._flags, self._ledger, self._dry_run = settings, flags, ledger, dry_run
        self.done: list[str] = []
        self.todo: list[str] = []
        self.errors: list[GuestnetError] = []

    def attempt(self, step: Callable[[], None]) -> None:
        """One step, whose failure does not stop the next."""
        try:
            step()
        except GuestnetError as error:
            self.errors.append(error)

    def _save(self, entry: Interface) -> None:
        self._ledger.save(self._ledger.record.with_interface(entry))

    # --- NetworkManager ------------------------------------------------------------------------------------------

    def profile(self, interface: InterfaceReport) -> None:
        """Write the profile if it differs, and see that NetworkManager has it in force."""
        link, settings = interface.link, interface.settings
        profile = _profile(interface, self._settings, self._flags)
        if link is None or profile is None:
            return
        name, text = profile
        wanted = checksum(text)
        entry = self._ledger.record.interface(link)
        if not networkmanager.holds(name, text):
            if entry.profile == wanted and not self._dry_run:
                # Somebody deleted or changed it in NetworkManager, which is to read it again (B132).
                entry = entry._replace(profile=nm.UNREAD)
                self._save(entry)
            self._do(f"publish {nm.FOLDER}/{name}", partial(networkmanager.publish, name, text))
        if entry.profile == wanted:
            return
        take_up = partial(_take_up, link.name, name, settings.mac, fresh=not entry.profile)
        try:
            self._do(f'nmcli connection load and up: "{nm.profile_name(link.name)}"', take_up)
        except networkmanager.NotRunning:
            self.todo.append(f"NetworkManager is to read {nm.FOLDER}/{name} when it starts")
            return
        except networkmanager.NotManaged:
            self.todo.append(f"NetworkManager is to take up {nm.FOLDER}/{name} when udev is through with {link.name}")
            return
        if not self._dry_run:
            self._save(entry._replace(profile=wanted))

    def stale_profiles(self, interfaces: Iterable[InterfaceReport]) -> None:
        """Take away profiles of interfaces that went, or that NetworkManager is not to configure any more."""
        wanted = {
            nm.file_name(interface.link.name)
            for interface in interfaces
            if interface.link is not None and interface.manager.networkmanager and not interface.removed
            if interface.desired.addresses or interface.settings.held
        }
        for name in networkmanager.profiles():
            if name not in wanted:
                self._do(f"remove {nm.FOLDER}/{name}", partial(_forget, name))
        for interface in interfaces:
            if interface.link is None or self._dry_run or nm.file_name(interface.link.name) in wanted:
                continue
            entry = self._ledger.record.interface(interface.link)
            self._save(entry._replace(profile=""))

    def mend_profiles(self) -> None:
        """Profiles that name an interface as the former release did (behaviour B31)."""
        present = {name for _, name in socket.if_nameindex()}
        for name, text in networkmanager.saved().items():
            mended = nm.mend(text, present)
            if mended != text:
                networkmanager.rewrite(name, mended)
                self.done.append(f"{nm.FOLDER}/{name}: interface name of the former release changed to the present one")

    def _do(self, words: str, action: Callable[[], None]) -> None:
        if self._dry_run:
            self.todo.append(words)
            return
        action()
        self.done.append(words)

    # --- hooks ---------------------------------------------------------------------------------------------------

    def hooks(self, interface: InterfaceReport) -> None:
        """Start the user's hooks after a real change."""
        if interface.link is None or self._dry_run:
            return
        entry = self._ledger.record.interface(interface.link)
        now = hook_rules.fingerprint(interface.desired, self._settings.dns.servers)
        provider = self._settings.provider
        if not hook_rules.due(entry.hooked, now, provider=provider, configured=interface.configured):
            return
        from .system import hooks  # once for each change, in providers

        try:
            record = self._ledger.record
            began = record.provided._replace(hooks=int(time.time()))  # what they write then is theirs
            self._ledger.save(record.with_interface(entry._replace(hooked=now))._replace(provided=began))
        except GuestnetError as error:
            self.errors.append(error)
            return  # else they would run after every pass
        paths = hook_rules.runnable(hooks.facts())
        if not paths:
            return
        try:
            hooks.start(paths, hook_rules.LIMIT_SECONDS)
        except GuestnetError as error:
            self.errors.append(error)
            self.attempt(partial(self._save, entry))  # they are still to run (behaviour B147)
        else:
            self.done += [f"hook {path} started" for path in paths]

    # --- systemd-resolved ----------------------------------------------------------------------------------------

    def all_names(self, interfaces: Iterable[InterfaceReport], port: resolved.ByBus | resolved.ByCommand) -> None:
        """Set the servers of all links."""
        for interface in interfaces:
            self.names(interface, port)

    def names(self, interface: InterfaceReport, port: resolved.ByBus | resolved.ByCommand) -> None:
        """Set a link's servers, or take away what we set."""
        link = interface.link
        if link is None or self._settings.dns.held:
            return
        there = not interface.removed and bool(interface.desired.addresses or interface.settings.held)
        wanted = resolved_rules.wanted(
            self._settings.dns.servers if interface.rank == 0 else (),
            self._flags,
            networkmanager=interface.manager.networkmanager,
            there=there,
        )
        entry = self._ledger.record.interface(link)
        if wanted is None and not entry.resolved:
            return
        seen = port.link(link.ifindex, link.name)
        if seen is None:
            return
        if wanted is None:
            self._do(f"resolvectl revert {link.name}", partial(port.revert, link.ifindex, link.name))
        elif seen != wanted:
            words = f"resolvectl dns {link.name} {' '.join(wanted.servers)}; resolvectl domain {link.name} "
            self._do(words + " ".join(wanted.domains), partial(port.set, link.ifindex, link.name, wanted))
        if not self._dry_run:
            self._save(entry._replace(resolved=wanted is not None))


def _profile(interface: InterfaceReport, settings: Settings, flags: Flags) -> tuple[str, bytes] | None:
    """Name and text of the profile of an interface; None where there is to be none, or what there is stays."""
    link, own = interface.link, interface.asked
    if link is None or interface.removed or not interface.manager.networkmanager:
        return None
    if own.held or settings.dns.held or not interface.desired.addresses:
        return None  # what is in force stays, or there is nothing to put in force
    options = ProfileOptions(interface.choice.style, flags, settings.dns.servers, interface.desired.mtu, interface.rank)
    return nm.file_name(link.name), nm.keyfile(link.name, own, options)


def _take_up(interface: str, name: str, mac: str, *, fresh: bool) -> None:
    """Have a running NetworkManager use the profile.

    A profile that was in force before and is not now was taken down by somebody, and stays down.
    """
    if fresh:
        sysctl.apply(interface)
    networkmanager.load(name)
    uuid = nm.profile_uuid(mac)
    active = networkmanager.is_active(interface, uuid)
    if not active and fresh:
        # core-agent's udev rule has udev wait for our command, and NetworkManager waits for udev.
        if not networkmanager.is_managed(interface):
            raise networkmanager.NotManaged(f"NetworkManager does not manage {interface}")
        networkmanager.activate(interface, uuid)
    elif active and not fresh:
        networkmanager.reapply(interface, uuid)


def _forget(name: str, uuid: str = "") -> None:
    """Take a profile away, in a running NetworkManager and on disk."""
    try:
        uuid = uuid or networkmanager.uuid_of(name)
        if uuid:
            networkmanager.forget(uuid)
    except (networkmanager.NotRunning, programs.ProgramError):
        pass  # it is not there, or does not know the profile; the file is what counts
    networkmanager.remove(name)
