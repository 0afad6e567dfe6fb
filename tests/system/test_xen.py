# SPDX-License-Identifier: GPL-2.0-or-later
"""Under real Xen: what libxl calls in dom0, and `xl devd` in a driver domain, with packets by netfront and netback.

A qube without a disk is behind `netvm`, a driver domain with an uplink and an agent, and that one is behind dom0, where
no agent runs. Beyond dom0 is the world. All in one machine, in the order of this file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.eventually import eventually
from tests.support.machines.xen import Domain, Xen

SCRIPT, VIF_MAC = "vif-route-qubes", "fe:ff:ff:ff:ff:ff"
WORLD, WORLD6 = "192.0.2.80", "2001:db8::80"
GATEWAY, GATEWAY6 = "10.138.7.9", "fd09:24ef:4179::a8a:709"
NETVM, NETVM6, NETVM_MAC = "10.137.0.8", "fd09:24ef:4179::a89:8", "00:16:3e:5e:7c:01"
NETVM_GATEWAY, NETVM_GATEWAY6 = "10.138.8.9", "fd09:24ef:4179::a8a:809"
QUBE, QUBE6, QUBE_MAC = "10.137.0.104", "fd09:24ef:4179::a89:68", "00:16:3e:5e:7c:04"
STOLEN, STOLEN6 = "10.137.0.99", "fd09:24ef:4179::a89:63"
PROVIDER = """\
/qubes-netvm-network = {0}
/qubes-netvm-gateway = {0}
/qubes-netvm-gateway6 = {1}
/qubes-netvm-primary-dns = 10.139.1.1
/qubes-netvm-secondary-dns = 10.139.1.2
"""
UPLINK = f"""\
/qubes-mac = {NETVM_MAC}
/qubes-ip = {NETVM}
/qubes-gateway = {GATEWAY}
/qubes-ip6 = {NETVM6}
/qubes-gateway6 = {GATEWAY6}
/qubes-primary-dns = 10.139.1.1
/qubes-secondary-dns = 10.139.1.2
"""
ENTRIES = {
    "dom0": PROVIDER.format(GATEWAY, GATEWAY6),
    "netvm": PROVIDER.format(NETVM_GATEWAY, NETVM_GATEWAY6) + UPLINK,
}
# What is there before an agent and before any vif. The store and nft (its modules) begin slower in an emulated machine
# than our program gives them time for, so they have begun before it.
PROVIDE = """\
touch /run/qubes-service/qubes-network
setsid qubes-guestnet lab store --dir /run/qubes --file "/stage/$1" >/run/store.log 2>&1 &
until [ -S /run/qubes/qubesdb.ro.sock ]; do sleep 0.1; done
qubesdb-list / >/dev/null
nft list ruleset
exec qubes-guestnet rules load
"""
START = "setsid {0} >/run/{1}.log 2>&1 & echo $! >/run/{1}.pid"
DEVD, AGENT = START.format("xl devd -F", "devd"), START.format("qubes-guestnet agent", "agent")
# Lines for ip: of dom0, which has its uplink there, and of the world.
OUTSIDE = """\
link add eth0 group 1 type veth peer name eth0 netns world
address add 198.51.100.1/24 dev eth0
address add 2001:db8:1::1/64 dev eth0 nodad
link set eth0 up
route add default via 198.51.100.2
route add default via 2001:db8:1::2
"""
THE_WORLD = f"""\
link set lo up
link set eth0 up
address add 198.51.100.2/24 dev eth0
address add 2001:db8:1::2/64 dev eth0 nodad
address add {WORLD}/32 dev lo
address add {WORLD6}/128 dev lo nodad
"""
HOOKS = "/rw/config/network-hooks.d"
HOOK = rf"mkdir -p {HOOKS}; printf '#!/bin/sh\necho $* >>/run/hooked\n' >{HOOKS}/note; chmod +x {HOOKS}/note"
# A packet from each of these is one too many.
USERS_RULES = "; ".join(
    f"nft add rule {family} qubes custom-{chain} {family} saddr {stolen} counter"
    for family, stolen in (("ip", STOLEN), ("ip6", STOLEN6))
    for chain in ("input", "forward")
)
GATEWAYS = ((GATEWAY, GATEWAY6), (NETVM_GATEWAY, NETVM_GATEWAY6))
FORWARDING = ("/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/ipv6/conf/all/forwarding")
FAMILIES, SETS = ("ip", "ip6"), ("allowed", "downstream")
QUBE_SETUP = (
    "ip link set eth0 up",
    f"ip address add {QUBE}/32 dev eth0",
    "ip route add default dev eth0",
    # No answer would come to the question whether another host has an address.
    "echo 0 >/proc/sys/net/ipv6/conf/eth0/accept_dad",
    f"ip -6 address add {QUBE6}/128 dev eth0",
    f"ip -6 route add {NETVM_GATEWAY6} dev eth0",
    f"ip -6 route add default via {NETVM_GATEWAY6} dev eth0",
)
CONNECTED = "4"  # XenbusStateConnected
# Of devd, in every domain but dom0.
NOISE = "libxl: error: libxl_utils.c:815:libxl_cpu_bitmap_alloc: failed to retrieve the maximum number of cpus"
REACH_S = 60.0


class Chain(NamedTuple):
    dom0: Domain
    netvm: Domain
    qube: Domain


@pytest.fixture(scope="module")
def xen(built: Path) -> Iterator[Chain]:
    xen = Xen(built, {**ENTRIES, "provide": PROVIDE, "outside": OUTSIDE, "world": THE_WORLD})
    try:
        xen.booted()
        netvm, qube = xen.create("netvm", disk=True), xen.create("qube")
        make_world = "ip netns add world && ip -batch /stage/outside && ip -netns world -batch /stage/world"
        for line in ("sh /stage/provide dom0", make_world):
            xen.dom0.sh(line)
        xen.listening(netvm)
        for line in ("sh /stage/provide netvm", USERS_RULES, HOOK):
            netvm.sh(line)
        xen.listening(qube)
        yield Chain(xen.dom0, netvm, qube)
    finally:
        xen.close()


def attach(dom0: Domain, name: str, mac: str, addresses: str, *, backend: str = "Domain-0", check: bool = True) -> str:
    """What libvirt has libxl do for a qube; what xl says."""
    words = (f"mac={mac}", f"ip={addresses}", f"script={SCRIPT}", f"backend={backend}")
    done = dom0.run("xl", "network-attach", name, *words, check=check)
    assert check or done.returncode != 0
    return done.stdout + done.stderr


def xenstore(dom0: Domain, backend: int, domid: int, leaf: str) -> str:
    """A value of the backend of a first interface; "" when it is not there."""
    return dom0.run(
        "xenstore-read", f"/local/domain/{backend}/backend/vif/{domid}/0/{leaf}", check=False
    ).stdout.strip()


def elements(domain: Domain, family: str, name: str = "allowed") -> list[object]:
    """What a set of ours holds."""
    listed = json.loads(domain.run("nft", "-j", "list", "set", family, "qubes", name).stdout)["nftables"]
    return next(entry["set"].get("elem", []) for entry in listed if "set" in entry)


def counted(domain: Domain, family: str, chains: Sequence[str] = ("antispoof", "custom-")) -> list[int]:
    """Packets that the counters of chains have seen, by the begin of their names: anti-spoofing and a user's."""
    listed = json.loads(domain.run("nft", "-j", "list", "table", family, "qubes").stdout)["nftables"]
    rules = [entry["rule"] for entry in listed if "rule" in entry]
    counts = [
        (rule["chain"], part["counter"]["packets"]) for rule in rules for part in rule["expr"] if "counter" in part
    ]
    return [sum(count for chain, count in counts if chain.startswith(name)) for name in chains]


