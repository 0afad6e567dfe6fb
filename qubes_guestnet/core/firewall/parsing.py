# SPDX-License-Identifier: GPL-2.0-or-later
"""Parse the entries of one address into a `Ruleset`.

Rules:

1. Every byte is hostile until its check has passed. `parse` never raises.
2. An unknown option or value refuses all traffic of the address, as dom0's documentation demands; nothing is guessed,
   so a list never allows more than dom0 meant. All errors are reported, not only the first one (behaviour B75).
3. dom0 permits names that are never looked up (`a..b`, `127.1`, `localhost`): the problem is reported, the rest of the
   list stays in force, and the entry is treated like one with an unknown name (see `binding`).

The grammar is dom0's (core-admin, qubes/firewall.py): options separated by single blanks, each at most once.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping
from functools import lru_cache

from ...errors import shown
from .. import checks
from ..namedtuple import NamedTuple
from ..values import IPV4, IPV6, IPAddress, IPNetwork
from .entries import FOLDER
from .name_messages import canonical, problem_of
from .rules import (
    DNS_PORT,
    HIGHEST_PORT,
    ICMP,
    INVALID_HOST,
    PROTOCOLS,
    Ports,
    Problem,
    Rule,
    Ruleset,
)

TYPE_CHECKING = False  # of `typing`, which costs 5 ms and 1 MB (see system/deferred_imports)
if TYPE_CHECKING:
    from typing import Any

POLICY = "policy"
# dom0 has no limit; users had lists of 1000 (behaviour B89).
MOST_RULES = 4096
_LONGEST_NUMBER = 5
_ACTIONS = {b"accept": True, b"drop": False}
_ADDRESS_BYTES = {IPV4: frozenset(b"0123456789."), IPV6: frozenset(b"0123456789abcdefABCDEF:.")}
_LONGEST_ADDRESS = {IPV4: 15, IPV6: 45}
# The ICMP type of an echo request, by family.
_ECHO = {IPV4: 8, IPV6: 128}
_REFUSED = "all traffic of this address is refused until it is corrected in dom0: qvm-firewall"
_NO_NAME = "an accept with it matches nothing, a drop every destination; correct it in dom0: qvm-firewall"


def parse(address: IPAddress, untrusted_entries: Mapping[str, bytes]) -> Ruleset:
    """Return the rules of an address, or a list that refuses everything, with all errors.

    Args:
        address: address of the qube, which determines the family.
        untrusted_entries: the last part of each key below the address's folder → raw value.
    """
    reader = _Reader(address)
    accept = reader.policy(untrusted_entries.get(POLICY))
    keys = [key for key in untrusted_entries if key != POLICY]
    rules: list[Rule] = []
    if len(keys) > MOST_RULES:
        remedy = f"the limit is {MOST_RULES}; allow networks instead of single addresses; {_REFUSED}"
        reader.add("", None, f"{len(keys)} rules", remedy)
    else:
        rules = reader.rules(untrusted_entries, keys)
    if any(problem.blocks for problem in reader.problems):
        return Ruleset(address, problems=tuple(reader.problems))
    return Ruleset(address, accept, tuple(rules), tuple(reader.problems))


class _Reader:
    """The entries of one address, and the problems found while parsing them."""

    def __init__(self, address: IPAddress) -> None:
        self._version = address.version
        self._folder = f"{FOLDER}{address}/"
        self.problems: list[Problem] = []

    def add(
        self,
        untrusted_key: str,
        untrusted_value: bytes | None,
        problem: str,
        remedy: str = _REFUSED,
        *,
        blocks: bool = True,
    ) -> None:
        """Add a problem, with its quotations made safe to print."""
        plain = checks.is_decimal(untrusted_key, _LONGEST_NUMBER)
        key = (
            untrusted_key if plain or untrusted_key in ("", POLICY) else shown(untrusted_key.encode("utf-8", "replace"))
        )
        value = "" if untrusted_value is None else shown(untrusted_value)
        self.problems.append(Problem(self._folder + key, value, problem, remedy, blocks))

    def policy(self, untrusted_value: bytes | None) -> bool:
        """Return whether a packet that no rule matches is accepted."""
        if untrusted_value not in _ACTIONS:
            if untrusted_value is None:
                self.add(POLICY, None, "missing, so the list is incomplete")
            else:
                self.add(POLICY, untrusted_value, "not a policy: accept or drop")
            return False
        return _ACTIONS[untrusted_value]

    def rules(self, untrusted_entries: Mapping[str, bytes], untrusted_keys: list[str]) -> list[Rule]:
        """Return the valid rules by number. Numbers may have gaps: each family lacks the rules of the other."""
        numbered: dict[int, str] = {}
        for key in sorted(untrusted_keys):
            if not checks.is_decimal(key, _LONGEST_NUMBER):
                self.add(key, untrusted_entries[key], f"not the number of a rule: 1 to {_LONGEST_NUMBER} digits")
            elif int(key) in numbered:
                self.add(key, untrusted_entries[key], f"the number of the rule {numbered[int(key)]} once more")
            else:
                numbered[int(key)] = key
        found = (self._rule(number, key, untrusted_entries[key]) for number, key in sorted(numbered.items()))
        return [rule for rule in found if rule is not None]

    def _rule(self, number: int, key: str, untrusted_value: bytes) -> Rule | None:
        """Return a rule; None, with at least one problem, if it is invalid."""
        before = len(self.problems)
        given = self._options(key, untrusted_value)
        for problem in _contradictions(given, self._version):
            self.add(key, untrusted_value, problem)
        if any(problem.blocks for problem in self.problems[before:]):
            return None
        rule = Rule(
            number,
            given["action"],
            network=given.get("dst4") or given.get("dst6"),
            host=given.get("dsthost"),
            protocol=given.get("proto", ""),
            ports=given.get("dstports"),
            icmp_type=given.get("icmptype"),
            dns="specialtarget" in given,
            spelling=_untrusted_host(untrusted_value).decode("ascii") if given.get("dsthost") else "",
        )
        self._explain(rule, key, untrusted_value)
        return rule

    def _options(self, key: str, untrusted_value: bytes) -> dict[str, Any]:
        """Return each option with its checked value; None, with a problem, for an invalid one."""
        given: dict[str, Any] = {}
        for part in untrusted_value.split(b" "):
            checked = _checked(part)
            if checked is not None and checked[0] not in given:
                given[checked[0]] = checked[1]
                continue
            word, equals, value = part.partition(b"=")
            option = _OPTIONS.get(word)
            name = word.decode("ascii", "replace")
            if not part:
                self.add(key, untrusted_value, "an empty option: options are separated by single blanks")
            elif not equals or b"=" in value:
                self.add(key, untrusted_value, f"{shown(part)} is not option=value")
            elif option is None:
                self.add(key, untrusted_value, f"the option {shown(word)} is not known")
            elif name in given:
                self.add(key, untrusted_value, f"{name} is given twice")
            else:
                given[name] = None
                self.add(key, untrusted_value, f"{name} is not {option.expected}")
        return given

    def _explain(self, rule: Rule, key: str, untrusted_value: bytes) -> None:
        """Add problems for valid rules that have no effect."""
        if rule.host == INVALID_HOST:
            problem = f"dsthost has no addresses: {_problem_of(_untrusted_host(untrusted_value))}"
            self.add(key, untrusted_value, problem, _NO_NAME, blocks=False)
        if rule.is_empty:
            problem = f"DNS uses TCP and UDP, port {DNS_PORT}: the rule matches nothing"
            self.add(key, untrusted_value, problem, "remove it, or its proto and dstports", blocks=False)
        other = _ECHO[IPV6 if self._version == IPV4 else IPV4]
        if rule.icmp_type == other:
            own = _ECHO[self._version]
            problem = f"{other} is not the echo request of IPv{self._version}"
            self.add(key, untrusted_value, problem, f"to allow ping, add a rule with icmptype={own}", blocks=False)


@lru_cache(maxsize=512)  # of a list, most rules have the same action, protocol and ports
def _checked(untrusted_part: bytes) -> tuple[str, Any] | None:
    """Return an option and its checked value; None for what is not valid."""
    word, equals, untrusted_value = untrusted_part.partition(b"=")
    option = _OPTIONS.get(word)
    if option is None or not equals or b"=" in untrusted_value:
        return None
    try:
        return word.decode("ascii"), option.check(untrusted_value)
    except ValueError:
        return None


def _contradictions(given: Mapping[str, Any], version: int) -> list[str]:
    """Return contradictions between options that are valid individually."""
    found = []
    destinations = [name for name in ("dst4", "dst6", "dsthost") if name in given]
    if "action" not in given:
        found.append("action is missing")
    if len(destinations) > 1:
        found.append(f"{' and '.join(destinations)}: a rule has one destination")
    if f"dst{10 - version}" in given:
        found.append(f"dst{10 - version} in the list of an IPv{version} address")
    if "dstports" in given and given.get("proto") == ICMP:
        found.append("dstports with proto=icmp")
    if "icmptype" in given and given.get("proto") != ICMP:
        found.append("icmptype without proto=icmp")
    return found


# --- the options -------------------------------------------------------------------------------------------------


class _Option(NamedTuple):
    """The check of an option's value, and its valid form."""

    check: Callable[[bytes], Any]
    expected: str


