# SPDX-License-Identifier: GPL-2.0-or-later
"""One qube with QubesDB and an eth0, the other end of which is a provider of a few `ip` commands.

Smaller than a lab with a world: no DNS, nothing to reach, but every detail can be made wrong. Judged by `Oracle`.
"""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from qubes_guestnet.lab.qube import Qube, Service
from qubes_guestnet.system.qubesdb import store as qubesdb
from tests.support.eventually import eventually
from tests.support.judge.oracle import Json, Oracle
from tests.support.needs import needs

MAC = "00:16:3e:5e:6c:05"
BACKEND_MAC = "fe:ff:ff:ff:ff:ff"
IP, GATEWAY = "10.137.0.5", "10.137.0.1"
IP6, GATEWAY6 = "fd09:24ef:4179::a89:5", "fd09:24ef:4179::a89:1"
DNS, DNS2 = "10.139.1.1", "10.139.1.2"
VIF = "vif5.0"
GATEWAY_FLAG = "guestnet-gateway-route"
RESOLV_CONF = "/etc/resolv.conf"
QUBESDB = "/run/qubes"

ENTRIES = {
    "/qubes-mac": MAC,
    "/qubes-ip": IP,
    "/qubes-netmask": "255.255.255.255",
    "/qubes-gateway": GATEWAY,
    "/qubes-primary-dns": DNS,
    "/qubes-secondary-dns": DNS2,
}
ENTRIES6 = {**ENTRIES, "/qubes-ip6": IP6, "/qubes-gateway6": GATEWAY6}

PROTOCOL = ("81", "qubes")  # with or without our rt_protos.d file
ETH_P_ARP = 0x0806

# A test is a process of its own, whose end is the end of its qubes: no test stops their services one by one.
_alive: list[AppVm] = []


