# SPDX-License-Identifier: GPL-2.0-or-later
"""The lab's dom0 does what dom0's own code does, operation by operation, in order (behaviour B161)."""

from __future__ import annotations

import pytest

from qubes_guestnet.lab import hotplug, xenstore
from qubes_guestnet.lab.dom0 import RELEASES, Dom0, Vm
from qubes_guestnet.lab.stage import Stage
from tests.support.needs import needs
from tests.support.programs.dom0_words import (
    ASK,
    MAC,
    as_recorded,
    attach,
    connected,
    detach,
    firewall,
    mapped,
    operations,
    own,
)

PREFIX6 = "fd09:24ef:4179::"
pytestmark = pytest.mark.behaviour("B161")


@pytest.fixture(autouse=True)
def _tools() -> None:
    needs("ip", "nsenter", "nft", "dnsmasq")


# --- 1: the start ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("release", ["4.3", "4.2"])
def test_a_start_tells_the_provider_then_attaches_then_tells_the_qube(release: str) -> None:
    stage = Stage(ipv6=True)
    dom0, netvm = stage.dom0, stage.netvm1
    dom0.release = RELEASES[release]
    vm = dom0.create("vm", netvm)
    ip6, gateway6 = f"{PREFIX6}a89:2", f"{PREFIX6}a89:1"
    with operations(dom0) as done:
        dom0.start(vm, agent=True)
    assert done == [
        *connected(netvm, vm, ip6=ip6),
        *mapped(netvm, vm),
        *firewall(netvm, vm, ip6),  # before it exists
        "create vm",
        attach(netvm, vm, ip6=ip6),
        *own(vm, netvm.address, ip6=ip6, gateway6=gateway6),
        "resume vm",
        *firewall(netvm, vm, ip6),
    ]
    as_recorded(dom0, netvm, vm)
    nodes = {name: xenstore.node(netvm.running, f"backend/vif/{vm.domid}/0/{name}") for name in ("mac", "ip", "type")}
    assert nodes == {"mac": MAC, "ip": f"{vm.address} {ip6}", "type": "vif"}
    assert xenstore.node(netvm.running, f"backend/vif/{vm.domid}/0/hotplug-status") == hotplug.CONNECTED
    stage.reaches(vm)


def test_before_2024_06_the_interface_was_there_before_the_provider_was_told() -> None:
    stage = Stage()
    dom0, netvm = stage.dom0, stage.netvm1
    dom0.release = RELEASES["4.1"]
    vm = dom0.create("vm", netvm)
    vm.features["net.fake-ip"] = "192.168.1.5"
    with operations(dom0) as done:
        dom0.start(vm, agent=True)
    told = [*connected(netvm, vm), *mapped(netvm, vm, "192.168.1.5")]
    told[0] = told[0].replace(vm.address, "192.168.1.5")  # the list has what each qube sees
    rules = firewall(netvm, vm)  # by the address that the provider sees
    assert done[:10] == ["create vm", attach(netvm, vm), *told, *rules]
    assert done[-5:] == ["resume vm", *rules]
    assert done[10:-5] == [line.replace(f"= {vm.address}", "= 192.168.1.5") for line in own(vm, netvm.address)]
    stage.reaches(vm)


def test_starting_a_provider_tells_it_of_running_clients_and_attaches_them() -> None:
    stage = Stage()
    dom0, netvm = stage.dom0, stage.netvm1
    proxy = stage.proxy("proxy")
    vm, halted = stage.start("vm", proxy), dom0.create("halted", proxy)
    dom0.kill(proxy)
    with operations(dom0) as done:
        dom0.start(proxy)
    assert done == [
        *connected(netvm, proxy),
        *mapped(netvm, proxy),
        *firewall(netvm, proxy),
        "create proxy",
        attach(netvm, proxy),
        *own(proxy, netvm.address, provides=True),
        *connected(proxy, vm, halted),
        *mapped(proxy, vm),  # of a running one; this is why the vif is attached after it
        *firewall(proxy, vm),  # and not again when the vif is there
        "resume proxy",
        *firewall(netvm, proxy),
        *mapped(proxy, vm),
        attach(proxy, vm),
    ]
    as_recorded(dom0, netvm, proxy)
    stage.reaches(vm)


