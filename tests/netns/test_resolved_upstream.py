# SPDX-License-Identifier: GPL-2.0-or-later
"""The servers of all links, asked of the real systemd-resolved both ways, and each way in which it is not to be had."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest

from qubes_guestnet.lab.daemons import Daemons
from qubes_guestnet.lab.qube import Qube
from qubes_guestnet.system.dbus import resolved
from qubes_guestnet.system.dbus.bus import BusError
from tests.support.eventually import eventually

ASK = {
    "bus": """
from qubes_guestnet.system.dbus import bus as dbus, resolved
port = resolved.ByBus(dbus.Bus())
""",
    "resolvectl": """
from qubes_guestnet.system import programs
from qubes_guestnet.system.dbus import resolved
port = resolved.ByCommand(programs.find("resolvectl"))
""",
}
TELL = """
import socket, time
uplinks = frozenset(index for index, name in socket.if_nameindex() if name == "eth0")
start = time.monotonic()
heard = resolved.ask(port, uplinks)
seconds = time.monotonic() - start
names = dict(socket.if_nameindex())
for link in heard.links or ():
    marks = [mark for mark in ("everything", "uplink", "default_route", "tls_only") if getattr(link, mark)]
    print(names.get(link.ifindex, "global"), *map(str, link.servers), *marks)
print(heard.problem if heard.links is None else "that is all", seconds < 3)
"""
both_ways = pytest.mark.parametrize("way", ASK)


def start() -> tuple[Qube, Daemons]:
    """A qube with an uplink that routes every name, as ours does, and the service."""
    qube = Qube("provider")
    qube.wire("ip link add eth0 type veth peer name far; ip link set eth0 up; ip link set far up")
    qube.wire("ip address add 10.137.0.5/32 dev eth0")  # a link without an address is none to be asked
    daemons = Daemons(qube)
    daemons.dbus()
    daemons.resolved()
    daemons.resolvectl("dns", "eth0", "10.139.1.1", "10.139.1.2")
    daemons.resolvectl("domain", "eth0", "~.")
    return qube, daemons


def told(qube: Qube, way: str) -> list[str]:
    return qube.run(sys.executable, "-c", ASK[way] + TELL).stdout.splitlines()


@pytest.mark.behaviour("B37")
@both_ways
def test_an_uplink_and_a_vpn(way: str) -> None:
    qube, daemons = start()
    assert told(qube, way) == ["eth0 10.139.1.1 10.139.1.2 everything uplink default_route", "that is all True"]
    qube.wire("ip link add tun0 type veth peer name tun0-far; ip link set tun0 up; ip link set tun0-far up")
    qube.wire("ip address add 10.8.0.9/24 dev tun0")
    daemons.resolvectl("dns", "tun0", "10.8.0.1", "fd00::1", "10.8.0.2#vpn.example")
    daemons.resolvectl("domain", "tun0", "~.", "corp.example")
    assert sorted(told(qube, way)) == [
        "eth0 10.139.1.1 10.139.1.2 everything uplink default_route",
        "that is all True",
        "tun0 10.8.0.1 fd00::1 10.8.0.2 everything default_route",
    ]
    daemons.resolvectl("domain", "tun0", "corp.example")
    assert "tun0 10.8.0.1 fd00::1 10.8.0.2 default_route" in told(qube, way)
    daemons.resolvectl("revert", "tun0")
    assert told(qube, way) == ["eth0 10.139.1.1 10.139.1.2 everything uplink default_route", "that is all True"]


@pytest.mark.behaviour("B38")
@both_ways
def test_servers_of_the_whole_qube(way: str) -> None:
    qube, daemons = start()
    daemons.stop("resolved")
    qube.write("/run/systemd/resolved.conf.d/50-own.conf", "[Resolve]\nDNS=9.9.9.9 100.100.100.100#name.example\n")
    daemons.resolved()
    assert "global 9.9.9.9 100.100.100.100 default_route" in told(qube, way)


@pytest.mark.behaviour("B127")
@both_ways
def test_how_they_are_to_be_asked(way: str) -> None:
    qube, daemons = start()
    daemons.stop("resolved")
    qube.write("/run/systemd/resolved.conf.d/50-own.conf", "[Resolve]\nDNS=9.9.9.9:9953#name.example\nDNSOverTLS=yes\n")
    daemons.resolved()
    qube.wire("ip link add tun0 type veth peer name tun0-far; ip link set tun0 up; ip link set tun0-far up")
    qube.wire("ip address add 10.8.0.9/24 dev tun0")
    daemons.resolvectl("dns", "tun0", "10.8.0.1:5353", "[fd00::1]:5353")
    daemons.resolvectl("domain", "tun0", "~corp.example")
    daemons.resolvectl("dnsovertls", "tun0", "opportunistic")
    assert sorted(told(qube, way)) == [
        "eth0 10.139.1.1 10.139.1.2 everything uplink default_route tls_only",
        "global 9.9.9.9:9953 default_route tls_only",
        "that is all True",
        "tun0 10.8.0.1:5353 [fd00::1]:5353",
    ]
    daemons.resolvectl("default-route", "tun0", "yes")
    assert "tun0 10.8.0.1:5353 [fd00::1]:5353 default_route" in told(qube, way)


@both_ways
def test_many_servers_are_all_told(way: str) -> None:
    """In the terminal's width, which breaks the line."""
    qube, daemons = start()
    servers = [f"10.8.{number}.{number}" for number in range(100, 120)]
    daemons.resolvectl("dns", "eth0", *servers)
    assert f"eth0 {' '.join(servers)} everything uplink default_route" in told(qube, way)