class AppVm:
    """A started qube.

    Args:
        entries: what QubesDB holds from the start; None: there is no QubesDB yet.
        plugged: whether it has its interface from the start.
    """

    def __init__(self, entries: Mapping[str, str] | None = ENTRIES, *, plugged: bool = True) -> None:
        needs("ip", "nsenter")
        _alive.append(self)
        self.qube = Qube("appvm")
        self.provider = self._new_provider("provider")
        self.oracle = Oracle(("nsenter", "-t", str(self.qube.pid), "-n"))
        if entries is not None:
            self.qube.start_store(entries)
        if plugged:
            self.plug()

    def _new_provider(self, name: str) -> Qube:
        made = Qube(name)
        # Proxy ARP answers only for what is routed out of another interface.
        made.wire("""
            ip link add out type veth peer name far; ip link set far up; ip link set out up
            ip route add default dev out
        """)
        return made

    # --- the hypervisor and dom0 -------------------------------------------------------------------------------

    def plug(self, name: str = "eth0", mac: str = MAC, vif: str = VIF, *, arp: str = "proxy", up: bool = True) -> None:
        """Give it an interface.

        Args:
            name: in the qube.
            mac: in the qube.
            vif: the provider's end.
            arp: what the provider answers: "proxy" every request at once, "own" those for the gateway, "off" none.
            up: whether the provider's end is up, which is what gives the qube's end its carrier.
        """
        self.provider.wire(f"""
            ip link add {vif} address {BACKEND_MAC} type veth peer name {name} address {mac} netns {self.qube.pid}
            echo {int(arp == "proxy")} > /proc/sys/net/ipv4/conf/{vif}/proxy_arp
            echo 0 > /proc/sys/net/ipv4/neigh/{vif}/proxy_delay
            echo 1 > /proc/sys/net/ipv4/conf/{vif}/forwarding
            ip address add {GATEWAY}/32 dev {vif}
            {f"ip link set {vif} arp off" if arp == "off" else ""}
            {f"ip link set {vif} up; ip route append {IP}/32 dev {vif}" if up else ""}
        """)

    def unplug(self, vif: str = VIF) -> None:
        """Take its interface away."""
        self.provider.wire(f"ip link delete {vif}")

    def lose_provider(self) -> None:
        """The provider crashes, and another one takes its place."""
        self.provider.kill()
        self.provider = self._new_provider("provider-again")

    def write(self, key: str, value: str | bytes) -> None:
        """Write one entry, as dom0."""
        self._store("write", key, value.encode() if isinstance(value, str) else value)

    def remove(self, key: str) -> None:
        """Remove one entry."""
        self._store("rm", key)

    def _store(self, request: str, *words: Any) -> None:
        store = qubesdb.connect(writable=True, directory=str(self.qube.path(QUBESDB)))
        try:
            getattr(store, request)(*words)
        finally:
            store.close()

    # --- in the qube -------------------------------------------------------------------------------------------

    def ip(self, *words: str) -> None:
        """Change something by hand: `ip WORDS` in the qube."""
        self.oracle.run("ip", *words)

    def agent(self, **named: Any) -> Service:
        """Start the agent and wait until it is ready."""
        return self.qube.start_agent(**named)

    def disable_ipv6(self, on: bool, interface: str = "eth0") -> None:
        """What `sysctl net.ipv6.conf.IFACE.disable_ipv6` sets."""
        self.oracle.run("sh", "-c", f"echo {int(on)} > /proc/sys/net/ipv6/conf/{interface}/disable_ipv6")

    def status(self) -> Json:
        """What `status --json` says."""
        found: Json = json.loads(self.qube.guestnet("status", "--json", check=False).stdout)
        return found

    def codes(self) -> list[str]:
        """The codes that `check` gives."""
        return [finding["code"] for finding in json.loads(self.qube.guestnet("check", "--json", check=False).stdout)]

    @staticmethod
    def program(*words: str) -> list[str]:
        """`qubes-guestnet WORDS` as a command, for `spawn`."""
        return [sys.executable, "-m", "qubes_guestnet", *words]

    def log(self) -> str:
        """What the agent has said."""
        return self.qube.agent.output() if self.qube.agent is not None else "no agent"

    def said(self, text: str) -> int:
        """In how many lines of its log the agent said this."""
        return sum(text in line for line in self.log().splitlines())

    def lost_events(self) -> bool:
        """Whether a netlink socket of the qube has overrun (column Drops of /proc/net/netlink)."""
        lines = self.oracle.run("cat", "/proc/net/netlink").stdout.splitlines()[1:]
        return any(int(line.split()[8]) for line in lines)

    @contextlib.contextmanager
    def monitor(self) -> Iterator[Callable[[], str]]:
        """While it lasts, listen to every change of links, addresses, routes and neighbours.

        Gives a function that tells what `ip monitor` said so far, up to a change of its own.
        """
        watch = self.qube.spawn(
            "monitor", "ip", "-o", "monitor", "link", "address", "route", "neigh", own_processes=False
        )
        flush = ("192.0.2.77", "192.0.2.78")

        def said(mark: str) -> str:
            self.ip("address", "add", f"{mark}/32", "dev", "lo")
            eventually(lambda: mark in watch.output(), what="ip monitor tells")
            self.ip("address", "del", f"{mark}/32", "dev", "lo")
            return watch.output()

        # The kernel tells of its own link-local address once more, after a second without an objection.
        eventually(lambda: "tentative" not in str(self.oracle.ip("address")), what="duplicate detection is over")
        # Its socket listens from some moment on; what it says before is not meant.
        eventually(lambda: self._stirs(watch), what="ip monitor listens")
        begin = len(said(flush[0]))
        # STALE: an entry of the neighbour cache grows old by itself.
        ignored = (*flush, "STALE")
        yield lambda: "\n".join(
            line for line in said(flush[1])[begin:].splitlines() if not any(mark in line for mark in ignored)
        )
        watch.kill()

    def _stirs(self, watch: Service) -> bool:
        self.ip("address", "add", "192.0.2.76/32", "dev", "lo")
        self.ip("address", "del", "192.0.2.76/32", "dev", "lo")
        return "Deleted" in watch.output()

    # --- what must hold ----------------------------------------------------------------------------------------

    def is_configured(self, interface: str = "eth0", **wanted: Any) -> bool:
        """For `eventually`: an assertion that says what is not so, see `check`."""
        self.check(interface, **wanted)
        return True

    def soon_configured(self, interface: str = "eth0", **wanted: Any) -> None:
        """Wait until `check` finds nothing wrong."""
        eventually(lambda: self.is_configured(interface, **wanted), 10.0, "the wanted configuration", self.log)

    def check(
        self,
        interface: str = "eth0",
        *,
        ip: str = f"{IP}/32",
        gateway: str = GATEWAY,
        ip6: str = "",
        gateway6: str = "",
        style: str = "device",
        neighbours: bool = True,
        servers: tuple[str, ...] | None = (DNS, DNS2),
        default: bool = True,
    ) -> None:
        """Assert that the interface has exactly this, and nothing besides.

        Args:
            interface: its name.
            ip: address with length; "" for none.
            gateway: IPv4 gateway; "" for none.
            ip6: IPv6 address with length; "" for none.
            gateway6: IPv6 gateway; "" for none.
            style: of the default route.
            neighbours: whether the gateways have a permanent entry.
            servers: in resolv.conf; None: not looked at.
            default: whether there are default routes.
        """
        link = self.oracle.link(interface)
        assert link is not None, f"no {interface}"
        assert "UP" in link["flags"], "not up"
        assert link.get("group") in ("1", "uplink"), link.get("group")
        assert self.oracle.addresses(interface) == {ip, ip6} - {""}
        wanted4 = [f"{gateway} scope link"] if gateway and (style == "gateway" or not default) else []
        if gateway and default:
            wanted4.append("default scope link" if style == "device" else f"default via {gateway} onlink")
        assert sorted(map(words_of, self.routes(4, interface))) == sorted(wanted4)
        wanted6 = [gateway6] if gateway6 else []
        if gateway6 and default:
            wanted6.append(f"default via {gateway6} onlink")
        assert sorted(map(words_of, self.routes(6, interface))) == sorted(wanted6)
        entries = {address: BACKEND_MAC for address in (gateway, gateway6) if address and neighbours}
        assert self.oracle.neighbours(interface) == entries
        if servers is not None:
            assert self.servers() == list(servers)

    def routes(self, family: int = 4, interface: str = "eth0") -> list[Json]:
        """Routes of the main table out of the interface, all of which must be ours."""
        found = [route for route in self.oracle.routes(family, interface) if route["protocol"] != "kernel"]
        assert all(route["protocol"] in PROTOCOL for route in found), found
        return found

    def identity(self, path: str = RESOLV_CONF) -> tuple[int, int, int]:
        """Of a file: changes when it is replaced, written or given another mode."""
        found = self.qube.path(path).lstat()
        return found.st_ino, found.st_mtime_ns, found.st_mode

    def servers(self) -> list[str]:
        """Name servers in its resolv.conf."""
        lines = (line.split() for line in self.qube.read(RESOLV_CONF).splitlines())
        return [words[1] for words in lines if len(words) == 2 and words[0] == "nameserver"]


