# SPDX-License-Identifier: GPL-2.0-or-later
"""The firewall of single qubes in the passes of a provider. `core.firewall.enforcement` decides.

Only the resident agent enforces it, because a commit of dom0 is an event (`core.firewall.commits`); a command shows it.
In a pass it comes behind the redirection, whose servers its rules for DNS accept, and before forwarding opens.
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
from ..core.firewall.enforcement import Memory
from ..core.firewall.lines import FAMILIES
from ..core.firewall.listing import Listed
from ..core.firewall.name_cache import Share
from ..core.firewall.name_settings import NameSettings
from ..core.firewall.operations import RemoveQubeRules, SetDnsServers
from ..core.operations import Outcome, Planned
from ..core.owned_state import Record
from ..core.values import IPV4, IPV6, IPAddress
from ..dispatch import of_firewall
from ..errors import GuestnetError, as_error
from ..system import conntrack, services
from ..system.nft import kernel as nft_kernel
from ..system.nft import program as nft
from ..system.qubesdb import store as qubesdb
from ..system.systemd import INFO, WARNING
from .pass_state import PassState
from .ruleset_generation import Transactions

TYPE_CHECKING = False  # of `typing`, which costs 5 ms and 1 MB (see system/deferred_imports)
if TYPE_CHECKING:
    from typing import Protocol

    from ..core.firewall.binding import Bound
    from ..core.firewall.connections import Connection
    from ..core.firewall.consequences import Consequence
    from ..core.firewall.operations import Operation
    from ..core.firewall.rules import Problem
    from ..core.provider.vif import Device
    from ..system.netlink.rtnl import Kernel
    from ..system.paths import Paths
    from .firewall_names import FirewallNames
    from .ruleset_generation import Mark

    class Source(Protocol):
        """Where the entries come from, together with what watches tell of them."""

        @property
        def pending(self) -> bool:
            """Whether watches have told of anything since `read`, or were set anew since."""

        def read(self) -> tuple[Mapping[str, bytes], tuple[str, ...], tuple[str, ...], bool]:
            """Read.

            Returns:
                The entries, the paths told of before and while they were read, and whether the watches are new.

            Raises:
                StoreError: QubesDB does not answer.
            """


PART = "firewall of single qubes"
_USER = "/default-user"
_LOOPBACK = 1  # the interface index of lo, to which every address of this qube is routed

Devices = Mapping[IPAddress, "Device | None"]


class Firewall:
    """The firewall of single qubes.

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
        self._memory, self._settings = Memory(), NameSettings()
        self._asked: tuple[object, Share] = (None, Share(frozenset(), {}))  # for which lists
        self._listed: tuple[Mark, Mapping[int, Listed]] | None = None  # since when nothing else was loaded
        self._detached: set[IPAddress] = set()
        self._found: set[IPAddress] = set()
        self._noticed: dict[IPAddress, float] = {}  # when a notification was shown
        self._problems: tuple[Problem, ...] = ()  # of the names of folders, as told

    @property
    def settled(self) -> bool:
        """Whether what is loaded was found to be as wanted, and nothing was in doubt since."""
        return self._memory.wanted is not None

    def forget(self) -> None:
        """The next pass takes nothing for granted, and tries again what nft refused."""
        self._memory = self._memory._replace(wanted=None, refused={})
        self._listed = None
        if self.names is not None:
            self.names.ask_anew()

    def close(self) -> None:
        """Another program has it from now on."""
        if self.names is not None:
            self.names.close()

    def detached(self, addresses: Iterable[IPAddress]) -> None:
        """A vif with these addresses went out of service; it may be there again by the next pass."""
        self._detached.update(addresses)

    def bring(self, work: PassState, devices: Devices, uplinks: frozenset[int]) -> PassState:
        """Have the lists in force that dom0 has committed.

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
        self._try_again()
        memory, dns = self._memory, self._servers(work)
        names = self.names.known if self.names is not None else {}
        blocks = self._settings.blocks_qube
        wanted = enforcement.want(memory, names, dns if dns is not None else {}, block_unresolved=blocks)
        work = work._replace(wanted=wanted)
        if not (memory.wanted == wanted and not memory.owed and self._nft.settled(PART)):
            self._settle(work, wanted)
        return work.attempt(self._judged)

    def _judged(self, work: PassState) -> PassState:
        """Find out whether the qubes may be forwarded, and when to look again."""
        held = work.provided.unfiltered
        unfiltered = held or (work.run.applies and not nft_kernel.filtering())
        if work.run.applies and not unfiltered and not work.provided.filtered:
            work.save(work.provided._replace(filtered=True))
        return work._replace(unfiltered=unfiltered, look_again=self._memory.outcome.again)

    def _advance(self, work: PassState, devices: Devices) -> None:
        source = self._source
        stirred = self._detached or self._found & set(devices)
        if source is None or not (source.pending or stirred or self._memory.is_due(devices)):
            return
        raw, seen, meanwhile, starts = source.read()
        stored, detached, boots = entries.by_address(raw), frozenset(self._detached), not work.provided.filtered
        for problem in stored.problems:
            if problem not in self._problems:
                work.run.tell(WARNING, f"firewall: {problem}")
        self._problems = stored.problems
        found = frozenset(self._found & set(devices))
        facts = Facts(time.monotonic(), stored, seen, meanwhile, frozenset(), detached, starts, boots, found)
        self._memory = enforcement.advanced(self._memory, facts, devices)
        self._detached.clear()
        self._found -= found

    def _configure(self, work: PassState) -> None:
        """Read what the owner chose; while that is not valid, what was in force stays."""
        try:
            self._settings = services.configured_names(self._paths.config)
        except GuestnetError as error:
            work.failed(error)

    def _follow_names(self, work: PassState, uplinks: frozenset[int]) -> None:
        """Have the names of all lists asked for, in this very pass; no answer is waited for."""
        outcome = self._memory.outcome
        if self._asked[0] is not outcome:
            self._asked = (outcome, name_cache.share(enforcement.questions(outcome.lists)))
        share = self._asked[1]
        if self.names is None:
            if not share.questions:
                return
            from .firewall_names import FirewallNames  # of a provider with a rule by name

            self.names = FirewallNames(self._paths)
        if outcome.kept:  # rules that a former agent loaded: their names are known by the next list at the latest
            share = share._replace(questions=share.questions | self.names.questions)
        servers = work.names.servers if work.names is not None else None
        self.names.follow(share, servers, uplinks, self._settings.least_ttl)

    def _try_again(self) -> None:
        """Try a list again that nft refused, where the table it was for has gone meanwhile."""
        if self._memory.refused and not self._nft.settled(PART) and plan.is_missing(self.look()[0]):
            self._memory = self._memory._replace(refused={})

    @staticmethod
    def _servers(work: PassState) -> Mapping[int, frozenset[IPAddress]] | None:
        """The name servers by family; None where they are not known, and stay as they are."""
        if work.names is None:
            return None
        addresses = (each.address for each in work.names.servers)
        return {IPV4: frozenset(each for each in addresses if isinstance(each, IPv4Address)), IPV6: frozenset()}

    def _settle(self, work: PassState, wanted: plan.Wanted) -> None:
        turn = _Turn(self, self._memory, wanted)
        outcome = work.settle(turn.plan, of_firewall(self._nft, partial(qubesdb.connect, writable=True)))
        self._memory = enforcement.settled(self._memory, wanted, turn.rules, outcome)
        # Of what was written alone: while QubesDB refuses it, each pass plans it again.
        written = (export for op in outcome.done if isinstance(op, ExportNames) for export in op.exports)
        exported = (words for export in written for words in export.lines)
        counted = (address for op in outcome.done if isinstance(op, CountHandled) for address in op.addresses)
        bound = [wanted.lists[address] for address in counted if address in wanted.lists]
        told = [words for each in bound for words in (*map(str, each.ruleset.problems), *each.warnings)]
        for words in (*exported, *(f"firewall: {words}" for words in told)):
            work.run.tell(WARNING, words)
        if told:
            self._show(work, bound)

    def _show(self, work: PassState, handled: Iterable[Bound]) -> None:
        """Show on the desktop which lists have an error. That it cannot be shown is told, and no more (B87)."""
        from ..core.firewall import notice  # few providers have a bad list
        from ..system import desktop

        now = time.monotonic()
        due = notice.due(self._noticed, handled, now)
        self._noticed |= {bound.ruleset.address: now for bound in due}
        if not due:
            return
        try:
            store = qubesdb.connect()
            try:
                user = notice.user(store.read(_USER) or b"")
            finally:
                store.close()
            for bound in due if user else ():
                desktop.notify(user, *notice.text(bound))
        except Exception as error:
            work.run.tell(INFO, f"firewall: no notification: {as_error(error)}")

    def look(self) -> tuple[Mapping[int, Listed], int]:
        """Return what is loaded, and at which generation. Raises GuestnetError.

        It is listed again only where another program has loaded something: our own transactions are known.
        """
        mark = self._nft.mark()
        if self._listed is None or not self._nft.undisturbed(self._listed[0]):
            names = nft_kernel.table_names()
            there = {version: family.word for version, family in FAMILIES.items() if family.table in names}
            texts = nft.firewall(there.values())
            try:
                found = {version: listing.parse(texts[word]) for version, word in there.items() if texts[word]}
            except ValueError as error:
                raise nft.NftError(f"nft: unexpected output: {error}") from None
            self._listed = (mark, found)
        return self._listed[1], mark[0]

    def loaded(self, listed: Mapping[int, Listed], ops: tuple[Operation, ...], outcome: Outcome) -> None:
        """Operations of ours were carried out; `look` tells what is there now, without asking nft.

        Args:
            listed: what was there before.
            ops: of one plan.
            outcome: what came of them; where one failed, nft is asked again.
        """
        done = all(op in outcome.done for op in ops)
        self._listed = (self._listed[0], prediction.after(listed, ops)) if done and self._listed is not None else None

    def has_servers(self) -> bool:
        """Whether there is a set of the servers that rules for DNS accept; False also where that cannot be seen."""
        try:
            return self.look()[0].get(IPV4, Listed()).dns is not None
        except GuestnetError:
            return False

    def allowed(self, servers: tuple[IPAddress, ...]) -> None:
        """The redirection was loaded together with the servers that rules for DNS accept.

        Args:
            servers: of IPv4.
        """
        if self._listed is not None:
            self._listed = (self._listed[0], prediction.after(self._listed[1], (SetDnsServers(IPV4, servers),)))

    def verified(self, generation: int) -> None:
        """What is loaded was found to be as wanted."""
        self._nft.found_right(PART, generation)

    @staticmethod
    def begun(addresses: Iterable[IPAddress]) -> tuple[tuple[Connection, bytes], ...]:
        """Return the connections of these addresses. Raises KernelError."""
        return conntrack.begun(addresses)

    def is_own(self, address: IPAddress) -> bool:
        """Return whether an address is one of this qube. Raises KernelError."""
        return self._kernel.way(address) == _LOOPBACK

    def found(self, addresses: Iterable[IPAddress]) -> None:
        """A vif with these addresses is set up that was there before; dom0 has committed their rules."""
        self._found.update(addresses)

    # --- one vif -------------------------------------------------------------------------------------------------

    def shut(self, work: PassState, addresses: Iterable[IPAddress]) -> None:
        """Before a vif comes up whose addresses had another one: what that one was allowed is not in force any more.

        Args:
            work: of the vif.
            addresses: of it.
        """
        if not self._memory.began:
            return
        left = frozenset(addresses) & {*self._memory.outcome.lists, *self._memory.outcome.kept}
        if not left:
            return
        self.detached(left)
        table = of_firewall(self._nft, partial(qubesdb.connect, writable=True))

        def shutting(record: Record, so_far: Outcome) -> Planned:
            listed, _ = self.look()
            there = {address for each in listed.values() for address in each.qubes}
            return Planned(tuple(RemoveQubeRules(each) for each in sorted(left & there, key=str)), record)

        work.settle(shutting, table)
        self._listed = None
        self._memory = self._memory._replace(wanted=None)

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
            listed = self.look()[0]
            work = work._replace(firewall_changed=condition.changed(listed))
        except GuestnetError as error:
            work.failed(*(() if error.needs_root else (error,)))
        cache = name_cache.Cache()
        try:
            services.configured_names(self._paths.config)
            if listed is not None:  # by root, whose file the other one is
                from .firewall_names import read  # not in the agent

                cache = read(self._paths.run)
        except GuestnetError as error:
            work.failed(error)
        conditions = condition.conditions(addresses, stored, listed, cache)
        return work._replace(conditions=conditions, scripts=user_scripts.read(self._paths.run))


class _Turn:
    """One pass from what is loaded to what is wanted.

    Attributes:
        rules: that are in force, by which connections were judged.
    """

    def __init__(self, firewall: Firewall, memory: Memory, wanted: plan.Wanted) -> None:
        self._firewall, self._memory, self._wanted = firewall, memory, wanted
        self.rules = memory.judged
        self._followed = False
        self._planned: tuple[Mapping[int, Listed], tuple[Operation, ...]] | None = None

    def plan(self, record: Record, so_far: Outcome) -> Planned:
        """Observe and plan: first what is loaded; and once it is in force, what follows from that."""
        if self._planned is not None:
            self._firewall.loaded(*self._planned, so_far)
        listed, generation = self._firewall.look()
        ops = plan.plan(listed, self._wanted)
        self._planned = (listed, ops) if ops else None
        if any(op not in so_far.failed for op in ops):
            return Planned(ops, record)
        if not ops:
            self._firewall.verified(generation)
        if self._followed:
            return Planned(ops, record)
        self._followed = True
        return Planned((*ops, *self._consequences(so_far)), record)

    def _consequences(self, so_far: Outcome) -> tuple[Consequence, ...]:
        lists = enforcement.in_force(self._memory, self._wanted, so_far)
        dns = frozenset().union(*self._wanted.dns.values())
        incomplete = self._memory.outcome.incomplete
        self.rules = Rules({each: bound for each, bound in lists.items() if each not in incomplete}, dns)
        judging = enforcement.to_judge(self._memory, lists, dns)
        found = self._firewall.begun(judging) if judging else ()
        cut = enforcement.ending(self._memory, self.rules, found, self._firewall.is_own)
        written = enforcement.written(self._memory, self._wanted, enforcement.unloaded(so_far))
        return (*cut, *written)
