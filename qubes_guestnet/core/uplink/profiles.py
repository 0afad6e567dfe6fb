# SPDX-License-Identifier: GPL-2.0-or-later
"""Plan the profiles of the uplinks on disk and in NetworkManager.

NetworkManager puts a profile in force by itself, or when it is told to; it is told once for each interface and after
each change, and never because a user took the interface down (behaviour B27). The owned record holds the sum of the
text that is in force.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from ..enumeration import Enum
from ..namedtuple import NamedTuple
from ..operations import ApplySysctl, Outcome, Planned
from ..owned_state import Interface, Record, checksum
from ..report import InterfaceReport
from ..settings import Settings
from ..values import Link
from . import networkmanager as nm
from .desired import Flags
from .service_operations import (
    ActivateProfile,
    LoadProfile,
    PublishProfile,
    ReapplyProfile,
    RemoveProfile,
    RewriteProfile,
)

TYPE_CHECKING = False  # of `typing`, which costs 5 ms and 1 MB (see system/deferred_imports)
if TYPE_CHECKING:
    from ..operations import Operation


# Prefix of a checksum in the owned record: NetworkManager has loaded that profile, or will when it starts, but has not
# activated any of ours.
READ = "read-"


class Device(Enum):
    """An interface as NetworkManager has it."""

    UNASKED = "no reply was needed, or there was none"
    ABSENT = "NetworkManager is not running"
    UNMANAGED = "not managed, for example while udev handles it"
    OTHER = "managed, with another profile or none in force"
    OURS = "our profile is in force, or about to be"


_UNMANAGED = "10 "  # NM_DEVICE_STATE_UNMANAGED, and its name behind it


def device(state: str, uuid: str, mac: str) -> Device:
    """Return the state of an interface as nmcli prints it.

    Args:
        state: number and name.
        uuid: of the profile in force, "" for none.
        mac: of the interface.
    """
    if uuid == nm.profile_uuid(mac):
        return Device.OURS
    return Device.UNMANAGED if state.startswith(_UNMANAGED) else Device.OTHER


class ProfileFacts(NamedTuple):
    """The profile of one uplink.

    Args:
        link: the interface.
        mac: of the interface as dom0 names it.
        text: of the profile that is asked for.
        on_disk: its file holds this text.
        device: the interface in NetworkManager.
        works: the interface is up and has an address that is asked for.
    """

    link: Link
    mac: str
    text: bytes
    on_disk: bool = False
    device: Device = Device.UNASKED
    works: bool = False


class Facts(NamedTuple):
    """The observed facts.

    Args:
        profiles: one per uplink with a profile.
        stale: file name and uuid of each profile of ours that no interface needs; uuid "" for a file without one.
        links: uplinks without a profile.
        saved: the user's profiles, text by file name.
        present: names of the existing interfaces.
    """

    profiles: tuple[ProfileFacts, ...] = ()
    stale: tuple[tuple[str, str], ...] = ()
    links: tuple[Link, ...] = ()
    saved: tuple[tuple[str, str], ...] = ()
    present: frozenset[str] = frozenset()


def asked(interface: InterfaceReport, settings: Settings, flags: Flags) -> ProfileFacts | None:
    """Return the profile that an interface should have; None for none, or if the present one stays."""
    link, own = interface.link, interface.asked
    if link is None or interface.removed or not interface.manager.networkmanager:
        return None
    if own.held or settings.dns.held or not interface.desired.addresses:
        return None  # what is in force stays, or there is nothing to put in force
    options = nm.ProfileOptions(
        interface.choice.style, flags, settings.dns.servers, interface.desired.mtu, interface.rank
    )
    text = nm.keyfile(link.name, own, options)
    works = interface.observed.up and bool(interface.desired.addresses & interface.observed.addresses)
    return ProfileFacts(link, own.mac, text, works=works)


def keeps(interface: InterfaceReport) -> bool:
    """Return whether the profile's file of an interface stays."""
    there = interface.link is not None and interface.manager.networkmanager and not interface.removed
    return there and bool(interface.desired.addresses or interface.settings.held)


