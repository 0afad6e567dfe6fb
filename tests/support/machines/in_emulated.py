# SPDX-License-Identifier: GPL-2.0-or-later
"""Run all tests of a folder in one emulated guest, see emulated.py, and report them here as if they had run here.

A folder's conftest.py asks for it with `from tests.support.machines.in_emulated import pytest_runtest_protocol`. The
guest runs Debian's own pytest, with the tree as it is now, as process 1 of a lab's namespaces. It is started by the
first test; one that ends it, or after which nothing is heard for a while, fails, and the next one gets another guest.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qubes_guestnet.lab import patience
from tests.support.machines.emulated import SLOWNESS, Died, Emulated
from tests.support.qubes.isolated import asked_for

TREE = Path(__file__).resolve().parents[3]
SYSCTLS = "systemd/80-qubes-guestnet.conf"
PARTS = ("qubes_guestnet", "pyproject.toml", "version", "tests/conftest.py", "tests/support", "tests/guest", SYSCTLS)
MODULES = (
    "nf_tables nf_flow_table nf_flow_table_inet nft_flow_offload nft_ct nft_nat nft_masq nft_fib_inet"
    " veth dummy tun bridge"
)
IN_GUEST, PORT = "GUESTNET_IN_GUEST", "/dev/ttyS1"
# Shorter than the silence after which the guest is given up.
FAULTHANDLER_S = 50 * SLOWNESS
# Nothing of tests/ may be imported before pytest does it, or its asserts tell nothing.
START = f"""
import json, sys, pytest
from qubes_guestnet.lab.namespaces import isolate
options = ['-v', '-p', 'no:cacheprovider', '-o', 'faulthandler_timeout={FAULTHANDLER_S}']
sys.exit(isolate(lambda: int(pytest.main([*options, *json.load(open('/stage/todo'))]))))
"""
# What any script that is process 1 and works with the tree begins and ends with.
BEGIN = f"""#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 {IN_GUEST}=1
mount -t sysfs sys /sys
mount -t tmpfs run /run
mount -t tmpfs tmp /tmp
mkdir /dev/shm /rw
mount -t tmpfs shm /dev/shm
stty -F {PORT} raw -echo
ip link set lo up
modprobe -a {MODULES}
cd /stage/tree
sysctl --quiet --ignore --load={SYSCTLS}
# For those that are started without any environment.
echo /stage/tree >/usr/lib/python3/dist-packages/qubes-guestnet-tree.pth
# Not once in each of a hundred processes: this processor is slow.
python3 -m compileall -q -j 2 .
"""
END = """
echo o >/proc/sysrq-trigger
exec sleep 60
"""
INIT = f"""{BEGIN}python3 -c "{START}" </dev/null{END}"""
BOOT_LIMIT_S = 120.0
SILENCE_LIMIT_S = 110.0
_ROOT = "the guest's disk is made as root: sudo make test"
_runs = pytest.StashKey["Run"]()


def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    """Report what the guest reports of a test."""
    if not asked_for(item, pytest_runtest_protocol) or os.environ.get(IN_GUEST):
        return None
    run = item.config.stash.setdefault(_runs, Run(item.config))
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for report in run.reports(item):
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


class Run:
    """The guest of a session, and what comes from it."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._guest: Emulated | None = None
        config.add_cleanup(self._end)

    def reports(self, item: pytest.Item) -> Iterator[pytest.TestReport]:
        """Those of one test, which is the next in the guest."""
        if os.geteuid() != 0 and not os.environ.get("CI"):
            yield _report(item, "skipped", (str(item.path), 0, _ROOT))
            return
        try:
            limit_s = SILENCE_LIMIT_S
            if self._guest is None:
                limit_s = BOOT_LIMIT_S
                self._guest = _start(item)
            when = ""
            while when != "teardown":
                data = self._next(item, limit_s)
                when, limit_s = data["when"], SILENCE_LIMIT_S
                yield self._config.hook.pytest_report_from_serializable(config=self._config, data=data)
        except (AssertionError, pytest.fail.Exception) as error:  # nothing is heard, or a tool is missing
            self._end()
            yield _report(item, "failed", str(error))

    def _next(self, item: pytest.Item, limit_s: float) -> dict[str, Any]:
        assert self._guest is not None
        said = []
        while line := self._guest.line(limit_s):
            if line.startswith("{"):
                data: dict[str, Any] = json.loads(line)
                assert data["nodeid"] == item.nodeid, f"the guest reports of {data['nodeid']}"
                return data
            said.append(line)
        raise Died("\n".join(["the guest has ended", *said, self._guest.console()]))

    def _end(self) -> None:
        if self._guest is not None:
            self._guest.close()
            self._guest = None


def _start(first: pytest.Item) -> Emulated:
    """A guest for a test and all after it that are to run in one."""
    items = first.session.items
    todo = [item.nodeid for item in items[items.index(first) :] if asked_for(item, pytest_runtest_protocol)]
    paths = {f"tree/{part}": TREE / part for part in PARTS}
    return Emulated(INIT, paths, {"todo": json.dumps(todo)})


def _report(item: pytest.Item, outcome: Any, problem: Any) -> pytest.TestReport:
    return pytest.TestReport(item.nodeid, item.location, dict.fromkeys(item.keywords, 1), outcome, problem, "call")


# --- in the guest ----------------------------------------------------------------------------------------------------


def pytest_configure(config: pytest.Config) -> None:
    """Have it reported what becomes of the tests, and time enough for them."""
    if os.environ.get(IN_GUEST):
        patience.factor = SLOWNESS
        config.pluginmanager.register(_Reporter(config))


class _Reporter:
    """Writes what pytest reports to the serial port, one line each."""

    def __init__(self, config: pytest.Config) -> None:
        self._out = open(PORT, "w", encoding="utf-8", buffering=1)  # noqa: SIM115
        self._config = config

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Pytest's hook."""
        data = self._config.hook.pytest_report_to_serializable(config=self._config, report=report)
        print(json.dumps(data, default=str), file=self._out)
