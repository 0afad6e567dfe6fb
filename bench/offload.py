# SPDX-License-Identifier: GPL-2.0-or-later
"""What the kernel works for each megabyte that a provider forwards: offloaded, against the whole way by all chains.

In one boot of the emulated guest of tests/guest, because few machines' own kernels have flowtables: a real provider
with its resident agent, a qube behind it, and datagrams to two ports of the world in turn. What is for port 53 is never
offloaded. Counted are system, interrupts and softirqs of the whole guest, so both ends' own work is in both figures:
what forwarding alone saves is more. Emulated instructions are no cycles; the ratio is an indication.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from bench.figures import Result, spread
from bench.stage import BASELINE, Failed
from qubes_guestnet.lab import probes, world
from qubes_guestnet.lab.dom0 import INTERFACE, Dom0
from qubes_guestnet.lab.namespaces import isolate
from qubes_guestnet.lab.qube import Qube, eventually

BUDGET = 0.9
ROUNDS = 9
SECONDS, SILENCE = "1.0", "0.3"
SIZE = "1400"
# The second is that of names.
PORTS = (7777, 53)
ADDRESS = "192.168.123.46"
SERIAL = "/dev/ttyS1"
PROGRAM = "/stage/flow"
_LIMIT_S = 120.0
_MEGABYTE = 1e6


def measure() -> Result:
    """As root, and not inside `isolate()`."""
    from tests.support.machines.emulated import Died, Emulated
    from tests.support.machines.in_emulated import BEGIN, END, TREE

    with tempfile.TemporaryDirectory(prefix="guestnet-offload-") as folder:
        program = Path(folder, "flow")
        subprocess.run(["cc", "-O2", "-static", "-o", str(program), str(BASELINE / "flow.c")], check=True)
        names = ("qubes_guestnet", "bench", "tests/support")
        paths = {f"tree/{name}": TREE / name for name in names} | {"flow": program}
        guest = Emulated(f"{BEGIN}python3 -m bench.offload </dev/null >{SERIAL}{END}", paths)
        try:
            line = guest.line(_LIMIT_S)
            if not line.startswith("["):
                raise Failed(f"no figures from the guest: {line}\n{guest.console()}")
        except Died as error:
            raise Failed(str(error)) from error
        finally:
            guest.close()
    rounds = json.loads(line)
    short, whole = (spread([each[place] * 1e3 for each in rounds]) for place in (0, 1))
    ratio = spread([each[0] / each[1] for each in rounds])
    return Result(
        "kernel time for each megabyte forwarded, offloaded, against the whole way",
        ratio.median,
        f"at most {BUDGET:g}",
        ratio.median <= BUDGET,
        (
            *(
                f"{words}: median {each.median:.2f} ms/MB, quartiles {each.low:.2f} to {each.high:.2f}"
                for words, each in (("offloaded", short), ("the whole way", whole))
            ),
            f"the ratio is the median of those within a round, quartiles {ratio.low:.2f} to {ratio.high:.2f}; "
            f"{len(rounds)} rounds of {SECONDS} s each in one emulated guest, both ends' own work included",
        ),
    )


# --- in the guest ----------------------------------------------------------------------------------------------------


def _rounds() -> int:
    dom0 = Dom0()
    provider = dom0.create_provider("netvm")
    assert provider.world is not None
    far = provider.world.qube
    far.wire(f"ip address add {ADDRESS}/32 dev lo")
    vm = dom0.create("qube", provider)
    near = dom0.start(vm, agent=False)
    near.wire(f"""
        ip link set {INTERFACE} up; ip address add {vm.address}/32 dev {INTERFACE}
        ip route add default dev {INTERFACE} scope link
    """)
    eventually("it reaches the world", lambda: probes.ping(near, ADDRESS) is not None, 30)
    rounds = []
    # Round 0 fills caches.
    for number in range(ROUNDS + 1):
        found = {port: _cost(near, far, provider.running, port) for port in PORTS[:: 1 if number % 2 else -1]}
        rounds += [[found[port] for port in PORTS]] if number else []
    print(json.dumps(rounds), flush=True)
    return 0


def _cost(near: Qube, far: Qube, provider: Qube, port: int) -> float:
    """Seconds of the kernel for each megabyte that came out of the provider."""
    with (
        near.socket(socket.AF_INET, socket.SOCK_DGRAM) as client,
        far.socket(socket.AF_INET, socket.SOCK_DGRAM) as server,
    ):
        server.bind((ADDRESS, port))
        client.connect((ADDRESS, port))
        entry = f" sport={client.getsockname()[1]} dport={port} "

        def offloaded() -> bool:
            client.send(b"question")
            server.sendto(b"answer", server.recvfrom(64)[1])
            client.recv(64)
            lines = Path(f"/proc/{provider.pid}/net/nf_conntrack").read_text().splitlines()
            return any("[OFFLOAD]" in line for line in lines if entry in line)

        if port == PORTS[0]:
            eventually("the connection is offloaded", offloaded, 30)
        elif offloaded() or offloaded():
            raise AssertionError(f"port {port} is offloaded")
        worked, came = _kernel_time(), _bytes_at(far)
        receiving = subprocess.Popen(
            [PROGRAM, "receive", SIZE, SILENCE], stdin=server.fileno(), stdout=subprocess.DEVNULL
        )
        subprocess.run([PROGRAM, "send", SIZE, SECONDS], stdin=client.fileno(), check=True)
        receiving.wait()
        return (_kernel_time() - worked) / ((_bytes_at(far) - came) / _MEGABYTE)


def _kernel_time() -> float:
    """Seconds of system, interrupts and softirqs, of all processors."""
    words = Path("/proc/stat").read_text().split(None, 9)
    return sum(int(words[place]) for place in (3, 6, 7)) / 100


def _bytes_at(far: Qube) -> int:
    """What has come in at the world's end of the cable."""
    lines = Path(f"/proc/{far.pid}/net/dev").read_text().splitlines()
    (counters,) = (line.split(":")[1].split() for line in lines if line.strip().startswith(f"{world.INTERFACE}:"))
    return int(counters[0])


if __name__ == "__main__":
    sys.exit(isolate(_rounds))
