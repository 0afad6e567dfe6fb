# SPDX-License-Identifier: GPL-2.0-or-later
"""The virtual DNS of a provider: its addresses lead to the servers that the provider uses itself.

What decides is in `core.nameservers` and, for rules of others in our chain, in `core.foreign_names`; here the facts are
gathered and the answer is put in force.

There is one list of servers, and everything that needs it gets it from here: the redirection, the updates proxy, and
the set `dns-addr` of the firewall's table where that is there (behaviour B45: the firewall's own list held 127.0.0.53
while the redirection went to a VPN's server, and restricted qubes had no names).
"""

from __future__ import annotations

import socket
import time
from functools import partial
from ipaddress import IPv4Address

from ..core import attachment, endpoint, foreign_names, name_followers, nameservers, nftables, provider
from ..core.name_followers import Facts
from ..core.nameservers import NameFacts
from ..core.operations import Outcome, Planned
from ..core.provider_operations import SetFirewallServers
from ..core.record import FOREIGN, Loaded, Record, checksum
from ..dispatch import of_rules
from ..errors import GuestnetError
from ..system import conntrack, devices, files, nft, nft_kernel, services
from ..system.systemd import INFO, WARNING, log
from ..transactions import DOUBTED, MISSING, Transactions, seen
from ..work import Work

TYPE_CHECKING = False  # of `typing`, which costs 5 ms and 1 MB (see system/lean)
if TYPE_CHECKING:
    from ..core.endpoint import Endpoint
    from ..core.foreign_names import Judgement
    from ..core.nameservers import Choice
    from ..paths import Paths
    from ..system.netlink import Kernel
    from ..uplink.other_services import OtherServices

REDIRECTION = "virtual DNS"
FIREWALL = "firewall's servers"
_Virtual = tuple[IPv4Address, ...]
_Asked = tuple[_Virtual, "tuple[Endpoint, ...]"]  # virtual addresses, and the servers they would lead to