# --- 2: a provider's own entries are rewritten -----------------------------------------------------------------------


def test_another_netvm_of_a_provider_rewrites_what_it_reads_of_each_running_client() -> None:
    stage = Stage()
    dom0, netvm1, netvm2 = stage.dom0, stage.netvm1, stage.provider("netvm2")
    proxy = stage.proxy("proxy", netvm1)
    vm, halted = stage.start("vm", proxy), dom0.create("halted", proxy)
    dom0.set_feature(vm, "net.fake-ip", "192.168.1.5")
    with operations(dom0) as done:
        dom0.set_netvm(proxy, netvm2)
    assert done == [
        detach(netvm1, proxy),
        *connected(netvm1),
        *connected(netvm2, proxy),
        *own(proxy, netvm2.address, provides=True),
        f"write proxy /connected-ips = 192.168.1.5 {halted.address}",
        "write proxy /connected-ips6",
        *mapped(proxy, vm, "192.168.1.5"),
        *firewall(proxy, vm),
        *mapped(netvm2, proxy),
        attach(netvm2, proxy),
        *firewall(netvm2, proxy),
    ]
    as_recorded(dom0, netvm1, netvm2, proxy)


# --- 3, 8: features --------------------------------------------------------------------------------------------------


def test_features_write_nothing_and_stale_and_missing_keys_stay_so_until_a_start_or_another_netvm() -> None:
    stage = Stage()
    dom0, netvm = stage.dom0, stage.netvm1
    vm = stage.start("vm", netvm)
    with operations(dom0) as done:
        for feature, value in (("ipv6", "1"), ("net.fake-ip", "192.168.1.5"), ("net.fake-ip", None)):
            dom0.set_feature(vm, feature, value)
        dom0.set_feature(vm, "ipv6", None)
        dom0.set_feature(netvm, "ipv6", "1")
    assert done == []
    # Behind a provider that was not told, the qube is: the flow of B160.
    ip6 = f"{PREFIX6}a89:2"
    with operations(dom0) as done:
        dom0.reattach(vm)
    assert done == [
        detach(netvm, vm),
        *connected(netvm, vm, ip6=ip6) * 2,  # of the former and of the new one
        *own(vm, netvm.address, ip6=ip6, gateway6=f"{PREFIX6}a89:1"),
        *mapped(netvm, vm),
        attach(netvm, vm, ip6=ip6),
        *firewall(netvm, vm, ip6),
    ]
    assert "/qubes-netvm-gateway6" not in dom0.read_all(netvm)
    dom0.set_feature(netvm, "ipv6", "")
    dom0.reattach(vm)
    found = dom0.read_all(vm)
    assert (found["/qubes-ip6"], found["/qubes-gateway6"]) == (ip6.encode(), f"{PREFIX6}a89:1".encode()), "stale"
    dom0.set_feature(netvm, "ipv6", "1")
    dom0.restart(netvm)
    assert "/qubes-netvm-gateway6" in dom0.read_all(netvm)


def test_fake_addresses_of_the_template_count_and_ones_of_the_qube_come_first() -> None:
    dom0 = Dom0()
    netvm = dom0.create("netvm", provides_network=True)
    vm = dom0.create("vm", netvm)
    vm.template_features |= {
        "net.fake-ip": "192.168.1.5", "net.fake-gateway": "192.168.1.1", "net.fake-netmask": "255.255.255.0",
    }  # fmt: skip
    keys = ("/qubes-ip", "/qubes-gateway", "/qubes-netmask")
    assert [vm.entries()[key] for key in keys] == ["192.168.1.5", "192.168.1.1", "255.255.255.0"]
    assert vm.mapped_entries() == {
        f"/mapped-ip/{vm.address}/visible-ip": "192.168.1.5",
        f"/mapped-ip/{vm.address}/visible-gateway": "192.168.1.1",
    }
    vm.features |= {"net.fake-ip": "192.168.1.6", "net.fake-gateway": "", "net.fake-netmask": ""}
    assert [vm.entries()[key] for key in keys] == ["192.168.1.6", netvm.address, "255.255.255.255"]


