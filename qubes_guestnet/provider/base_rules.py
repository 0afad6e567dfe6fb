# SPDX-License-Identifier: GPL-2.0-or-later
"""The base rules in one pass: observe for `core.provider.base_rules`, and log the result."""

from __future__ import annotations

from collections.abc import Mapping

from ..core.nft import rules_text, tables
from ..core.nft.mark import Mark
from ..core.operations import Outcome, Planned
from ..core.owned_state import Record
from ..core.provider import base_rules
from ..core.provider.base_rules import Facts
from ..core.provider.rules_operations import LoadRules, LoadRulesInParts
from ..dispatch import of_base_rules
from ..system import service_flags
from ..system.nft import program as nft
from ..system.paths import Paths
from ..system.systemd import WARNING, log
from . import forwarding
from .pass_state import PassState
from .ruleset_generation import Transactions

TYPE_CHECKING = False  # of `typing`, which costs 5 ms and 1 MB (see system/deferred_imports)
if TYPE_CHECKING:
    from types import ModuleType

    from ..core.provider.settings import ProviderSettings
    from ..core.provider.user_rules import Kept


class BaseRulesPlanner:
    """Loads the base rules in one pass.

    Args:
        work: the pass.
        paths: locations of the qube's files.
        transactions: transactions of this process.
        refuse6: IPv6 of client qubes is rejected instead of dropped.

    Attributes:
        looked: when the rules were last listed.
        now: nft's listing at that time, by family.
    """

    def __init__(self, work: PassState, paths: Paths, transactions: Transactions, *, refuse6: bool) -> None:
        self._work, self._paths, self._nft, self._refuse6 = work, paths, transactions, refuse6
        self._before = work.provided
        self._facts: Facts | None = None
        self.looked = self._marked = Mark(-1, 0)  # at the last look, and at the one before the last load
        self.now: Mapping[str, str] = {}
        # The first load does not need it, and asking for it would cost each boot 10 ms.
        self._knows_families = bool(self._before.rules.text)

    def text(self, families: tuple[str, ...]) -> str:
        """Return the base rules alone."""
        return rules_text.base(ipv6=self._work.ipv6, refuse6=self._refuse6, arp=tables.ARP in families)

    @property
    def families(self) -> tuple[str, ...]:
        """Return the families of the desired tables."""
        return self._nft.families if self._knows_families else tables.FAMILIES

    def settle(self) -> PassState:
        """List the rules, load them and list them again.

        Returns:
            The state with `ruled`, the rules are in force, and `reloaded`.
        """
        work = self._work
        outcome = work.settle(self._plan, of_base_rules(self._nft))
        facts = self._facts
        if facts is None:
            return work._replace(ruled=False)
        tried = [op for op in (*outcome.done, *outcome.failed) if isinstance(op, LoadRules | LoadRulesInParts)]
        in_force = base_rules.are_there(work.provided.rules, facts.text, self.now) and facts.undisturbed
        if any(op in outcome.done for op in tried):
            self._tell(facts, outcome)
        return work._replace(ruled=in_force, reloaded=work.planned or bool(tried))

    def _plan(self, record: Record, so_far: Outcome) -> Planned:
        loads = tuple(op for op in so_far.done if isinstance(op, LoadRules | LoadRulesInParts))
        families = loads[-1].families if loads else self.families
        self._look(families)
        facts = self._first(families) if self._facts is None else self._facts
        undisturbed = not loads or self._nft.undisturbed(self._marked)
        refused = all(isinstance(error, nft.Refused) for error in so_far.errors if isinstance(error, nft.NftError))
        facts = facts._replace(now=self.now, undisturbed=undisturbed, refused=refused, text=self.text(families))
        if loads:
            facts = facts._replace(rules=self._whole(families), without_arp="")
        if facts.lost is not None:
            restore = _user_rules_restore()
            there = restore.untranslated(self._work, self._paths.run, facts.found) if loads else ()
            facts = facts._replace(opened=forwarding.opened(self._work), untranslated=there)
        self._facts = facts
        planned = base_rules.plan(facts, record, so_far)
        if any(isinstance(op, LoadRules | LoadRulesInParts) for op in planned.ops):
            self._marked = self.looked
        return planned

    def _look(self, families: tuple[str, ...]) -> None:
        """List our tables, in the families that the kernel has."""
        self.looked, self.now = self._nft.mark(), {}
        self.now = self._nft.tables(families)

    def _first(self, families: tuple[str, ...]) -> Facts:
        """Return the facts of the first listing, which stay valid."""
        without = "" if self._knows_families else self._whole(families[:-1])
        facts = Facts("", self._whole(families), self.now, self.now, self._before, without_arp=without)
        if not base_rules.are_lost(self._before.rules, self.now):
            return facts
        work, restore = self._work, _user_rules_restore()
        lost: Kept = restore.lost(self._paths.run, self.now)
        holds, firewall = restore.is_to_hold(work, self._paths), restore.has_firewall_unit(self._paths)
        return facts._replace(lost=lost, active=work.active, holds=holds, firewall=firewall)

    def _whole(self, families: tuple[str, ...]) -> str:
        """Return the transaction without other programs' rules.

        It ends the offload, because no offloaded packet may bypass the new rules; it loads the rules; and it fills
        their sets, so that attached qubes can send and no qube can use the address of another one.
        """
        work = self._work
        coming = rules_text.downstream(work.settings.connected if work.active else (), ())
        if service_flags.provides(self._paths.flags):
            coming += _letting_send(self._paths.run, work.settings, arp=tables.ARP in families)
        return _ending(work) + self.text(families) + coming

    def _tell(self, facts: Facts, outcome: Outcome) -> None:
        work = self._work
        if work.active and tables.ARP not in self.now:
            log(WARNING, "this kernel has no nftables for ARP: only rp_filter stops ARP with foreign addresses")
        if facts.lost is None:
            return
        if any(isinstance(op, LoadRulesInParts) for op in outcome.done):
            refusals = [error for error in outcome.errors if isinstance(error, nft.Refused)]
            for error in refusals:
                log(
                    WARNING,
                    f"nft refuses other programs' rules in our tables; loading each part alone: {error.problem}",
                )
            work.progress.withdraw(refusals)
        names = base_rules.missing(facts)
        if names:
            words = _user_rules_restore().remedy(work.provided.hold)
            log(WARNING, f"another program removed our rules, and with them: {', '.join(names)}; {words}")


def _ending(work: PassState) -> str:
    """Return the part of the transaction that ends the offload, if there may be one."""
    if not work.provided.offloading:
        return ""
    from ..core.nft.flowtable import END  # few have any

    return END


def _letting_send(run: str, settings: ProviderSettings, *, arp: bool) -> str:
    """Return the text that fills the sets for present vifs; while QubesDB does not answer, only for IPv4."""
    from . import downstream  # only in a provider

    return downstream.letting_send(run, settings, arp=arp)


def _user_rules_restore() -> ModuleType:
    from . import user_rules  # where rules were lost

    return user_rules