def in_force(profile: ProfileFacts, entry: Interface, so_far: Outcome) -> bool:
    """Return whether NetworkManager has a profile in force, or had, as far as it is known without asking."""
    taken = any(isinstance(op, ActivateProfile | ReapplyProfile) and op.name == _name(profile) for op in so_far.done)
    return taken or (profile.on_disk and entry.profile == checksum(profile.text))


def plan(facts: Facts, record: Record, so_far: Outcome) -> Planned:
    """Return the pending operations.

    Args:
        facts: observed.
        record: the owned record.
        so_far: result of the operations of this pass so far.
    """
    ops: list[Operation] = []
    waits: list[str] = []
    for name, text in facts.saved:
        mended = nm.mend(text, facts.present)
        if mended != text:
            ops.append(RewriteProfile(name, mended))
    for profile in facts.profiles:
        entry = record.interface(profile.link)
        if in_force(profile, entry, so_far):
            record = record.with_interface(entry._replace(profile=checksum(profile.text)))
            continue
        if not profile.on_disk:
            ops.append(PublishProfile(_name(profile), profile.text))
            # Another program deleted or changed it, and NetworkManager is to read it again (behaviour B132).
            entry = entry._replace(profile="" if _is_fresh(entry) else nm.UNREAD)
        steps, waiting, entry = _take_up(profile, entry, so_far)
        ops += steps
        waits += waiting
        record = record.with_interface(entry)
    ops += (RemoveProfile(name, uuid) for name, uuid in facts.stale)
    for link in facts.links:
        record = record.with_interface(record.interface(link)._replace(profile=""))
    return Planned(tuple(ops), record, tuple(waits))


def forget(entry: Interface, link: Link) -> Iterable[Operation]:
    """Return the operations that remove the profile of an interface that is taken down."""
    if entry.profile:
        yield RemoveProfile(nm.file_name(link.name), nm.profile_uuid(entry.mac))


def _take_up(
    profile: ProfileFacts, entry: Interface, so_far: Outcome
) -> tuple[Collection[Operation], Collection[str], Interface]:
    """Return what has NetworkManager use a profile, what it waits for, and what the record is to say.

    One that was in force before and is not now was taken down by the user, and stays down.

    Args:
        profile: not known to be in force.
        entry: of its interface.
        so_far: result of the operations of this pass so far.
    """
    name, interface, uuid = _name(profile), profile.link.name, nm.profile_uuid(profile.mac)
    if profile.device is Device.UNASKED:
        return (), (), entry
    fresh, total, loaded = _is_fresh(entry), checksum(profile.text), LoadProfile(name) in so_far.done
    if fresh and (loaded or (profile.device is Device.ABSENT and profile.on_disk)):
        entry = entry._replace(profile=READ + total)
    if profile.device is Device.ABSENT:
        return (), (f"waiting for NetworkManager to start and load {nm.FOLDER}/{name}",), entry
    ops: list[Operation] = []
    if not loaded and entry.profile != READ + total:
        # In force with a former text. core-agent's has the same uuid, and what it gave stays until the next activation:
        # NetworkManager refuses to reapply ours in its place, and an activation would take the network of a running
        # qube away at our installation (5 of 44 pings).
        if fresh and profile.device is Device.OURS and not profile.works:
            fresh, entry = False, entry._replace(profile=nm.UNREAD)
        sysctl = ApplySysctl(interface)
        ops += [sysctl] if fresh and sysctl not in so_far.done else []
        ops.append(LoadProfile(name))
    if fresh and profile.device is Device.UNMANAGED:
        # core-agent's udev rule has udev wait for our command, and NetworkManager waits for udev.
        words = f"waiting for udev to release {interface}, so that NetworkManager activates {nm.FOLDER}/{name}"
        return ops, (words,), entry
    if fresh and profile.device is Device.OTHER:
        ops.append(ActivateProfile(name, interface, uuid))
    if not fresh and profile.device is Device.OURS:
        ops.append(ReapplyProfile(name, interface, uuid))
    return ops, (), entry if ops else entry._replace(profile=total)


def _is_fresh(entry: Interface) -> bool:
    """Return whether no profile was ever in force on an interface."""
    return not entry.profile or entry.profile.startswith(READ)


def _name(profile: ProfileFacts) -> str:
    return nm.file_name(profile.link.name)
