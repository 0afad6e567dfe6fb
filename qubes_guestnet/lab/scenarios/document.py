# SPDX-License-Identifier: GPL-2.0-or-later
"""What the reference document shows: S-300 (routing tables), S-301 (no open port), S-310 and S-311 (the figures)."""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from collections.abc import Callable, Iterator
from xml.etree import ElementTree

from .. import counters, diagram, frames, probes, scan, tree, world
from ..capture import is_dhcp
from ..dom0 import INTERFACE, Vm
from ..namespaces import LabError
from ..provider import BACKEND_MAC
from ..qube import Qube, eventually
from ..session import Session
from ..stage import Stage

# Of the document's table: domain, and the number that the address ends with.
_VIFS = ((4, 16), (10, 7), (9, 9), (8, 8), (3, 12))
_METRIC_BASE = 32752
_TCP_SERVERS, _UDP_SERVERS = (22, 53, 8082), (53, 67, 123)
_BROADCAST, _BROADCAST_MAC = "255.255.255.255", "ff:ff:ff:ff:ff:ff"


def s_300(stage: Stage) -> None:
    """sys-net's table is the document's: a host route a vif, one net route, one default; its qubes have one route."""
    netvm1 = stage.netvm1
    outside = netvm1.world
    assert outside is not None
    stage.step("the uplink of netvm1 is eth0, in 192.168.0.0/24")
    outside.connect(netvm1.running, INTERFACE)
    vms = []
    for domid, number in _VIFS:
        stage.step(f"a qube with vif{domid}.0 and 10.137.0.{number} starts")
        vm = stage.dom0.create(f"vm{number}")
        vm.qid = number
        stage.boot(vm)
        vm.domid = domid
        stage.dom0.set_netvm(vm, netvm1)
        vms.append(vm)
    for vm in vms:
        stage.reaches(vm)
    stage.step("the tables are those of the document")
    expected = {f"10.137.0.{number} dev vif{domid}.0 metric {_METRIC_BASE - domid}" for domid, number in _VIFS}
    expected |= {f"{world.NETWORK} dev {INTERFACE} metric 0", f"default via {world.ROUTER} dev {INTERFACE} metric 0"}
    _table(netvm1, expected)
    for vm in vms:
        _table(vm, {f"default dev {INTERFACE} metric 0"})
    stage.step("two qubes end, and theirs are no more")
    for vm in vms[:2]:
        stage.dom0.shutdown(vm)
    gone = {f"vif{domid}.0" for domid, _ in _VIFS[:2]}
    _table(netvm1, {line for line in expected if gone.isdisjoint(line.split())})


def _table(vm: Vm, expected: set[str]) -> None:
    """Check its whole IPv4 table, with the routes of all programs."""

    def seen() -> list[str]:
        found = vm.running.ip("-4", "route", "show", "table", "main")
        return [
            " ".join([route["dst"], *(["via", route["gateway"]] if "gateway" in route else [])])
            + f" dev {route['dev']} metric {route.get('metric', 0)}"
            for route in found
        ]

    with contextlib.suppress(LabError):
        eventually("the table is as expected", lambda: sorted(seen()) == sorted(expected))
        return
    raise LabError(f"{vm.name}'s IPv4 table is {sorted(seen())}, expected {sorted(expected)}")


# --- S-301 -----------------------------------------------------------------------------------------------------------


