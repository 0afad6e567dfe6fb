# SPDX-License-Identifier: GPL-2.0-or-later
"""The virtual DNS addresses with packets: where questions come out, that none comes out elsewhere, and how it changes.

There is no table of a firewall in any of these but where one says so: the redirection needs none (behaviour B41).
"""

from __future__ import annotations

import errno
import itertools
import json
import socket
import sys
import time

import pytest

from tests.support.eventually import eventually
from tests.support.packets.ports import Port, listening
from tests.support.packets.storm import shot, storm
from tests.support.qubes.provider import DNS, DNS2, ENTRIES, OWN, ROUTER, UPLINK, VIF_MAC, WORLD, Client, Provider

SECOND, THIRD = "198.51.100.52", "198.51.100.53"
VIRTUAL = (DNS, DNS2)
RULES = [f"ip daddr {address} {protocol} dport 53" for address in VIRTUAL for protocol in ("udp", "tcp")]
# A provider's own uplink, whose servers are the virtual ones of the next provider.
OF_A_PROXY = {
    "/qubes-mac": "02:00:00:00:00:01",
    "/qubes-ip": "10.137.0.2",
    "/qubes-gateway": "10.138.5.1",
    "/qubes-primary-dns": DNS,
    "/qubes-secondary-dns": DNS2,
}
_ports = itertools.count(20000)


def pairs(host: Provider) -> dict[str, str]:
    """Virtual address → server, of redirections that are whole: udp and tcp alike, once each."""
    rules = [rule.rpartition(" dnat to ")[::2] for rule in host.rules("ip", "dnat-dns")]
    assert [head for head, _ in rules] == (RULES if rules else [])
    found = {head.split()[2]: server for head, server in rules}
    assert all(found[head.split()[2]] == server for head, server in rules)
    return found


def leads(host: Provider, *servers: str) -> None:
    """Wait until both virtual addresses lead there."""
    wanted = dict(zip(VIRTUAL, itertools.cycle(servers), strict=False)) if servers else {}
    eventually(lambda: pairs(host) == wanted, trouble=host.trouble)


def came_out(behind: Client, outside: Port, address: str, port: int = 53) -> str:
    """Where a question comes out, asked from a port of its own; "" when it does not."""
    word = f"question {next(_ports)}"
    behind.port.send(behind.ip, address, word, sport=next(_ports), dport=port)
    behind.port.send(behind.ip, WORLD, f"after {word}", sport=next(_ports))
    assert outside.hears(lambda packet: packet.word == f"after {word}")
    found = [packet for packet in outside.heard() if packet.word == word]
    assert all(packet.source == OWN for packet in found)
    return "".join(packet.target for packet in found)


def nothing_virtual(outside: Port) -> None:
    """No packet for a virtual address has ever come out."""
    outside.drain()
    octets = {socket.inet_aton(address) for address in VIRTUAL}
    assert [packet for packet in outside.packets if packet[16:20] in octets] == []


def connected(behind: Client, address: str) -> int:
    """The error number of a TCP connection to port 53."""
    with behind.qube.socket(socket.AF_INET, socket.SOCK_STREAM) as client:
        client.settimeout(5.0)
        return client.connect_ex((address, 53))


