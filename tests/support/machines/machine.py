# SPDX-License-Identifier: GPL-2.0-or-later
"""A whole system under systemd-nspawn, in network and mount namespaces of its own; all of it goes with its processes.

`Mounts` is a mount namespace with a file system in memory; roots are layers in it over a base image. A `Machine` boots
one of them. Its eth0 is there before process 1, as in a qube; the other end, vif4.0, is in a namespace that plays the
provider: it answers ARP for everything and the virtual DNS addresses are its own.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tests.support.eventually import eventually
from tests.support.judge.oracle import Oracle
from tests.support.machines.packages import ENTRIES, STORE
from tests.support.needs import needs

Process = subprocess.Popen[str]
MAC = "00:16:3e:5e:6c:00"
PROVIDER = """\
ip link set lo up
ip address add 10.139.1.1/32 dev lo
ip address add 10.139.1.2/32 dev lo
"""
CGROUPS = ("systemd", "unified", "")
COMMAND_LIMIT_S = 120
BOOT_LIMIT_S = 90
PR_SET_PDEATHSIG = 1  # prctl(2)
_libc = ctypes.CDLL(None, use_errno=True)
# All packages are in the cache; no program listens at this proxy.
APT = ("--quiet", "--yes", "--no-install-recommends", "-oAcquire::http::Proxy=http://127.0.0.1:9/")
# nspawn: no look at a host's systemd or name servers; CAP_NET_ADMIN because the network namespace is its own.
NSPAWN = (
    *("systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "--notify-ready=no", "--console=pipe"),
    *("--resolv-conf=off", "--timezone=off", "--link-journal=no", "--kill-signal=SIGRTMIN+3"),
    "--capability=CAP_NET_ADMIN",
)


class Mounts:
    """A mount namespace for roots.

    Args:
        folder: an empty folder; in there a tmpfs is mounted that no other process sees.
    """

    def __init__(self, folder: Path) -> None:
        needs("unshare", "nsenter", "mount")
        self.folder = folder
        script = f"mount -t tmpfs -o mode=0755 mounts {folder} && echo ready && exec sleep infinity"
        self._holder = spawn("unshare", "--mount", "--propagation", "private", "sh", "-c", script)
        assert line_of(self._holder) == "ready"
        self._count = 0

    def root(self, lower: Path, *uppers: Path) -> Path:
        """A new writable root over an image, and over the changes of other roots (their `changes`)."""
        self._count += 1
        root = self.folder / f"root{self._count}"
        layers = ":".join(map(str, (*reversed(uppers), lower)))
        self.run(
            f"mkdir -p {root}/changes {root}/work {root}/tree && "
            f"mount -t overlay -o lowerdir={layers},upperdir={root}/changes,workdir={root}/work root {root}/tree"
        )
        return root

    def run(self, script: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """A shell script in the mount namespace."""
        return _run([*self.prefix, "sh", "-euc", script], check)

    def install(self, root: Path, packages: Sequence[Path]) -> str:
        """Install packages by apt, from files and the image's own cache, in a root that is not running."""
        names = " ".join(f"/var/tmp/{package.name}" for package in packages)
        self.run(f"cp {' '.join(map(str, packages))} {root}/tree/var/tmp")
        script = f"chroot {root}/tree apt-get {' '.join(APT)} install {names}"
        return self.run(f"export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8; {script} 2>&1").stdout

    @property
    def prefix(self) -> list[str]:
        """What to put before a command."""
        return ["nsenter", "-t", str(self._holder.pid), "--mount"]

    def close(self) -> None:
        """Everything in it goes."""
        end(self._holder)


