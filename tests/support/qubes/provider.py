# SPDX-License-Identifier: GPL-2.0-or-later
"""A provider between a world and qubes: the real role, called as Xen's hotplug calls it, and raw packets at every end.

The world is a bare namespace that answers nothing but what a test makes it answer.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Mapping

from qubes_guestnet.lab import xenstore
from qubes_guestnet.lab.qube import QUBESDB_FOLDER, Qube, Service
from qubes_guestnet.system.qubesdb import store as qubesdb
from tests.support.eventually import eventually
from tests.support.judge.oracle import Json, Oracle
from tests.support.needs import needs
from tests.support.packets.ports import Inside, Port

VIF_MAC, WORLD_MAC, UPLINK_MAC = "fe:ff:ff:ff:ff:ff", "02:00:00:00:00:02", "02:00:00:00:00:01"
GATEWAY, GATEWAY6 = "10.138.0.1", "fd09:24ef:4179::a8a:1"
UPLINK, LAN = "ens6", "lan"
ROUTER, OWN = "192.168.0.1", "192.168.0.2"
ROUTER6, OWN6 = "2000:abcd::1", "2000:abcd::2"
WORLD, WORLD6 = "198.51.100.7", "2000:abcd:1::7"
DNS, DNS2 = "10.139.1.1", "10.139.1.2"
HALTED, HALTED6 = "10.137.0.99", "fd09:24ef:4179::a89:63"
HOTPLUG_LOG = "/var/log/xen/xen-hotplug.log"
HOOKS = "/rw/config/network-hooks.d"
REAL_NFT = "/run/lab/nft"
ENTRIES = {
    "/qubes-netvm-network": GATEWAY,
    "/qubes-netvm-gateway": GATEWAY,
    "/qubes-netvm-primary-dns": DNS,
    "/qubes-netvm-secondary-dns": DNS2,
    "/connected-ips": HALTED,
}
ENTRIES6 = {**ENTRIES, "/qubes-netvm-gateway6": GATEWAY6, "/connected-ips6": HALTED6}
GROUP_VIF = ("2", "vif")
FORWARDING = {4: "ipv4/ip_forward", 6: "ipv6/conf/all/forwarding"}


class Client:
    """A qube behind the provider.

    Args:
        number: of its domain, and the last part of its addresses.
        addresses: as xenstore has them.
        device: number of this interface.
        bare: there is no such qube, only its interface.
    """

    def __init__(self, number: int, addresses: Iterable[str], device: int = 0, *, bare: bool = False) -> None:
        self.number, self.device, self.addresses = number, device, tuple(addresses)
        self.vif, self.mac = f"vif{number}.{device}", f"00:16:3e:5e:6c:{number & 255:02x}"
        self.folder = f"backend/vif/{number}/{device}"
        self.qube: Qube
        self.port: Port
        if not bare:
            self.qube = Qube(f"vm{number}-{device}")

    @property
    def ip(self) -> str:
        """Its IPv4 address."""
        return self.addresses[0]

    @property
    def ip6(self) -> str:
        """Its IPv6 address."""
        return self.addresses[1]


class Provider:
    """The provider.

    Args:
        entries: its QubesDB.
        flag: whether the service flag of a provider is set.
        rules: load them, as the unit before any network does.
        agent: start the resident one.
        servers: in its resolv.conf.
        uplink: whether it has one.
        name: of it and of its world, where another provider is there as well.
    """

    def __init__(
        self, entries: Mapping[str, str] = ENTRIES, *, flag: bool = True, rules: bool = True, agent: bool = True,
        servers: Iterable[str] = (ROUTER,), uplink: bool = True, name: str = "",
    ) -> None:  # fmt: skip
        needs("ip", "nft", "nsenter", "conntrack")
        self.qube, self.world = Qube(f"{name}provider"), Qube(f"{name}world")
        self.oracle = Oracle(("nsenter", "-t", str(self.qube.pid), "-n"))
        self.ipv6 = "/qubes-netvm-gateway6" in entries
        xenstore.install(self.qube)
        self.qube.run("mount", "-t", "tmpfs", "log", "/var/log")
        self.qube.run("mkdir", "-p", "/var/log/xen", HOOKS)
        self.qube.set_flag("qubes-network", flag)
        self.resolv_conf(*servers)
        self.qube.start_store(entries)
        if rules:
            self.qube.guestnet("rules", "load")
        if uplink:
            self.cable()
        if agent:
            self.qube.start_agent()

    def cable(self, name: str = UPLINK) -> None:
        """Connect it with the world, as its owner's NetworkManager would."""
        self.qube.wire(f"""
            ip link add {name} address {UPLINK_MAC} type veth peer name {LAN} address {WORLD_MAC} netns {self.world.pid}
            echo 0 > /proc/sys/net/ipv6/conf/{name}/accept_dad  # else its link-local address counts only after a second
            ip link set {name} up; ip address add {OWN}/24 dev {name}; ip -6 address add {OWN6}/64 dev {name} nodad
        """)
        self.world.wire(f"""
            echo 1 > /proc/sys/net/ipv4/ip_forward; ip link set {LAN} up
            ip address add {ROUTER}/24 dev {LAN}; ip -6 address add {ROUTER6}/64 dev {LAN} nodad
            ip address add {WORLD}/32 dev lo; ip -6 address add {WORLD6}/128 dev lo nodad
            ip neighbour replace {OWN} lladdr {UPLINK_MAC} nud permanent dev {LAN}
            ip -6 neighbour replace {OWN6} lladdr {UPLINK_MAC} nud permanent dev {LAN}
            nft 'add table inet quiet; add chain inet quiet in {{ type filter hook input priority 0; }}
                 add rule inet quiet in udp dport 9 drop'
        """)
        self.qube.wire(f"""
            ip route replace default via {ROUTER} dev {name}; ip -6 route replace default via {ROUTER6} dev {name}
            ip neighbour replace {ROUTER} lladdr {WORLD_MAC} nud permanent dev {name}
            ip -6 neighbour replace {ROUTER6} lladdr {WORLD_MAC} nud permanent dev {name}
        """)

    # --- dom0, Xen, its owner ----------------------------------------------------------------------------------

    def write(self, key: str, value: str) -> None:
        """Write one entry, as dom0."""
        self._store("write", key, value.encode())

    def remove(self, key: str) -> None:
        """Remove one entry."""
        self._store("rm", key)

    def _store(self, request: str, *words: object) -> None:
        store = qubesdb.connect(writable=True, directory=str(self.qube.path(QUBESDB_FOLDER)))
        try:
            getattr(store, request)(*words)
        finally:
            store.close()

    def resolv_conf(self, *servers: str) -> None:
        """Write the file in one step, as NetworkManager does."""
        self.qube.write("/etc/resolv.conf.new", "".join(f"nameserver {server}\n" for server in servers))
        self.qube.path("/etc/resolv.conf.new").replace(self.qube.path("/etc/resolv.conf"))

    def plug(self, number: int = 4, *addresses: str, device: int = 0) -> Client:
        """A qube starts: its interface, both ends, and what xenstore says of it. Hotplug is not called."""
        usual = (f"10.137.0.{number}", *((f"fd09:24ef:4179::a89:{number:x}",) if self.ipv6 else ()))
        behind = Client(number, addresses or usual, device)
        self.describe(behind)
        self.wire(behind)
        return behind

    def plug_bare(self, number: int) -> Client:
        """The same, at the cost of a device: its other end is empty."""
        behind = Client(number, [f"10.137.0.{number}", *([f"fd09:24ef:4179::a89:{number:x}"] * self.ipv6)], bare=True)
        self.describe(behind)
        self.qube.wire(f"ip link add {behind.vif} address {VIF_MAC} type veth peer name far{number}")
        return behind

    def describe(self, behind: Client, **nodes: str) -> None:
        """Xenstore's nodes of a vif."""
        said = {"mac": behind.mac, "type": "vif", "ip": " ".join(behind.addresses), **nodes}
        xenstore.fill(self.qube, behind.folder, said)

    def wire(self, behind: Client) -> None:
        """The device comes; the qube's end is up and configured from the first moment, and waits for a carrier."""
        self.qube.wire(
            f"ip link add {behind.vif} address {VIF_MAC} type veth peer name eth0 address {behind.mac} "
            f"netns {behind.qube.pid}"
        )
        own = "".join(f"ip address add {address} dev eth0 nodad; " for address in behind.addresses if ":" in address)
        own += "".join(f"ip address add {address}/32 dev eth0; " for address in behind.addresses if ":" not in address)
        behind.qube.wire(f"""
            ip link set eth0 up; {own}
            ip neighbour replace {GATEWAY} lladdr {VIF_MAC} nud permanent dev eth0
            ip route replace default via {GATEWAY} dev eth0 onlink
            ip -6 neighbour replace {GATEWAY6} lladdr {VIF_MAC} nud permanent dev eth0
            ip -6 route replace default via {GATEWAY6} dev eth0 onlink
        """)
        behind.port = Port(behind.qube, "eth0", VIF_MAC)

    def unplug(self, behind: Client) -> None:
        """Its device goes."""
        self.qube.wire(f"ip link delete {behind.vif}")

    @staticmethod
    def environment(behind: Client) -> dict[str, str]:
        """What Xen's hotplug gives to its script."""
        return {"vif": behind.vif, "ip": " ".join(behind.addresses), "XENBUS_PATH": behind.folder}

    def call(self, action: str, behind: Client, **changed: str) -> subprocess.CompletedProcess[str]:
        """`vif ACTION`, whatever becomes of it."""
        environment = {**self.environment(behind), **changed}
        return self.qube.guestnet("vif", action, check=False, env=environment, timeout=25.0)

    def online(self, behind: Client, **changed: str) -> None:
        """`vif online`, which must succeed and tell Xen so; what is said of a user's hook is no trouble of ours."""
        done = self.call("online", behind, **changed)
        complaints = [line for line in done.stderr.splitlines() if not line.startswith("hook ")]
        assert (done.returncode, complaints) == (0, []), self.trouble()
        assert self.node(behind, "hotplug-status") == "connected"

    def offline(self, behind: Client) -> None:
        """`vif offline`, which must succeed and say nothing of an error."""
        done = self.call("offline", behind)
        assert (done.returncode, done.stderr) == (0, "")

    def attach(self, number: int = 4, *addresses: str, device: int = 0) -> Client:
        """A qube starts and is connected."""
        behind = self.plug(number, *addresses, device=device)
        self.online(behind)
        return behind

    def node(self, behind: Client, name: str) -> str:
        """What xenstore has of a vif."""
        return xenstore.node(self.qube, f"{behind.folder}/{name}")

    def hook(self, text: str, name: str = "hook") -> None:
        """Put a network hook there."""
        self.qube.write(f"{HOOKS}/{name}", f"#!/bin/sh\n{text}\n")
        self.qube.path(f"{HOOKS}/{name}").chmod(0o755)

    # --- its state -------------------------------------------------------------------------------------------------

    @property
    def agent(self) -> Service:
        """The resident agent that was started."""
        assert self.qube.agent is not None
        return self.qube.agent

    def trouble(self) -> str:
        """For messages: the agent's log and Xen's."""
        log = self.qube.agent.output() if self.qube.agent is not None else "no agent"
        return f"{log}\n{self.qube.read(HOTPLUG_LOG)}"

    def nft(self, text: str) -> None:
        """Change rules as another program does."""
        self.qube.run("nft", text)

    def replace_nft(self, program: str) -> None:
        """From now on nft is another program; `real_nft` still runs the right one."""
        self.qube.run("sh", "-ec", f"cp /usr/sbin/nft {REAL_NFT}; mount --bind {program} /usr/sbin/nft")

    def real_nft(self, text: str) -> None:
        """Change rules while nft is replaced."""
        self.qube.run(REAL_NFT, text)

    def restore_nft(self) -> None:
        """Nft is itself again."""
        self.qube.run("umount", "--lazy", "/usr/sbin/nft")  # one that runs just now goes on

    def elements(self, name: str, family: str = "ip") -> set[str]:
        """Elements of a set of ours, those with two parts as "vif4.0 10.137.0.4"."""
        done = self.oracle.run("nft", "-j", "list", "set", family, "qubes", name, check=False)
        found = json.loads(done.stdout)["nftables"] if not done.returncode else []
        parts = [one for entry in found for one in entry.get("set", {}).get("elem", ())]
        return {" ".join(one["concat"]) if isinstance(one, dict) else one for one in parts}

    def rules(self, family: str, chain: str) -> list[str]:
        """The rules of a chain in nft's words, without counters."""
        lines = self.oracle.run("nft", "-s", "list", "table", family, "qubes", check=False).stdout.splitlines()
        head = f"\tchain {chain} {{"
        if head not in lines:
            return []
        block = lines[lines.index(head) + 1 :]
        return [line.strip() for line in block[: block.index("\t}")] if not line.strip().startswith("type ")]

    def guarded(self) -> None:
        """Wait until the resident agent has its guard up."""
        eventually(
            lambda: "chain" in self.oracle.run("nft", "list", "table", "inet", "qubes-guard", check=False).stdout
        )

    def settled(self) -> tuple[object, ...]:
        """All that is to come back by itself: the rules of our chains, the sets, and the switches of forwarding."""
        ours = ("prerouting", "antispoof", "egress", "postrouting", "input", "forward", "dnat-dns", "dns-reject")
        return (
            [self.rules(family, chain) for family in ("ip", "ip6") for chain in ours],
            [self.elements(name, family) for family in ("ip", "ip6") for name in ("allowed", "downstream")],
            self.oracle.run("nft", "-s", "list", "table", "ip", "qubes", check=False).stdout.count("flags"),
            self.forwards(4), self.forwards(6),
        )  # fmt: skip

    def forwards(self, version: int = 4) -> bool:
        """What the kernel says."""
        return self.tunable(FORWARDING[version]) == "1"

    def tunable(self, path: str) -> str:
        """A setting below /proc/sys/net, which shows everybody his own."""
        return self.oracle.run("cat", f"/proc/sys/net/{path}").stdout.strip()

    def routes(self, vif: str, version: int = 4) -> list[tuple[str, int]]:
        """(destination, metric) of the routes out of a vif, without the kernel's own."""
        found = self.oracle.routes(version, vif)
        return [(route["dst"], route.get("metric", 0)) for route in found if route["protocol"] != "kernel"]

    def link(self, vif: str) -> Json:
        """The vif, which must be there."""
        found = self.oracle.link(vif)
        assert found is not None
        return found

    def connections(self) -> str:
        """All of conntrack."""
        return self.oracle.run("conntrack", "-L", "-o", "extended").stdout

    def state(self, vif: str) -> tuple[object, ...]:
        """All that is made for a vif, for comparisons."""
        link = self.link(vif)
        return (
            link["flags"], link["group"], self.oracle.addresses(vif), self.oracle.neighbours(vif),
            self.routes(vif), self.routes(vif, 6), self.elements("allowed"), self.elements("allowed", "ip6"),
            self.elements("downstream"), self.elements("downstream", "ip6"),
            self.qube.read(f"/run/qubes-guestnet/vifs/{vif}"),
        )  # fmt: skip

    def drops(self, chain: str, family: str = "ip") -> int:
        """Packets that the rules of a chain with a counter have dropped or refused."""
        found = json.loads(self.oracle.run("nft", "-j", "list", "table", family, "qubes").stdout)["nftables"]
        rules = [entry["rule"]["expr"] for entry in found if entry.get("rule", {}).get("chain") == chain]
        return sum(
            part["counter"]["packets"]
            for rule in rules
            if "drop" in rule[-1] or "reject" in rule[-1]
            for part in rule
            if "counter" in part
        )

    # --- packets -----------------------------------------------------------------------------------------------

    def outside(self) -> Port:
        """The world's end of the cable, also able to speak for anybody."""
        return Port(self.world, LAN, UPLINK_MAC)

    def inside(self, version: int = 4) -> Inside:
        """What passes the provider's own input rules from now on."""
        return Inside(self.qube, version)

    def works(self, behind: Client, port: Port | None = None, version: int = 4) -> bool:
        """Whether a packet of the qube comes out at the world's end, translated."""
        outside = port or self.outside()
        source, target, own = (behind.ip, WORLD, OWN) if version == 4 else (behind.ip6, WORLD6, OWN6)
        behind.port.send(source, target, "works")
        return outside.hears(lambda packet: packet.word == "works" and packet.source == own)


def several(host: Provider, action: str, behinds: Iterable[Client]) -> list[tuple[int, str]]:
    """`vif ACTION` for all of them at the same time: exit status and complaints of each."""
    started = [
        host.qube.spawn(f"vif-{behind.vif}", sys.executable, "-m", "qubes_guestnet", "vif", action,
                           env=host.environment(behind))
        for behind in behinds
    ]  # fmt: skip
    return [(service.wait(30.0), service.output()) for service in started]
