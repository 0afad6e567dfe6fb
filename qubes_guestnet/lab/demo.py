# SPDX-License-Identifier: GPL-2.0-or-later
"""`lab demo`: one qube gets its network from QubesDB, changes it live, loses and regains it; every claim is measured.

`_play` runs inside the namespaces and tells steps, notes and facts; `main` outside shows them. The demo ends at the
first step that does not hold, with status 1.
"""

from __future__ import annotations

import errno
import importlib.util
import json
import signal
import socket
import statistics
import time
from collections.abc import Callable
from typing import Any

from . import counters, firewall_rules, probes, world
from .capture import Capture, Frames
from .dom0 import INTERFACE, Vm
from .ground import require
from .namespaces import LabError
from .progress import Display, Teller, follow
from .qube import eventually
from .stage import Stage, addresses, interface_of, nameservers, routes

_CHANGES = 10
_MILLI = 1000.0
_DEADLINE = 5.0
_QUIET = 0.15
_STOLEN = "10.137.0.66"
_OF_A_PROVIDER = ("provider:", "virtual DNS:", "vif")


def _play(teller: Teller) -> None:
    teller.step("a world, a provider and a qube, in namespaces")
    stage = Stage(ipv6=True, teller=teller)
    netvm2 = stage.provider("netvm2", ipv6=False)
    captures = [Capture(provider.running) for provider in (stage.netvm1, netvm2)]
    vm = stage.dom0.create("vm1", stage.netvm1)
    teller.note("world ── netvm1 (IPv4, IPv6) ── vm1        world ── netvm2 (IPv4)")
    _entries(stage, vm)
    _plan(stage, vm)
    _agent(stage, vm)
    _packets(stage, vm)
    _provider(stage, vm)
    if importlib.util.find_spec("dns") is not None:  # dnspython, of the extra `names`
        _firewall(stage, vm)
    _live_change(stage, vm)
    _lost_and_regained(stage, vm)
    _provider_change(stage, vm, netvm2)
    _no_dhcp(stage, [capture.stop() for capture in captures])


def _fact(stage: Stage, name: str, text: str, **measured: Any) -> None:
    """A row of the closing table, and what goes into the JSON beside it."""
    stage.teller.tell(fact=name, text=text, measured=measured)


def _entries(stage: Stage, vm: Vm) -> None:
    stage.step("dom0 writes its entries into QubesDB and plugs eth0 in")
    stage.dom0.start(vm)
    entries = vm.entries()
    stage.note("\n".join(f"{key:21} = {value}" for key, value in entries.items()))
    _fact(stage, "entries", f"{len(entries)} keys written by dom0, for {entries['/qubes-mac']}", entries=entries)


def _plan(stage: Stage, vm: Vm) -> None:
    stage.step("`qubes-guestnet plan` prints the pending operations")
    lines = vm.running.guestnet("plan").stdout.splitlines()
    if not lines or network_there(vm):
        raise LabError(f"a plan changes nothing and is not empty here: {lines}, {network_there(vm)}")
    stage.note("\n".join(lines))
    _fact(stage, "plan", f"{len(lines)} operations", plan=lines)


def network_there(vm: Vm) -> list[str]:
    """Return addresses of its interface, without link-local ones."""
    link = interface_of(vm.running, vm.mac)
    return addresses(link) if link else []


def _agent(stage: Stage, vm: Vm) -> None:
    stage.step("the agent starts, and carries out these operations")
    start = time.monotonic()
    vm.running.start_agent()
    ready = time.monotonic() - start
    stage.configured(vm)
    found = network_there(vm)
    table = [_route(route) for route in routes(vm.running, 4)]
    table6 = [_route(route) for route in routes(vm.running, 6) if route["dst"] == "default"]
    servers = nameservers(vm.running)
    stage.note("\n".join([*(f"address {one}" for one in found), *(f"route {one}" for one in table + table6)]))
    stage.note("\n".join(vm.running.read("/etc/resolv.conf").splitlines()))
    _fact(stage, "agent ready", f"{ready * _MILLI:.0f} ms after its start", ready_ms=ready * _MILLI)
    _fact(stage, "addresses", " ".join(found), addresses=found)
    _fact(stage, "default route", " and ".join(table), routes=table + table6)
    _fact(stage, "resolv.conf", " ".join(servers), nameservers=servers)


