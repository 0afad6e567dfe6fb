# SPDX-License-Identifier: GPL-2.0-or-later
"""What we did not make is never touched: by any key, any verb, any agent that was killed in between."""

from __future__ import annotations

import sys

import pytest

from qubes_guestnet.core.owned_state import checksum
from tests.support.eventually import eventually
from tests.support.judge.oracle import Json
from tests.support.qubes.appvm import (
    BACKEND_MAC,
    ENTRIES6,
    GATEWAY,
    GATEWAY6,
    GATEWAY_FLAG,
    IP,
    IP6,
    PROTOCOL,
    AppVm,
)

RECORD = "/run/qubes-guestnet/owned"

# What a user, a VPN and other programs put beside us; every line must outlive everything we do.
FOREIGN = f"""
    ip link add tun0 type veth peer name tun1
    ip link set tun1 up
    ip address add 10.8.0.2/24 dev tun0
    ip address add fd00:8::2/64 dev tun0 nodad
    ip link set tun0 up
    ip address add 192.168.99.1/24 dev eth0
    ip address add fd00:99::1/64 dev eth0 nodad
    ip route append default dev tun0
    ip route append default dev tun0 metric 50
    ip route append default dev eth0 scope link metric 200 proto static
    ip route append 192.0.2.0/24 dev eth0 proto static
    ip route append 198.51.100.7/32 via 192.168.99.9 dev eth0
    ip route append default dev eth0 table 100 proto {PROTOCOL[0]}
    ip -6 route append 2001:db8::/48 dev eth0 metric 77 proto static
    ip -6 route append default dev tun0 metric 10
    ip neighbour add 192.168.99.9 lladdr 02:00:00:00:00:09 nud permanent dev eth0
    ip neighbour add fd00:99::9 lladdr 02:00:00:00:00:09 nud permanent dev eth0
    ip rule add from 192.168.99.0/24 lookup 100
"""


def foreign(appvm: AppVm) -> tuple[list[str], list[Json]]:
    """All of it, as `ip -json` shows it, without what is ours."""
    show = appvm.oracle.ip
    addresses = [
        (link["ifname"], entry["local"], entry["prefixlen"])
        for link in show("address")
        for entry in link["addr_info"]
        if entry["local"].split("/")[0] not in (IP, IP6, "10.137.0.6", f"{IP6}6")
    ]
    routes = [
        {key: value for key, value in route.items() if key in ("dst", "gateway", "dev", "metric", "protocol", "table")}
        for family in ("-4", "-6")
        for table in ("main", "100")
        for route in show(family, "route", "show", "table", table)
        if route["protocol"] not in (*PROTOCOL, "kernel") or table == "100"
    ]
    neighbours = [
        (entry["dst"], entry["lladdr"])
        for entry in show("neighbour", "show", "dev", "eth0", "nud", "permanent")
        if entry["lladdr"] != BACKEND_MAC
    ]
    return sorted([*map(str, addresses), *map(str, routes), *map(str, neighbours)]), show("rule")


def with_foreign_things(entries: dict[str, str]) -> tuple[AppVm, tuple[list[str], list[Json]]]:
    appvm = AppVm(entries)
    appvm.ip("link", "set", "eth0", "up")
    appvm.oracle.run("sh", "-ec", FOREIGN)
    eventually(lambda: "tentative" not in str(appvm.oracle.ip("address")))
    before = foreign(appvm)
    assert len(before[0]) > 12, "there is something to lose"
    return appvm, before


