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
from tests.support.qubes.appvm import DNS, DNS2, ENTRIES6, GATEWAY, GATEWAY6, GATEWAY_FLAG, IP, IP6, RESOLV_CONF, Guest

WITH6 = {"ip6": f"{IP6}/128", "gateway6": GATEWAY6}
VPN_SERVER = "198.51.100.77"
TABLE = "51820"


def tunnel(guest: Guest, name: str) -> str:
    """An interface for a VPN: WireGuard's where the kernel has it, else a tun of the same name."""
    if guest.oracle.run("ip", "link", "add", name, "type", "wireguard", check=False).returncode:
        guest.ip("tuntap", "add", name, "mode", "tun")
    return name


TUNNELS = ("wg0", "tun0")


def wireguard(guest: Guest) -> None:
    """What wg-quick does: a table of its own, rules that lead there, and its name server."""
    name = tunnel(guest, "wg0")
    guest.ip("address", "add", "10.8.0.2/32", "dev", name)
    guest.ip("link", "set", name, "mtu", "1420", "up")
    for family in ("-4", "-6"):
        guest.ip(family, "route", "add", "default", "dev", name, "table", TABLE)
        guest.ip(family, "rule", "add", "not", "fwmark", TABLE, "table", TABLE)
        guest.ip(family, "rule", "add", "table", "main", "suppress_prefixlength", "0")


def openvpn(guest: Guest) -> None:
    """What OpenVPN does with redirect-gateway def1: two halves, and its server by the former gateway, not onlink."""
    name = tunnel(guest, "tun0")
    guest.ip("address", "add", "10.9.0.2/24", "dev", name)
    guest.ip("link", "set", name, "up")
    guest.ip("route", "add", f"{VPN_SERVER}/32", "via", GATEWAY, "dev", "eth0")
    guest.ip("route", "add", "0.0.0.0/1", "via", "10.9.0.1", "dev", name)
    guest.ip("route", "add", "128.0.0.0/1", "via", "10.9.0.1", "dev", name)


def bridges(guest: Guest) -> None:
    """What a container engine does."""
    guest.ip("link", "add", "docker0", "type", "bridge")
    guest.ip("address", "add", "172.17.0.1/16", "dev", "docker0")
    guest.ip("link", "add", "veth1", "master", "docker0", "type", "veth", "peer", "name", "ct0")
    for name in ("docker0", "veth1", "ct0"):
        guest.ip("link", "set", name, "up")


def users_own(guest: Guest) -> None:
    """A second address, a route and a neighbour of the user's, on the uplink itself."""
    guest.ip("address", "add", "192.168.77.7/24", "dev", "eth0")
    guest.ip("route", "add", "203.0.113.0/24", "via", "192.168.77.1", "dev", "eth0", "proto", "static")
    guest.ip("neighbour", "add", "192.168.77.1", "lladdr", "02:00:00:00:00:07", "nud", "permanent", "dev", "eth0")
    guest.ip("route", "add", "blackhole", "192.0.2.0/24")


COMPANY: dict[str, Callable[[Guest], None]] = {
    "wireguard": wireguard, "openvpn": openvpn, "bridges": bridges, "users-own": users_own,
}  # fmt: skip


def foreign(guest: Guest) -> list[str]:
    """All routes, rules, addresses and neighbours but ours and what the kernel makes by itself or learns."""
    show = guest.oracle.ip
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


def holds_ours(guest: Guest, ip: str, style: str) -> bool:
    """What is ours is there, whatever else is. Asserts, for `eventually`."""
    assert {f"{ip}/32", f"{IP6}/128"} <= guest.oracle.addresses("eth0")
    routes = [route for route in guest.oracle.routes(4, "eth0") if route["protocol"] in ("81", "qubes")]
    assert len(routes) == (2 if style == "gateway" else 1), routes
    assert any(route["dst"] == "default" for route in routes)
    assert any(route["dst"] == "default" for route in guest.oracle.routes(6, "eth0"))
    neighbours = guest.oracle.neighbours("eth0")
    assert {GATEWAY, GATEWAY6} <= set(neighbours)
    assert guest.servers() == [DNS, DNS2]
    return True


def soon_ours(guest: Guest, ip: str = IP, style: str = "device") -> None:
    eventually(lambda: holds_ours(guest, ip, style), 15, "ours", guest.log)


