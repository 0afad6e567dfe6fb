# SPDX-License-Identifier: GPL-2.0-or-later
"""A `qubesdb` binding that cannot be used takes no network away: QubesDB is asked directly (B149)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.programs.qubesdb_faulty import Running
from tests.support.programs.releases import fresh

READ = """
from qubes_guestnet.system.qubesdb import store as qubesdb
qubesdb.DIRECTORY = {folder!r}
for _ in range(2):
    print(qubesdb.connect().read("/qubes-ip").decode())
qubesdb.connect_watches(["/qubes-ip"]).close()
"""
BROKEN = {
    "its library is missing": "raise ImportError('libqubesdb.so.2: cannot open shared object file')",
    "it was built for another Python": "raise SystemError('initialization of qubesdb failed')",
    "it has an error of its own": "nonsense",
    "it is not what it was": "class QubesDB: pass",
}


def read(folder: Path, before: str = "") -> tuple[str, str]:
    """What a program reads, and what it writes to standard error."""
    directory = folder / "sockets"
    directory.mkdir()
    with Running(str(directory), {b"/qubes-ip": b"10.137.0.7"}):
        return fresh(before + READ.format(folder=str(directory)), folder)


@pytest.mark.behaviour("B149")
@pytest.mark.parametrize("line", BROKEN.values(), ids=BROKEN.keys())
def test_it_is_told_once_and_the_daemon_is_asked_all_the_same(line: str, tmp_path: Path) -> None:
    (tmp_path / "qubesdb.py").write_text(f"{line}\n")
    said, told = read(tmp_path)
    assert said.split() == ["10.137.0.7", "10.137.0.7"]
    assert len(told.splitlines()) == 1
    assert told.startswith("cannot use the qubesdb binding, using the built-in protocol: ")


def test_one_that_is_not_installed_is_not_told(tmp_path: Path) -> None:
    assert read(tmp_path, "import sys; sys.modules['qubesdb'] = None\n") == ("10.137.0.7\n10.137.0.7", "")