@pytest.mark.behaviour("B9")
@pytest.mark.parametrize("style", ["device", "gateway"])
def test_foreign_things_outlive_everything(style: str) -> None:
    appvm, before = with_foreign_things(ENTRIES6)
    appvm.qube.set_flag(GATEWAY_FLAG, style == "gateway")
    steps = (
        lambda: appvm.qube.guestnet("apply"),
        lambda: appvm.qube.guestnet("uplink", "add", "eth0"),
        lambda: appvm.write("/qubes-ip", "10.137.0.6"),
        lambda: appvm.write("/qubes-ip6", f"{IP6}6"),
        lambda: appvm.write("/qubes-gateway", "10.137.0.2"),
        lambda: appvm.qube.set_flag("disable-default-route"),
        lambda: appvm.qube.set_flag(GATEWAY_FLAG, style == "device"),
        lambda: appvm.qube.set_flag("disable-default-route", False),
        lambda: appvm.remove("/qubes-ip6"),
        lambda: appvm.remove("/qubes-gateway"),
        lambda: appvm.remove("/qubes-ip"),
        lambda: appvm.write("/qubes-mac", "00:16:3e:00:00:99"),
    )
    for step in steps:
        step()
        appvm.qube.guestnet("apply")
        assert foreign(appvm) == before
    ours = [route for family in (4, 6) for route in appvm.oracle.routes(family) if route["protocol"] in PROTOCOL]
    assert ours == [], "and nothing of ours is left"
    assert not {f"{IP}/32", "10.137.0.6/32", f"{IP6}/128"} & appvm.oracle.addresses("eth0")


def test_foreign_things_outlive_the_agent() -> None:
    appvm, before = with_foreign_things(ENTRIES6)
    agent = appvm.agent()
    assert foreign(appvm) == before
    for number in (6, 5, 6):
        appvm.write("/qubes-ip", f"10.137.0.{number}")
        eventually(lambda: f"10.137.0.{number}/32" in appvm.oracle.addresses("eth0"), trouble=appvm.log)  # noqa: B023
        assert foreign(appvm) == before
        agent.kill()
        agent = appvm.agent()
        assert foreign(appvm) == before
    assert agent.stop() == 0
    assert foreign(appvm) == before
    assert f"{IP}/32" not in appvm.oracle.addresses("eth0")


@pytest.mark.scenario("S-403")
@pytest.mark.parametrize("style", ["device", "gateway"])
def test_a_vpn_that_replaces_the_default_route(style: str) -> None:
    """`ip route replace` takes our route; ours comes back behind the VPN's, and the VPN's still counts."""
    appvm = AppVm()
    appvm.qube.set_flag(GATEWAY_FLAG, style == "gateway")
    appvm.agent()
    appvm.oracle.run("sh", "-ec", "ip link add tun0 type veth peer name tun1; ip link set tun1 up; ip link set tun0 up")
    appvm.ip("route", "replace", "default", "dev", "tun0")
    appvm.soon_configured(style=style)
    assert [route["dev"] for route in appvm.oracle.default_routes(4)] == ["tun0", "eth0"]
    assert appvm.oracle.ip("route", "get", "192.0.2.1")[0]["dev"] == "tun0"
    appvm.ip("route", "del", "default", "dev", "tun0")
    appvm.check(style=style)


def test_the_same_thing_made_by_somebody_else_is_theirs() -> None:
    """It serves us, so nothing is done; and when we do not need it any more it stays."""
    appvm = AppVm(ENTRIES6)
    appvm.oracle.run("sh", "-ec", f"""
        ip link set eth0 up; ip address add {IP}/32 dev eth0; ip address add {IP6}/128 dev eth0 nodad
        ip route add default dev eth0 scope link proto static
        ip neighbour add {GATEWAY} lladdr {BACKEND_MAC} nud permanent dev eth0
    """)  # fmt: skip
    appvm.qube.guestnet("apply")
    assert len(appvm.oracle.default_routes(4)) == 1
    appvm.write("/qubes-ip", "10.137.0.6")
    appvm.write("/qubes-gateway", "10.137.0.2")
    appvm.qube.set_flag("disable-default-route")
    appvm.qube.guestnet("apply")
    assert appvm.oracle.addresses("eth0", 4) == {f"{IP}/32", "10.137.0.6/32"}
    assert [route["protocol"] for route in appvm.oracle.default_routes(4)] == ["static"]
    assert appvm.oracle.neighbours("eth0") == {GATEWAY: BACKEND_MAC, "10.137.0.2": BACKEND_MAC, GATEWAY6: BACKEND_MAC}