def stopped(domain: Domain, family: str) -> int:
    """Packets and questions of a sender that is not the qube's; the way to some targets is asked for by ARP first."""
    questions = counted(domain, "arp", ("input",)) if family == "ip" else [0]
    return counted(domain, family)[0] + questions[0]


def is_provided_for(xen: Chain, provider: Domain, qube: Domain, addresses: tuple[str, str], mac: str) -> None:
    """All that an interface of a qube is to have in its provider, and the word to Xen."""
    vif, (gateway, gateway6) = f"vif{qube.domid}.0", GATEWAYS[provider is xen.netvm]
    value = partial(xenstore, xen.dom0, provider.domid, qube.domid)
    eventually(lambda: value("state") == CONNECTED, REACH_S, "the frontend", lambda: told(provider))
    assert (value("hotplug-status"), value("hotplug-error")) == ("connected", "")
    link = provider.link(vif)
    assert link is not None
    assert (link["address"], str(link["group"]), "UP" in link["flags"]) == (VIF_MAC, "2", True)
    assert provider.addresses(vif) == {f"{gateway}/32", f"{gateway6}/128"}
    assert provider.neighbours(vif) == dict.fromkeys(addresses, mac)
    is_allowed(provider, qube, addresses)
    assert provider.says("cat", f"/proc/sys/net/ipv4/conf/{vif}/proxy_arp") == "1"