class Machine:
    """A booted root.

    Args:
        mounts: where the root is.
        root: what to boot.
        name: the beginning of its host name.
        entries: of QubesDB, at boot.
        plugged: whether eth0 is there before process 1.
        flags: services that dom0 switched on.
        wire: name and address of the interface that is plugged.
    """

    def __init__(
        self,
        mounts: Mounts,
        root: Path,
        name: str,
        entries: Mapping[str, str],
        *,
        plugged: bool = True,
        flags: Sequence[str] = (),
        wire: tuple[str, str] = ("eth0", MAC),
    ) -> None:
        needs("systemd-nspawn", "ip", "sysctl")
        self.name, self.flags = f"{name}-{root.name}-{os.getpid()}", tuple(flags)
        text = "".join(f"{path} = {value}\n" for path, value in entries.items())
        mounts.run(f"cat >{root}/tree{ENTRIES} <<'END'\n{text}END\n")
        lines = "".join(f"f /run/qubes-service/{flag}\n" for flag in flags)
        mounts.run(f"printf 'd /run/qubes-service\n{lines}' >{root}/tree/etc/tmpfiles.d/qubes-service-stand-in.conf")
        self._router = spawn("unshare", "--net", "sh", "-c", f"{PROVIDER}echo ready; exec sleep infinity")
        assert line_of(self._router) == "ready"
        self.router = Oracle(["nsenter", "-t", str(self._router.pid), "--net"])
        self._join_cgroup()
        boot = [*NSPAWN, f"--machine={self.name}", f"--directory={root}/tree", "/usr/local/sbin/early-init"]
        script = 'echo ready; read _; export SYSTEMD_NSPAWN_API_VFS_WRITABLE=1; exec "$@"'
        command = [*mounts.prefix, "unshare", "--net", "sh", "-c", script, "boot", *boot]
        # Killed, nspawn would leave the machine running.
        self._nspawn = spawn(*command, prepare=self._enter_cgroup, death=signal.SIGTERM)
        assert line_of(self._nspawn) == "ready"
        self.leader = self._nspawn.pid
        if plugged:
            self.plug(*wire)
        assert self._nspawn.stdin is not None
        self._nspawn.stdin.write("\n")
        self._nspawn.stdin.close()
        self.leader = eventually(self._find_leader, BOOT_LIMIT_S, "process 1", self._said)
        self.inside = Oracle(["nsenter", "-t", str(self.leader), "--all"])
        eventually(self._booted, BOOT_LIMIT_S, "the end of the boot", self.jobs)

    def plug(self, name: str = "eth0", mac: str = MAC) -> None:
        """What attaching an interface in dom0 does."""
        peer = f"type veth peer name {name} address {mac} netns {self.leader}"
        self.router.run("ip", "link", "add", "vif4.0", "address", "fe:ff:ff:ff:ff:ff", *peer.split())
        self.router.run("sysctl", "-qw", "net.ipv4.conf.vif4/0.proxy_arp=1", "net.ipv4.neigh.vif4/0.proxy_delay=0")
        self.router.run("ip", "link", "set", "vif4.0", "up")
        self.router.run("ip", "route", "replace", "default", "dev", "lo")

    def unplug(self) -> None:
        """Detach it."""
        self.router.run("ip", "link", "delete", "vif4.0")

    def run(self, *command: str, check: bool = True) -> str:
        """Run a command inside; its output."""
        done = _run([*self.inside.prefix, *command], check)
        return (done.stdout + (done.stderr if not check else "")).strip()

    @property
    def network(self) -> tuple[str, ...]:
        """What to put before a command of this machine's own that is to run in the network of the booted one."""
        return ("nsenter", "-t", str(self.leader), "--net")

    def property(self, unit: str, name: str) -> str:
        """A property of a unit, as `systemctl show` prints it."""
        return self.run("systemctl", "show", "--value", "--property", name, unit)

    def exposure(self, unit: str) -> float:
        """How far a unit's sandbox is open: 0 is closed, 10 open (systemd-analyze(1)).

        The words behind the figure depend on the terminal and the locale of the tests.
        """
        told = self.run("systemd-analyze", "security", unit, check=False)
        figure = re.search(r"Overall exposure level for \S+ (\d+\.\d+) ", told)
        assert figure, told
        return float(figure[1])

    def write(self, *pairs: str) -> None:
        """Write to QubesDB, as dom0 does: key, value, key, value, …"""
        client = ["/usr/bin/python3", "-m", "qubes_guestnet.lab.store_cli", "--dir", "/run/qubes", "write"]
        self.run("env", f"PYTHONPATH={STORE}", *client, *pairs)

    def journal(self, unit: str) -> str:
        """What a unit told, for messages."""
        return self.run("journalctl", "--no-pager", "--output=short-monotonic", "--unit", unit, check=False)

    def jobs(self) -> str:
        """What systemd is waiting for, and what failed."""
        return self.run("systemctl", "list-jobs", check=False) + "\n" + self.run("systemctl", "--failed", check=False)

    def close(self) -> None:
        """End it, in order if it can; nothing of it is left."""
        self._nspawn.terminate()
        try:
            self._nspawn.wait(20)
        except subprocess.TimeoutExpired:
            os.kill(self.leader, signal.SIGKILL)
        end(self._nspawn)
        end(self._router)
        eventually(self._leave_cgroup, 10, "an empty control group")

    def _find_leader(self) -> int:
        assert self._nspawn.poll() is None, self._said()
        children = Path(f"/proc/{self._nspawn.pid}/task/{self._nspawn.pid}/children").read_text().split()
        for child in map(int, children):
            try:
                name = Path(f"/proc/{child}/comm").read_text().strip()
            except (FileNotFoundError, ProcessLookupError):
                continue  # one of nspawn's own short-lived ones
            if name == "systemd":
                return child
        return 0

    def _booted(self) -> bool:
        """Whether systemd has no more jobs, but those that wait for what is to come."""
        state = self.run("systemctl", "is-system-running", check=False)
        return state.splitlines()[-1:] in (["running"], ["degraded"])

    def _said(self) -> str:
        if self._nspawn.poll() is None or self._nspawn.stdout is None:
            return ""
        return self._nspawn.stdout.read()

    def _cgroups(self) -> list[Path]:
        """A group of its own in each hierarchy that there is: two machines in one would disturb each other."""
        tops = [Path("/sys/fs/cgroup", name) for name in CGROUPS]
        return [top / self.name for top in tops if (top / "cgroup.procs").exists() and os.access(top, os.W_OK)]

    def _join_cgroup(self) -> None:
        for group in self._cgroups():
            group.mkdir(exist_ok=True)

    def _enter_cgroup(self) -> None:
        for group in self._cgroups():
            (group / "cgroup.procs").write_text(str(os.getpid()))

    def _leave_cgroup(self) -> bool:
        for group in self._cgroups():
            for folder, _, _ in os.walk(group, topdown=False):
                try:
                    os.rmdir(folder)
                except OSError:
                    return False
        return True


