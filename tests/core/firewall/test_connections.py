# SPDX-License-Identifier: GPL-2.0-or-later
"""Which connections a change of rules ends."""

from __future__ import annotations

from collections.abc import Iterable
from random import Random

import pytest

from qubes_guestnet.core.firewall.binding import Bound
from qubes_guestnet.core.firewall.connections import Connection, Rules, to_end
from qubes_guestnet.core.values import IPAddress
from tests.core.firewall import made, naive
from tests.core.firewall.made import FOUR, SIX, A, bound

SERVER = A("192.0.2.1")
HTTPS = Connection(1, A(FOUR), SERVER, naive.TCP, 443)
PING = Connection(2, A(FOUR), SERVER, 1, icmp_type=8)
DNS = Connection(3, A(FOUR), A("192.0.2.53"), naive.UDP, 53)
ALL = (HTTPS, PING, DNS)
OPEN = bound("action=accept")
SHUT = bound("action=drop")


def ended(
    before: Bound | None,
    after: Bound | None,
    connections: Iterable[Connection] = ALL,
    dns: tuple[list[str], list[str]] = ([], []),
    own: Iterable[IPAddress] = (),
) -> tuple[int, ...]:
    lists = [{} if each is None else {each.ruleset.address: each} for each in (before, after)]
    then, now = (Rules(each, frozenset(map(A, servers))) for each, servers in zip(lists, dns, strict=True))
    return to_end(connections, then, now, frozenset(own))


@pytest.mark.behaviour("B70")
@pytest.mark.parametrize(
    ("before", "after", "ids"),
    [
        (OPEN, SHUT, (1, 2, 3)),
        (OPEN, bound("action=accept proto=tcp dstports=443-443"), (2, 3)),
        # ICMP, which has no port, and its type.
        (OPEN, bound("action=accept proto=icmp"), (1, 3)),
        (OPEN, bound("action=drop proto=icmp icmptype=8", "action=accept"), (2,)),
        (OPEN, bound("action=drop proto=icmp icmptype=0", "action=accept"), ()),
        # An equal list, another list with the same verdicts, and one that allows more.
        (OPEN, bound("action=accept"), ()),
        (OPEN, bound("action=drop dst4=203.0.113.0/24", policy=b"accept"), ()),
        (SHUT, OPEN, ()),
        # A connection to an address that has left the answer of a name goes on up to a commit that refuses it (F-24).
        (bound("action=accept dsthost=a.org", a_org=["203.0.113.1"]), SHUT, (1, 2, 3)),
        (bound("action=accept dsthost=a.org", a_org=["192.0.2.1"]), SHUT, (1, 2, 3)),
        (bound("action=accept dsthost=a.org"), SHUT, (1, 2, 3)),
        (bound("action=drop dsthost=a.org", "action=accept", a_org=["192.0.2.1"]), SHUT, (1, 2, 3)),
        (bound("action=accept dsthost=a.org proto=tcp", a_org=["203.0.113.1"]), SHUT, (1,)),
        (bound("action=accept dsthost=a.org"), OPEN, ()),
        # What no address of a name can have let pass is none of this change.
        (bound("action=accept dsthost=a.org dstports=80-80", a_org=["203.0.113.1"]), SHUT, ()),
        (bound("action=accept foo"), SHUT, ()),
        # Nothing is known of the time before; nothing is in force now.
        (None, bound("action=accept proto=tcp"), (2, 3)),
        (OPEN, None, ()),
        (None, None, ()),
        (OPEN, bound("action=accept foo"), (1, 2, 3)),
    ],
)
def test_what_turned_from_accepted_to_refused_ends(
    before: Bound | None, after: Bound | None, ids: tuple[int, ...]
) -> None:
    assert ended(before, after) == ids


@pytest.mark.behaviour("B71")
@pytest.mark.parametrize(
    ("port", "ports", "ends"), [(100, "80-443", False), (150, "1000-2000", True), (9000, "8000-10000", False)]
)
def test_ports_are_numbers(port: int, ports: str, ends: bool) -> None:
    connection = Connection(7, A(FOUR), SERVER, naive.TCP, port)
    after = bound(f"action=accept proto=tcp dstports={ports}")
    assert ended(OPEN, after, [connection]) == ((7,) if ends else ())


def test_the_name_servers_count_by_what_forward_sees() -> None:
    only = bound("action=accept specialtarget=dns")
    assert ended(only, only, dns=(["192.0.2.53"], ["192.0.2.53"])) == ()
    assert ended(only, only, dns=(["192.0.2.53"], ["192.0.2.54"])) == (3,)


def test_an_answer_of_a_name_server_ends_no_connection() -> None:
    """The name moved: its former address stays in the set for a while, and a download from there goes on (F-24)."""
    then, now = (bound("action=accept dsthost=a.org", a_org=[address]) for address in ("192.0.2.1", "192.0.2.2"))
    assert then != now
    assert ended(then, now) == ()


def test_what_ends_at_the_provider_or_comes_from_elsewhere_is_not_judged() -> None:
    assert ended(OPEN, SHUT, own=[SERVER]) == (3,)
    assert ended(OPEN, SHUT, [HTTPS._replace(source=A("10.137.0.9"))]) == ()
    assert ended(OPEN, SHUT, [Connection(4, A(SIX), A("2001:db8::1"), naive.TCP, 443)]) == ()


def test_a_connection_of_many_is_judged_once() -> None:
    assert ended(OPEN, SHUT, [HTTPS._replace(number=number) for number in range(1000)]) == tuple(range(1000))


@pytest.mark.parametrize("seed", range(20))
def test_random_changes_end_what_a_second_evaluator_says(seed: int) -> None:
    chance = Random(seed)
    for version in (4, 6):
        before, after = naive.drawn(chance, version), naive.drawn(chance, version)
        packets = naive.every_packet(version)
        connections = []
        for number, asked in enumerate(packets):
            packet = made.packet(asked)
            source = A(naive.QUBE[version])
            connections.append(
                Connection(number, source, packet.destination, packet.protocol, packet.port, packet.icmp_type)
            )
        servers = sorted(naive.DNS[version])
        found = ended(made.of(before), made.of(after), connections, (servers, servers))
        wanted = [
            n for n, asked in enumerate(packets) if naive.may_pass(before, asked) and not naive.passes(after, asked)
        ]
        assert list(found) == wanted
