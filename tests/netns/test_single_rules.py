# SPDX-License-Identifier: GPL-2.0-or-later
"""Each chain of the base rules is emptied or deleted, and each rule deleted, one at a time, under a storm of packets.

The agent stands still meanwhile, so nothing is put right: what is judged is the guard alone, which has to let nothing
pass that the whole rules refuse.
"""

from __future__ import annotations

import contextlib
import json
import signal
from collections.abc import Iterator

import pytest

from tests.netns.test_storm import CONNECTED, Judges, from_outside, from_qube
from tests.support.eventually import eventually
from tests.support.packets import icmp
from tests.support.packets.ports import MARK, UDP, Port, listening, packet_of, udp
from tests.support.packets.storm import Shot, shot, storm
from tests.support.qubes.provider import (
    DNS,
    ENTRIES6,
    HALTED,
    HALTED6,
    OWN,
    OWN6,
    WORLD,
    WORLD6,
    Provider,
)

CHAINS = ("prerouting", "antispoof", "egress", "postrouting", "input", "forward", "dnat-dns", "dns-reject")
KILLED, KILLED6 = "198.51.100.9", "2000:abcd:1::9"
LET_IN = 19
FLOW = 5000  # port of a connection of the other qube
# What comes from outside and goes back there concerns no qube; the guard does not look at it.
BOUNCED = {"reflected", "to a halted qube"}


class Stage:
    """A provider with two qubes and the vif of a third that is not set up; users' rules in both custom chains."""

    def __init__(self) -> None:
        self.host = Provider({**ENTRIES6, **CONNECTED})
        self.first, self.second, self.stray = (self.host.plug(number) for number in (4, 5, 6))
        self.host.online(self.first)
        self.host.online(self.second)
        self.host.qube.wire(f"""
            ip link set {self.stray.vif} up
            ip route add {self.stray.ip} dev {self.stray.vif}; ip -6 route add {self.stray.ip6} dev {self.stray.vif}
            ip neighbour replace {self.stray.ip} lladdr {self.stray.mac} nud permanent dev {self.stray.vif}
            ip -6 neighbour replace {self.stray.ip6} lladdr {self.stray.mac} nud permanent dev {self.stray.vif}
        """)
        for family, killed in (("ip", KILLED), ("ip6", KILLED6)):
            self.host.nft(f"add rule {family} qubes custom-forward {family} daddr {killed} drop")
            self.host.nft(f"add rule {family} qubes custom-input udp dport {LET_IN} accept")
        eventually(lambda: self.host.works(self.first), trouble=self.host.trouble)
        self.host.guarded()
        self.outside = self.host.outside()

    def shots(self) -> list[Shot]:
        """All that may and may not pass."""
        first, second, stray = self.first, self.second, self.stray
        more = [
            (first.port, first.ip, KILLED, "killed"), (first.port, first.ip6, KILLED6, "killed"),
            (first.port, first.ip, HALTED, "from a qube to a halted one"),
            (first.port, first.ip6, HALTED6, "from a qube to a halted one"),
            (first.port, first.ip, stray.ip, "to a stray"), (first.port, first.ip6, stray.ip6, "to a stray"),
            (stray.port, stray.ip, WORLD, "stray"), (stray.port, stray.ip6, WORLD6, "stray"),
        ]  # fmt: skip
        let_in = [(first.ip, OWN, "as a qube, let in"), (first.ip6, OWN6, "as a qube, let in")]
        return [
            *from_qube(first, second.ip, second.ip6),
            *from_outside(self.outside, first),
            *(shot(*words) for words in more),
            *(shot(self.outside, *words, dport=LET_IN) for words in let_in),
            shot(first.port, first.ip, DNS, "to a virtual address", dport=80),
            *self._about_others(),
        ]

    def _about_others(self) -> list[Shot]:
        """A connection of the second qube, and errors of the first one about it."""
        shots = []
        ways = ((4, self.first.ip, self.second.ip, OWN, WORLD), (6, self.first.ip6, self.second.ip6, OWN6, WORLD6))
        for version, own, other, provider, world in ways:
            shots.append(shot(self.second.port, other, world, "own", sport=FLOW))
            quoted = packet_of(provider, world, udp(provider, world, FLOW, 9, MARK + b"about another"), UDP)
            what = icmp.ERRORS[version]["port unreachable"]
            port = self.first.port
            shots.append((port, port.frame(icmp.error(own, provider, what, quoted))))
        return shots

    def closed(self) -> dict[str, Port]:
        """Where nothing of it may arrive."""
        return {
            "first": self.first.port, "second": self.second.port, "stray": self.stray.port,
            "provider": self.host.inside(4), "provider, IPv6": self.host.inside(6),
        }  # fmt: skip


