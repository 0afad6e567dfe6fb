# SPDX-License-Identifier: GPL-2.0-or-later
"""The rules of one qube as values. Their constructors reject impossible rules.

A rule is one entry of dom0's list. It matches a packet that meets all its conditions; the first matching rule decides,
and the policy if none matches. A text for nft contains only fields of these values.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..namedtuple import NamedTuple
from ..values import IPV4, IPAddress, IPNetwork
from .name_messages import canonical, problem_of

TCP, UDP, ICMP = "tcp", "udp", "icmp"
PROTOCOLS = (TCP, UDP, ICMP)
# The protocols with ports, which an entry with ports but without a protocol matches.
WITH_PORTS = (TCP, UDP)
HIGHEST_PORT = 65535
DNS_PORT = 53
# A name that is never looked up, so it never has addresses.
INVALID_HOST = ""


def number_of(protocol: str, version: int) -> int:
    """Return the IP protocol number of one of PROTOCOLS; `icmp` is ICMPv6 in a list of that family."""
    return {TCP: 6, UDP: 17, ICMP: 1 if version == IPV4 else 58}[protocol]


class _PortsFields(NamedTuple):
    first: int
    last: int


class Ports(_PortsFields):
    """A range of ports, both ends included."""

    __slots__ = ()

    def __new__(cls, first: int, last: int) -> Ports:
        """Raise ValueError if it is not a range of ports."""
        if not 0 <= first <= last <= HIGHEST_PORT:
            raise ValueError(f"{first}-{last} is not a range of ports")
        return super().__new__(cls, first, last)

    def __contains__(self, port: object) -> bool:
        return isinstance(port, int) and self.first <= port <= self.last

    def __str__(self) -> str:
        return str(self.first) if self.first == self.last else f"{self.first}-{self.last}"


EVERY_PORT = Ports(0, HIGHEST_PORT)


class _RuleFields(NamedTuple):
    number: int
    accept: bool
    network: IPNetwork | None
    host: str | None
    protocol: str
    ports: Ports | None
    icmp_type: int | None
    dns: bool
    spelling: str


class Rule(_RuleFields):
    """One entry.

    Args:
        number: number of its key, which identifies the entry in messages and counters.
        accept: accept a matching packet; otherwise refuse it.
        network: match destinations in this network; None for any.
        host: match addresses of this name, in its canonical form; None for any; INVALID_HOST for a name that is never
            looked up.
        protocol: one of PROTOCOLS; "" for any.
        ports: match these destination ports of TCP and UDP.
        icmp_type: the ICMP type as a number, in the list's family.
        dns: match port 53 of the name servers.
        spelling: the name as dom0 wrote it, for `/dns/IP/NAME`; by default as `host`.
    """

    __slots__ = ()

    def __new__(
        cls,
        number: int,
        accept: bool,
        *,
        network: IPNetwork | None = None,
        host: str | None = None,
        protocol: str = "",
        ports: Ports | None = None,
        icmp_type: int | None = None,
        dns: bool = False,
        spelling: str = "",
    ) -> Rule:
        """Raise ValueError for contradicting conditions."""
        if number < 0 or (protocol and protocol not in PROTOCOLS):
            raise ValueError(f"no entry {number} with protocol {protocol!r}")
        if host is not None and (network is not None or (host != INVALID_HOST and problem_of(host))):
            raise ValueError(f"{host[:60]!r} is not the destination of a rule")
        if spelling and canonical(spelling) != host:
            raise ValueError(f"{spelling[:60]!r} is another name")
        if ports is not None and protocol == ICMP:
            raise ValueError("ICMP has no ports")
        if icmp_type is not None and (protocol != ICMP or not 0 <= icmp_type <= 255):
            raise ValueError(f"{icmp_type} is not an ICMP type, or the protocol is not ICMP")
        spelling = spelling or host or ""
        return super().__new__(cls, number, accept, network, host, protocol, ports, icmp_type, dns, spelling)

    @property
    def protocols(self) -> tuple[str, ...]:
        """Return the protocols that it matches; () for any."""
        if self.protocol:
            return (self.protocol,)
        return WITH_PORTS if self.ports is not None or self.dns else ()

    @property
    def is_empty(self) -> bool:
        """Return whether it matches no packet at all: DNS uses neither ICMP nor a port other than 53."""
        return self.dns and (self.protocol == ICMP or (self.ports is not None and DNS_PORT not in self.ports))

    @property
    def destination_ports(self) -> Ports | None:
        """Return the ports that it matches; None for any, and of any protocol."""
        return Ports(DNS_PORT, DNS_PORT) if self.dns else self.ports


class Problem(NamedTuple):
    """A problem of an entry.

    Args:
        key: the QubesDB path, safe to print.
        value: as dom0 wrote it, safe to print; "" for a missing one.
        problem: the problem in words.
        remedy: the remedy in words.
        blocks: it makes all traffic of the address refused; otherwise the rest of the list stays in force.
    """

    key: str
    value: str
    problem: str
    remedy: str
    blocks: bool = True

    def __str__(self) -> str:
        value = f" {self.value}:" if self.value else ""
        return f"{self.key}:{value} {self.problem}; {self.remedy}"


class _RulesetFields(NamedTuple):
    address: IPAddress
    accept: bool
    rules: tuple[Rule, ...]
    problems: tuple[Problem, ...]


class Ruleset(_RulesetFields):
    """The list of one address, as `parsing.parse` returns it.

    Args:
        address: address of the qube, which determines the family.
        accept: the policy: whether a packet that no rule matches is accepted.
        rules: in the order of their numbers.
        problems: all problems found.
    """

    __slots__ = ()

    def __new__(
        cls,
        address: IPAddress,
        accept: bool = False,
        rules: tuple[Rule, ...] = (),
        problems: tuple[Problem, ...] = (),
    ) -> Ruleset:
        """Raise ValueError for a rule of the other family, a wrong order, or rules beside a blocking problem."""
        numbers = [rule.number for rule in rules]
        if numbers != sorted(set(numbers)):
            raise ValueError("the rules are not in order")
        if any(rule.network is not None and rule.network.version != address.version for rule in rules):
            raise ValueError(f"a rule for the other family in the list of {address}")
        if (accept or rules) and any(problem.blocks for problem in problems):
            raise ValueError("a list with an error refuses everything")
        return super().__new__(cls, address, accept, rules, problems)

    @property
    def blocked(self) -> bool:
        """Return whether an error makes all traffic refused."""
        return any(problem.blocks for problem in self.problems)

    @property
    def hosts(self) -> tuple[str, ...]:
        """Return the names of its rules, each once, in the order of the list."""
        return tuple(dict.fromkeys(rule.host for rule in self.rules if rule.host))

    @property
    def spellings(self) -> Mapping[str, str]:
        """Return each name as dom0 wrote it → the name; dom0 may write the same name in several ways."""
        return {rule.spelling: rule.host for rule in self.rules if rule.host}
