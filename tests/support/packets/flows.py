# SPDX-License-Identifier: GPL-2.0-or-later
"""Connections that go on while a test changes what is around them, and what the kernel says of their offload.

Whether packets take the short way is not asked of the mark alone: IP counts what it forwards itself, and a flowtable's
packets are not among them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import selectors
import socket
import threading
import time
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from pathlib import Path

from qubes_guestnet.lab.patience import patient
from qubes_guestnet.lab.qube import Qube
from tests.support.eventually import eventually
from tests.support.judge.oracle import Oracle
from tests.support.qubes.provider import Client, Provider

TCP, UDP = socket.SOCK_STREAM, socket.SOCK_DGRAM
TABLE = ("inet", "qubes-offload")
FLOWTABLE = "qubes"
PAUSE_S = 0.01
# Of a tick's number, in bytes: TCP may deliver them in any pieces.
WIDTH = 8
TICKS = 40
# Packets that show which way they go, and how many of others may be among them.
ENOUGH, FEW = 40, 8
_NAMES = {TCP: "tcp", UDP: "udp"}
_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
_FORWARDED, _FORWARDED6 = "ForwDatagrams", "Ip6OutForwDatagrams"


class Offload:
    """What there is of it in a provider. What can be is read from /proc: a process takes long in an emulated guest.

    Args:
        qube: the provider.
    """

    def __init__(self, qube: Qube) -> None:
        self._oracle = Oracle(("nsenter", "-t", str(qube.pid), "-n"))
        self._files = Path(f"/proc/{qube.pid}/net")

    def devices(self) -> set[str] | None:
        """Those of the flowtable; None when there is none, or no rule that uses it."""
        done = self._oracle.run("nft", "-j", "list", "table", *TABLE, check=False)
        if done.returncode:
            assert "No such file or directory" in done.stderr, done.stderr
            return None
        found = json.loads(done.stdout)["nftables"]
        tables = [entry["flowtable"] for entry in found if "flowtable" in entry]
        rules = [part for entry in found for part in entry.get("rule", {}).get("expr", ()) if "flow" in part]
        if not tables or not rules:
            return None
        (table,) = tables
        assert (table["name"], table["hook"]) == (FLOWTABLE, "ingress")
        devices = table.get("dev", [])
        return {devices} if isinstance(devices, str) else set(devices)

    def gone(self) -> bool:
        """Whether there is no such table at all."""
        return self._oracle.run("nft", "list", "table", *TABLE, check=False).returncode != 0

    def complete(self) -> bool:
        """Whether it is on, for every interface that is there but lo."""
        lines = (self._files / "dev").read_text().splitlines()[2:]
        return self.devices() == {line.partition(":")[0].strip() for line in lines} - {"lo"}

    def marked(self, flow: Flow) -> bool:
        """Whether conntrack says that a connection is offloaded now."""
        return any("[OFFLOAD]" in line for line in self.entries(flow))

    def entries(self, flow: Flow) -> list[str]:
        """What conntrack has of a connection."""
        wanted = f" sport={flow.near_port} dport={flow.port} "
        kind = f" {_NAMES[flow.kind]} "
        lines = (self._files / "nf_conntrack").read_text().splitlines()
        return [line for line in lines if line.startswith(f"ipv{flow.version} ") and kind in line and wanted in line]

    def takes(self, flow: Flow) -> None:
        """A connection is marked, and IP forwards none of its packets, but for some of others. AssertionError.

        Not at once: the flowtable is made anew whenever anything changes, and then all go the long way for a moment.
        """
        eventually(lambda: self.marked(flow), 20, "the mark", lambda: f"{flow}\n{self.entries(flow)}")

        def passes_by() -> bool:
            before, sent = self.slow(flow.version), flow.near.sent
            flow.stays(ENOUGH)
            return self.slow(flow.version) - before <= FEW < flow.near.sent - sent

        eventually(passes_by, 20, "IP forwards none of it", flow.__str__)

    def leaves(self, flow: Flow) -> None:
        """A connection goes on without: IP forwards all of its packets. AssertionError."""
        before, sent = self.slow(flow.version), flow.near.sent
        flow.stays(ENOUGH)
        sent = flow.near.sent - sent
        slow = self.slow(flow.version) - before
        assert slow >= sent - FEW, f"only {slow} packets were forwarded by IP: {flow}"

    def slow(self, version: int) -> int:
        """How many packets IP has forwarded itself so far."""
        if version == 6:
            return int(dict(line.split() for line in (self._files / "snmp6").read_text().splitlines())[_FORWARDED6])
        head, values = (line.split() for line in (self._files / "snmp").read_text().splitlines() if line[:3] == "Ip:")
        return int(values[head.index(_FORWARDED)])


class Flow:
    """A connection from a qube to the world, over which each end sends a number every 10 ms, as long as it is open.

    Args:
        near: the qube.
        far: the qube that has the target's address.
        target: an address in the world.
        kind: TCP or UDP.
        port: at the target; 0 for any.
        at: the address at which the world listens, where that is another one.
    """

    def __init__(
        self, near: Qube, far: Qube, target: str, kind: socket.SocketKind = TCP, port: int = 0, at: str = ""
    ) -> None:
        self.kind, self.version = kind, ip_address(target).version
        family = _FAMILIES[self.version]
        listener = _bound(far.socket(family, kind), at or target, port)
        self.port: int = listener.getsockname()[1]
        client = near.socket(family, kind)
        client.settimeout(patient(10))
        if kind == TCP:
            listener.listen()
        client.connect((target, self.port))
        self.near_port: int = client.getsockname()[1]
        if kind == TCP:
            server = listener.accept()[0]
            listener.close()
        else:
            client.send(bytes(WIDTH))
            listener.settimeout(patient(10))
            server = listener
            server.connect(listener.recvfrom(64)[1])
        self.near, self.far = _End(client, kind), _End(server, kind)
        self.near.other, self.far.other = self.far, self.near
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        with selectors.DefaultSelector() as selector:
            for end in (self.near, self.far):
                end.socket.setblocking(False)
                selector.register(end.socket, selectors.EVENT_READ, end)
            due = time.monotonic()
            while not self._over.is_set():
                for key, _ in selector.select(max(0.0, due - time.monotonic())):
                    if not key.data.receive():
                        selector.unregister(key.fileobj)
                if time.monotonic() >= due:
                    due = time.monotonic() + PAUSE_S
                    self.near.tick()
                    self.far.tick()

    def goes_on(self, deadline_s: float = 20.0, what: str = "") -> None:
        """Wait until something that either end sent after this moment has arrived. AssertionError when not in time."""
        sent = self.near.sent, self.far.sent
        eventually(
            lambda: self.far.arrived > sent[0] and self.near.arrived > sent[1],
            deadline_s,
            what or "it goes on",
            self.__str__,
        )

    def stays(self, ticks: int) -> None:
        """Let so many more numbers arrive at both ends."""
        wanted = self.near.arrived + ticks, self.far.arrived + ticks
        eventually(
            lambda: self.near.arrived >= wanted[0] and self.far.arrived >= wanted[1], 20, f"{ticks} more", self.__str__
        )

    def stands(self, *ends: _End, ticks: int = TICKS) -> None:
        """Nothing that is sent to these ends (both, if none is named) from now on arrives, `ticks` attempts long."""
        before = {end: end.other.tried for end in ends or (self.near, self.far)}
        sent = {end: end.other.sent for end in before}
        eventually(lambda: all(end.other.tried >= before[end] + ticks for end in before), what="attempts to send")
        for end in before:
            assert end.arrived <= sent[end], f"it still goes on: {self}"

    def cut(self, *ends: _End, deadline_s: float = 20.0) -> None:
        """Wait until nothing new arrives at these ends for 40 attempts."""

        def stood() -> bool:
            try:
                self.stands(*ends)
            except AssertionError:
                return False
            return True

        eventually(stood, deadline_s, "it is cut", self.__str__)

    def __str__(self) -> str:
        return (
            f"{_NAMES[self.kind]}{self.version} :{self.port}: out {self.far.arrived} of {self.near.sent}, "
            f"back {self.near.arrived} of {self.far.sent}, trouble {self.near.trouble or self.far.trouble or 'none'}"
        )

    @property
    def trouble(self) -> str:
        """What went wrong at either end, such as a reset; "" for nothing."""
        return self.near.trouble or self.far.trouble

    def close(self) -> None:
        """End it."""
        self._over.set()
        self._thread.join()
        self.near.socket.close()
        self.far.socket.close()


class _End:
    """One end of a flow, only used by the flow's thread but for its numbers."""

    other: _End

    def __init__(self, its_socket: socket.socket, kind: socket.SocketKind) -> None:
        self.socket, self._kind = its_socket, kind
        if kind == TCP:
            its_socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # The last number sent, and the attempts to send; the last that arrived here.
        self.sent = self.tried = self.arrived = 0
        self.trouble = ""
        self.others: list[bytes] = []  # datagrams that are no numbers
        self._rest = b""

    def tick(self) -> None:
        """Send the next number; a datagram that cannot be sent is lost, as on any cable."""
        self.sent += 1  # before: a test may ask while the number is on its way
        try:
            self.socket.send(self.sent.to_bytes(WIDTH))
        except OSError as error:
            self.sent -= 1
            if self._kind == TCP and not isinstance(error, BlockingIOError):
                self.trouble = self.trouble or str(error)
        self.tried += 1

    def receive(self) -> bool:
        """Take in what came; False at the end."""
        try:
            came = self.socket.recv(1 << 16)
        except OSError as error:
            if self._kind == UDP or isinstance(error, BlockingIOError):
                return True
            self.trouble = self.trouble or str(error)
            return False
        if not came:
            self.trouble = self.trouble or "closed by the other end"
            return False
        if self._kind == UDP and len(came) != WIDTH:
            self.others.append(came)
            return True
        data = self._rest + came
        whole = len(data) // WIDTH * WIDTH
        self._rest = data[whole:]
        if whole:
            number = int.from_bytes(data[whole - WIDTH : whole])
            assert self._kind == UDP or number == self.arrived + whole // WIDTH, "the stream is not what was sent"
            self.arrived = number
        return True


