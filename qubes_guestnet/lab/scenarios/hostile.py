# SPDX-License-Identifier: GPL-2.0-or-later
"""A qube that wants to harm its neighbours and its provider: S-420."""

from __future__ import annotations

import contextlib
import ipaddress
import struct
import time
from collections.abc import Iterator

from .. import frames, world
from ..dom0 import INTERFACE, Vm
from ..flood import Flood
from ..namespaces import LabError
from ..provider import VIRTUAL_DNS
from ..stage import Stage
from .isolation import Watch

_ARP, _VLAN, _LLDP = 0x0806, 0x8100, 0x88CC
_REDIRECT, _SOLICIT, _ADVERT, _ROUTER = 137, 135, 136, 134
_ERRORS = {4: ((3, 0), (3, 3), (3, 4), (3, 13), (11, 0), (12, 0), (5, 1)), 6: ((1, 1), (1, 4), (2, 0), (3, 0), (4, 0))}
_LEAST = 300
_PORT, _CLIENT, _SERVER = 9, 33333, 1234
# So many at once, then a pause: else the machine's own queues would be full, and not the provider's tables.
_AT_ONCE, _PAUSE = 200, 0.005


def s_420(stage: Stage) -> None:
    """A hostile qube among four: forged frames of every kind, floods, errors, ARP and NDP. The others lose nothing."""
    netvm1 = stage.netvm1
    stage.step("four qubes start behind netvm1")
    evil = stage.start("evil", netvm1)
    others = [stage.start(name, netvm1) for name in ("vm1", "vm2", "vm3")]
    stage.works(evil, *others)
    for number, vm in enumerate(others):
        _open(stage, vm, _CLIENT + number)
    known = _entries(netvm1)
    flows = [Flood(vm.running, world.HOST) for vm in others]
    try:
        with contextlib.closing(Watch(stage, tuple(others))) as watch:
            forged = list(_forged(stage, evil, others, watch.mark))
            stage.step(f"evil sends {len(forged)} forged frames")
            if len(forged) < _LEAST:
                raise LabError(f"only {len(forged)} frames")
            frames.send(evil.running, INTERFACE, *forged)
            watch.last(evil)
            if watch.strays():
                raise LabError(f"what evil forged came to {watch.strays()}")
        stage.step("evil asks for names from every port, and opens connections to nothing")
        _flood(evil, [frames.udp(evil.address, VIRTUAL_DNS[0], 53, b"", port) for port in range(1, 65536)])
        stage.works(*others)
        for vm in others:
            stage.reaches(vm)
        _flood(evil, [frames.udp(evil.address, world.HOST, port, b"") for port in range(10000, 30000)])
        _flood(evil, [frames.syn(evil.address, world.HOST, port) for port in range(10000, 20000)])
        if stage.ipv6:
            _flood(evil, [frames.udp(_address6(evil), world.HOST6, port, b"") for port in range(10000, 30000)])
        stage.works(*others)
    finally:
        ended = [flow.stop() for flow in flows]
    for vm, flow in zip(others, ended, strict=True):
        stage.note(f"{vm.name}: {flow.answered} of {flow.sent} pings answered, {flow.gap:.3f} s at most without one")
        if flow.answered != flow.sent:
            raise LabError(f"{vm.name} lost {flow.sent - flow.answered} of {flow.sent} pings")
    strange = _entries(netvm1) - known
    if strange:
        raise LabError(f"netvm1 has neighbours that evil made up: {sorted(strange)[:5]}")


def _open(stage: Stage, vm: Vm, port: int) -> None:
    """A connection of this qube that errors can be about; its translated port is the same."""
    packets = [frames.udp(vm.address, world.HOST, _SERVER, b"mine", port)]
    if stage.ipv6:
        packets.append(frames.udp(_address6(vm), world.HOST6, _SERVER, b"mine", port))
    frames.send(vm.running, INTERFACE, *(frames.framed(packet, vm.mac) for packet in packets))


def _address6(vm: Vm) -> str:
    if vm.networked6 is None:
        raise LabError(f"{vm.name} has no IPv6")
    return vm.networked6


def _entries(netvm: Vm) -> set[str]:
    """Return the neighbours on vifs, with their interface."""
    entries = [entry for family in ("-4", "-6") for entry in netvm.running.ip(family, "neighbour")]
    return {f"{entry['dst']} {entry['dev']}" for entry in entries if entry["dev"].startswith("vif")}


