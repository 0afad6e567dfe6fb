# SPDX-License-Identifier: GPL-2.0-or-later
"""A qube: its own network, mounts, processes and host name, in which the real agent runs unmodified.

Everything is done to it from the lab's process: files through /proc/PID/root, commands through nsenter, packets by
sockets made in its network. Its QubesDB daemon serves its /run/qubes but is no process *of* the qube: pausing a qube
must not stop dom0 from writing, as it does not on Xen.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from . import init, tools
from .namespaces import LabError, needed_paths, socket_in, work_folder
from .patience import patient

QUBESDB_FOLDER = "/run/qubes"
FLAGS_FOLDER = "/run/qubes-service"
_FIRST_PAUSE, _LONGEST_PAUSE = 0.002, 0.03
_STOPPED = "T"
T = TypeVar("T")
# Python warns about a running process without a reference; the kernel ends them all with the lab.
_started: list[subprocess.Popen[bytes]] = []


def eventually(what: str, probe: Callable[[], T], deadline: float = 10.0) -> T:
    """Call `probe` until it gives something true, and return that.

    Args:
        what: for the error: what was waited for.
        deadline: seconds after which to give up, on real hardware (see patience).

    Raises:
        LabError: not in time; with what the last probe gave.
    """
    deadline = patient(deadline)
    end = time.monotonic() + deadline
    pause = _FIRST_PAUSE
    while True:
        outcome = probe()
        if outcome:
            return outcome
        if time.monotonic() >= end:
            raise LabError(f"timeout after {deadline:g} s: {what} (last result: {outcome!r})")
        time.sleep(pause)
        pause = min(pause * 1.2, _LONGEST_PAUSE)


class Service:
    """A process in a qube that goes on until it is stopped; its output goes to a log file of the lab."""

    def __init__(self, name: str, log: Path, process: subprocess.Popen[bytes], own_processes: bool) -> None:
        self.name = name
        self.log = log
        self._nsenter = process
        self._own_processes = own_processes

    @property
    def pid(self) -> int:
        """Process id, as the lab sees it, of the program itself; LabError when it has ended.

        For a process namespace nsenter has to fork and stays as the program's parent, else it becomes the program.
        """

        def child() -> int:
            if self._nsenter.poll() is not None:
                raise LabError(f"{self.name} has ended with {self._nsenter.returncode}", f"its log: {self.tail()}")
            if not self._own_processes:
                return self._nsenter.pid
            children = Path(f"/proc/{self._nsenter.pid}/task/{self._nsenter.pid}/children").read_text().split()
            return int(children[0]) if children else 0

        return eventually(f"{self.name} has started", child)

    @property
    def running(self) -> bool:
        """Whether it has not ended yet."""
        return self._nsenter.poll() is None

    def signal(self, number: int) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)

    def wait(self, deadline: float = 5.0) -> int:
        """Wait for its end; its exit status, negative for a signal. LabError when it goes on."""

        def ended() -> bool:
            if self._nsenter.poll() is None and self._own_processes:
                # nsenter stops itself when its child is stopped, and would not notice the child's end.
                self._nsenter.send_signal(signal.SIGCONT)
            return self._nsenter.poll() is not None

        try:
            eventually(f"{self.name} has ended", ended, deadline)
        except LabError as error:
            raise LabError(error.problem, f"its log: {self.tail()}") from None
        return int(self._nsenter.returncode)

    def stop(self, deadline: float = 5.0) -> int:
        """SIGTERM, and wait; its exit status. A service that has ended already is fine."""
        return self._end(signal.SIGTERM, deadline)

    def kill(self) -> int:
        """SIGKILL, and wait; its exit status (-9)."""
        return self._end(signal.SIGKILL, 5.0)

    def _end(self, number: int, deadline: float) -> int:
        if self.running:
            with contextlib.suppress(LabError, ProcessLookupError):
                self.signal(number)
        return self.wait(deadline)

    def output(self) -> str:
        """Return all it has said so far."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def tail(self, length: int = 600) -> str:
        """Return the end of what it has said, for an error message."""
        return self.output()[-length:].strip() or "(empty)"


