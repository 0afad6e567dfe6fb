# SPDX-License-Identifier: GPL-2.0-or-later
"""The real NetworkManager, systemd-resolved, systemd-networkd and D-Bus, in a qube of the lab and without systemd.

They are Debian's programs, with a private writable /etc and /var, a bus, and users that exist in the lab's user
namespace, which without root has only one user.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
from pathlib import Path

from .namespaces import LabError
from .qube import Qube, Service, eventually

# In the source tree; an installed package has these files where the daemons look for them.
CONFIG = Path(__file__).resolve().parent / "config"  # a link in the tree, files in an environment
BUS = "/run/dbus/system_bus_socket"
RESOLVED, NETWORKD = "/lib/systemd/systemd-resolved", "/lib/systemd/systemd-networkd"
_CONFIG_PATH = "/run/lab/dbus.conf"
_BUS_CONFIG = Path("/usr/share/dbus-1/system.conf")
_USERS = ("messagebus", "systemd-network", "systemd-resolve")
# What the lab's veth is in place of xen-netfront, see config/NetworkManager/conf.d.
_LAB_CONFIG = "[main]\nplugins=keyfile\nno-auto-default=driver:veth\n[logging]\nlevel=INFO\n"


class Daemons:
    """The daemons of one qube.

    Args:
        qube: where they run.
    """

    def __init__(self, qube: Qube) -> None:
        _needs("dbus-daemon", "dbus-daemon")
        self.qube = qube
        self.running: dict[str, Service] = {}
        without_host_link(qube, "/etc/passwd", users(Path("/etc/passwd").read_text()))
        qube.run("mount", "-o", "remount,ro,bind", "/sys")  # else NetworkManager waits for udev
        qube.run("mkdir", "-p", "/run/dbus", "/run/systemd")

    def _start(self, name: str, *command: str) -> Service:
        self.running[name] = self.qube.spawn(name, *command)
        return self.running[name]

    def stop(self, name: str) -> None:
        """Stop one as its unit would."""
        self.running.pop(name).stop()

    def _ready(self, name: str, probe: tuple[str, ...], wanted: str) -> None:
        def answers() -> bool:
            service = self.running[name]
            if not service.running:
                raise LabError(f"{name} ended", service.tail(3000))
            return wanted in self.qube.run(*probe, check=False).stdout

        eventually(f"{name} answers", answers)

    def dbus(self, program: str = "dbus-daemon", *, policy: bool = True) -> None:
        """Start the system bus.

        Args:
            program: "dbus-daemon" or "dbus-broker".
            policy: the distribution's; else anything may send anything to anything.
        """
        self.qube.write(_CONFIG_PATH, bus_config(policy))
        self.qube.path(BUS).unlink(missing_ok=True)  # of one that was killed
        if program == "dbus-broker":
            _needs("dbus-broker-launch", "dbus-broker")
            self._start("dbus", sys.executable, "-m", "qubes_guestnet.lab.message_bus", BUS, _CONFIG_PATH)
        else:
            self._start("dbus", "dbus-daemon", "--nofork", "--nopidfile", f"--config-file={_CONFIG_PATH}")
        eventually("the bus is there", lambda: self.qube.path(BUS).exists())

    # --- NetworkManager ------------------------------------------------------------------------------------------

    def prepare_networkmanager(self, extra: str = _LAB_CONFIG) -> None:
        """Create its folders and configuration, as a package installs them, before it is started."""
        _needs("NetworkManager", "network-manager")
        without_host_link(self.qube, "/etc/NetworkManager")
        self.qube.run("mkdir", "-p", "/etc/NetworkManager/conf.d", "/etc/NetworkManager/system-connections")
        for file in (CONFIG / "NetworkManager" / "conf.d").glob("*.conf"):
            self.qube.write(f"/etc/NetworkManager/conf.d/{file.name}", file.read_text())
        self.qube.write("/etc/NetworkManager/conf.d/99-lab.conf", extra)
        # Not its folder alone: where NetworkManager is unpacked and not installed, there is none to mount on.
        self.qube.run("mount", "-t", "tmpfs", "lab", "/var/lib")
        self.qube.run("mkdir", "/var/lib/NetworkManager")

    def networkmanager(self, wait: bool = True) -> Service:
        """Start it; with `wait` until it answers nmcli."""
        service = self._start("networkmanager", "NetworkManager", "--debug", "--log-level=INFO")
        if wait:
            self._ready("networkmanager", ("nmcli", "-t", "-f", "RUNNING", "general"), "running")
        return service

    def nmcli(self, *words: str, check: bool = True) -> str:
        """Run `nmcli WORDS` in the qube."""
        done = self.qube.run("nmcli", *words, check=False)
        if check and done.returncode:
            raise LabError(
                f"nmcli {' '.join(words)}: {done.stdout}{done.stderr}", self.running["networkmanager"].tail()
            )
        return done.stdout.strip()

    def device(self, field: str, interface: str = "eth0") -> str:
        """Return one field of `nmcli device show`."""
        return self.nmcli("-g", field, "device", "show", interface, check=False)

    # --- systemd -------------------------------------------------------------------------------------------------

    def resolved(self) -> Service:
        """Start systemd-resolved, with our drop-in."""
        _needs(RESOLVED, "systemd-resolved")
        self.qube.run("mkdir", "-p", "/run/systemd/resolve", "/run/systemd/resolved.conf.d")
        for file in (CONFIG / "systemd" / "resolved.conf.d").glob("*.conf"):
            self.qube.write(f"/run/systemd/resolved.conf.d/{file.name}", file.read_text())
        service = self._start("resolved", RESOLVED)
        self._ready("resolved", ("resolvectl", "dns"), "Global")
        return service

    def resolvectl(self, *words: str) -> str:
        """Run `resolvectl WORDS` in the qube, and return its output after the colon."""
        return self.qube.run("resolvectl", *words).stdout.strip().rpartition(": ")[2]

    def networkd(self) -> Service:
        """Start systemd-networkd with its default settings."""
        _needs(NETWORKD, "systemd")
        self.qube.run("mkdir", "-p", "/run/systemd/netif/links", "/run/systemd/network")
        service = self._start("networkd", NETWORKD)
        self._ready("networkd", ("networkctl", "--no-pager", "list"), "links listed")
        return service


def _needs(program: str, package: str) -> None:
    """Raise LabError unless a program is installed."""
    if shutil.which(program, path="/usr/sbin:/usr/bin:/sbin:/bin") is None:
        raise LabError(f"{program} is missing", f"apt-get install {package}")


def without_host_link(qube: Qube, path: str, text: str | None = None) -> None:
    """Replace a link into the host's /etc by a private file or an empty folder."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(qube.path(path))
    if text is None:
        qube.run("mkdir", "-p", path)
    else:
        qube.write(path, text)


