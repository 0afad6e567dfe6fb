# SPDX-License-Identifier: GPL-2.0-or-later
"""NetworkManager: the profiles of the uplinks on disk and in force. `core.uplink.profiles` decides."""

from __future__ import annotations

from ..core.operations import Outcome, Planned
from ..core.owned_state import Record
from ..core.report import Uplinks
from ..core.uplink import networkmanager as nm
from ..errors import GuestnetError
from ..system import devices, networkmanager

TYPE_CHECKING = False  # of `typing`, which costs 5 ms and 1 MB (see system/deferred_imports)
if TYPE_CHECKING:
    from ..core.uplink.profiles import Device, Facts, ProfileFacts


def plan(uplinks: Uplinks, record: Record, so_far: Outcome, *, saved: bool) -> Planned:
    """Observe and plan.

    Args:
        uplinks: of this pass.
        record: the owned record.
        so_far: result of the operations of this pass so far.
        saved: look at the profiles of the user's as well.
    """
    ours = networkmanager.profiles() if uplinks.complete else ()
    managed = any(interface.manager.networkmanager for interface in uplinks.interfaces)
    if not (ours or saved or managed or any(entry.profile for entry in record.interfaces)):
        return Planned((), record)
    from ..core.uplink import profiles  # where there is anything to look after

    facts, errors = _observed(uplinks, record, so_far, ours)
    if saved:
        present = frozenset(devices.names().values())
        facts = facts._replace(saved=tuple(networkmanager.saved().items()), present=present)
    return profiles.plan(facts, record, so_far)._replace(errors=errors)


def published(uplinks: Uplinks) -> bool:
    """Return whether NetworkManager, when it starts, finds a profile of each interface that it is to configure."""
    from ..core.uplink import profiles

    asked = (profiles.asked(interface, uplinks.settings, uplinks.flags) for interface in uplinks.interfaces)
    return all(_on_disk(profile) for profile in asked if profile is not None)


def _observed(
    uplinks: Uplinks, record: Record, so_far: Outcome, ours: tuple[str, ...]
) -> tuple[Facts, tuple[GuestnetError, ...]]:
    from ..core.uplink import profiles

    found: list[ProfileFacts] = []
    errors: list[GuestnetError] = []
    for interface in uplinks.interfaces:
        profile = profiles.asked(interface, uplinks.settings, uplinks.flags)
        if profile is None:
            continue
        profile = profile._replace(on_disk=_on_disk(profile))
        if not profiles.in_force(profile, record.interface(profile.link), so_far):
            try:
                profile = profile._replace(device=_device(profile))
            except GuestnetError as error:
                errors.append(error)
        found.append(profile)
    kept = {
        nm.file_name(each.link.name) for each in uplinks.interfaces if each.link is not None and profiles.keeps(each)
    }
    stale = tuple((name, networkmanager.uuid_of(name)) for name in ours if name not in kept)
    without = (each.link for each in uplinks.interfaces if each.link is not None and not profiles.keeps(each))
    return profiles.Facts(tuple(found), stale, tuple(without) if uplinks.complete else ()), tuple(errors)


def _on_disk(profile: ProfileFacts) -> bool:
    return networkmanager.holds(nm.file_name(profile.link.name), profile.text)


def _device(profile: ProfileFacts) -> Device:
    """Return the interface in NetworkManager. Raises GuestnetError when that gives no answer."""
    from ..core.uplink import profiles

    try:
        state, uuid = networkmanager.device(profile.link.name)
    except networkmanager.NotRunning:
        return profiles.Device.ABSENT
    return profiles.device(state, uuid, profile.mac)
