# SPDX-License-Identifier: GPL-2.0-or-later
"""A provider of the lab with many vifs, for the benchmarks: one more of them comes and goes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.stage import BASELINE, TREE, Failed, Took, child_environment, command
from qubes_guestnet.core.provider import vif as vif_rules
from qubes_guestnet.lab import xenstore
from qubes_guestnet.lab.qube import Qube, Service

GATEWAY, GATEWAY6 = "10.137.0.1", "fd09:24ef:4179::a89:1"
ENTRIES = {
    "/qubes-netvm-network": GATEWAY,
    "/qubes-netvm-gateway": GATEWAY,
    "/qubes-netvm-gateway6": GATEWAY6,
    "/qubes-netvm-netmask": "255.255.255.0",
    "/qubes-netvm-primary-dns": "10.139.1.1",
    "/qubes-netvm-secondary-dns": "10.139.1.2",
}
VIF_MAC, QUBE_MAC = "fe:ff:ff:ff:ff:ff", "00:16:3e:5e:6c:05"
SOCKET = "/run/qubes-guestnet/vif.sock"
ENFORCES = "/run/qubes-guestnet/firewall"
PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
_TOOLS = "/run/lab"


def compiled() -> Path:
    """A folder with the programs that both contenders use: qdb-read, xenstore-read, xenstore-write. To be removed."""
    folder = Path(tempfile.mkdtemp(dir="/run"))
    for program, source in (("qdb-read", "qdb-read.c"), ("xenstore-read", "xenstore.c")):
        subprocess.run(["cc", "-O2", "-o", str(folder / program), str(BASELINE / source)], check=True)
    shutil.copy2(folder / "xenstore-read", folder / "xenstore-write")
    # As a package does when it is installed.
    subprocess.run([sys.executable, "-m", "compileall", "-q", str(TREE / "qubes_guestnet")], check=True)
    return folder


def name(number: int) -> str:
    """Of the vif to the qube with this number, from 1."""
    return f"vif{number}.0"


def addresses(number: int) -> tuple[str, str]:
    """IPv4 and IPv6 address of that qube."""
    return f"10.137.{1 + number // 250}.{1 + number % 250}", f"fd09:24ef:4179::a89:{0x100 + number:x}"


def folder(number: int) -> str:
    """Of that vif in xenstore."""
    return f"backend/vif/{number}/0"


class Provider:
    """A provider with `number` - 1 vifs in service, and the next one to come.

    Args:
        far: a qube whose network has the other ends of the vifs.
        tools: by `compiled`.
        number: of the vif that comes and goes.
        resident: the agent goes on running; else it only makes the vifs that are there already.
        firewall: it enforces the lists of the qubes.
    """

    def __init__(self, far: Qube, tools: Path, number: int, *, resident: bool, firewall: bool = False) -> None:
        self.number, self.resident = number, resident
        self._far = far
        kind = "firewall" if firewall else "resident" if resident else "cold"
        self._far_name = f"{kind[0]}{number}x"
        self.qube = Qube(f"{kind}-{number}")
        self._agent: Service | None = None
        self.qube.start_store(ENTRIES)
        self.qube.set_flag("qubes-network")
        if firewall:
            self.qube.set_flag("qubes-firewall")
            self.qube.write(ENFORCES, "")
        self.qube.write("/etc/resolv.conf", "nameserver 192.0.2.53\n")
        xenstore.install(self.qube)
        for program in tools.iterdir():
            shutil.copy2(program, self.qube.path(f"{_TOOLS}/{program.name}"))
        self.qube.guestnet("rules", "load")
        self._inside = self._enter()
        self.in_a_row = self._fill()

    def _enter(self) -> subprocess.Popen[str]:
        pid = ["nsenter", "--target", str(self.qube.pid), "--net", "--mount", "--uts", "--ipc", "--pid", "--"]
        pipe = subprocess.PIPE
        return subprocess.Popen(
            [*pid, sys.executable, "-m", "bench.inside"], env={**child_environment(), "PYTHONPATH": str(TREE)},
            stdin=pipe, stdout=pipe, text=True, cwd=TREE,
        )  # fmt: skip

    def _fill(self) -> list[float]:
        """Put the vifs into service that are there before; milliseconds that each took."""
        agent = self.qube.start_agent()
        self._plug(range(1, self.number))
        took = [self.ask("online", number).wall * 1e3 for number in range(1, self.number)]
        if self.resident:
            self._agent = agent
        else:
            agent.stop()
        return took

    def _plug(self, numbers: range) -> None:
        """Devices come, all in one batch."""
        if not numbers:
            return
        lines = "".join(
            f"link add {name(number)} address {VIF_MAC} type veth "
            f"peer name {self._far_name}{number} address {QUBE_MAC} netns {self._far.pid}\n"
            for number in numbers
        )
        self.qube.wire(f"ip -batch - <<'END'\n{lines}END")

    def _exchange(self, question: dict[str, Any], words: str) -> Took:
        assert self._inside.stdin is not None
        assert self._inside.stdout is not None
        self._inside.stdin.write(json.dumps(question) + "\n")
        self._inside.stdin.flush()
        line = self._inside.stdout.readline()
        answer: dict[str, Any] = json.loads(line) if line else {"problem": "the helper in the qube ended"}
        if answer["problem"]:
            raise Failed(f"{self.qube.name}: {words}: {answer['problem']}")
        return Took(answer["wall"], answer["cpu"])

    # --- what is measured --------------------------------------------------------------------------------------

    def ask(self, action: str, number: int = 0) -> Took:
        """Ask the resident agent; by default about the vif that comes and goes."""
        number = number or self.number
        text = " ".join(addresses(number)).encode()
        vif = vif_rules.described(name(number), QUBE_MAC.encode(), b"vif", text)
        question = {"ask": vif_rules.ask(action, vif).decode(), "socket": SOCKET}
        return self._exchange(question, f"vif {action} by the socket")

    def command(self) -> Took:
        """The whole command, as Xen's hotplug calls it."""
        return self._run(command(sys.executable, "vif", "online"))

    def script(self) -> Took:
        """The same by the shell script."""
        return self._run([str(BASELINE / "vif.sh")])

    def _run(self, words: list[str]) -> Took:
        number = self.number
        environment = {
            "PATH": PATH, "QDB_READ": f"{_TOOLS}/qdb-read", "vif": name(number), "XENBUS_PATH": folder(number),
            "ip": " ".join(addresses(number)),
        }  # fmt: skip
        return self._exchange({"run": words, "environment": environment}, " ".join(words))

    def start(self, words: list[str], lists: int = 0) -> float:
        """Start a program that stays; seconds until the firewall has as many lists in force."""
        question = {"start": words, "lists": lists, "environment": {"PATH": PATH, "PYTHONPATH": str(TREE)}}
        return self._exchange(question, " ".join(words)).wall

    def stop(self) -> None:
        """End the agent, or the program that was started."""
        if self._agent is not None:
            self._agent.stop()
            self._agent = None
        self._exchange({"stop": True}, "stop")

    # --- what is not -------------------------------------------------------------------------------------------

    def plug(self) -> None:
        """The device comes, as new, and xenstore says whose it is."""
        self._plug(range(self.number, self.number + 1))
        xenstore.fill(self.qube, folder(self.number), {"mac": QUBE_MAC, "type": "vif"})

    def unplug(self) -> None:
        """Remove it and take it out of service; without an agent by plain commands, whichever program made it."""
        device = name(self.number)
        self.qube.wire(f"ip link delete {device}")
        xenstore.clear(self.qube, folder(self.number))
        if self.resident:
            self.ask("offline")
            return
        self.qube.path(f"/run/qubes-guestnet/vifs/{device}").unlink(missing_ok=True)
        text = "".join(
            f'delete element {family} qubes allowed {{ "{device}" . {address} }}\n'
            f"delete element {family} qubes downstream {{ {address} }}\n"
            for family, address in zip(("ip", "ip6"), addresses(self.number), strict=True)
        )
        # The script knows nothing of this one.
        element = f'element arp qubes allowed {{ "{device}" . {addresses(self.number)[0]} . {QUBE_MAC} }}\n'
        text += f"add {element}delete {element}"
        self.qube.wire(f"nft -f - <<'END'\n{text}END")

    def confirm(self, who: str) -> None:
        """Raise Failed unless the vif is in service, by `ip`, `nft` and /proc alone."""
        device, (ip4, ip6) = name(self.number), addresses(self.number)
        done = self.qube.run("sh", "-ec", _QUESTIONS.format(device=device, ip4=ip4, ip6=ip6), check=False)
        if done.returncode:
            raise Failed(f"{who}: {device} is not in service: {done.stdout}{done.stderr}")
        links, *objects = (json.loads(line) for line in done.stdout.splitlines())
        (link,) = links
        local = {address["local"] for address in link["addr_info"]} - {None}
        neighbours = {(entry["dst"], entry["lladdr"], tuple(entry["state"])) for entry in objects[0]}
        routes = {(route["dst"], route["metric"]) for listed in objects[1:] for route in listed if "metric" in route}
        metric = 32752 - self.number
        wanted_neighbours = {(address, QUBE_MAC, ("PERMANENT",)) for address in (ip4, ip6)}
        good = (
            "UP" in link["flags"] and link["group"] == "2" and {GATEWAY, GATEWAY6} <= local
            and wanted_neighbours <= neighbours and {(ip4, metric), (ip6, metric)} <= routes
        )  # fmt: skip
        if not good:
            raise Failed(f"{who}: {device} is not in service: {done.stdout}")

    def settle(self, seconds: float) -> None:
        """Longer than the agent's quiet period: it then has looked at what came before."""
        time.sleep(seconds)

    def close(self) -> None:
        """End it."""
        assert self._inside.stdin is not None
        self._inside.stdin.close()
        self._inside.wait()
        self.qube.kill()


_QUESTIONS = """
ip -json -details address show dev {device}
ip -json neighbour show dev {device} nud permanent
ip -json -4 route show dev {device} proto 81
ip -json -6 route show dev {device} proto 81
exec >&2
nft get element ip qubes allowed '{{ "{device}" . {ip4} }}'
nft get element ip6 qubes allowed '{{ "{device}" . {ip6} }}'
nft get element ip qubes downstream '{{ {ip4} }}'
nft get element ip6 qubes downstream '{{ {ip6} }}'
for setting in ipv4/conf/{device}/proxy_arp=1 ipv4/neigh/{device}/proxy_delay=0 ipv6/conf/{device}/proxy_ndp=1 \\
    ipv6/conf/{device}/disable_ipv6=0 ipv6/conf/{device}/drop_unsolicited_na=1 ipv6/conf/{device}/accept_ra=0; do
    value=$(cat "/proc/sys/net/${{setting%=*}}")
    [ "$value" = "${{setting#*=}}" ] || {{ echo "$setting is $value"; exit 1; }}
done
"""
