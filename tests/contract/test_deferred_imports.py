# SPDX-License-Identifier: GPL-2.0-or-later
"""What is loaded without its package works in a fresh interpreter, where nothing else has loaded the rest of it."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from tests.support.programs.releases import JEEPNEY, PYROUTE2, copy, fresh


@pytest.mark.behaviour("B106")
def test_the_pauses_of_an_outage() -> None:
    pauses = "from qubes_guestnet.system.retry_pause import pause; print([*map(pause, (1, 2, 3, 5, 9, 5000))])"
    assert fresh(pauses)[0] == "[0.1, 0.2, 0.4, 1.6, 5.0, 5.0]"


@pytest.mark.parametrize("name", ["typing", "logging", "traceback", "random"])
def test_a_module_that_was_deferred_is_the_real_one_afterwards(name: str) -> None:
    load = "import sys; import qubes_guestnet.system.netlink.rtnl\nfrom qubes_guestnet.system import retry_pause\n"
    load += "retry_pause.pause(1)"
    assert fresh(f"{load}; import {name}; print({name}.__file__)")[0].endswith(".py")


def test_a_name_of_a_module_that_is_deferred_is_the_real_one() -> None:
    code = """
from qubes_guestnet.system import deferred_imports
print(deferred_imports._Deferred("random").randint(7, 7))
"""
    assert fresh(code)[0] == "7"


def test_no_module_outside_of_the_package_gets_a_stand_in(tmp_path: Path) -> None:
    """It would have it for the rest of the program's life, whatever uses it."""
    (tmp_path / "some").mkdir()
    (tmp_path / "some" / "__init__.py").write_text("raise SystemExit")
    (tmp_path / "some" / "part.py").write_text("import outside, typing\nwanted = typing.Optional[int]\n")
    (tmp_path / "outside.py").write_text("import typing\nkind = typing.Optional[int]\n")
    code = """
from qubes_guestnet.system import deferred_imports
wanted, = deferred_imports.load("some", ("part.wanted",))
import outside, typing
print(type(wanted).__name__, outside.kind == typing.Optional[int])
"""
    assert fresh(code, tmp_path)[0] == "_Annotation True"


# --- releases that are to come ---------------------------------------------------------------------------------------

PACK = """
import sys
from ipaddress import ip_address
from qubes_guestnet.system.netlink import encode
print(encode.packed(encode.neighbour_message(7, ip_address("10.0.0.1")), 1, 2, 3).hex())
print(sys.modules["pyroute2"].__file__)
"""
PACKED = struct.pack("=IHHII", 36, 1, 2, 3, 0) + struct.pack("=BxxxiHBB", 2, 7, 0, 0, 0) + b"\x08\0\x01\0\x0a\0\0\x01"
CALL = """
from qubes_guestnet.system.dbus import bus as dbus
print(dbus._library().Message.__module__)
"""


@pytest.mark.behaviour("B149")
@pytest.mark.parametrize("broken", PYROUTE2)
def test_a_pyroute2_that_cannot_be_had_without_its_package_is_had_with_it(broken: str, tmp_path: Path) -> None:
    PYROUTE2[broken](copy("pyroute2", tmp_path))
    said, told = fresh(PACK, tmp_path)
    assert said.splitlines() == [PACKED.hex(), str(tmp_path / "pyroute2" / "__init__.py")]
    assert len(told.splitlines()) == 1
    assert told.startswith("importing all of pyroute2")


@pytest.mark.behaviour("B149")
def test_the_installed_one_is_had_without_its_package(tmp_path: Path) -> None:
    """Else the tests above prove nothing."""
    copy("pyroute2", tmp_path)
    assert fresh(PACK.replace("__file__", "__class__.__name__"), tmp_path) == (f"{PACKED.hex()}\n_StandIn", "")


@pytest.mark.behaviour("B149")
@pytest.mark.parametrize("broken", JEEPNEY)
def test_a_jeepney_that_cannot_be_had_without_its_package_is_had_with_it(broken: str, tmp_path: Path) -> None:
    JEEPNEY[broken](copy("jeepney", tmp_path))
    said, told = fresh(CALL, tmp_path)
    assert said == "jeepney.low_level"
    assert len(told.splitlines()) == 1
    assert told.startswith("importing all of jeepney")


@pytest.mark.behaviour("B149")
@pytest.mark.parametrize("line", ["nonsense.x", "raise RuntimeError", "import no_such_module"])
def test_a_jeepney_that_cannot_be_had_at_all_is_as_if_there_were_none(line: str, tmp_path: Path) -> None:
    folder = copy("jeepney", tmp_path)
    (folder / "low_level.py").write_text(line)
    code = """
from qubes_guestnet.system.dbus import bus as dbus
try:
    dbus.Bus()
except ImportError as error:
    print("none")
"""
    assert fresh(code, tmp_path)[0] == "none"


def test_modules_of_the_package_that_were_loaded_are_not_left_half_broken(tmp_path: Path) -> None:
    """What was imported of it before the failure is imported anew with the whole."""
    PYROUTE2["an import from the package"](copy("pyroute2", tmp_path))
    code = PACK + "print(encode.rtmsg is sys.modules[encode.rtmsg.__module__].rtmsg)"
    assert fresh(code, tmp_path)[0].splitlines()[2] == "True"
