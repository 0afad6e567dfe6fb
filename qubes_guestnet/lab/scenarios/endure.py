# SPDX-License-Identifier: GPL-2.0-or-later
"""Trouble around the agent: S-401 (QubesDB in trouble), S-403 (others configure the same kernel)."""

from __future__ import annotations

import os
import select
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from ..dom0 import Vm
from ..namespaces import LabError
from ..qube import QUBESDB_FOLDER, eventually
from ..stage import Stage, difference
from .foreign import add_foreign, check_foreign, remove_hook

_OUTAGE = 2.0
_LONG_OUTAGE = 4.0
_HALF_A_HEADER = b"\x07" + bytes(20)
_VPN_DNS = "# written by the VPN\nnameserver 10.8.0.1\n"


def s_401(stage: Stage) -> None:
    """QubesDB's daemon restarts, hangs, closes in mid-answer, is gone: the agent lives and converges after."""
    stage.step("vm1 starts behind netvm1")
    vm = stage.start("vm1", stage.netvm1)
    stage.reaches(vm)
    agent = vm.running.agent
    assert agent is not None
    pid = agent.pid
    for number, (name, outage) in enumerate(_OUTAGES, start=1):
        stage.step(f"QubesDB {name}")
        said = len(agent.output())
        with outage(stage, vm):
            _stays(vm)
            vm.database["/qubes-ip"] = f"10.137.0.{100 + number}".encode()
        stage.dom0.write(vm, "/qubes-ip", vm.database["/qubes-ip"])
        stage.configured(vm, deadline=20.0)
        complaints = [line for line in agent.output()[said:].splitlines() if "the configuration stays" in line]
        if len(complaints) > 1:
            raise LabError(f"one outage, {len(complaints)} complaints: {complaints}")
        stage.note(complaints[0] if complaints else "not noticed: nothing was asked meanwhile")
    stage.step("it is the same agent, and vm1 reaches the world")
    if agent.pid != pid:
        raise LabError("the agent ended meanwhile")
    stage.dom0.write_entries(vm)
    stage.configured(vm)
    stage.reaches(vm)


def _stays(vm: Vm, seconds: float = 0.0) -> None:
    """What is configured stays, now and for some seconds."""
    end = time.monotonic() + seconds
    while True:
        if wrong := difference(vm, False):
            raise LabError(f"an outage of QubesDB changed the network: {wrong}")
        if time.monotonic() >= end:
            return
        time.sleep(0.1)


@contextmanager
def _restarts(stage: Stage, vm: Vm) -> Iterator[None]:
    vm.running.stop_store()
    yield
    stage.dom0.start_store(vm)


@contextmanager
def _is_killed(stage: Stage, vm: Vm) -> Iterator[None]:
    daemon = vm.running.store_daemon
    assert daemon is not None
    daemon.kill()
    yield
    stage.dom0.start_store(vm)


@contextmanager
def _hangs(_stage: Stage, vm: Vm) -> Iterator[None]:
    daemon = vm.running.store_daemon
    assert daemon is not None
    agent = vm.running.agent
    assert agent is not None
    daemon.signal(signal.SIGSTOP)
    try:
        agent.signal(signal.SIGHUP)  # a pass, so that there is a question to hang on
        _stays(vm, _OUTAGE)
        yield
    finally:
        daemon.signal(signal.SIGCONT)


@contextmanager
def _is_gone(stage: Stage, vm: Vm) -> Iterator[None]:
    vm.running.stop_store()
    _stays(vm, _LONG_OUTAGE)
    yield
    stage.dom0.start_store(vm)


@contextmanager
def _breaks_off(stage: Stage, vm: Vm) -> Iterator[None]:
    vm.running.stop_store()
    listeners = []
    for name in ("qubesdb.sock", "qubesdb.ro.sock"):
        path = Path(f"{vm.running.path(QUBESDB_FOLDER)}/{name}")
        path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(str(path))
        listener.listen()
        listeners.append(listener)
    child = os.fork()
    if child == 0:
        _answer_by_halves(listeners)
    try:
        _stays(vm, _OUTAGE)
        yield
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        for listener in listeners:
            listener.close()
    stage.dom0.start_store(vm)


def _answer_by_halves(listeners: list[socket.socket]) -> None:
    while True:
        for listener in select.select(listeners, [], [])[0]:
            connection, _ = listener.accept()
            connection.settimeout(0.5)
            try:
                connection.recv(4096)
                connection.sendall(_HALF_A_HEADER)
            except OSError:
                pass
            connection.close()


_OUTAGES: tuple[tuple[str, Callable[[Stage, Vm], AbstractContextManager[None]]], ...] = (
    ("restarts", _restarts),
    ("is killed and starts again", _is_killed),
    (f"hangs for {_OUTAGE:g} s", _hangs),
    (f"breaks off in the middle of answers for {_OUTAGE:g} s", _breaks_off),
    (f"is gone for {_LONG_OUTAGE:g} s", _is_gone),
)


def s_403(stage: Stage) -> None:
    """A VPN adds its own routes, addresses and DNS; a user's hook adds a route: untouched by any reconcile."""
    stage.step("vm1 starts; a VPN and a user's hook add their own")
    vm = stage.start("vm1", stage.netvm1)
    qube = vm.running
    stage.reaches(vm)
    # This is how a VPN's package keeps the file to itself.
    qube.write("/etc/qubes/protected-files.d/vpn", "/etc/resolv.conf\n")
    foreign = add_foreign(stage, vm)
    qube.write("/etc/resolv.conf", _VPN_DNS)
    stage.step("keys change: nothing foreign is touched")
    for number in (*range(100, 105), 0):
        stage.dom0.write(vm, "/qubes-ip", f"10.137.0.{number}" if number else vm.address)
        stage.dom0.write(vm, "/qubes-gateway", f"10.137.1.{number}" if number else stage.netvm1.address)
        stage.configured(vm)
        check_foreign(vm, foreign)
    stage.step("SIGHUP, apply, the agent restarts: nothing foreign is touched")
    assert qube.agent is not None
    qube.agent.signal(signal.SIGHUP)
    qube.guestnet("apply")
    if status := qube.agent.stop():
        raise LabError(f"SIGTERM ended the agent with status {status}")
    check_foreign(vm, foreign)
    qube.start_agent()
    stage.configured(vm)
    check_foreign(vm, foreign)
    stage.step("the interface goes and comes: the VPN's own stays")
    foreign = remove_hook(vm)
    stage.dom0.detach(vm)
    eventually("eth0 is gone", lambda: "eth0" not in [link["ifname"] for link in qube.ip("link")])
    check_foreign(vm, foreign)
    stage.dom0.attach(vm)
    stage.configured(vm)
    check_foreign(vm, foreign)
    if qube.read("/etc/resolv.conf") != _VPN_DNS:
        raise LabError(f"the protected resolv.conf was touched: {qube.read('/etc/resolv.conf')!r}")
