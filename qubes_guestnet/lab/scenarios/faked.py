# SPDX-License-Identifier: GPL-2.0-or-later
"""Qubes that are shown another address than they have, or have one of their user's: S-200, 201, 203, 204, 210, 211."""

from __future__ import annotations

import errno
import ipaddress
import select
import socket
import time

from .. import counters, frames, probes, world
from ..dom0 import INTERFACE, Vm
from ..namespaces import LabError
from ..stage import Stage
from ..vm import FAKE_GATEWAY, FAKE_IP, FAKE_NETMASK

_ADDRESS, _GATEWAY, _NETMASK = "192.168.1.128", "192.168.1.1", "255.255.255.0"
_ALL = {FAKE_IP: _ADDRESS, FAKE_GATEWAY: _GATEWAY, FAKE_NETMASK: _NETMASK}
_CUSTOM, _CUSTOM6 = "192.168.1.1", "2000:aaaa:bbbb::1"
_CLOSED_PORT = 9


def s_200(stage: Stage) -> None:
    """vm1 is shown another address, gateway and netmask: it reaches the world, and nothing shows the real ones."""
    stage.step("vm1 starts with a fake address, of which netvm1 hears when the vif is there already")
    vm, tap = _watched(stage, "vm1", stage.netvm1, _ALL, late=True)
    stage.works(vm)
    stage.step("its gateway answers, and refuses; routers on the way, and the world, send errors")
    _provoke(stage, vm, _GATEWAY)
    stage.step("nothing in vm1, and no frame at it, shows another address")
    _hidden(stage, vm, tap, vm.address, stage.netvm1.visible_address, world.PROVIDER)
    _shown(vm, _ADDRESS)
    _namespaces(stage.netvm1, [f"vif{vm.domid}-nat"])
    stage.step("it is attached anew, the fake address known before")
    stage.dom0.reattach(vm)
    stage.works(vm)
    _hidden(stage, vm, tap, vm.address, stage.netvm1.visible_address, world.PROVIDER)
    stage.step("it is detached, and nothing of it stays in netvm1")
    stage.dom0.detach(vm)
    _namespaces(stage.netvm1, [])


def _namespaces(netvm: Vm, expected: list[str]) -> None:
    # Behind the name stands an id when the kernel has given it one.
    found = [line.split()[0] for line in netvm.running.run("ip", "netns", "list").stdout.splitlines()]
    if found != expected:
        raise LabError(f"namespaces of {netvm.name} are {found}, expected {expected}")


def s_201(stage: Stage) -> None:
    """vm1 is shown another address, and the real gateway: it reaches the world, and sees its own address nowhere."""
    stage.step("vm1 starts with a fake address alone")
    vm, tap = _watched(stage, "vm1", stage.netvm1, {FAKE_IP: _ADDRESS})
    stage.works(vm)
    if stage.ipv6 and probes.ping(vm.running, world.HOST6, 0.2) is not None:
        raise LabError(f"vm1 reaches {world.HOST6}: by IPv6 it would be known by its real address")
    _provoke(stage, vm, stage.netvm1.visible_address)
    stage.step("nothing in vm1, and no frame at it, shows its real address")
    _hidden(stage, vm, tap, vm.address)
    _shown(vm, _ADDRESS)


def s_203(stage: Stage) -> None:
    """vm2 may reach vm1, which has a fake address: by its real one, through rules of the user in proxy and vm1."""
    stage.step("vm1 with a fake address, and vm2, start behind proxy")
    proxy = stage.proxy("proxy")
    vm1, _ = _watched(stage, "vm1", proxy, _ALL)
    vm2 = stage.start("vm2", proxy)
    for vm in (vm1, vm2):
        stage.reaches(vm)
    if probes.ping(vm2.running, vm1.address, 0.2) is not None:
        raise LabError(f"vm2 reaches {vm1.address} and must not")
    stage.step("the user lets vm2 through, in proxy and in vm1")
    ends = ("ip", "saddr", vm2.address, "ip", "daddr", vm1.address)
    proxy.running.run("nft", "add", "rule", "ip", "qubes", "custom-forward", *ends, "counter", "accept")
    vm1.running.run(
        "nft", "add", "rule", "ip", "qubes", "custom-input", "ip", "saddr", vm2.address, "counter", "accept"
    )
    if probes.ping(vm2.running, vm1.address) is None:
        raise LabError(f"vm2 does not reach {vm1.address}")
    for vm, chain in ((proxy, "custom-forward"), (vm1, "custom-input")):
        if counters.counted(vm.running, "ip", chain) != (1,):
            raise LabError(f"{chain} of {vm.name} counted {counters.counted(vm.running, 'ip', chain)}, not 1 ping")
    stage.step("vm1 still reaches vm2 by no way")
    if probes.ping(vm1.running, vm2.address, 0.2) is not None:
        raise LabError(f"vm1 reaches {vm2.address} and must not")


