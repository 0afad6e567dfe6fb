# SPDX-License-Identifier: GPL-2.0-or-later
"""The MTU from dom0: range, precedence, hostile values."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qubes_guestnet.core.uplink.mtu import HIGHEST, LOWEST, common, parse

MAC, OTHER = "00:16:3e:5e:6c:00", "00:16:3e:5e:6c:0a"
KEY, OWN = "/vm-config/net-mtu", f"/net-config/{MAC}/mtu"


@pytest.mark.behaviour("B109")
@pytest.mark.parametrize(
    ("entries", "found", "bad"),
    [
        ({}, {}, []),
        ({KEY: b""}, {}, []),
        ({KEY: b"1420"}, {MAC: 1420, OTHER: 1420}, []),
        ({KEY: b"1420", OWN: b"1400"}, {MAC: 1400, OTHER: 1420}, []),
        ({OWN: b"1400"}, {MAC: 1400}, []),
        ({f"/net-config/{OTHER.upper()}/mtu": b"1400"}, {OTHER: 1400}, []),
        ({f"/net-config/{OTHER}/mtu": b"1400", f"/net-config/{OTHER.upper()}/mtu": b"1500"}, {OTHER: 1400}, []),
        ({KEY: b"1420", OWN: b"x"}, {OTHER: 1420}, [OWN]),
        ({KEY: b"1279", OWN: b"1280"}, {MAC: 1280}, [KEY]),
        ({KEY: str(HIGHEST).encode()}, {MAC: HIGHEST, OTHER: HIGHEST}, []),
        ({KEY: str(HIGHEST + 1).encode()}, {}, [KEY]),
    ],
)
def test_whose_mtu_counts(entries: dict[str, bytes], found: dict[str, int], bad: list[str]) -> None:
    mtus, errors = parse(entries, (MAC, OTHER))
    assert mtus == found
    assert [error.key for error in errors] == bad


@pytest.mark.behaviour("B109")
@pytest.mark.parametrize(
    "untrusted", [b"1400\n", b" 1400", b"+1400", b"0x578", b"01400", b"1_400", b"1" * 3000, b"\xd9\xa1"]
)
def test_hostile_values(untrusted: bytes) -> None:
    mtus, errors = parse({KEY: untrusted}, (MAC,))
    assert mtus == {}
    assert [error.key for error in errors] == [KEY]


@given(st.binary(max_size=8))
def test_whatever_it_is_it_is_in_range_or_an_error(untrusted: bytes) -> None:
    mtus, errors = parse({KEY: untrusted}, (MAC,))
    assert len(mtus) + len(errors) == bool(untrusted)
    assert all(LOWEST <= mtu <= HIGHEST for mtu in mtus.values())


@pytest.mark.parametrize(("value", "wanted"), [(b"1420", 1420), (b"", 0), (b"99999", 0), (b"1420\n", 0)])
def test_the_vifs_have_the_common_mtu_or_keep_their_own(value: bytes, wanted: int) -> None:
    assert common({KEY: value}) == wanted
