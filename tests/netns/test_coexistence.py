# SPDX-License-Identifier: GPL-2.0-or-later
"""Everybody at once: VPNs, bridges, a user's own settings and other daemons beside the agent. Nothing foreign is
removed, and nothing of ours is lost for longer than a moment.
"""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from qubes_guestnet.lab.daemons import Daemons
from tests.support.eventually import eventually
from tests.support.qubes.appvm import DNS, DNS2, ENTRIES6, GATEWAY, GATEWAY6, GATEWAY_FLAG, IP, IP6, RESOLV_CONF, AppVm

WITH6 = {"ip6": f"{IP6}/128", "gateway6": GATEWAY6}
VPN_SERVER = "198.51.100.77"
TABLE = "51820"


def tunnel(appvm: AppVm, name: str) -> str:
    """An interface for a VPN: WireGuard's where the kernel has it, else a tun of the same name."""
    if appvm.oracle.run("ip", "link", "add", name, "type", "wireguard", check=False).returncode:
        appvm.ip("tuntap", "add", name, "mode", "tun")
    return name


TUNNELS = ("wg0", "tun0")


def wireguard(appvm: AppVm) -> None:
    """What wg-quick does: a table of its own, rules that lead there, and its name server."""
    name = tunnel(appvm, "wg0")
    appvm.ip("address", "add", "10.8.0.2/32", "dev", name)
    appvm.ip("link", "set", name, "mtu", "1420", "up")
    for family in ("-4", "-6"):
        appvm.ip(family, "route", "add", "default", "dev", name, "table", TABLE)
        appvm.ip(family, "rule", "add", "not", "fwmark", TABLE, "table", TABLE)
        appvm.ip(family, "rule", "add", "table", "main", "suppress_prefixlength", "0")


def openvpn(appvm: AppVm) -> None:
    """What OpenVPN does with redirect-gateway def1: two halves, and its server by the former gateway, not onlink."""
    name = tunnel(appvm, "tun0")
    appvm.ip("address", "add", "10.9.0.2/24", "dev", name)
    appvm.ip("link", "set", name, "up")
    appvm.ip("route", "add", f"{VPN_SERVER}/32", "via", GATEWAY, "dev", "eth0")
    appvm.ip("route", "add", "0.0.0.0/1", "via", "10.9.0.1", "dev", name)
    appvm.ip("route", "add", "128.0.0.0/1", "via", "10.9.0.1", "dev", name)


def bridges(appvm: AppVm) -> None:
    """What a container engine does."""
    appvm.ip("link", "add", "docker0", "type", "bridge")
    appvm.ip("address", "add", "172.17.0.1/16", "dev", "docker0")
    appvm.ip("link", "add", "veth1", "master", "docker0", "type", "veth", "peer", "name", "ct0")
    for name in ("docker0", "veth1", "ct0"):
        appvm.ip("link", "set", name, "up")


def users_own(appvm: AppVm) -> None:
    """A second address, a route and a neighbour of the user's, on the uplink itself."""
    appvm.ip("address", "add", "192.168.77.7/24", "dev", "eth0")
    appvm.ip("route", "add", "203.0.113.0/24", "via", "192.168.77.1", "dev", "eth0", "proto", "static")
    appvm.ip("neighbour", "add", "192.168.77.1", "lladdr", "02:00:00:00:00:07", "nud", "permanent", "dev", "eth0")
    appvm.ip("route", "add", "blackhole", "192.0.2.0/24")


COMPANY: dict[str, Callable[[AppVm], None]] = {
    "wireguard": wireguard, "openvpn": openvpn, "bridges": bridges, "users-own": users_own,
}  # fmt: skip


