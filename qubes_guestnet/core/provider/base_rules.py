# SPDX-License-Identifier: GPL-2.0-or-later
"""Plan the base rules from nft's listing of our tables, until the listing equals what was loaded.

Rules of other programs in our tables that were removed together with ours (behaviour B125) are restored in the same
transaction. If nft refuses it, forwarding is first held by the record, because a part may be a kill switch, and then
each part is loaded separately. The next listing shows which parts are restored.

If another program changes rules between load and listing, they are loaded again: otherwise its change would be recorded
as ours (behaviour B148).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ...errors import GuestnetError
from ..namedtuple import NamedTuple
from ..nft import listing_blocks, rules_text
from ..operations import Outcome, Planned, kind
from ..owned_state import FIREWALL, HELD, MISSING, Loaded, Provided, Record, checksum
from ..shared_operations import UnitJob
from ..values import IPAddress
from . import forwarding
from .rules_operations import LoadRules, LoadRulesInParts, PurgeUntranslated, UnloadRules

TYPE_CHECKING = False  # of `typing`, which costs 5 ms and 1 MB (see system/deferred_imports)
if TYPE_CHECKING:
    from .user_rules import Block, Kept

LOADS = 4  # attempts to load the rules while other programs change them between load and listing
TABLE, RULES = "table ", "rules of "
_KINDS = ("LoadRules", "LoadRulesInParts")
FIREWALL_UNIT = "qubes-firewall.service"
_FORMER = ("ip", "ip6")  # a former release had no table for ARP, which is no loss


class Facts(NamedTuple):
    """The observed facts.

    Args:
        text: the desired base rules.
        rules: the complete transaction: end of the offload, base rules, elements of their sets.
        found: nft's listing of our tables at the start of the pass, by family.
        now: the present listing.
        before: the record at the start of the pass.
        undisturbed: no other program has changed rules since the listing before the last load.
        lost: rules of other programs that were lost together with ours; None for none.
        active: this qube provides network to others.
        opened: families that are forwarded now.
        holds: the owner wants forwarding held after such a loss.
        firewall: the start of the qubes' firewall restores other programs' rules.
        untranslated: addresses of connections that began without translation.
        refused: failed operations of this pass were refused, so they are not in force.
        without_arp: as for `LoadRules`.
    """

    text: str
    rules: str
    found: Mapping[str, str]
    now: Mapping[str, str]
    before: Provided = Provided()
    undisturbed: bool = True
    lost: Kept | None = None
    active: bool = False
    opened: frozenset[int] = frozenset()
    holds: bool = False
    firewall: bool = False
    untranslated: tuple[IPAddress, ...] = ()
    refused: bool = True
    without_arp: str = ""

    @property
    def blocks(self) -> tuple[Block, ...]:
        """Return the parts of our tables to restore."""
        return self.lost.blocks if self.lost is not None else ()


def seen(chains: Iterable[tuple[str, str]], tables: Mapping[str, str]) -> str:
    """Return the checksum of nft's listing of some of our chains; MISSING if one is missing.

    Args:
        chains: pairs of family and name.
        tables: listings by family.
    """
    listing = listing_blocks.chosen(tables, "chain", chains)
    return checksum(listing.encode()) if listing else MISSING


def are_there(there: Loaded, text: str, tables: Mapping[str, str]) -> bool:
    """Return whether these rules are in force as they were loaded.

    Args:
        there: the recorded rules.
        text: the desired rules.
        tables: listings by family.
    """
    return there == Loaded(checksum(text.encode()), seen(rules_text.chains(tables), tables))


def are_lost(there: Loaded, tables: Mapping[str, str]) -> bool:
    """Return whether another program removed or changed rules that were loaded. Arguments are those of `are_there`."""
    families = (tuple(tables), _FORMER)
    return bool(there.text) and there.seen not in {seen(rules_text.chains(each), tables) for each in families}


def plan(facts: Facts, record: Record, so_far: Outcome) -> Planned:
    """Return the pending operations. When none are left, the record has the loaded rules.

    Args:
        facts: observed facts.
        record: the owned record.
        so_far: result of the operations of this pass so far.
    """
    loads = sum(kind(op) in _KINDS for op in so_far.done)
    if loads:
        return _after(facts, record, so_far, loads)
    if are_there(record.provided.rules, facts.text, facts.now):
        return Planned((), record)
    if facts.lost is None:
        return Planned((_load(facts),), record)
    return _bring_back(facts, record, so_far)


def plan_unloading(families: tuple[str, ...], record: Record, so_far: Outcome) -> Planned:
    """Delete the rules after forwarding is closed; the record then only says that it stays closed.

    Args:
        families: families of the tables that the kernel may have.
        record: the owned record.
        so_far: result of the operations of this command.
    """
    op = UnloadRules(families)
    if op in so_far.done:
        return Planned((), record._replace(provided=Provided(closed=True)))
    return Planned((op,), record)


def missing(facts: Facts) -> tuple[str, ...]:
    """Return other programs' rules that are not restored, in words."""
    if facts.lost is None:
        return ()
    return (*(f"{TABLE}{name}" for name in facts.lost.tables), *_named(_not_back(facts)))


