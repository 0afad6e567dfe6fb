# SPDX-License-Identifier: GPL-2.0-or-later
"""Evaluate a list for a packet: the verdict, and the entry that decides.

The same evaluator selects the connections that a change ends and serves `firewall test`; tests compare it with the
kernel. It judges a packet as the chain `forward` sees it, with its destination after DNAT.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from ..namedtuple import NamedTuple
from ..values import IPAddress
from .binding import Bound
from .name_cache import Known
from .rules import DNS_PORT, WITH_PORTS, Rule, number_of

ACCEPT, REFUSE, DEPENDS = "accept", "refuse", "depends"
# Instead of the number of an entry.
POLICY, BLOCKED = -1, -2


class Packet(NamedTuple):
    """The first packet of a connection from a qube.

    Args:
        destination: destination address after DNAT.
        protocol: IP protocol number (in IPv6 that after the extension headers).
        port: destination port after DNAT, for TCP and UDP.
        icmp_type: ICMP type, for ICMP.
    """

    destination: IPAddress
    protocol: int
    port: int | None = None
    icmp_type: int | None = None


class Verdict(NamedTuple):
    """The verdict for a packet.

    Args:
        answer: ACCEPT or REFUSE, whatever the addresses of unanswered names are; DEPENDS: the addresses of such a name
            decide, and until they are known the packet is refused.
        entry: number of the entry that decides; POLICY if none matches, BLOCKED if the whole list is refused. For
            DEPENDS: the entry of the first unanswered name that matters.
    """

    answer: str
    entry: int

    @property
    def passes(self) -> bool:
        """Return whether the packet passes now."""
        return self.answer == ACCEPT


def judge(bound: Bound, packet: Packet, dns: Collection[IPAddress] = ()) -> Verdict:
    """Return the verdict of a list: the first rule that matches decides, and the policy if none does.

    Args:
        bound: the list.
        packet: a packet from its address.
        dns: the name servers in the set `dns-addr`.
    """
    if bound.refused:
        return Verdict(REFUSE, BLOCKED)
    if packet.destination.version != bound.ruleset.address.version:
        return Verdict(REFUSE, POLICY)
    undecided: list[Rule] = []
    entry, accept = POLICY, bound.accept
    for rule, surely in _matching(bound, packet, dns):
        if surely:
            entry, accept = rule.number, rule.accept
            break
        undecided.append(rule)
    for rule in undecided:
        if rule.accept != accept:
            return Verdict(DEPENDS, rule.number)
    return Verdict(ACCEPT if accept else REFUSE, entry)


def shadowed(bound: Bound, dns: Collection[IPAddress]) -> tuple[tuple[IPAddress, int], ...]:
    """Return the name servers that a list allows as such but an earlier entry refuses, with that entry.

    An example is "drop the LAN, then accept DNS" if the name server is in the LAN: the first match decides.

    Args:
        bound: the list.
        dns: the name servers.
    """
    found = []
    for server in sorted((each for each in dns if each.version == bound.ruleset.address.version), key=int):
        for protocol in WITH_PORTS:
            packet = Packet(server, number_of(protocol, server.version), DNS_PORT)
            verdict = judge(bound, packet, dns)
            allows = (rule for rule, _ in _matching(bound, packet, dns) if rule.dns and rule.accept)
            if verdict.answer == REFUSE and verdict.entry >= 0 and any(rule.number > verdict.entry for rule in allows):
                found.append((server, verdict.entry))
                break
    return tuple(found)


class Explained(NamedTuple):
    """The result of one rule for a packet.

    Args:
        rule: the rule.
        matches: whether it matches; None if that depends on unknown addresses of a name.
        why: the condition that does not match, in words; "" if all match.
    """

    rule: Rule
    matches: bool | None
    why: str


def explained(bound: Bound, packet: Packet, dns: Collection[IPAddress] = ()) -> Iterator[Explained]:
    """Yield the result of each rule, up to the one that decides.

    Args:
        bound: the list.
        packet: a packet from its address, and thus of its family.
        dns: the name servers.
    """
    for rule in bound.ruleset.rules:
        why = _mismatch(rule, packet, dns)
        matches = False if why else _has(bound.of(rule.host), rule.host, packet.destination)
        if matches is False:
            why = why or f"{packet.destination} is not an address of {rule.host}"
        elif matches is None:
            why = f"not all addresses of {rule.host} are known" if rule.host else "the name is never looked up"
        yield Explained(rule, matches, why)
        if matches:
            return


def _matching(bound: Bound, packet: Packet, dns: Collection[IPAddress]) -> Iterator[tuple[Rule, bool]]:
    """Return the rules that match or may match, and whether they certainly match."""
    for rule in bound.ruleset.rules:
        if not _mismatch(rule, packet, dns):
            found = _has(bound.of(rule.host), rule.host, packet.destination)
            if found is not False:
                yield rule, found is True


def _has(known: Known, host: str | None, address: IPAddress) -> bool | None:
    """Return whether a name has an address; None if unknown. A rule without a name matches any address."""
    if host is None or address in known.addresses:
        return True
    return False if known.whole else None


def _mismatch(rule: Rule, packet: Packet, dns: Collection[IPAddress]) -> str:
    """Return the condition that a packet does not match, in words, without that about a name; "" for none."""
    version = packet.destination.version
    if rule.network is not None and packet.destination not in rule.network:
        return "another destination"
    if rule.protocol and packet.protocol != number_of(rule.protocol, version):
        return "another protocol"
    if rule.icmp_type is not None and packet.icmp_type != rule.icmp_type:
        return "another ICMP type"
    with_ports = packet.protocol in (number_of(protocol, version) for protocol in WITH_PORTS)
    if rule.dns and not (with_ports and packet.port == DNS_PORT):
        return "not a DNS query"
    if rule.dns and packet.destination not in dns:
        return "the destination is not a name server of this provider"
    if rule.ports is not None and not (with_ports and packet.port in rule.ports):
        return "another port"
    return ""
