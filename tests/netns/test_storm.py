# SPDX-License-Identifier: GPL-2.0-or-later
"""No unfiltered moment: packets from a qube and from outside all the time, whatever happens to the provider meanwhile.

Each packet says what it is, and what arrives anywhere must be what the steady state lets through: a qube's own packets,
translated, and its questions for names, redirected. Nothing else, not one.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator

import pytest

from tests.support.eventually import eventually
from tests.support.packets.ports import UDP, Packet, Port, listening
from tests.support.packets.storm import Shot, shot, storm
from tests.support.qubes.provider import (
    DNS,
    ENTRIES6,
    GATEWAY,
    GATEWAY6,
    HALTED,
    HALTED6,
    OWN,
    OWN6,
    ROUTER,
    WORLD,
    WORLD6,
    Client,
    Provider,
)

# dom0 names all that are connected, running or not.
CONNECTED = {
    "/connected-ips": f"10.137.0.4 10.137.0.5 {HALTED}",
    "/connected-ips6": f"fd09:24ef:4179::a89:4 fd09:24ef:4179::a89:5 {HALTED6}",
}
STRANGER, STRANGER6 = "10.137.0.77", "fd09:24ef:4179::dead"


class Judges:
    """What came of a storm.

    Args:
        outside: the world's end.
        closed: ends at which nothing may arrive at all.
    """

    def __init__(self, outside: Port, closed: dict[str, Port]) -> None:
        self._outside, self._closed = outside, closed

    def leaks(self) -> set[tuple[str, Packet]]:
        """What arrived where it must not, once each."""
        found = {("outside", packet) for packet in self._outside.heard() if not proper(packet)}
        return found | {
            (name, packet) for name, port in self._closed.items() for packet in port.heard() if is_data(packet)
        }

    def passed(self) -> set[str]:
        """The words of what got out; that something did shows that the others could have."""
        return self._outside.words()


def is_data(packet: Packet) -> bool:
    """No error about one."""
    return packet.protocol == UDP


def proper(packet: Packet) -> bool:
    """Whether the steady state lets it out like this."""
    if packet.word == "own":
        return (packet.source, packet.target) in ((OWN, WORLD), (OWN6, WORLD6))
    if packet.word == "name":
        return (packet.source, packet.target) == (OWN, ROUTER)
    # The provider may tell the world that it does not want something, but not in the name of others.
    return not is_data(packet) and packet.source in (OWN, OWN6)


def from_qube(behind: Client, other: str, other6: str) -> list[Shot]:
    """Everything a qube may and may not send."""
    port, own, own6 = behind.port, behind.ip, behind.ip6
    tries = [
        (own, WORLD, "own"), (own6, WORLD6, "own"),
        (STRANGER, WORLD, "spoofed"), (STRANGER6, WORLD6, "spoofed"),
        (other, WORLD, "as another qube"), (OWN, WORLD, "as the provider"), (HALTED, WORLD, "as a halted qube"),
        (own, other, "to another qube"), (own6, other6, "to another qube"), (STRANGER, other, "spoofed to a qube"),
        (own, OWN, "to the provider"), (own, GATEWAY, "to the gateway"), (own6, GATEWAY6, "to the gateway"),
    ]  # fmt: skip
    return [shot(port, *words) for words in tries] + [shot(port, own, DNS, "name", dport=53)]


def from_outside(port: Port, behind: Client) -> list[Shot]:
    """What the world's network may try."""
    own, own6 = behind.ip, behind.ip6
    tries = [
        (WORLD, own, "into a qube"), (WORLD6, own6, "into a qube"), (WORLD, HALTED, "to a halted qube"),
        (own, OWN, "as a qube"), (own6, OWN6, "as a qube"), (HALTED, OWN, "as a halted qube"),
        (HALTED6, OWN6, "as a halted qube"), (HALTED, own, "as a halted qube, into one"),
        (WORLD, OWN, "to the provider"), (own, WORLD, "reflected"),
    ]  # fmt: skip
    return [shot(port, *words) for words in tries]


def arena(*, agent: bool = True) -> tuple[Provider, Client, Client]:
    """A provider with rules, and two qubes whose vifs hotplug has not announced."""
    host = Provider({**ENTRIES6, **CONNECTED}, agent=agent)
    return host, host.plug(4), host.plug(5)


@contextlib.contextmanager
def blowing(
    host: Provider, sender: Client, other: Client, *, inside: bool = True
) -> Iterator[tuple[Judges, Callable[[int], None]]]:
    """The storm from both sides, and its listeners."""
    outside = host.outside()
    sender.port.forget()
    other.port.forget()
    closed: dict[str, Port] = {"sender": sender.port, "other": other.port}
    if inside:
        closed |= {"provider": host.inside(4), "provider, IPv6": host.inside(6)}
    shots = [*from_qube(sender, other.ip, other.ip6), *from_outside(outside, sender)]
    # The storm first: it is a fork, and a thread does not go along.
    with storm(shots) as rounds, listening(outside, *closed.values()):
        yield Judges(outside, closed), rounds


def ready(host: Provider, *, forwards6: bool = True) -> bool:
    return host.forwards(4) and host.forwards(6) == forwards6


@pytest.mark.behaviour("B50")
@pytest.mark.behaviour("B65")
def test_an_agent_starts_and_qubes_come_and_go() -> None:
    host, first, second = arena(agent=False)
    with blowing(host, first, second) as (judges, rounds):
        host.online(first)  # before anybody is there
        host.qube.start_agent()
        eventually(lambda: ready(host), trouble=host.trouble)
        host.online(second)
        rounds(50)
        host.offline(first)
        rounds(50)
        host.online(first)
        rounds(50)
    assert judges.leaks() == set()
    assert judges.passed() == {"own", "name"}