def s_301(stage: Stage) -> None:
    """Every port of a provider, by TCP and UDP: none is open, whatever listens there. No DHCP offer, no DNS answer."""
    netvm1 = stage.netvm1
    vm = stage.start("vm1", netvm1)
    stage.reaches(vm)
    stage.step("programs of netvm1 listen at all its addresses")
    with contextlib.ExitStack() as stack:
        listeners = {port: stack.enter_context(each) for port, each in _listening(netvm1.running)}
        prohibited = 0
        for address in (netvm1.visible_address, world.PROVIDER):
            for protocol, knock in (("TCP", scan.tcp), ("UDP", scan.udp)):
                stage.step(f"vm1 knocks at all {protocol} ports of {address}")
                prohibited += _all_shut(stage, vm, address, protocol, knock)
        # The kernel says so only now and then, and none of it need be in any one scan.
        if not prohibited:
            raise LabError("vm1 was never told that it may not")
        stage.step("vm1 asks for an address, and for a name")
        _no_offer(vm, netvm1.visible_address)
        with vm.running.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            if probes.query(client, netvm1.visible_address, world.NAME, 0.2):
                raise LabError(f"{netvm1.visible_address} answers names")
        for port, listener in listeners.items():
            _nothing(port, listener)
        stage.step("what the user of netvm1 opens is open, and nothing else")
        for match in (("tcp", "dport", "22"), ("udp", "dport", "53")):
            netvm1.running.run("nft", "add", "rule", "ip", "qubes", "custom-input", *match, "accept")
        found = scan.tcp(vm, netvm1.visible_address, range(1, 100))
        if found.open != (22,):
            raise LabError(f"port 22 was opened, and open is {found.open}")
        scan.udp(vm, netvm1.visible_address, range(1, 100), b"opened")
        if listeners[53].recv(64) != b"opened":
            raise LabError("UDP port 53 was opened, and something else came there")
        _nothing(123, listeners[123])


def _listening(qube: Qube) -> Iterator[tuple[int, socket.socket]]:
    """Sockets as of servers that listen everywhere; those of UDP can be asked what came."""
    for port in _TCP_SERVERS:
        server = qube.socket(socket.AF_INET, socket.SOCK_STREAM)
        server.bind(("", port))
        server.listen()
        yield -port, server
    for port in _UDP_SERVERS:
        server = qube.socket(socket.AF_INET, socket.SOCK_DGRAM)
        server.bind(("", port))
        server.settimeout(1.0)
        yield port, server


def _nothing(port: int, listener: socket.socket) -> None:
    """Check that no connection reached a server."""
    if port < 0:
        return  # a connection shows in the scan
    listener.setblocking(False)
    try:
        came = listener.recv(64)
    except BlockingIOError:
        listener.settimeout(1.0)
    else:
        raise LabError(f"to the UDP port {port} came {came!r}")


def _all_shut(stage: Stage, vm: Vm, address: str, protocol: str, knock: Callable[[Vm, str], scan.Found]) -> int:
    """No answer but that it is prohibited, how often; and each packet was refused by the rule, as it counted."""
    assert vm.netvm is not None
    before = _refused(vm.netvm)
    start = time.monotonic()
    found = knock(vm, address)
    took = time.monotonic() - start
    if found.open or found.closed or found.others:
        raise LabError(f"{protocol} ports of {address}: {found}")
    refused = _refused(vm.netvm) - before
    if refused < len(scan.PORTS):
        raise LabError(f"the rule refused {refused} of {len(scan.PORTS)} {protocol} packets to {address}")
    stage.note(f"{protocol} of {address}: {refused} packets refused in {took:.1f} s")
    return found.prohibited


def _refused(netvm: Vm) -> int:
    return counters.counted(netvm.running, "ip", "input")[-1]