def spawn(*command: str, prepare: Callable[[], None] = lambda: None, death: int = signal.SIGKILL) -> Process:
    """Start a process that ends with this one.

    Args:
        command: what to run.
        prepare: done in the new process before.
        death: the signal it gets when this process goes.
    """

    def begin() -> None:
        prepare()
        _libc.prctl(PR_SET_PDEATHSIG, death)

    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(command, text=True, preexec_fn=begin, **streams)  # type: ignore[call-overload, no-any-return]


def line_of(process: Process) -> str:
    """The next line that a process prints."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


def _run(command: Sequence[str], check: bool) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "LC_ALL": "C.UTF-8", "PATH": "/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_LIMIT_S, env=environment)
    assert not check or done.returncode == 0, f"{' '.join(command)}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def end(process: Process) -> None:
    """Kill a process, and close what was open to it."""
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None and not stream.closed:
            stream.close()


def elements(machine: Machine, family: str = "ip", name: str = "allowed") -> list[object]:
    """What a set of ours holds."""
    listed = json.loads(machine.run("nft", "-j", "list", "set", family, "qubes", name))["nftables"]
    return next(entry["set"].get("elem", []) for entry in listed if "set" in entry)


def processes(machine: Machine) -> int:
    """How many were ever started in it; the last number of its process namespace (proc(5), loadavg)."""
    return int(machine.run("cat", "/proc/loadavg").split()[4])
