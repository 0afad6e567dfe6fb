# SPDX-License-Identifier: GPL-2.0-or-later
"""The redirection of a provider's virtual DNS addresses to the servers that the provider uses itself.

`core.dns.upstream_servers` chooses the servers, `core.dns.redirection` plans the rules, and `core.dns.dependents` plans
the updates of dependent services; this module gathers the facts.

There is one list of servers for everything: the redirection, the updates proxy, and the set `dns-addr` of the
firewall's table if it exists (behaviour B45: the firewall's own list had 127.0.0.53 while queries were redirected to a
VPN's server, so restricted qubes could not resolve names).
"""

from __future__ import annotations

import time
from functools import partial
from ipaddress import IPv4Address

from ..core.dns import dependents, redirection, upstream_servers
from ..core.dns.redirection import Asked, RedirectMemory
from ..core.dns.redirection_operations import LoadRedirection, SetFirewallServers
from ..core.dns.upstream_servers import NameFacts
from ..core.namedtuple import NamedTuple
from ..core.nft import tables
from ..core.operations import Outcome, Planned
from ..core.owned_state import Record
from ..core.provider import settings as provider
from ..core.provider import vif_order
from ..dispatch import of_rules
from ..errors import GuestnetError
from ..system import devices, files, guestnet_toml, service_flags, systemctl
from ..system.nft import program as nft
from ..system.systemd import INFO, WARNING, log
from .pass_state import PassState
from .ruleset_generation import Transactions

TYPE_CHECKING = False  # of `typing`, which costs 5 ms and 1 MB (see system/deferred_imports)
if TYPE_CHECKING:
    from ..core.dns.upstream_servers import Choice
    from ..core.endpoint import Endpoint
    from ..core.operations import Operation
    from ..core.report import ResolverReport
    from ..system.netlink.rtnl import Kernel
    from ..system.paths import Paths
    from ..uplink.other_services import OtherServices
    from .firewall import Firewall

    _Servers = tuple[Endpoint, ...]

REDIRECTION = "virtual DNS"
FIREWALL = "firewall's servers"
_LOOKS = 3


class _Ground(NamedTuple):
    """The inputs of the choice of servers, besides the record and observed facts.

    Args:
        own: the virtual DNS addresses of this qube's own provider.
        virtual: the virtual DNS addresses of client qubes.
        uplinks: interface indexes of the uplinks.
        file: resolv.conf and its owner; None if unknown.
        firewall: the firewall of client qubes; None if this process does not enforce it.
    """

    own: tuple[IPv4Address, ...]
    virtual: tuple[IPv4Address, ...]
    uplinks: frozenset[int]
    file: ResolverReport | None
    firewall: Firewall | None