def is_allowed(provider: Domain, qube: Domain, addresses: tuple[str, str]) -> None:
    """It has one route and one element each."""
    vif = f"vif{qube.domid}.0"
    for family, address in zip((4, 6), addresses, strict=True):
        routes = [route for route in provider.routes(family, vif) if route["dst"] == address]
        assert [route["metric"] for route in routes] == [32752 - qube.domid], provider.routes(family, vif)
    for family, address in zip(("ip", "ip6"), addresses, strict=True):
        assert elements(provider, family) == [{"concat": [vif, address]}]
        assert elements(provider, family, "downstream") == [address]


def told(domain: Domain) -> str:
    """What agent, devd and Xen's scripts wrote."""
    return domain.sh("tail -n 30 /run/*.log /var/log/xen/xen-hotplug.log 2>&1", check=False).stdout


@pytest.mark.behaviour("B55")
def test_an_interface_of_dom0_s(xen: Chain) -> None:
    """No agent runs there: the script does it all, but that nothing is forwarded."""
    attach(xen.dom0, "netvm", NETVM_MAC, f"{NETVM} {NETVM6}")
    is_provided_for(xen, xen.dom0, xen.netvm, (NETVM, NETVM6), NETVM_MAC)
    assert xen.dom0.says("cat", *FORWARDING).split() == ["0", "0"]
    xen.dom0.sh(f"for file in {' '.join(FORWARDING)}; do echo 1 >$file; done")


def test_the_uplink_of_a_driver_domain(xen: Chain) -> None:
    """Its agent starts, and finds the interface of Xen's own driver."""
    assert Path(xen.netvm.says("readlink", "/sys/class/net/eth0/device/driver")).name == "vif"
    xen.netvm.sh(AGENT)
    waiting = ("qubes-guestnet", "wait-uplink")
    eventually(
        lambda: xen.netvm.run(*waiting, check=False).returncode == 0, REACH_S, "the uplink", lambda: told(xen.netvm)
    )
    link = xen.netvm.link("eth0")
    assert link is not None
    assert (link["address"], str(link["group"])) == (NETVM_MAC, "1")
    assert xen.netvm.addresses("eth0") == {f"{NETVM}/32", f"{NETVM6}/128"}
    assert xen.netvm.neighbours("eth0") == dict.fromkeys((GATEWAY, GATEWAY6), VIF_MAC)
    assert [route["dev"] for route in xen.netvm.default_routes()] == ["eth0"]
    assert [route["gateway"] for route in xen.netvm.default_routes(6)] == [GATEWAY6]
    for address in (WORLD, WORLD6):
        eventually(lambda address=address: xen.netvm.reaches(address), REACH_S, address, lambda: told(xen.dom0))


