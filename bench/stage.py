# SPDX-License-Identifier: GPL-2.0-or-later
"""The stage of the benchmarks: namespaces of our own, the lab's QubesDB daemon, a qube's eth0 and a provider behind it.

Everything runs inside `isolate()` of the lab, without root, and dies with it. A fresh pair of network namespaces is
made for every run; making it is never part of what is measured.
"""

from __future__ import annotations

import ctypes
import ipaddress
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

from qubes_guestnet.lab.daemons import BUS, bus_config
from qubes_guestnet.lab.namespaces import CLONE_NEWNET, LabError, mount, unshare
from tests.support.eventually import eventually
from tests.support.judge.oracle import Oracle

TREE = Path(__file__).resolve().parent.parent
BASELINE = TREE / "bench" / "baseline"
LAUNCHER = TREE / "bin" / "qubes-guestnet"
STORE_FOLDER = "/run/qubes"
RESOLV_CONF = "/etc/resolv.conf"
MAC = "00:16:3e:5e:6c:00"
PEER_MAC = "fe:ff:ff:ff:ff:ff"
ADDRESS = "10.137.0.5"
OTHER_ADDRESS = "10.137.0.6"
DNS = ("10.139.1.1", "10.139.1.2")
IPV4_ENTRIES = {
    "/qubes-mac": MAC,
    "/qubes-ip": ADDRESS,
    "/qubes-netmask": "255.255.255.255",
    "/qubes-gateway": "10.138.2.3",
    "/qubes-primary-dns": DNS[0],
    "/qubes-secondary-dns": DNS[1],
}
IPV6_ENTRIES = {
    "/qubes-ip6": "fd09:24ef:4179::a89:5",
    "/qubes-netmask6": "128",
    "/qubes-gateway6": "fd09:24ef:4179::a8a:203",
}

QUIET = ((os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),)

_FIND = """
from importlib.util import find_spec
for name in ("pyroute2", "tenacity", "jeepney", "qubesdb"):
    found = find_spec(name)
    if found is not None:
        print(found.submodule_search_locations[0])
"""

_libc = ctypes.CDLL(None, use_errno=True)


class Failed(Exception):
    """The stage could not be set, or what was measured did not do its work: no figure is better than a wrong one."""


