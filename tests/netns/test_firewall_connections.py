# SPDX-License-Identifier: GPL-2.0-or-later
"""Connections that a new list refuses end, within a second; those that it accepts go on."""

from __future__ import annotations

import socket
import sys
import time

import pytest

from tests.support.eventually import eventually, never
from tests.support.qubes.firewall import Enforcing
from tests.support.qubes.provider import DNS, ROUTER, WORLD, WORLD6, Client

PORTS = (150, 443, 1000, 9000)
FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}


class Talk:
    """A TCP connection of a qube to the world.

    Args:
        host: between the two.
        behind: the qube.
        port: of the world.
        version: 4 or 6.
    """

    def __init__(self, host: Enforcing, behind: Client, port: int, version: int = 4) -> None:
        target = WORLD if version == 4 else WORLD6
        server = host.world.socket(FAMILIES[version], socket.SOCK_STREAM)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind((target, port))
        server.listen()
        self._client = behind.qube.socket(FAMILIES[version], socket.SOCK_STREAM)
        self._client.settimeout(5)
        self._client.connect((target, port))
        self._server = server.accept()[0]
        server.close()
        self.port, self._sent = port, 0
        self._client.setblocking(False)
        self._server.setblocking(False)

    def goes_on(self, within_s: float = 1.0) -> bool:
        """Whether what the qube sends now arrives, and what is sent back does too."""
        self._sent += 1
        word = bytes([self._sent]) * 3
        return self._passes(self._client, self._server, word, within_s) and self._passes(
            self._server, self._client, word, within_s
        )

    @staticmethod
    def _passes(sender: socket.socket, receiver: socket.socket, word: bytes, within_s: float) -> bool:
        try:
            sender.send(word)
        except OSError:
            return False
        due = time.monotonic() + within_s
        while time.monotonic() < due:
            try:
                return receiver.recv(100) == word
            except BlockingIOError:
                time.sleep(0.005)
            except OSError:
                return False
        return False

    def close(self) -> None:
        """End it."""
        self._client.close()
        self._server.close()


@pytest.fixture
def host() -> Enforcing:
    return Enforcing()


def numbers(host: Enforcing, address: str) -> set[str]:
    """Destination ports of the connections that conntrack has of an address."""
    lines = [line for line in host.connections().splitlines() if f"src={address} " in line]
    return {line.partition("dport=")[2].split()[0] for line in lines if "dport=" in line}


@pytest.mark.behaviour("B70")
@pytest.mark.behaviour("B71")
@pytest.mark.parametrize("version", [4, 6])
def test_what_turns_to_refused_ends_and_the_rest_goes_on(host: Enforcing, version: int) -> None:
    """Three ports that were judged as texts: 150 is not in 1000-2000, 100 is in 80-443, 9000 in 8000-10000."""
    behind, other = host.attach(), host.attach(5)
    own, beside = (behind.ip, other.ip) if version == 4 else (behind.ip6, other.ip6)
    host.applied(own, "action=accept")
    host.applied(beside, "action=accept")
    talks = [Talk(host, behind, port, version) for port in PORTS]
    neighbour = Talk(host, other, 80, version)
    assert all(talk.goes_on() for talk in (*talks, neighbour))
    allowed = ("action=accept proto=tcp dstports=80-443", "action=accept proto=tcp dstports=8000-10000")
    host.applied(own, *allowed)
    assert numbers(host, own) == {"150", "443", "9000"}
    assert [talk.port for talk in talks if talk.goes_on()] == [150, 443, 9000]
    assert neighbour.goes_on()
    host.applied(own, "action=accept proto=tcp dstports=1000-2000")
    assert not any(talk.goes_on(0.4) for talk in talks)
    assert neighbour.goes_on()
    for talk in (*talks, neighbour):
        talk.close()


@pytest.mark.behaviour("B70")
def test_nothing_of_a_cut_connection_begins_it_anew_from_either_side(host: Enforcing) -> None:
    behind = host.attach()
    host.applied(behind.ip, "action=accept")
    talk = Talk(host, behind, 443)
    assert talk.goes_on()
    host.applied(behind.ip, "action=drop")
    for _ in range(3):
        assert not talk.goes_on(0.2)
        assert numbers(host, behind.ip) == set()
    talk.close()


@pytest.mark.behaviour("B70")
def test_a_ping_that_runs_ends_too(host: Enforcing) -> None:
    behind = host.attach()
    host.applied(behind.ip, "action=accept")
    ping = behind.qube.spawn("ping", "ping", "-i", "0.05", "-W", "1", WORLD)
    eventually(lambda: "time=" in ping.output(), trouble=lambda: ping.output() + host.trouble())
    host.applied(behind.ip, "action=accept proto=tcp", "action=accept proto=icmp icmptype=13")
    answered = ping.output().count("time=")
    never(lambda: ping.output().count("time=") > answered + 1, 0.5)
    ping.stop()