@pytest.mark.behaviour("B35")
@both_ways
def test_not_running(way: str) -> None:
    qube, daemons = start()
    daemons.stop("resolved")
    qube.run("sh", "-c", "rm -rf /run/systemd/resolve/*")
    assert told(qube, way) == ["is not running True"]


@pytest.mark.behaviour("B35")
@both_ways
def test_killed_with_its_files_left_behind(way: str) -> None:
    qube, daemons = start()
    daemons.running["resolved"].kill()
    assert told(qube, way) == ["is not running True"]


@pytest.mark.behaviour("B35")
@both_ways
def test_hanging(way: str) -> None:
    qube, daemons = start()
    daemons.running["resolved"].signal(signal.SIGSTOP)
    assert told(qube, way) == ["does not answer True"]
    daemons.running["resolved"].signal(signal.SIGCONT)
    eventually(lambda: told(qube, way)[0].startswith("eth0"), what="it answers again")


@pytest.mark.behaviour("B35")
def test_no_bus_any_more() -> None:
    qube, daemons = start()
    go = "import pathlib, time\nwhile not pathlib.Path('/run/go').exists(): time.sleep(0.01)\n"
    asking = qube.spawn("asking", sys.executable, "-u", "-c", ASK["bus"] + "print('connected')\n" + go + TELL)
    eventually(lambda: "connected" in asking.output(), what="it is connected", trouble=asking.output)
    daemons.running["dbus"].kill()
    qube.write("/run/go", "")
    assert asking.wait() == 0
    assert asking.output().splitlines() == ["connected", "does not answer True"]
    assert told(qube, "resolvectl") == ["does not answer True"]


class OddBus:
    """Answers as no systemd-resolved that we know does, but as some have (PR 407 of the present agent)."""

    def __init__(self, answer: Callable[[], Any]) -> None:
        self._answer = answer

    def call(self, *_: object) -> Any:
        return self._answer()


def refused(name: str) -> Callable[[], Any]:
    def answer() -> Any:
        raise BusError("no", name)

    return answer


GOOD = {"DNS": ("a(iiay)", [(2, 2, b"\x0a\x8b\x01\x01")]), "Domains": ("a(isb)", [(2, ".", True)])}
ODD: dict[str, Callable[[], Any]] = {
    **{
        name: refused(name)
        for name in (
            "org.freedesktop.DBus.Error.ServiceUnknown",
            "org.freedesktop.DBus.Error.NameHasNoOwner",
            "org.freedesktop.DBus.Error.NoReply",
            "org.freedesktop.DBus.Error.AccessDenied",
            "org.freedesktop.DBus.Error.UnknownProperty",
            "org.freedesktop.systemd1.NoSuchUnit",
            "org.freedesktop.systemd1.UnitMasked",
            "org.example.NobodyThoughtOfIt",
            "",
        )
    },
    "an empty reply": tuple,
    "no reply": lambda: None,
    "nothing in it": lambda: ({},),
    "a null in it": lambda: (None,),
    "no domains": lambda: ({"DNS": GOOD["DNS"]},),
    "null servers": lambda: ({**GOOD, "DNS": ("a(iiay)", None)},),
    "no address": lambda: ({**GOOD, "DNS": ("a(iiay)", [(2, 2, b"\x0a\x8b")])},),
    "other fields": lambda: ({**GOOD, "DNS": ("a(ay)", [(b"\x0a\x8b\x01\x01",)])},),
}


@pytest.mark.behaviour("B35")
@pytest.mark.parametrize("odd", ODD)
def test_whatever_the_bus_says_there_is_an_answer(odd: str) -> None:
    heard = resolved.ask(resolved.ByBus(OddBus(ODD[odd])), frozenset())  # type: ignore[arg-type]
    assert heard.links is None
    assert heard.problem


def test_the_table_above_fails_for_what_it_says() -> None:
    heard = resolved.ask(resolved.ByBus(OddBus(lambda: (GOOD,))), frozenset({2}))  # type: ignore[arg-type]
    assert [str(server) for link in heard.links or () for server in link.servers] == ["10.139.1.1"]


def test_without_a_way_to_it_that_is_said() -> None:
    assert resolved.ask(None, frozenset()).problem == "is unreachable without the system bus and resolvectl"


@pytest.mark.behaviour("B35")
@pytest.mark.parametrize("program", ["/nowhere/resolvectl", "/bin/false", "/bin/true", "/bin/echo"])
def test_whatever_the_program_does_there_is_an_answer(program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolved, "_started", time.monotonic)
    heard = resolved.ask(resolved.ByCommand(program), frozenset())
    assert heard.links is None
    assert heard.problem