# --- 4: a paused qube ------------------------------------------------------------------------------------------------


def paused(release: str) -> tuple[Stage, Vm, Vm]:
    """A stage, another provider, and a paused qube behind the first one."""
    stage = Stage()
    stage.dom0.release = RELEASES[release]
    other, vm = stage.provider("netvm2"), stage.start("vm", stage.netvm1)
    stage.reaches(vm)
    stage.dom0.pause(vm)
    return stage, other, vm


def test_the_interface_of_a_paused_qube_is_exchanged_after_it_runs_again() -> None:
    stage, netvm2, vm = paused("4.3")
    dom0, netvm1 = stage.dom0, stage.netvm1
    with operations(dom0) as done:
        dom0.set_netvm(vm, netvm2)
    rules = firewall(netvm2, vm)
    assert done == [*connected(netvm1), *connected(netvm2, vm), *own(vm, netvm2.address), *rules]
    assert vm.vif in {link["ifname"] for link in netvm1.running.ip("link")}, "the old one stays"
    with operations(dom0) as done:
        dom0.unpause(vm)
    assert done == [
        "resume vm",
        detach(netvm1, vm),
        *connected(netvm1),
        *connected(netvm2, vm),
        *own(vm, netvm2.address),
        *mapped(netvm2, vm),
        attach(netvm2, vm),
        *rules,
        ASK,
    ]
    stage.works(vm)
    as_recorded(dom0, netvm1, netvm2, vm)


def test_in_4_2_it_was_exchanged_during_the_pause() -> None:
    stage, netvm2, vm = paused("4.2")
    dom0, netvm1 = stage.dom0, stage.netvm1
    with operations(dom0) as done:
        dom0.set_netvm(vm, netvm2)
    assert done == [
        detach(netvm1, vm),
        *connected(netvm1),
        *connected(netvm2, vm),
        *own(vm, netvm2.address),
        *mapped(netvm2, vm),
        attach(netvm2, vm),
        *firewall(netvm2, vm),
    ]
    with operations(dom0) as done:
        dom0.unpause(vm)
    assert done == ["resume vm"]
    stage.works(vm)


def test_a_paused_qube_loses_its_provider_after_it_runs_again() -> None:
    stage, _, vm = paused("4.3")
    dom0, netvm1 = stage.dom0, stage.netvm1
    with operations(dom0) as done:
        dom0.set_netvm(vm, None)
        dom0.unpause(vm)
    assert done == [*connected(netvm1), "resume vm", detach(netvm1, vm), ASK]
    stage.reaches_nothing(vm)


def test_the_netvm_of_a_paused_qube_ends_and_is_started_when_it_runs_again() -> None:
    stage, _, vm = paused("4.3")
    dom0, netvm1 = stage.dom0, stage.netvm1
    dom0.shutdown(netvm1)
    with operations(dom0) as done:
        dom0.unpause(vm)
    assert done == ["resume vm"]
    with operations(dom0) as done:
        dom0.start(netvm1)
    at = done.index("resume netvm1")
    assert done[at + 1 :] == [
        *connected(netvm1, vm) * 2, *own(vm, netvm1.address), *mapped(netvm1, vm), attach(netvm1, vm),
        *firewall(netvm1, vm), ASK,
    ]  # fmt: skip
    stage.works(vm)


def test_the_netvm_of_a_paused_qube_restarts_and_does_not_attach_it() -> None:
    stage, _, vm = paused("4.3")
    dom0, netvm1 = stage.dom0, stage.netvm1
    with operations(dom0) as done:
        dom0.restart(netvm1)
    assert done[-1] == "resume netvm1"
    with operations(dom0) as done:
        dom0.unpause(vm)
    assert done == [
        "resume vm", *connected(netvm1, vm) * 2, *own(vm, netvm1.address), *mapped(netvm1, vm), attach(netvm1, vm),
        *firewall(netvm1, vm), ASK,
    ]  # fmt: skip
    stage.works(vm)