def words_of(route: Json) -> str:
    """A route in a few words that do not depend on the version of iproute2."""
    words = [str(route["dst"])]
    if "gateway" in route:
        words += ["via", route["gateway"]]
    if route.get("scope", "global") != "global":
        words += ["scope", route["scope"]]
    return " ".join(words + [flag for flag in route.get("flags", ()) if flag == "onlink"])


class ArpListener:
    """Hears ARP requests at the provider's end, and answers when it is told to.

    Args:
        appvm: whose provider.
        vif: the provider's end.
    """

    def __init__(self, appvm: AppVm, vif: str = VIF) -> None:
        self._socket = appvm.provider.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ARP))
        self._socket.bind((vif, ETH_P_ARP))
        self._socket.settimeout(10)

    def __enter__(self) -> ArpListener:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def request_for(self, address: str) -> bytes:
        """Wait for a request for this address, and give it."""
        while True:
            asked, frame = self.request()
            if asked == address:
                return frame

    def request(self) -> tuple[str, bytes]:
        """Wait for a request; return the address that it is for, and the request."""
        while True:
            frame = self._socket.recv(2048)
            if frame[20:22] == b"\0\1":
                return socket.inet_ntoa(frame[38:42]), frame

    def answer(self, request: bytes) -> None:
        """Answer a request as the provider."""
        mac = bytes.fromhex(BACKEND_MAC.replace(":", ""))
        asker, asked = request[22:32], request[38:42]
        header = struct.pack("!6s6sH", asker[:6], mac, ETH_P_ARP) + struct.pack("!HHBBH", 1, 0x0800, 6, 4, 2)
        self._socket.send(header + mac + asked + asker)