def _flood(evil: Vm, packets: list[bytes]) -> None:
    for first in range(0, len(packets), _AT_ONCE):
        chunk = packets[first : first + _AT_ONCE]
        frames.send(evil.running, INTERFACE, *(frames.framed(packet, evil.mac) for packet in chunk))
        time.sleep(_PAUSE)


def _forged(stage: Stage, evil: Vm, others: list[Vm], mark: bytes) -> Iterator[bytes]:
    """Yield forged packets with the mark; none of them may be delivered."""
    netvm1, mac = stage.netvm1, evil.mac
    gateway, outside = netvm1.visible_address, world.PROVIDER
    strangers = [*(vm.address for vm in others), gateway, outside, world.HOST, VIRTUAL_DNS[0], "127.0.0.1", "0.0.0.0",
                 "255.255.255.255", "224.0.0.1", "10.137.77.77"]  # fmt: skip
    targets = [*(vm.address for vm in others), gateway, world.HOST]
    for source in strangers:
        for target in targets:
            yield frames.framed(frames.udp(source, target, _PORT, mark), mac)
        yield from _arp(source, mac, targets, mark)
    yield from _errors(4, evil.address, [*(vm.address for vm in others), outside], mac, mark)
    for target in targets[:-1]:  # its own address, which it may not reach
        yield frames.framed(frames.udp(evil.address, target, _PORT, mark), mac)
    for kind in (_VLAN, _LLDP, 0x88A8, 0x8863, 0x8864, 0x888E, 0x0842, 0x86DE):
        for peer in (others[0].mac, "ff:ff:ff:ff:ff:ff", "01:80:c2:00:00:0e"):
            yield _ethernet(peer, mac, kind, mark + bytes(46))
    if stage.ipv6 and netvm1.gateway6 is not None:
        yield from _forged6(netvm1.gateway6, _address6(evil), [_address6(vm) for vm in others], mac, mark)


def _forged6(gateway: str, own: str, others: list[str], mac: str, mark: bytes) -> Iterator[bytes]:
    targets = [*others, gateway, world.HOST6, "ff02::1", "ff02::2"]
    for source in (*others, gateway, world.HOST6, "::", "::1", "fe80::1", "fd09:24ef:4179::dead"):
        for target in targets:
            yield frames.framed(frames.udp(source, target, _PORT, mark), mac)
            for kind in (_ROUTER, _SOLICIT, _ADVERT, _REDIRECT):
                about = ipaddress.ip_address(source).packed
                yield frames.framed(frames.icmp(source, target, kind, 0, 0x20000000, about + mark), mac)
    yield from _errors(6, own, [*others, world.PROVIDER6], mac, mark)


def _errors(version: int, own: str, about: list[str], mac: str, mark: bytes) -> Iterator[bytes]:
    """Errors about connections of others, as they were sent and as they are answered, to both ends."""
    host = world.HOST if version == 4 else world.HOST6
    for address in about:
        ports = range(_CLIENT, _CLIENT + len(about) - 1)  # the last one is the provider, for them all
        quoted = [frames.udp(address, host, _SERVER, mark, port) for port in ports]
        quoted += [frames.udp(host, address, port, mark, _SERVER) for port in ports]
        for packet in quoted:
            for kind, code in _ERRORS[version]:
                for target in (address, host):
                    yield frames.framed(frames.icmp(own, target, kind, code, 1300, packet), mac)


def _arp(source: str, mac: str, targets: list[str], mark: bytes) -> Iterator[bytes]:
    """Asks and answers in the name of another one."""
    sender = bytes.fromhex(mac.replace(":", "")) + ipaddress.ip_address(source).packed
    for target in targets:
        for operation in (1, 2):
            body = struct.pack("!HHBBH", 1, 0x0800, 6, 4, operation) + sender
            body += bytes(6) + ipaddress.ip_address(target).packed + mark
            yield _ethernet("ff:ff:ff:ff:ff:ff", mac, _ARP, body)


def _ethernet(peer: str, mac: str, kind: int, body: bytes) -> bytes:
    ends = b"".join(bytes.fromhex(address.replace(":", "")) for address in (peer, mac))
    return ends + struct.pack("!H", kind) + body
