# SPDX-License-Identifier: GPL-2.0-or-later
"""The real qube of the random walk: how it is changed by hand, and how it is observed."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from qubes_guestnet.lab.qube import Service
from tests.lab.walk_model import MAC, File, Model, Object, Objects, version_of
from tests.support.eventually import eventually
from tests.support.needs import SBIN
from tests.support.qubes.appvm import RESOLV_CONF, AppVm

PYTHON = sys.executable
MARK = "@@"
QUIET_S = 0.6
OURS = "# Made by qubes-guestnet"
KERNEL = "2"  # the number of the protocol of routes that the kernel makes for addresses
FOREIGN_MAC = "02:00:00:00:00:02"
# What a user has on the interface, and how it is made: `ip WORDS`.
FOREIGN: dict[Object, str] = {
    ("address", "192.168.77.7/32"): "address add 192.168.77.7/32 dev {}",
    ("address", "10.137.0.200/24"): "address add 10.137.0.200/24 dev {}",
    ("address", "fd00:77::7/64"): "address add fd00:77::7/64 dev {} nodad",
    ("route", "4", "203.0.113.0/24", "", "link", "", "0", "4"): "route add 203.0.113.0/24 dev {} proto static",
    ("route", "4", "default", "", "link", "", "7000", "3"): "route add default dev {} metric 7000",
    ("route", "4", "10.138.0.11", "", "link", "", "50", "3"): "route add 10.138.0.11/32 dev {} metric 50",
    ("route", "6", "2001:db8::/48", "", "global", "", "1024", "4"): "-6 route add 2001:db8::/48 dev {} proto static",
    ("route", "6", "default", "", "global", "", "7001", "3"): "-6 route add default dev {} metric 7001",
    ("neighbour", "10.137.9.9", FOREIGN_MAC): f"neighbour add 10.137.9.9 lladdr {FOREIGN_MAC} nud permanent dev {{}}",
    ("neighbour", "fd00:77::9", FOREIGN_MAC): f"neighbour add fd00:77::9 lladdr {FOREIGN_MAC} nud permanent dev {{}}",
}
# A VPN's things on other interfaces, and a bridge that has taken over the address of the uplink.
AROUND = f"""
    echo 1 > /proc/sys/net/ipv4/conf/all/promote_secondaries  # as systemd sets it
    echo 0 > /proc/sys/net/ipv6/conf/default/accept_dad  # its end would wake the agent, and hide a lost wake-up
    ip link add tun0 type bridge; ip link set tun0 up; ip address add 10.8.0.2/24 dev tun0
    ip route add 198.51.100.0/24 via 10.8.0.1; ip route add default via 10.8.0.1 metric 5000
    ip route add blackhole 192.0.2.0/24; ip -6 route add 2001:db8:8::/48 dev tun0
    ip neighbour add 10.8.0.1 lladdr {FOREIGN_MAC} nud permanent dev tun0
    ip link add decoy0 address {MAC} type bridge; ip link set decoy0 up; ip address add 10.9.0.2/24 dev decoy0
"""
LOOK = f"""
    ip -N -j address show; echo {MARK}; ip -N -j -4 route show table main; echo {MARK}
    ip -N -j -6 route show table main; echo {MARK}; ip -N -j neighbour show nud permanent