def _route(route: dict[str, Any]) -> str:
    words = [route["dst"], *(["via", route["gateway"]] if "gateway" in route else []), "dev", route["dev"]]
    if route.get("scope", "global") != "global":
        words += ["scope", route["scope"]]
    return " ".join([*words, *route.get("flags", ())])


def _packets(stage: Stage, vm: Vm) -> None:
    stage.step("a name is resolved and an address reached, with real packets")
    stage.reaches(vm)
    found = probes.resolve(vm.running, world.NAME, 4) + probes.resolve(vm.running, world.NAME, 6)
    trips = {address: probes.ping(vm.running, address) for address in found}
    if None in trips.values() or not probes.echo(vm.running, world.HOST, world.ECHO_PORTS[0]):
        raise LabError(f"round trips: {trips}")
    took = [f"{address} in {(trip or 0) * _MILLI:.2f} ms" for address, trip in trips.items()]
    stage.note("\n".join(f"{world.NAME} = {line}" for line in took))
    _fact(stage, "name", f"{world.NAME} = {' '.join(found)}", resolved=found)
    _fact(stage, "reached", ", ".join(took), round_trip_ms={a: (trip or 0) * _MILLI for a, trip in trips.items()})


def _provider(stage: Stage, vm: Vm) -> None:
    stage.step("its provider runs the same program, and drops spoofed packets")
    provider = stage.netvm1.running
    lines = [line for line in provider.guestnet("status").stdout.splitlines() if line.startswith(_OF_A_PROVIDER)]
    if not any(", configured" in line for line in lines):  # what follows counts connections without an answer (B112)
        raise LabError(f"status of the provider: {lines}")
    stage.note("\n".join(lines))
    (before,) = counters.counted(provider, "ip", "antispoof")
    vm.running.run("ip", "address", "add", f"{_STOLEN}/32", "dev", INTERFACE)
    # The qube's own base rules would translate the address (every agent keeps them, B140); a hostile one would not.
    chain = "add table ip demo; add chain ip demo output { type filter hook output priority raw; }"
    vm.running.run("nft", f"{chain}; add rule ip demo output ip saddr {_STOLEN} notrack")
    ping = vm.running.run("ping", "-c", "3", "-i", "0.05", "-W", "0.2", "-I", _STOLEN, world.HOST, check=False)
    vm.running.run("nft", "delete table ip demo")
    vm.running.run("ip", "address", "del", f"{_STOLEN}/32", "dev", INTERFACE)
    (after,) = counters.counted(provider, "ip", "antispoof")
    if ping.returncode != 1 or after - before != 3:
        raise LabError(f"{after - before} of 3 packets from {_STOLEN} were dropped: {ping.stdout}{ping.stderr}")
    text = f"{after - before} of 3 packets from {_STOLEN}, which is not {vm.name}'s, dropped"
    stage.note(text)
    _fact(stage, "spoofed", text, spoofed_dropped=after - before)


def _firewall(stage: Stage, vm: Vm) -> None:
    stage.step("dom0 lets vm1 reach only one port of a name (qvm-firewall)")
    netvm1, outside = stage.netvm1, stage.netvm1.world
    assert outside is not None
    port, other = map(str, world.ECHO_PORTS)
    words = (("accept", "specialtarget=dns"), ("accept", world.NAME, "tcp", port))
    stage.dom0.set_firewall(vm, tuple(firewall_rules.from_words(each, 0.0) for each in words))
    refused = eventually(f"port {other} is refused", lambda: _refused(vm, world.HOST), _DEADLINE)
    eventually(f"port {port} is reached", lambda: probes.echo(vm.running, world.HOST, world.ECHO_PORTS[0]), _DEADLINE)
    text = f"{world.NAME} port {port} reached, port {other} refused in {refused * _MILLI:.1f} ms"
    stage.note(text)
    _fact(stage, "firewall", text, refused_ms=refused * _MILLI)
    stage.step("`firewall test` in netvm1 explains the refusal")
    done = netvm1.running.guestnet("firewall", "test", vm.address, world.NAME, "tcp", other, check=False)
    lines = done.stdout.splitlines()
    if done.returncode != 3 or not any(line.startswith("REFUSED") for line in lines):
        raise LabError(f"firewall test: {done.returncode} {done.stdout}{done.stderr}")
    stage.note("\n".join(lines[: lines.index("") if "" in lines else None]))
    stage.step("the name moves to another address, and the rules follow")
    outside.say({world.NAME: (world.HOST2, world.HOST2_6)})
    start = time.monotonic()
    assert netvm1.running.agent is not None
    netvm1.running.agent.signal(signal.SIGHUP)  # without `systemctl reload` when its time to live is over
    eventually(
        "the new address is reached", lambda: probes.echo(vm.running, world.HOST2, world.ECHO_PORTS[0]), _DEADLINE
    )
    took = (time.monotonic() - start) * _MILLI
    text = f"{world.NAME} = {world.HOST2}: reached {took:.0f} ms after the look-up was asked for"
    stage.note(text)
    _fact(stage, "name moved", text, name_moved_ms=took)
    outside.say(world.ADDRESSES)
    stage.dom0.set_firewall(vm, firewall_rules.ACCEPT_ALL)
    stage.reaches(vm)


