# SPDX-License-Identifier: GPL-2.0-or-later
"""The provider's half of a pass: rules, vifs, virtual DNS and forwarding for client qubes.

Theory of operation. The order ensures safety: anti-spoofing and base rules, then the vifs, then the DNS redirection,
and forwarding last; the shutdown has the reverse order. `before` and `after` are the two ends, and the uplink is
configured between them. The client qubes' firewall comes after the base rules and before forwarding.

`online` alone configures a vif, at the same cost with 1 and with 250 vifs. A pass checks all vifs only if they may have
changed: after a start, with new settings, or after another program changed rules. The generation number of nftables
detects such a change, so a pass of an idle provider lists nothing.
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
    """The provider's half of each pass of a process; its only state between passes is `memory`.

    Args:
        paths: locations of the qube's files.
        kernel: the adapter.
        others: the other services of the qube, for systemd-resolved's servers.
        resident: this is the resident agent, which may offload connections because it ends the offload in time.
        counted: the report has the numbers of each qube's unanswered connections.
        source: source of the firewall's entries; None in a command.

    Attributes:
        memory: memory of the last pass.
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
        self._firewall: Firewall | None = None  # created if this program enforces it

    # --- a pass ------------------------------------------------------------------------------------------------

    def before(self, untrusted_entries: Mapping[str, bytes], run: Applying) -> PassState:
        """Load the rules, which come before anything else, and end what is no longer wanted.

        Args:
            untrusted_entries: all entries of QubesDB below the provider's prefixes.
            run: carries out plans, or only plans.
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
        """Return the firewall of client qubes; None if this process does not enforce it."""
        if self._source is None or not self.enforces:
            return None
        if self._firewall is None:
            from .firewall import Firewall  # unused with core-agent's firewall, or without any

            self._firewall = Firewall(self._paths, self._kernel, self._nft, self._source)
        return self._firewall

    def _enforce(self, uplinks: frozenset[int], work: PassState) -> PassState:
        """Load the lists of client qubes; in a pass for a command return their conditions."""
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
        """Redirect the virtual DNS addresses, and make client qubes' rules for DNS accept the same servers."""
        return self._dns.apply(work, own, uplinks, file=file, firewall=self._enforcing())

    @staticmethod
    def _keep(work: PassState) -> PassState:
        """Read conntrack's timeouts."""
        return work._replace(kept=limits.kept(lambda name: procfs_sysctl.read((NETFILTER, name))))

    def _limit(self, work: PassState) -> PassState:
        """Read the limits of each qube, bounded by the present size of conntrack."""
        configured = guestnet_toml.configured_limits(self._paths.config)
        return work._replace(limits=limits.possible(configured, int(procfs_sysctl.read((NETFILTER, CONNTRACK)) or 0)))

    def after(
        self,
        work: PassState,
        own_servers: tuple[IPv4Address, ...],
        uplinks: Iterable[InterfaceReport],
        resolver: ResolverReport | None = None,
    ) -> ProviderReport:
        """Carry out the rest, after the uplink is configured.

        Args:
            work: from `before`.
            own_servers: the virtual DNS addresses of this qube's own provider.
            uplinks: its own interfaces.
            resolver: resolv.conf, if there is an uplink.
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
        # Only for commands: with 250 vifs this reads 500 files.
        return report._replace(apart=apart()) if work.active and not work.run.applies else report

    # --- what the command line asks ----------------------------------------------------------------------------

    def sync_names(
        self, untrusted_entries: Mapping[str, bytes], settings: Settings, uplinks: frozenset[int]
    ) -> tuple[str, ...]:
        """Update only the redirection of the virtual DNS addresses.

        Returns:
            The operations carried out, in words; empty if the targets are those of the last call.

        Raises:
            GuestnetError: the update failed.
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
                # The agent is often faster, but the caller must know whether the targets have changed (B135).
                work.save(work.provided._replace(synced=work.provided.leading))
                return work.done or (f"virtual DNS: redirected to {' '.join(work.provided.servers)}",)
            return work.done

    def _file(self, settings: Settings, uplinks: frozenset[int], ledger: Ledger) -> ResolverReport | None:
        """Return resolv.conf and its owner, without changing it; None if it is unreadable."""
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
        """Return whether this program enforces the lists of client qubes."""
        return service_flags.enforces(self._paths.flags, self._paths.run)

    @property
    def firewall_names(self) -> FirewallNames | None:
        """Return the names in firewall rules; None if there are none."""
        return self._firewall.names if self._firewall is not None else None

    @property
    def has_lists_in_force(self) -> bool:
        """Return whether the last pass loaded the lists of all client qubes."""
        return self.enforces and self.memory.firewall is not None and self.memory.firewall.settled

    def rules_changed(self) -> None:
        """After a change of rules, close forwarding at once if any of ours are missing. Raises GuestnetError."""
        self.memory = self._rules.close_if_lost(self.memory)

    def look_at_everything(self) -> None:
        """Make the next pass read everything again."""
        self.memory = self.memory.doubted()
        if self._firewall is not None:
            self._firewall.ask_anew()

    def strangers(self) -> tuple[str, ...]:
        """Return the names of vifs that hotplug has not announced: they existed before the agent started (#1990)."""
        return self._vifs.strangers()

    def late_mappings(self, untrusted_entries: Mapping[str, bytes]) -> tuple[Vif, ...]:
        """Return vifs whose fake addresses were written only after they were configured (#9318), to configure again.

        Raises:
            GuestnetError: records cannot be written, or it is unknown which qubes have already sent packets.
        """
        if not any(path.startswith(provider.MAPPED) for path in untrusted_entries):
            return ()
        return self._vifs.late_mappings(untrusted_entries)

    def end_offload(self) -> None:
        """End the offload until the next pass, because without passes it would outlive changed rules.

        Raises:
            GuestnetError: the flowtable cannot be removed.
        """
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
        """Configure a vif, or repair a configured one.

        Args:
            vif: the vif as hotplug described it.
            untrusted_entries: entries of QubesDB, for the gateway's addresses and IPv6.
            wanted: called when the lock is held; returns whether the request is still wanted.
            found: the vif existed before, and the agent found it.

        Returns:
            The operations carried out, in words; none if the request was no longer wanted.

        Raises:
            GuestnetError: an operation was refused. The link is then down, or was up before, and can send only what the
                rules allow.
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
                break  # the pass and `check` report the problem of the file; the qube has its network
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
        """Take a vif out of service; usually its device is already gone. A failed step does not stop the others.

        Args:
            vif: hotplug's description; the record completes it.
            untrusted_entries: entries of QubesDB, empty if it does not answer.
            wanted: as for `online`.

        Returns:
            The operations carried out, in words.

        Raises:
            GuestnetError: the error of the first failed step, after the others were carried out.
        """
        with Ledger(self._paths.run) as ledger:
            if not wanted():
                return ()
            settings = provider.parse_provider(untrusted_entries)
            progress = Progress(Applying(ledger), self.memory)
            work = PassState(settings, active=True, ipv6=False, progress=progress)
            firewall = self._enforcing()
            try:
                if firewall is not None:
                    firewall.detached(work, self._vifs.leaving(vif))
                self._vifs.drop(vif, work)
            finally:
                # The next sweep completes the rest.
                self.memory = work.memory._replace(swept=None) if work.errors else work.memory
            work.raise_first()
            return work.done

    # --- vifs --------------------------------------------------------------------------------------------------

    def _sweep(self, work: PassState) -> PassState:
        """Check all vifs and the protected addresses, unless they are verified for the present settings."""
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
        # Vifs may have the new settings even if another one fails; then the former settings must count as a change.
        work.remember(work.memory._replace(swept=None))
        before = len(work.errors)
        work = self._vifs.sweep(work)
        if len(work.errors) == before:
            work.remember(work.memory._replace(swept=reason))
        return work

    def _refill(self, work: PassState) -> None:
        """Fill the sets; if that fails, the next pass tries again."""
        before = len(work.errors)
        work.mark_verified(SETS, self._nft.mark())  # our own later transactions keep it valid
        work.attempt(self._vifs.refill)
        if len(work.errors) > before:
            work.remember(work.memory.invalidate(SETS))


def _offload(paths: Paths, transactions: Transactions) -> Offload:
    from .offload import Offload  # never in a command

    return Offload(paths, transactions)


def _guard(transactions: Transactions) -> ProviderGuard:
    from .guard import ProviderGuard  # it ends with its process

    return ProviderGuard(transactions)