@pytest.mark.behaviour("B65")
def test_an_agent_is_reloaded_killed_and_started_again() -> None:
    host, first, second = arena()
    host.online(second)
    with blowing(host, first, second) as (judges, rounds):
        host.online(first)
        host.agent.signal(signal.SIGHUP)
        rounds(100)
        for before in (0, 30, 90):
            rounds(before)
            host.agent.kill()
            rounds(50)
            host.qube.start_agent(wait=before == 0)
        rounds(100)
        host.agent.kill()
        host.offline(first)
        host.online(first)
        host.qube.guestnet("rules", "load")
        host.qube.start_agent()
        host.qube.guestnet("rules", "load")
        rounds(50)
    assert judges.leaks() == set()
    assert judges.passed() == {"own", "name"}


@pytest.mark.behaviour("B65")
def test_ipv6_is_switched_off_and_on_and_everything_is_stopped_in_order() -> None:
    host, first, second = arena()
    host.online(second)
    with blowing(host, first, second) as (judges, rounds):
        host.online(first)
        for _ in range(2):
            host.remove("/qubes-netvm-gateway6")
            eventually(lambda: ready(host, forwards6=False), trouble=host.trouble)
            rounds(30)
            host.write("/qubes-netvm-gateway6", GATEWAY6)
            eventually(lambda: ready(host), trouble=host.trouble)
            rounds(30)
        host.qube.guestnet("forwarding", "off")
        rounds(30)
        host.agent.stop()
    assert judges.leaks() == set()
    assert judges.passed() == {"own", "name"}
    # Without rules the provider has its own ports open again, and still forwards nothing.
    with blowing(host, first, second, inside=False) as (judges, rounds):
        host.qube.guestnet("rules", "unload")
        rounds(100)
    assert judges.leaks() == set()
    assert judges.passed() == set()


# What comes from outside and goes back there concerns no qube; the guard does not look at it.
BOUNCED = {"reflected", "to a halted qube"}
# What others do to rules.
FLUSH = "flush ruleset"
AWAY = {
    "flush ruleset": (FLUSH,),
    "a restart of nftables.service": (
        FLUSH,
        "add table inet filter; add chain inet filter input { type filter hook input priority 0; }",
    ),
    "one family": ("delete table ip qubes",),
    "the other family": ("delete table ip6 qubes",),
    "the rules of a table": ("flush table ip qubes",),
    "a table of the same name made by others": (
        "delete table ip qubes; add table ip qubes; "
        "add chain ip qubes forward { type filter hook forward priority 0; }",
    ),
    "a table that sleeps": ("table ip qubes { flags dormant; }",),
    "two that sleep": ("table ip6 qubes { flags dormant; }; table arp qubes { flags dormant; }",),
    "the chain of anti-spoofing": ("flush chain ip qubes antispoof",),
    "the chain before it": ("flush chain ip qubes prerouting",),
    # Every chain that asks it has to let go of it first.
    "a set": (
        "flush chain ip qubes antispoof; flush chain ip qubes input; flush chain ip qubes forward; "
        "delete set ip qubes allowed",
    ),
}


@pytest.mark.behaviour("B125")
@pytest.mark.parametrize("texts", AWAY.values(), ids=AWAY.keys())
def test_while_rules_are_away_nothing_passes_that_may_not(texts: tuple[str, ...]) -> None:
    """From the first packet on: the guard holds them back before the agent has heard of it."""
    host, first, second = arena()
    host.online(first)
    host.online(second)
    host.guarded()
    whole = host.settled()
    with blowing(host, first, second, inside=False) as (judges, rounds):
        rounds(50)
        for text in texts:
            host.nft(text)
        rounds(5)
        eventually(lambda: host.settled() == whole, trouble=host.trouble)
        rounds(200)
    assert {leak for leak in judges.leaks() if leak[1].word not in BOUNCED} == set()
    assert judges.passed() >= {"own", "name"}
    eventually(lambda: host.works(first), trouble=host.trouble)


@pytest.mark.behaviour("B121")
def test_a_link_that_is_up_before_its_group_passes_nothing() -> None:
    host, first, second = arena()
    host.online(second)
    with blowing(host, first, second) as (judges, rounds):
        host.qube.wire(f"ip link set {first.vif} up")
        rounds(30)
        host.online(first)
        rounds(30)
    assert judges.leaks() == set()


# --- the judges can fail ---------------------------------------------------------------------------------------------


def test_forwarding_before_the_rules_is_seen() -> None:
    host, first, second = arena(agent=False)
    host.qube.guestnet("rules", "unload")
    host.qube.wire(f"""
        for vif in {first.vif} {second.vif}; do ip link set $vif group 2; ip link set $vif up; done
        ip route add {second.ip} dev {second.vif}; ip neighbour add {second.ip} lladdr {second.mac} dev {second.vif}
        echo 1 > /proc/sys/net/ipv4/ip_forward
    """)
    with blowing(host, first, second) as (judges, rounds):
        rounds(30)
        host.qube.guestnet("rules", "load")
    seen = {(place, packet.word) for place, packet in judges.leaks()}
    assert seen >= {("outside", "own"), ("outside", "spoofed"), ("other", "to another qube"), ("provider", "as a qube")}