def s_204(stage: Stage) -> None:
    """The proxy has the fake address: it and vm1 behind it reach, and vm1's gateway is what the proxy is shown."""
    stage.step("proxy starts with a fake address")
    proxy, tap = _watched(stage, "proxy", stage.netvm1, _ALL, provides=True)
    stage.works(proxy)
    stage.step("vm1 starts behind it")
    vm = stage.start("vm1", proxy)
    stage.works(proxy, vm)
    if vm.database["/qubes-gateway"].decode() != _ADDRESS:
        raise LabError(f"vm1's gateway is {vm.database['/qubes-gateway']!r}")
    if probes.ping(vm.running, _ADDRESS) is None:
        raise LabError(f"vm1's gateway {_ADDRESS} does not answer")
    stage.step("neither of them sees the real address of proxy, or netvm1's")
    _provoke(stage, proxy, _GATEWAY)
    _provoke(stage, vm, _ADDRESS)
    _hidden(stage, proxy, tap, proxy.address, stage.netvm1.visible_address, world.PROVIDER)
    _shown(proxy, _ADDRESS)


def _watched(
    stage: Stage, name: str, netvm: Vm, features: dict[str, str], late: bool = False, provides: bool = False
) -> tuple[Vm, frames.Tap]:
    """Return a started qube with these features, and all frames it ever sees.

    Args:
        stage: where.
        name: of the qube.
        netvm: its provider.
        features: of the qube.
        late: the provider hears of a fake address only when the vif is there.
        provides: it is a proxy.
    """
    vm = stage.dom0.create(name, provides_network=provides)
    vm.features |= features
    stage.boot(vm)
    tap = frames.Tap(vm.running)
    vm.netvm = netvm
    stage.dom0.refresh_connected(netvm)
    stage.dom0.write_entries(vm)
    stage.dom0.attach(vm, late=late)
    return vm, tap


def _provoke(stage: Stage, vm: Vm, gateway: str) -> None:
    """Send packets that make routers answer with their own address, or quote the packet."""
    if probes.ping(vm.running, gateway) is None:
        raise LabError(f"{vm.name}'s gateway {gateway} does not answer")
    routers = [_expires(vm, hops) for hops in (1, 2)]
    stage.note(f"{vm.name} sees as routers: {', '.join(filter(None, routers))}")
    if gateway not in routers:
        raise LabError(f"{vm.name} sees the routers {routers}, and {gateway} is none of them")
    for address, expected in ((gateway, errno.EHOSTUNREACH), (world.HOST, errno.ECONNREFUSED)):
        refused = _refused(vm, address)
        if refused != expected:
            raise LabError(f"{vm.name}: a closed port of {address}: error {refused}, expected {expected}")
    if not probes.echo(vm.running, world.HOST, world.ECHO_PORTS[0]):
        raise LabError(f"{vm.name}: no TCP connection to {world.HOST}")


def _expires(vm: Vm, hops: int) -> str:
    """Return the router that reports an expired packet, "" for none."""
    with (
        vm.running.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as errors,
        vm.running.socket(socket.AF_INET, socket.SOCK_DGRAM) as client,
    ):
        client.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, hops)
        client.sendto(b"expires", (world.HOST, _CLOSED_PORT))
        end = time.monotonic() + 1.0
        while select.select([errors], [], [], max(0.0, end - time.monotonic()))[0]:
            packet, (sender, _) = errors.recvfrom(2048)
            if packet[(packet[0] & 15) * 4] == 11:
                return str(sender)
    return ""


def _refused(vm: Vm, address: str) -> int:
    """Return the qube's error for a datagram to a closed port; the kernel matches it only if the quote is correct."""
    with vm.running.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(0.5)
        client.connect((address, _CLOSED_PORT))
        try:
            client.send(b"closed")
            client.recv(64)
        except TimeoutError:
            return 0
        except OSError as error:
            return error.errno or 0
    return 0


