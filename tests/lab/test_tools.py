# SPDX-License-Identifier: GPL-2.0-or-later
"""The lab's instruments: they must be able to say no."""

from __future__ import annotations

import io
import json
import socket
import struct

import pytest

from qubes_guestnet.lab import demo, probes, world
from qubes_guestnet.lab.capture import Capture
from qubes_guestnet.lab.cli import main
from qubes_guestnet.lab.dom0 import Dom0
from qubes_guestnet.lab.namespaces import LabError
from qubes_guestnet.lab.progress import Display, Teller, follow
from qubes_guestnet.lab.provider import Provider
from qubes_guestnet.lab.qube import Qube
from qubes_guestnet.lab.stage import Stage
from qubes_guestnet.lab.world import World
from tests.support.eventually import eventually
from tests.support.needs import needs


@pytest.fixture(autouse=True)
def _tools() -> None:
    needs("ip", "nsenter", "nft", "dnsmasq")


def _udp(version: int, source: int, destination: int) -> bytes:
    ethernet = b"\xff" * 6 + b"\x02" + bytes(5)
    ports = struct.pack("!HHHH", source, destination, 8, 0)
    if version == 4:
        return ethernet + b"\x08\x00" + struct.pack("!BBHHHBBH8x", 0x45, 0, 28, 0, 0, 64, 17, 0) + ports
    return ethernet + b"\x86\xdd" + struct.pack("!IHBB32x", 6 << 28, 8, 17, 64) + ports


@pytest.mark.parametrize(
    ("version", "source", "destination", "counted"),
    [(4, 68, 67, 1), (4, 67, 68, 1), (6, 546, 547, 1), (4, 53, 1067, 0), (6, 5353, 5353, 0)],
)
def test_the_capture_sees_dhcp_where_there_is_some(version: int, source: int, destination: int, counted: int) -> None:
    provider, qube = Qube("netvm"), Qube("vm")
    capture = Capture(provider)
    provider.wire(f"ip link add vif1.0 up type veth peer name eth0 netns {qube.pid}")
    qube.wire("ip link set eth0 up")
    with qube.socket(socket.AF_PACKET, socket.SOCK_RAW) as sender:
        sender.bind(("eth0", 0))
        sender.send(_udp(version, source, destination))
    eventually(lambda: provider.ip("-s", "link", "show", "dev", "vif1.0")[0]["stats64"]["rx"]["packets"])
    frames = capture.stop()
    assert frames.dhcp == counted
    assert frames.all >= 1
    assert frames.lost == 0


def test_dom0_writes_in_its_order_and_leaves_ipv6_keys_behind() -> None:
    dom0 = Dom0(plain=True)
    with_ipv6, without = dom0.create_provider("netvm1", ipv6=True), dom0.create_provider("netvm2")
    vm = dom0.create("vm1", with_ipv6)
    qube = dom0.start(vm)
    assert list(vm.entries()) == [
        "/qubes-mac", "/qubes-ip", "/qubes-netmask", "/qubes-gateway", "/qubes-primary-dns", "/qubes-secondary-dns",
        "/qubes-ip6", "/qubes-gateway6",
    ]  # fmt: skip
    before = dom0.read_all(vm)
    assert before["/qubes-gateway6"] == b"fd09:24ef:4179::a89:1"
    assert (vm.vif, qube.ip("link", "show", "dev", "eth0")[0]["address"]) == ("vif3.0", "00:16:3e:5e:6c:00")
    dom0.set_netvm(vm, None)
    assert dom0.read_all(vm) == before
    assert [link["ifname"] for link in qube.ip("link")] == ["lo"]
    dom0.set_netvm(vm, without)
    after = dom0.read_all(vm)
    assert after.pop("/qubes-gateway") == b"10.137.0.2"
    assert after == {key: value for key, value in before.items() if key != "/qubes-gateway"}
    assert vm.vif == "vif3.0"


@pytest.mark.parametrize("plain", [False, True], ids=["real", "plain"])
def test_the_providers_table_is_a_host_route_a_vif(plain: bool) -> None:
    stage = Stage(plain=plain)
    vm = stage.start("vm1", stage.netvm1, agent=False)
    routes = {route["dst"]: route for route in stage.netvm1.running.ip("-4", "route")}
    assert set(routes) == {"default", "192.168.0.0/24", vm.address}
    assert (routes[vm.address]["dev"], routes[vm.address]["metric"]) == ("vif2.0", 32752 - 2)


@pytest.mark.parametrize(("proxy_arp", "answered"), [(True, True), (False, False)])
def test_the_plain_provider_answers_arp_as_told(proxy_arp: bool, answered: bool) -> None:
    stage = Stage(plain=True)
    vm = stage.dom0.create("vm1", stage.netvm1)
    vm.proxy_arp = proxy_arp
    qube = stage.dom0.start(vm)
    qube.wire(f"ip link set eth0 up; ip address add {vm.address}/32 dev eth0; ip route add default dev eth0")
    # Its own address first: from then on the way is open, and an ARP question without an answer was refused.
    eventually(lambda: probes.ping(qube, stage.netvm1.address) is not None, what="its provider answers")
    if answered:
        eventually(lambda: probes.ping(qube, world.HOST) is not None, what="its provider answers ARP for the world")
    else:
        assert probes.ping(qube, world.HOST) is None


def test_a_qube_without_settings_reaches_nothing() -> None:
    provider = Provider("netvm1")
    qube = Qube("vm1")
    assert probes.ping(qube, world.HOST) is None
    assert probes.resolve(qube, world.NAME) == []
    assert not probes.echo(qube, world.HOST, 1234)
    assert probes.ping(provider.qube, world.HOST) is not None


def test_a_missing_tool_names_its_package(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("shutil.which", lambda tool, path=None: None if tool in ("dnsmasq", "nft") else tool)
    with pytest.raises(LabError, match="dnsmasq-base"):
        World()
    assert main(["demo"]) == 1
    told = capsys.readouterr().err
    assert told == "qubes-guestnet lab: the lab needs dnsmasq, nft; apt-get install dnsmasq-base nftables\n"


def test_a_scenario_that_does_not_hold_is_told() -> None:
    def scenario(teller: Teller) -> None:
        teller.step("x")
        raise LabError("on purpose")

    assert [event for event in follow(scenario) if event] == [{"step": "x"}, {"status": 1}]


def test_the_display_is_plain_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)  # a width that is asked for is kept without a terminal too
    out = io.StringIO()
    display = Display(out)
    display.begin("a step")
    display.tick()
    display.note("a finding\nanother")
    display.end(held=True)
    display.table(("a", "b"), [("x", "y" * 200)])
    text = out.getvalue()
    assert "\033" not in text
    assert "\r" not in text
    assert [line.split()[-1] for line in text.splitlines()] == ["step", "finding", "another", "b", "y" * 200]


def test_demo_holds(capsys: pytest.CaptureFixture[str]) -> None:
    status = demo.main(as_json=True)
    told = json.loads(capsys.readouterr().out)
    assert (status, told["held"], told["error"]) == (0, True, "")
    assert set(told["table"]) >= {"entries", "plan", "addresses", "default route", "resolv.conf", "live change", "DHCP"}
    assert told["measured"]["frames"]["dhcp"] == 0
    assert told["seconds"] < 60


def test_demo_fails_when_a_step_does_not_hold(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_args: object) -> None:
        raise LabError("on purpose")

    monkeypatch.setattr(demo, "_packets", broken)
    assert demo.main() == 1
    out = capsys.readouterr().out
    assert "FAILED at: the agent starts" in out
    assert "on purpose" in out