def users(passwd: str) -> str:
    """Return the text of the qube's /etc/passwd: the users that these daemons drop their rights to, all of them root.

    The lab's user namespace has no other user when the lab was started without root.

    Args:
        passwd: the machine's own; it lacks those users where the daemons are unpacked and not installed.
    """
    others = [line for line in passwd.splitlines() if line.partition(":")[0] not in _USERS]
    return "".join(f"{line}\n" for line in (*others, *(f"{user}:x:0:0::/:/usr/sbin/nologin" for user in _USERS)))


_NO_POLICY = """<policy context="mandatory"><allow own="*"/>
<allow send_destination="*" eavesdrop="true"/><allow eavesdrop="true"/>
<allow send_requested_reply="false" send_type="method_return"/><allow send_requested_reply="false" send_type="error"/>
<allow receive_requested_reply="false" receive_type="method_return"/>
<allow receive_requested_reply="false" receive_type="error"/>
</policy>"""


def bus_config(policy: bool = True) -> str:
    """Return the distribution's configuration, without starting services and without a user of the bus's own.

    Args:
        policy: keep its policy; else everything is allowed.
    """
    text = _BUS_CONFIG.read_text()
    if not policy:
        text = text.replace("</busconfig>", f"{_NO_POLICY}</busconfig>")
    for element in ("user", "pidfile", "servicehelper"):
        text = re.sub(rf"<{element}>.*?</{element}>", "", text)
    text = re.sub(r"<(fork|syslog|standard_system_servicedirs)/>", "", text)
    text = re.sub(r"<includedir>(?!/)", f"<includedir>{_BUS_CONFIG.parent}/", text)
    return re.sub(r"<listen>.*?</listen>", f"<listen>unix:path={BUS}</listen>", text)