class Qube:
    """One qube; made inside `isolate()` only.

    Args:
        name: host name, and name of its folder in the lab's work folder.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.folder = Path(work_folder()) / name
        (self.folder / "root").mkdir(parents=True, exist_ok=True)  # a killed one may come again
        self._services: list[Service] = []
        self.pid = init.start(name, str(self.folder / "root"), work_folder())
        self.agent: Service | None = None
        self.store_daemon: Service | None = None
        self.paused = False

    # --- files -------------------------------------------------------------------------------------------------

    def path(self, inside: str) -> Path:
        """Return where the lab finds a file of the qube. An absolute symbolic link on the way would lead out of it."""
        return Path(f"/proc/{self.pid}/root{inside}")

    def read(self, inside: str) -> str:
        """Return the text of a file; "" when there is none."""
        try:
            return self.path(inside).read_text(errors="replace")
        except FileNotFoundError:
            return ""

    def write(self, inside: str, text: str) -> None:
        """Write a file, making its folders."""
        file = self.path(inside)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def set_flag(self, flag: str, on: bool = True) -> None:
        """Switch a qvm-service flag: a file in /run/qubes-service."""
        file = self.path(f"{FLAGS_FOLDER}/{flag}")
        if on:
            file.touch()
        else:
            file.unlink(missing_ok=True)

    # --- commands ----------------------------------------------------------------------------------------------

    def _command(self, arguments: Sequence[str], own_processes: bool = True) -> list[str]:
        namespaces = ["--net", "--mount", "--uts", "--ipc", *(["--pid"] if own_processes else [])]
        return ["nsenter", "--target", str(self.pid), *namespaces, "--", *arguments]

    def _environment(self, extra: Mapping[str, str] | None) -> dict[str, str]:
        # PYTHONPATH and coverage settings of the caller go along, so that the qube runs the very same code.
        kept = {key: os.environ[key] for key in os.environ if key.startswith(("PYTHON", "COVERAGE", "LC_"))}
        kept["PYTHONPATH"] = ":".join((needed_paths()[0], kept.get("PYTHONPATH", ""))).rstrip(":")
        return {"PATH": tools.PATH, "HOME": "/rw", **kept, **(extra or {})}

    def run(
        self, *arguments: str, check: bool = True, timeout: float = 10.0, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in the qube to its end.

        Raises:
            LabError: it took longer than `timeout` seconds (on real hardware), or (with `check`) failed.
        """
        timeout = patient(timeout)
        environment = self._environment(env)
        words = " ".join(arguments)
        try:
            done = subprocess.run(
                self._command(arguments), env=environment, timeout=timeout, capture_output=True, text=True,
                errors="replace", stdin=subprocess.DEVNULL, check=False, start_new_session=True,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise LabError(f"{self.name}: `{words}` did not end within {timeout:g} s") from None
        if check and done.returncode != 0:
            raise LabError(f"{self.name}: `{words}` failed with {done.returncode}: {done.stderr.strip()}")
        return done

    def begin(
        self, *arguments: str, descriptors: Sequence[int], env: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Start a command in the qube and return at once; its standard input, output and error are given."""
        stdin, stdout, stderr = descriptors
        return subprocess.Popen(
            self._command(arguments), env=self._environment(env), stdin=stdin, stdout=stdout, stderr=stderr,
            start_new_session=True,
        )  # fmt: skip

    def wire(self, script: str) -> None:
        """Run shell commands in the qube's network only, from outside: what the hypervisor or a physical cable does.

        `ip … netns PID` and /proc are the lab's here, so interfaces can be moved to other qubes. LabError on failure.
        """
        command = ["nsenter", "--target", str(self.pid), "--net", "--", "sh", "-ec", script]
        done = subprocess.run(
            command, env=self._environment(None), capture_output=True, text=True, check=False, timeout=patient(10.0),
            stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        if done.returncode != 0:
            raise LabError(f"{self.name}: {done.stderr.strip() or 'failed'} in: {' '.join(script.split())}")

    def guestnet(
        self, *arguments: str, check: bool = True, timeout: float = 15.0, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run `qubes-guestnet ARGUMENTS` in the qube."""
        return self.run(sys.executable, "-m", "qubes_guestnet", *arguments, check=check, timeout=timeout, env=env)

    def ip(self, *arguments: str) -> list[dict[str, Any]]:
        """Return what `ip -json ARGUMENTS` says: the judge of every test."""
        text = self.run("ip", "-json", *arguments).stdout.strip()
        return [entry for entry in json.loads(text or "[]") if entry]

    def spawn(
        self, name: str, *arguments: str, own_processes: bool = True, env: Mapping[str, str] | None = None
    ) -> Service:
        """Start a long-running command; `own_processes` False keeps it out of the qube's process namespace."""
        log = self.folder / f"{name}.log"
        with log.open("ab") as output:
            process = subprocess.Popen(
                self._command(arguments, own_processes), stdin=subprocess.DEVNULL,
                env={"NOTIFY_SOCKET": init.NOTIFY_SOCKET, **self._environment(env)},
                stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        _started.append(process)
        service = Service(f"{name} of {self.name}", log, process, own_processes)
        self._services.append(service)
        return service

    def socket(self, family: int, kind: int, protocol: int = 0) -> socket.socket:
        """Return a socket in the qube's network."""
        return socket_in(self.pid, family, kind, protocol)

    # --- its agent and its QubesDB -----------------------------------------------------------------------------

    def notifications(self) -> list[tuple[float, str]]:
        """Return what services said by sd_notify: (seconds of the monotonic clock, message)."""
        lines = (line.partition(" ") for line in self.read(init.NOTIFY_LOG).splitlines())
        return [(float(when), message) for when, _, message in lines]

    def start_agent(self, wait: bool = True, env: Mapping[str, str] | None = None, deadline: float = 10.0) -> Service:
        """Start the real agent; with `wait`, return only when it has said READY=1."""
        said_before = len(self.notifications())
        agent = self.agent = self.spawn("agent", sys.executable, "-m", "qubes_guestnet", "agent", env=env)

        def ready() -> bool:
            if not agent.running:
                raise LabError(f"{agent.name} ended with {agent.wait()}", f"its log: {agent.tail()}")
            return any("READY=1" in message for _, message in self.notifications()[said_before:])

        if wait:
            eventually(f"{agent.name} says READY=1", ready, deadline)
        return agent

    def start_store(self, entries: Mapping[str, str] | None = None) -> Service:
        """Start the qube's QubesDB daemon with `entries` and wait until it answers."""
        words = (QUBESDB_FOLDER, *(f"{key}={value}" for key, value in (entries or {}).items()))
        store = self.store_daemon = self.spawn(
            "store", sys.executable, "-m", "qubes_guestnet.lab.store_serve", *words, own_processes=False
        )

        def answers() -> bool:
            if not store.running:
                raise LabError(f"{store.name} ended with {store.wait()}", f"its log: {store.tail()}")
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                return probe.connect_ex(f"{self.path(QUBESDB_FOLDER)}/qubesdb.sock") == 0

        eventually(f"{store.name} listens", answers)
        return store

    def stop_store(self) -> None:
        """Stop its QubesDB daemon as its service would be."""
        if self.store_daemon is not None:
            self.store_daemon.stop()

    def processes(self) -> list[int]:
        """Return process ids, as the lab sees them, of all processes of the qube, its process 1 among them."""
        mine = os.readlink(f"/proc/{self.pid}/ns/pid")
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if os.readlink(folder / "ns/pid") == mine:
                    found.append(int(folder.name))
            except OSError:
                continue
        return found

    def pause(self) -> None:
        """Stop all its processes, as `qvm-pause` does; returns when none of them runs any more."""
        self.paused = True
        sent: set[int] = set()

        def all_stopped() -> bool:
            running = {pid for pid in self.processes() if _state(pid) not in (_STOPPED, "Z", "X", "")}
            for pid in running:
                _signal(pid, signal.SIGSTOP)
            # A parent in vfork() stays asleep, in state D, until its child goes on; SIGSTOP is waiting for it.
            waiting = {pid for pid in running & sent if _state(pid) == "D"}
            sent.update(running)
            return running == waiting

        eventually(f"{self.name} is paused", all_stopped)

    def unpause(self) -> None:
        """Let all its processes go on."""
        self.paused = False
        for pid in self.processes():
            _signal(pid, signal.SIGCONT)
        _wake(self._parents())

    def _parents(self) -> set[int]:
        """Return each nsenter outside that waits for a process inside: it stops itself when that is stopped."""
        mine = set(self.processes())
        return {_parent(pid) for pid in mine} - mine - {0, os.getpid()}

    def kill(self) -> None:
        """Kill the qube with all its processes; its interfaces and mounts go with it."""
        parents = self._parents()
        os.kill(self.pid, signal.SIGKILL)

        def gone() -> bool:
            # Process 1 is gone only when all others are, and each of them when its parent has seen its end.
            _wake(parents)
            return os.waitpid(self.pid, os.WNOHANG)[0] != 0

        eventually(f"{self.name} has ended", gone)
        for service in self._services:
            service.kill()


def _wake(pids: set[int]) -> None:
    """Let those go on that are stopped."""
    for pid in pids:
        if _state(pid) == _STOPPED:
            _signal(pid, signal.SIGCONT)


def _signal(pid: int, number: int) -> None:
    """Send a signal to a process that may have ended meanwhile."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _parent(pid: int) -> int:
    """Parent of a process, 0 when it is gone."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return 0


def _state(pid: int) -> str:
    """Return the state letter of a process, "" when it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""
