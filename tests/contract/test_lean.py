# SPDX-License-Identifier: GPL-2.0-or-later
"""What is loaded without its package works in a fresh interpreter, where nothing else has loaded the rest of it."""

from __future__ import annotations

import subprocess
import sys

import pytest


def fresh(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.behaviour("B106")
def test_the_pauses_of_an_outage() -> None:
    pauses = "from qubes_guestnet.system import qubesdb; print([qubesdb.backoff(n) for n in (1, 2, 3, 5, 9, 5000)])"
    assert fresh(pauses) == "[0.1, 0.2, 0.4, 1.6, 5.0, 5.0]"


@pytest.mark.parametrize("name", ["typing", "logging", "traceback", "random"])
def test_a_module_that_was_deferred_is_the_real_one_afterwards(name: str) -> None:
    load = "import sys; from qubes_guestnet.system import netlink, qubesdb; qubesdb.backoff(1)"
    assert fresh(f"{load}; import {name}; print({name}.__file__)").endswith(".py")


def test_a_name_of_a_module_that_is_deferred_now_is_the_real_one() -> None:
    """Used while it is away, it must be loaded, and not look for itself."""
    code = """
import sys, types
from qubes_guestnet.system import lean
stand_in = sys.modules["random"] = lean._Deferred("random")
print(stand_in.randint(7, 7))
"""
    assert fresh(code) == "7"
