# SPDX-License-Identifier: GPL-2.0-or-later
"""One pass of the real program in a real network: what is there after `uplink add`, `uplink remove` and `apply`."""

from __future__ import annotations

import subprocess

import pytest

from tests.support.eventually import eventually
from tests.support.judge.oracle import Json
from tests.support.qubes.appvm import (
    DNS,
    ENTRIES,
    ENTRIES6,
    GATEWAY,
    GATEWAY6,
    GATEWAY_FLAG,
    IP,
    IP6,
    MAC,
    RESOLV_CONF,
    VIF,
    AppVm,
)

LOCK = "/run/qubes-guestnet/lock"

WITH6 = {"ip6": f"{IP6}/128", "gateway6": GATEWAY6}


def snapshot(appvm: AppVm) -> list[Json]:
    """All that a pass could change, with the numbers that would tell a replaced object from a kept one."""
    show = appvm.oracle.ip
    return [
        *show("address", "show", "dev", "eth0"),
        *show("-4", "route", "show", "table", "all"),
        *show("-6", "route", "show", "table", "all"),
        *({k: v for k, v in entry.items() if k != "used"} for entry in show("neighbour", "show", "dev", "eth0")),
    ]


def wait_for_link_local(appvm: AppVm, device: str) -> None:
    """The kernel adds this address by itself some time after the link is up, and a second later it is not tentative."""

    def is_there() -> bool:
        addresses = str(appvm.oracle.ip("address", "show", "dev", device))
        return "fe80::" in addresses and "tentative" not in addresses

    eventually(is_there, what=f"duplicate detection on {device} is over")


@pytest.mark.parametrize("style", ["device", "gateway"])
@pytest.mark.parametrize(("entries", "wanted"), [(ENTRIES, {}), (ENTRIES6, WITH6)], ids=["ipv4", "ipv6"])
def test_the_table_of_the_design(entries: dict[str, str], wanted: dict[str, str], style: str) -> None:
    appvm = AppVm(entries)
    appvm.qube.set_flag(GATEWAY_FLAG, style == "gateway")
    appvm.qube.guestnet("uplink", "add", "eth0")
    appvm.check(style=style, **wanted)


def test_the_style_from_the_configuration_file() -> None:
    appvm = AppVm()
    appvm.qube.write("/etc/qubes/guestnet.toml", '[uplink]\ndefault-route = "gateway"\n')
    appvm.qube.guestnet("apply")
    appvm.check(style="gateway")
    appvm.qube.write("/etc/qubes/guestnet.toml", '[uplink]\ndefault-route = "device"\n')
    appvm.qube.guestnet("apply")
    appvm.check(style="device")


@pytest.mark.behaviour("B2")
def test_add_twice_changes_nothing_the_second_time() -> None:
    appvm = AppVm(ENTRIES6)
    appvm.qube.guestnet("uplink", "add", "eth0")
    wait_for_link_local(appvm, "eth0")
    before, file = snapshot(appvm), appvm.identity()
    again = appvm.qube.guestnet("uplink", "add", "eth0")
    assert again.stdout == ""
    assert snapshot(appvm) == before
    assert appvm.identity() == file


@pytest.mark.behaviour("B5")
def test_another_provider() -> None:
    appvm = AppVm(ENTRIES6)
    appvm.qube.guestnet("uplink", "add", "eth0")
    appvm.unplug()
    appvm.write("/qubes-gateway", "10.138.0.9")
    appvm.write("/qubes-gateway6", "fd09:24ef:4179::a8a:9")
    appvm.plug()
    appvm.qube.guestnet("uplink", "add", "eth0")
    new = {"gateway": "10.138.0.9", "ip6": f"{IP6}/128", "gateway6": "fd09:24ef:4179::a8a:9"}
    appvm.check(**new)
    appvm.qube.set_flag(GATEWAY_FLAG)
    appvm.qube.guestnet("uplink", "add", "eth0")
    appvm.check(style="gateway", **new)


@pytest.mark.behaviour("B5")
@pytest.mark.parametrize("style", ["device", "gateway"])
def test_another_gateway_and_address_of_the_same_interface(style: str) -> None:
    appvm = AppVm(ENTRIES6)
    appvm.qube.set_flag(GATEWAY_FLAG, style == "gateway")
    appvm.qube.guestnet("apply")
    appvm.write("/qubes-ip", "10.137.0.77")
    appvm.write("/qubes-netmask", "255.255.255.0")
    appvm.write("/qubes-gateway", "10.137.0.99")
    appvm.write("/qubes-ip6", "fd09:24ef:4179::a89:77")
    appvm.write("/qubes-gateway6", "fd09:24ef:4179::a89:99")
    appvm.qube.guestnet("apply")
    appvm.check(ip="10.137.0.77/24", gateway="10.137.0.99", style=style,
                ip6="fd09:24ef:4179::a89:77/128", gateway6="fd09:24ef:4179::a89:99")  # fmt: skip


