# SPDX-License-Identifier: GPL-2.0-or-later
"""What a pass remembers of the firewall of single qubes, and what it wants to be in force. Functions between values.

A pass reads, decides which lists are in force (`commits`), loads the difference (`plan`), cuts the connections that the
change refuses, and then tells QubesDB. A step that failed is left undone in `Memory`, so the next pass has it again.
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
    from .rules import Ruleset


class Memory(NamedTuple):
    """What one pass leaves for the next.

    Args:
        outcome: which lists are in force.
        devices: address → the interface that has it.
        refused: address → a list that nft refused; all of the address is refused as long as it has no other.
        judged: the lists by which connections were last judged.
        owed: addresses whose commit was handled and is not counted yet.
        exported: address → the list whose names were last written below /dns/.
        wanted: what was last found to be in force; None: not known.
        began: a pass went by.
    """

    outcome: Outcome = Outcome()
    devices: Mapping[IPAddress, Device | None] = {}
    refused: Mapping[IPAddress, Bound] = {}
    judged: Rules = Rules()
    owed: frozenset[IPAddress] = frozenset()
    exported: Mapping[IPAddress, Bound] = {}
    wanted: Wanted | None = None
    began: bool = False

    def is_due(self, devices: Mapping[IPAddress, Device | None]) -> bool:
        """Return whether entries have to be read again though no watch told of any."""
        return not self.began or self.outcome.again is not None or devices != self.devices


def advanced(memory: Memory, facts: Facts, devices: Mapping[IPAddress, Device | None]) -> Memory:
    """Return the memory with what entries say now.

    Args:
        memory: of the last pass.
        facts: of this one; the attached addresses are those of `devices`, which also tell of detached ones.
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
    # A commit of the same list is a reason to try it again.
    refused = {each: bound for each, bound in memory.refused.items() if each not in outcome.handled}
    return memory._replace(outcome=outcome, devices=dict(devices), owed=owed, refused=refused, began=True)


def questions(lists: Mapping[IPAddress, Ruleset]) -> Mapping[str, tuple[Question, ...]]:
    """Return what name servers are asked for, by qube; nothing of a list without names.

    Args:
        lists: in force.
    """
    return {
        str(address): tuple(Question(address.version, host) for host in hosts)
        for address, ruleset in lists.items()
        if (hosts := ruleset.hosts)
    }


def want(
    memory: Memory, names: Names, dns: Mapping[int, frozenset[IPAddress]], *, block_unresolved: bool = False
) -> Wanted:
    """Return what is to be in force.

    Args:
        memory: of this pass.
        names: what name servers answered.
        dns: the name servers by family; one that is missing is left as it is.
        block_unresolved: everything of a qube is refused while an address of one of its names is not known.
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
    """Return the list that refuses everything in place of one that nft does not take."""
    instead = SetQubeRules(bound).instead
    return bound if instead is None else instead.bound


def in_force(memory: Memory, wanted: Wanted, came: Came) -> Mapping[IPAddress, Bound]:
    """Return the lists that are loaded after all operations of a pass.

    Args:
        memory: of this pass.
        wanted: what was to be in force.
        came: what came of the operations.
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


def unloaded(came: Came) -> frozenset[IPAddress]:
    """Return the addresses whose rules were neither loaded nor refused by nft: their turn comes in another pass."""
    failed = [op for op in came.failed if isinstance(op, SetQubeRules)]
    tried = {op.instead for op in failed} & {*came.done, *came.failed}
    return frozenset(op.bound.ruleset.address for op in failed if op.instead is not None and op.instead not in tried)


def to_judge(memory: Memory, lists: Mapping[IPAddress, Bound], dns: Collection[IPAddress]) -> frozenset[IPAddress]:
    """Return the addresses whose connections may be accepted by former rules and refused by those in force."""
    same = frozenset(memory.judged.dns) == frozenset(dns)
    judged = memory.judged.lists
    return frozenset(
        each
        for each, bound in lists.items()
        if each not in memory.outcome.incomplete and not (same and is_same_list(judged.get(each), bound))
    )


def ending(
    memory: Memory,
    rules: Rules,
    found: Iterable[tuple[Connection, bytes]],
    is_own: Callable[[IPAddress], bool],
) -> tuple[EndConnections, ...]:
    """Return the operation that cuts connections; none for none.

    Args:
        memory: of this pass.
        rules: in force.
        found: connections, with their entries of conntrack.
        is_own: whether an address is one of this provider: what ends here is not forwarded.
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
    """Return what is written to QubesDB for each commit that was handled, and for names that have other addresses.

    Args:
        memory: of this pass.
        wanted: what is in force.
        later: addresses whose rules are not in force yet.
    """
    counted = ordered(memory.owed - later)
    refreshed = {
        address for address, bound in wanted.lists.items() if _names_differ(memory.exported.get(address), bound)
    }
    exports = []
    for address in ordered((refreshed - later).union(counted)):
        bound = wanted.lists.get(address)
        hosts = {} if bound is None else {host: bound.of(host).addresses for host in bound.ruleset.hosts}
        exports.append(export(address, hosts))
    return (*((ExportNames(tuple(exports)),) if exports else ()), *handled(counted))


def _names_differ(before: Bound | None, bound: Bound) -> bool:
    """Whether what scripts read of a list's names below /dns/ is another now."""
    if before is None:
        return bool(bound.ruleset.hosts)
    hosts = bound.ruleset.hosts if before is not bound else ()
    return any(before.of(host) != bound.of(host) for host in hosts) or before.ruleset.hosts != bound.ruleset.hosts


def settled(memory: Memory, wanted: Wanted, rules: Rules, came: Came) -> Memory:
    """Return the memory after all operations of a pass.

    Args:
        memory: of this pass.
        wanted: what was to be in force.
        rules: that are, and by which connections were judged.
        came: what came of the operations.
    """
    counted = frozenset(address for op in came.done if isinstance(op, CountHandled) for address in op.addresses)
    uncut = any(isinstance(op, EndConnections) for op in came.failed)
    refused = {each: bound for each, bound in memory.refused.items() if each in wanted.lists}
    for op in came.failed:
        if isinstance(op, SetQubeRules) and op.instead in {*came.done, *came.failed}:
            refused[op.bound.ruleset.address] = op.bound
    exported = {each: bound for each, bound in memory.exported.items() if each in wanted.lists}
    folders = {each.folder for op in came.done if isinstance(op, ExportNames) for each in op.exports}
    if folders:
        exported |= {each: bound for each, bound in wanted.lists.items() if folder_of(each) in folders}
    return memory._replace(
        refused=refused,
        judged=memory.judged if uncut else rules,
        owed=memory.owed - counted,
        exported=exported,
        wanted=None if came.failed else wanted,
    )