def _action(untrusted_value: bytes) -> bool:
    if untrusted_value not in _ACTIONS:
        raise ValueError("no action")
    return _ACTIONS[untrusted_value]


def _number(untrusted_value: bytes, most: int) -> int:
    # dom0 passes on the user's text: 192.0.2.1/08 arrives with its zero.
    if not checks.is_decimal(untrusted_value, len(str(most))):
        raise ValueError("no number")
    number = int(untrusted_value)
    if number > most:
        raise ValueError("out of range")
    return number


def _network(untrusted_value: bytes, version: int) -> IPNetwork:
    """Return a network; its host bits are masked, so that it is listed as it is loaded."""
    untrusted_address, slash, untrusted_length = untrusted_value.partition(b"/")
    # `ipaddress` alone would accept a scope, and four raw bytes.
    if len(untrusted_address) > _LONGEST_ADDRESS[version] or not _ADDRESS_BYTES[version].issuperset(untrusted_address):
        raise ValueError("no address")
    longest = 32 if version == IPV4 else 128
    length = _number(untrusted_length, longest) if slash else longest
    text, host_bits = untrusted_address.decode("ascii"), (1 << longest - length) - 1
    if version == IPV4:
        return ipaddress.IPv4Network((int(ipaddress.IPv4Address(text)) & ~host_bits, length))
    return ipaddress.IPv6Network((int(ipaddress.IPv6Address(text)) & ~host_bits, length))