def _refused(vm: Vm, host: str) -> float:
    """Return how long a refused connection took, in seconds; 0 for one that was not refused."""
    start = time.monotonic()
    with vm.running.socket(socket.AF_INET, socket.SOCK_STREAM) as client:
        client.settimeout(1.0)
        try:
            client.connect((host, world.ECHO_PORTS[1]))
        except OSError as error:
            return time.monotonic() - start if error.errno == errno.EHOSTUNREACH else 0.0
    return 0.0


def _live_change(stage: Stage, vm: Vm) -> None:
    stage.step(f"dom0 changes the address {_CHANGES} times, a watch wakes the agent")
    events = probes.KernelEvents(vm.running)
    took = []
    for number in range(_CHANGES):
        address = f"10.137.0.{200 + number}" if number < _CHANGES - 1 else vm.address
        start = time.monotonic()
        stage.dom0.write(vm, "/qubes-ip", address)
        seen = events.wait_for_address(address, _DEADLINE)
        if seen is None:
            raise LabError(f"{address} was not configured within {_DEADLINE:g} s")
        took.append((seen - start) * _MILLI)
        stage.configured(vm)
        # Changes that follow each other closely are gathered; a person in dom0 is slower than that.
        time.sleep(_QUIET)
    events.close()
    stage.reaches(vm)
    median = statistics.median(took)
    text = f"{median:.1f} ms from dom0's write to the kernel's event (median of {_CHANGES})"
    stage.note(f"{text}; {min(took):.1f} to {max(took):.1f} ms")
    _fact(stage, "live change", text, change_ms=took, median_ms=median)


def _lost_and_regained(stage: Stage, vm: Vm) -> None:
    stage.step("eth0 is unplugged: its configuration is gone, though every key is still set")
    stage.dom0.detach(vm)
    stage.reaches_nothing(vm)
    kept = [key for key in stage.dom0.read_all(vm) if key in vm.entries()]
    if len(kept) != len(vm.entries()):
        raise LabError(f"only these entries are there still: {kept}")
    _fact(stage, "eth0 lost", f"no address, no route, no answer; {len(kept)} keys still there")
    stage.step("eth0 is plugged in again")
    took = _attached(stage, vm, lambda: stage.dom0.attach(vm))
    stage.note(f"its address was configured {took:.1f} ms after dom0 began to plug it in")
    _fact(stage, "eth0 regained", f"configured {took:.0f} ms after dom0 began, reaches the world", regained_ms=took)


def _attached(stage: Stage, vm: Vm, attach: Callable[[], None]) -> float:
    """Attach, check all, and return the ms from dom0's order, its own work included, to the address's being there."""
    events = probes.KernelEvents(vm.running)
    start = time.monotonic()
    attach()
    seen = events.wait_for_address(vm.address, _DEADLINE)
    events.close()
    if seen is None:
        raise LabError(f"{vm.address} was not configured within {_DEADLINE:g} s")
    stage.configured(vm)
    stage.reaches(vm)
    return (seen - start) * _MILLI


