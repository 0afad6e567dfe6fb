# SPDX-License-Identifier: GPL-2.0-or-later
"""The firewall of client qubes in the passes of a provider. `core.firewall.enforcement` decides.

Only the resident agent enforces it, because dom0's commits are events (`core.firewall.commits`); a command only prints
it. In a pass it comes after the redirection, whose servers its rules for DNS accept, and before forwarding opens.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from functools import partial
from ipaddress import IPv4Address

from ..core.firewall import condition, enforcement, entries, listing, name_cache, plan, prediction
from ..core.firewall.commits import Facts
from ..core.firewall.connections import Rules
from ..core.firewall.consequences import CountHandled, ExportNames
from ..core.firewall.lines import FAMILIES
from ..core.firewall.listing import Listed
from ..core.firewall.operations import RemoveQubeRules, SetDnsServers
from ..core.firewall.pass_memory import FirewallMemory
from ..core.operations import Outcome, Planned
from ..core.owned_state import Record
from ..core.values import IPV4, IPV6, IPAddress
from ..dispatch import of_firewall
from ..errors import GuestnetError
from ..system import conntrack, guestnet_toml
from ..system.nft import kernel as nft_kernel
from ..system.nft import program as nft
from ..system.qubesdb import store as qubesdb
from ..system.systemd import WARNING
from . import judged_lists
from .pass_state import PassState
from .ruleset_generation import Transactions

TYPE_CHECKING = False  # of `typing`, which costs 5 ms and 1 MB (see system/deferred_imports)
if TYPE_CHECKING:
    from typing import Protocol

    from ..core.firewall.connections import Connection
    from ..core.firewall.consequences import Consequence
    from ..core.firewall.enforcement import Memory
    from ..core.firewall.operations import Operation
    from ..core.nft.mark import Mark
    from ..core.provider.vif import Device
    from ..system.netlink.rtnl import Kernel
    from ..system.paths import Paths
    from .firewall_names import FirewallNames

    class Source(Protocol):
        """The source of the entries and of the watches' events about them."""

        @property
        def pending(self) -> bool:
            """Return whether watches have reported changes since `read`, or were set again since."""

        def read(self) -> tuple[Mapping[str, bytes], tuple[str, ...], tuple[str, ...], bool]:
            """Read.

            Returns:
                The entries, the paths told of before and while they were read, and whether the watches are new.

            Raises:
                StoreError: QubesDB does not answer.
            """


PART = "firewall of single qubes"
_LOOPBACK = 1  # the interface index of lo, to which every address of this qube is routed

Devices = Mapping[IPAddress, "Device | None"]