def child_environment() -> dict[str, str]:
    """Like an installed package: compiled files are used, nothing of Python's environment leaks in."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "COVERAGE", "COV_"))}


def command(python: str, *arguments: str) -> list[str]:
    """Our command as a package installs it, run by the given interpreter."""
    return [python, "-I", "-S", str(_packaged(python)), *arguments]


@cache
def _packaged(python: str) -> Path:
    """Install the launcher, and compiled beside it all that it imports, and return its path."""
    folder = TREE / "build" / "bench" / python.strip("/").replace("/", "-")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(TREE / "qubes_guestnet", folder / "qubes_guestnet", ignore=shutil.ignore_patterns("__pycache__"))
    found = subprocess.run([python, "-I", "-c", _FIND], check=True, capture_output=True, text=True)
    for package in map(Path, found.stdout.split()):
        shutil.copytree(package, folder / package.name)
    subprocess.run([python, "-m", "compileall", "-q", str(folder)], check=True)
    launcher = folder / "launcher"
    launcher.write_text(LAUNCHER.read_text().replace("FOLDERS = ()", f'FOLDERS = ("{folder}",)'))
    return launcher


class Stage:
    """To be made once inside `isolate()`.

    Args:
        entries: what dom0 wrote.
        python: the interpreter whose environment is measured.
    """

    def __init__(self, entries: Mapping[str, str], python: str = sys.executable) -> None:
        self.entries = dict(entries)
        self.python = python
        self.oracle = Oracle()
        # For what is not started by `command`. Compiling at the first start takes time and leaves memory behind.
        subprocess.run([python, "-m", "compileall", "-q", str(TREE / "qubes_guestnet")], check=True)
        self._private_etc()
        os.makedirs(STORE_FOLDER, exist_ok=True)
        os.makedirs("/run/qubes-service", exist_ok=True)
        self.reader = self._compile_reader()
        self._provider: int | None = None
        self._kept: list[int] = []
        self._store = self._start_store()
        self._bus = self._start_bus()

    @staticmethod
    def _private_etc() -> None:
        """A writable copy of /etc, so that resolv.conf is the benchmark's own."""
        copy = tempfile.mkdtemp(dir="/run")
        subprocess.run(["cp", "-a", "/etc/.", copy], check=False, stderr=subprocess.DEVNULL)
        mount("etc", "/etc", "tmpfs")
        subprocess.run(["cp", "-a", f"{copy}/.", "/etc/"], check=True)
        shutil.rmtree(copy)

    @staticmethod
    def _compile_reader() -> str:
        """The baseline's QubesDB reader. A Python reader there would flatter us."""
        folder = tempfile.mkdtemp(dir="/run")
        reader = f"{folder}/qdb-read"
        subprocess.run(["cc", "-O2", "-o", reader, str(BASELINE / "qdb-read.c")], check=True)
        return reader

    def _start_store(self) -> subprocess.Popen[bytes]:
        sets = [f"--set={key}={value}" for key, value in self.entries.items()]
        store = subprocess.Popen(
            [sys.executable, "-m", "qubes_guestnet.lab.store_cli", "--dir", STORE_FOLDER, *sets],
            env=child_environment(),
            cwd=TREE,
            stdout=subprocess.DEVNULL,
        )
        last = list(self.entries)[-1]

        def serves() -> bool:
            if store.poll() is not None:
                raise Failed(f"the lab's store ended with status {store.returncode}")
            return subprocess.run([self.reader, last], capture_output=True).returncode == 0

        eventually(serves, what="the lab's store")
        return store

    @staticmethod
    def _start_bus() -> subprocess.Popen[bytes]:
        """A system bus: the resident agent stays connected to it, and that is part of what it costs."""
        if shutil.which("dbus-daemon") is None:
            raise Failed("dbus-daemon is missing; install with: apt-get install dbus-daemon")
        os.makedirs(os.path.dirname(BUS), exist_ok=True)
        config = Path("/run/bus.conf")
        config.write_text(bus_config())
        words = ["dbus-daemon", "--nofork", "--nopidfile", f"--config-file={config}"]
        bus = subprocess.Popen(words, stderr=subprocess.DEVNULL)
        eventually(lambda: os.path.exists(BUS), what="the system bus")
        return bus

    def close(self) -> None:
        """End the store and the bus. Everything else goes with the namespaces."""
        for process in (self._store, self._bus):
            process.terminate()
            process.wait()

    def fresh(self) -> None:
        """Move this process into a network namespace with an unconfigured eth0, and behind it a provider that answers
        every ARP request at once. Former ones are kept: the kernel takes a namespace down in the background, holding
        the lock that every change of a network needs, and that would be measured too.
        """
        unshare(CLONE_NEWNET)
        self._provider = namespace()
        self._kept.append(self._provider)
        # Proxy ARP answers only for what is routed out of another interface.
        for words in ("link add out type bridge", "link set out up", "route add default dev out", "link set lo up"):
            self._ip(*words.split())
        Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
        unshare(CLONE_NEWNET)
        qube = namespace()
        self._ip("link", "set", "lo", "up")
        peer = ("peer", "name", "vif1.0", "address", PEER_MAC, "netns", f"/proc/self/fd/{self._provider}")
        self._ip("link", "add", "eth0", "address", MAC, "type", "veth", *peer)
        enter(self._provider)
        Path("/proc/sys/net/ipv4/conf/vif1.0/proxy_arp").write_text("1")
        Path("/proc/sys/net/ipv4/neigh/vif1.0/proxy_delay").write_text("0")
        self._ip("link", "set", "vif1.0", "up")
        for address in (self.entries.get("/qubes-ip"), OTHER_ADDRESS, self.entries.get("/qubes-ip6")):
            if address:
                self._ip("route", "add", address, "dev", "vif1.0")
        enter(qube)
        self._kept.append(qube)
        shutil.rmtree("/run/qubes-guestnet", ignore_errors=True)
        Path(RESOLV_CONF).unlink(missing_ok=True)
        Path(RESOLV_CONF).write_text("nameserver 192.0.2.1\n")

    def _ip(self, *words: str) -> None:
        fds = () if self._provider is None else (self._provider,)
        subprocess.run(["ip", *words], check=True, pass_fds=fds)

    def check_configured(self, who: str) -> None:
        """Raise Failed unless eth0 and resolv.conf are what the entries ask for, by `ip` alone."""
        wanted = {f"{self.entries['/qubes-ip']}/32"}
        if "/qubes-ip6" in self.entries:
            wanted.add(f"{ipaddress.ip_address(self.entries['/qubes-ip6'])}/128")
        seen = self.oracle.addresses("eth0")
        routes = [(route["dst"], route.get("dev")) for route in self.oracle.routes(4)]
        lines = Path(RESOLV_CONF).read_text().splitlines()
        servers = tuple(line.split()[1] for line in lines if line.startswith("nameserver"))
        neighbours = self.oracle.neighbours("eth0")
        if seen != wanted or routes != [("default", "eth0")] or servers != DNS or not neighbours:
            raise Failed(f"{who} did not configure the qube: {seen} {routes} {neighbours} {servers}")
        if len(wanted) > 1 and not self.oracle.default_routes(6):
            raise Failed(f"{who} set no IPv6 default route")

    def baseline_environment(self) -> dict[str, str]:
        """The environment of baseline/uplink.sh."""
        return {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "QDB_READ": self.reader}


class Took(NamedTuple):
    """Seconds.

    Args:
        wall: from just before the process is made to just after it has ended.
        cpu: processor time of it and all it started; what else the machine does matters less to it.
    """

    wall: float
    cpu: float


def timed(command_line: list[str], environment: Mapping[str, str]) -> Took:
    """Run a program to its end.

    Raises:
        Failed: it ended with another status than 0.
    """
    start = time.perf_counter()
    pid = os.posix_spawnp(command_line[0], command_line, environment, file_actions=QUIET)
    _, status, used = os.wait4(pid, 0)
    took = time.perf_counter() - start
    if status:
        raise Failed(f"{' '.join(command_line)}: exit status {os.waitstatus_to_exitcode(status)}")
    return Took(took, used.ru_utime + used.ru_stime)


def namespace() -> int:
    """The network namespace this process is in, as a descriptor."""
    return os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def enter(fd: int) -> None:
    """Move this process into the network namespace of a descriptor."""
    if _libc.setns(fd, CLONE_NEWNET) != 0:
        raise LabError(f"setns: {os.strerror(ctypes.get_errno())}")
