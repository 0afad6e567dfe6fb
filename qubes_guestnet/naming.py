# SPDX-License-Identifier: GPL-2.0-or-later
"""The virtual DNS of a provider: its addresses lead to the servers that the provider uses itself.

There is one list of servers, and everything that needs it gets it from here: the redirection, the updates proxy, and
the set `dns-addr` of the firewall's table where that is there (behaviour B45: the firewall's own list held 127.0.0.53
while the redirection went to a VPN's server, and restricted qubes had no names).
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from ipaddress import IPv4Address

from .core import attachment, nameservers, nftables, provider
from .core.record import Loaded, checksum
from .system import conntrack, files, nft, services
from .transactions import Transactions, seen
from .work import Work

TYPE_CHECKING = False  # of `typing`, which costs 5 ms and 1 MB (see system/lean)
if TYPE_CHECKING:
    from .others import Others
    from .paths import Paths

REDIRECTION = "virtual DNS"
FIREWALL = "firewall's servers"


class Names:
    """The virtual DNS.

    Args:
        paths: where the qube's files are.
        others: the other programs of the qube, for systemd-resolved's servers.
        transactions: of this process.
    """

    def __init__(self, paths: Paths, others: Others, transactions: Transactions) -> None:
        self._paths, self._others, self._nft = paths, others, transactions
        self._told: tuple[IPv4Address, ...] = ()  # what the firewall's set was last made to hold

    def lead(self, work: Work, own_servers: tuple[IPv4Address, ...], uplinks: frozenset[int]) -> None:
        """Have it lead to the right servers.

        Args:
            work: the pass.
            own_servers: the virtual DNS servers that this qube itself was given.
            uplinks: interface indexes of its uplinks.
        """
        virtual = work.settings.virtual_dns
        if "dns" in work.settings.held:
            if work.provided.names.text:
                return
            virtual = provider.VIRTUAL_DNS  # what the qubes were told all the same; nothing is to pass by the rules
        data = files.read(self._paths.resolv_conf) or b""
        links = self._others.name_servers(uplinks)
        work.servers, work.servers_reason = nameservers.upstream(links, data, own_servers, uplink=bool(uplinks))
        pairs = nameservers.pairs(virtual, work.servers)
        text = nftables.dnat(pairs, virtual, work.servers)
        if not self._in_force(work, checksum(text.encode())):
            words = " ".join(f"{address}->{server}" for address, server in pairs) or "rejected, no server is known"
            work.do(f"nft -f: virtual DNS {words}", partial(self._redirect, work, text, virtual))
        self._tell_firewall(work)

    def _in_force(self, work: Work, wanted: str) -> bool:
        there = work.provided.names
        if there.text != wanted:
            return False
        if self._nft.settled(REDIRECTION):
            return True
        generation = nft.generation()
        if there.seen != seen(nftables.DNS_CHAINS):
            return False
        self._nft.found_right(REDIRECTION, generation)
        return True

    def _redirect(self, work: Work, text: str, virtual: Iterable[IPv4Address]) -> None:
        self._nft.run(text)
        generation = nft.generation()
        loaded = Loaded(checksum(text.encode()), seen(nftables.DNS_CHAINS))
        conntrack.purge(virtual)  # else whoever asks from the same port is led to the former server for ever
        # With nobody to ask there is nothing to start the updates proxy for.
        before, servers = work.provided.servers, tuple(map(str, work.servers)) or work.provided.servers
        work.save(work.provided._replace(names=loaded, servers=servers))
        self._nft.found_right(REDIRECTION, generation)
        if servers != before:
            work.done += services.restart_updates_proxy(self._paths.flags)

    def _tell_firewall(self, work: Work) -> None:
        """The set of the firewall's table, which is made and else filled by the firewall's service."""
        if self._told == work.servers and self._nft.settled(FIREWALL):
            return
        generation = nft.generation()
        listing = nft.named_set("ip", nftables.FIREWALL_TABLE, nftables.DNS_SET)
        there = attachment.listed(listing)
        wanted = frozenset(f"ip {nftables.DNS_SET} {server}" for server in work.servers)
        if listing and there != wanted:
            words = f"nft -f: {nftables.DNS_SET} of the firewall: {' '.join(map(str, work.servers)) or 'none'}"
            work.do(words, partial(self._nft.run, nftables.firewall_servers(work.servers)))
            generation = nft.generation()
        if not work.dry_run:
            self._nft.found_right(FIREWALL, generation)
            self._told = work.servers