def foreign(appvm: AppVm) -> list[str]:
    """All routes, rules, addresses and neighbours but ours and what the kernel makes by itself or learns."""
    show = appvm.oracle.ip
    routes = [*show("-4", "route", "show", "table", "all"), *show("-6", "route", "show", "table", "all")]
    found = [route for route in routes if route.get("protocol") not in ("81", "qubes", "kernel", "ra")]
    found += show("-4", "rule") + show("-6", "rule")
    ours = (IP, IP6, "10.137.0.88")
    for link in show("address"):
        found += [
            {"dev": link["ifname"], "local": entry["local"], "length": entry["prefixlen"]}
            for entry in link.get("addr_info", ())
            if entry["local"] not in ours and not entry["local"].startswith("fe80")
        ]
    found += [
        {"dst": entry["dst"], "lladdr": entry["lladdr"]}
        for entry in show("neighbour")
        if "PERMANENT" in entry["state"] and entry["dst"] not in (GATEWAY, GATEWAY6)
    ]
    return sorted(json.dumps(entry, sort_keys=True) for entry in found)


def holds_ours(appvm: AppVm, ip: str, style: str) -> bool:
    """What is ours is there, whatever else is. Asserts, for `eventually`."""
    assert {f"{ip}/32", f"{IP6}/128"} <= appvm.oracle.addresses("eth0")
    routes = [route for route in appvm.oracle.routes(4, "eth0") if route["protocol"] in ("81", "qubes")]
    assert len(routes) == (2 if style == "gateway" else 1), routes
    assert any(route["dst"] == "default" for route in routes)
    assert any(route["dst"] == "default" for route in appvm.oracle.routes(6, "eth0"))
    neighbours = appvm.oracle.neighbours("eth0")
    assert {GATEWAY, GATEWAY6} <= set(neighbours)
    assert appvm.servers() == [DNS, DNS2]
    return True


def soon_ours(appvm: AppVm, ip: str = IP, style: str = "device") -> None:
    eventually(lambda: holds_ours(appvm, ip, style), 15, "ours", appvm.log)


def live_through_it(appvm: AppVm, style: str) -> None:
    """What can happen to an uplink while others are about; the foreign things must be the same after each."""
    before = foreign(appvm)
    appvm.write("/qubes-ip", "10.137.0.88")
    soon_ours(appvm, "10.137.0.88", style)
    assert foreign(appvm) == before, "a change of address"
    appvm.write("/qubes-ip", IP)
    soon_ours(appvm, style=style)
    appvm.oracle.run("ip", "route", "flush", "dev", "eth0", "proto", "81")
    soon_ours(appvm, style=style)
    # With the only address of an interface the kernel takes its routes too, a VPN's among them.
    if not any('"gateway"' in line and '"eth0"' in line for line in before):
        appvm.ip("address", "del", f"{IP}/32", "dev", "eth0")
        soon_ours(appvm, style=style)
    assert foreign(appvm) == before, "ours was taken away"
    appvm.qube.write(RESOLV_CONF, "nameserver 10.8.0.1\n")
    if any(link["ifname"] in TUNNELS for link in appvm.oracle.ip("link")):
        # Written back before B124, so that names left outside of the tunnel; an emptied file is ours again.
        eventually(lambda: appvm.status()["resolver"]["owner"] == "tunnel", trouble=appvm.log)
        assert appvm.servers() == ["10.8.0.1"]
        appvm.qube.write(RESOLV_CONF, "")
    soon_ours(appvm, style=style)
    agent = appvm.qube.agent
    assert agent is not None
    agent.kill()
    appvm.agent()
    soon_ours(appvm, style=style)
    appvm.qube.guestnet("apply")
    assert foreign(appvm) == before, "the agent was killed"


@pytest.mark.scenario("S-403")
@pytest.mark.parametrize("style", ["device", "gateway"])
@pytest.mark.parametrize("company", COMPANY)
def test_vpns_bridges_and_the_users_own(company: str, style: str) -> None:
    appvm = AppVm(ENTRIES6)
    appvm.qube.set_flag(GATEWAY_FLAG, style == "gateway")
    appvm.agent()
    appvm.soon_configured(style=style, **WITH6)
    COMPANY[company](appvm)
    live_through_it(appvm, style)
    if company != "users-own":
        appvm.unplug()
        appvm.plug()
        soon_ours(appvm, style=style)


