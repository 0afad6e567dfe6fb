# SPDX-License-Identifier: GPL-2.0-or-later
"""A signal ends `make bench`, and not just one of its benchmarks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from tests.support.eventually import eventually
from tests.support.needs import needs

TREE = Path(__file__).parents[2]


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_a_signal_ends_all_benchmarks(number: int) -> None:
    needs("ip", "nft", "unshare")
    bench = subprocess.Popen(
        [sys.executable, "-m", "bench", "event", "memory"],
        cwd=TREE, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        preexec_fn=partial(signal.signal, number, signal.SIG_DFL),  # a job in the background has SIGINT ignored
    )  # fmt: skip
    eventually(lambda: [inside for child in children(bench.pid) for inside in children(child)], 60, "the first one")
    bench.send_signal(number)
    said = bench.communicate(timeout=60)[0].decode()
    assert (bench.returncode, said) == (128 + number, "")
    with pytest.raises(ProcessLookupError):
        os.killpg(bench.pid, 0)