def test_another_length_of_the_same_ipv6_address() -> None:
    appvm = AppVm(ENTRIES6)
    appvm.qube.guestnet("apply")
    appvm.write("/qubes-netmask6", "64")
    appvm.qube.guestnet("apply")
    appvm.check(ip6=f"{IP6}/64", gateway6=GATEWAY6)


@pytest.mark.behaviour("B7")
def test_keys_without_an_interface_configure_nothing() -> None:
    appvm = AppVm(ENTRIES6)
    appvm.qube.guestnet("apply")
    appvm.unplug()
    done = appvm.qube.guestnet("apply")
    assert done.stderr == ""
    assert [link["ifname"] for link in appvm.oracle.ip("link")] == ["lo"]
    assert appvm.oracle.routes(4) == appvm.oracle.routes(6) == []


@pytest.mark.behaviour("B7")
def test_stale_ipv6_keys_do_not_hurt_ipv4() -> None:
    """The former provider had IPv6, and dom0 leaves its keys behind."""
    appvm = AppVm(ENTRIES6)
    appvm.unplug()
    appvm.write("/qubes-gateway", "10.137.0.2")
    appvm.plug()
    appvm.oracle.run("sh", "-c", "echo 1 > /proc/sys/net/ipv6/conf/eth0/disable_ipv6")
    done = appvm.qube.guestnet("uplink", "add", "eth0")  # IPv6 that is off is a note and no error (B129)
    appvm.check(gateway="10.137.0.2")
    assert "ip -6" not in done.stdout


@pytest.mark.behaviour("B8")
@pytest.mark.parametrize("name", ["eth0", "enX0", "a-name-as-long1"])
def test_any_name(name: str) -> None:
    appvm = AppVm(plugged=False)
    appvm.plug(name)
    appvm.qube.guestnet("uplink", "add", name)
    appvm.check(name)


@pytest.mark.behaviour("B8")
def test_renamed_after_it_was_configured() -> None:
    appvm = AppVm()
    appvm.qube.guestnet("uplink", "add", "eth0")
    appvm.ip("link", "set", "eth0", "down")
    appvm.ip("link", "set", "eth0", "name", "enX0")
    appvm.qube.guestnet("uplink", "add", "enX0")
    appvm.check("enX0")


@pytest.mark.behaviour("B8")
def test_the_name_of_an_interface_that_is_not_ours() -> None:
    appvm = AppVm()
    appvm.ip("link", "add", "br0", "type", "bridge")
    done = appvm.qube.guestnet("uplink", "add", "br0")
    assert "br0 is not managed by dom0" in done.stdout
    assert appvm.oracle.addresses("eth0") == appvm.oracle.addresses("br0") == set()
    assert not appvm.oracle.is_up("br0")
    assert appvm.servers() == []


# Interfaces that have, or were given, the very address of /qubes-mac.
IMPOSTORS = f"""
    ip link add bridge type bridge; ip link set bridge address {MAC}
    ip link add nic type veth peer name wire; ip link add link nic name macvlan address {MAC} type macvlan
    ip link add vxlan type vxlan id 1 dstport 4789; ip link set vxlan address {MAC}
    ip tuntap add tap mode tap; ip link set tap address {MAC}
"""


@pytest.mark.behaviour("B9")
@pytest.mark.parametrize("alone", [True, False], ids=["alone", "beside-eth0"])
def test_an_interface_with_the_same_address_that_dom0_cannot_mean(alone: bool) -> None:
    appvm = AppVm()
    appvm.oracle.run("sh", "-ec", IMPOSTORS)
    if alone:
        appvm.ip("link", "set", "eth0", "address", "00:16:3e:00:00:01")
    appvm.qube.guestnet("apply")
    for name in ("bridge", "macvlan", "vxlan", "tap"):
        (link,) = appvm.oracle.ip("link", "show", "dev", name)
        assert (link["address"], link["group"], "UP" in link["flags"]) == (MAC, "default", False), name
        assert appvm.oracle.addresses(name) == set(), name
    if alone:
        assert appvm.oracle.addresses("eth0") == set()
    else:
        appvm.check()


