# SPDX-License-Identifier: GPL-2.0-or-later
"""The state of the client qubes' firewall between passes, and its desired rules. Functions between values.

A pass reads, decides which lists are in force (`commits`), loads the difference (`plan`), deletes the connections that
the change refuses, and then writes to QubesDB. A failed step stays pending in `Memory`, so the next pass repeats it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping

from ..namedtuple import NamedTuple
from ..values import IPAddress
from . import commits
from .binding import Bound, Names, bind
from .commits import Facts, Outcome, ordered
from .connections import Connection, Rules, is_same_list, to_end
from .consequences import CountHandled, EndConnections, ExportNames, handled
from .name_export import export, folder_of
from .name_messages import Question
from .operations import SetQubeRules
from .plan import Wanted

TYPE_CHECKING = False  # of `typing`, which costs 5 ms and 1 MB (see system/deferred_imports)
if TYPE_CHECKING:
    from ..operations import Outcome as Came
    from ..provider.vif import Device
    from .listing import Listed
    from .rules import Ruleset


class Memory(NamedTuple):
    """The state between passes.

    Args:
        outcome: the lists in force.
        devices: address → its interface.
        refused: address → a list that nft refused; the address is refused everything until it has another list.
        judged: the lists by which connections were last judged.
        owed: addresses whose handled commit is not counted yet.
        exported: address → the list whose names were last written below /dns/.
        unexported: addresses whose names could not be written; QubesDB may have lost the former entries.
        wanted: the rules last found in force; None if unknown.
        began: a pass was made.
    """

    outcome: Outcome = Outcome()
    devices: Mapping[IPAddress, Device | None] = {}
    refused: Mapping[IPAddress, Bound] = {}
    judged: Rules = Rules()
    owed: frozenset[IPAddress] = frozenset()
    exported: Mapping[IPAddress, Bound] = {}
    unexported: frozenset[IPAddress] = frozenset()
    wanted: Wanted | None = None
    began: bool = False

    def is_due(self, devices: Mapping[IPAddress, Device | None]) -> bool:
        """Return whether entries must be read again although no watch reported a change."""
        return not self.began or self.outcome.again is not None or devices != self.devices


def advanced(memory: Memory, facts: Facts, devices: Mapping[IPAddress, Device | None]) -> Memory:
    """Return the memory updated with the present entries.

    Args:
        memory: memory of the last pass.
        facts: facts of this pass; `devices` determines the attached and detached addresses.
        devices: address → its interface.
    """
    replaced = {each for each, device in devices.items() if memory.devices.get(each, device) != device}
    facts = facts._replace(
        attached=frozenset(devices),
        detached=facts.detached | (replaced - facts.found),
        starts=facts.starts or not memory.began,
        boots=facts.boots and not memory.began,
    )
    outcome = commits.advance(memory.outcome.state, facts)
    owed = (memory.owed | outcome.handled) & facts.attached
    # A new commit of the same list makes nft try it again.
    refused = {each: bound for each, bound in memory.refused.items() if each not in outcome.handled}
    return memory._replace(outcome=outcome, devices=dict(devices), owed=owed, refused=refused, began=True)


def questions(lists: Mapping[IPAddress, Ruleset]) -> Mapping[str, tuple[Question, ...]]:
    """Return the questions to name servers, by qube; a list without names has none.

    Args:
        lists: lists in force.
    """
    return {
        str(address): tuple(Question(address.version, host) for host in hosts)
        for address, ruleset in lists.items()
        if (hosts := ruleset.hosts)
    }


def want(
    memory: Memory, names: Names, dns: Mapping[int, frozenset[IPAddress]], *, block_unresolved: bool = False
) -> Wanted:
    """Return the desired rules.

    Args:
        memory: memory of this pass.
        names: answers of name servers.
        dns: the name servers by family; a missing family is left unchanged.
        block_unresolved: refuse everything from a qube while an address of one of its names is unknown.
    """
    lists = {}
    for address, ruleset in memory.outcome.lists.items():
        former = memory.judged.lists.get(address)
        bound = bind(ruleset, names, block_unresolved=block_unresolved, before=former)
        if memory.refused.get(address) == bound:
            bound = refusal(bound)
        lists[address] = bound
    return Wanted(lists, dns, memory.outcome.kept)


def refusal(bound: Bound) -> Bound:
    """Return a list that refuses everything and replaces one that nft refused."""
    instead = SetQubeRules(bound).instead
    return bound if instead is None else instead.bound


def in_force(memory: Memory, wanted: Wanted, came: Came) -> Mapping[IPAddress, Bound]:
    """Return the lists that are loaded after all operations of a pass.

    Args:
        memory: memory of this pass.
        wanted: the desired rules.
        came: result of the operations.
    """
    lists = dict(wanted.lists)
    for op in came.failed:
        if not isinstance(op, SetQubeRules):
            continue
        address, instead = op.bound.ruleset.address, op.instead
        if instead is not None and instead in came.done:
            lists[address] = instead.bound
        else:
            lists.pop(address, None)
    return lists


def servers(wanted: Wanted, listed: Mapping[int, Listed]) -> frozenset[IPAddress]:
    """Return the name servers that rules accept, of both families.

    Args:
        wanted: the desired rules; a family without name servers there keeps the loaded ones.
        listed: the loaded rules by family.
    """
    loaded = {version: each.dns or frozenset() for version, each in listed.items()}
    return frozenset().union(*{**loaded, **wanted.dns}.values())


def unloaded(came: Came) -> frozenset[IPAddress]:
    """Return the addresses whose rules were neither loaded nor refused by nft; another pass handles them."""
    failed = [op for op in came.failed if isinstance(op, SetQubeRules)]
    tried = {op.instead for op in failed} & {*came.done, *came.failed}
    return frozenset(op.bound.ruleset.address for op in failed if op.instead is not None and op.instead not in tried)


def to_judge(memory: Memory, lists: Mapping[IPAddress, Bound], dns: Collection[IPAddress]) -> frozenset[IPAddress]:
    """Return the addresses that may have connections which former rules accepted and present rules refuse."""
    same = frozenset(memory.judged.dns) == frozenset(dns)
    judged = memory.judged.lists
    return frozenset(
        each
        for each, bound in lists.items()
        if each not in memory.outcome.incomplete and not (same and is_same_list(judged.get(each), bound))
    )


def undoubted(judged: Rules, rules: Rules) -> Rules:
    """Return the lists by which connections are still judged while those of new rules are not yet.

    The connections of another list may have begun under either, so even the former list judges them anew.

    Args:
        judged: lists by which connections were last judged.
        rules: rules in force.
    """
    if frozenset(judged.dns) != frozenset(rules.dns):
        return Rules({}, judged.dns)
    return judged._replace(
        lists={each: bound for each, bound in judged.lists.items() if is_same_list(bound, rules.lists.get(each))}
    )


def ending(
    memory: Memory,
    rules: Rules,
    found: Iterable[tuple[Connection, bytes]],
    is_own: Callable[[IPAddress], bool],
) -> tuple[EndConnections, ...]:
    """Return the operation that deletes connections, if there are any.

    Args:
        memory: memory of this pass.
        rules: rules in force.
        found: connections, with their conntrack entries.
        is_own: whether an address is one of this provider, whose connections are not forwarded.
    """
    entries = {connection.number: (connection, entry) for connection, entry in found}
    numbers = to_end((connection for connection, _ in entries.values()), memory.judged, rules)
    own: dict[IPAddress, bool] = {}
    cut = []
    for number in numbers:
        connection, entry = entries[number]
        if connection.server not in own:
            own[connection.server] = is_own(connection.server)
        if not own[connection.server]:
            cut.append(entry)
    return (EndConnections(tuple(cut)),) if cut else ()


def written(memory: Memory, wanted: Wanted, later: frozenset[IPAddress]) -> tuple[ExportNames | CountHandled, ...]:
    """Return the operations that write to QubesDB, for each handled commit and for names with new addresses.

    Args:
        memory: memory of this pass.
        wanted: rules in force.
        later: addresses whose rules are not in force yet.
    """
    counted = ordered(memory.owed - later)
    refreshed = {
        address for address, bound in wanted.lists.items() if _names_differ(memory.exported.get(address), bound)
    }
    exports = []
    for address in ordered(((refreshed | memory.unexported) - later).union(counted)):
        bound = wanted.lists.get(address)
        exports.append(export(address, {} if bound is None else _spelled(bound)))
    return (*((ExportNames(tuple(exports)),) if exports else ()), *handled(counted))


def _spelled(bound: Bound) -> Mapping[str, tuple[IPAddress, ...]]:
    """Return the addresses of each name as dom0 wrote it."""
    return {spelling: bound.of(host).addresses for spelling, host in bound.ruleset.spellings.items()}


def _names_differ(before: Bound | None, bound: Bound) -> bool:
    """Return whether the entries of a list's names below /dns/ have changed."""
    if before is None:
        return bool(bound.ruleset.hosts)
    if before is bound:
        return False
    hosts = bound.ruleset.hosts
    return before.ruleset.spellings != bound.ruleset.spellings or any(
        before.of(host) != bound.of(host) for host in hosts
    )