@pytest.mark.scenario("S-403")
def test_all_of_them_and_every_daemon_at_once() -> None:
    appvm = AppVm(ENTRIES6)
    daemons = Daemons(appvm.qube)
    daemons.prepare_networkmanager()
    daemons.dbus()
    daemons.resolved()
    daemons.networkd()
    daemons.networkmanager()  # without the service flag: it runs, and the uplink is not its own
    appvm.agent()
    soon_ours(appvm)
    for add in COMPANY.values():
        add(appvm)
    live_through_it(appvm, "device")
    codes = {finding["code"]: finding["severity"] for finding in json.loads(appvm.qube.guestnet(
        "check", "--json", check=False).stdout)}  # fmt: skip
    wanted = {"networkmanager-present", "resolved-present", "networkd-present", "foreign-default-route"}
    assert {code: codes.get(code) for code in wanted} == dict.fromkeys(wanted, "note")
    status = appvm.qube.guestnet("status", check=False).stdout
    assert "other programs: NetworkManager, systemd-resolved, systemd-networkd" in status
    assert "VPN" in status


@pytest.mark.scenario("S-403")
def test_networkd_with_its_default_settings_starts_and_restarts() -> None:
    appvm = AppVm(ENTRIES6)
    daemons = Daemons(appvm.qube)
    daemons.dbus()
    appvm.agent()
    appvm.soon_configured(**WITH6)
    for _ in range(2):
        daemons.networkd()
        appvm.soon_configured(**WITH6)
        daemons.stop("networkd")
        appvm.soon_configured(**WITH6)


@pytest.mark.scenario("S-403")
def test_networkd_that_was_told_to_have_the_uplink_too() -> None:
    """A user's file for all of Ethernet: networkd then takes away what it does not know, and the agent puts it back."""
    appvm = AppVm(ENTRIES6)
    appvm.qube.write("/run/systemd/network/50-all.network", "[Match]\nType=ether\n[Network]\nLinkLocalAddressing=no\n")
    daemons = Daemons(appvm.qube)
    daemons.dbus()
    appvm.agent()
    appvm.soon_configured(**WITH6)
    daemons.networkd()
    eventually(lambda: "configured" in appvm.qube.run("networkctl", "--no-pager", "status", "eth0").stdout)
    soon_ours(appvm)
    appvm.write("/qubes-ip", "10.137.0.88")
    soon_ours(appvm, "10.137.0.88")


@pytest.mark.scenario("S-403")
def test_the_vpns_name_server_in_resolved_and_in_networkmanager_mode() -> None:
    appvm = AppVm(ENTRIES6)
    appvm.qube.set_flag("network-manager")
    daemons = Daemons(appvm.qube)
    daemons.prepare_networkmanager()
    daemons.dbus()
    daemons.resolved()
    daemons.networkmanager()
    appvm.agent()
    told = lambda: DNS in appvm.qube.run("resolvectl", "dns", "eth0").stdout  # noqa: E731
    eventually(told, 20, "NetworkManager tells systemd-resolved", appvm.log)
    wireguard(appvm)
    appvm.qube.run("resolvectl", "dns", "wg0", "10.8.0.1")
    appvm.qube.run("resolvectl", "domain", "wg0", "~.")
    before = [line for line in foreign(appvm) if "eth0" not in line]
    appvm.write("/qubes-ip", "10.137.0.88")
    eventually(lambda: "10.137.0.88/32" in appvm.oracle.addresses("eth0"), 15, trouble=appvm.log)
    assert [line for line in foreign(appvm) if "eth0" not in line] == before
    assert "10.8.0.1" in appvm.qube.run("resolvectl", "dns", "wg0").stdout