@pytest.mark.behaviour("B39")
@pytest.mark.behaviour("B41")
@pytest.mark.behaviour("B43")
def test_every_question_comes_out_at_a_real_server_and_nothing_else_comes_out() -> None:
    host = Provider()
    behind, outside = host.attach(), host.outside()
    leads(host, ROUTER)
    assert [came_out(behind, outside, address) for address in VIRTUAL] == [ROUTER, ROUTER]
    with host.world.socket(socket.AF_INET, socket.SOCK_STREAM) as server:
        server.bind((ROUTER, 53))
        server.listen()
        assert [connected(behind, address) for address in VIRTUAL] == [0, 0]
    host.resolv_conf(SECOND, THIRD, ROUTER)
    leads(host, SECOND, THIRD)
    assert [came_out(behind, outside, address) for address in VIRTUAL] == [SECOND, THIRD]
    # Another port, another protocol, and the provider's own questions by mistake.
    assert [came_out(behind, outside, address, 853) for address in VIRTUAL] == ["", ""]
    assert behind.qube.run("ping", "-n", "-c", "1", "-W", "1", DNS, check=False).returncode == 1
    nothing_virtual(outside)
    # A firewall that is there, half there, or stopped.
    for text in ("add table ip qubes-firewall", "delete table ip qubes-firewall"):
        host.nft(text)
        host.resolv_conf(ROUTER)
        leads(host, ROUTER)
        host.resolv_conf(SECOND)
        leads(host, SECOND)
    assert [came_out(behind, outside, address) for address in VIRTUAL] == [SECOND, SECOND]
    nothing_virtual(outside)


@pytest.mark.behaviour("B15")
def test_a_provider_that_sets_no_name_server_of_its_own_still_redirects() -> None:
    """The flag is about this qube's own names."""
    host = Provider({**ENTRIES, **OF_A_PROXY}, agent=False, servers=[])
    host.qube.set_flag("disable-dns-server")
    host.qube.start_agent()
    behind, outside = host.attach(), host.outside()
    leads(host, DNS, DNS2)
    assert [came_out(behind, outside, address) for address in VIRTUAL] == [DNS, DNS2]
    assert host.qube.read("/etc/resolv.conf") == ""
    host.resolv_conf(SECOND)  # another program's
    leads(host, SECOND)
    assert came_out(behind, outside, DNS) == SECOND


@pytest.mark.behaviour("B40")
@pytest.mark.parametrize("server", ["", "127.0.0.53", "2000:abcd::53"], ids=["none", "a stub", "IPv6"])
def test_without_a_server_questions_are_refused_at_once_until_there_is_one(server: str) -> None:
    host = Provider(servers=[server] if server else [])
    behind, outside = host.attach(), host.outside()
    eventually(lambda: host.forwards(), trouble=host.trouble)
    assert pairs(host) == {}
    for address in VIRTUAL:
        start = time.monotonic()
        assert connected(behind, address) == errno.ECONNREFUSED
        with behind.qube.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(5.0)
            client.connect((address, 53))
            client.send(b"question")
            with pytest.raises(ConnectionRefusedError):
                client.recv(100)
        assert time.monotonic() - start < 1.0, "a resolver waits some seconds for an answer"
        assert came_out(behind, outside, address) == ""
    nothing_virtual(outside)
    host.resolv_conf(ROUTER)
    leads(host, ROUTER)
    assert came_out(behind, outside, DNS) == ROUTER
    host.resolv_conf()
    leads(host)
    assert came_out(behind, outside, DNS) == ""
    nothing_virtual(outside)


@pytest.mark.behaviour("B33")
@pytest.mark.parametrize("agent", [True, False], ids=["agent", "cold"])
def test_however_many_run_at_once_there_is_one_set_and_never_an_empty_one(agent: bool) -> None:
    """Ten `dns sync` at the same time, while questions from several ports go on and the servers change."""
    host = Provider(agent=agent)
    if not agent:
        host.qube.guestnet("forwarding", "on")
    behind, outside = host.attach(), host.outside()
    leads(host, ROUTER)
    shots = [shot(behind.port, behind.ip, DNS, "question", sport=port, dport=53) for port in range(3000, 3008)]
    command = (sys.executable, "-m", "qubes_guestnet", "dns", "sync")
    with storm(shots), listening(outside):
        host.resolv_conf(SECOND, THIRD)
        started = [host.qube.spawn(f"sync-{number}", *command) for number in range(10)]
        statuses = [service.wait(20.0) for service in started]
        assert set(statuses) <= {0, 100}, [service.output() for service in started]
        assert agent or statuses.count(0) == 1, "one changes it, the others find it done"
        assert pairs(host) == {DNS: SECOND, DNS2: THIRD}
    assert {packet.target for packet in outside.heard() if packet.word == "question"} == {ROUTER, SECOND}
    assert host.drops("dns-reject") == 0
    nothing_virtual(outside)


