# SPDX-License-Identifier: GPL-2.0-or-later
"""What a qube gets through one and through three real providers, against the same tree set up by plain commands.

Two figures for each: TCP in bytes, and small UDP packets in packets, per second as they arrive at the world's host.
There are three trees at the same time, whose flows take turns: the real role; plain providers (`lab.provider.Plain`),
which forward and masquerade and filter nothing; and plain ones that filter (baseline/provider.nft).

TCP is judged against those that filter nothing: it comes in pieces of 64 KiB, and no rule may be felt. Small packets
are nothing but cost for each packet, so they are judged against those that filter too, and what filtering as such costs
is shown beside it. The UDP flow has had an answer, as any that goes on has: it is established.
"""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import tempfile
import time
from typing import NamedTuple

from bench.figures import Result, spread
from bench.stage import BASELINE, Failed
from qubes_guestnet.core.plural import amount
from qubes_guestnet.lab import probes, world
from qubes_guestnet.lab.dom0 import INTERFACE, Dom0
from qubes_guestnet.lab.provider import Vif
from qubes_guestnet.lab.qube import Qube, eventually
from qubes_guestnet.lab.vm import Vm

BUDGET = 0.9
ROUNDS = 21
SECONDS = 0.3
_PORT = 7777
_LONGEST_SECONDS = 10.0


class _Kind(NamedTuple):
    """One kind of flow.

    Args:
        words: what is counted.
        type: of the sockets.
        size: of a piece, in bytes.
        counted: which number of what `flow receive` prints.
        unit: how many of that make one of the unit shown.
        unit_name: of the unit shown.
        silence: after so many seconds without any the receiver takes it for the end; TCP tells the end itself.
        yardstick: the tree it is judged against.
    """

    words: str
    type: int
    size: int
    counted: int
    unit: float
    unit_name: str
    silence: float
    yardstick: str


_WORDS = {"plain": "plain commands without a filter", "filtering": "plain commands with a filter"}
_KINDS = (
    _Kind("TCP throughput", socket.SOCK_STREAM, 1 << 18, 0, 1e9 / 8, "Gbit/s", 5.0, "plain"),
    _Kind("small UDP packets", socket.SOCK_DGRAM, 64, 1, 1e3, "thousand/s", 0.2, "filtering"),
)


class Tree:
    """A world, a chain of providers, and a qube behind the first and one behind the last of them.

    Args:
        name: begins the names of its qubes.
        plain: plain commands and not the real role.
        filtering: plain commands, and a filter.
    """

    def __init__(self, name: str, *, plain: bool = False, filtering: bool = False) -> None:
        self.name = name
        dom0 = Dom0(plain)
        provider = dom0.create_provider(f"{name}-netvm")
        assert provider.world is not None
        self.world = provider.world.qube
        self.behind: dict[int, Qube] = {}
        self._providers: list[Qube] = []
        for hops in (1, 2, 3):
            if hops > 1:
                provider = self._started(dom0, dom0.create(f"{name}-hop{hops}", provider, provides_network=True))
            self._providers.append(provider.running)
            if hops != 2:
                self.behind[hops] = self._started(dom0, dom0.create(f"{name}-behind{hops}", provider)).running
        if filtering:
            for vm in dom0.vms.values():
                if vm.plain:
                    _filter(vm.running, [other.plugged for other in dom0.connected(vm) if other.plugged is not None])

    def lift_limits(self) -> None:
        """Take the limits of single qubes out of the real providers.

        Their agents would load them again, and are stopped; a process that is stopped has its guard still.
        """
        for qube in self._providers:
            assert qube.agent is not None
            qube.agent.signal(signal.SIGSTOP)
            for family in ("ip", "ip6"):
                qube.wire(f"nft 'add table {family} qubes-limits; delete table {family} qubes-limits'")

    @staticmethod
    def _started(dom0: Dom0, vm: Vm) -> Vm:
        # Neither in plain ones nor in a qube at the end: the agent brings its rules along, and with them conntrack.
        qube = dom0.start(vm, agent=vm.provides_network and not vm.plain)
        if not vm.agent:
            qube.wire(f"""
                ip link set {INTERFACE} up
                ip address add {vm.address}/32 dev {INTERFACE}
                ip route add default dev {INTERFACE} scope link
            """)
        eventually(f"{vm.name} reaches the world", lambda: probes.ping(vm.running, world.HOST) is not None)
        return vm


def _filter(provider: Qube, vifs: list[Vif]) -> None:
    """Load a filter into a plain provider, and let its qubes send."""
    elements = "".join(
        f'add element ip qubes allowed {{ "{vif.name}" . {vif.address} }}\n'
        f"add element ip qubes downstream {{ {vif.address} }}\n"
        for vif in vifs
    )
    provider.wire(f"nft -f - <<'END'\n{(BASELINE / 'provider.nft').read_text()}{elements}END")