@pytest.mark.behaviour("B71")
def test_a_name_server_is_judged_by_its_address_behind_the_redirection(host: Enforcing) -> None:
    behind = host.attach()
    host.applied(behind.ip, "action=accept")
    server = host.world.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind((ROUTER, 53))
    server.settimeout(5)
    client = behind.qube.socket(socket.AF_INET, socket.SOCK_DGRAM)
    client.sendto(b"question", (DNS, 53))
    assert server.recvfrom(100)[0] == b"question"
    host.applied(behind.ip, "action=accept specialtarget=dns")
    assert numbers(host, behind.ip) == {"53"}
    host.applied(behind.ip, f"action=drop dst4={ROUTER}/32", "action=accept")
    assert numbers(host, behind.ip) == set()
    server.close()
    client.close()


@pytest.mark.behaviour("B70")
def test_what_ends_at_the_provider_itself_is_no_matter_of_these_rules(host: Enforcing) -> None:
    behind = host.attach()
    host.applied(behind.ip, "action=accept")
    host.nft("add rule ip qubes custom-input tcp dport 22 accept")
    server = host.qube.socket(socket.AF_INET, socket.SOCK_STREAM)
    server.bind(("10.138.0.1", 22))
    server.listen()
    client = behind.qube.socket(socket.AF_INET, socket.SOCK_STREAM)
    client.settimeout(5)
    client.connect(("10.138.0.1", 22))
    host.applied(behind.ip, "action=drop")
    assert numbers(host, behind.ip) == {"22"}
    server.close()
    client.close()


@pytest.mark.behaviour("B70", "B71")
def test_name_servers_that_are_not_known_at_the_moment_end_no_connection(host: Enforcing) -> None:
    """While the owner's file is invalid, the redirection stays as it was, and so do the servers that rules accept."""
    behind = host.attach()
    server = host.world.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind((ROUTER, 53))
    server.settimeout(5)
    client = behind.qube.socket(socket.AF_INET, socket.SOCK_DGRAM)
    host.applied(behind.ip, "action=accept specialtarget=dns")
    client.sendto(b"question", (DNS, 53))
    assert server.recvfrom(100)[0] == b"question"
    host.qube.write("/etc/qubes/guestnet.toml", "[dns]\nservers = 7\n")
    host.applied(behind.ip, "action=accept specialtarget=dns", "action=accept proto=icmp")
    assert numbers(host, behind.ip) == {"53"}, host.trouble()
    host.applied(behind.ip, "action=drop specialtarget=dns", "action=accept")
    assert numbers(host, behind.ip) == set()
    server.close()
    client.close()


# As the kernel does to every dump that another change interrupts, each time.
_UNREADABLE = """
import os
from qubes_guestnet.errors import KernelError
from qubes_guestnet.system import conntrack
begun = conntrack.begun
def interrupted(sources):
    if os.path.exists("/run/unreadable"):
        raise KernelError("conntrack dump", 4)
    return begun(sources)
conntrack.begun = interrupted
"""


@pytest.mark.behaviour("B70")
@pytest.mark.parametrize("then", ["the same list", "the list before"])
def test_connections_that_could_not_be_listed_are_judged_once_they_can_be(then: str) -> None:
    host = Enforcing(agent=False)
    host.qube.write("/run/faults/sitecustomize.py", _UNREADABLE)
    host.qube.start_agent(env={"PYTHONPATH": ":".join(("/run/faults", *sys.path))})
    behind = host.attach()
    before = "action=accept proto=tcp dstports=80-80"
    host.applied(behind.ip, before if then == "the list before" else "action=accept")
    if then == "the list before":
        host.qube.write("/run/unreadable", "")
        host.commit(behind.ip, "action=accept")
        eventually(lambda: "0000" in "".join(host.chain(behind.ip)) and "dport" not in "".join(host.chain(behind.ip)))
    talk = Talk(host, behind, 443)
    assert talk.goes_on()
    host.qube.write("/run/unreadable", "")
    host.commit(behind.ip, before)
    eventually(lambda: "dport 80" in "".join(host.chain(behind.ip)), trouble=host.trouble)
    assert talk.goes_on(), "the fault of this test works"
    host.qube.path("/run/unreadable").unlink()
    eventually(lambda: not talk.goes_on(0.3), 20, trouble=host.trouble)
    talk.close()
