# SPDX-License-Identifier: GPL-2.0-or-later
"""A namespace that forwards between a vif and the outside, and packet sockets at both ends.

For a test that is a process of its own in namespaces of its own (`isolated`). The far ends are in one more namespace,
which has no addresses and answers nothing.
"""

from __future__ import annotations

import socket
import subprocess
from ipaddress import ip_address
from pathlib import Path

from qubes_guestnet.lab.namespaces import die_with_parent, socket_in
from tests.support.needs import needs
from tests.support.packets.ports import MARK, UDP, Port, udp
from tests.support.packets.wire import sum_of

TCP, SCTP, ICMP = 6, 132, {4: 1, 6: 58}
VIF, VIF_MAC, OUT, OUT_MAC = "vif4.0", "fe:ff:ff:ff:ff:ff", "out0", "02:00:00:00:00:01"
OWN = {4: "10.138.0.1", 6: "fd09:24ef:4179::a8a:1"}
WIRING = f"""
    ip link set lo up
    ip link add {VIF} address {VIF_MAC} type veth peer name qube netns PEERS
    ip link add {OUT} address {OUT_MAC} type veth peer name outside netns PEERS
    ip link set {VIF} arp off up
    ip link set {OUT} arp off up
    ip addr add {OWN[4]}/32 dev {VIF}
    ip addr add {OWN[6]}/128 dev {VIF} nodad
    ip route add 10.137.0.0/16 dev {VIF}
    ip -6 route add fd09::/16 dev {VIF}
    ip route add default dev {OUT}
    ip -6 route add default dev {OUT}
"""
SETTINGS = {
    "ipv4/ip_forward": "1",
    "ipv6/conf/all/forwarding": "1",
    "ipv4/conf/all/rp_filter": "0",
    f"ipv4/conf/{VIF}/rp_filter": "0",
    "ipv4/icmp_ratelimit": "0",
    "ipv6/icmp/ratelimit": "0",
}


# A test is a process of its own, whose end is the end of them all.
_holders: list[subprocess.Popen[bytes]] = []


class Peers:
    """The far ends: `qube` behind the vif, and `outside`."""

    def __init__(self) -> None:
        needs("ip", "nft", "unshare")
        script = "echo 1 >/proc/sys/net/ipv6/conf/default/disable_ipv6; echo ready; exec sleep infinity"
        command = ["unshare", "--net", "sh", "-c", script]
        self._holder = subprocess.Popen(command, stdout=subprocess.PIPE, preexec_fn=die_with_parent)
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == b"ready\n"
        self._holder.stdout.close()
        _holders.append(self._holder)
        pid = self._holder.pid
        for line in WIRING.replace("PEERS", str(pid)).strip().splitlines():
            subprocess.run(line.split(), check=True)
        for end in ("qube", "outside"):
            subprocess.run(["nsenter", "-t", str(pid), "--net", "ip", "link", "set", end, "up"], check=True)
        for path, value in SETTINGS.items():
            Path("/proc/sys/net", path).write_text(value)
        self.qube = Port(self, "qube", VIF_MAC)  # type: ignore[arg-type]
        self.outside = Port(self, "outside", OUT_MAC)  # type: ignore[arg-type]

    def socket(self, family: int, kind: int, protocol: int = 0) -> socket.socket:
        """Return a socket at the far ends."""
        return socket_in(self._holder.pid, family, kind, protocol)


def body(source: str, target: str, protocol: int, detail: int, number: int) -> bytes:
    """Return what is behind the IP header of the first packet of a connection.

    Args:
        source, target: addresses.
        protocol: TCP, UDP, ICMP of the family, SCTP, or any other.
        detail: destination port, or ICMP type.
        number: is its word.
    """
    data = MARK + f"{number}\0".encode()
    version, port = ip_address(source).version, 1024 + number % 60000
    if protocol == UDP:
        return udp(source, target, port, detail, data)
    if protocol == TCP:
        return tcp(source, target, port, detail, data)
    if protocol == ICMP[version]:
        header = bytes([detail, 0, 0, 0]) + (number & 0xFFFFFFFF).to_bytes(4, "big")
        pseudo = b""
        if version == 6:
            pseudo = pseudo_header(source, target, len(header + data), protocol)
        total = sum_of(pseudo + header + data)
        return header[:2] + total.to_bytes(2, "big") + header[4:] + data
    if protocol == SCTP:
        return port.to_bytes(2, "big") + detail.to_bytes(2, "big") + bytes(8) + data
    return b"\0\0\x08\0" + data  # GRE


def tcp(source: str, target: str, sport: int, dport: int, data: bytes) -> bytes:
    """A SYN with data, which is one packet less than without."""
    ports = sport.to_bytes(2, "big") + dport.to_bytes(2, "big")
    header = ports + (1).to_bytes(4, "big") + bytes(4) + b"\x50\x02\xff\xff" + bytes(4)
    total = sum_of(pseudo_header(source, target, len(header + data), 6) + header + data)
    return header[:16] + total.to_bytes(2, "big") + header[18:] + data


def pseudo_header(source: str, target: str, length: int, protocol: int) -> bytes:
    """Return what a checksum is made over besides the packet."""
    return (
        ip_address(source).packed + ip_address(target).packed + length.to_bytes(4, "big") + protocol.to_bytes(4, "big")
    )
