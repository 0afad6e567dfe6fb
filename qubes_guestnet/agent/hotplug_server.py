# SPDX-License-Identifier: GPL-2.0-or-later
"""What the resident agent does for hotplug in a provider: it is asked by a socket, and finds other vifs itself.

The agent sits in a sandbox without xenstore and without the right to make namespaces. So the command that Xen's hotplug
calls (`cli.vif`) finds out what the vif is, has it set up here, and runs the user's hooks. A vif that was there before
the agent ran, and one whose fake addresses came late, is handed to that same command, outside the sandbox.
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
# The command itself waits this long for a device, for xenstore and for hooks, with room to spare.
_COMMAND_SECONDS = 120.0


class Told(NamedTuple):
    """What written entries ask for.

    Args:
        wakes: a pass.
        keys: they are not only about the firewall of single qubes.
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
        entries: reads QubesDB afresh.
        source: where the entries of the firewall come from.

    Attributes:
        rules: wakes the loop when rules change.
        prefixes: what is read of QubesDB.

    Raises:
        FileError: the socket cannot be made.
        KernelError: nftables does not tell of changes.
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
        self._handed: set[str] = set()  # those of them that did not end since, whatever is looked at anew
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
        """What is watched in QubesDB: the lists of single qubes only where this program enforces them."""
        return (*WATCHED, firewall_entries.FOLDER) if self.provider.enforces else WATCHED

    def follow_names(self, signals: Signals) -> None:
        """After a pass: wait for the look-ups of names in firewall rules that are in flight now.

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
        """Return when a name is to be asked for, by the monotonic clock; None for never."""
        return self._look_ups.due() if self._look_ups is not None else None

    def names_changed(self, ready: Collection[int]) -> bool:
        """Ask for names that are due; return whether one has other addresses: then a pass has to follow."""
        return self._look_ups is not None and self._look_ups.changed(ready)

    def look_at_everything(self) -> None:
        """The next pass takes nothing for granted."""
        self._everything = True
        self._started.clear()
        self.provider.look_at_everything()

    def gather(self, ready: Iterable[int]) -> bool:
        """Answer a question at once; True if a pass has to follow, because something is still to do."""
        return self._server.fileno() in ready and self._serve()

    def told(self, paths: tuple[str, ...]) -> Told:
        """Return what the watches' paths ask for.

        Args:
            paths: that were written; none: not known.
        """
        commits = bool(paths) and self.provider.enforces and firewall_entries.commits(paths)
        keys = not paths or bool(firewall_entries.others(paths))
        return Told(keys or commits, keys, commits)

    def rules_changed(self) -> None:
        """Rules have changed."""
        self._stirred = True
        try:
            self.provider.rules_changed()
        except GuestnetError as error:  # the pass that follows tells what is wrong
            log(ERROR, f"after a change of rules: {error}")

    def stirred(self) -> bool:
        """Return whether rules have changed since this was last asked, or a pass went by."""
        stirred, self._stirred = self._stirred, False
        return stirred

    @property
    def known(self) -> dict[str, bytes]:
        """What QubesDB said last; empty where it has never answered."""
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
        except Exception as error:  # the asker is answered, whatever happens
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
            # What it said last is in force while it does not answer, and the loop tells of the outage.

    def find(self, entries: dict[str, bytes]) -> None:
        """After a pass: hand vifs to the command that needs it.

        Args:
            entries: as read for the pass.

        Raises:
            GuestnetError: it is not known which, or a command was not started; the next pass tries again.
        """
        self._answer()
        # Where a link leads to, and settings of single links that systemd-resolved tells by no signal (B127, B130).
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
        """Tell qubes-firewall.service that the lists of all qubes are in force; until then it waits."""
        waiting = [reply for reply in self._asking if reply.awaited()]
        for reply in (each for each in self._asking if each not in waiting):
            reply.close()
        self._asking = waiting
        if waiting and self.provider.has_lists_in_force:
            self._asking = []
            for reply in waiting:
                reply(vif_rules.answer("", ()))

    def _late(self, entries: dict[str, bytes]) -> tuple[Vif, ...]:
        """Vifs with late fake addresses; trouble is told once, and the next pass looks again."""
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
            return  # once is enough: what fails then is in the journal, and hotplug can be called again
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
    """The command line of the program that runs."""
    installed = programs.find("qubes-guestnet")
    launched = os.path.basename(sys.argv[0]) == "qubes-guestnet"
    if launched and installed:
        return (installed,)
    return (sys.executable, "-m", "qubes_guestnet")