class Names:
    """The virtual DNS.

    Args:
        paths: where the qube's files are.
        kernel: the adapter, which knows the way to an address.
        others: the other services of the qube, for systemd-resolved's servers.
        transactions: of this process.
        resident: it is the agent's, whose journal tells of what is not as usual.
    """

    def __init__(
        self, paths: Paths, kernel: Kernel, others: OtherServices, transactions: Transactions, *, resident: bool = False
    ) -> None:
        self._paths, self._kernel, self._others, self._nft = paths, kernel, others, transactions
        self._resident = resident
        self._told: tuple[Endpoint, ...] | None = None  # what the firewall's set was last made to hold
        self._foreign: tuple[_Asked, Judgement] | None = None  # of what another program has in the chain
        self._disturbed: tuple[float, float, str] | None = None  # since when it is changed, changed last, and its sum
        self._why = ""  # the chain is put back
        self._same = False  # what is in it is as ours, by whichever program
        self._trouble = ""  # what the journal was told last

    def lead(self, work: Work, own_servers: tuple[IPv4Address, ...], uplinks: frozenset[int], *, kept: bool) -> None:
        """Have it lead to the right servers.

        Args:
            work: the pass.
            own_servers: the virtual DNS servers that this qube itself was given.
            uplinks: interface indexes of its uplinks.
            kept: resolv.conf is taken to be a VPN's or a hook's.
        """
        virtual = work.settings.virtual_dns
        if "dns" in work.settings.held:
            if work.provided.names.text:
                return
            virtual = provider.VIRTUAL_DNS  # what the qubes were told all the same; nothing is to pass by the rules
        choice = self._choose(work, (own_servers, virtual), uplinks, kept=kept)
        if choice is None:
            return
        work.names = choice
        if choice.last != work.provided.last:
            work.save(work.provided._replace(last=choice.last))
        self._bring(work, choice, virtual)
        servers = work.names.servers
        work.settle(partial(self._plan_followers, servers, choice.servers), of_rules(self._nft))
        self._tell_people(work)

    def _choose(
        self, work: Work, addresses: tuple[_Virtual, _Virtual], uplinks: frozenset[int], *, kept: bool
    ) -> Choice | None:
        """The decision; None for leaving what is in force, because the owner's file is not valid.

        Args:
            work: the pass.
            addresses: the virtual DNS servers that this qube was given, and those that the qubes ask.
            uplinks: interface indexes of its uplinks.
            kept: resolv.conf is taken to be a VPN's or a hook's.
        """
        own, virtual = addresses
        try:
            settings = services.configured_dns(self._paths.config)
        except GuestnetError as error:
            work.errors.append(error)
            if work.provided.names.text:
                return None
            return nameservers.Choice((), "guestnet.toml is not valid")  # it may have named others than we would
        data, unreadable = b"", ""
        try:
            data = files.read(self._paths.resolv_conf) or b""
        except GuestnetError as error:
            unreadable = error.problem
        heard = self._others.hear_names(uplinks) if settings.servers is None else nameservers.NEVER_THERE
        last = work.provided.last
        looked = heard.links is not None or last is not None
        up, names = (devices.up(), dict(socket.if_nameindex())) if looked else ({}, {})
        facts = NameFacts(
            own, bool(uplinks), settings.servers, heard, data, unreadable, kept, last, up, names,
            hold=settings.hold, now=int(time.monotonic()), virtual=virtual,
        )  # fmt: skip
        if nameservers.leads_nowhere(facts):
            problem = f"{self._paths.config}: [dns] servers names {nameservers.NOWHERE_WORDS}: names are refused"
            work.errors.append(GuestnetError(problem, "name servers that other qubes can ask, or remove the key"))
        ways = {address: self._kernel.way(address) for address in nameservers.asked_by_route(facts)}
        return nameservers.choose(facts._replace(ways=ways))

    # --- the chain -------------------------------------------------------------------------------------------------

    def _bring(self, work: Work, choice: Choice, virtual: _Virtual) -> None:
        """Put it in force, unless another program's rules are to stay in its place."""
        pairs = nameservers.pairs(virtual, choice.servers)
        text = nftables.dnat(pairs, virtual, choice.servers)
        wanted, there = checksum(text.encode()), work.provided.names
        asked = (virtual, choice.servers)
        if there.text in (wanted, FOREIGN) and self._nft.settled(REDIRECTION):
            if there.text == wanted:
                return
            if self._foreign is not None and self._foreign[0] == asked:
                self._report_foreign(work, self._foreign[1])
                return
        generation, tables = nft_kernel.generation(), nft.tables(("ip",))
        now = seen(nftables.DNS_CHAINS, tables)
        if (there.text, there.seen) == (wanted, now):
            self._disturbed = None
            work.save(work.provided._replace(pending=None))
            self._nft.found_right(REDIRECTION, generation)
            return
        changed, self._same = now not in (there.seen, MISSING), False
        if (changed or there.text == FOREIGN) and self._keeps(work, asked, tables["ip"], changed, generation):
            return
        # No other program is at work on it.
        doubted = self._same and (there.seen == DOUBTED or work.provided.pending is not None)
        if changed and there.text and not (doubted or work.dry_run) and self._waits(work, choice, now):
            return
        self._foreign = self._disturbed = None
        led = " ".join(f"{address}->{server}" for address, server in pairs)
        words = led or ("rejected" if choice.problem else f"rejected, {choice.reason}")
        work.do(f"nft -f: virtual DNS {words}", partial(self._redirect, work, text, virtual))

    def _keeps(self, work: Work, asked: _Asked, listing: str, changed: bool, generation: int) -> bool:
        """Whether the chain holds another program's rules that stay; ours among them are brought up to date."""
        virtual, servers = asked
        rules, ours = foreign_names.rules(listing), nftables.dnat_rules(nameservers.pairs(virtual, servers))
        former, announced = _led(work.provided.servers, virtual), _led(work.provided.pending or (), virtual)
        judgement = foreign_names.judge(listing, virtual)
        self._same = rules == ours or (work.provided.pending is not None and rules == announced)
        # The same as ours is ours: left behind by a script that did this before, or by an agent without its record, or
        # by one that was killed between the load and the record (behaviour B148).
        if not judgement.kept or self._same:
            self._why = judgement.words
            return False
        fresh = foreign_names.refreshed(foreign_names.refreshed(rules, former, ours), announced, ours)
        self._disturbed = None
        self._foreign = (asked, judgement)
        self._report_foreign(work, judgement)
        if changed or fresh != rules:
            words = f"nft -f: virtual DNS: rules of others in dnat-dns are kept: {judgement.words}"
            text = nftables.redirection(fresh) if fresh != rules else ""
            # Where ours go on beside theirs, what is led to the provider of this qube by its own address passes.
            passing = servers if frozenset(ours) & frozenset(fresh) else ()
            work.do(words, partial(self._take_note, work, text + nftables.refusal(virtual, passing), asked, generation))
        elif not work.dry_run:
            self._nft.found_right(REDIRECTION, generation)
        return True

    def _waits(self, work: Work, choice: Choice, now: str) -> bool:
        """Whether another program may be at work on the chain still. What it does not redirect meanwhile is refused."""
        if not self._resident:
            return False
        clock = time.monotonic()
        first, last, before = self._disturbed or (clock, clock, now)
        self._disturbed = (first, last if before == now else clock, now)
        if foreign_names.unfinished(*self._disturbed[:2], clock):
            work.names = choice._replace(again=foreign_names.QUIET_SECONDS)
            return True
        log(WARNING, f"another program changed the chain ip qubes dnat-dns, which is put back: {self._why}")
        return False

    def _report_foreign(self, work: Work, judgement: Judgement) -> None:
        """Names go by what the chain holds."""
        reason = f"rules of another program in the chain ip qubes dnat-dns: {judgement.words}"
        last = work.names.last if work.names is not None else None
        work.names = nameservers.Choice(judgement.servers, reason, nameservers.FOREIGN, last)

    def _take_note(self, work: Work, text: str, asked: _Asked, judged: int) -> None:
        """Another program's rules are in force from now on; what they do not redirect is refused."""
        virtual, servers = asked
        _announce(work, servers)
        self._nft.run(text)
        self._loaded(work, FOREIGN, virtual, servers, since=judged)

    def _redirect(self, work: Work, text: str, virtual: _Virtual) -> None:
        servers = work.names.servers if work.names is not None else ()
        _announce(work, servers)
        self._nft.run(text)
        self._loaded(work, checksum(text.encode()), virtual, servers)

    def _loaded(
        self, work: Work, sum_of_text: str, virtual: _Virtual, chosen: tuple[Endpoint, ...], since: int | None = None
    ) -> None:
        """Record what is in force now; `since` is the generation at which rules of others were judged."""
        listed = seen(nftables.DNS_CHAINS)
        # Whatever was done between is not taken for ours; the next pass judges it (behaviour B148).
        good = self._nft.undisturbed() and since in (None, self._nft.ours - 1)
        loaded = Loaded(sum_of_text, listed if good else DOUBTED)
        conntrack.purge(virtual)  # else a qube that asks from the same port is led to the former server for ever
        servers = tuple(map(str, chosen)) or work.provided.servers
        work.save(work.provided._replace(names=loaded, servers=servers, pending=None))
        if good:
            self._nft.found_right(REDIRECTION, self._nft.ours)

    # --- services and people that are told ---------------------------------------------------------------------------

    def _plan_followers(
        self, servers: tuple[Endpoint, ...], chosen: tuple[Endpoint, ...], record: Record, so_far: Outcome
    ) -> Planned:
        """Observe what has to know where names go, and plan; each is looked at only where it may not know yet.

        Args:
            servers: where names go, be it by rules of another program.
            chosen: where this qube would have them go.
            record: the owned record.
            so_far: what came of the operations of this pass.
        """
        errors: list[GuestnetError] = []
        facts = Facts(servers, chosen, proxy=services.has_updates_proxy(self._paths.flags))
        generation, right = nft_kernel.generation(), self._told == servers and self._nft.settled(FIREWALL)
        try:
            listing = "" if right else nft.named_set("ip", nftables.FIREWALL_TABLE, nftables.DNS_SET)
            facts = facts._replace(held=attachment.listed(listing) if listing else None)
            right = True
        except GuestnetError as error:
            errors.append(error)
        try:
            if name_followers.behind(record):
                active = services.has_firewall(self._paths.flags) and services.firewall_state() == "active"
                facts = facts._replace(firewall=active)
        except GuestnetError as error:
            errors.append(error)
        planned = name_followers.plan(facts, record, so_far)
        if right and not any(isinstance(op, SetFirewallServers) for op in planned.ops):
            self._nft.found_right(FIREWALL, generation)
            self._told = servers
        return planned._replace(errors=tuple(errors))

    def _tell_people(self, work: Work) -> None:
        """The journal, once for each time that names do not go where they usually do."""
        if work.names is None or not self._resident:
            return
        trouble = work.names.reason if work.names.problem else ""
        if trouble != self._trouble:
            servers = " ".join(map(str, work.names.servers)) or "refused"
            log(WARNING if trouble else INFO, f"virtual DNS -> {servers}: {work.names.reason}")
        self._trouble = trouble


def _announce(work: Work, servers: tuple[Endpoint, ...]) -> None:
    """Record where the redirection is about to lead: a killed agent would else take it for another program's (B148)."""
    work.save(work.provided._replace(pending=tuple(map(str, servers))))


def _led(servers: tuple[str, ...], virtual: _Virtual) -> tuple[str, ...]:
    """The rules of a redirection to these servers, as recorded."""
    return nftables.dnat_rules(nameservers.pairs(virtual, tuple(map(endpoint.parse, servers))))