def _load(facts: Facts, put_back: tuple[Block, ...] = ()) -> LoadRules:
    return LoadRules(tuple(facts.found), facts.rules, put_back, facts.without_arp)


def _bring_back(facts: Facts, record: Record, so_far: Outcome) -> Planned:
    """Close forwarding, and load the rules together with other programs' lost rules."""
    closing = forwarding.plan_shutting(facts.opened, facts.opened, record)
    joined = _load(facts, facts.blocks)
    if joined not in so_far.failed:
        return Planned((*closing.ops, joined), _held(facts, closing.record, _emptied(facts)))
    apart = LoadRulesInParts(joined.families, joined.rules, joined.put_back)
    if facts.blocks and facts.refused and apart not in so_far.failed:
        # Hold forwarding before loading: a pass after a crash would find complete base rules, and would open it.
        return Planned((*closing.ops, apart), _held(facts, closing.record, facts.blocks))
    # If nothing was loaded, the next pass starts again.
    return Planned((), _held(facts, record, ()) if facts.refused else record)


def _after(facts: Facts, record: Record, so_far: Outcome, loads: int) -> Planned:
    """Plan the steps after a load, which come before forwarding opens."""
    ops: tuple[PurgeUntranslated | UnitJob, ...] = ()
    if facts.lost is not None:
        record = _held(facts, record, _not_back(facts))
        ops, record = _following(facts, record)
    ops = tuple(op for op in ops if op not in so_far.done)
    provided = record.provided
    if facts.undisturbed:
        # The DNS redirection may have been lost together with the rules, or may be a former release's.
        names = provided.names
        still = names.seen == seen(rules_text.DNS_CHAINS, facts.now) and rules_text.lets_pass(facts.now.get("ip", ""))
        rules = Loaded(checksum(facts.text.encode()), seen(rules_text.chains(facts.now), facts.now))
        provided = provided._replace(rules=rules, names=names if still else Loaded(), offload="", connected="")
        return Planned(ops, record._replace(provided=provided))
    if seen(rules_text.chains(facts.now), facts.now) == MISSING:
        # The record stays unchanged, so the next pass knows that the rules were lost.
        error = GuestnetError("the base rules were removed as soon as they were loaded", "is nft flush in a loop?")
        return Planned(ops, record, errors=(error,))
    if loads < LOADS:
        return Planned((LoadRules(tuple(facts.now), facts.rules), *ops), record)
    error = GuestnetError("another program keeps changing rules, possibly ours", "nft monitor shows what it does")
    return Planned(ops, record._replace(provided=provided._replace(rules=Loaded())), errors=(error,))


def _following(facts: Facts, record: Record) -> tuple[tuple[PurgeUntranslated | UnitJob, ...], Record]:
    """Return the operations after lost rules are restored, and the record with that."""
    from . import user_rules  # a boot has no lost rules

    ops: list[PurgeUntranslated | UnitJob] = [PurgeUntranslated(facts.untranslated)] if facts.untranslated else []
    provided, names = record.provided, missing(facts)
    hold = provided.hold
    if user_rules.gone(facts.found) and facts.active:
        if facts.holds:
            hold = HELD
        elif names and facts.firewall:
            # An earlier hold by the owner stays in force; the unit's scripts may restore the rest.
            ops += [UnitJob("restart", FIREWALL_UNIT)] if facts.before.hold != FIREWALL else []
            hold = hold or FIREWALL
    lost = tuple(dict.fromkeys((*provided.lost, *names)))
    return tuple(ops), record._replace(provided=provided._replace(hold=hold, lost=lost))


def _held(facts: Facts, record: Record, failed: tuple[Block, ...]) -> Record:
    """Return the record with the parts that are not restored, and with forwarding held if there are any."""
    names = _named(failed)
    hold = HELD if names and facts.active else facts.before.hold
    lost = tuple(dict.fromkeys((*facts.before.lost, *names)))
    return record._replace(provided=record.provided._replace(hold=hold, lost=lost))


def _emptied(facts: Facts) -> tuple[Block, ...]:
    """Return sets that can only be restored without their elements."""
    return tuple(block for block in facts.blocks if facts.lost is not None and block[:2] in facts.lost.emptied)


def _not_back(facts: Facts) -> tuple[Block, ...]:
    """Return the parts of our tables that differ from their former state."""
    if not facts.blocks:
        return ()
    from . import user_rules

    emptied = _emptied(facts)
    back = user_rules.back(facts.blocks, facts.now)
    return tuple(block for block in facts.blocks if block in emptied or block not in back)


def _named(blocks: Iterable[Block]) -> tuple[str, ...]:
    blocks = tuple(blocks)
    if not blocks:
        return ()
    from . import user_rules

    return tuple(f"{RULES}{user_rules.words((block,))}" for block in blocks)
