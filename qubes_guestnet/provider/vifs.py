# SPDX-License-Identifier: GPL-2.0-or-later
"""The vifs of a provider: observe them to configure, take down and repair them.

`core.provider.vif_plan` plans the operations.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial

from ..core.nft import limits, tables
from ..core.nft.limits import InForce
from ..core.operations import Outcome, Planned, in_order
from ..core.owned_state import Record
from ..core.provider import late_mappings, vif_order, vif_plan
from ..core.provider.vif import GONE, Device, Vif
from ..core.provider.vif_operations import WriteVifRecord
from ..core.provider.vif_order import VifReport
from ..core.provider.vif_plan import Common, Facts
from ..core.values import IPV4, IPAddress, IPInterface, State
from ..dispatch import of_vifs
from ..errors import GuestnetError, KernelError
from ..flow import carry_out
from ..system import conntrack, devices, procfs_sysctl, vif_records
from ..system import plain_socket as socket
from ..system.nft import kernel as nft_kernel
from ..system.nft import program as nft
from ..system.owned_state import Ledger
from . import downstream
from .pass_state import PassState
from .ruleset_generation import Transactions

TYPE_CHECKING = False  # of `typing`, which costs 5 ms and 1 MB (see system/deferred_imports)
if TYPE_CHECKING:
    from ..core.operations import Operation
    from ..flow import Adapters
    from ..system.netlink.rtnl import Kernel


class Vifs:
    """The vifs.

    Args:
        run: /run/qubes-guestnet.
        kernel: the adapter.
        transactions: of this process.
        counted: count each qube's unanswered connections, for `status`.
    """

    def __init__(self, run: str, kernel: Kernel, transactions: Transactions, *, counted: bool = False) -> None:
        self._kernel, self._nft, self._run, self._counted = kernel, transactions, run, counted
        self._vifs = vif_records.Folder(run)
        self._known: tuple[object, tuple[Vif, ...]] | None = None  # the state of the folder, and what is in service

    def all(self) -> tuple[Vif, ...]:
        """Return every vif in service, as far as the records can be read; a sweep tells of the others."""
        return tuple(vif for vif in self._vifs.all([]) if vif.device != GONE)

    def in_service(self) -> tuple[Vif, ...]:
        """Return every vif as `all`; the records are read again only when some have changed."""
        state = self._vifs.changed()
        if self._known is None or self._known[0] != state:
            self._known = (state, self.all())
        return self._known[1]

    def devices(self) -> Mapping[IPAddress, Device | None]:
        """Return each address of the vifs in service, with its interface."""
        return {address: vif.device for vif in self.in_service() for address in vif.addresses}

    def leaving(self, vif: Vif) -> frozenset[IPAddress]:
        """Return the addresses that go with a vif, including recorded ones except those that another vif has by now."""
        known = self._vifs.load(vif.name.text)
        others = (address for other in self.all() if other.name != vif.name for address in other.addresses)
        return frozenset((*vif.addresses, *(known.addresses if known is not None else ()))).difference(others)

    def knows(self, vif: Vif) -> bool:
        """Return whether a vif is in service with the interface that has its name now."""
        known, link = self._vifs.load(vif.name.text), self._kernel.link_named(vif.name.text)
        return known is not None and link is not None and known.device == vif_order.device(link)

    def strangers(self) -> tuple[str, ...]:
        """Return the names of vifs without a record."""
        known = set(self._vifs.names())
        return tuple(link.name for link in self._kernel.vifs() if link.name not in known)

    def late_mappings(self, untrusted_entries: Mapping[str, bytes]) -> tuple[Vif, ...]:
        """Return vifs with late fake addresses, and record for other vifs that their mappings are now known."""
        late = []
        for vif in self.all():
            if vif.told:
                continue
            now = late_mappings.shown(untrusted_entries, vif)
            decision = late_mappings.late(vif, now, spoken=bool(now.mappings) and conntrack.speaks(vif.addresses))
            if decision == late_mappings.FOLLOW:
                late.append(vif)
            elif decision == late_mappings.LEARN:
                self._learn(vif)
        return tuple(late)

    def _learn(self, vif: Vif) -> None:
        with Ledger(self._run):
            # Hotplug may have taken it out of service, or configured it again, meanwhile.
            if self._vifs.load(vif.name.text) == vif:
                for error in carry_out((WriteVifRecord(vif._replace(told=True)),), self._adapters()).errors:
                    raise error

    def _adapters(self) -> Adapters:
        self._known = None  # a change within one tick of the file system's clock shows in no time of modification
        return of_vifs(self._kernel, self._vifs, self._nft)

    def _common(self, work: PassState) -> Common:
        try:
            arp = self._nft.arp
        except KernelError:  # an ordinary user plans; otherwise nft will report the problem
            arp = True
        return Common(work.settings, work.mtu, work.limits, work.kept or limits.Kept(), arp)

    # --- one vif -------------------------------------------------------------------------------------------------

    def online(self, vif: Vif, work: PassState) -> None:
        """Configure a vif, or repair a configured one. Raises GuestnetError; see Provider.online."""
        known, link = self._vifs.load(vif.name.text), self._kernel.link_named(vif.name.text)
        if link is None:
            raise GuestnetError(f"{vif.name.text} does not exist", "did its qube just end?")
        same = known is not None and known.mac == vif.mac and vif_order.is_its_own(known, link)
        if known is not None and not (same and frozenset(known.addresses) <= frozenset(vif.addresses)):
            # Hotplug did not announce the end of the former vif: the new one must not use its configuration.
            self.drop(known, work)
            work.raise_first()
            known = None
        common = self._common(work)
        gateways = known.gateways if known is not None else self._left(vif, common)
        hooked = known.hooked if known is not None else None
        vif = vif._replace(gateways=gateways, device=vif_order.device(link), hooked=hooked)
        plan = partial(self._plan_online, vif, common, known != vif or not link.up, self._on_the_way(vif))
        for error in work.settle(plan, self._adapters()).errors:
            raise error

    def _plan_online(
        self, vif: Vif, common: Common, fresh: bool, others: tuple[Vif, ...], record: Record, so_far: Outcome
    ) -> Planned:
        """Observe a vif without its elements and limits, and plan. Raises GuestnetError if it has disappeared."""
        known = self._vifs.load(vif.name.text)
        if known is not None and so_far.done:
            vif = vif._replace(gateways=known.gateways)  # including those that were added
        facts = self._look(vif, known, common, others, bare=known is None and not so_far.done)
        if facts.link is None or not vif_order.is_its_own(vif, facts.link):
            raise GuestnetError(f"{vif.name.text} disappeared while it was configured", "did its qube just end?")
        found = vif_plan.report(facts, common, every=True)
        values = _values(vif_plan.source_checks(others))
        ops = vif_plan.set_up(found, known, so_far, fresh=fresh)
        return Planned(in_order((*ops, *vif_plan.checks(vif, others, (vif, *others), values))), record)

    def _on_the_way(self, vif: Vif) -> tuple[Vif, ...]:
        """Return the other vif to which the kernel routes an address of this one, as with an HVM's stub domain (B58).

        It reads the kernel's routes and not the records, of which there may be 250.
        """
        for address in vif.addresses:
            name = _name(self._kernel.way(address)) if address.version == IPV4 else ""
            twin = self._vifs.load(name) if vif_records.is_name(name) and name != vif.name.text else None
            if twin is not None and twin.device != GONE and address in twin.addresses:
                return (twin,)
        return ()

    def _left(self, vif: Vif, common: Common) -> frozenset[IPInterface]:
        """Return our gateway addresses on a vif whose record is damaged, which only shows that we configured it."""
        damaged = self._vifs.has(vif.name.text)
        return vif_plan.desired(vif._replace(gateways=frozenset()), common).addresses if damaged else frozenset()

    def _look(self, vif: Vif, known: Vif | None, common: Common, others: tuple[Vif, ...], *, bare: bool) -> Facts:
        """Return the facts of a vif without its set elements. `bare`: it is new and down, so it has none yet."""
        link = self._kernel.link_named(vif.name.text)
        if link is None:
            return Facts(vif, known, None)
        empty = State(group=link.group, mtu=link.mtu)
        observed = empty if bare and not link.up else self._kernel.observe(link, vif.addresses)
        values = _values(tunable.path for tunable in vif_plan.tunables(vif, common, others))
        return Facts(vif, known, link, observed, values, others)

    def drop(self, vif: Vif, work: PassState, *, taken: bool = False) -> bool:
        """Take a vif out of service; a failed step does not stop the others.

        Args:
            vif: its known fields; the record completes them.
            work: the pass.
            taken: another device has its name.

        Returns:
            Whether all steps succeeded.
        """
        plan = partial(self._plan_drop, vif, self._common(work), taken)
        return not work.settle(plan, self._adapters()).errors

    def _plan_drop(self, vif: Vif, common: Common, taken: bool, record: Record, so_far: Outcome) -> Planned:
        known = self._vifs.load(vif.name.text)
        if known is not None and not so_far.done:
            vif = known._replace(addresses=tuple(dict.fromkeys((*known.addresses, *vif.addresses))))
        link = self._kernel.link_named(vif.name.text)
        observed = self._kernel.observe(link, vif.addresses) if link is not None else State()
        ops = vif_plan.drop(vif, link, observed, self._lock_out(vif, common, ends=True), so_far, taken=taken)
        return Planned(in_order(ops), record)

    def _lock_out(self, vif: Vif, common: Common, *, ends: bool) -> tuple[Operation, ...]:
        """Return the operations that stop its packets; its addresses stay protected until hotplug `ends` it."""
        unread: list[GuestnetError] = []
        others = tuple(other for other in self._vifs.all(unread) if other.name != vif.name)
        values = _values(vif_plan.source_checks(others))
        return vif_plan.lock_out(vif, common, others, values, sure=ends and not unread)

    # --- all of them ---------------------------------------------------------------------------------------------

    def sweep(self, work: PassState) -> PassState:
        """Repair every vif, and the set of protected addresses.

        Returns:
            The state with `vifs`.
        """
        records = self._apply_downstream(work, downstream.present(work, self._nft))
        return self._sweep(work, records, seen=True)

    def look(self, work: PassState) -> PassState:
        """Return the state with the facts of every vif that an ordinary user can read, without the sets."""
        return self._sweep(work, self.all(), seen=False)

    def _sweep(self, work: PassState, records: Iterable[Vif], *, seen: bool) -> PassState:
        """Handle each recorded vif; `seen`: including their elements and limits."""
        common, staying, strange = self._common(work), list[Vif](), list[VifReport]()
        for vif in records:
            try:
                link = self._kernel.link_named(vif.name.text)
            except GuestnetError as error:
                work.failed(error)
                continue
            if link is None:
                self.drop(vif, work)
            elif vif_order.is_its_own(vif, link):
                staying.append(vif if vif.device is not None else vif._replace(device=vif_order.device(link)))
            else:
                if vif.addresses:
                    self.drop(vif, work, taken=True)
                strange.append(VifReport(vif._replace(addresses=()), None))
        reports = dict[str, VifReport]()
        work.settle(partial(self._plan_all, work, common, tuple(staying), seen, reports), self._adapters())
        return work._replace(vifs=(*work.vifs, *strange, *(self._told(report, work) for report in reports.values())))

    def _plan_all(
        self, work: PassState, common: Common, staying: tuple[Vif, ...], seen: bool,
        reports: dict[str, VifReport], record: Record, so_far: Outcome,
    ) -> Planned:  # fmt: skip
        """Observe each vif and plan; an unreadable one does not affect the others."""
        present = downstream.present(work, self._nft) if seen else None
        found = _limits_in_force(counted=self._counted) if seen else None
        ops: list[Operation] = []
        errors: list[GuestnetError] = []
        for vif in staying:
            try:
                known = self._vifs.load(vif.name.text)
                if known is not None and known.device is not None:
                    vif = known
                facts = self._look(vif, known, common, staying, bare=False)._replace(present=present, found=found)
            except GuestnetError as error:
                errors.append(error)
                continue
            if facts.link is not None and not vif_order.is_its_own(vif, facts.link):
                facts = facts._replace(link=None)  # the next pass closes it
            report = vif_plan.report(facts, common)
            counts = found.counts.get(vif.name.text) if found is not None else None
            reports[vif.name.text] = report._replace(counts=counts)
            ops += vif_plan.set_up(report, known, so_far) if report.link is not None else ()
        return Planned(in_order(ops), record, errors=tuple(errors))

    @staticmethod
    def _told(report: VifReport, work: PassState) -> VifReport:
        """Return the report with the fake addresses that dom0 has written since."""
        now = late_mappings.shown(work.untrusted_entries, report.vif)
        changed = late_mappings.changed(report.vif, now, work.settings.gateway)
        return report._replace(now=now.mappings if changed else None)

    def _apply_downstream(self, work: PassState, present: frozenset[str]) -> tuple[Vif, ...]:
        """Update the set of protected addresses, and return all readable records."""
        unread: list[GuestnetError] = []
        records = self._vifs.all(unread)
        work.failed(*unread)
        downstream.apply(work, self._nft, records, present, complete=not unread)
        return records

    def close_replaced(self, work: PassState) -> None:
        """Close the vifs whose device is gone or replaced; a new device of the same name may send nothing (B117).

        Every pass calls this: it lists all interfaces with one request, and reads records only if some have changed.
        The record keeps the addresses and mappings, which hotplug needs at the end of the vif.
        """
        there = {name: index for index, name in devices.names().items()}
        for known in self.in_service():
            name, device = known.name.text, known.device
            vif = self._vifs.load(name) if device is not None and there.get(name) != device.ifindex else None
            if vif is not None:
                work.settle(partial(self._plan_closing, vif, self._common(work)), self._adapters())

    def _plan_closing(self, vif: Vif, common: Common, record: Record, so_far: Outcome) -> Planned:
        return Planned(in_order(vif_plan.close(vif, self._lock_out(vif, common, ends=False), so_far)), record)

    def refill(self, work: PassState) -> None:
        """Fill only the sets of the vifs, because rules have changed, perhaps some of ours."""
        present = downstream.present(work, self._nft)
        records = tuple(vif for vif in self._apply_downstream(work, present) if vif.device != GONE)
        work.settle(partial(self._plan_refill, work, self._common(work), records), self._adapters())

    def _plan_refill(
        self, work: PassState, common: Common, records: tuple[Vif, ...], record: Record, _: Outcome
    ) -> Planned:
        present, found = downstream.present(work, self._nft), _limits_in_force()
        ops = (op for vif in records for op in vif_plan.refill(vif, common, present, found))
        return Planned(in_order(ops), record)

    def follow(self, work: PassState) -> None:
        """Update only the set of protected addresses, if dom0 has changed the list. Raises NftError."""
        if not work.active or downstream.followed(work):
            return
        before = len(work.errors)
        self._apply_downstream(work, downstream.present(work, self._nft))
        for error in work.errors[before:]:
            if isinstance(error, nft.NftError):  # an unreadable record must not affect other vifs
                raise error


def _values(paths: Iterable[tuple[str, ...]]) -> dict[tuple[str, ...], str | None]:
    """Return the kernel's values of some settings."""
    return {path: procfs_sysctl.read(path) for path in paths}


def _name(ifindex: int) -> str:
    """Return the name of an interface, "" if it does not exist."""
    try:
        return socket.if_indextoname(ifindex)
    except OSError:
        return ""


def _limits_in_force(*, counted: bool = False) -> InForce:
    """Return the loaded limits of all vifs; `counted`: with their counters."""
    names = nft_kernel.table_names()
    there = tuple(family for family in tables.IP_FAMILIES if f"{family} {tables.LIMITS}" in names)
    listing, rules = nft.limits(there, counted=counted), nft_kernel.limit_rules()
    return InForce(limits.in_force(listing), rules, limits.counted(listing) if counted else {})
