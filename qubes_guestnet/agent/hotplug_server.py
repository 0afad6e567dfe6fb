# SPDX-License-Identifier: GPL-2.0-or-later
"""The resident agent's service for hotplug in a provider: it answers requests on a socket, and finds other vifs itself.

The agent's sandbox has no access to xenstore and may not create namespaces. So the command that Xen's hotplug calls
(`cli.vif`) collects the vif's data, makes the agent configure it, and runs the user's hooks. For a vif that existed
before the agent started, or whose fake addresses came late, the agent starts the same command outside of the sandbox.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Collection, Iterable

from ..core import settings
from ..core.firewall import entries as firewall_entries
from ..core.namedtuple import NamedTuple
from ..core.provider import firewall_unit
from ..core.provider import settings as provider
from ..core.provider import vif as vif_rules
from ..core.provider.vif import Vif
from ..core.vif_name import parse_name
from ..errors import FileError, GuestnetError, KernelError, StoreError, as_error
from ..provider.provider_pass import Provider
from ..system import dir_watch, hotplug_socket, programs, transient_unit
from ..system.dbus import resolved
from ..system.nft import kernel as nft_kernel
from ..system.systemd import ERROR, INFO, log

TYPE_CHECKING = False  # of `typing`, which costs 5 ms and 1 MB (see system/deferred_imports)
if TYPE_CHECKING:
    from ..provider.firewall import Source
    from ..system.netlink.rtnl import Kernel
    from ..system.paths import Paths
    from ..system.signals import Signals
    from ..uplink.other_services import OtherServices
    from .name_look_ups import NameLookUps

WATCHED = (*settings.WATCHED, *provider.PROVIDER_WATCHED)
# Longer than the command itself waits for a device, xenstore and hooks.
_COMMAND_SECONDS = 120.0


class Told(NamedTuple):
    """The effect of written entries.

    Args:
        wakes: they start a pass.
        keys: some are outside of the firewall's folder.
        commits: dom0 has committed the rules of a qube.
    """

    wakes: bool = True
    keys: bool = True
    commits: bool = False


class Host:
    """The provider's part of the agent's loop.

    Args:
        paths: locations of the qube's files.
        kernel: the adapter.
        others: the other services of the qube.
        entries: reads QubesDB again.
        source: source of the firewall's entries.

    Attributes:
        rules: wakes the loop when rules change.
        prefixes: prefixes that are read from QubesDB.

    Raises:
        FileError: the socket cannot be created.
        KernelError: nftables reports no changes.
    """

    def __init__(
        self, paths: Paths, kernel: Kernel, others: OtherServices, entries: Callable[[], dict[str, bytes]],
        source: Source | None = None,
    ) -> None:  # fmt: skip
        self.prefixes = provider.EVERYTHING
        self.provider = Provider(paths, kernel, others, resident=True, source=source)
        self._entries, self._known = entries, dict[str, bytes]()
        try:
            os.makedirs(paths.run, mode=0o755, exist_ok=True)
        except OSError as error:
            raise FileError(paths.run, error, "run as root") from None
        self._server = hotplug_socket.Server(os.path.join(paths.run, hotplug_socket.NAME))
        try:
            self.rules = nft_kernel.Events()
        except KernelError:
            self._server.close()
            raise
        self._everything, self._stirred = True, False
        self._started: set[str] = set()
        self._look_ups: NameLookUps | None = None
        self._handed: set[str] = set()  # those of them that have not ended since, even after `look_at_everything`
        self._asking: list[hotplug_socket.Reply] = []  # requests of qubes-firewall.service, not answered yet
        self._trouble = ""
        others.follow_names()
        self._folders = dir_watch.Folders()
        self._resolv_conf = paths.resolv_conf

    def filenos(self) -> tuple[int, ...]:
        """For poll."""
        return self._server.fileno(), self.rules.fileno()

    @property
    def watched(self) -> tuple[str, ...]:
        """Return the watched paths of QubesDB; the lists of client qubes only if this program enforces them."""
        return (*WATCHED, firewall_entries.FOLDER) if self.provider.enforces else WATCHED

    def follow_names(self, signals: Signals) -> None:
        """After a pass, poll for the look-ups of names in firewall rules that are in flight.

        Args:
            signals: the loop's poll.
        """
        names = self.provider.firewall_names
        if self._look_ups is None and names is not None:
            from .name_look_ups import NameLookUps  # of a provider with a rule by name

            self._look_ups = NameLookUps(signals)
        if self._look_ups is not None:
            self._look_ups.follow(names)

    def names_due(self) -> float | None:
        """Return when a name is due for a look-up, by the monotonic clock; None for never."""
        return self._look_ups.due() if self._look_ups is not None else None

    def names_changed(self, ready: Collection[int]) -> bool:
        """Look up names that are due; return whether addresses of one have changed, which requires a pass."""
        return self._look_ups is not None and self._look_ups.changed(ready)

    def look_at_everything(self) -> None:
        """Make the next pass read everything again."""
        self._everything = True
        self._started.clear()
        self.provider.look_at_everything()

    def gather(self, ready: Iterable[int]) -> bool:
        """Answer a request at once; return whether a pass must follow, because work is pending."""
        return self._server.fileno() in ready and self._serve()

    def told(self, paths: tuple[str, ...]) -> Told:
        """Return the effect of written paths.

        Args:
            paths: the written paths; none if unknown.
        """
        commits = bool(paths) and self.provider.enforces and firewall_entries.commits(paths)
        keys = not paths or bool(firewall_entries.others(paths))
        return Told(keys or commits, keys, commits)

    def rules_changed(self) -> None:
        """React to a change of rules."""
        self._stirred = True
        try:
            self.provider.rules_changed()
        except GuestnetError as error:  # the next pass reports the problem
            log(ERROR, f"after a change of rules: {error}")

    def stirred(self) -> bool:
        """Return whether rules have changed since the last call or the last pass."""
        stirred, self._stirred = self._stirred, False
        return stirred

    @property
    def known(self) -> dict[str, bytes]:
        """Return the last entries from QubesDB; empty if it has never answered."""
        return self._known

    def _serve(self) -> bool:
        came = self._server.accept()
        if came is None:
            return False
        data, reply = came
        if data == firewall_unit.REQUEST:
            self._asking.append(reply)
            self.look_at_everything()
            return True
        if not reply.awaited():
            log(INFO, "vif: request dropped, because its caller has gone")
            reply.close()
            return False
        problem, done = "", tuple[str, ...]()
        try:
            done = self._do(*vif_rules.asked(data), reply.awaited)
        except ValueError as error:
            problem = f"malformed request on vif.sock: {error}"
        except Exception as error:  # the caller always gets an answer
            problem = str(as_error(error))
        for words in done:
            log(INFO, words)
        if problem:
            log(ERROR, problem)
        reply(vif_rules.answer(problem, done))
        return bool(problem)

    def _do(self, action: str, vif: Vif, wanted: Callable[[], bool]) -> tuple[str, ...]:
        if action == vif_rules.ONLINE:
            self._read()
            found = vif.name.text in self._handed
            return self.provider.online(vif, self._known, wanted, found=found)
        self._read()
        self._started.discard(vif.name.text)
        self._handed.discard(vif.name.text)
        return self.provider.offline(vif, self._known, wanted)

    def _read(self) -> None:
        try:
            self._known = self._entries()
        except StoreError:
            if not self._known:
                raise
            # Its last entries stay in force while it does not answer; the loop reports the outage.

    def find(self, entries: dict[str, bytes]) -> None:
        """After a pass, start the command for vifs that need it.

        Args:
            entries: entries of the pass.

        Raises:
            GuestnetError: the vifs are unknown, or a command was not started; the next pass tries again.
        """
        self._answer()
        # The target of a link, and settings of links that systemd-resolved does not signal (B127, B130).
        self._folders.watch((*dir_watch.folders(self._resolv_conf), resolved.LINKS_FOLDER))
        self._known, self._stirred = entries, False
        names = []
        if self._everything:
            names += [(name, "") for name in self.provider.strangers()]
        names += [(vif.name.text, " ".join(map(str, vif.addresses))) for vif in self._late(entries)]
        for name, addresses in names:
            self._start(name, addresses)
        self._everything = False

    def _answer(self) -> None:
        """Reply to the waiting qubes-firewall.service when the lists of all qubes are in force."""
        waiting = [reply for reply in self._asking if reply.awaited()]
        for reply in (each for each in self._asking if each not in waiting):
            reply.close()
        self._asking = waiting
        if waiting and self.provider.has_lists_in_force:
            self._asking = []
            for reply in waiting:
                reply(vif_rules.answer("", ()))

    def _late(self, entries: dict[str, bytes]) -> tuple[Vif, ...]:
        """Return vifs with late fake addresses; an error is logged once, and the next pass tries again."""
        try:
            late = self.provider.late_mappings(entries)
        except GuestnetError as error:
            if self._trouble != str(error):
                log(ERROR, f"cannot look for late fake addresses: {error}")
            self._trouble = str(error)
            return ()
        self._trouble = ""
        return late

    def _start(self, name: str, addresses: str) -> None:
        if name in self._started:
            return  # start it once only: a failure is in the journal, and hotplug can be called again
        self._started.add(name)
        self._handed.add(name)
        parsed = parse_name(name)
        environment = {"vif": name, "XENBUS_PATH": f"backend/vif/{parsed.domid}/{parsed.devid}"}
        if addresses:
            environment["ip"] = addresses
        try:
            transient_unit.start(
                (transient_unit.Command(name, (*_ourselves(), "vif", "online"), environment),), _COMMAND_SECONDS
            )
        except GuestnetError:
            self._started.discard(name)
            self._handed.discard(name)
            raise
        log(INFO, f"{name}: existing vif found; configuring it")


def _ourselves() -> tuple[str, ...]:
    """Return the command line that starts this program."""
    installed = programs.find("qubes-guestnet")
    launched = os.path.basename(sys.argv[0]) == "qubes-guestnet"
    if launched and installed:
        return (installed,)
    return (sys.executable, "-m", "qubes_guestnet")
