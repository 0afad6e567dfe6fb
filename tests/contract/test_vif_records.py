# SPDX-License-Identifier: GPL-2.0-or-later
"""The records of vifs on disk: one file each, and nothing else is taken for one."""

from __future__ import annotations

import ipaddress
import stat
from pathlib import Path

import pytest

from qubes_guestnet.core.provider.vif import Mapping, Vif, render
from qubes_guestnet.core.vif_name import parse_name
from qubes_guestnet.errors import FileError
from qubes_guestnet.system.vif_records import Folder

IP, VISIBLE = ipaddress.IPv4Address("10.137.0.4"), ipaddress.IPv4Address("10.99.0.4")


def vif(name: str = "vif4.0") -> Vif:
    gateways = frozenset({ipaddress.ip_interface("10.138.0.1/32")})
    return Vif(parse_name(name), "00:16:3e:5e:6c:00", "vif", (IP,), (Mapping(IP, VISIBLE),), gateways)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def records(run: Path) -> Folder:
    return Folder(str(run))


def test_what_is_saved_is_loaded(records: Folder, run: Path) -> None:
    records.save(vif())
    assert records.load("vif4.0") == vif()
    assert records.names() == ("vif4.0",)
    path = run / "vifs/vif4.0"
    assert path.read_bytes() == render(vif())
    assert [stat.S_IMODE(place.stat().st_mode) for place in (run / "vifs", path)] == [0o755, 0o644]


def test_the_same_again_writes_nothing(records: Folder, run: Path) -> None:
    records.save(vif())
    before = (run / "vifs/vif4.0").stat()
    records.save(vif())
    after = (run / "vifs/vif4.0").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    records.save(vif()._replace(kind="other"))
    assert records.load("vif4.0") == vif()._replace(kind="other")


def test_before_the_first_one(records: Folder, run: Path) -> None:
    assert records.names() == ()
    assert records.all() == ()
    assert records.load("vif4.0") is None
    assert not records.has("vif4.0")
    records.remove("vif4.0")
    assert not run.exists()


def test_a_damaged_one_is_one_that_is_not_known(records: Folder, run: Path) -> None:
    records.save(vif())
    (run / "vifs/vif4.0").write_bytes(b"vif")
    assert (records.has("vif4.0"), records.load("vif4.0")) == (True, None)


def test_one_of_many(records: Folder) -> None:
    for number in range(250):
        records.save(vif(f"vif{number}.0"))
    records.remove("vif7.0")
    records.remove("vif7.0")
    assert records.load("vif7.0") is None
    assert len(records.names()) == len(records.all()) == 249
    assert records.load("vif8.0") == vif("vif8.0")


def test_other_files_are_passed_over(records: Folder, run: Path) -> None:
    records.save(vif())
    for name in (".vif4.0.guestnet-00", "vif04.0", "vif4", "vif4.0~", "README", "eth0"):
        (run / "vifs" / name).write_bytes(render(vif()))
    assert records.names() == ("vif4.0",)
    assert records.all() == (vif(),)


@pytest.mark.parametrize(
    "data", [b"", b"\0", b"vif vif4.0", render(vif())[:-1], render(vif())[:-5], render(vif("vif5.0"))]
)
def test_a_damaged_one_is_none_and_still_has_a_name(records: Folder, run: Path, data: bytes) -> None:
    records.save(vif("vif9.0"))
    (run / "vifs/vif4.0").write_bytes(data)
    assert records.load("vif4.0") is None
    assert records.names() == ("vif4.0", "vif9.0")
    assert records.all() == (vif("vif9.0"),)
    records.save(vif())
    assert records.load("vif4.0") == vif()


@pytest.mark.parametrize("name", ["", "..", "../owned", "vif4.0/x", "eth0"])
def test_no_name_leads_out_of_the_folder(records: Folder, name: str) -> None:
    for use in (records.load, records.remove):
        with pytest.raises(ValueError, match="not the name of a vif"):
            use(name)


def test_what_the_file_system_refuses(records: Folder, run: Path) -> None:
    run.mkdir()
    (run / "vifs").write_text("in the way")
    for use in (lambda: records.save(vif()), records.names, records.all, lambda: records.remove("vif4.0")):
        with pytest.raises(FileError, match="vifs"):
            use()  # type: ignore[no-untyped-call]