"""


# Python complains of a running process without a reference; the kernel ends them all with the test.
_hands: list[Hand] = []


class Hand:
    """A shell in the network of the qube, kept open: a command costs a millisecond and not ten."""

    def __init__(self, pid: int) -> None:
        _hands.append(self)
        self._shell = subprocess.Popen(
            ["nsenter", "--target", str(pid), "--net", "--", "sh"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env={**os.environ, "LC_ALL": "C", "PATH": f"{os.environ.get('PATH', '')}:{SBIN}"},
        )  # fmt: skip

    def run(self, script: str) -> tuple[int, str]:
        """Exit status and output of shell commands; a failure is for the caller to judge."""
        assert self._shell.stdin is not None
        assert self._shell.stdout is not None
        self._shell.stdin.write(f"{{ {script.strip()}\n}}\nstatus=$?; echo; echo end{MARK} $status\n")
        self._shell.stdin.flush()
        lines: list[str] = []
        while not (line := self._shell.stdout.readline()).startswith(f"end{MARK}"):
            assert line, f"the shell ended: {lines}"
            lines.append(line)
        return int(line.split()[1]), "".join(lines)


class Sight:
    """The qube as it looks at one moment.

    Attributes:
        up: the interface is up.
        group: its group.
        objects: on the interface.
        others: everything that is not on it.
    """

    def __init__(self, text: str, interface: str) -> None:
        links, routes4, routes6, neighbours = (_parsed(part) for part in text.split(MARK))
        link = next((link for link in links if link["ifname"] == interface), None)
        self.up = link is not None and "UP" in link["flags"]
        self.group = link["group"] if link is not None else ""
        found: set[tuple[str, Object]] = {(link["ifname"], _address(each)) for link in links for each in _global(link)}
        for version, routes in (("4", routes4), ("6", routes6)):
            # IPv6 routes that differ only in the gateway are shown as one with several next hops.
            single = ({**route, **hop} for route in routes for hop in route.get("nexthops", ({},)))
            found |= {(each.get("dev", ""), _route(version, each)) for each in single if each.get("protocol") != KERNEL}
        found |= {(each["dev"], ("neighbour", each["dst"], each.get("lladdr", ""))) for each in neighbours}
        self.objects: Objects = frozenset(each for device, each in found if device == interface)
        flags = {(link["ifname"], ("link", str("UP" in link["flags"]), link["group"])) for link in links}
        self.others = {each for each in found | flags if each[0] != interface}


def _parsed(text: str) -> list[dict[str, Any]]:
    return [each for line in text.splitlines() if line.startswith("[") for each in json.loads(line) if each]


def _global(link: dict[str, Any]) -> Iterable[dict[str, Any]]:
    return (each for each in link["addr_info"] if "local" in each and not each["local"].startswith("fe80:"))


def _address(each: dict[str, Any]) -> Object:
    return ("address", f"{each['local']}/{each['prefixlen']}")


def _route(version: str, each: dict[str, Any]) -> Object:
    scope = {"253": "link", "254": "host"}.get(each.get("scope", ""), "global")
    flags = " ".join(flag for flag in each.get("flags", ()) if flag == "onlink")
    metric, protocol = str(each.get("metric", 0)), each.get("protocol", "3")
    return ("route", version, each["dst"], each.get("gateway", ""), scope, flags, metric, protocol)


class WalkQube:
    """One qube behind a provider that answers ARP for everybody.

    Args:
        model: what is to be there.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self.trail: deque[str] = deque(maxlen=60)
        self.interface, self.vif = "eth0", ""
        self.plugs = self.overwrites = self.called = 0
        self.commands: list[Service] = []
        self.needs_hup = self.ready = False
        self.reuses_numbers = False  # of vifs, as libxl does
        self.appvm = AppVm({key: value.data.decode() for key, value in model.keys.items()}, plugged=False)
        self.hand = Hand(self.appvm.qube.pid)
        status, said = self.hand.run(AROUND)
        assert status == 0, said
        self.others = self.look_at().others

    def tell(self, words: str) -> None:
        """More about the step that is under way."""
        self.trail.append(f"  {words}")

    # --- looking -----------------------------------------------------------------------------------------------

    def look_at(self) -> Sight:
        """The network."""
        _, text = self.hand.run(LOOK)
        return Sight(text, self.interface if self.model.plugged else "none")

    def file(self) -> File:
        """resolv.conf."""
        path = self.appvm.qube.path(RESOLV_CONF)
        if path.is_symlink():
            return ("link", os.readlink(path))
        text = path.read_text()
        if not text.startswith(OURS):
            return ("text", text)
        assert stat.S_IMODE(path.stat().st_mode) == 0o644
        lines = [line for line in text.splitlines() if not line.startswith("#")]
        assert all(line.startswith("nameserver ") for line in lines), text
        return ("ours", *(line.split()[1] for line in lines))

    # --- the agent, and commands beside it ---------------------------------------------------------------------

    @property
    def agent(self) -> Service:
        """The agent."""
        assert self.appvm.qube.agent is not None
        return self.appvm.qube.agent

    def start_agent(self, wait: bool = True) -> None:
        """Start it; it is ready only after a pass, and has none without QubesDB."""
        self.ready = False
        self._said = len(self.appvm.qube.notifications())
        self.appvm.qube.start_agent(wait=False)
        if wait and self.model.served:
            self.await_ready()

    def await_ready(self) -> None:
        """Wait until it has said READY=1."""
        if not self.model.served:
            self.start_store()
        eventually(lambda: self.ready or self._is_ready(), 30.0, "READY=1", self.appvm.log)
        self.ready = True

    def await_quiet(self) -> None:
        """Wait until the agent has slept for longer than it collects writes before a pass (500 ms)."""
        eventually(self._is_quiet, 30.0, "an agent without work", self.appvm.log)

    def _is_quiet(self) -> bool:
        before = self._woken()
        time.sleep(QUIET_S)
        return self._sleeps() and self._woken() == before

    def _sleeps(self) -> bool:
        return Path(f"/proc/{self.agent.pid}/stat").read_text().rpartition(")")[2].split()[0] == "S"

    def _woken(self) -> list[str]:
        """How often the agent was given a processor, and had it taken."""
        lines = Path(f"/proc/{self.agent.pid}/status").read_text().splitlines()
        return [line for line in lines if "ctxt_switches" in line]

    def _is_ready(self) -> bool:
        assert self.agent.running, self.appvm.log()
        return any("READY=1" in said for _, said in self.appvm.qube.notifications()[self._said :])

    def start_store(self) -> None:
        """Start QubesDB again, with all that dom0 has for this qube."""
        if not self.model.served:
            # A value can hold every byte but NUL, and so can an argument.
            self.appvm.qube.start_store({key: os.fsdecode(value.data) for key, value in self.model.keys.items()})
            self.model.served = True
            self.model.changed()

    def wait_for_commands(self) -> None:
        """Wait for the end of what runs beside the agent; what is not dom0's fault must not be in their words."""
        for command in self.commands:
            status = command.wait(30.0)
            said = command.output()
            # `uplink add` of an interface that has gone, or has another name by now, is wrong usage (B141).
            gone = status == 2 and "dom0 does not manage the interface" in said
            assert status in (0, 1) or gone, f"{command.name} ended with {status}: {said}"
            assert "Traceback" not in said, said
            command.log.unlink()
        self.commands.clear()

    # --- changing ----------------------------------------------------------------------------------------------

    def attach(self, interface: str, up: bool) -> None:
        """A new interface of this name; `up` False: its carrier comes later, see `carrier_back`."""
        self.plugs += 1
        self.vif, self.interface = f"vif5.{0 if self.reuses_numbers else self.plugs}", interface
        self.tell(f"attach {self.vif} as {interface}")
        self.appvm.plug(interface, vif=self.vif, up=up)
        if up:
            self._route_back()
        self.model.plug()

    def carrier_back(self) -> None:
        """The provider's end is up."""
        self.appvm.provider.wire(f"ip link set {self.vif} up")
        self._route_back()

    def _route_back(self) -> None:
        # Linux proxies no ARP answer to an address that it cannot reach.
        self.appvm.provider.wire(f"ip route replace 10.137.0.0/24 dev {self.vif}")

    def rename_to(self, name: str, down: bool) -> None:
        """Another name. Older kernels rename only what is down, and the agent sets it up again: until it works."""
        self.tell(f"{self.interface} -> {name}")
        rename = f"ip link set {self.interface} name {name}"
        if down or self.hand.run(rename)[0] != 0:
            if not self.model.removed:
                self.model.downed()
            script = f"ip link set {self.interface} down; {rename}"
            eventually(lambda: self.hand.run(script)[0] == 0, what=f"{self.interface} becomes {name}")
        self.interface = name

    def make_foreign(self, objects: Iterable[Object]) -> None:
        """A user adds these, with the link up: else the kernel takes no route."""
        self.hand.run(f"ip link set {self.interface} up")
        for each in objects:
            self.tell(" ".join(each))
            status, said = self.hand.run("ip " + FOREIGN[each].format(self.interface))
            assert status == 0, said
            self.model.foreign.add(each)

    def take_foreign(self, objects: Iterable[Object]) -> None:
        """A user removes what he had added."""
        for each in objects:
            self.tell("away with " + " ".join(each))
            words = FOREIGN[each].format(self.interface).replace(" add ", " del ").replace(" nud permanent", "")
            self.model.foreign.discard(each)
            status, said = self.hand.run("ip " + words.replace(" nodad", ""))
            assert status == 0, f"{words}: {said}"

    def take_away(self, each: Object) -> None:
        """A user removes something of ours; it may not be there at the moment."""
        family = f"-{version_of(each)}"
        if each[0] == "route":
            words = f"ip {family} route del {each[2]} dev {self.interface} proto 81"
        else:
            words = f"ip {family} {each[0]} del {each[1]} dev {self.interface}"
        self.hand.run(words)

    def replace_resolv_conf(self, content: str, *, link: bool) -> None:
        """Another program puts a file, or a link to nowhere, in the place of resolv.conf."""
        path = self.appvm.qube.path(RESOLV_CONF)
        new = Path(f"{path}.new")
        if link:
            new.symlink_to(content)
        else:
            new.write_text(content)
        new.replace(path)
