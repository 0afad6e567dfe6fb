# SPDX-License-Identifier: GPL-2.0-or-later
"""The virtual DNS of a provider with the real systemd-resolved: its servers, whatever becomes of it, and followed."""

from __future__ import annotations

import signal

import pytest

from qubes_guestnet.lab.daemons import Daemons
from tests.support.eventually import eventually
from tests.support.needs import needs
from tests.support.qubes.provider import DNS, DNS2, ENTRIES, ROUTER, UPLINK, UPLINK_MAC, WORLD, Provider

STUB, SECOND, VPN = "127.0.0.53", "198.51.100.52", "198.51.100.60"
# The uplink is one of Qubes, whose servers are set by ourselves.
PROXY = {
    **ENTRIES,
    "/qubes-mac": UPLINK_MAC,
    "/qubes-ip": "10.137.0.2",
    "/qubes-gateway": "10.138.5.1",
    "/qubes-primary-dns": DNS,
    "/qubes-secondary-dns": DNS2,
}


@pytest.fixture(autouse=True)
def _tools() -> None:
    needs("dbus-daemon", "/lib/systemd/systemd-resolved")


def start(entries: dict[str, str] = ENTRIES) -> tuple[Provider, Daemons]:
    """A provider with the service, before its agent; resolv.conf names the stub."""
    host = Provider(entries, agent=False, servers=[STUB])
    daemons = Daemons(host.qube)
    daemons.dbus()
    daemons.resolved()
    return host, daemons


def leads(host: Provider, *servers: str) -> None:
    """Wait until the two virtual addresses lead there; to nothing when there are none."""
    wanted = [f"{DNS} {servers[0]}", f"{DNS2} {servers[-1]}"] if servers else []

    def so() -> bool:
        found = [rule.split() for rule in host.rules("ip", "dnat-dns")]
        assert sorted({f"{words[2]} {words[-1]}" for words in found}) == wanted
        return len(found) == 2 * len(wanted)

    eventually(so, trouble=host.trouble)


@pytest.mark.behaviour("B34")
@pytest.mark.behaviour("B36")
@pytest.mark.behaviour("B38")
def test_its_upstream_servers_count_and_are_followed() -> None:
    host, daemons = start()
    daemons.resolvectl("dns", UPLINK, ROUTER)
    host.qube.start_agent()
    behind, outside = host.attach(), host.outside()
    leads(host, ROUTER)
    behind.port.send(behind.ip, DNS, "question", dport=53)
    assert outside.hears(lambda packet: (packet.word, packet.target) == ("question", ROUTER))
    daemons.resolvectl("dns", UPLINK, SECOND, "2000:abcd::53", ROUTER)
    leads(host, SECOND, ROUTER)
    # A VPN whose servers are for some names only is one more link; one for all names is the only one (#9582).
    host.qube.wire("ip link add tun0 type veth peer name far; ip link set tun0 up; ip link set far up")
    daemons.resolvectl("dns", "tun0", VPN)
    daemons.resolvectl("domain", "tun0", "~.")
    leads(host, VPN)
    host.qube.wire("ip link delete tun0")
    leads(host, SECOND, ROUTER)
    # For the whole qube: nothing leaks to a link (59736122).
    daemons.stop("resolved")
    host.qube.write("/run/systemd/resolved.conf.d/90-own.conf", f"[Resolve]\nDNS={VPN}\n")
    daemons.resolved()
    leads(host, VPN)


@pytest.mark.behaviour("B37")
def test_a_vpn_in_a_proxy_has_the_names_and_no_address_leads_to_itself_then() -> None:
    host, daemons = start(PROXY)
    host.qube.start_agent()
    leads(host, DNS, DNS2)  # the next provider's, which redirects them
    behind, outside = host.attach(), host.outside()
    host.qube.wire("ip link add wg0 type veth peer name far; ip link set wg0 up; ip link set far up")
    daemons.resolvectl("dns", "wg0", VPN)
    daemons.resolvectl("domain", "wg0", "~.")
    leads(host, VPN)
    host.qube.wire(f"ip route add {VPN} dev wg0; ip neighbour add {VPN} lladdr 02:00:00:00:00:09 dev wg0")
    behind.port.send(behind.ip, DNS, "question", dport=53)
    behind.port.send(behind.ip, DNS2, "question", dport=853)
    behind.port.send(behind.ip, WORLD, "last")
    assert outside.hears(lambda packet: packet.word == "last")
    assert outside.words() == {"last"}, "the question went into the tunnel, and nothing beside it"
    # It has names, and no server outside knows them: refused rather than asked of the next provider.
    daemons.resolvectl("dns", "wg0", "2000:abcd::53")
    leads(host)
    daemons.resolvectl("revert", "wg0")
    leads(host, DNS, DNS2)


@pytest.mark.behaviour("B35")
@pytest.mark.parametrize("failure", ["killed", "stopped", "hanging", "no bus", "never there"])
def test_when_it_is_not_to_be_had_the_file_counts_and_all_else_goes_on(failure: str) -> None:
    host = Provider(agent=False, servers=[STUB])
    daemons = Daemons(host.qube)
    if failure != "never there":
        daemons.dbus()
        daemons.resolved()
        daemons.resolvectl("dns", UPLINK, ROUTER)
    if failure == "killed":
        daemons.running["resolved"].kill()
    elif failure == "stopped":
        daemons.stop("resolved")
    elif failure == "hanging":
        daemons.running["resolved"].signal(signal.SIGSTOP)
    elif failure == "no bus":
        daemons.stop("resolved")
        daemons.running["dbus"].kill()
    # Only now: it takes the servers of such a file for those of the whole qube.
    host.resolv_conf(SECOND)
    host.qube.start_agent()
    leads(host, SECOND)
    behind = host.attach()
    assert host.works(behind)
    if failure in ("no bus", "never there"):
        return
    host.resolv_conf(STUB)
    leads(host)
    if failure == "hanging":
        daemons.running["resolved"].signal(signal.SIGCONT)
    else:
        daemons.resolved()
        daemons.resolvectl("dns", UPLINK, ROUTER)
    leads(host, ROUTER)


@pytest.mark.behaviour("B35")
def test_it_dies_under_a_running_agent() -> None:
    host, daemons = start()
    daemons.resolvectl("dns", UPLINK, ROUTER)
    host.qube.start_agent()
    leads(host, ROUTER)
    daemons.running["resolved"].kill()
    eventually(lambda: "is not running" in host.trouble(), trouble=host.trouble)
    leads(host, ROUTER)  # what it said last holds for a while (B128); it was refused at once before that
    host.resolv_conf(SECOND)  # by the only way out there is: nothing can be led around a tunnel
    leads(host, SECOND)
    daemons.running["dbus"].kill()
    host.resolv_conf(WORLD)
    leads(host, WORLD)
    assert host.forwards()
