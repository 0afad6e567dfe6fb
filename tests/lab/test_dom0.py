# SPDX-License-Identifier: GPL-2.0-or-later
"""The lab's dom0: what it computes and writes, and the life of qubes and of their interfaces at a real provider."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from qubes_guestnet.lab import probes, world, xenstore
from qubes_guestnet.lab.dom0 import RELEASES, Dom0, Vm
from qubes_guestnet.lab.namespaces import LabError
from qubes_guestnet.lab.qube import Qube
from qubes_guestnet.lab.stage import Stage
from qubes_guestnet.lab.world import Offer, World
from tests.support.eventually import eventually
from tests.support.needs import needs

PREFIX6 = "fd09:24ef:4179::"
CLEAN = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}


@pytest.fixture(autouse=True)
def _tools() -> None:
    needs("ip", "nsenter", "nft", "dnsmasq")


def allowed(netvm: Vm) -> set[tuple[str, str]]:
    """(vif, IPv4 address) pairs that a provider lets through."""
    text = netvm.running.run("nft", "-j", "list", "set", "ip", "qubes", "allowed").stdout
    (found,) = (entry["set"] for entry in json.loads(text)["nftables"] if "set" in entry)
    return {tuple(element["concat"]) for element in found.get("elem", ())}


def links(vm: Vm) -> list[str]:
    return [link["ifname"] for link in vm.running.ip("link") if link["ifname"] != "lo"]


# --- what it computes ------------------------------------------------------------------------------------------------


def test_addresses() -> None:
    dom0 = Dom0()
    first = dom0.create("first")
    assert (first.address, first.address6) == ("10.137.0.1", f"{PREFIX6}a89:1")
    disposable = dom0.create("disp", disposable=True)
    assert (disposable.address, disposable.address6) == ("10.138.0.1", f"{PREFIX6}a8a:1")
    with pytest.raises(LabError, match="70000"):
        Vm("too-late", 70000)


@pytest.mark.behaviour("B161")
@pytest.mark.parametrize(
    ("number", "disposable", "address", "address6"),
    [
        (1, False, "10.137.0.1", "a89:1"),
        (254, False, "10.137.0.254", "a89:fe"),
        # From here on without .0 and .255.
        (255, False, "10.137.1.1", "a89:ff"),
        (256, False, "10.137.1.2", "a89:100"),
        (300, False, "10.137.1.46", "a89:12c"),
        (508, False, "10.137.1.254", "a89:1fc"),
        (509, False, "10.137.2.1", "a89:1fd"),
        (4660, True, "10.138.18.88", "a8a:1234"),
        (9999, False, "10.137.39.93", "a89:270f"),
    ],
)
def test_addresses_of_high_numbers(number: int, disposable: bool, address: str, address6: str) -> None:
    vm = Vm("vm", number, disposable=disposable)
    assert (vm.address, vm.address6) == (address, f"{PREFIX6}{address6}")


@pytest.mark.behaviour("B161")
def test_no_two_numbers_have_one_address_and_none_looks_like_a_network_or_a_broadcast() -> None:
    found = [Vm("vm", number).address for number in range(1, 10000)]
    assert len(set(found)) == len(found)
    assert not [address for address in found if address.endswith((".0", ".255"))]


@pytest.mark.parametrize(
    ("net", "firewall", "qube", "has"),
    [
        (None, None, None, (False, False, False)),
        ("1", None, None, (True, True, True)),
        ("1", None, "", (True, True, False)),
        ("1", "", None, (True, False, False)),
        ("1", "", "1", (True, False, True)),
        ("", "1", None, (False, True, True)),
        (True, False, None, (True, False, False)),
    ],
)
def test_ipv6_comes_down_the_tree(
    net: str | None, firewall: str | None, qube: str | None, has: tuple[bool, bool, bool]
) -> None:
    dom0 = Dom0()
    sys_net = dom0.create("sys-net", None, net, provides_network=True)
    sys_firewall = dom0.create("sys-firewall", sys_net, firewall, provides_network=True)
    work = dom0.create("work", sys_firewall, qube)
    vms = (sys_net, sys_firewall, work)
    assert tuple(vm.has_ipv6 for vm in vms) == has
    assert tuple("/qubes-ip6" in vm.uplink_entries() for vm in vms) == (False, *has[1:])
    assert tuple("/qubes-netvm-gateway6" in vm.provider_entries() for vm in vms) == (*has[:2], False)
    assert [vm.uplink_entries().get("/qubes-gateway6") for vm in vms] == [
        None, f"{PREFIX6}a89:1" if has[0] and has[1] else None, f"{PREFIX6}a89:2" if has[1] and has[2] else None,
    ]  # fmt: skip


def test_a_qube_that_is_told_another_address() -> None:
    dom0 = Dom0()
    netvm = dom0.create("netvm", provides_network=True)
    proxy = dom0.create("proxy", netvm, provides_network=True)
    proxy.features["net.fake-ip"] = "192.168.1.128"
    assert {key: value for key, value in proxy.entries().items() if "dns" not in key} == {
        "/qubes-netvm-network": "192.168.1.128",
        "/qubes-netvm-gateway": "192.168.1.128",
        "/qubes-netvm-netmask": "255.255.255.255",
        "/qubes-mac": "00:16:3e:5e:6c:00",
        "/qubes-ip": "192.168.1.128",
        "/qubes-netmask": "255.255.255.255",
        "/qubes-gateway": "10.137.0.1",
    }
    base = "/mapped-ip/10.137.0.2/visible-"
    assert proxy.mapped_entries() == {f"{base}ip": "192.168.1.128", f"{base}gateway": "10.137.0.1"}
    proxy.features |= {"net.fake-gateway": "192.168.1.1", "net.fake-netmask": "255.255.255.0"}
    assert proxy.mapped_entries()[f"{base}gateway"] == "192.168.1.1"
    assert proxy.uplink_entries()["/qubes-netmask"] == "255.255.255.0"
    assert dom0.create("vm", proxy).uplink_entries()["/qubes-gateway"] == "192.168.1.128"


def test_addresses_set_by_hand() -> None:
    dom0 = Dom0()
    netvm = dom0.create("netvm", None, "1", provides_network=True)
    vm = dom0.create("vm", netvm)
    vm.custom_ip, vm.custom_ip6 = "192.168.1.1", "2000:aaaa:bbbb::1"
    assert vm.entries()["/qubes-ip"] == "192.168.1.1"
    assert vm.entries()["/qubes-ip6"] == "2000:aaaa:bbbb::1"
    assert list(vm.mapped_entries()) == ["/mapped-ip/192.168.1.1/visible-ip", "/mapped-ip/192.168.1.1/visible-gateway"]
    assert netvm.connected_entries(dom0.connected(netvm)) == {
        "/connected-ips": "192.168.1.1", "/connected-ips6": "2000:aaaa:bbbb::1",
    }  # fmt: skip


def test_what_dom0_refuses() -> None:
    dom0 = Dom0()
    netvm = dom0.create("netvm", provides_network=True)
    proxy = dom0.create("proxy", netvm, provides_network=True)
    vm = dom0.create("vm", proxy)
    below = "cannot be its provider"
    for qube, other, told in ((vm, vm, "vm provides no"), (netvm, proxy, below), (netvm, netvm, below)):
        with pytest.raises(LabError, match=told):
            dom0.set_netvm(qube, other)
    with pytest.raises(LabError, match="already"):
        dom0.create("vm")
    dom0.set_netvm(vm, netvm)
    assert dom0.connected(netvm) == (proxy, vm)
    assert [*dom0.below(netvm)] == [netvm, proxy, vm]


# --- what it writes --------------------------------------------------------------------------------------------------


def test_a_provider_is_told_of_itself_and_of_all_connected_qubes() -> None:
    stage = Stage(ipv6=True)
    dom0 = stage.dom0
    halted, without = dom0.create("halted", stage.netvm1), dom0.create("without", stage.netvm1, "")
    started = dom0.create("started", stage.netvm1)
    dom0.start(started)
    found = dom0.read_all(stage.netvm1)
    ours = {key: value.decode() for key, value in found.items() if "netvm" in key or "connected" in key}
    assert ours == {
        "/qubes-netvm-network": "10.137.0.1",
        "/qubes-netvm-gateway": "10.137.0.1",
        "/qubes-netvm-gateway6": f"{PREFIX6}a89:1",
        "/qubes-netvm-netmask": "255.255.255.255",
        "/qubes-netvm-primary-dns": "10.139.1.1",
        "/qubes-netvm-secondary-dns": "10.139.1.2",
        "/connected-ips": "10.137.0.2 10.137.0.3 10.137.0.4",
        "/connected-ips6": f"{PREFIX6}a89:2 {PREFIX6}a89:4",
    }
    # So of every qube that has run, and of no other one.
    assert {key for key in found if "mapped" in key} == set(started.mapped_entries())
    assert found["/mapped-ip/10.137.0.4/visible-ip"] == b"10.137.0.4"
    dom0.set_netvm(without, None)
    dom0.set_netvm(halted, None)
    assert dom0.read_all(stage.netvm1)["/connected-ips"] == b"10.137.0.4"


# What is written, operation by operation, is in test_dom0_operations.


# --- interfaces at a real provider -----------------------------------------------------------------------------------


def test_the_xenstore_of_files_is_found_and_answers_like_xens() -> None:
    qube = Qube("netvm")
    xenstore.install(qube)
    xenstore.fill(qube, "backend/vif/4/0", {"mac": "00:16:3e:5e:6c:05", "ip": "10.137.0.5 fd09::5"})
    mac, ip, status = (f"backend/vif/4/0/{name}" for name in ("mac", "ip", "hotplug-status"))
    assert qube.run("xenstore-read", mac, ip, env=CLEAN).stdout == "00:16:3e:5e:6c:05\n10.137.0.5 fd09::5\n"
    missing = qube.run("xenstore-read", status, env=CLEAN, check=False)
    assert (missing.returncode, missing.stdout) == (1, "")
    assert status in missing.stderr
    qube.run("xenstore-write", status, "connected", "/local/domain/0/x", "a 'b' $c", env=CLEAN)
    assert xenstore.node(qube, status) == "connected"
    assert qube.run("xenstore-read", "/local/domain/0/x", env=CLEAN).stdout == "a 'b' $c\n"
    xenstore.clear(qube, "backend/vif/4/0")
    assert xenstore.node(qube, mac) == xenstore.node(qube, status) == ""
    assert qube.run("nft", "--version", env=CLEAN).stdout  # what was there is there still


def test_an_interface_comes_and_goes_with_its_hotplug_calls() -> None:
    stage = Stage()
    vm = stage.start("vm", stage.netvm1, agent=False)
    assert vm.vif == f"vif{vm.domid}.0"
    assert allowed(stage.netvm1) == {(vm.vif, vm.address)}
    assert stage.netvm1.running.ip("link", "show", "dev", vm.vif)[0]["address"] == "fe:ff:ff:ff:ff:ff"
    assert links(vm) == ["eth0"]
    stage.dom0.detach(vm)
    assert (vm.vif, links(vm), allowed(stage.netvm1)) == (None, [], set())
    assert links(stage.netvm1) == ["ens6"]
    stage.dom0.attach(vm)
    assert allowed(stage.netvm1) == {(f"vif{vm.domid}.0", vm.address)}
    stage.dom0.reuses_numbers = False
    stage.dom0.reattach(vm)
    assert allowed(stage.netvm1) == {(f"vif{vm.domid}.1", vm.address)}
    first = vm.domid
    stage.dom0.restart(vm)
    assert vm.domid > first
    assert allowed(stage.netvm1) == {(f"vif{vm.domid}.0", vm.address)}


def test_what_hotplug_told_xen_is_told_when_an_interface_does_not_come() -> None:
    stage = Stage()
    vm = stage.start("vm", None)
    vm.netvm = stage.netvm1
    vm.features["net.fake-ip"] = "not-an-address"
    with pytest.raises(LabError, match=r"hotplug-status 'error'.*visible-ip"):
        stage.dom0.attach(vm)
    assert (vm.vif, links(vm), links(stage.netvm1)) == (None, [], ["ens6"])
    del vm.features["net.fake-ip"]
    stage.dom0.write_entries(vm)
    stage.dom0.attach(vm)
    stage.reaches(vm)
    with pytest.raises(LabError, match="no provider"):
        stage.dom0.attach(stage.netvm1)
    stage.dom0.detach(vm)
    vm.netvm = stage.start("other", None)
    with pytest.raises(LabError, match="provides no network"):
        stage.dom0.attach(vm)


def test_a_device_can_be_there_before_anybody_serves_it() -> None:
    stage = Stage()
    agent = stage.netvm1.running.agent
    assert agent is not None
    agent.stop()
    vm = stage.start("vm", None)
    vm.netvm = stage.netvm1
    stage.dom0.write_entries(vm)
    networking = stage.dom0.plug(vm)
    stage.dom0.reload_firewall(vm)
    assert vm.vif in links(stage.netvm1)
    assert links(vm) == []
    assert vm.plugged is not None
    networking.online(vm.plugged)
    stage.dom0.connect(vm)
    stage.netvm1.running.start_agent()
    stage.reaches(vm)


def test_a_qube_that_runs_the_agent_has_the_base_rules_and_another_has_none() -> None:
    stage = Stage()
    for name, agent in (("with", True), ("without", False)):
        vm = stage.start(name, stage.netvm1, agent)
        tables = vm.running.run("nft", "list", "tables").stdout.splitlines()
        assert tables == (["table ip qubes", "table ip6 qubes", "table arp qubes"] if agent else [])


@pytest.mark.parametrize("end", [Dom0.shutdown, Dom0.kill, Dom0.crash], ids=["shutdown", "kill", "crash"])
def test_a_provider_that_comes_again(end: Callable[[Dom0, Vm], None]) -> None:
    stage = Stage()
    dom0 = stage.dom0
    proxy = stage.proxy("proxy")
    vm = stage.start("vm", proxy)
    stage.reaches(vm)
    end(dom0, proxy)
    assert proxy.qube is None
    stage.reaches_nothing(vm)
    dom0.start(proxy)
    dom0.offline_late()
    assert allowed(stage.netvm1) == {(proxy.vif, proxy.address)}
    stage.reaches(proxy)
    stage.reaches(vm)


def test_after_a_crash_the_provider_may_close_before_dom0_tells() -> None:
    stage = Stage()
    vm = stage.start("vm", stage.netvm1)
    former = vm.vif
    stage.dom0.crash(vm)
    # Its agent closes what has no device any more (B117), at a moment of its own.
    assert allowed(stage.netvm1) <= {(former, vm.address)}
    assert links(stage.netvm1) == ["ens6"]
    stage.dom0.start(vm)
    stage.dom0.offline_late()
    assert allowed(stage.netvm1) == {(vm.vif, vm.address)}
    stage.reaches(vm)


def test_starting_a_qube_starts_its_provider() -> None:
    dom0 = Dom0()
    netvm = dom0.create("netvm", provides_network=True, offer=Offer())
    vm = dom0.create("vm", dom0.create("proxy", netvm, provides_network=True))
    dom0.start(vm, agent=True)
    assert all(each.running.agent for each in dom0.vms.values())
    assert eventually(lambda: probes.ping(vm.running, world.HOST))
    with pytest.raises(LabError, match="running already"):
        dom0.start(vm)


@pytest.mark.parametrize("late", [False, True], ids=["told-before", "told-after"])
@pytest.mark.parametrize("gateway", [False, True], ids=["its-gateway", "fake-gateway"])
def test_a_fake_address_however_early_the_provider_hears_of_it(gateway: bool, late: bool) -> None:
    stage = Stage()
    stage.dom0.release = RELEASES["4.1" if late else "4.3"]
    vm = stage.dom0.create("vm", stage.netvm1)
    vm.features["net.fake-ip"] = "192.168.1.128"
    if gateway:
        vm.features |= {"net.fake-gateway": "192.168.1.1", "net.fake-netmask": "255.255.255.0"}
    stage.dom0.start(vm, agent=True)
    stage.configured(vm)
    stage.reaches(vm)
    stage.dom0.reattach(vm)
    stage.configured(vm)
    stage.reaches(vm)
    stage.dom0.detach(vm)
    assert links(stage.netvm1) == ["ens6"]


# --- the world -------------------------------------------------------------------------------------------------------


def test_a_world_has_names_and_changes_its_addresses_and_servers() -> None:
    outside = World("world")
    netvm = Qube("netvm")
    outside.connect(netvm, "ens6")
    assert probes.resolve(netvm, world.NAME) == [world.HOST]
    assert probes.resolve(netvm, world.NAME, 6) == [world.HOST6]
    assert probes.resolve(netvm, world.NAME6) == []
    assert probes.resolve(netvm, world.NAME6, 6) == [world.HOST6]
    assert probes.ping(netvm, world.HOST) is not None
    assert probes.ping(netvm, world.HOST6, 0.2) is None
    outside.change(Offer(True, True, "172.16.0.0/16", "172.16.0.1", "172.16.9.9", ("172.16.0.1", "9.9.9.9")))
    assert netvm.read("/etc/resolv.conf") == "nameserver 172.16.0.1\nnameserver 9.9.9.9\n"
    assert {a["local"] for a in netvm.ip("-4", "address", "show", "dev", "ens6")[0]["addr_info"]} == {"172.16.9.9"}
    assert probes.ping(netvm, world.HOST) is not None
    assert probes.ping(netvm, world.HOST6) is not None
    assert probes.resolve(netvm, world.NAME) == [world.HOST]
    outside.change(Offer(dns=("10.8.8.8",)))
    assert probes.resolve(netvm, world.NAME) == [world.HOST]
    netvm.write("/etc/resolv.conf", "nameserver 9.9.9.9\n")
    assert probes.resolve(netvm, world.NAME) == []
