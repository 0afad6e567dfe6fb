# SPDX-License-Identifier: GPL-2.0-or-later
"""A boot: from qubes-db.service to a configured network, our package against a plain shell unit in the same place.

Both are Debian 12 under systemd-nspawn, as in tests/system, booted in turn; the shell unit runs baseline/uplink.sh with
a compiled QubesDB reader, once, and stays for nothing. Needs root, and is information: there is no budget for it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path

from bench.figures import Result, Spread, spread
from bench.stage import ADDRESS, BASELINE, IPV4_ENTRIES, IPV6_ENTRIES, Failed
from tests.support.machines import image, packages
from tests.support.machines.machine import Machine, Mounts

ROUNDS = 7
SUITE = "bookworm"
OURS, SHELL = "qubes-guestnet.service", "shell-uplink.service"
# Before it, and within what is measured: anti-spoofing and the base rules, which the shell unit goes without.
RULES = "qubes-guestnet-rules.service"
SHELL_UNIT = f"""\
[Unit]
After=qubes-db.service qubes-sysinit.service network-pre.target
Before=network.target
Wants=network.target

[Service]
Type=oneshot
RemainAfterExit=yes
Environment=QDB_READ=/usr/local/bin/qdb-read
ExecStart=/usr/local/bin/{(BASELINE / "uplink.sh").name}

[Install]
WantedBy=multi-user.target
"""
ENTRIES = {**IPV4_ENTRIES, **IPV6_ENTRIES}


def measure(rounds: int = ROUNDS) -> Result:
    """As root, and not inside `isolate()`."""
    # Below a folder that systemd-nspawn may look into, and removed with everything in it.
    with tempfile.TemporaryDirectory(prefix="guestnet-boot-") as folder, ExitStack() as stack:
        work = Path(folder)
        (work / "mounts").mkdir()
        mounts = Mounts(work / "mounts")
        stack.callback(mounts.close)
        base = image.base(SUITE)
        roots = {OURS: _with_package(mounts, base, work), SHELL: _with_shell(mounts, base, work)}
        rules: list[float] = []
        took: dict[str, list[float]] = {unit: [] for unit in roots}
        alone: dict[str, list[float]] = {unit: [] for unit in roots}
        chains: dict[str, str] = {}
        for number in range(rounds + 1):
            for unit, changes in roots.items():
                boot = Machine(mounts, mounts.root(base, changes), f"bench{number}", ENTRIES)
                with closing(boot):
                    since_store, started = _times(boot, unit)
                    if number and unit == OURS:
                        rules.append(_own_start(boot, RULES))
                    chains[unit] = boot.run("systemd-analyze", "critical-chain", "--no-pager", "network.target")
                if number:  # the first one of each finds nothing in the page cache
                    took[unit].append(since_store)
                    alone[unit].append(started)
        alone[RULES] = rules
        return _result({unit: spread(times) for unit, times in took.items()}, alone, chains)


def _times(machine: Machine, unit: str) -> tuple[float, float]:
    """Milliseconds from a ready QubesDB, and from the start of the unit, to a configured network."""
    if f"{ADDRESS}/32" not in machine.inside.addresses("eth0") or not machine.inside.default_routes():
        raise Failed(f"{unit} did not configure eth0\n{machine.journal(unit)}")
    store, ready = (_moment(machine, name, "ActiveEnter") for name in ("qubes-db.service", unit))
    return ready - store, _own_start(machine, unit)


def _own_start(machine: Machine, unit: str) -> float:
    """Milliseconds from the start of a unit until it is ready."""
    return _moment(machine, unit, "ActiveEnter") - _moment(machine, unit, "InactiveExit")


def _moment(machine: Machine, unit: str, what: str) -> float:
    return int(machine.property(unit, f"{what}TimestampMonotonic")) / 1e3


def _with_package(mounts: Mounts, base: Path, work: Path) -> Path:
    return _prepared(mounts, base, work / "ours", lambda _root: [packages.ours(work / "build")])


def _with_shell(mounts: Mounts, base: Path, work: Path) -> Path:
    def put(root: Path) -> list[Path]:
        mounts.run(
            f"cd {root}/tree/etc/systemd/system && mkdir -p multi-user.target.wants && "
            f"ln -s ../{SHELL} multi-user.target.wants/ && cat >{SHELL} <<'END'\n{SHELL_UNIT}END\n"
            f"cc -O2 -static -o {root}/tree/usr/local/bin/qdb-read {BASELINE / 'qdb-read.c'}\n"
            f"cp {BASELINE / 'uplink.sh'} {root}/tree/usr/local/bin"
        )
        return []

    return _prepared(mounts, base, work / "shell", put)


def _prepared(mounts: Mounts, base: Path, folder: Path, put: Callable[[Path], list[Path]]) -> Path:
    folder.mkdir()
    root = mounts.root(base)
    mounts.install(root, [packages.binding(folder), packages.store(folder), *put(root)])
    return root / "changes"


def _result(figures: dict[str, Spread], alone: dict[str, list[float]], chains: dict[str, str]) -> Result:
    ratio = figures[OURS].median / figures[SHELL].median
    lines = [
        f"{unit}: {figure.median:.0f} ms after qubes-db.service (quartiles {figure.low:.0f} to {figure.high:.0f}), "
        f"{spread(alone[unit]).median:.0f} ms of them its own start"
        for unit, figure in figures.items()
    ]
    lines.append(f"{RULES}: {spread(alone[RULES]).median:.0f} ms, with nft")
    chain = [line for line in chains[OURS].splitlines() if "@" in line or "+" in line]
    return Result("boot, QubesDB to configured, against a shell unit", ratio, "", True, (*lines, *chain))
