# SPDX-License-Identifier: GPL-2.0-or-later
"""The facts for the verb `firewall`: lists, vifs, the loaded rules, names. Nothing is changed."""

from __future__ import annotations

import os
from collections.abc import Mapping

from ..core.firewall import entries, listing
from ..core.firewall.lines import FAMILIES
from ..core.firewall.name_cache import Cache
from ..core.firewall.shown import Facts
from ..core.namedtuple import NamedTuple
from ..core.provider import settings as provider
from ..core.render.firewall_lists import ANOTHER, OFF, OURS
from ..core.settings import PROVIDER_KEY
from ..core.values import IPAddress
from ..errors import GuestnetError, UsageError, shown
from ..provider import firewall_names
from ..system import guestnet_toml, service_flags, vif_records
from ..system.nft import kernel as nft_kernel
from ..system.nft import program as nft
from ..system.paths import Paths
from ..system.qubesdb import store as qubesdb


class Ground(NamedTuple):
    """All facts for the verb `firewall`.

    Args:
        entries: entries of the provider and of the lists in QubesDB.
        vifs: address of each qube → the name of its vif.
        facts: facts about the lists.
        enforcer: the program that enforces the lists.
        unseen: the error if only root can read the loaded rules; None if they were read.
    """

    entries: Mapping[str, bytes]
    vifs: Mapping[IPAddress, str]
    facts: Facts
    enforcer: str
    unseen: GuestnetError | None


def look(paths: Paths) -> Ground:
    """Gather all facts.

    Raises:
        UsageError: this qube is not a provider.
        GuestnetError: QubesDB, the records or nft cannot be read.
    """
    untrusted_entries = read_entries()
    if not untrusted_entries.get(PROVIDER_KEY):
        raise UsageError("this qube is not a provider, so it has no lists of client qubes", "run it in the provider")
    filters = service_flags.filters(paths.flags)
    ours = service_flags.enforces(paths.flags, paths.run)
    listed, packets, unseen = None, {}, None
    try:
        texts = _texts()
        listed = {version: listing.parse(text) for version, text in texts.items()}
        packets = {version: listing.packets(text) for version, text in texts.items()}
    except ValueError as error:
        raise GuestnetError(f"nft: unexpected output: {error}") from None
    except GuestnetError as error:
        if not error.needs_root:
            raise
        unseen = error
    now, blocks = firewall_names.boot_seconds(), guestnet_toml.configured_names(paths.config).blocks_qube
    facts = Facts(entries.by_address(untrusted_entries), listed, packets, _cache(paths), now, ours, blocks)
    return Ground(untrusted_entries, _vifs(paths), facts, OURS if ours else ANOTHER if filters else OFF, unseen)


def read_entries() -> dict[str, bytes]:
    """Return the entries of the provider and of the lists. Raises StoreError."""
    store = qubesdb.connect()
    try:
        return qubesdb.read_all(store, (*provider.EVERYTHING, entries.FOLDER))
    finally:
        store.close()


def _texts() -> dict[int, str]:
    """Return the listing of each family's table, if it exists."""
    names = nft_kernel.table_names()
    there = {version: family.word for version, family in FAMILIES.items() if family.table in names}
    texts = nft.firewall(there.values(), counted=True)
    return {version: texts[word] for version, word in there.items() if texts[word]}


def _vifs(paths: Paths) -> dict[IPAddress, str]:
    found: dict[IPAddress, str] = {}
    for vif in vif_records.Folder(paths.run).all():
        found |= dict.fromkeys(vif.addresses, vif.name.text)
    return found


def _cache(paths: Paths) -> Cache:
    """Return the cache of name servers' answers as the agent last wrote it; an empty one if it is unreadable."""
    try:
        return firewall_names.read(paths.run)
    except GuestnetError:
        return Cache()


def addresses_of(word: str, vifs: Mapping[IPAddress, str]) -> tuple[IPAddress, ...]:
    """Return all addresses of the qube with this address or vif.

    Raises:
        UsageError: no such qube is attached; the message lists the attached ones.
    """
    found = tuple(address for address, vif in vifs.items() if word in (vif, str(address)))
    if found:
        return found
    qubes: dict[str, list[str]] = {}
    for address, vif in vifs.items():
        qubes.setdefault(vif, []).append(str(address))
    there = "; ".join(f"{vif} {' '.join(each)}" for vif, each in sorted(qubes.items()))
    remedy = f"give an address or a vif: {there}" if there else "no qube is attached to this provider"
    raise UsageError(f"{shown(os.fsencode(word))} is not a client qube of this provider", remedy)