def small_packets() -> _Kind:
    """The kind of flow that is nothing but cost for each packet."""
    return _KINDS[1]


def ends(tree: Tree, hops: int, kind: _Kind, lasting_s: float = 0.0) -> tuple[socket.socket, socket.socket]:
    """A socket in the qube, connected to the one in the world; both blocking.

    Args:
        tree: of whose.
        hops: how many providers are between them.
        kind: of what is to flow.
        lasting_s: questions and answers of UDP go on for so long before.
    """
    near, far = (qube.socket(socket.AF_INET, kind.type) for qube in (tree.behind[hops], tree.world))
    far.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    far.bind((world.HOST, _PORT))
    if kind.type == socket.SOCK_DGRAM:
        # A receiver slower than the network would be what is measured.
        far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 24)
        near.connect((world.HOST, _PORT))
        end = time.monotonic() + lasting_s
        while True:
            near.send(b"question")
            far.sendto(b"answer", far.recvfrom(64)[1])
            near.recv(64)
            if time.monotonic() > end:
                return near, far
            time.sleep(lasting_s / 4)
    far.listen()
    near.connect((world.HOST, _PORT))
    accepted, _ = far.accept()
    far.close()
    return near, accepted


def _rate(program: str, tree: Tree, hops: int, kind: _Kind) -> float:
    """What arrives in a second, in the unit of the kind."""
    near, far = ends(tree, hops, kind)
    with near, far:
        receive = [program, "receive", str(kind.size), str(kind.silence)]
        send = [program, "send", str(kind.size), str(SECONDS)]
        with subprocess.Popen(receive, stdin=far.fileno(), stdout=subprocess.PIPE, text=True) as receiver:
            try:
                subprocess.run(send, stdin=near.fileno(), check=True, timeout=_LONGEST_SECONDS)
                near.close()
                text, _ = receiver.communicate(timeout=_LONGEST_SECONDS)
            except subprocess.TimeoutExpired as error:
                receiver.kill()
                raise Failed(f"{kind.words} of {tree.name} over {hops} hops came to a halt") from error
    figures = [float(word) for word in text.split()]
    if receiver.returncode or len(figures) != 3 or not figures[2]:
        raise Failed(f"nothing arrived over {hops} hops: {text!r}")
    return figures[kind.counted] / figures[2] / kind.unit


def measure(rounds: int = ROUNDS) -> tuple[Result, ...]:
    """Run inside `isolate()`."""
    folder = tempfile.mkdtemp(dir="/run")
    program = f"{folder}/flow"
    subprocess.run(["cc", "-O2", "-o", program, str(BASELINE / "flow.c")], check=True)
    trees = {
        "ours": Tree("ours"),
        "filtering": Tree("filtering", plain=True, filtering=True),
        "plain": Tree("plain", plain=True),
    }
    results = []
    try:
        for kind in _KINDS:
            for hops in (1, 3):
                rates: dict[str, list[float]] = {name: [] for name in trees}
                # Round 0 fills neighbour tables and caches.
                for number in range(rounds + 1):
                    names = list(trees)
                    for name in names[number % 3 :] + names[: number % 3]:
                        rate = _rate(program, trees[name], hops, kind)
                        rates[name] += [rate] if number else []
                results.append(_result(kind, hops, rates))
    finally:
        shutil.rmtree(folder)
    return tuple(results)


def _result(kind: _Kind, hops: int, rates: dict[str, list[float]]) -> Result:
    # Within a round, because what else the machine does then is the same for all of them.
    ratios = {
        name: spread([ours / other for ours, other in zip(rates["ours"], rates[name], strict=True)]) for name in _WORDS
    }
    judged = ratios[kind.yardstick]
    (beside,) = (name for name in _WORDS if name != kind.yardstick)
    figures = {name: spread(found) for name, found in rates.items()}
    return Result(
        f"{kind.words} through {amount(hops, 'provider')}, against {_WORDS[kind.yardstick]}",
        judged.median,
        f"at least {BUDGET:g}",
        judged.median >= BUDGET,
        (
            *(
                f"{name}: median {each.median:.2f} {kind.unit_name}, quartiles {each.low:.2f} to {each.high:.2f}, "
                f"p90 {each.p90:.2f}"
                for name, each in figures.items()
            ),
            f"the ratio is the median of those within a round, quartiles {judged.low:.2f} to {judged.high:.2f}; "
            f"of the medians {figures['ours'].median / figures[kind.yardstick].median:.2f}",
            f"against {_WORDS[beside]}: ratio {ratios[beside].median:.2f}",
            f"{len(rates['ours'])} flows of {SECONDS:g} s each, in turn",
        ),
    )