@contextlib.contextmanager
def flowing(
    near: Qube, far: Qube, target: str, kind: socket.SocketKind = TCP, port: int = 0, at: str = ""
) -> Iterator[Flow]:
    """A flow that is open while the block lasts, and goes on at its beginning."""
    flow = Flow(near, far, target, kind, port, at)
    try:
        flow.goes_on()
        yield flow
    finally:
        flow.close()


@contextlib.contextmanager
def visitor(host: Provider, number: int, *addresses: str) -> Iterator[Client]:
    """A qube that is connected while the block lasts, or until it leaves by `part`."""
    behind = host.attach(number, *addresses)
    try:
        yield behind
    finally:
        part(host, behind)


def part(host: Provider, behind: Client) -> None:
    """Disconnect a qube and end it, if it has not gone already."""
    if host.oracle.link(behind.vif) is not None:
        host.unplug(behind)
        host.offline(behind)
        behind.qube.kill()


def carry(near: Qube, far: Qube, target: str, size: int, then: Callable[[], object] = bool) -> None:
    """A TCP connection that carries random bytes out, and after `then` others in and out.

    Args:
        near: the qube.
        far: the qube that has the target's address.
        target: an address in the world.
        size: in bytes, of each of the three.
        then: what happens meanwhile.

    Raises:
        AssertionError: what arrives is not what was sent.
    """
    family = _FAMILIES[ip_address(target).version]
    with _bound(far.socket(family, TCP), target, 0) as listener, near.socket(family, TCP) as client:
        listener.listen()
        client.settimeout(patient(30))
        client.connect(listener.getsockname()[:2])
        server = listener.accept()[0]
        with server:
            server.settimeout(patient(30))
            _one_way(client, server, size)
            then()
            _one_way(server, client, size)
            _one_way(client, server, size)


def _one_way(sender: socket.socket, receiver: socket.socket, size: int) -> None:
    data = os.urandom(size)
    thread = threading.Thread(target=sender.sendall, args=(data,), daemon=True)
    thread.start()
    seen, left = hashlib.sha256(), size
    while left:
        came = receiver.recv(1 << 16)
        assert came, f"it ended {left} bytes too early"
        seen.update(came)
        left -= len(came)
    thread.join()
    assert seen.digest() == hashlib.sha256(data).digest(), "other bytes than were sent"


def _bound(made: socket.socket, address: str, port: int) -> socket.socket:
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind((address, port))
    return made