def _hidden(stage: Stage, vm: Vm, tap: frames.Tap, *addresses: str) -> None:
    """None of the addresses is in a frame at the qube's interface, in QubesDB, in `ip`, or in resolv.conf."""
    # dom0 makes IPv6 addresses of the same number, and the qube may send what it was told: it gets no answer.
    seen = [frame for frame in tap.frames(INTERFACE) if not (frame.outgoing and frames.is_ipv6(frame.octets))]
    qube = vm.running
    texts = {f"`ip {what}`": qube.run("ip", *what.split()).stdout for what in _ASKED}
    texts |= {file: qube.read(file) for file in ("/etc/resolv.conf", "/etc/hosts")}
    texts |= {f"QubesDB {key}": value.decode() for key, value in stage.dom0.read_all(vm).items()}
    for address in addresses:
        packed = ipaddress.ip_address(address).packed
        found = [f.octets.hex(" ", 4) for f in seen if packed in f.octets or address.encode() in f.octets]
        found += [f"{where}: {text}" for where, text in texts.items() if address in text.replace("/", " ").split()]
        if found:
            raise LabError(f"{vm.name} can see {address} {len(found)} times, first: {found[0]}")
    stage.note(f"{vm.name}: {len(seen)} frames and {len(texts)} texts without {', '.join(addresses)}")
    visible = ipaddress.ip_address(vm.visible_address).packed
    if {frame.outgoing for frame in seen if visible in frame.octets} != {False, True}:
        raise LabError(f"{vm.visible_address} is not in frames both ways: not all were seen")


_ASKED = ("address", "route show table all", "neighbour", "-d link", "rule", "-6 route show table all")


def _shown(vm: Vm, address: str) -> None:
    """The one IPv4 address of the uplink."""
    link = next(link for link in vm.running.ip("-4", "address") if link["ifname"] == INTERFACE)
    found = [each["local"] for each in link["addr_info"]]
    if found != [address]:
        raise LabError(f"{vm.name} has {found}, expected {address}")


# --- addresses of the user's ----------------------------------------------------------------------------------------


def s_210(stage: Stage) -> None:
    """vm1 has addresses its user gave it: it reaches the world behind a proxy."""
    stage.step(f"vm1 starts behind proxy with {_CUSTOM}")
    vm = _customised(stage, "vm1", stage.proxy("proxy"))
    stage.works(vm)
    _answers(stage, vm)
    stage.step("given others while it runs, and attached anew")
    vm.custom_ip, vm.custom_ip6 = "192.168.7.7", "2000:aaaa:bbbb::7" if stage.ipv6 else None
    stage.dom0.reattach(vm)
    stage.works(vm)
    _answers(stage, vm)


def s_211(stage: Stage) -> None:
    """The proxy has addresses its user gave it: it and vm1 behind it reach the world."""
    stage.step(f"proxy starts with {_CUSTOM}")
    proxy = _customised(stage, "proxy", stage.netvm1, provides=True)
    stage.reaches(proxy)
    stage.step("vm1 starts behind it")
    vm = stage.start("vm1", proxy)
    for each in (vm, proxy):
        stage.works(each)
        _answers(stage, each)
    if vm.database["/qubes-gateway"].decode() != _CUSTOM:
        raise LabError(f"vm1's gateway is {vm.database['/qubes-gateway']!r}")


def _customised(stage: Stage, name: str, netvm: Vm, provides: bool = False) -> Vm:
    vm = stage.dom0.create(name, netvm, provides_network=provides)
    vm.custom_ip, vm.custom_ip6 = _CUSTOM, _CUSTOM6 if stage.ipv6 else None
    stage.boot(vm)
    return vm


def _answers(stage: Stage, vm: Vm) -> None:
    """Check that its gateway answers, and that the provider accepts only its addresses, each on its interface."""
    assert vm.netvm is not None
    assert vm.vif is not None
    gateways = [vm.netvm.visible_address, *([vm.netvm.gateway6] if vm.networked6 and vm.netvm.gateway6 else [])]
    for gateway in gateways:
        if probes.ping(vm.running, gateway) is None:
            raise LabError(f"{vm.name}: no answer from its gateway {gateway}")
    for family, address in (("ip", vm.address), ("ip6", vm.networked6)):
        if address is None:
            continue
        allowed = counters.elements(vm.netvm.running, family, "allowed")
        if allowed != {(vm.vif, address)}:
            raise LabError(f"{vm.netvm.name} allows {allowed}, expected {vm.vif} with {address}")
    stage.note(f"{vm.name} has {vm.address} {vm.networked6 or ''}")
