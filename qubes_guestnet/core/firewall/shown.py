# SPDX-License-Identifier: GPL-2.0-or-later
"""The facts of `firewall show` about each list, from its entries, the loaded rules, and the names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ...errors import printable
from .. import checks
from ..namedtuple import NamedTuple
from ..values import IPAddress
from . import condition, evaluator, lines, name_cache, name_news, ruleset
from .binding import Bound, Names, bind
from .commits import ordered
from .condition import Condition
from .entries import Stored
from .listing import Listed
from .name_cache import Cache, Known
from .name_messages import Question
from .parsing import parse
from .rules import INVALID_HOST, Problem, Rule, Ruleset
from .shadowing import covered


class Facts(NamedTuple):
    """The gathered facts.

    Args:
        stored: the entries in QubesDB.
        listed: the loaded rules, by family; None if unreadable.
        packets: chain → comment → packets, by family.
        cache: answers of name servers.
        now: the time by the clock of the cache, in seconds.
        enforced: this program enforces the lists.
        block_unresolved: everything from a qube is refused while an address of a name is unknown.
    """

    stored: Stored
    listed: Mapping[int, Listed] | None
    packets: Mapping[int, Mapping[str, Mapping[str, int]]] = {}
    cache: Cache = Cache()
    now: int = 0
    enforced: bool = True
    block_unresolved: bool = False


class EntryShown(NamedTuple):
    """One entry.

    Args:
        number: number of its key.
        text: as dom0 wrote it, safe to print.
        packets: number of packets that it decided; None if unknown, or if the entry has no rule.
        note: a remark on it, "" for none.
    """

    number: int
    text: str
    packets: int | None
    note: str


class AddressShown(NamedTuple):
    """An address of a name.

    Args:
        address: the address.
        heard: seconds since the last answer that contained it; None if unknown.
        ttl: time to live in that answer, in seconds; None if unknown.
        current: the last answer contains it.
    """

    address: IPAddress
    heard: int | None
    ttl: int | None
    current: bool


class NameShown(NamedTuple):
    """A name in the list.

    Args:
        name: the name.
        addresses: its present addresses.
        known: it was answered, with or without addresses.
        trouble: its problem, in words; "" for none.
        unknown: why its addresses are unknown, in short; "" if they are known.
    """

    name: str
    addresses: tuple[AddressShown, ...]
    known: bool
    trouble: str
    unknown: str = ""


class ListShown(NamedTuple):
    """The list of one address.

    Args:
        address: address of the qube.
        condition: whether it is in force; None if another program enforces it.
        same: the entries in QubesDB are those in force; None if unknown.
        accept: the policy accepts.
        entries: in order.
        policy: number of packets that no entry decided; None if unknown.
        names: names in the list.
        shadowed: name servers that the list allows as such but an earlier entry refuses, with that entry.
        problems: problems of the list.
        bound: the list with its names.
    """

    address: IPAddress
    condition: Condition | None
    same: bool | None
    accept: bool
    entries: tuple[EntryShown, ...]
    policy: int | None
    names: tuple[NameShown, ...]
    shadowed: tuple[tuple[IPAddress, int], ...]
    problems: tuple[Problem, ...]
    bound: Bound


def lists(addresses: Iterable[IPAddress], facts: Facts) -> tuple[ListShown, ...]:
    """Return the list of each address.

    Args:
        addresses: addresses with a vif.
        facts: the gathered facts.
    """
    return tuple(_list(parse(each, facts.stored.sets.get(each, {})), facts) for each in ordered(addresses))


def names(addresses: Iterable[IPAddress], facts: Facts) -> Names:
    """Return the known addresses of the names in some lists, from the cache or otherwise from the loaded rules."""
    return _names((parse(address, facts.stored.sets.get(address, {})) for address in addresses), facts)


def _names(rulesets: Iterable[Ruleset], facts: Facts) -> Names:
    found: dict[tuple[int, str], Known] = {}
    for each in rulesets:
        for host in each.hosts:
            question = Question(each.address.version, host)
            known = name_cache.known(facts.cache, question)
            if known is None and question not in facts.cache.entries:
                known = _loaded(question.family, host, facts.listed)
            if known is not None:
                found[question.family, host] = known
    return found


def _loaded(version: int, host: str, listed: Mapping[int, Listed] | None) -> Known | None:
    """Return the addresses of a name in the rules, which may be incomplete."""
    there = listed.get(version, Listed()).names.get(host) if listed is not None else None
    return Known(tuple(sorted(there, key=int)), False) if there else None


def _list(found: Ruleset, facts: Facts) -> ListShown:
    address, entries = found.address, facts.stored.sets.get(found.address, {})
    written = found if address in facts.stored.sets else Ruleset(address)
    state = condition.condition(written, facts.listed) if facts.enforced else None
    bound = bind(found, _names((found,), facts), block_unresolved=facts.block_unresolved)
    table = facts.listed.get(address.version, Listed()) if facts.listed is not None else None
    element = table.qubes.get(address) if table is not None else None
    same = element.comment == bound.signature if element is not None and facts.enforced else None
    counts = facts.packets.get(address.version, {}).get(ruleset.chain_of(address)) if same else None
    servers = table.dns or frozenset() if table is not None else frozenset()
    return ListShown(
        address,
        state,
        same,
        bound.accept,
        tuple(_entries(bound, entries, counts)),
        counts.get(lines.BLOCKED if bound.refused else lines.POLICY) if counts is not None else None,
        tuple(_name(host, address.version, bound.known.get(host), facts) for host in bound.ruleset.hosts),
        evaluator.shadowed(bound, servers),
        bound.ruleset.problems if entries else (),  # if dom0 has written nothing yet, that is not a problem
        bound,
    )


def _entries(bound: Bound, entries: Mapping[str, bytes], counts: Mapping[str, int] | None) -> Iterable[EntryShown]:
    """Yield the entries in order, even those of a list with an error."""
    rules, idle = {rule.number: rule for rule in bound.ruleset.rules}, covered(bound)
    loaded = {line.number for line in bound.lines}
    keys = ((int(key), key) for key in entries if checks.is_decimal(key, 5))
    for number, key in sorted(keys):
        packets = counts.get(f"{number:04}") if counts is not None and number in loaded else None
        rule = rules.get(number)
        note = _note(rule, bound, idle.get(number)) if rule is not None else ""
        yield EntryShown(number, words(entries[key]), packets, note)


def words(untrusted_value: bytes) -> str:
    """Return an entry as dom0 wrote it, whole and safe to print."""
    return printable(untrusted_value.decode("ascii", "backslashreplace"))


def _note(rule: Rule, bound: Bound, earlier: int | None) -> str:
    if rule.is_empty:
        return "matches nothing: DNS uses TCP and UDP, port 53"
    if earlier is not None:
        return f"never decides: entry {earlier:04} matches all of its packets"
    if rule.host is None or bound.of(rule.host).whole:
        return ""
    if rule.host == INVALID_HOST:
        return "the name is never looked up: it matches nothing" if rule.accept else "it matches every destination"
    if not rule.accept:
        return f"widened to every destination: not all addresses of {rule.host} are known"
    addresses = bound.of(rule.host).addresses
    return f"not all addresses of {rule.host} are known" if addresses else f"matches nothing: {rule.host} is unknown"


def _name(host: str, version: int, known: Known | None, facts: Facts) -> NameShown:
    question = Question(version, host)
    entry = facts.cache.entries.get(question)
    if entry is None or not entry.answered:
        trouble = name_news.trouble(question, entry)[1] if entry is not None else ""
        if known is not None:
            addresses = tuple(AddressShown(each, None, None, True) for each in known.addresses)
            return NameShown(host, addresses, True, trouble)
        return NameShown(host, (), False, trouble or "not looked up yet", name_news.unknown(entry))
    held = tuple(
        AddressShown(each.address, max(0, facts.now - each.heard), each.ttl, each.heard == entry.answered)
        for each in entry.held
    )
    return NameShown(host, held, True, name_news.trouble(question, entry)[1])
