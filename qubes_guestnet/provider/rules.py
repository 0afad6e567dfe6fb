# SPDX-License-Identifier: GPL-2.0-or-later
"""The base rules, and forwarding, which is enabled only while they are loaded.

They are separate from the rest of the provider's half, because every qube's boot waits for them, and most qubes are not
providers.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from ..core.nft import rules_text, tables
from ..core.owned_state import MISSING, Loaded, checksum
from ..core.provider import settings as provider
from ..core.provider.pass_memory import PassMemory
from ..core.provider.settings import ProviderSettings
from ..core.uplink import mtu
from ..core.values import IPV4, IPV6
from ..errors import FileError, GuestnetError
from ..flow import Applying
from ..system import procfs_sysctl, service_flags
from ..system.nft import kernel as nft_kernel
from ..system.nft import program as nft
from ..system.owned_state import Ledger
from ..system.paths import Paths
from ..system.systemd import WARNING, log
from . import forwarding
from .base_rules import BaseRulesPlanner
from .pass_state import PassState, Progress, command
from .ruleset_generation import Transactions, seen

TYPE_CHECKING = False  # of `typing`, which costs 5 ms and 1 MB (see system/deferred_imports)
if TYPE_CHECKING:
    from types import ModuleType

RULES = "base rules"
_RULES_GONE = "our rules are gone, until they are there again"
_FIREWALL_GONE = "the rules of qubes-firewall.service are gone, until it is ready again"


class Rules:
    """The base rules and forwarding of a qube.

    Args:
        paths: locations of its files.
        transactions: transactions of this process.
    """

    def __init__(self, paths: Paths, transactions: Transactions | None = None) -> None:
        self._paths, self._nft = paths, transactions or Transactions()
        self._alone = transactions is None  # a command at boot, before other programs have rules

    def begin(self, untrusted_entries: Mapping[str, bytes], progress: Progress) -> PassState:
        """Load the rules, which come before anything else, and end what is no longer wanted.

        Args:
            untrusted_entries: all entries of QubesDB below the provider's prefixes.
            progress: progress of a new pass.
        """
        run = progress.run
        settings = _possible(provider.parse_provider(untrusted_entries), progress)
        active = settings.active and service_flags.provides(self._paths.flags)
        ipv6 = self._wants_ipv6(settings, active, run)
        work = PassState(settings, active, ipv6, progress, mtu.common(untrusted_entries), untrusted_entries)
        work = work.attempt(self._find_firewall)
        work = work.attempt(forwarding.obey)
        if work.provided.hold:
            work.attempt(_user_rules_restore().wait)
        work.attempt(self._close)
        work = work.attempt(self._load)
        if not work.ruled and run.applies:
            work.attempt(self._forward_nothing_without_rules)
        return work

    def _find_firewall(self, work: PassState) -> PassState:
        """Detect whether the firewall of the qubes is missing or not ready; one that never existed is not awaited."""
        record = work.provided
        if service_flags.enforces(self._paths.flags, self._paths.run):
            unfiltered = record.unfiltered or not nft_kernel.filtering()
            if unfiltered and record.filtered and not record.unfiltered:
                work.remember(work.memory._replace(scripts_lost=True))
            if work.memory.scripts_lost and work.run.applies:
                self._restart_firewall(work)
            return work._replace(unfiltered=unfiltered)
        if service_flags.filters(self._paths.flags):
            return work._replace(unfiltered=record.unfiltered or (record.filtered and not nft_kernel.filtering()))
        return work

    def _restart_firewall(self, work: PassState) -> None:
        """Restart the firewall's unit after its tables were removed: it runs the users' scripts again."""
        still = False
        if _user_rules_restore().has_firewall_unit(self._paths):
            from ..core.provider.firewall_unit import plan_lost
            from ..dispatch import of_base_rules

            still = bool(work.settle(plan_lost, of_base_rules(self._nft)).errors)
        work.remember(work.memory._replace(scripts_lost=still))

    def _close(self, work: PassState) -> None:
        wanted = work.families
        if work.provided.offloading and (not wanted or work.provided.forwarding - wanted):
            self.end_offload(work)
        forwarding.close_unwanted(work)

    def end_offload(self, work: PassState) -> None:
        """End the offload before rules or forwarding go, because offloaded packets bypass both.

        Args:
            work: the pass; errors are added to its own.
        """
        from ..core.provider import offload  # few have any
        from ..dispatch import of_rules

        work.settle(offload.plan_ending, of_rules(self._nft))

    def _forward_nothing_without_rules(self, work: PassState) -> None:
        """Close forwarding if another program removed the rules and they cannot be loaded again."""
        if not _missing():
            return
        if work.provided.offloading:
            self.end_offload(work)
        forwarding.shut(work)

    def forward(self, work: PassState) -> None:
        """Open forwarding if all rules are loaded, including the redirection; an earlier error leaves it unchanged."""
        if not (work.ruled or work.planned) or not (work.provided.names.text or not work.run.applies):
            return
        forwarding.open_wanted(work)

    def close_if_lost(self, memory: PassMemory) -> PassMemory:
        """Close forwarding at once if base rules, or the firewall of the qubes, are missing; a pass must follow.

        Call this as soon as rules have changed. If only other programs' rules changed, it costs a few netlink messages
        and starts no program. A firewall that a signal ends deletes its tables while packets are still forwarded;
        systemd, and thus `forwarding hold`, reacts later (B155).

        Args:
            memory: memory of the last pass.

        Returns:
            The memory without the handles of missing rules.

        Raises:
            GuestnetError: the rules are unreadable, or forwarding cannot be closed.
        """
        if not memory.handles or self._nft.unchanged(memory.verified.get(RULES)):
            return memory
        lost = not nft_kernel.handles(rules_text.CHAINS) >= memory.handles
        if not lost and (not service_flags.filters(self._paths.flags) or nft_kernel.filtering()):
            return memory
        with Ledger(self._paths.run) as ledger:
            work = command(Applying(ledger), active=service_flags.provides(self._paths.flags))
            if not lost and not work.provided.filtered:
                return memory
            forwarding.shut(work)
            gone = _RULES_GONE if lost else _FIREWALL_GONE
            for words in work.done:
                log(WARNING, f"{words}: {gone}")
            work.raise_first()
            return memory._replace(handles=frozenset()) if lost else memory

    # --- what the command line asks ----------------------------------------------------------------------------

    def load(self, untrusted_entries: Mapping[str, bytes] | None) -> tuple[str, ...]:
        """Load the base rules, before any network.

        Args:
            untrusted_entries: entries of QubesDB; None if it does not answer: then existing rules stay, and without
                existing ones rules are loaded that drop IPv6.

        Raises:
            GuestnetError: the rules are not loaded.
        """
        with Ledger(self._paths.run) as ledger:
            if untrusted_entries is None:
                work = command(Applying(ledger))
                if seen(rules_text.chains(self._nft.families)) == MISSING:
                    self._load(work)
            else:
                work = self.begin(untrusted_entries, Progress(Applying(ledger)))
                work.raise_first()
                if work.active:
                    self._protect(work)
            work.raise_first()
            return work.done

    def _protect(self, work: PassState) -> None:
        from ..system import vif_records
        from . import downstream  # only in a provider

        unread: list[GuestnetError] = []
        records = vif_records.Folder(self._paths.run).all(unread)
        downstream.apply(work, self._nft, records, downstream.present(work, self._nft), complete=not unread)
        work.failed(*unread)

    def unload(self) -> tuple[str, ...]:
        """Close forwarding, then delete the rules, including sets and users' chains."""
        from ..core.provider.base_rules import plan_unloading
        from ..dispatch import of_base_rules

        done = self.close()
        with Ledger(self._paths.run) as ledger:
            work = command(Applying(ledger))
            work.settle(partial(plan_unloading, self._nft.families), of_base_rules(self._nft))
            work.raise_first()
            return (*done, *work.done)

    def close(self, *, unfiltered: bool = False) -> tuple[str, ...]:
        """Close forwarding until `reopen`: ours, and in a provider also that which other programs enabled.

        Args:
            unfiltered: the reason is that the firewall of the qubes is not ready; ignored without its flag.
        """
        with Ledger(self._paths.run) as ledger:
            work = command(Applying(ledger))
            if unfiltered and not service_flags.filters(self._paths.flags):
                return ()
            every = frozenset({IPV4, IPV6})
            families = every if service_flags.provides(self._paths.flags) else work.provided.forwarding
            provided = work.provided._replace(forwarding=families)
            work.save(provided._replace(unfiltered=True) if unfiltered else provided._replace(closed=True))
            self._close(work)
            work.raise_first()
            return work.done

    def reopen(self) -> None:
        """Make the next pass forward again, whatever the reason against it, except the qubes' firewall."""
        with Ledger(self._paths.run) as ledger:
            if ledger.record.provided.forwarding and forwarding.apart():
                # The kernel enables all interfaces only when the family's sysctl changes from 0 to 1.
                work = command(Applying(ledger), active=True, ipv6=True)
                forwarding.shut(work)
                work.raise_first()
            opened = ledger.record.provided._replace(closed=False, hold="", stopped=frozenset(), lost=())
            ledger.save(ledger.record._replace(provided=opened))

    def release(self) -> None:
        """Note that the firewall of the qubes is ready, so that the next pass may forward.

        Raises:
            KernelError: it is unknown whether its rules exist.
        """
        filtered = service_flags.filters(self._paths.flags) and nft_kernel.filtering()
        with Ledger(self._paths.run) as ledger:
            provided = ledger.record.provided._replace(unfiltered=False, filtered=filtered)
            ledger.save(ledger.record._replace(provided=provided))

    # --- what is in force --------------------------------------------------------------------------------------

    def _wants_ipv6(self, settings: ProviderSettings, active: bool, run: Applying) -> bool:
        """Return whether client qubes have IPv6; a held value keeps the present state."""
        if active and "ipv6" in settings.held:
            return _is_text_of(run.record.provided.rules, ipv6=True)
        return active and settings.gateway6 is not None

    def _load(self, work: PassState) -> PassState:
        """Load the base rules, unless ours are already loaded."""
        refuse6 = work.active and _refuses6(work.settings, work.provided.rules)
        planner = BaseRulesPlanner(work, self._paths, self._nft, refuse6=refuse6)
        verified = work.is_verified(RULES, self._nft)
        if verified and work.provided.rules.text == checksum(planner.text(planner.families).encode()):
            return work._replace(ruled=True)
        work = planner.settle()
        return work.attempt(partial(self._verified, planner)) if work.ruled else work

    def _verified(self, planner: BaseRulesPlanner, work: PassState) -> None:
        """Note that the base rules are correct, and store the other programs' rules beside them."""
        if work.run.applies and not self._alone:
            work.attempt(partial(_user_rules_restore().keep, self._paths.run, planner.now))
            work.remember(work.memory._replace(handles=nft_kernel.handles(rules_text.chains(planner.now))))
        work.mark_verified(RULES, planner.looked)