class Firewall:
    """The firewall of single qubes. It keeps the names, which have sockets; all else is `FirewallMemory`.

    Args:
        paths: locations of the qube's files.
        kernel: the adapter, which knows what addresses this qube has.
        transactions: of this process.
        source: where the entries come from; None in a command.

    Attributes:
        names: that rules have, from the first such rule on.
    """

    def __init__(self, paths: Paths, kernel: Kernel, transactions: Transactions, source: Source | None) -> None:
        self._paths, self._kernel, self._nft, self._source = paths, kernel, transactions, source
        self.names: FirewallNames | None = None

    def ask_anew(self) -> None:
        """Make the next pass look up all names."""
        if self.names is not None:
            self.names.ask_anew()

    def close(self) -> None:
        """Stop, because another program enforces the firewall from now on."""
        if self.names is not None:
            self.names.close()

    def apply(self, work: PassState, devices: Devices, uplinks: frozenset[int]) -> PassState:
        """Load the lists that dom0 has committed.

        Args:
            work: the pass.
            devices: address of each qube → its interface.
            uplinks: interface indexes, of those on which name servers are asked.

        Returns:
            The state with `wanted`; with `unfiltered`, nothing may be forwarded; and with `look_again`.
        """
        self._advance(work, devices)
        self._configure(work)
        self._follow_names(work, uplinks)
        self._try_again(work)
        memory, dns = memory_of(work), self._servers(work)
        names = self.names.known if self.names is not None else {}
        blocks = memory.settings.blocks_qube
        wanted = enforcement.want(memory.lists, names, dns if dns is not None else {}, block_unresolved=blocks)
        work = work._replace(wanted=wanted)
        if not (memory.lists.wanted == wanted and not memory.lists.owed and work.is_verified(PART, self._nft)):
            self._settle(work, wanted)
        return work.attempt(self._judged)

    def _judged(self, work: PassState) -> PassState:
        """Determine whether client qubes may be forwarded, and when to read again."""
        held = work.provided.unfiltered
        unfiltered = held or (work.run.applies and not nft_kernel.filtering())
        if work.run.applies and not unfiltered and not work.provided.filtered:
            work.save(work.provided._replace(filtered=True))
        return work._replace(unfiltered=unfiltered, look_again=memory_of(work).lists.outcome.again)

    def _advance(self, work: PassState, devices: Devices) -> None:
        source, memory = self._source, memory_of(work)
        if source is None or not (source.pending or memory.is_due(devices)):
            return
        raw, seen, meanwhile, starts = source.read()
        stored, boots = entries.by_address(raw), not work.provided.filtered
        for problem in stored.problems:
            if problem not in memory.problems:
                work.run.tell(WARNING, f"firewall: {problem}")
        found = memory.found & set(devices)
        facts = Facts(time.monotonic(), stored, seen, meanwhile, frozenset(), memory.detached, starts, boots, found)
        lists = enforcement.advanced(memory.lists, facts, devices)
        remember(work, memory.advanced(lists, found)._replace(problems=stored.problems))

    def _configure(self, work: PassState) -> None:
        """Read the owner's settings; while they are invalid, the former ones stay in force."""
        try:
            settings = guestnet_toml.configured_names(self._paths.config)
        except GuestnetError as error:
            work.failed(error)
            return
        remember(work, memory_of(work)._replace(settings=settings))

    def _follow_names(self, work: PassState, uplinks: frozenset[int]) -> None:
        """Start the look-ups of all names in this pass, without waiting for answers."""
        memory = memory_of(work)
        outcome, share = memory.lists.outcome, memory.share
        if memory.shared_of is not outcome:
            share = name_cache.share(enforcement.questions(outcome.lists))
            remember(work, memory._replace(share=share, shared_of=outcome))
        if self.names is None:
            if not share.questions:
                return
            from .firewall_names import FirewallNames  # of a provider with a rule by name

            self.names = FirewallNames(self._paths)
        if outcome.kept:  # names of rules that a former agent loaded are known after the next list at the latest
            share = share._replace(questions=share.questions | self.names.questions)
        servers = work.names.servers if work.names is not None else None
        self.names.follow(share, servers, uplinks, memory.settings.least_ttl)

    def _try_again(self, work: PassState) -> None:
        """Try a list that nft refused again if its table has been removed meanwhile."""
        refused = memory_of(work).lists.refused
        if refused and not work.is_verified(PART, self._nft) and plan.is_missing(self.look(work)[0]):
            _remember_lists(work, memory_of(work).lists._replace(refused={}))

    @staticmethod
    def _servers(work: PassState) -> Mapping[int, frozenset[IPAddress]] | None:
        """Return the name servers by family; None if unknown, so that they stay unchanged."""
        if work.names is None:
            return None
        addresses = (each.address for each in work.names.servers)
        return {IPV4: frozenset(each for each in addresses if isinstance(each, IPv4Address)), IPV6: frozenset()}

    def _settle(self, work: PassState, wanted: plan.Wanted) -> None:
        if self._source is not None:
            work.attempt(partial(self._recall, wanted))
        planner = _FirewallPlanner(self, work, wanted)
        outcome = work.settle(planner.plan, of_firewall(self._nft, partial(qubesdb.connect, writable=True)))
        lists = enforcement.settled(memory_of(work).lists, wanted, planner.rules, outcome)
        keeps = self._source is not None and work.run.applies
        _remember_lists(work, lists._replace(wanted=None) if keeps else lists)
        if keeps:  # until the file is written, each pass settles again
            work.attempt(lambda work: _remember_lists(work, judged_lists.kept(self._paths.run, lists)))
        # Only for written entries: while QubesDB refuses them, each pass plans them again.
        written = (export for op in outcome.done if isinstance(op, ExportNames) for export in op.exports)
        exported = (words for export in written for words in export.lines)
        counted = (address for op in outcome.done if isinstance(op, CountHandled) for address in op.addresses)
        bound = [wanted.lists[address] for address in counted if address in wanted.lists]
        told = [words for each in bound for words in (*map(str, each.ruleset.problems), *each.warnings)]
        for words in (*exported, *(f"firewall: {words}" for words in told)):
            work.run.tell(WARNING, words)
        if told:
            from .firewall_notice import show  # few providers have a bad list

            remember(work, show(memory_of(work), bound, work.run.tell))

    def _recall(self, wanted: plan.Wanted, work: PassState) -> None:
        """Read the lists by which a former agent judged connections, before this one loads any."""
        look, lists, applies = partial(self.look, work), memory_of(work).lists, work.run.applies
        _remember_lists(work, judged_lists.recalled(self._paths.run, lists, wanted, look, applies=applies))

    def look(self, work: PassState) -> tuple[Mapping[int, Listed], Mark]:
        """Return the loaded rules, and since when they are valid. Raises GuestnetError.

        They are listed again only after a transaction of another program, because our own transactions are known.
        """
        mark, listed = self._nft.mark(), memory_of(work).listed
        if listed is None or not self._nft.undisturbed(listed[0]):
            names = nft_kernel.table_names()
            there = {version: family.word for version, family in FAMILIES.items() if family.table in names}
            texts = nft.firewall(there.values())
            try:
                found = {version: listing.parse(texts[word]) for version, word in there.items() if texts[word]}
            except ValueError as error:
                raise nft.NftError(f"nft: unexpected output: {error}") from None
            listed = (mark, found)
            remember(work, memory_of(work)._replace(listed=listed))
        return listed[1], mark

    @staticmethod
    def loaded(work: PassState, there: Mapping[int, Listed], ops: tuple[Operation, ...], outcome: Outcome) -> None:
        """Note that our operations were carried out, so that `look` returns the result without running nft.

        Args:
            work: the pass.
            there: the rules before them.
            ops: operations of one plan.
            outcome: their result; if one failed, the rules are listed again.
        """
        memory, done = memory_of(work), all(op in outcome.done for op in ops)
        known = memory.listed if done else None
        remember(work, memory._replace(listed=(known[0], prediction.after(there, ops)) if known is not None else None))

    def has_servers(self, work: PassState) -> bool:
        """Return whether the set of DNS servers exists; False if that is unreadable."""
        try:
            return self.look(work)[0].get(IPV4, Listed()).dns is not None
        except GuestnetError:
            return False

    def allowed(self, work: PassState, servers: tuple[IPAddress, ...]) -> None:
        """Note that the redirection was loaded together with the servers that rules for DNS accept.

        Args:
            work: the pass.
            servers: of IPv4.
        """
        memory = memory_of(work)
        if memory.listed is not None:
            listed = (memory.listed[0], prediction.after(memory.listed[1], (SetDnsServers(IPV4, servers),)))
            remember(work, memory._replace(listed=listed))

    @staticmethod
    def begun(addresses: Iterable[IPAddress]) -> tuple[tuple[Connection, bytes], ...]:
        """Return the connections of these addresses. Raises KernelError."""
        return conntrack.begun(addresses)

    def is_own(self, address: IPAddress) -> bool:
        """Return whether an address is one of this qube. Raises KernelError."""
        return self._kernel.way(address) == _LOOPBACK

    # --- one vif -------------------------------------------------------------------------------------------------

    @staticmethod
    def detached(work: PassState, addresses: Iterable[IPAddress]) -> None:
        """Note that a vif with these addresses was taken out of service; it may be back by the next pass."""
        remember(work, memory_of(work).with_detached(addresses))

    @staticmethod
    def found(work: PassState, addresses: Iterable[IPAddress]) -> None:
        """Note that an existing vif with these addresses is configured; dom0 has already committed its rules."""
        remember(work, memory_of(work).with_found(addresses))

    def shut(self, work: PassState, addresses: Iterable[IPAddress]) -> None:
        """Remove the rules of a former vif before a new vif with the same addresses comes up.

        Args:
            work: of the vif.
            addresses: of it.
        """
        lists = memory_of(work).lists
        if not lists.began:
            return
        left = frozenset(addresses) & {*lists.outcome.lists, *lists.outcome.kept}
        if not left:
            return
        self.detached(work, left)
        table = of_firewall(self._nft, partial(qubesdb.connect, writable=True))

        def shutting(record: Record, so_far: Outcome) -> Planned:
            if so_far.done:  # list again: a known listing still has what was removed, which nft refuses to remove twice
                remember(work, memory_of(work)._replace(listed=None))
            listed, _ = self.look(work)
            there = {address for each in listed.values() for address in each.qubes}
            return Planned(tuple(RemoveQubeRules(each) for each in sorted(left & there, key=str)), record)

        work.settle(shutting, table)
        remember(work, memory_of(work)._replace(listed=None, lists=lists._replace(wanted=None)))

    # --- for people ----------------------------------------------------------------------------------------------

    def tell(self, work: PassState, addresses: Iterable[IPAddress]) -> PassState:
        """Return the state with what `status` and `check` print."""
        from ..system import user_scripts  # not in the agent

        store = qubesdb.connect()
        try:
            stored = entries.by_address(qubesdb.read_all(store, (entries.FOLDER,)))
        finally:
            store.close()
        listed: Mapping[int, Listed] | None = None
        try:
            listed = self.look(work)[0]
            work = work._replace(firewall_changed=condition.changed(listed))
        except GuestnetError as error:
            work.failed(*(() if error.needs_root else (error,)))
        cache = name_cache.Cache()
        try:
            guestnet_toml.configured_names(self._paths.config)
            if listed is not None:  # by root, whose file the other one is
                from .firewall_names import read  # not in the agent

                cache = read(self._paths.run)
        except GuestnetError as error:
            work.failed(error)
        conditions = condition.conditions(addresses, stored, listed, cache)
        return work._replace(conditions=conditions, scripts=user_scripts.read(self._paths.run))


