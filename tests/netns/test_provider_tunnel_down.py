# SPDX-License-Identifier: GPL-2.0-or-later
"""A VPN that told its server by resolv.conf, without a kill switch, and whose device is set down and stays."""

from __future__ import annotations

import json
import sys
import time

import pytest

from tests.netns.test_provider_dns import OF_A_PROXY, VIRTUAL
from tests.support.eventually import eventually
from tests.support.packets.ports import Port
from tests.support.qubes.provider import ENTRIES, WORLD, Client, Provider

SERVER = "10.64.0.1"
UP = "ip link set wg0 up; ip route replace 10.64.0.0/16 dev wg0"
# A tun whose packets nothing reads; with a program that has it open, for its own state is down else.
OPEN = """
import fcntl, os, struct, time
fd = os.open("/dev/net/tun", os.O_RDWR)
fcntl.ioctl(fd, 0x400454ca, struct.pack("16sH22x", b"wg0", 0x1001))
print("open", flush=True)
time.sleep(600)
"""


def servers(host: Provider) -> set[str]:
    return {rule.rpartition(" dnat to ")[2] for rule in host.rules("ip", "dnat-dns")}


def asked(behind: Client, outside: Port) -> list[str]:
    """Where questions come out on the uplink, each from a port that was not in use."""
    port = time.monotonic_ns() % 20000 + 20000
    for number, address in enumerate(VIRTUAL):
        behind.port.send(behind.ip, address, "question", sport=port + number, dport=53)
    behind.port.send(behind.ip, WORLD, "after")
    assert outside.hears(lambda packet: packet.word == "after")
    found = [packet.target for packet in outside.heard() if packet.word == "question"]
    outside.drain()
    outside.forget()
    return found


@pytest.mark.behaviour("B124", "B127")
@pytest.mark.scenario("S-410")
def test_questions_are_refused_while_the_device_of_the_tunnel_is_set_down() -> None:
    host = Provider({**ENTRIES, **OF_A_PROXY}, servers=VIRTUAL)
    behind, outside = host.attach(), host.outside()
    eventually(lambda: servers(host) == set(VIRTUAL), trouble=host.trouble)
    eventually(lambda: host.forwards(), trouble=host.trouble)
    client = host.qube.spawn("client", sys.executable, "-c", OPEN)
    eventually(lambda: "open" in client.output(), trouble=client.output)
    host.qube.wire(UP)
    host.resolv_conf(SERVER)
    eventually(lambda: servers(host) == {SERVER}, trouble=host.trouble)
    assert asked(behind, outside) == []
    for _ in range(3):
        host.qube.wire("ip link set wg0 down")
        eventually(lambda: servers(host) == set(), trouble=host.trouble)
        assert asked(behind, outside) == []
        assert host.qube.read("/etc/resolv.conf") == f"nameserver {SERVER}\n"
        found = json.loads(host.qube.guestnet("check", "--json", check=False).stdout)
        problems = {finding["code"]: finding["problem"] for finding in found}
        assert "servers of wg0, and it is down" in problems["dns-link-down"]
        assert host.qube.guestnet("dns", "sync", check=False).returncode in (0, 100)
        assert servers(host) == set()
        host.qube.wire(UP)
        eventually(lambda: servers(host) == {SERVER}, trouble=host.trouble)
    client.kill()  # and with it the device
    eventually(lambda: servers(host) == set(VIRTUAL), trouble=host.trouble)
    assert asked(behind, outside) == list(VIRTUAL)
    assert SERVER not in host.qube.read("/etc/resolv.conf")