@pytest.mark.behaviour("B36")
@pytest.mark.behaviour("B44")
def test_whoever_changes_the_file_and_however() -> None:
    host = Provider()
    leads(host, ROUTER)
    host.qube.write("/etc/resolv.conf", f"# by hand\nnameserver {SECOND}\nnameserver {THIRD}\n")
    leads(host, SECOND, THIRD)
    host.resolv_conf(THIRD)  # as NetworkManager, iwd and networkd do
    leads(host, THIRD)
    host.qube.run("sh", "-c", f"rm /etc/resolv.conf; echo nameserver {SECOND} >/etc/resolv.conf")  # as dhclient does
    leads(host, SECOND)
    host.qube.run("sh", "-c", f"echo nameserver {ROUTER} >/run/other; ln -sf /run/other /etc/resolv.conf")
    leads(host, ROUTER)
    # Behind a link the folder does not stir; the command that hooks and users call says at once what is so.
    host.qube.write("/run/other", f"nameserver {THIRD}\n")
    assert host.qube.guestnet("dns", "sync", check=False).returncode in (0, 100)
    assert pairs(host) == {DNS: THIRD, DNS2: THIRD}
    assert host.qube.guestnet("dns", "sync", check=False).returncode == 100


@pytest.mark.behaviour("B42")
def test_the_updates_proxy_is_restarted_when_the_servers_differ_and_only_then() -> None:
    host = Provider(agent=False)
    host.qube.write("/run/lab/systemctl", '#!/bin/sh\necho "$@" >>/run/lab/asked\n')
    host.qube.path("/run/lab/systemctl").chmod(0o755)
    host.qube.set_flag("qubes-updates-proxy")
    environment = {"PATH": "/run/lab:/usr/sbin:/usr/bin:/sbin:/bin"}
    once = "--no-block try-restart qubes-updates-proxy.service\n"
    host.qube.start_agent(env=environment)
    leads(host, ROUTER)
    assert host.qube.read("/run/lab/asked") == once
    host.resolv_conf(ROUTER)  # a renewed lease
    host.write("/qubes-netvm-secondary-dns", "10.139.1.3")
    eventually(lambda: "10.139.1.3" in " ".join(host.rules("ip", "dnat-dns")), trouble=host.trouble)
    host.write("/qubes-netvm-secondary-dns", DNS2)
    leads(host, ROUTER)
    host.agent.kill()
    host.qube.start_agent(env=environment)
    host.nft("flush chain ip qubes dnat-dns")
    leads(host, ROUTER)
    # 100 only if nothing changed since it last ran, and this is its first time (B135).
    assert host.qube.guestnet("dns", "sync", check=False, env=environment).returncode == 0
    assert host.qube.guestnet("dns", "sync", check=False, env=environment).returncode == 100
    assert host.qube.read("/run/lab/asked") == once
    host.resolv_conf(SECOND)
    leads(host, SECOND)
    assert eventually(lambda: host.qube.read("/run/lab/asked") == once * 2)
    for servers in ((), (SECOND,)):  # no server meanwhile, as between two providers
        host.resolv_conf(*servers)
        leads(host, *servers)
    assert host.qube.read("/run/lab/asked") == once * 2
    host.agent.stop()
    host.resolv_conf(ROUTER)
    assert host.qube.guestnet("dns", "sync", env=environment).returncode == 0
    assert host.qube.read("/run/lab/asked") == once * 3
    host.qube.set_flag("qubes-updates-proxy", on=False)
    host.resolv_conf(SECOND)
    assert host.qube.guestnet("dns", "sync", env=environment).returncode == 0
    assert host.qube.read("/run/lab/asked") == once * 3