@pytest.mark.behaviour("B47")
def test_devd_of_a_driver_domain_starts_late(xen: Chain) -> None:
    """The vif is there before its script is called; called again, it runs the user's hooks no second time (B148)."""
    attach(xen.dom0, "qube", QUBE_MAC, f"{QUBE} {QUBE6}", backend="netvm")
    assert xenstore(xen.dom0, xen.netvm.domid, xen.qube.domid, "hotplug-status") == ""
    xen.netvm.sh(DEVD)
    is_provided_for(xen, xen.netvm, xen.qube, (QUBE, QUBE6), QUBE_MAC)
    assert xen.netvm.says("cat", "/run/hooked").splitlines() == hooked("online", xen.qube)
    environment = (f"vif=vif{xen.qube.domid}.0", f"XENBUS_PATH=backend/vif/{xen.qube.domid}/0")
    xen.netvm.run("env", *environment, f"/etc/xen/scripts/{SCRIPT}", "online", "type_if=vif")
    assert xen.netvm.says("cat", "/run/hooked").splitlines() == hooked("online", xen.qube)
    is_allowed(xen.netvm, xen.qube, (QUBE, QUBE6))


def hooked(command: str, qube: Domain) -> list[str]:
    return [f"{command} vif{qube.domid}.0 vif {address}" for address in (QUBE, QUBE6)]


def test_a_qube_reaches_the_world_through_both(xen: Chain) -> None:
    """Its default route is the device: each address is asked for by ARP. In IPv6 its gateway is."""
    for line in QUBE_SETUP:
        xen.qube.sh(line)
    for address in (WORLD, WORLD6):
        eventually(lambda address=address: xen.qube.reaches(address), REACH_S, address, lambda: told(xen.netvm))


@pytest.mark.behaviour("B51")
def test_a_stolen_address_gets_nowhere(xen: Chain) -> None:
    xen.qube.sh(f"ip address add {STOLEN}/32 dev eth0")
    xen.qube.sh(f"ip -6 address add {STOLEN6}/128 dev eth0")
    for family, stolen, targets in (("ip", STOLEN, (WORLD, NETVM_GATEWAY)), ("ip6", STOLEN6, (WORLD6, NETVM_GATEWAY6))):
        before = stopped(xen.netvm, family)
        for target in targets:
            words = ("ping", "-c", "1", "-W", "1", "-I", stolen, target)
            assert xen.qube.run(*words, check=False).returncode != 0
        assert stopped(xen.netvm, family) >= before + len(targets)
        assert counted(xen.netvm, family)[1] == 0
    assert xen.qube.reaches(WORLD, within_s=5)


@pytest.mark.behaviour("B49")
def test_a_detached_interface_leaves_nothing(xen: Chain) -> None:
    vif = f"vif{xen.qube.domid}.0"
    # libxl waits 10 s for the driver domain and then gives up waiting, which is short for an emulated one on a loaded
    # machine. The driver domain goes on, and what it leaves is what counts.
    xen.dom0.run("xl", "network-detach", "qube", "0", check=False)
    left = lambda: [elements(xen.netvm, family, name) for family in FAMILIES for name in SETS]  # noqa: E731
    eventually(lambda: left() == [[]] * 4, REACH_S, "the end of it", lambda: told(xen.netvm))
    assert xen.netvm.link(vif) is None
    assert [route for family in (4, 6) for route in xen.netvm.routes(family) if route["dev"] != "eth0"] == []
    assert xen.netvm.says("ls", "/run/qubes-guestnet/vifs") == ""
    eventually(
        lambda: (
            xen.netvm.says("cat", "/run/hooked").splitlines()
            == [*hooked("online", xen.qube), *hooked("offline", xen.qube)]
        ),
        REACH_S,
        "the hook",
    )
    assert "error" not in told(xen.netvm).replace(NOISE, "").lower()


def test_what_is_no_address_is_refused_and_xl_says_so(xen: Chain) -> None:
    """What it says is what we wrote into xenstore."""
    said = attach(xen.dom0, "qube", QUBE_MAC, "10.137.0.256", check=False)
    libxl = [line.partition(": script: ")[2] for line in said.splitlines() if line.startswith("libxl: error")]
    assert any("10.137.0.256" in line for line in libxl), said
    assert "10.137.0.256" in xen.dom0.says("cat", "/var/log/xen/xen-hotplug.log")
    assert elements(xen.dom0, "ip") == [{"concat": [f"vif{xen.netvm.domid}.0", NETVM]}]