class DnsRedirect:
    """The redirection of the virtual DNS addresses.

    Args:
        paths: locations of the qube's files.
        kernel: the adapter, which looks up routes.
        others: the other services of the qube, for systemd-resolved's servers.
        transactions: transactions of this process.
        resident: this is the resident agent, which logs unusual redirections.
    """

    def __init__(
        self, paths: Paths, kernel: Kernel, others: OtherServices, transactions: Transactions, *, resident: bool = False
    ) -> None:
        self._paths, self._kernel, self._others, self._nft = paths, kernel, others, transactions
        self._resident = resident

    def apply(
        self,
        work: PassState,
        own_servers: tuple[IPv4Address, ...],
        uplinks: frozenset[int],
        *,
        file: ResolverReport | None,
        firewall: Firewall | None = None,
    ) -> PassState:
        """Redirect the virtual DNS addresses to the upstream servers.

        Args:
            work: the pass.
            own_servers: the virtual DNS servers that this qube itself was given.
            uplinks: interface indexes of its uplinks.
            file: resolv.conf, and whose it is taken to be; None where that is not known.
            firewall: of single qubes, whose rules for DNS accept the same servers from the same moment on (B45); None
                where this process does not enforce it.

        Returns:
            The state with `names`.
        """
        virtual = work.settings.virtual_dns
        if "dns" in work.settings.held:
            if work.provided.names.text:
                return work
            virtual = provider.VIRTUAL_DNS  # client qubes use the defaults then; no query may bypass the rules
        work, choice = self._follow(work, _Ground(own_servers, virtual, uplinks, file, firewall))
        if choice is None:
            return work
        servers = work.names.servers if work.names is not None else choice.servers
        work.settle(partial(self._plan_followers, work, servers, choice.servers), of_rules(self._nft))
        self._log(work)
        return work

    def _follow(self, work: PassState, ground: _Ground) -> tuple[PassState, Choice | None]:
        """Choose, load, and choose again, because a VPN's client may announce other servers while nft runs.

        The next pass may be half a second away.

        Returns:
            The state with `names`, and the last choice; None if the redirection stays unchanged.
        """
        known = len(work.errors)
        for _ in range(_LOOKS):
            work.progress.withdraw(work.errors[known:])
            choice = self._choose(work, ground)
            if choice is None:
                return work, None
            if choice.last != work.provided.last:
                try:
                    work.save(work.provided._replace(last=choice.last))
                except GuestnetError as error:
                    work.failed(error)
                    return work._replace(names=choice), None
            work, outcome = self._redirect(work, Asked(ground.virtual, choice), ground.firewall)
            if outcome.errors:
                return work, None
            if not outcome.done:
                break
        return work, choice

    def _choose(self, work: PassState, ground: _Ground) -> Choice | None:
        """Return the choice; None to keep the redirection in force, because the owner's file is invalid."""
        file, down = ground.file, ground.file.down if ground.file is not None else ""
        try:
            settings = guestnet_toml.configured_dns(self._paths.config)
        except GuestnetError as error:
            work.failed(error)
            if work.provided.names.text:
                return None
            return upstream_servers.Choice((), "guestnet.toml is invalid")  # it may name servers other than our choice
        data, unreadable = b"", ""
        try:
            data = files.read(self._paths.resolv_conf) or b""
        except GuestnetError as error:
            unreadable = error.problem
        heard = self._others.hear_names(ground.uplinks) if settings.servers is None else upstream_servers.NEVER_THERE
        last = work.provided.last
        looked = heard.links is not None or last is not None
        up, names = (devices.up(), devices.names()) if looked else ({}, {})
        facts = NameFacts(
            ground.own, bool(ground.uplinks), settings.servers, heard, data, unreadable,
            file is not None and file.kept, last, up, names,
            hold=settings.hold, now=int(time.monotonic()), virtual=ground.virtual, down=down,
        )  # fmt: skip
        if upstream_servers.leads_nowhere(facts):
            problem = (
                f"{self._paths.config}: [dns] servers has {upstream_servers.NOWHERE_WORDS}: DNS queries are rejected"
            )
            work.failed(GuestnetError(problem, "name servers that client qubes can reach, or remove the key"))
        ways = {address: self._kernel.way(address) for address in upstream_servers.asked_by_route(facts)}
        return upstream_servers.choose(facts._replace(ways=ways))

    # --- the chains ------------------------------------------------------------------------------------------------

    def _redirect(self, work: PassState, asked: Asked, firewall: Firewall | None) -> tuple[PassState, Outcome]:
        """Load the redirection, or keep another program's rules.

        Returns:
            The state with `names`, the redirection then in force, and the result of the operations.
        """
        names = asked.choice

        def plan(record: Record, so_far: Outcome) -> Planned:
            nonlocal names
            names, planned = self._plan(work, asked, record, so_far)
            allows = firewall is not None and firewall.has_servers(work) if _loads(planned) else False
            return planned._replace(ops=tuple(_allowing(op) for op in planned.ops)) if allows else planned

        outcome = work.settle(plan, of_rules(self._nft))
        for op in outcome.done:
            if isinstance(op, LoadRedirection) and op.allows and firewall is not None:
                firewall.allowed(work, op.allowed)
            if isinstance(op, LoadRedirection) and op.trouble:
                log(WARNING, f"another program changed the chain ip qubes dnat-dns; restored it: {op.trouble}")
        return work._replace(names=names), outcome

    def _plan(self, work: PassState, asked: Asked, record: Record, so_far: Outcome) -> tuple[Choice, Planned]:
        """Observe, unless nothing can have changed, and plan. Return the redirection, and the plan."""
        memory, known = _memory(work), None
        if so_far == Outcome() and work.is_verified(REDIRECTION, self._nft):
            known = redirection.known(asked, memory.chains, record)
        if known is not None:
            return known, Planned((), record)
        mark = self._nft.mark()
        facts = redirection.Facts(
            mark.generation,
            self._nft.tables(("ip",))["ip"],
            self._nft.undisturbed(),
            self._nft.ours,
            time.monotonic(),
            self._resident,
        )
        decision = redirection.plan(asked, facts, memory.chains, record, so_far)
        _remember(work, memory._replace(chains=decision.memory))
        if decision.right == mark.generation:
            work.mark_verified(REDIRECTION, mark)
        return decision.choice, decision.planned

    # --- services and people that are told ---------------------------------------------------------------------------

    def _plan_followers(
        self, work: PassState, servers: _Servers, chosen: _Servers, record: Record, so_far: Outcome
    ) -> Planned:
        """Plan the updates of dependent services; each is observed only if it may be out of date.

        Args:
            work: the pass.
            servers: servers in force, even if another program's rules chose them.
            chosen: servers that this qube would choose.
            record: the owned record.
            so_far: result of the operations of this pass so far.
        """
        errors: list[GuestnetError] = []
        proxy = service_flags.proxies_updates(self._paths.flags) and systemctl.installed()
        facts = dependents.Facts(servers, chosen, proxy=proxy)
        if service_flags.enforces(self._paths.flags, self._paths.run):
            return dependents.plan(facts, record, so_far)  # `provider.firewall` has the set and the names
        mark, memory = self._nft.mark(), _memory(work)
        right = memory.followers == servers and work.is_verified(FIREWALL, self._nft)
        try:
            listing = "" if right else nft.named_set("ip", tables.FIREWALL, tables.DNS_SET)
            facts = facts._replace(held=vif_order.listed(listing) if listing else None)
            right = True
        except GuestnetError as error:
            errors.append(error)
        try:
            if dependents.behind(record):
                filters = service_flags.filters(self._paths.flags) and systemctl.managed()
                facts = facts._replace(firewall=filters and systemctl.firewall_state() == "active")
        except GuestnetError as error:
            errors.append(error)
        planned = dependents.plan(facts, record, so_far)
        if right and not any(isinstance(op, SetFirewallServers) for op in planned.ops):
            work.mark_verified(FIREWALL, mark)
            _remember(work, memory._replace(followers=servers))
        return planned._replace(errors=tuple(errors))

    def _log(self, work: PassState) -> None:
        """Log each unusual redirection once."""
        names, memory = work.names, _memory(work)
        if names is None or not self._resident:
            return
        trouble = names.reason if names.problem else ""
        if trouble != memory.trouble:
            lead = " ".join(map(str, names.servers)) or "refused"
            if names.servers or names.problem != upstream_servers.FOREIGN:  # their target may be this qube itself
                log(WARNING if trouble else INFO, f"virtual DNS -> {lead}: {names.reason}")
            else:
                log(WARNING, f"virtual DNS: {names.reason}")
        _remember(work, memory._replace(trouble=trouble))


def _memory(work: PassState) -> RedirectMemory:
    return work.memory.redirect or RedirectMemory()


def _remember(work: PassState, memory: RedirectMemory) -> None:
    work.remember(work.memory._replace(redirect=memory))


def _loads(planned: Planned) -> bool:
    return any(isinstance(op, LoadRedirection) for op in planned.ops)


def _allowing(op: Operation) -> Operation:
    """Return the operation with the servers that client qubes' rules for DNS accept."""
    return op._replace(allows=True) if isinstance(op, LoadRedirection) else op