def test_a_restart_that_fails_is_told_and_takes_nothing_away() -> None:
    host = Provider(agent=False)
    host.qube.write("/run/lab/systemctl", "#!/bin/sh\necho no such thing >&2; exit 5\n")
    host.qube.path("/run/lab/systemctl").chmod(0o755)
    host.qube.set_flag("qubes-updates-proxy")
    host.qube.start_agent(env={"PATH": "/run/lab:/usr/sbin:/usr/bin:/sbin:/bin"})
    leads(host, ROUTER)
    eventually(lambda: host.forwards(), trouble=host.trouble)
    assert "no such thing" in host.trouble()


@pytest.mark.behaviour("B39")
def test_questions_of_a_proxy_leave_translated_and_for_nothing_but_names() -> None:
    host = Provider({**ENTRIES, **OF_A_PROXY}, servers=VIRTUAL)
    behind, outside = host.attach(), host.outside()
    leads(host, *VIRTUAL)
    eventually(lambda: host.forwards(), trouble=host.trouble)
    words = []
    for port in (53, 853, 9):
        behind.port.send(behind.ip, DNS, f"port {port}", dport=port)
    behind.port.send(behind.ip, WORLD, "last")
    assert outside.hears(lambda packet: packet.word == "last")
    words = [packet for packet in outside.heard() if packet.word != "last"]
    assert {(packet.word, packet.target) for packet in words} == {("port 53", DNS)}
    assert {packet.source for packet in words}.isdisjoint({behind.ip})


@pytest.mark.behaviour("B39")
@pytest.mark.behaviour("B40")
def test_questions_of_a_proxy_without_a_provider_are_refused_and_leave_by_no_other_way() -> None:
    host = Provider({**ENTRIES, **OF_A_PROXY}, servers=VIRTUAL, uplink=False)
    host.qube.wire(f"ip link add other type veth peer name far netns {host.world.pid}")
    host.world.wire("ip link set far up")
    behind, elsewhere = host.attach(), Port(host.world, "far", VIF_MAC)
    eventually(lambda: host.forwards(), trouble=host.trouble)
    other_way = """
        ip link set other up; ip address replace 192.168.77.2/24 dev other
        ip neighbour replace 192.168.77.1 lladdr 02:00:00:00:00:77 nud permanent dev other
        ip route replace default via 192.168.77.1
    """

    def refused() -> None:
        leads(host)
        host.qube.wire(other_way)
        assert [connected(behind, address) for address in VIRTUAL] == [errno.ECONNREFUSED] * 2
        behind.port.send(behind.ip, WORLD, "another way")
        assert elsewhere.hears(lambda packet: packet.word == "another way")
        elsewhere.drain()
        nothing_virtual(elsewhere)
        elsewhere.forget()

    refused()
    start = time.monotonic()
    host.cable()
    leads(host, *VIRTUAL)
    assert time.monotonic() - start < 2.0, "its uplink is there"
    before, outside = host.drops("dns-reject"), host.outside()
    for address in VIRTUAL:
        behind.port.send(behind.ip, address, f"to {address}", sport=next(_ports), dport=53)
        assert outside.hears(lambda packet, address=address: packet.word == f"to {address}")
    assert host.drops("dns-reject") == before
    host.qube.wire(f"ip link delete {UPLINK}")
    refused()


@pytest.mark.behaviour("B45")
def test_the_record_the_status_and_the_redirection_are_one_list() -> None:
    host = Provider(servers=[SECOND, THIRD])
    leads(host, SECOND, THIRD)
    status = json.loads(host.qube.guestnet("status", "--json", check=False).stdout)["provider"]
    assert (status["dns"]["virtual"], status["dns"]["servers"]) == ([DNS, DNS2], [SECOND, THIRD])
    assert f"{SECOND} {THIRD}" in host.qube.read("/run/qubes-guestnet/owned")
