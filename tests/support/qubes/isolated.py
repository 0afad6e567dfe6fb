# SPDX-License-Identifier: GPL-2.0-or-later
"""Run each test of a folder as process 1 of its own namespaces, without root; the kernel cleans up after it.

A folder's conftest.py asks for it with `from tests.support.qubes.isolated import pytest_runtest_protocol`.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
import warnings
from pathlib import Path

import pytest
from _pytest.runner import runtestprotocol  # what plugins that fork use; there is no public name for it

from qubes_guestnet.lab.namespaces import die_with_parent, isolate

MEASURED_S = 10.0
LIMIT_S = 110
# Python ignores these itself, and has a child that it starts not ignore them.
PYTHONS_OWN = {signal.SIGPIPE, signal.SIGXFSZ}


def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    """Run set-up, test and tear-down in a child with namespaces of its own, and report what it reports."""
    if not asked_for(item, pytest_runtest_protocol):
        return None
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for report in _reports(item, nextitem):
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def asked_for(item: pytest.Item, hook: object) -> bool:
    """Whether it was a conftest.py above this test: pytest puts this hook, unlike others, to all that it has loaded."""
    return any(
        getattr(plugin, "pytest_runtest_protocol", None) is hook and Path(plugin.__file__).parent in item.path.parents
        for plugin in item.config.pluginmanager.get_plugins()
    )


def _default_signals() -> None:
    """Ignore and block no signal that the run inherited so: a shell starts a job in the background without SIGINT."""
    for number in signal.valid_signals() - PYTHONS_OWN:
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _end_measured() -> None:
    """Under `make coverage`: end the agents by SIGTERM, as systemd does; SIGKILL leaves no file of what they ran.

    This is process 1 of its namespace, and no other test's processes are in it.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with contextlib.suppress(ProcessLookupError):  # there is no other process
        os.kill(-1, signal.SIGTERM)
    end = time.monotonic() + MEASURED_S
    while time.monotonic() < end and any(_is_agent(name) for name in os.listdir("/proc") if name.isdecimal()):
        time.sleep(0.05)


def _is_agent(pid: str) -> bool:
    try:
        return b"qubes_guestnet\0agent" in Path("/proc", pid, "cmdline").read_bytes()
    except OSError:  # it has ended
        return False


def _reports(item: pytest.Item, nextitem: pytest.Item | None) -> list[pytest.TestReport]:
    config = item.config
    # What earlier tests set up in this process, such as booted systems, is not this test's to end.
    item.session._setupstate.teardown_exact(None)
    answer, say = os.pipe()
    with warnings.catch_warnings():
        # faulthandler's watchdog is a thread; it holds nothing that the child needs, see below.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        _default_signals()
        die_with_parent()
        signal.alarm(LIMIT_S)  # ends this process, and with it everything in the namespaces
        os.close(answer)

        def run() -> int:
            # Its watchdog thread does not exist here, and it would wait for that thread for ever after a failure.
            config.pluginmanager.unregister(name="faulthandler")
            reports = runtestprotocol(item, log=False, nextitem=nextitem)
            data = [config.hook.pytest_report_to_serializable(config=config, report=report) for report in reports]
            with open(say, "w", encoding="utf-8") as out:
                json.dump(data, out, default=str)
            if os.environ.get("COVERAGE_FILE"):
                _end_measured()
            return 0

        os._exit(isolate(run))
    os.close(say)
    with open(answer, encoding="utf-8") as told:
        text = told.read()
    _, status = os.waitpid(child, 0)
    # This process never ran the fixtures' set-up; a later test must not believe that it did.
    item.session._setupstate.teardown_exact(None)
    if text:
        found = json.loads(text)
        return [config.hook.pytest_report_from_serializable(config=config, data=data) for data in found]
    problem = f"no report from the isolated process, its exit status is {os.waitstatus_to_exitcode(status)}"
    return [
        pytest.TestReport(item.nodeid, item.location, dict.fromkeys(item.keywords, 1), "failed", problem, "call"),
    ]
