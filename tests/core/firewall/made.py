# SPDX-License-Identifier: GPL-2.0-or-later
"""Values of the firewall, from words."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from ipaddress import ip_address

from qubes_guestnet.core.firewall.binding import Bound, bind
from qubes_guestnet.core.firewall.evaluator import Packet, Verdict, judge
from qubes_guestnet.core.firewall.name_cache import Known
from qubes_guestnet.core.firewall.parsing import parse
from qubes_guestnet.core.firewall.rules import Ruleset
from tests.core.firewall import naive
from tests.core.firewall.naive import Asked, Drawn

FOUR, SIX = naive.QUBE[4], naive.QUBE[6]
A = ip_address


def ruleset(*entries: str | bytes, address: str = FOUR, policy: bytes | None = b"drop") -> Ruleset:
    """The list of these entries, numbered from 0."""
    raw = {f"{number:04}": each if isinstance(each, bytes) else each.encode() for number, each in enumerate(entries)}
    return parse(A(address), raw if policy is None else {"policy": policy, **raw})


def answers(version: int, names: Mapping[str, Iterable[str]], *, whole: bool = True) -> dict[tuple[int, str], Known]:
    return {(version, host): Known(tuple(map(A, addresses)), whole) for host, addresses in names.items()}


def bound(*entries: str | bytes, address: str = FOUR, policy: bytes = b"drop", **names: Iterable[str]) -> Bound:
    """The same with addresses of names; `example_org` is example.org."""
    known = {host.replace("_", "."): addresses for host, addresses in names.items()}
    return bind(ruleset(*entries, address=address, policy=policy), answers(A(address).version, known))


def of(found: Drawn, partly: Collection[str] = ()) -> Bound:
    """A drawn list; of some of its names not all addresses are known."""
    names = answers(found.version, found.names)
    names |= {key: each._replace(whole=False) for key, each in names.items() if key[1] in partly}
    return bind(parse(A(naive.QUBE[found.version]), found.raw), names)


def packet(asked: Asked) -> Packet:
    ports = asked.protocol in (naive.TCP, naive.UDP)
    icmp = asked.protocol in naive.ICMP.values()
    return Packet(A(asked.destination), asked.protocol, asked.detail if ports else None, asked.detail if icmp else None)


def verdict(which: Bound, asked: Asked) -> Verdict:
    return judge(which, packet(asked), frozenset(map(A, naive.DNS[which.ruleset.address.version])))
