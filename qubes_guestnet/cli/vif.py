# SPDX-License-Identifier: GPL-2.0-or-later
"""`vif online` and `vif offline`, which Xen's hotplug calls for each vif.

The command runs as root outside the agent's sandbox and collects the vif's data: name and addresses from the
environment, MAC and type from xenstore, fake addresses from QubesDB. The resident agent configures the vif, so that it
knows it at once; if no agent answers, the command calls the same function. Users' hooks run afterwards, because they
may restrict the rules further; Xen is notified last.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial

from ..core import hooks as hook_rules
from ..core import settings
from ..core.provider import hardening
from ..core.provider import settings as provider
from ..core.provider import vif as vif_rules
from ..core.provider.late_mappings import is_told
from ..core.provider.vif import Vif
from ..core.vif_name import VifName, parse_name
from ..errors import GuestnetError, StoreError, UsageError, printable, shown
from ..system import files, hooks, hotplug_socket, locks, programs, vif_records, xenstore
from ..system import plain_socket as socket
from ..system.owned_state import Ledger
from ..system.paths import Paths
from ..system.qubesdb import store as qubesdb
from ..system.systemd import WARNING, log
from .reading import patiently

TYPE_CHECKING = False  # of `typing`, which costs 5 ms and 1 MB (see system/deferred_imports)
if TYPE_CHECKING:
    from ..provider.provider_pass import Provider

DEVICE_SECONDS = 10.0
ANSWER_SECONDS = 15.0
# For all programs where no agent answers. With the waits for the agent and for the lock it stays below the 40 s that
# libxl gives a script: after that libxl reports its own timeout instead of our error.
ALONE_SECONDS = 15.0
HOOKS_SECONDS = 60.0  # for another process that runs the hooks of the same vif
_HOOKS_LOCK = "hooks.lock"
_POLL_SECONDS = 0.01
# The log of Xen's own scripts, where users look first (behaviour B48).
HOTPLUG_LOG = "/var/log/xen/xen-hotplug.log"
# For a vif without a record: taking it down does not need the MAC address of the qube's end.
_NO_MAC = b"02:00:00:00:00:00"
_PATH_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-/_@")


def online(environment: Mapping[str, str], paths: Paths) -> tuple[str, ...]:
    """Configure a vif.

    Args:
        environment: of the process: `vif`, `ip`, `XENBUS_PATH`.
        paths: locations of the qube's files.

    Returns:
        The applied changes, in words.

    Raises:
        UsageError: the environment is not that of Xen's hotplug.
        GuestnetError: the vif is not configured; the error is also in xenstore's hotplug-error and Xen's log.
    """
    call = _Call(environment)
    try:
        vif = call.vif()
        untrusted_entries = patiently(partial(_entries, vif))
        mappings, errors = provider.parse_mappings(untrusted_entries, vif.addresses)
        if errors:
            raise errors[0]
        vif = vif._replace(mappings=mappings, told=is_told(untrusted_entries, vif.addresses))
        _await(vif.name)
        done = [*_translate(vif, untrusted_entries), *_harden(vif, untrusted_entries, paths)]
        done += _hand_over("online", vif, untrusted_entries, paths)
        done += _run_hooks("online", vif, paths)
        xenstore.write(f"{call.folder}/hotplug-status", "connected")
    except GuestnetError as error:
        call.failed(error)
        raise
    return tuple(done)


def offline(environment: Mapping[str, str], paths: Paths) -> tuple[str, ...]:
    """Take a vif out of service; see `online`. Its device is usually gone by then."""
    call = _Call(environment)
    try:
        known = _recorded(call.name, paths)
        vif = known._replace(hooked=None) if known is not None else call.leaving()
    except GuestnetError as error:
        call.failed(error)
        raise
    done: list[str] = []
    failures: list[GuestnetError] = []
    steps: list[Callable[[], tuple[str, ...]]] = [partial(_hand_over, "offline", vif, {}, paths)]
    if known is None or known.mappings:
        steps.append(partial(_demolish, vif))
    steps.append(partial(_run_hooks, "offline", vif, paths))
    for step in steps:
        try:
            done += step()
        except GuestnetError as error:  # continue with the next step
            failures.append(error)
    if failures:
        call.failed(failures[0])
        raise failures[0]
    return tuple(done)


class _Call:
    """One call by Xen's hotplug: its environment, the data from xenstore, and the report of a failure."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        remedy = "this is called by Xen's hotplug, see qubes-guestnet(8)"
        untrusted_name = environment.get("vif", "")
        try:
            self.name = parse_name(untrusted_name)
        except ValueError:
            shown_name = shown(untrusted_name.encode("utf-8", "replace"))
            raise UsageError(f"environment variable vif: {shown_name} is not of the form vifN.M", remedy) from None
        untrusted_folder = environment.get("XENBUS_PATH") or f"backend/vif/{self.name.domid}/{self.name.devid}"
        if len(untrusted_folder) > 256 or not _PATH_CHARACTERS.issuperset(untrusted_folder):
            raise UsageError("environment variable XENBUS_PATH is not a path of xenstore", remedy)
        self.folder = untrusted_folder
        self._untrusted_addresses = environment.get("ip", "").encode("utf-8", "replace")

    def vif(self) -> Vif:
        """Return the vif with validated fields.

        Raises:
            GuestnetError: a field is invalid, or xenstore does not answer.
        """
        untrusted = self._told()
        try:
            return vif_rules.described(self.name.text, *untrusted)
        except ValueError as error:
            raise GuestnetError(
                str(error), f"the value is from xenstore, {self.folder}; attach the qube again"
            ) from None

    def leaving(self) -> Vif:
        """Return the vif to take down if it has no record.

        Xen also calls this for a vif with invalid data, which was never configured (B49): then only its name is used.

        Raises:
            GuestnetError: xenstore does not answer.
        """
        _, untrusted_kind, untrusted_addresses = self._told()
        try:
            return vif_rules.described(self.name.text, _NO_MAC, untrusted_kind, untrusted_addresses)
        except ValueError:
            return vif_rules.described(self.name.text, _NO_MAC, b"", b"")

    def _told(self) -> tuple[bytes, bytes, bytes]:
        """Return MAC, type and addresses, untrusted."""
        mac, kind, addresses = (f"{self.folder}/{leaf}" for leaf in ("mac", "type", "ip"))
        wanted = (mac, kind) if self._untrusted_addresses else (mac, kind, addresses)
        found = xenstore.read(wanted)
        return found.get(mac, b""), found.get(kind, b""), self._untrusted_addresses or found.get(addresses, b"")

    def failed(self, error: GuestnetError) -> None:
        """Report the error to Xen, which reports it to dom0."""
        try:
            words = str(error).removeprefix(f"{self.name.text}: ")
            files.append(HOTPLUG_LOG, f"qubes-guestnet: {self.name.text}: {printable(words)}\n".encode())
        except OSError as failure:
            log(WARNING, f"cannot write the error to {HOTPLUG_LOG}: {failure.strerror}")
        try:
            xenstore.write(f"{self.folder}/hotplug-error", printable(str(error)))
            xenstore.write(f"{self.folder}/hotplug-status", "error")
        except GuestnetError as failure:
            log(WARNING, f"cannot write the error to xenstore: {failure}")