def _no_offer(vm: Vm, gateway: str) -> None:
    """DHCP requests of all kinds (RFC 2131), and no answer to any of them."""
    tap = frames.Tap(vm.running)
    mac = bytes.fromhex(vm.mac.replace(":", ""))
    cookie, discover, end = b"\x63\x82\x53\x63", b"\x35\x01\x01", b"\xff"
    request = struct.pack("!BBBBI", 1, 1, 6, 0, 0x51) + bytes(20) + mac.ljust(16, b"\0") + bytes(192)
    request += cookie + discover + end
    for source, target in (("0.0.0.0", _BROADCAST), (vm.address, _BROADCAST), (vm.address, gateway)):
        packet = frames.udp(source, target, 67, request, source_port=68)
        to = _BROADCAST_MAC if target == _BROADCAST else BACKEND_MAC
        frames.send(vm.running, INTERFACE, frames.framed(packet, vm.mac, to))
    if probes.ping(vm.running, gateway) is None:  # what would be before this in the queues is here
        raise LabError(f"{gateway} does not answer")
    dhcp = [frame for frame in tap.frames(INTERFACE) if is_dhcp(frame.octets)]
    tap.close()
    if [frame.outgoing for frame in dhcp] != [True] * 3:
        raise LabError(f"of DHCP frames {len(dhcp)} were seen, and 3 were sent: {dhcp[-1:]}")


# --- S-310, S-311 ----------------------------------------------------------------------------------------------------

_SVG = "{http://www.w3.org/2000/svg}"
# What the figures show by these colours is a label here, see `diagram`.
_GREEN, _RED = "IPv4 and IPv6", "IPv4 only"


def s_310(stage: Stage) -> None:
    """The first figure: all reach the world by IPv4, all but one by IPv6, and the diagram shows it."""
    _figure(stage, "ipv6-feature", {"ipv4-only": _RED}, _GREEN)


def s_311(stage: Stage) -> None:
    """The second figure: only a tunnel qube and what hangs behind it reach the world by IPv6."""
    _figure(stage, "ipv6-tunnel", dict.fromkeys(("ipv6-tunnel", "work", "research"), _GREEN), _RED)


def _figure(stage: Stage, name: str, special: dict[str, str], usual: str) -> None:
    """Grow a tree, measure, draw; what is green has IPv4 and IPv6, what is red IPv4 alone.

    Args:
        stage: where to tell steps.
        name: of a tree that comes with the program.
        special: labels of some of its qubes.
        usual: the others'.
    """
    session = Session(tree.load(name))
    session.grow(stage.step)
    stage.step("all qubes are asked what they reach")
    found = session.status(stage.step, measure=True)
    rows = {row["name"]: row for row in found["qubes"]}
    expected = {name: special.get(name, usual) for name in rows}
    for name, row in rows.items():
        if (row["ipv4"], row["ipv6"]) != (True, expected[name] == _GREEN):
            raise LabError(f"{name} reaches the world by IPv4: {row['ipv4']}, by IPv6: {row['ipv6']}")
    stage.step("names lead there, by both families where there are both")
    leaves = [name for name, row in rows.items() if not row["provides_network"]]
    for name in leaves:
        # Only the qubes behind a tunnel see its world; the name is the same.
        for version, host in ((4, world.HOST), *(((6, world.HOST6),) if expected[name] == _GREEN else ())):
            seen = probes.resolve(session.vm(name).running, world.NAME, version)
            if seen != [host]:
                raise LabError(f"{name}: {world.NAME} is {seen}, expected {host}")
    for name in leaves:
        has6 = any(":" in address for address in rows[name]["addresses"])
        if has6 != (expected[name] == _GREEN):
            raise LabError(f"{name} has {rows[name]['addresses']}")
    stage.step("the diagram shows it")
    text = diagram.draw(name, [diagram.Node.of(row) for row in rows.values()])
    shown = _shown(text)
    wanted = {name: ("well", label) for name, label in expected.items()}
    if shown != wanted:
        raise LabError(f"the diagram shows {shown}, expected {wanted}")
    stage.note(", ".join(f"{name}: {label}" for name, label in expected.items()))


def _shown(svg: str) -> dict[str, tuple[str, str]]:
    """Return the class and label of each box by the name in it."""
    found = {}
    for group in ElementTree.fromstring(svg).iter(f"{_SVG}g"):
        texts = {text.get("class"): text.text or "" for text in group.findall(f"{_SVG}text")}
        if "name" in texts and group.get("class") != "world":
            found[texts["name"]] = group.get("class") or "", texts["says"]
    return found
