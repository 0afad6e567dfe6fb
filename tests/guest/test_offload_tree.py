# SPDX-License-Identifier: GPL-2.0-or-later
"""Offload in a tree of providers, as a Qubes OS installation begins with one."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from qubes_guestnet.lab import world
from qubes_guestnet.lab.dom0 import INTERFACE, Dom0
from qubes_guestnet.lab.probes import ping
from qubes_guestnet.lab.qube import Qube
from qubes_guestnet.lab.vm import FAKE_GATEWAY, FAKE_IP, Vm
from tests.support.eventually import eventually
from tests.support.packets.flows import TCP, UDP, Offload, flowing


class Tree(NamedTuple):
    """Qubes behind a firewall behind a net qube, and what there is of offload in the two."""

    work: Qube
    fake: Qube
    world: Qube
    firewall: Offload
    net: Offload


def offload_of(vm: Vm) -> Offload:
    offload = Offload(vm.running)
    eventually(offload.complete, 30, f"offload is on in {vm.name}")
    return offload


@pytest.fixture(scope="module")
def tree() -> Iterator[Tree]:
    dom0 = Dom0()
    net = dom0.create_provider("sys-net")
    firewall = dom0.create("sys-firewall", net, provides_network=True)
    work = dom0.create("work", firewall)
    fake = dom0.create("fake", firewall)
    fake.features |= {FAKE_IP: "192.168.1.128", FAKE_GATEWAY: "192.168.1.1"}
    dom0.start(firewall, agent=True)
    for vm in (work, fake):
        dom0.start(vm, agent=False)
        vm.running.wire(f"""
            ip link set {INTERFACE} up; ip address add {vm.visible_address}/32 dev {INTERFACE}
            ip route add default dev {INTERFACE} scope link
        """)
        eventually(lambda vm=vm: ping(vm.running, world.HOST) is not None, 20, f"{vm.name} reaches the world")
    assert net.world is not None
    yield Tree(work.running, fake.running, net.world.qube, offload_of(firewall), offload_of(net))
    for vm in dom0.vms.values():
        vm.running.kill()
    net.world.kill()


@pytest.mark.behaviour("B62")
@pytest.mark.parametrize("kind", [TCP, UDP], ids=["tcp", "udp"])
def test_each_provider_on_the_way_offloads(tree: Tree, kind: socket.SocketKind) -> None:
    with flowing(tree.work, tree.world, world.HOST, kind) as flow:
        for provider in (tree.firewall, tree.net):
            provider.takes(flow)
        assert flow.trouble == ""


@pytest.mark.behaviour("B62")
def test_a_qube_that_is_told_another_address_than_its_own(tree: Tree) -> None:
    with flowing(tree.fake, tree.world, world.HOST, TCP) as flow:
        for provider in (tree.firewall, tree.net):
            provider.takes(flow)
        assert flow.trouble == ""