def _recorded(name: VifName, paths: Paths) -> Vif | None:
    """Return the record of a vif; None if it cannot be read, so that the vif is still taken out of service."""
    try:
        return vif_records.Folder(paths.run).load(name.text)
    except GuestnetError as error:
        log(WARNING, str(error))
        return None


def _entries(vif: Vif) -> dict[str, bytes]:
    """Return the entries needed for a vif: the provider's own, and the mappings of its addresses."""
    mapped = (*(provider.mapping_prefix(address) for address in vif.addresses), hardening.KEY)
    store = qubesdb.connect()
    try:
        return qubesdb.read_all(store, (*settings.UPLINK_PREFIXES_OF_A_PROVIDER, *provider.PROVIDER_PREFIXES, *mapped))
    finally:
        store.close()


def _await(name: VifName) -> None:
    """Wait for the kernel's device, which may appear after Xen's call (#4446)."""
    deadline = time.monotonic() + DEVICE_SECONDS
    while True:
        try:
            socket.if_nametoindex(name.text)
            return
        except OSError:
            if time.monotonic() >= deadline:
                problem = f"{name.text}: no such device after {DEVICE_SECONDS:g} s"
                raise GuestnetError(problem, "is xen-netback loaded? Detach and attach the qube again") from None
        time.sleep(_POLL_SECONDS)


def _translate(vif: Vif, untrusted_entries: Mapping[str, bytes]) -> tuple[str, ...]:
    """Put the namespace of the fake address between the qube and this provider."""
    if not vif.mappings:
        return ()
    from ..core.provider import fake_address  # few qubes have them
    from ..system.fake_address import Namespace

    gateway = provider.parse_provider(untrusted_entries).gateway
    if gateway is None:
        raise GuestnetError(f"{vif.name.text}: a fake address needs /qubes-netvm-gateway", "is the qube a provider?")
    mapping = vif.mappings[0]  # a qube has one IPv4 address
    with Namespace(vif.name) as space:
        for step in fake_address.build(space.observe(), vif, mapping, gateway, space.outside):
            space.carry_out(step)
    return (f"{vif.name.text}: {mapping.real} is shown as {mapping.visible}",)


def _harden(vif: Vif, untrusted_entries: Mapping[str, bytes], paths: Paths) -> tuple[str, ...]:
    """Apply the service harden-network-interfaces before the link goes up (behaviours B17, B154)."""
    flag = os.path.exists(os.path.join(paths.flags, hardening.SERVICE))
    if not hardening.wanted(untrusted_entries.get(hardening.KEY, b""), flag):
        return ()
    from ..system import systemd_sysctl  # only with this service

    systemd_sysctl.harden(vif.name.text)
    return (f"{vif.name.text}: hardened (service {hardening.SERVICE})",)


