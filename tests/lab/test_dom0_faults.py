# SPDX-License-Identifier: GPL-2.0-or-later
"""What dom0 refuses, leaves behind and writes for old programs (behaviour B161); and qubes that end while paused."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from qubes_guestnet.lab.dom0 import RELEASES, Dom0, Vm
from qubes_guestnet.lab.namespaces import LabError
from qubes_guestnet.lab.stage import Stage
from tests.support.eventually import eventually
from tests.support.needs import needs
from tests.support.programs.dom0_words import MAC, attach, operations, own

pytestmark = pytest.mark.behaviour("B161")


@pytest.fixture(autouse=True)
def _tools() -> None:
    needs("ip", "nsenter", "nft", "dnsmasq")


# --- 5, 7, 9, 10, 12 -------------------------------------------------------------------------------------------------


def test_every_qube_has_one_mac_address_unless_it_is_set() -> None:
    dom0 = Dom0()
    vms = [dom0.create(f"vm{number}") for number in range(3)]
    assert {vm.mac for vm in vms} == {MAC}
    vms[0].custom_mac = "02:00:00:00:00:07"
    assert [vm.mac for vm in vms] == ["02:00:00:00:00:07", MAC, MAC]


@pytest.mark.parametrize("release", RELEASES)
def test_a_halted_netvm_is_refused_for_a_running_qube_and_nothing_is_changed(release: str) -> None:
    stage = Stage()
    dom0 = stage.dom0
    dom0.release = RELEASES[release]
    halted, vm = dom0.create("halted", provides_network=True), stage.start("vm", stage.netvm1)
    with operations(dom0) as done, pytest.raises(LabError, match="QubesVMNotStartedError"):
        dom0.set_netvm(vm, halted)
    assert (done, vm.netvm, halted.qube) == ([], stage.netvm1, None)
    stage.reaches(vm)
    dom0.shutdown(vm)
    dom0.set_netvm(vm, halted)  # of a halted one it may be
    assert vm.netvm is halted


def test_a_removed_qube_stays_in_the_list_until_another_one_starts_and_its_number_is_used_again() -> None:
    stage = Stage()
    dom0, netvm = stage.dom0, stage.netvm1
    vm = stage.start("vm", netvm)
    number, address = vm.qid, vm.address
    with pytest.raises(LabError, match="in use"):
        dom0.delete(vm)
    dom0.shutdown(vm)
    with operations(dom0) as done:
        dom0.delete(vm)
    assert done == ["delete vm"]
    assert dom0.read_all(netvm)["/connected-ips"].decode() == address
    # A qube of another kind, whose creation sets no netvm of its own.
    other = dom0.create("other", disposable=True)
    other.netvm = netvm
    dom0.start(other)
    found = dom0.read_all(netvm)
    assert found["/connected-ips"].decode() == other.address
    assert f"/mapped-ip/{address}/visible-ip" in found, "mappings stay"
    assert dom0.create("new").qid == number
    with pytest.raises(LabError, match="in use"):
        dom0.delete(netvm)


def test_a_former_provider_keeps_its_mappings() -> None:
    stage = Stage()
    dom0, netvm2 = stage.dom0, stage.provider("netvm2")
    vm = stage.start("vm", stage.netvm1)
    dom0.set_netvm(vm, netvm2)
    assert f"/mapped-ip/{vm.address}/visible-ip" in dom0.read_all(stage.netvm1)
    assert dom0.read_all(stage.netvm1)["/connected-ips"] == b""


@pytest.mark.parametrize("length", [None, 3071], ids=["as written", "as long as can be"])
def test_rules_for_programs_from_before_4_0_are_read_along_and_do_no_harm(length: int | None) -> None:
    stage = Stage()
    dom0 = stage.dom0
    proxy = dom0.create("proxy", stage.netvm1, provides_network=True)
    proxy.template_features.clear()
    stage.boot(proxy)
    with operations(dom0) as done:
        vm = stage.start("vm", proxy)
    compatibility = [line.partition(" = ")[0] for line in done if "iptables" in line]
    assert compatibility == [
        "rm proxy /qubes-iptables-domainrules/",
        "write proxy /qubes-iptables-header",
        f"write proxy /qubes-iptables-domainrules/{vm.domid}",
        "write proxy /qubes-iptables",
    ]
    # Between the creation of the domain and its own entries.
    first = next(index for index, line in enumerate(done) if "iptables" in line)
    assert done.index(attach(proxy, vm)) < first < done.index(own(vm, proxy.address)[0])
    assert dom0.read_all(proxy)["/qubes-iptables"] == b"reload"
    if length is not None:
        for key in ("/qubes-iptables-header", f"/qubes-iptables-domainrules/{vm.domid}", "/qubes-iptables-error"):
            dom0.write(proxy, key, "#" * (length - 1) + "\n")
    dom0.reattach(proxy)
    for each in (proxy, vm):
        stage.configured(each)
        stage.reaches(each)
    assert proxy.running.agent is not None
    assert "Traceback" not in proxy.running.agent.output()
    assert "not valid" not in proxy.running.agent.output()


@pytest.mark.parametrize(("reuses", "numbers"), [(True, [0, 0, 0]), (False, [0, 1, 2])])
def test_numbers_of_interfaces_are_used_again_after_a_detach(reuses: bool, numbers: list[int]) -> None:
    stage = Stage()
    stage.dom0.reuses_numbers = reuses
    vm = stage.start("vm", stage.netvm1)
    found = [vm.vif]
    for _ in range(2):
        stage.dom0.reattach(vm)
        found.append(vm.vif)
    assert found == [f"vif{vm.domid}.{number}" for number in numbers]
    stage.works(vm)
    stage.dom0.restart(vm)
    assert vm.vif == f"vif{vm.domid}.0"


# --- processes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", [Dom0.kill, Dom0.shutdown, Dom0.crash], ids=["kill", "shutdown", "crash"])
@pytest.mark.parametrize("still", [False, True], ids=["unpaused", "paused"])
def test_a_qube_that_was_paused_can_end(end: Callable[[Dom0, Vm], None], still: bool) -> None:
    stage = Stage()
    vm = stage.start("vm", stage.netvm1)
    vm.running.spawn("sleeper", "sleep", "1000")
    eventually(lambda: len(vm.running.processes()) > 2)
    stage.dom0.pause(vm)
    if not still:
        stage.dom0.unpause(vm)
        stage.reaches(vm)
    end(stage.dom0, vm)
    stage.dom0.offline_late()
    assert vm.qube is None
    stage.dom0.start(vm)
    stage.reaches(vm)


def test_processes_may_end_while_a_qube_is_paused() -> None:
    stage = Stage()
    vm = stage.start("vm", stage.netvm1)
    vm.running.spawn("forks", "sh", "-c", "while :; do for n in 1 2 3 4 5 6 7 8; do : & done; wait; done")
    for _ in range(20):
        stage.dom0.pause(vm)
        stage.dom0.unpause(vm)
    stage.reaches(vm)
