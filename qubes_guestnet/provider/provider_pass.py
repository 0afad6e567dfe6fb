# SPDX-License-Identifier: GPL-2.0-or-later
"""The provider's half of a pass: rules, vifs, virtual DNS and forwarding for the qubes behind this one.

Theory of operation. Order is safety: anti-spoofing and base rules, then the vifs, then the redirection of the virtual
DNS addresses, and forwarding last; on the way down the reverse. `before` and `after` are these two ends, and the uplink
is configured between them. Firewall rules of single qubes have their place behind the base rules and before forwarding.

A vif is set up by `online` alone, which costs the same with 1 and with 250 vifs; a pass looks at all of them only when
something made it doubtful that they are as they were: a start, other settings, rules that another program changed. The
generation number of nftables tells whether there was one, so an idle provider's pass lists nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from ipaddress import IPv4Address

from ..core.nft import limits
from ..core.provider import settings as provider
from ..core.provider.pass_memory import PassMemory
from ..core.provider.provider_report import ProviderReport
from ..core.provider.vif import Vif
from ..errors import GuestnetError, KernelError
from ..flow import Applying, Planning
from ..system import guestnet_toml, procfs_sysctl, service_flags
from ..system.owned_state import Ledger
from .dns_redirect import DnsRedirect
from .forwarding import apart, forwarded
from .pass_state import PassState, Progress, command
from .rules import Rules
from .ruleset_generation import Transactions
from .vifs import Vifs

TYPE_CHECKING = False  # of `typing`, which costs 5 ms and 1 MB (see system/deferred_imports)
if TYPE_CHECKING:
    from ..core.report import InterfaceReport, ResolverReport
    from ..core.settings import Settings
    from ..system.netlink.rtnl import Kernel
    from ..system.paths import Paths
    from ..uplink.other_services import OtherServices
    from .firewall import Firewall, Source
    from .firewall_names import FirewallNames
    from .guard import ProviderGuard
    from .offload import Offload

SETS = "sets"
NETFILTER, CONNTRACK = "netfilter", "nf_conntrack_max"


class Provider:
    """The provider's half of each pass of a process; what one pass leaves for the next is its one value `memory`.

    Args:
        paths: locations of the qube's files.
        kernel: the adapter.
        others: the other services of the qube, for systemd-resolved's servers.
        resident: it is the agent's, which stays, and so may offload connections: it ends that when rules change.
        counted: the report counts what each qube has without an answer.
        source: where the entries of the firewall come from; None in a command.

    Attributes:
        memory: what the last pass has left.
    """

    def __init__(
        self, paths: Paths, kernel: Kernel, others: OtherServices, *, resident: bool = False, counted: bool = False,
        source: Source | None = None,
    ) -> None:  # fmt: skip
        self._paths, self._kernel, self._others = paths, kernel, others
        self._nft, self._resident = Transactions(), resident
        self._rules = Rules(paths, self._nft)
        self._vifs = Vifs(paths.run, kernel, self._nft, counted=counted)
        self._dns = DnsRedirect(paths, kernel, others, self._nft, resident=resident)
        self._offload = _offload(paths, self._nft) if resident else None
        self._guard = _guard(self._nft) if resident else None
        self.memory = PassMemory()
        self._source = source
        self._firewall: Firewall | None = None  # made where this program enforces it

    # --- a pass ------------------------------------------------------------------------------------------------

    def before(self, untrusted_entries: Mapping[str, bytes], run: Applying) -> PassState:
        """What has to be in force before anything else: the rules; and off with what is not wanted any more.

        Args:
            untrusted_entries: all of QubesDB below the provider's prefixes.
            run: carries out what is planned, or does not.
        """
        progress = Progress(run, self.memory)
        try:
            work = self._rules.begin(untrusted_entries, progress)
            if work.reloaded:
                work.remember(work.memory._replace(swept=None))
            if self._guard is not None:
                work.attempt(self._guard.apply)
            return work
        finally:
            self.memory = progress.memory

    def _enforcing(self) -> Firewall | None:
        """The firewall of single qubes; None where this process does not enforce it."""
        if self._source is None or not self.enforces:
            return None
        if self._firewall is None:
            from .firewall import Firewall  # others have core-agent's, or none

            self._firewall = Firewall(self._paths, self._kernel, self._nft, self._source)
        return self._firewall

    def _enforce(self, uplinks: frozenset[int], work: PassState) -> PassState:
        """Have the lists of single qubes in force; in a pass for a person return what is known of them."""
        firewall = self._enforcing()
        if firewall is None and self._firewall is not None:
            self._firewall.close()
            self._firewall = None
            work.remember(work.memory._replace(firewall=None))
        if firewall is not None:
            return firewall.apply(work, self._vifs.devices(), uplinks)
        if not work.run.applies and self.enforces:
            from .firewall import Firewall

            return Firewall(self._paths, self._kernel, self._nft, None).tell(work, self._vifs.devices())
        return work

    def _redirect(
        self, own: tuple[IPv4Address, ...], uplinks: frozenset[int], file: ResolverReport | None, work: PassState
    ) -> PassState:
        """Redirect the virtual DNS addresses, and have the rules for DNS of single qubes accept the same servers."""
        return self._dns.apply(work, own, uplinks, file=file, firewall=self._enforcing())

    @staticmethod
    def _keep(work: PassState) -> PassState:
        """Read how long conntrack keeps connections."""
        return work._replace(kept=limits.kept(lambda name: procfs_sysctl.read((NETFILTER, name))))

    def _limit(self, work: PassState) -> PassState:
        """Read what each qube may have of conntrack, as this kernel has it now."""
        configured = guestnet_toml.configured_limits(self._paths.config)
        return work._replace(limits=limits.possible(configured, int(procfs_sysctl.read((NETFILTER, CONNTRACK)) or 0)))

    def after(
        self,
        work: PassState,
        own_servers: tuple[IPv4Address, ...],
        uplinks: Iterable[InterfaceReport],
        resolver: ResolverReport | None = None,
    ) -> ProviderReport:
        """The rest, once the uplink is configured.

        Args:
            work: from `before`.
            own_servers: the virtual DNS servers that this qube itself was given.
            uplinks: its own interfaces.
            resolver: resolv.conf, where there is an uplink.
        """
        work = work.after_uplink()
        if work.active:
            indexes = frozenset(uplink.link.ifindex for uplink in uplinks if uplink.link is not None)
            work = work.attempt(self._keep)
            work = work.attempt(self._limit)
            work = work.attempt(self._sweep)
            work = work.attempt(partial(self._redirect, own_servers, indexes, resolver))
            work = work.attempt(partial(self._enforce, indexes))
            work.attempt(self._rules.forward)
            if self._offload is not None:
                work.attempt(self._offload.apply)
        self.memory = work.memory
        report = work.report(forwarded())
        # Only users ask for it: with 250 vifs it is 500 files.
        return report._replace(apart=apart()) if work.active and not work.run.applies else report

    # --- what the command line asks ----------------------------------------------------------------------------

    def sync_names(
        self, untrusted_entries: Mapping[str, bytes], settings: Settings, uplinks: frozenset[int]
    ) -> tuple[str, ...]:
        """The redirection of the virtual DNS addresses alone.

        Returns:
            What was done, in words; empty when they lead where they led when this was last asked.

        Raises:
            GuestnetError: it could not be done.
        """
        with Ledger(self._paths.run) as ledger:
            work = self.before(untrusted_entries, Applying(ledger))
            work.raise_first()
            if work.active:
                file = self._file(settings, uplinks, ledger)
                self._dns.apply(work, settings.dns.servers, uplinks, file=file)
            self.memory = work.memory
            work.raise_first()
            if work.active and work.provided.synced != work.provided.leading:
                # The agent is often faster; the caller asks whether it has to follow (B135).
                work.save(work.provided._replace(synced=work.provided.leading))
                return work.done or (f"virtual DNS: redirected to {' '.join(work.provided.servers)}",)
            return work.done

    def _file(self, settings: Settings, uplinks: frozenset[int], ledger: Ledger) -> ResolverReport | None:
        """Whose resolv.conf is, without changing it; None where it cannot be looked at."""
        if not uplinks:
            return None
        from ..uplink.resolv_conf import Ground, ResolvConf

        flags, manager = service_flags.flags(self._paths.flags), self._others.manager()
        file = ResolvConf(Ground(settings, flags, manager, self._kernel, uplinks), self._paths, lambda _data: False)
        Planning(ledger).settle(file.plan, {})
        return file.report

    # --- for the resident agent ----------------------------------------------------------------------------------

    @property
    def enforces(self) -> bool:
        """Whether this program enforces the lists of single qubes."""
        return service_flags.enforces(self._paths.flags, self._paths.run)

    @property
    def firewall_names(self) -> FirewallNames | None:
        """The names in firewall rules; None where there are none."""
        return self._firewall.names if self._firewall is not None else None

    @property
    def has_lists_in_force(self) -> bool:
        """Whether the last pass had the lists of all single qubes in force."""
        return self.enforces and self.memory.firewall is not None and self.memory.firewall.settled

    def rules_changed(self) -> None:
        """Rules have changed: forwarding closes at once if ours are not all there. Raises GuestnetError."""
        self.memory = self._rules.close_if_lost(self.memory)

    def look_at_everything(self) -> None:
        """The next pass takes nothing for granted."""
        self.memory = self.memory.doubted()
        if self._firewall is not None:
            self._firewall.ask_anew()

    def strangers(self) -> tuple[str, ...]:
        """Return the names of vifs that hotplug has not told of: they were there before the agent ran (#1990)."""
        return self._vifs.strangers()

    def late_mappings(self, untrusted_entries: Mapping[str, bytes]) -> tuple[Vif, ...]:
        """Vifs whose fake addresses came into QubesDB only after they were set up (#9318), to be set up again.

        Raises:
            GuestnetError: records cannot be written, or the kernel does not tell which qubes have spoken.
        """
        if not any(path.startswith(provider.MAPPED) for path in untrusted_entries):
            return ()
        return self._vifs.late_mappings(untrusted_entries)

    def end_offload(self) -> None:
        """Until the next pass; with none to come it would not end when rules change. Raises GuestnetError."""
        with Ledger(self._paths.run) as ledger:
            work = command(Applying(ledger), memory=self.memory)
            self._rules.end_offload(work)
            self.memory = work.memory
            work.raise_first()

    # --- one vif -----------------------------------------------------------------------------------------------

    def online(
        self,
        vif: Vif,
        untrusted_entries: Mapping[str, bytes],
        wanted: Callable[[], bool] = lambda: True,
        *,
        found: bool = False,
    ) -> tuple[str, ...]:
        """Set up one vif, or make one right that is set up.

        Args:
            vif: as hotplug found it.
            untrusted_entries: of QubesDB, for the gateway's addresses and IPv6.
            wanted: asked once the lock is held: whether it is to be done still.
            found: the vif was there before, and the agent has it set up.

        Returns:
            What was done, in words; nothing when it was not wanted any longer.

        Raises:
            GuestnetError: something is refused. The link is then not up, or was already, and sends nothing that the
                rules do not know.
        """
        with Ledger(self._paths.run) as ledger:
            if not wanted():
                return ()
            work = self.before(untrusted_entries, Applying(ledger))
            work.raise_first()
            try:
                self._online(vif, work, found=found)
            finally:
                self.memory = work.memory
            return work.done

    def _online(self, vif: Vif, work: PassState, *, found: bool) -> None:
        if not self._resident:  # whose passes do it
            self._vifs.follow(work)
        for step in (self._keep, self._limit):
            try:
                work = step(work)
            except GuestnetError:
                break  # the pass and `check` tell what is wrong with the file; the qube has its network
        firewall = self._enforcing()
        if firewall is not None and found:
            firewall.found(work, vif.addresses)
        elif firewall is not None and not self._vifs.knows(vif):
            firewall.shut(work, vif.addresses)
            work.raise_first()
        self._vifs.online(vif, work)

    def offline(
        self, vif: Vif, untrusted_entries: Mapping[str, bytes], wanted: Callable[[], bool] = lambda: True
    ) -> tuple[str, ...]:
        """Take one vif out of service; usually its device is gone by then. Every step is done, whatever another says.

        Args:
            vif: what hotplug knows; the record completes it.
            untrusted_entries: of QubesDB, empty where it is not to be had.
            wanted: as for `online`.

        Returns:
            What was done, in words.

        Raises:
            GuestnetError: the first step that failed, after the others were done.
        """
        with Ledger(self._paths.run) as ledger:
            if not wanted():
                return ()
            settings = provider.parse_provider(untrusted_entries)
            progress = Progress(Applying(ledger), self.memory)
            work = PassState(settings, active=True, ipv6=False, progress=progress)
            firewall = self._enforcing()
            if firewall is not None:
                firewall.detached(work, self._vifs.leaving(vif))
            self._vifs.drop(vif, work)
            # What is left to do is done by the next sweep.
            self.memory = work.memory._replace(swept=None) if work.errors else work.memory
            work.raise_first()
            return work.done

    # --- vifs --------------------------------------------------------------------------------------------------

    def _sweep(self, work: PassState) -> PassState:
        """Look after all vifs and the addresses behind this qube, unless they were last made for just this."""
        settings = work.settings
        self._vifs.close_replaced(work)
        ipv6 = (settings.gateway6, work.ipv6, settings.refuse6)
        reason = (settings.connected, settings.gateway, ipv6, work.mtu, work.limits, work.kept)
        if work.memory.swept == reason:
            if not work.is_verified(SETS, self._nft):
                self._refill(work)
            return work
        try:
            work.mark_verified(SETS, self._nft.mark())
        except KernelError as error:
            if error.needs_root and not work.run.applies:
                work.failed(error)
                return self._vifs.look(work)
            raise
        before = len(work.errors)
        work = self._vifs.sweep(work)
        if len(work.errors) == before:
            work.remember(work.memory._replace(swept=reason))
        return work

    def _refill(self, work: PassState) -> None:
        """What the sets are to hold; where that fails, the next pass tries again."""
        before = len(work.errors)
        work.mark_verified(SETS, self._nft.mark())  # our own transactions from here on keep it so
        work.attempt(self._vifs.refill)
        if len(work.errors) > before:
            work.remember(work.memory.invalidate(SETS))


def _offload(paths: Paths, transactions: Transactions) -> Offload:
    from .offload import Offload  # never in a command

    return Offload(paths, transactions)


def _guard(transactions: Transactions) -> ProviderGuard:
    from .guard import ProviderGuard  # it ends with its process

    return ProviderGuard(transactions)