@pytest.mark.behaviour("B10")
@pytest.mark.parametrize("style", ["device", "gateway"])
def test_a_route_of_a_vpn_by_our_gateway_is_accepted(style: str) -> None:
    """Without `onlink`: the kernel takes it only if it finds the gateway on the link."""
    appvm = AppVm(ENTRIES6, plugged=False)
    appvm.plug(arp="own")
    appvm.qube.set_flag(GATEWAY_FLAG, style == "gateway")
    appvm.qube.guestnet("uplink", "add", "eth0")
    appvm.ip("route", "add", "198.51.100.7/32", "via", GATEWAY)
    appvm.ip("-6", "route", "add", "2001:db8::7/128", "via", GATEWAY6)
    routes = [route for family in (4, 6) for route in appvm.oracle.routes(family, "eth0")]
    assert {"198.51.100.7", "2001:db8::7"} <= {route["dst"] for route in routes}
    appvm.qube.guestnet("apply")
    assert [route for family in (4, 6) for route in appvm.oracle.routes(family, "eth0")] == routes


@pytest.mark.behaviour("B10")
@pytest.mark.parametrize("flag", [True, False])
def test_without_a_default_route_a_vpn_still_finds_the_gateway(flag: bool) -> None:
    appvm = AppVm()
    appvm.qube.set_flag("disable-default-route", flag)
    appvm.qube.guestnet("apply")
    appvm.ip("route", "add", "198.51.100.7/32", "via", GATEWAY)


@pytest.mark.behaviour("B11")
def test_a_permanent_neighbour_unless_the_peer_is_no_qubes_provider() -> None:
    appvm = AppVm(ENTRIES6)
    appvm.qube.guestnet("apply")
    appvm.check(**WITH6)
    appvm.write(f"/net-config/{MAC}/custom", "")
    appvm.qube.guestnet("apply")
    appvm.check(neighbours=False, **WITH6)
    appvm.remove(f"/net-config/{MAC}/custom")
    appvm.qube.guestnet("apply")
    appvm.check(**WITH6)


@pytest.mark.behaviour("B11")
def test_packets_flow_without_arp_and_ndp() -> None:
    """A provider that drops both, as anti-spoofing does with NDP: the permanent entries are all there is."""
    appvm = AppVm(ENTRIES6, plugged=False)
    appvm.plug(arp="off")
    appvm.provider.wire(f"""
        ip address add {GATEWAY6}/128 dev {VIF} nodad
        ip route add {IP6}/128 dev {VIF}
        ip neighbour add {IP} lladdr {MAC} dev {VIF}
        ip neighbour add {IP6} lladdr {MAC} dev {VIF}
    """)
    appvm.qube.set_flag(GATEWAY_FLAG)
    appvm.qube.guestnet("apply")
    assert appvm.oracle.reaches(GATEWAY)
    assert appvm.oracle.reaches(GATEWAY6)


@pytest.mark.behaviour("B12")
def test_the_interfaces_own_settings_win_as_a_whole() -> None:
    appvm = AppVm(ENTRIES6)
    own = {"ip": "192.168.7.5", "netmask": "24", "gateway": "192.168.7.1"}
    for leaf, value in own.items():
        appvm.write(f"/net-config/{MAC}/{leaf}", value)
    appvm.qube.guestnet("apply")
    appvm.check(ip="192.168.7.5/24", gateway="192.168.7.1")


@pytest.mark.behaviour("B12")
def test_a_second_interface_by_its_own_settings() -> None:
    appvm = AppVm()
    other = "00:16:3e:5e:6c:99"
    for leaf, value in {"ip": "192.168.7.5", "gateway": "192.168.7.1"}.items():
        appvm.write(f"/net-config/{other}/{leaf}", value)
    appvm.plug("eth1", other, "vif5.1")
    appvm.qube.guestnet("apply")
    appvm.check()
    assert appvm.oracle.addresses("eth1") == {"192.168.7.5/32"}
    (first, second) = appvm.oracle.default_routes(4)
    assert (first["dev"], second["dev"]) == ("eth0", "eth1")
    assert second["metric"] > first.get("metric", 0)


@pytest.mark.behaviour("B13")
def test_ipv6_without_a_gateway() -> None:
    appvm = AppVm({**ENTRIES, "/qubes-ip6": IP6})
    appvm.qube.guestnet("uplink", "add", "eth0")
    appvm.check(ip6=f"{IP6}/128")