def _demolish(vif: Vif) -> tuple[str, ...]:
    from ..core.provider import fake_address  # only where a namespace may be left
    from ..system.fake_address import Namespace

    with Namespace(vif.name) as space:
        for step in fake_address.demolish(space.observe(), vif.name, space.outside):
            space.carry_out(step)
    return ()


def _hand_over(action: str, vif: Vif, untrusted_entries: Mapping[str, bytes], paths: Paths) -> tuple[str, ...]:
    """Make the resident agent configure the vif; if no agent answers, configure it here."""
    path = os.path.join(paths.run, hotplug_socket.NAME)
    answer = hotplug_socket.request(path, vif_rules.ask(action, vif), ANSWER_SECONDS)
    if answer is None:
        return _alone(action, vif, untrusted_entries, paths)
    try:
        problem, done = vif_rules.answered(answer)
    except ValueError as error:
        remedy = "is the agent of the same release? Attach the qube again"
        raise GuestnetError(f"malformed answer of the agent: {error}", remedy) from None
    if problem:
        raise GuestnetError(problem)
    return done


def _alone(action: str, vif: Vif, untrusted_entries: Mapping[str, bytes], paths: Paths) -> tuple[str, ...]:
    programs.limit(ALONE_SECONDS)
    try:
        if action == vif_rules.ONLINE:
            return _provider(paths).online(vif, untrusted_entries)
        try:
            untrusted_entries = _entries(vif)
        except StoreError as error:
            log(WARNING, f"{error}; its addresses stay protected")
        return _provider(paths).offline(vif, untrusted_entries)
    finally:
        programs.limit(None)  # users' hooks have a limit of their own


def _provider(paths: Paths) -> Provider:
    from ..provider.provider_pass import Provider
    from ..system.netlink import rtnl as netlink
    from ..uplink.other_services import OtherServices

    return Provider(paths, netlink.Kernel(), OtherServices(paths.flags))


def _run_hooks(action: str, vif: Vif, paths: Paths) -> tuple[str, ...]:
    """Run the user's hooks, each once per address; their failures are only logged (behaviour B59).

    The hooks of one vif run in one process at a time, and `online` once per device: at its start the agent calls this
    for a vif without a record, possibly during Xen's own call (behaviour B148).
    """
    executables = hook_rules.runnable(hooks.facts(hooks.network_hooks()))
    if not executables:
        return ()
    lock = None
    try:
        place = vif.name.domid << 32 | vif.name.devid
        lock = locks.take(os.path.join(paths.run, _HOOKS_LOCK), HOOKS_SECONDS, place)
    except locks.Held as error:
        log(WARNING, f"{vif.name.text}: its hooks are still running: {error}")
        if action == vif_rules.ONLINE:
            return ()
    except GuestnetError as error:  # run the hooks nevertheless
        log(WARNING, f"{vif.name.text}: its hooks may run twice: {error}")
    try:
        if action == vif_rules.OFFLINE:
            return _tell_hooks(action, vif, tuple(map(str, vif.addresses)) or ("",), executables)
        known = _recorded(vif.name, paths)
        addresses = vif_rules.unhooked(vif, known)
        if not addresses:
            return (f"{vif.name.text}: its hooks have run already",)
        done = _tell_hooks(action, vif, addresses, executables)
        if known is not None:
            _mark_hooked(vif, known, paths)
        return done
    finally:
        if lock is not None:
            os.close(lock)


def _mark_hooked(vif: Vif, known: Vif, paths: Paths) -> None:
    """Record that the hooks have run, unless the record is already that of another device."""
    folder = vif_records.Folder(paths.run)
    try:
        with Ledger(paths.run):
            now = folder.load(vif.name.text)
            if now is not None and now.device == known.device:
                told = frozenset((*(now.hooked or ()), *vif.addresses))
                folder.save(now._replace(hooked=tuple(address for address in now.addresses if address in told)))
    except GuestnetError as error:
        log(WARNING, f"{vif.name.text}: cannot record that its hooks have run: {error}")


def _tell_hooks(action: str, vif: Vif, addresses: Iterable[str], paths: Iterable[str]) -> tuple[str, ...]:
    done = []
    for path in paths:
        for address in addresses:
            words = (path, action, vif.name.text, vif.kind, address)
            try:
                ended = programs.run(words, hook_rules.NETWORK_LIMIT_SECONDS, daemons=True)
            except programs.ProgramError as error:
                log(WARNING, f"hook {error}")
                continue
            if ended.status:
                log(WARNING, f"hook {' '.join(words)} failed with {ended.status}: {ended.output[-200:]}")
            done.append(f"hook {' '.join(words)}")
    return tuple(done)