def live_through_it(guest: Guest, style: str) -> None:
    """What can happen to an uplink while others are about; the foreign things must be the same after each."""
    before = foreign(guest)
    guest.write("/qubes-ip", "10.137.0.88")
    soon_ours(guest, "10.137.0.88", style)
    assert foreign(guest) == before, "a change of address"
    guest.write("/qubes-ip", IP)
    soon_ours(guest, style=style)
    guest.oracle.run("ip", "route", "flush", "dev", "eth0", "proto", "81")
    soon_ours(guest, style=style)
    # With the only address of an interface the kernel takes its routes too, a VPN's among them.
    if not any('"gateway"' in line and '"eth0"' in line for line in before):
        guest.ip("address", "del", f"{IP}/32", "dev", "eth0")
        soon_ours(guest, style=style)
    assert foreign(guest) == before, "ours was taken away"
    guest.qube.write(RESOLV_CONF, "nameserver 10.8.0.1\n")
    if any(link["ifname"] in TUNNELS for link in guest.oracle.ip("link")):
        # Written back before B124, so that names left outside of the tunnel; an emptied file is ours again.
        eventually(lambda: guest.status()["resolver"]["owner"] == "tunnel", trouble=guest.log)
        assert guest.servers() == ["10.8.0.1"]
        guest.qube.write(RESOLV_CONF, "")
    soon_ours(guest, style=style)
    agent = guest.qube.agent
    assert agent is not None
    agent.kill()
    guest.agent()
    soon_ours(guest, style=style)
    guest.qube.guestnet("apply")
    assert foreign(guest) == before, "the agent was killed"


@pytest.mark.scenario("S-403")
@pytest.mark.parametrize("style", ["device", "gateway"])
@pytest.mark.parametrize("company", COMPANY)
def test_vpns_bridges_and_the_users_own(company: str, style: str) -> None:
    guest = Guest(ENTRIES6)
    guest.qube.set_flag(GATEWAY_FLAG, style == "gateway")
    guest.agent()
    guest.soon_configured(style=style, **WITH6)
    COMPANY[company](guest)
    live_through_it(guest, style)
    if company != "users-own":
        guest.unplug()
        guest.plug()
        soon_ours(guest, style=style)


@pytest.mark.scenario("S-403")
def test_all_of_them_and_every_daemon_at_once() -> None:
    guest = Guest(ENTRIES6)
    daemons = Daemons(guest.qube)
    daemons.prepare_networkmanager()
    daemons.dbus()
    daemons.resolved()
    daemons.networkd()
    daemons.networkmanager()  # without the service flag: it runs, and the uplink is not its own
    guest.agent()
    soon_ours(guest)
    for add in COMPANY.values():
        add(guest)
    live_through_it(guest, "device")
    codes = {finding["code"]: finding["severity"] for finding in json.loads(guest.qube.guestnet(
        "check", "--json", check=False).stdout)}  # fmt: skip
    wanted = {"networkmanager-present", "resolved-present", "networkd-present", "foreign-default-route"}
    assert {code: codes.get(code) for code in wanted} == dict.fromkeys(wanted, "note")
    status = guest.qube.guestnet("status", check=False).stdout
    assert "other programs: NetworkManager, systemd-resolved, systemd-networkd" in status
    assert "VPN" in status


@pytest.mark.scenario("S-403")
def test_networkd_with_its_default_settings_starts_and_restarts() -> None:
    guest = Guest(ENTRIES6)
    daemons = Daemons(guest.qube)
    daemons.dbus()
    guest.agent()
    guest.soon_configured(**WITH6)
    for _ in range(2):
        daemons.networkd()
        guest.soon_configured(**WITH6)
        daemons.stop("networkd")
        guest.soon_configured(**WITH6)


@pytest.mark.scenario("S-403")
def test_networkd_that_was_told_to_have_the_uplink_too() -> None:
    """A user's file for all of Ethernet: networkd then takes away what it does not know, and the agent puts it back."""
    guest = Guest(ENTRIES6)
    guest.qube.write("/run/systemd/network/50-all.network", "[Match]\nType=ether\n[Network]\nLinkLocalAddressing=no\n")
    daemons = Daemons(guest.qube)
    daemons.dbus()
    guest.agent()
    guest.soon_configured(**WITH6)
    daemons.networkd()
    eventually(lambda: "configured" in guest.qube.run("networkctl", "--no-pager", "status", "eth0").stdout)
    soon_ours(guest)
    guest.write("/qubes-ip", "10.137.0.88")
    soon_ours(guest, "10.137.0.88")


@pytest.mark.scenario("S-403")
def test_the_vpns_name_server_in_resolved_and_in_networkmanager_mode() -> None:
    guest = Guest(ENTRIES6)
    guest.qube.set_flag("network-manager")
    daemons = Daemons(guest.qube)
    daemons.prepare_networkmanager()
    daemons.dbus()
    daemons.resolved()
    daemons.networkmanager()
    guest.agent()
    told = lambda: DNS in guest.qube.run("resolvectl", "dns", "eth0").stdout  # noqa: E731
    eventually(told, 20, "NetworkManager tells systemd-resolved", guest.log)
    wireguard(guest)
    guest.qube.run("resolvectl", "dns", "wg0", "10.8.0.1")
    guest.qube.run("resolvectl", "domain", "wg0", "~.")
    before = [line for line in foreign(guest) if "eth0" not in line]
    guest.write("/qubes-ip", "10.137.0.88")
    eventually(lambda: "10.137.0.88/32" in guest.oracle.addresses("eth0"), 15, trouble=guest.log)
    assert [line for line in foreign(guest) if "eth0" not in line] == before
    assert "10.8.0.1" in guest.qube.run("resolvectl", "dns", "wg0").stdout