def _host(untrusted_value: bytes) -> str:
    """Return the canonical form of a host name; INVALID_HOST for one that is never looked up."""
    return INVALID_HOST if _problem_of(untrusted_value) else canonical(untrusted_value.decode("ascii"))


def _untrusted_host(untrusted_value: bytes) -> bytes:
    """Return the name of an entry that has one, as dom0 wrote it."""
    (untrusted_host,) = (part[8:] for part in untrusted_value.split(b" ") if part.startswith(b"dsthost="))
    return untrusted_host


def _problem_of(untrusted_host: bytes) -> str:
    # Latin-1 decodes every byte, and no valid name has non-ASCII characters.
    return problem_of(canonical(untrusted_host.decode("latin-1")))


def _protocol(untrusted_value: bytes) -> str:
    text = untrusted_value.decode("ascii")  # a UnicodeDecodeError is a ValueError
    if text not in PROTOCOLS:
        raise ValueError("no protocol")
    return text


def _ports(untrusted_value: bytes) -> Ports:
    untrusted_first, dash, untrusted_last = untrusted_value.partition(b"-")
    first = _number(untrusted_first, HIGHEST_PORT)
    return Ports(first, _number(untrusted_last, HIGHEST_PORT) if dash else first)


def _special(untrusted_value: bytes) -> bool:
    if untrusted_value != b"dns":
        raise ValueError("no special target")
    return True


_OPTIONS = {
    b"action": _Option(_action, "accept or drop"),
    b"dst4": _Option(lambda value: _network(value, IPV4), "an IPv4 network such as 192.0.2.0/24"),
    b"dst6": _Option(lambda value: _network(value, IPV6), "an IPv6 network such as 2001:db8::/32"),
    b"dsthost": _Option(_host, "a host name"),
    b"proto": _Option(_protocol, "tcp, udp or icmp"),
    b"dstports": _Option(_ports, f"a range of ports from 0 to {HIGHEST_PORT} such as 80-443"),
    b"icmptype": _Option(lambda value: _number(value, 255), "a number from 0 to 255"),
    b"specialtarget": _Option(_special, "dns"),
}
