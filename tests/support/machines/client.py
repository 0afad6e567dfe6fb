# SPDX-License-Identifier: GPL-2.0-or-later
"""A qube behind a booted provider: a namespace on the other end of a vif, attached as Xen attaches one.

Xen's part is a stand-in: a folder for xenstore, and the two programs that read and write it, in the place of the real
ones. The hotplug script is whatever the machine has under its well-known name.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.support.eventually import eventually
from tests.support.judge.oracle import Oracle
from tests.support.machines.machine import Machine, Mounts, end, line_of, spawn
from tests.support.needs import needs
from tests.support.packets.losses import every_packet_returns

SCRIPT = "/etc/xen/scripts/vif-route-qubes"
VIF_MAC = "fe:ff:ff:ff:ff:ff"
XENSTORE = "/run/xenstore-stand-in"
# By the shell alone: a test counts processes.
READ = f"""\
#!/bin/sh
[ "$1" != -- ] || shift
for path; do
    [ -f "{XENSTORE}/$path" ] || {{ echo "xenstore-read: couldn't read path $path" >&2; exit 1; }}
    IFS= read -r value <"{XENSTORE}/$path"
    echo "$value"
done
"""
WRITE = f"""\
#!/bin/sh
[ "$1" != -- ] || shift
while [ $# -gt 1 ]; do
    [ -d "{XENSTORE}/${{1%/*}}" ] || mkdir -p "{XENSTORE}/${{1%/*}}"
    echo "$2" >"{XENSTORE}/$1"
    shift 2
done
"""


def put_xenstore(mounts: Mounts, root: Path) -> None:
    """The stand-ins for Xen's programs, into a root that is not running."""
    for name, text in (("xenstore-read", READ), ("xenstore-write", WRITE)):
        path = f"{root}/tree/usr/bin/{name}"
        # The real ones are links to one program.
        mounts.run(f"rm -f {path}; cat >{path} <<'END'\n{text}END\nchmod +x {path}")


class Client:
    """One qube.

    Args:
        provider: the machine that provides its network.
        domid: number of its domain; its first interface is vif<domid>.0 there.
    """

    def __init__(self, provider: Machine, domid: int = 4) -> None:
        needs("unshare", "nsenter", "ip", "ping")
        self.provider, self.domid = provider, domid
        self.vif, self.folder = f"vif{domid}.0", f"backend/vif/{domid}/0"
        self.address, self.address6 = f"10.137.0.{100 + domid}", f"fd09:24ef:4179::a89:{100 + domid:x}"
        self._holder = spawn("unshare", "--net", "sh", "-c", "ip link set lo up; echo ready; exec sleep infinity")
        assert line_of(self._holder) == "ready"
        self.inside = Oracle(["nsenter", "-t", str(self._holder.pid), "--net"])

    def plug(self, gateway6: str = "", *, visible: str = "") -> None:
        """What the toolstack does in dom0: entries in xenstore, and a pair of devices.

        Args:
            gateway6: the qube has IPv6 too, by this gateway.
            visible: the address that the qube is told, when that is not its real one.
        """
        entries = {"mac": f"00:16:3e:5e:7c:{self.domid:02x}", "type": "vif", "ip": f"{self.address} {self.address6}"}
        for leaf, value in entries.items():
            self.provider.run("xenstore-write", f"{self.folder}/{leaf}", value)
        Oracle(["nsenter", "-t", str(self.provider.leader), "--net"]).run(
            *("ip", "link", "add", self.vif, "address", VIF_MAC, "type", "veth"),
            *("peer", "name", "eth0", "address", entries["mac"], "netns", str(self._holder.pid)),
        )
        for words in (
            "link set eth0 up",
            f"address add {visible or self.address}/32 dev eth0",
            "route add default dev eth0 scope link",
            *((f"-6 address add {self.address6}/128 dev eth0 nodad",) if gateway6 else ()),
            *((f"-6 neighbour add {gateway6} lladdr {VIF_MAC} dev eth0 nud permanent",) if gateway6 else ()),
            *((f"-6 route add default via {gateway6} dev eth0 onlink",) if gateway6 else ()),
        ):
            self.inside.run("ip", *words.split())

    def hotplug(self, command: str = "online", *, device: str = "vif", check: bool = True) -> str:
        """What Xen calls in the provider, with the search path that its daemon has; then dom0 commits the rules."""
        said = self.provider.run(*self.call(command, device), check=check)
        if (command, device) == ("online", "vif"):
            commit((self,))
        return said

    def call(self, command: str, device: str = "vif") -> list[str]:
        """The words of that call."""
        given = (f"vif={self.vif}", f"XENBUS_PATH={self.folder}", f"script={SCRIPT}", "PATH=/usr/bin:/bin")
        return ["env", "-i", *given, SCRIPT, command, f"type_if={device}"]

    def xenstore(self, leaf: str) -> str:
        """What is at a place of its backend; "" when nothing is."""
        return self.provider.run("sh", "-c", f"cat {XENSTORE}/{self.folder}/{leaf} 2>/dev/null || :")

    def unplug(self) -> None:
        """The qube ends: its device goes, and then Xen calls the script."""
        self.inside.run("ip", "link", "delete", "eth0")
        self.hotplug("offline")

    def reaches(self, address: str) -> bool:
        """Whether a ping is answered."""
        return self.inside.reaches(address)

    @contextmanager
    def every_packet_returns(self, address: str, what: str = "") -> Iterator[None]:
        """No ping of 50 a second is lost meanwhile."""
        with every_packet_returns(self.inside.prefix, address, what):
            yield

    def close(self) -> None:
        """Nothing of it is left."""
        end(self._holder)


def hotplug_all(qubes: Iterable[Client]) -> None:
    """What Xen does when many qubes come at once, as after a restart of their provider: no call waits for another."""
    qubes = list(qubes)
    calls = "".join(f"{' '.join(qube.call('online'))} & " for qube in qubes)
    qubes[0].provider.run("sh", "-c", f"{calls} wait")


def commit(qubes: Iterable[Client], *rules: str) -> None:
    """What dom0 writes for a provider that has the service qubes-firewall: rules of qubes behind it, and the commit.

    Args:
        qubes: all of one provider.
        rules: as they are in QubesDB; none: everything is accepted. Where the unit is started they are waited for.
    """
    rules = rules or ("action=accept",)
    qubes = list(qubes)
    if "qubes-firewall" not in qubes[0].provider.flags:
        return
    pairs = list[str]()
    for qube in qubes:
        for address, other in ((qube.address, " dst6="), (qube.address6, " dst4=")):
            base = f"/qubes-firewall/{address}"
            pairs += (f"{base}/policy", "drop")
            for number, rule in enumerate(each for each in rules if other not in each):
                pairs += (f"{base}/{number:04}", rule)
            pairs += (base, "")
    provider = qubes[0].provider
    provider.write(*pairs)
    if provider.inside.run("test", "-e", "/run/qubes-guestnet/firewall", check=False).returncode == 0:
        wanted = {address for qube in qubes for address in (qube.address, qube.address6)}
        eventually(
            lambda: wanted <= _mapped(provider), what="rules", trouble=lambda: provider.journal("qubes-guestnet")
        )


def _mapped(provider: Machine) -> set[str]:
    """The addresses that have rules."""
    listed = (provider.run("nft", "list", "map", family, "qubes-firewall", "qubes") for family in ("ip", "ip6"))
    return {word for text in listed for word in text.replace(",", " ").split()}


def attached(machine: Machine, stack: ExitStack, domid: int, gateway6: str) -> Client:
    """A new qube behind a provider, until the stack is closed."""
    another = Client(machine, domid)
    stack.callback(another.close)
    another.plug(gateway6)
    another.hotplug()
    return another