def leaks(judges: Judges, second: Port) -> set[tuple[str, str]]:
    """Place and word of what passed and may not."""
    found = {(place, packet.word) for place, packet in judges.leaks() if packet.word not in BOUNCED}
    return found | {("second", packet.word) for packet in second.heard() if packet.word == "about another"}


@contextlib.contextmanager
def stopped(host: Provider) -> Iterator[None]:
    """The agent stands still; its guard does not."""
    host.agent.signal(signal.SIGSTOP)
    try:
        yield
    finally:
        host.agent.signal(signal.SIGCONT)


def handles(host: Provider, family: str, chain: str) -> list[int]:
    """The number of each rule."""
    found = json.loads(host.oracle.run("nft", "-j", "list", "table", family, "qubes").stdout)["nftables"]
    return [entry["rule"]["handle"] for entry in found if entry.get("rule", {}).get("chain") == chain]


def put_back(host: Provider, family: str, listing: str) -> None:
    """All rules of a table, in one transaction."""
    host.qube.write("/run/lab/table", f"flush table {family} qubes\n{listing}")
    host.qube.run("nft", "-f", "/run/lab/table")


@pytest.mark.behaviour("B125")
@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("family", ["ip", "ip6"])
def test_no_part_of_the_rules_can_go_alone_and_leave_something_open(family: str, chain: str) -> None:
    stage = Stage()
    host = stage.host
    whole = host.settled()
    listing = host.oracle.run("nft", "-s", "list", "table", family, "qubes").stdout
    closed, opened = stage.closed(), dict[str, set[tuple[str, str]]]()
    count = len(handles(host, family, chain))
    removals = ["flush", "delete", *range(count)]
    if chain in ("antispoof", "dns-reject"):
        removals.remove("delete")  # the kernel refuses it, other chains jump there
    with stopped(host), storm(stage.shots()) as rounds, listening(stage.outside, *closed.values()):
        judges = Judges(stage.outside, closed)
        for removal in removals:
            what = f"{removal} chain {family} qubes {chain}"
            if isinstance(removal, int):
                rule = handles(host, family, chain)[removal]
                what = f"delete rule {family} qubes {chain} handle {rule}"
            host.nft(what)
            rounds(4)
            put_back(host, family, listing)
            rounds(2)
            came = leaks(judges, stage.second.port)
            if came:
                opened[f"{removal}: {host.rules(family, chain)[removal] if isinstance(removal, int) else ''}"] = came
            stage.outside.forget()
            for port in closed.values():
                port.forget()
        rounds(10)
        assert judges.passed() >= {"own", "name"}
    assert opened == {}
    eventually(lambda: host.settled() == whole, trouble=host.trouble)
    eventually(lambda: host.works(stage.first), trouble=host.trouble)


@pytest.mark.behaviour("B125")
def test_the_whole_rules_let_pass_what_they_did_and_a_user_who_accepts_is_heard() -> None:
    """The guard holds nothing that the rules let pass: what custom-forward accepts between qubes, and the other way."""
    stage = Stage()
    host, first, second = stage.host, stage.first, stage.second
    for family in ("ip", "ip6"):
        host.nft(f"add rule {family} qubes custom-forward udp dport 77 accept")
    for source, target in ((first.ip, second.ip), (first.ip6, second.ip6)):
        first.port.send(source, target, "asks", sport=700, dport=77)
        assert second.port.hears(lambda packet, target=target: (packet.word, packet.target) == ("asks", target))
        second.port.send(target, source, "answers", sport=77, dport=700)
        assert first.port.hears(lambda packet, source=source: (packet.word, packet.target) == ("answers", source))
    assert host.works(first)
    assert host.works(first, version=6)