def settled(memory: Memory, wanted: Wanted, rules: Rules, came: Came) -> Memory:
    """Return the memory after all operations of a pass.

    Args:
        memory: memory of this pass.
        wanted: the desired rules.
        rules: rules by which connections were judged, unless their deletion failed.
        came: result of the operations, and errors of observations.
    """
    counted = frozenset(address for op in came.done if isinstance(op, CountHandled) for address in op.addresses)
    uncut = any(isinstance(op, EndConnections) for op in came.failed)
    refused = {each: bound for each, bound in memory.refused.items() if each in wanted.lists}
    for op in came.failed:
        if isinstance(op, SetQubeRules) and op.instead in {*came.done, *came.failed}:
            refused[op.bound.ruleset.address] = op.bound
    exported = {each: bound for each, bound in memory.exported.items() if each in wanted.lists}
    folders, unwritten = _folders(came.done), _folders(came.failed)
    if folders:
        exported |= {each: bound for each, bound in wanted.lists.items() if folder_of(each) in folders}
    return memory._replace(
        refused=refused,
        judged=undoubted(memory.judged, rules) if uncut else rules,
        owed=memory.owed - counted,
        exported=exported,
        unexported=frozenset(
            each
            for each in memory.devices
            if folder_of(each) in unwritten or (each in memory.unexported and folder_of(each) not in folders)
        ),
        wanted=None if came.failed or came.errors else wanted,
    )


def _folders(ops: Iterable[object]) -> frozenset[str]:
    """Return the folders below /dns/ that operations write."""
    return frozenset(each.folder for op in ops if isinstance(op, ExportNames) for each in op.exports)