def _provider_change(stage: Stage, vm: Vm, netvm2: Vm) -> None:
    stage.step("another provider, without IPv6; the IPv6 keys of the former one stay")
    took = _attached(stage, vm, lambda: stage.dom0.set_netvm(vm, netvm2))
    stale = sorted(set(stage.dom0.read_all(vm)) & {"/qubes-ip6", "/qubes-gateway6"})
    if len(stale) != 2:
        raise LabError(f"the IPv6 keys should be there still: {stale}")
    old = [route for route in routes(vm.running, 4) if route.get("gateway") == stage.netvm1.address]
    if old:
        raise LabError(f"routes by the former provider: {old}")
    stage.note(f"stale: {' '.join(stale)}")
    text = f"reaches through netvm2 ({vm.vif}), {len(stale)} stale IPv6 keys in place"
    _fact(stage, "provider change", text, provider_change_ms=took, stale=stale)


def _no_dhcp(stage: Stage, seen: list[Frames]) -> None:
    stage.step("no DHCP packet was on the wire")
    total = Frames(*map(sum, zip(*seen, strict=True)))
    stage.note(f"captured on every vif: {total.all} frames, {total.arp} ARP, {total.ipv4} IPv4, {total.ipv6} IPv6")
    if total.dhcp or total.lost or not all(frames.all for frames in seen):
        raise LabError(f"{total.dhcp} DHCP packets, {total.lost} frames lost, {total.all} frames seen")
    _fact(stage, "DHCP", f"none among {total.all} frames captured on the vifs", frames=total._asdict())


def main(as_json: bool = False) -> int:
    """Show the demo; 0 when every step held.

    Args:
        as_json: print only the closing table, as JSON.
    """
    require()
    display = Display()
    began = time.monotonic()
    result = _Result(display, quiet=as_json)
    for event in follow(_told):
        result.take(event)
    result.finish(time.monotonic() - began)
    if as_json:
        print(json.dumps(result.as_json(), indent=2))
    return 0 if result.held else 1


def _told(teller: Teller) -> None:
    try:
        _play(teller)
    except Exception as problem:
        teller.tell(error=str(problem) if isinstance(problem, LabError) else f"{type(problem).__name__}: {problem}")
        raise SystemExit(1) from None


class _Result:
    """What was told, shown as it comes unless `quiet`."""

    def __init__(self, display: Display, quiet: bool) -> None:
        self._display = display
        self._quiet = quiet
        self._facts: list[tuple[str, str]] = []
        self._measured: dict[str, Any] = {}
        self._steps: list[str] = []
        self._error = ""
        self._status = 1
        self._seconds = 0.0
        if not quiet:
            display.line(display.paint("qubes-guestnet", "bold") + ": one qube online. No root, no Xen, no DHCP.\n")

    @property
    def held(self) -> bool:
        """Whether every step did."""
        return self._status == 0 and not self._error

    def take(self, event: dict[str, Any] | None) -> None:
        """One event of the demo; None: time goes by."""
        shown = not self._quiet
        if event is None:
            if shown:
                self._display.tick()
        elif "step" in event:
            self._steps.append(event["step"])
            if shown:
                self._display.end(held=True)
                self._display.begin(event["step"])
        elif "note" in event:
            if shown:
                self._display.note(event["note"])
        elif "fact" in event:
            self._facts.append((event["fact"], event["text"]))
            self._measured |= event["measured"]
        elif "error" in event:
            self._error = event["error"]
        else:
            self._status = event["status"]

    def finish(self, seconds: float) -> None:
        """The closing table."""
        self._seconds = seconds
        if self._status and not self._error:
            self._error = f"ended with status {self._status}"
        if self._quiet:
            return
        self._display.end(self.held)
        if self._error:
            self._display.detail(self._error, "red")
        self._display.line()
        self._display.table(("what", "measured"), self._facts)
        self._display.line()
        verdict = (
            "every step succeeded" if self.held else f"FAILED at: {self._steps[-1] if self._steps else 'the start'}"
        )
        self._display.line(f" {self._display.paint(verdict, 'bold')}, {len(self._steps)} steps in {seconds:.1f} s")

    def as_json(self) -> dict[str, Any]:
        """Return the closing table for programs."""
        return {
            "held": self.held,
            "seconds": round(self._seconds, 3),
            "steps": self._steps,
            "table": dict(self._facts),
            "measured": self._measured,
            "error": self._error,
        }