def test_ipv6_by_a_link_local_gateway() -> None:
    appvm = AppVm({**ENTRIES, "/qubes-ip6": IP6, "/qubes-gateway6": "fe80::fcff:ffff:feff:ffff"})
    appvm.qube.guestnet("uplink", "add", "eth0")
    (route,) = appvm.oracle.default_routes(6)
    assert route["gateway"] == "fe80::fcff:ffff:feff:ffff"
    assert "onlink" in route["flags"]


@pytest.mark.behaviour("B15")
@pytest.mark.parametrize("style", ["device", "gateway"])
def test_without_default_route(style: str) -> None:
    appvm = AppVm(ENTRIES6)
    appvm.qube.set_flag(GATEWAY_FLAG, style == "gateway")
    appvm.qube.set_flag("disable-default-route")
    appvm.qube.guestnet("apply")
    appvm.check(default=False, **WITH6)
    appvm.qube.set_flag("disable-default-route", False)
    appvm.qube.guestnet("apply")
    appvm.check(style=style, **WITH6)
    appvm.qube.set_flag("disable-default-route")
    appvm.qube.guestnet("apply")
    appvm.check(default=False, **WITH6)


NAME_SERVERS = (
    # Primary, secondary, and what resolv.conf is to name.
    (DNS, "10.139.1.2", (DNS, "10.139.1.2")),
    (DNS, "", (DNS,)),
    (DNS, None, (DNS,)),
    (None, None, (GATEWAY,)),
    (None, "10.139.1.2", (GATEWAY, "10.139.1.2")),
)


@pytest.mark.behaviour("B22")
def test_name_servers_are_those_of_dom0() -> None:
    appvm = AppVm()
    for primary, secondary, wanted in NAME_SERVERS:
        for key, value in (("/qubes-primary-dns", primary), ("/qubes-secondary-dns", secondary)):
            appvm.remove(key)
            if value is not None:
                appvm.write(key, value)
        appvm.qube.guestnet("apply")
        appvm.check(servers=wanted)
        lines = appvm.qube.read(RESOLV_CONF).splitlines()
        assert [line for line in lines if not line.startswith("#")] == [f"nameserver {server}" for server in wanted]


@pytest.mark.behaviour("B15")
def test_without_name_server() -> None:
    appvm = AppVm()
    appvm.qube.set_flag("disable-dns-server")
    appvm.qube.write(RESOLV_CONF, "nameserver 192.0.2.1\n")
    appvm.qube.guestnet("apply")
    appvm.check(servers=("192.0.2.1",))
    appvm.qube.set_flag("disable-dns-server", False)
    appvm.qube.guestnet("apply")
    appvm.check()
    appvm.qube.set_flag("disable-dns-server")
    appvm.qube.guestnet("apply")
    assert appvm.qube.path(RESOLV_CONF).read_bytes() == b""


@pytest.mark.behaviour("B9")
def test_another_interface_is_not_touched() -> None:
    appvm = AppVm(ENTRIES6)
    appvm.plug("ens6", "52:54:00:00:00:01", "vif5.1")
    appvm.oracle.run("sh", "-ec", "ip address add 192.0.2.5/24 dev ens6; ip link set ens6 up")
    wait_for_link_local(appvm, "ens6")
    before = appvm.oracle.ip("address", "show", "dev", "ens6"), appvm.oracle.routes(4)
    appvm.qube.guestnet("uplink", "add", "eth0")
    appvm.qube.guestnet("uplink", "remove", "eth0")
    assert (appvm.oracle.ip("address", "show", "dev", "ens6"), appvm.oracle.routes(4)) == before


def test_an_invalid_value_keeps_its_family_and_nothing_else() -> None:
    appvm = AppVm(ENTRIES6)
    appvm.qube.guestnet("apply")
    appvm.write("/qubes-gateway6", "not an address")
    appvm.write("/qubes-ip", "10.137.0.6")
    failed = appvm.qube.guestnet("apply", check=False)
    assert failed.returncode == 1
    assert failed.stderr.startswith("qubes-guestnet: /qubes-gateway6: 'not an address' is not valid")
    appvm.check(ip="10.137.0.6/32", **WITH6)


def test_the_dns_server_is_there_after_the_interface() -> None:
    appvm = AppVm(plugged=False)
    appvm.qube.guestnet("apply")
    assert appvm.servers() == []
    appvm.plug()
    appvm.qube.guestnet("apply")
    assert appvm.servers()[0] == DNS


def test_the_tools_that_judge_are_not_ours() -> None:
    """The judge sees a difference: without a pass nothing of the table is there."""
    appvm = AppVm()
    with pytest.raises(AssertionError, match="not up"):
        appvm.check()
    assert subprocess.run(["ip", "-V"], capture_output=True, check=True).stdout
