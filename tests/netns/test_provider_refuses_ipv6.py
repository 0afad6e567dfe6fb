# SPDX-License-Identifier: GPL-2.0-or-later
"""IPv6 was switched on while the provider ran: its qubes have it, it has none to give, and refuses theirs at once."""

from __future__ import annotations

import errno
import json
import socket
import time

import pytest

from qubes_guestnet.lab.qube import Qube
from tests.support.eventually import eventually
from tests.support.qubes.provider import ENTRIES, ENTRIES6, GATEWAY6, WORLD, WORLD6, Client, Provider

OWN6 = "fd09:24ef:4179::a89:4"
# dom0 lists the qube when it attaches it, and gives the provider its gateway only at that one's next start.
SWITCHED_ON = {**ENTRIES, "/connected-ips": "10.137.0.4", "/connected-ips6": OWN6}
# Far less than any program waits, far more than a refusal takes on a busy machine.
AT_ONCE_S = 1.0


def refused(qube: Qube, kind: int, target: str = WORLD6, port: int = 9) -> int:
    """What the qube's kernel is told about its packet; 0: nothing in time."""
    with qube.socket(socket.AF_INET6, kind) as client:
        client.settimeout(AT_ONCE_S)
        try:
            client.connect((target, port))
            client.send(b"?")
            client.recv(1)
        except TimeoutError:
            return 0
        except OSError as error:
            return error.errno or 0
    return 0


def told(behind: Client) -> tuple[int, int]:
    """What TCP and UDP are told."""
    return refused(behind.qube, socket.SOCK_STREAM), refused(behind.qube, socket.SOCK_DGRAM)


REFUSED = (errno.ECONNREFUSED, errno.EACCES)


def attach(host: Provider) -> Client:
    """A qube that was told of IPv6."""
    host.ipv6 = True
    return host.attach()


@pytest.mark.behaviour("B160")
@pytest.mark.parametrize("agent", [True, False], ids=["agent", "cold"])
def test_tcp_and_udp_are_refused_at_once_and_ipv4_works(agent: bool) -> None:
    host = Provider(SWITCHED_ON, agent=agent)
    behind = attach(host)
    started = time.monotonic()
    assert told(behind) == REFUSED, host.trouble()
    assert time.monotonic() - started < 2 * AT_ONCE_S
    assert refused(behind.qube, socket.SOCK_STREAM, GATEWAY6, 22) == errno.ECONNREFUSED
    assert not host.forwards(6)
    if not agent:
        host.qube.guestnet("forwarding", "on")
    outside = host.outside()
    assert host.works(behind, outside)
    assert not any(packet[0] >> 4 == 6 and packet[6] == 17 for packet in outside.packets), "IPv6 came out"


@pytest.mark.behaviour("B160")
@pytest.mark.behaviour("B51")
def test_only_the_qubes_own_address_is_answered() -> None:
    host = Provider(SWITCHED_ON)
    behind, victim = attach(host), host.attach(5)
    assert told(behind) == REFUSED
    for port in (behind.port, victim.port):
        port.forget()
    before = host.drops("antispoof", "ip6")
    for source in (victim.ip6, "2000:abcd::99", "fe80::1"):
        behind.port.send(source, WORLD6, "stolen")
    behind.port.send(behind.ip6, WORLD6, "own")
    assert behind.port.hears(lambda packet: packet.word == "own")
    # Its kernel sends from its link-local address too (MLD, router solicitations), at moments of its own.
    assert host.drops("antispoof", "ip6") >= before + 4
    assert not [packet for port in (behind.port, victim.port) for packet in port.heard() if packet.word == "stolen"]
    # Nothing reaches the provider itself either.
    inside = host.inside(6)
    behind.port.send(behind.ip6, GATEWAY6, "provider")
    behind.port.send(behind.ip, WORLD, "after")
    assert behind.port.hears(lambda packet: packet.word == "provider")
    assert inside.words() == set()


@pytest.mark.behaviour("B160")
@pytest.mark.behaviour("B95")
def test_it_follows_what_dom0_writes_while_the_qube_is_attached() -> None:
    host = Provider({**ENTRIES, "/connected-ips": "10.137.0.4"})
    behind = attach(host)
    assert told(behind) == (0, 0), "no list of dom0 says that it has IPv6"
    host.write("/connected-ips6", OWN6)
    eventually(lambda: told(behind) == REFUSED, trouble=host.trouble)
    host.write("/qubes-netvm-gateway6", "rubbish")
    eventually(lambda: "settings-invalid" in codes(host))
    assert told(behind) == REFUSED, "a bad value changes nothing"
    host.write("/qubes-netvm-gateway6", GATEWAY6)
    eventually(lambda: host.forwards(6), trouble=host.trouble)
    assert host.works(behind, version=6)
    host.write("/qubes-netvm-gateway6", "")
    eventually(lambda: not host.forwards(6), trouble=host.trouble)
    eventually(lambda: told(behind) == REFUSED, trouble=host.trouble)
    host.write("/connected-ips6", "")
    eventually(lambda: told(behind) == (0, 0), trouble=host.trouble)
    assert host.qube.guestnet("plan").stdout == ""
    assert host.works(behind)


def codes(host: Provider) -> dict[str, str]:
    """What check says in the provider: remedy of each code."""
    found = json.loads(host.qube.guestnet("check", "--json", check=False).stdout)
    return {finding["code"]: finding["remedy"] for finding in found}


@pytest.mark.behaviour("B160")
def test_check_and_status_say_it_in_the_provider() -> None:
    host = Provider(SWITCHED_ON)
    attach(host)
    assert "restart this qube" in codes(host)["ipv6-refused"]
    assert json.loads(host.qube.guestnet("status", "--json").stdout)["provider"]["ipv6_refused"] is True
    host.write("/qubes-netvm-gateway6", GATEWAY6)
    eventually(lambda: "ipv6-refused" not in codes(host))
    assert json.loads(host.qube.guestnet("status", "--json").stdout)["provider"]["ipv6_refused"] is False


@pytest.mark.behaviour("B160")
@pytest.mark.parametrize("entries", [SWITCHED_ON, ENTRIES6], ids=["refusing", "giving"])
def test_check_says_it_in_the_qube(entries: dict[str, str]) -> None:
    host = Provider(entries)
    behind = attach(host)
    keys = {
        "/qubes-mac": behind.mac, "/qubes-ip": behind.ip, "/qubes-gateway": "10.138.0.1",
        "/qubes-ip6": behind.ip6, "/qubes-gateway6": GATEWAY6, "/qubes-primary-dns": "10.139.1.1",
    }  # fmt: skip
    behind.qube.start_store(keys)
    behind.qube.guestnet("rules", "load")
    behind.qube.guestnet("apply")
    found = json.loads(behind.qube.guestnet("check", "--json", check=False).stdout)
    told = [finding for finding in found if finding["code"] == "ipv6-refused-by-provider"]
    assert bool(told) is (entries is SWITCHED_ON), found
    assert all(GATEWAY6 in finding["problem"] and "in the provider" in finding["remedy"] for finding in told)