def _user_rules_restore() -> ModuleType:
    from . import user_rules  # not at boot, nor where all is as it was

    return user_rules


def _possible(settings: ProviderSettings, progress: Progress) -> ProviderSettings:
    """Return the settings without IPv6 if the kernel lacks it: IPv4 is still configured (behaviour B54, #5110)."""
    missing = settings.active and settings.serves(IPV6) and not _has_ipv6()
    if missing and not progress.memory.ipv6_missing:
        progress.run.tell(WARNING, "IPv6 is switched off in the kernel: client qubes have IPv4 only")
    progress.memory = progress.memory._replace(ipv6_missing=missing)
    return settings._replace(gateway6=None, held=settings.held - {"ipv6"}, refuse6=False) if missing else settings


def _has_ipv6() -> bool:
    try:
        return procfs_sysctl.read(("ipv6", "conf", "all", "disable_ipv6")) == "0"
    except FileError:
        return False  # unknown counts as off


def _refuses6(settings: ProviderSettings, there: Loaded) -> bool:
    """Return whether IPv6 of client qubes is rejected; a held value keeps the present state."""
    return settings.refuse6 or ("ipv6" in settings.held and _is_text_of(there, ipv6=False, refuse6=True))


def _is_text_of(there: Loaded, *, ipv6: bool, refuse6: bool = False) -> bool:
    """Return whether these base rules were loaded, with or without the table for ARP."""
    texts = (rules_text.base(ipv6=ipv6, refuse6=refuse6, arp=arp) for arp in (True, False))
    return there.text in map(checksum, map(str.encode, texts))


def _missing() -> bool:
    if not nft_kernel.present():
        return True
    try:
        return seen(rules_text.chains(tables.IP_FAMILIES)) == MISSING
    except nft.NftError:  # a program that cannot load rules cannot list them either
        return False
