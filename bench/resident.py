# SPDX-License-Identifier: GPL-2.0-or-later
"""The real resident agent on the stage, and what can be read off it from outside."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from bench.stage import STORE_FOLDER, Failed, Stage, child_environment, command
from qubes_guestnet.lab.namespaces import MS_BIND, mount
from qubes_guestnet.system.qubesdb import store as qubesdb
from tests.support.eventually import eventually

READY_SECONDS = 20.0
EVENT_SECONDS = 10.0
MODULES_FILE = "/run/agent-modules"

# Starts the agent as bin/qubes-guestnet does; on SIGUSR2 it writes down what it has loaded.
WITH_REPORT = f"""
import signal, sys
def report(number, frame):
    with open({MODULES_FILE!r}, "w") as file:
        file.write(" ".join(sorted(sys.modules)))
loaded = set(sys.modules)
signal.signal(signal.SIGUSR2, report)
sys.argv = ["qubes-guestnet", "agent"]
from qubes_guestnet.cli.main import main
sys.exit(main())
"""

RTMGRP_IPV4_IFADDR = 0x10
NEWADDR, DELADDR = 20, 21
IFA_LOCAL = 2


@contextmanager
def agent(stage: Stage, *, reporting: bool = False) -> Iterator[subprocess.Popen[bytes]]:
    """Start the agent, wait until it says READY=1; end it with SIGTERM and expect status 0.

    Args:
        stage: its namespace is where this process is.
        reporting: it writes MODULES_FILE on SIGUSR2.

    Raises:
        Failed: it did not become ready, or did not end well.
    """
    notify_path = "/run/bench-notify"
    Path(notify_path).unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(notify_path)
        notify.settimeout(READY_SECONDS)
        words = [stage.python, "-I", "-c", WITH_REPORT] if reporting else command(stage.python, "agent")
        log_path = "/run/bench-agent.log"
        with open(log_path, "wb") as log:
            process = subprocess.Popen(
                words, env={**child_environment(), "NOTIFY_SOCKET": notify_path}, stderr=log, stdout=log
            )
        try:
            try:
                while b"READY=1" not in notify.recv(4096):
                    pass
            except TimeoutError as error:
                raise Failed(f"the agent did not become ready: {Path(log_path).read_text()}") from error
            threading.Thread(target=_drain, args=(notify,), daemon=True).start()
            yield process
            process.send_signal(signal.SIGTERM)
            status = process.wait(READY_SECONDS)
            if status:
                raise Failed(f"the agent ended with status {status}: {Path(log_path).read_text()}")
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()


def _drain(notify: socket.socket) -> None:
    """Take what the agent says, as systemd does. A queue of ten unread messages blocks its writer."""
    notify.settimeout(None)
    with suppress(OSError):
        while notify.recv(4096):
            pass


@contextmanager
def bare_interpreter(python: str) -> Iterator[subprocess.Popen[bytes]]:
    """An interpreter that has imported nothing and waits: what memory is measured against."""
    words = [python, "-I", "-c", "try: print(flush=True), input()\nexcept EOFError: pass"]
    pipe = subprocess.PIPE
    with subprocess.Popen(words, stdin=pipe, stdout=pipe, env=child_environment()) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process


class OwnCopy:
    """A copy of the interpreter's files, which no process outside this benchmark maps.

    The benchmark's own processes (itself, the lab's store) map the same interpreter, and each process that does makes
    everybody's share of it smaller, a bare interpreter's above all. In a qube they are not there.
    """

    def __init__(self) -> None:
        with open("/proc/self/maps") as maps:
            mapped = {line.split(None, 5)[5].strip() for line in maps if " r-xp " in line and "python" in line}
        folder = tempfile.mkdtemp(dir="/run")
        self._files = {
            path: f"{folder}/{number}"
            for number, path in enumerate(sorted(path for path in mapped if "/lib-dynload/" not in path))
        }
        for path, copy in self._files.items():
            shutil.copy2(path, copy)

    def use(self) -> None:
        """Let interpreters that are started from now on run from this copy."""
        for path, copy in self._files.items():
            mount(copy, path, flags=MS_BIND)


def pss_kib(pid: int) -> int:
    """Proportional set size of a process in KiB."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1])
    raise Failed(f"no Pss of process {pid}")


def descriptors(pid: int) -> int:
    """How many file descriptors a process has open."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def modules(process: subprocess.Popen[bytes]) -> list[str]:
    """What a `reporting` agent has loaded by now."""
    Path(MODULES_FILE).unlink(missing_ok=True)
    process.send_signal(signal.SIGUSR2)
    return eventually(lambda: _read(MODULES_FILE), what="the agent's list of modules").split()


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except FileNotFoundError:
        return ""


def store(stage: Stage) -> qubesdb.Store:
    """dom0's hand: a connection that may write."""
    del stage
    return qubesdb.connect(writable=True, directory=STORE_FOLDER)


class AddressEvents:
    """The kernel's announcements of IPv4 addresses in this namespace: the judge of when a qube is configured."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        self._socket.bind((0, RTMGRP_IPV4_IFADDR))
        self._socket.settimeout(EVENT_SECONDS)

    def close(self) -> None:
        """Free the socket."""
        self._socket.close()

    def changed(self, new: str, old: str) -> float:
        """Wait until `new` has been added and `old` removed; the time of that, by time.perf_counter().

        Raises:
            Failed: it did not come about within EVENT_SECONDS.
        """
        missing = {(NEWADDR, new), (DELADDR, old)}
        while missing:
            try:
                data = self._socket.recv(65536)
            except TimeoutError as error:
                raise Failed(f"still waiting for {missing}") from error
            missing -= set(_address_messages(data))
        return time.perf_counter()

    def quiet(self, seconds: float) -> None:
        """Let `seconds` pass without any announcement."""
        self._socket.settimeout(seconds)
        try:
            while True:
                self._socket.recv(65536)
        except TimeoutError:
            self._socket.settimeout(EVENT_SECONDS)


def _address_messages(data: bytes) -> Iterator[tuple[int, str]]:
    while len(data) >= 16:
        length, kind = struct.unpack_from("=IH", data)
        at = 16 + 8
        while kind in (NEWADDR, DELADDR) and at + 4 <= length:
            size, attribute = struct.unpack_from("=HH", data, at)
            if attribute == IFA_LOCAL and size == 8:
                yield kind, socket.inet_ntoa(data[at + 4 : at + 8])
            at += max(4, (size + 3) & ~3)
        data = data[(length + 3) & ~3 :] if length >= 16 else b""
