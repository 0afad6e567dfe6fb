# SPDX-License-Identifier: GPL-2.0-or-later
"""Processor time for the first packet of a connection through the firewall, with 10 and with 1000 qubes.

Only first packets are judged by lists. So each packet here is one: a user's rule behind ours drops it, after it was
accepted and before conntrack keeps it. Its sender's processor time is what is judged, as in `packet`. That holds only
where the kernel counts softirqs as work of the process they interrupt: the yardstick, a list of jumps that is gone
through from its beginning, as today's daemon makes it, must cost more with 1000 qubes than with 10.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from ipaddress import IPv4Address

from bench.figures import Result, spread
from bench.forwarding import small_packets
from bench.stage import BASELINE, Failed
from qubes_guestnet.core.firewall import operations, ruleset
from qubes_guestnet.core.firewall.binding import Bound, bind
from qubes_guestnet.core.firewall.parsing import parse
from qubes_guestnet.core.firewall.plan import Wanted, plan
from qubes_guestnet.lab.qube import Qube

FEW, MANY = 10, 1000
BUDGET = 1.1
ROUNDS = 25
PACKETS = 20000
_AT_ONCE = 20  # qubes in one transaction of nft, which has little room in a user namespace
_LIMIT_S = 60.0
_FIRST = IPv4Address("10.137.0.5")
_TARGET, _PORT = "192.0.2.80", 4321
_VIF, _VIF_MAC = "vif4.0", "fe:ff:ff:ff:ff:ff"
_JUMPS = "flush chain ip qubes-firewall qubes-forward\n"


def _bound(address: IPv4Address) -> Bound:
    """A list of which the last entry accepts; the same for each qube."""
    entries = {f"{number:04}": f"action=drop proto=tcp dstports={number}-{number}".encode() for number in range(1, 5)}
    return bind(parse(address, {"policy": b"drop", **entries, "0009": b"action=accept"}), {})


def _parts(texts: list[str], size: int) -> Iterator[list[str]]:
    return (texts[begin : begin + size] for begin in range(0, len(texts), size))


class _Provider:
    """The tables of the firewall with lists of `count` qubes, the last of which sends.

    Args:
        listed: the yardstick, a rule for each qube in place of one map.
        count: of qubes.
    """

    def __init__(self, count: int, *, listed: bool) -> None:
        kind = "list" if listed else "map"
        self._here, self._qube = Qube(f"{kind}-{count}"), Qube(f"{kind}-{count}-qube")
        self._address = _FIRST + count - 1
        self._wire()
        self._load(count)
        if listed:
            chains = [(_FIRST + number, ruleset.chain_of(_FIRST + number)) for number in range(count)]
            rules = [
                f"add rule ip qubes-firewall qubes-forward ip saddr {each} jump {chain}\n" for each, chain in chains
            ]
            for part in _parts([_JUMPS, *rules], 200):
                self._nft("".join(part))
        self._nft("add rule ip qubes-firewall postrouting counter drop\n")
        self._socket = self._qube.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.connect((_TARGET, _PORT))

    def _wire(self) -> None:
        self._here.wire(f"""
            ip link set lo up
            ip link add {_VIF} address {_VIF_MAC} group 2 type veth peer name eth0 netns {self._qube.pid}
            ip link set {_VIF} up
            ip route add {self._address} dev {_VIF}
            ip link add out type veth peer name far netns {self._qube.pid}
            ip link set out up
            ip route add default dev out
            echo 1 >/proc/sys/net/ipv4/ip_forward
            echo 0 >/proc/sys/net/ipv4/conf/all/rp_filter
            echo 0 >/proc/sys/net/ipv4/conf/{_VIF}/rp_filter
        """)
        self._qube.wire(f"""
            ip link set eth0 up
            ip address add {self._address}/32 dev eth0
            ip route add default dev eth0
            ip neighbour add {_TARGET} dev eth0 lladdr {_VIF_MAC} nud permanent
        """)

    def _load(self, count: int) -> None:
        """The real texts, part by part: each is what the agent would load for these qubes."""
        table = plan({}, Wanted())
        self._nft(operations.transaction(table))
        for part in _parts([ruleset.qube(_bound(_FIRST + number)) for number in range(count)], _AT_ONCE):
            self._nft("".join(part))

    def _nft(self, text: str) -> None:
        self._here.wire(f"nft -f - <<'END'\n{text}END")

    def cost(self, program: str) -> float:
        """Microseconds of the processor for each packet that was judged."""
        before = self._judged()
        done = subprocess.run(
            [program, "count", str(small_packets().size), str(PACKETS)],
            stdin=self._socket.fileno(), check=True, timeout=_LIMIT_S, capture_output=True, text=True,
        )  # fmt: skip
        judged = self._judged() - before
        if judged < 0.95 * PACKETS:
            raise Failed(f"{judged} of {PACKETS} packets were judged and accepted")
        return float(done.stdout) * 1e6 / judged

    def _judged(self) -> int:
        """How many packets came to the rule behind ours: each of them was accepted."""
        done = self._here.run("nft", "-j", "list", "chain", "ip", "qubes-firewall", "postrouting")
        rules = [entry["rule"]["expr"] for entry in json.loads(done.stdout)["nftables"] if "rule" in entry]
        (packets,) = (part["counter"]["packets"] for rule in rules for part in rule if "counter" in part)
        return int(packets)

    def close(self) -> None:
        """End it."""
        self._socket.close()
        for qube in (self._qube, self._here):
            qube.kill()


def measure(rounds: int = ROUNDS) -> Result:
    """Run inside `isolate()`."""
    folder = tempfile.mkdtemp(dir="/run")
    program = f"{folder}/flow"
    subprocess.run(["cc", "-O2", "-o", program, str(BASELINE / "flow.c")], check=True)
    providers = {(listed, count): _Provider(count, listed=listed) for listed in (False, True) for count in (FEW, MANY)}
    took: dict[tuple[bool, int], list[float]] = {name: [] for name in providers}
    try:
        for number in range(rounds + 1):  # round 0 fills caches
            names = list(providers)
            for name in names[number % 4 :] + names[: number % 4]:
                cost = providers[name].cost(program)
                took[name] += [cost] if number else []
    finally:
        shutil.rmtree(folder)
        for provider in providers.values():
            provider.close()
    ours, theirs = (
        spread([many / few for few, many in zip(took[listed, FEW], took[listed, MANY], strict=True)])
        for listed in (False, True)
    )
    if theirs.median < 1.2:
        raise Failed("this kernel does not count softirqs as work of a process (CONFIG_IRQ_TIME_ACCOUNTING)")
    return Result(
        f"processor time for the first packet of a connection, with {MANY} qubes against {FEW}",
        ours.median,
        f"{BUDGET:g}",
        ours.median <= BUDGET,
        (
            *(
                f"{'a list of jumps' if listed else 'ours'}, {count} qubes: median {each.median:.2f} µs, "
                f"quartiles {each.low:.2f} to {each.high:.2f}"
                for (listed, count), each in ((name, spread(found)) for name, found in took.items())
            ),
            f"the ratio is the median of those within a round, quartiles {ours.low:.2f} to {ours.high:.2f}; "
            f"of the list of jumps {theirs.median:.2f}; {rounds} rounds of {PACKETS} packets",
        ),
    )