# --- the record ----------------------------------------------------------------------------------------------------


def test_the_record_says_what_is_ours() -> None:
    appvm = AppVm(ENTRIES6)
    appvm.qube.guestnet("apply")
    lines = appvm.qube.read(RECORD).splitlines()[1:]
    index = appvm.oracle.link("eth0")["ifindex"]  # type: ignore[index]
    assert lines == [
        f"interface {index} 00:16:3e:5e:6c:05",
        f"address {IP}/32",
        f"address {IP6}/128",
        f"neighbour {GATEWAY}",
        f"neighbour {GATEWAY6}",
        f"published {checksum(appvm.qube.path('/etc/resolv.conf').read_bytes())}",
    ]
    assert appvm.qube.path(RECORD).stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("damage", ["", "rubbish\n\xff\n", "interface 1\naddress", "interface x y\naddress 10.0.0.1\n"])
def test_a_lost_record_costs_an_address_and_no_more(damage: str) -> None:
    appvm = AppVm()
    appvm.qube.guestnet("apply")
    appvm.qube.write(RECORD, damage)
    appvm.write("/qubes-ip", "10.137.0.6")
    appvm.qube.guestnet("apply")
    assert appvm.oracle.addresses("eth0") == {f"{IP}/32", "10.137.0.6/32"}
    assert len(appvm.routes(4)) == 1


def test_a_record_of_another_interface_of_the_same_number_is_not_believed() -> None:
    appvm = AppVm()
    index = appvm.oracle.link("eth0")["ifindex"]  # type: ignore[index]
    appvm.ip("address", "add", "192.0.2.5/24", "dev", "eth0")
    appvm.qube.write(RECORD, f"interface {index} 00:16:3e:00:00:01\naddress 192.0.2.5/24\n")
    appvm.qube.guestnet("apply")
    assert "192.0.2.5/24" in appvm.oracle.addresses("eth0")


def test_a_record_that_cannot_be_written_does_not_cost_the_network() -> None:
    appvm = AppVm()
    appvm.qube.run("mkdir", "-p", "/run/qubes-guestnet")
    appvm.qube.run("mount", "-t", "tmpfs", "-o", "size=4k,nr_inodes=2", "tmpfs", "/run/qubes-guestnet")
    failed = appvm.qube.guestnet("apply", check=False)
    assert failed.returncode == 1
    assert "/run/qubes-guestnet" in failed.stderr
    assert "Traceback" not in failed.stderr
    appvm.check()


# --- nothing is sent that is not needed ----------------------------------------------------------------------------


COUNTING = """
import sys
from qubes_guestnet.cli import main as cli
from qubes_guestnet.system.netlink import rtnl as netlink
request, sent = netlink.Kernel._request, []
def counting(self, message, kind, *rest):
    sent.append(kind)
    return request(self, message, kind, *rest)
netlink.Kernel._request = counting
status = cli.main(["apply"])
print(*sent)
sys.exit(status)
"""
QUESTIONS = {"18", "22", "26", "30"}  # RTM_GETLINK, RTM_GETADDR, RTM_GETROUTE, RTM_GETNEIGH


@pytest.mark.behaviour("B2")
@pytest.mark.parametrize("style", ["device", "gateway"])
def test_a_second_pass_sends_no_change_to_the_kernel(style: str) -> None:
    appvm = AppVm(ENTRIES6)
    appvm.qube.set_flag(GATEWAY_FLAG, style == "gateway")
    first = appvm.qube.run(sys.executable, "-c", COUNTING).stdout.splitlines()[-1].split()
    assert set(first) > QUESTIONS, "the first one changes something"
    second = appvm.qube.run(sys.executable, "-c", COUNTING).stdout.splitlines()
    assert len(second) == 1, "and says that it did nothing"
    assert set(second[0].split()) == QUESTIONS