class _FirewallPlanner:
    """One pass from the loaded to the desired rules.

    Attributes:
        rules: rules by which connections were judged.
    """

    def __init__(self, firewall: Firewall, work: PassState, wanted: plan.Wanted) -> None:
        self._firewall, self._work, self._wanted = firewall, work, wanted
        self._lists = memory_of(work).lists
        # Until connections are judged anew: by which lists they are whatever fails before.
        self.rules = enforcement.undoubted(self._lists.judged, Rules(wanted.lists, self._lists.judged.dns))
        self._followed = False
        self._planned: tuple[Mapping[int, Listed], tuple[Operation, ...]] | None = None

    def plan(self, record: Record, so_far: Outcome) -> Planned:
        """Observe and plan: first the rules, and once they are in force, their consequences."""
        if self._planned is not None:
            self._firewall.loaded(self._work, *self._planned, so_far)
        listed, mark = self._firewall.look(self._work)
        ops = plan.plan(listed, self._wanted)
        self._planned = (listed, ops) if ops else None
        if any(op not in so_far.failed for op in ops):
            return Planned(ops, record)
        if not ops:
            self._work.mark_verified(PART, mark)
        if self._followed:
            return Planned(ops, record)
        self._followed = True
        return Planned((*ops, *self._consequences(so_far, listed)), record)

    def _consequences(self, so_far: Outcome, listed: Mapping[int, Listed]) -> tuple[Consequence, ...]:
        lists = enforcement.in_force(self._lists, self._wanted, so_far)
        dns = enforcement.servers(self._wanted, listed)
        incomplete = self._lists.outcome.incomplete
        rules = Rules({each: bound for each, bound in lists.items() if each not in incomplete}, dns)
        self.rules = enforcement.undoubted(self._lists.judged, rules)
        judging = enforcement.to_judge(self._lists, lists, dns)
        found = self._firewall.begun(judging) if judging else ()
        cut = enforcement.ending(self._lists, rules, found, self._firewall.is_own)
        self.rules = rules
        return (*cut, *enforcement.written(self._lists, self._wanted, enforcement.unloaded(so_far)))


def memory_of(work: PassState) -> FirewallMemory:
    """Return the pass's memory of the firewall."""
    return work.memory.firewall or FirewallMemory()


def remember(work: PassState, memory: FirewallMemory) -> None:
    """Store the memory for the next pass."""
    work.remember(work.memory._replace(firewall=memory))


def _remember_lists(work: PassState, lists: Memory) -> None:
    remember(work, memory_of(work)._replace(lists=lists))
