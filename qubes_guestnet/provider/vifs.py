# SPDX-License-Identifier: GPL-2.0-or-later
"""The vifs of a provider: to set one up, to take one out of service, and to make all of them right again."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Mapping
from functools import partial

from .. import downstream
from ..core import attachment, limits, mappings, nftables, provider
from ..core.attachment import VifReport
from ..core.downstream import ordered
from ..core.limits import InForce, Limits
from ..core.provider import ProviderSettings
from ..core.values import IPV4, IPInterface, State, Tunable
from ..core.vif import GONE, Device, Vif
from ..errors import GuestnetError, Vanished, did_not_persist
from ..system import conntrack, nft, nft_kernel, tunables, vifs
from ..system.owned import Ledger
from ..transactions import Transactions
from ..work import Work

TYPE_CHECKING = False  # of `typing`, which costs 5 ms and 1 MB (see system/lean)
if TYPE_CHECKING:
    from ..system.netlink import Kernel


class Attachments:
    """The vifs.

    Args:
        run: /run/qubes-guestnet.
        kernel: the adapter.
        transactions: of this process.
    """

    def __init__(self, run: str, kernel: Kernel, transactions: Transactions) -> None:
        self._kernel, self._nft, self._run = kernel, transactions, run
        self._vifs = vifs.Folder(run)
        self._devices_of: object = None  # which state of the folder `_devices` is of
        self._devices = dict[str, Device | None]()

    def all(self) -> tuple[Vif, ...]:
        """Every vif in service, as far as the records can be read; a sweep tells of the others."""
        return tuple(vif for vif in self._vifs.all([]) if vif.device != GONE)

    def strangers(self) -> tuple[str, ...]:
        """Names of vifs that have none."""
        known = set(self._vifs.names())
        return tuple(link.name for link in self._kernel.vifs() if link.name not in known)

    def late_mappings(self, untrusted_entries: Mapping[str, bytes]) -> tuple[Vif, ...]:
        """Vifs whose fake addresses are late. Of others that dom0 speaks of only now that is recorded."""
        late = []
        for vif in self.all():
            if vif.told:
                continue
            now = mappings.shown(untrusted_entries, vif)
            decision = mappings.late(vif, now, spoken=bool(now.mappings) and conntrack.speaks(vif.addresses))
            if decision == mappings.FOLLOW:
                late.append(vif)
            elif decision == mappings.LEARN:
                self._learn(vif)
        return tuple(late)

    def _learn(self, vif: Vif) -> None:
        with Ledger(self._run):
            # Hotplug may have taken it out of service, or set it up again, meanwhile.
            if self._vifs.load(vif.name.text) == vif:
                self._vifs.save(vif._replace(told=True))

    def online(self, vif: Vif, work: Work, waiting: nft.Waiting) -> None:
        """Set up one vif, or make one right that is set up. Raises GuestnetError; see Provider.online."""
        known, link = self._vifs.load(vif.name.text), self._kernel.link_named(vif.name.text)
        if link is None:
            raise GuestnetError(f"{vif.name.text} is not there", "did the qube behind it just end?")
        same = known is not None and known.mac == vif.mac and attachment.is_its_own(known, link)
        if known is not None and not (same and frozenset(known.addresses) <= frozenset(vif.addresses)):
            # The end of the one before was not told: what it had is not the new one's to use.
            self.drop(known, work)
            work.raise_first()
            known = None
        gateways = known.gateways if known is not None else self._left(vif, work)
        hooked = known.hooked if known is not None else None
        vif = vif._replace(gateways=gateways, device=attachment.device(link), hooked=hooked)
        desired, twin = self._desired(vif, work), self._on_the_way(vif)
        others = (twin,) if twin is not None else ()
        report = self._look(vif, desired, work, others, new=known is None)
        if report.link is None or not attachment.is_its_own(vif, report.link):
            raise GuestnetError(f"{vif.name.text} went while it was set up", "did the qube behind it just end?")
        if known != vif or not report.link.up:
            # Another qube may have had the address before, and must leave no open door behind (behaviour B53).
            work.done.append(f"conntrack: {conntrack.purge(vif.addresses)} entries purged")
        self._check_again(vif, others, (vif, *others))
        report = report._replace(elements=self._elements(vif, work.settings), limits=_limits(vif, work))
        vif = self._set_up(report, work, waiting)
        left = self._look(vif, desired, work, others)
        if left.link is None or not attachment.is_its_own(vif, left.link):
            raise GuestnetError(f"{vif.name.text} went while it was set up", "did the qube behind it just end?")
        if left.todo:
            raise did_not_persist(left.todo[0])

    def _on_the_way(self, vif: Vif) -> Vif | None:
        """The other vif by which the kernel reaches an address of this one, as that of an HVM's stub domain (B58).

        By the kernel's routes and not by the records, of which there may be 250.
        """
        for address in vif.addresses:
            name = _name(self._kernel.way(address)) if address.version == IPV4 else ""
            twin = self._vifs.load(name) if vifs.is_name(name) and name != vif.name.text else None
            if twin is not None and twin.device != GONE and address in twin.addresses:
                return twin
        return None

    @staticmethod
    def _check_again(vif: Vif, others: Iterable[Vif], there: Iterable[Vif]) -> None:
        """Have those that share an address with a vif, which came or went, check by the routes as they have to now."""
        there = tuple(there)
        for other in others:
            if not frozenset(vif.addresses).isdisjoint(other.addresses):
                check = attachment.source_check(other.name.text, outranked=attachment.outranked(other, there))
                if _differs(check):
                    tunables.write(check.path, check.value)

    def _left(self, vif: Vif, work: Work) -> frozenset[IPInterface]:
        """Gateway addresses of ours on a vif without a record: a damaged one says that we set it up, no more."""
        damaged = self._vifs.has(vif.name.text)
        return self._desired(vif._replace(gateways=frozenset()), work).addresses if damaged else frozenset()

    def drop(self, vif: Vif, work: Work) -> None:
        """Take one vif out of service; every step is done, whatever another says.

        After a step that failed the record stays, as that of no device: the next sweep does all of it again.
        """
        known = self._vifs.load(vif.name.text)
        if known is not None:
            vif = known._replace(addresses=tuple(dict.fromkeys((*known.addresses, *vif.addresses))))
        before = len(work.errors)
        work.attempt(partial(self._link_down, vif, work))
        self._lock_out(vif, work)
        if len(work.errors) == before:
            work.attempt(partial(self._vifs.remove, vif.name.text))
        else:
            work.attempt(partial(self._vifs.save, vif._replace(device=GONE)))
        work.done.append(f"{vif.name.text}: out of service")

    def _lock_out(self, vif: Vif, work: Work) -> None:
        work.attempt(partial(self._close, vif, work))
        work.attempt(partial(conntrack.purge, vif.addresses))

    def _close(self, vif: Vif, work: Work) -> None:
        """It may send nothing any more. Its addresses stay protected while a qube that has them may come back."""
        unread: list[GuestnetError] = []
        others = tuple(other for other in self._vifs.all(unread) if other.name != vif.name)
        there = tuple(other for other in others if other.device != GONE)
        work.attempt(partial(self._check_again, vif, there, there))
        kept = work.settings.connected | {address for other in others for address in other.addresses}
        if unread or not work.settings.active or "connected" in work.settings.held:
            kept |= frozenset(vif.addresses)  # which qubes may come back is not known
        try:
            mac = self._arp_mac(vif)
            self._nft.run(nftables.detach(vif.name.text, vif.addresses, kept, mac) + limits.detach(vif.name.text))
        except nft.NftError:
            if any(nft.tables(self._nft.families).values()):
                raise
            # else there are no rules of ours, and so nothing that would let it send

    def _link_down(self, vif: Vif, work: Work) -> None:
        link = self._kernel.link_named(vif.name.text)
        if link is None:
            return
        try:
            for op in attachment.down(link, self._kernel.observe(link, vif.addresses), vif):
                self._kernel.apply(op)
                work.done.append(str(op))
        except Vanished:
            return  # it goes while we work, and takes everything with it

    @staticmethod
    def _desired(vif: Vif, work: Work) -> State:
        return provider.desired(vif, work.settings)._replace(mtu=work.mtu)

    def _look(self, vif: Vif, desired: State, work: Work, others: Iterable[Vif], *, new: bool = False) -> VifReport:
        """A vif as it is, its set elements left aside. A `new` one that is down has nothing yet, and is not asked."""
        name = vif.name.text
        link = self._kernel.link_named(name)
        if link is None:
            return VifReport(vif, None)
        bare = State(group=link.group, mtu=link.mtu)
        observed = bare if new and not link.up else self._kernel.observe(link, vif.addresses)
        ops = attachment.up(link, desired, observed, vif, work.settings.held)
        ipv6, outranked = attachment.has_ipv6(vif, work.settings), attachment.outranked(vif, others)
        wanted = attachment.tunables(name, ipv6=ipv6, outranked=outranked)
        return VifReport(vif, link, ops, (), tuple(tunable for tunable in wanted if _differs(tunable)))

    def _elements(self, vif: Vif, settings: ProviderSettings) -> tuple[str, ...]:
        """The lines of nft that let it send."""
        addresses = provider.elements(vif, settings).downstream
        return tuple(nftables.attach(vif.name.text, addresses, self._arp_mac(vif)).splitlines())

    def _arp_mac(self, vif: Vif) -> str:
        """The address that a qube may speak by ARP from; "" where the kernel has no nftables for it."""
        return vif.mac if self._nft.arp else ""

    def _set_up(self, report: VifReport, work: Work, waiting: nft.Waiting | None = None) -> Vif:
        """Do what a report says is to do, in the order of safety; the vif as recorded from then on."""
        early, late = attachment.split(report.ops)
        vif = report.vif._replace(gateways=report.vif.gateways | attachment.added(early))
        # The record is ahead of the kernel, as the uplink's is.
        self._vifs.save(vif)
        text = "".join(f"{element}\n" for element in report.elements) + report.limits
        loaded = self._nft.begin(text, waiting) if text else None
        try:
            for tunable in report.tunables:
                tunables.write(tunable.path, tunable.value)
            for op in early:
                self._kernel.apply(op)
        finally:
            if loaded is not None:
                loaded()
        for op in late:
            self._kernel.apply(op)
        work.done += report.todo
        return vif

    def sweep(self, work: Work) -> None:
        """Every vif, and the set of addresses behind this qube, made what they should be."""
        present = downstream.present(work, self._nft)
        records = self._bring(work, present)
        self._sweep_each(work, records, present)

    def look(self, work: Work) -> None:
        """What can be seen of every vif without the right to look at the sets; for a dry run."""
        self._sweep_each(work, self.all(), None)

    def _sweep_each(self, work: Work, records: Iterable[Vif], present: frozenset[str] | None) -> None:
        """Each vif, beside those that are there; `present` is None without the right to look at the sets."""
        names, records = {name for _, name in socket.if_nameindex()}, tuple(records)
        found = _limits_in_force(counted=work.dry_run) if present is not None else None
        there = tuple(vif for vif in records if vif.device != GONE and vif.name.text in names)
        for vif in records:
            work.attempt(partial(self._sweep_one, work, vif, present, found, there))

    def _bring(self, work: Work, present: frozenset[str]) -> tuple[Vif, ...]:
        """The set of addresses behind this qube made what it should be; and all records that can be read."""
        unread: list[GuestnetError] = []
        records = self._vifs.all(unread)
        work.errors += unread
        downstream.bring(work, self._nft, records, present, complete=not unread)
        return records

    def close_replaced(self, work: Work) -> None:
        """Close the vifs whose device went, or has left its name to another one, which may send nothing (B117).

        For every pass: it asks for the names of all interfaces in one question, and reads records only when some
        changed. What hotplug will ask for at the end of a vif, its addresses and mappings, stays in the record.
        """
        there = {name: index for index, name in socket.if_nameindex()}
        changed = self._vifs.changed()
        if changed != self._devices_of:
            self._devices_of = changed
            self._devices = {vif.name.text: vif.device for vif in self.all() if vif.device is not None}
        for name, device in tuple(self._devices.items()):
            vif = self._vifs.load(name) if device is None or there.get(name) != device.ifindex else None
            if vif is None:
                continue
            words, before = f"{name}: closed, its device is gone", len(work.errors)
            if work.dry_run:
                work.todo.append(words)
                continue
            self._lock_out(vif, work)
            if len(work.errors) == before:
                self._vifs.save(vif._replace(device=GONE))
                work.done.append(words)

    def refill(self, work: Work) -> None:
        """What the sets are to hold, and nothing else of the vifs: rules have changed, perhaps some of ours."""
        present = downstream.present(work, self._nft)
        records = [vif for vif in self._bring(work, present) if vif.device != GONE]
        lines = [line for vif in records for line in self._elements(vif, work.settings)]
        missing = [line for line in lines if not attachment.is_there(line, present)]
        found = _limits_in_force()
        missing += [line for vif in records for line in _limits(vif, work, found).splitlines()]
        if missing:
            text = "".join(f"{line}\n" for line in missing)
            work.do(f"nft -f: {len(missing)} lines that another program undid", partial(self._nft.run, text))

    def follow(self, work: Work) -> None:
        """The set of addresses behind this qube alone, if dom0 has changed the list. Raises NftError."""
        if not work.active or downstream.followed(work):
            return
        before = len(work.errors)
        self._bring(work, downstream.present(work, self._nft))
        for error in work.errors[before:]:
            if isinstance(error, nft.NftError):  # a record that cannot be read keeps no other vif from its network
                raise error

    def _sweep_one(
        self, work: Work, vif: Vif, present: frozenset[str] | None, found: InForce | None, there: tuple[Vif, ...]
    ) -> None:
        report = self._look(vif, self._desired(vif, work), work, there)
        if report.link is None:
            if work.dry_run:
                work.todo.append(f"{vif.name.text}: out of service")
            else:
                self.drop(vif, work)
            return
        if not attachment.is_its_own(vif, report.link):
            self._replaced(vif, work)
            return
        if vif.device is None and not work.dry_run:  # a record of a former release
            vif = vif._replace(device=attachment.device(report.link))
            self._vifs.save(vif)
            report = report._replace(vif=vif)
        if present is not None:
            elements = self._wrong_elements(vif, work, present)
            report = report._replace(elements=elements, limits=_limits(vif, work, found))
        report = report._replace(seen=present is not None)
        if report.todo and not work.dry_run:
            self._set_up(report, work)
            report = report._replace(ops=(), elements=(), tunables=(), limits="")
        if work.dry_run:
            now = mappings.shown(work.untrusted_entries, vif)
            changed = mappings.changed(vif, now, work.settings.gateway)
            counts = found.counts.get(vif.name.text) if found is not None else None
            report = report._replace(now=now.mappings if changed else None, counts=counts)
        work.todo += report.todo
        work.vifs.append(report)

    def _wrong_elements(self, vif: Vif, work: Work, present: frozenset[str]) -> tuple[str, ...]:
        """The lines of nft that make the sets hold what they should of a vif."""
        elements = self._elements(vif, work.settings)
        missing = tuple(element for element in elements if not attachment.is_there(element, present))
        # Of an address that it has and may not use now, as when IPv6 goes; what others let it use is theirs to end.
        idle = frozenset(vif.addresses) - frozenset(provider.elements(vif, work.settings).downstream)
        lines = nftables.detach(vif.name.text, ordered(idle), idle, self._arp_mac(vif)).splitlines()
        stale = (line for line in lines if line.startswith("delete") and attachment.is_there(line, present))
        return (*missing, *stale)

    def _replaced(self, vif: Vif, work: Work) -> None:
        """Another device has the name: a stranger until hotplug says whose it is (behaviour B117)."""
        if vif.addresses and work.dry_run:
            work.todo.append(f"{vif.name.text}: out of service, another device has its name")
        elif vif.addresses:
            before = len(work.errors)
            self.drop(vif, work)
            if len(work.errors) == before:  # what has no record is set up by the next start of the agent
                self._vifs.save(Vif(vif.name, vif.mac, vif.kind, device=GONE))
        work.vifs.append(VifReport(vif._replace(addresses=()), None))


def _name(ifindex: int) -> str:
    """The name of an interface, "" for one that is not there."""
    try:
        return socket.if_indextoname(ifindex)
    except OSError:
        return ""


def _limits_in_force(*, counted: bool = False) -> InForce:
    """What is loaded of the limits of all vifs; `counted`: with what they count."""
    listing, rules = nft.limits(counted=counted), nft_kernel.limit_rules()
    return InForce(limits.in_force(listing), rules, limits.counted(listing) if counted else {})


def _limits(vif: Vif, work: Work, found: InForce | None = None) -> str:
    """What nft has to load for the limits of a vif; all of it where it is not known what is in force."""
    versions = sorted({address.version for address in provider.elements(vif, work.settings).downstream})
    if found is not None and not limits.missing(vif.name.text, versions, work.limits, found, work.kept):
        return ""
    return limits.attach(vif.name.text, versions, work.limits or Limits(), work.kept)


def _differs(tunable: Tunable) -> bool:
    """Whether it is to be set; what the kernel does not have (IPv6 switched off in it, #5110) is not."""
    return tunables.read(tunable.path) not in (None, tunable.value)
