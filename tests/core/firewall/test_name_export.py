# SPDX-License-Identifier: GPL-2.0-or-later
"""`/dns/IP/HOST` for third-party scripts: the old text, and no length of a name or list that QubesDB would refuse."""

from __future__ import annotations

import ast
import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qubes_guestnet.core.firewall.name_export import LONGEST_PATH, LONGEST_VALUE, Export, export, text

SOURCE, SOURCE6 = ipaddress.ip_address("10.137.0.5"), ipaddress.ip_address("fd09:24ef:4179::a89:5")
A1, A2, B1 = map(ipaddress.ip_address, ("192.0.2.10", "192.0.2.9", "2001:db8::1"))


@pytest.mark.behaviour("B78")
def test_the_value_is_the_text_of_a_set() -> None:
    assert export(SOURCE, {"example.org": (A1, A2), "b": (A1,), "none": ()}) == Export(
        "/dns/10.137.0.5/",
        (
            ("/dns/10.137.0.5/b", b"{'192.0.2.10/32'}"),
            ("/dns/10.137.0.5/example.org", b"{'192.0.2.9/32', '192.0.2.10/32'}"),
        ),
        (),
    )
    made = export(SOURCE6, {"example.org": (B1,)})
    assert made.entries == (("/dns/fd09:24ef:4179::a89:5/example.org", b"{'2001:db8::1/128'}"),)
    assert ast.literal_eval(made.entries[0][1].decode()) == {"2001:db8::1/128"}


@pytest.mark.behaviour("B68")
@pytest.mark.parametrize(
    ("source", "length", "there"),
    [
        *((SOURCE, 46, True), (SOURCE, 47, True), (SOURCE, 48, False), (SOURCE, 49, False), (SOURCE, 239, False)),
        *((SOURCE6, 36, True), (SOURCE6, 37, False)),
    ],
)
def test_a_path_that_is_too_long_is_left_out(source: ipaddress.IPv4Address, length: int, there: bool) -> None:
    host = "h" * length
    made = export(source, {host: (A1,), "a": (A1,)})
    assert (f"/dns/{source}/{host}" in dict(made.entries)) == there
    assert f"/dns/{source}/a" in dict(made.entries)
    assert len(made.lines) == (not there)
    assert all(host in line and "path" in line for line in made.lines)


def test_what_is_no_path_is_left_out() -> None:
    made = export(SOURCE, {"": (A1,), "a b": (A1,), "ä": (A1,), "x\n": (A1,)})
    assert made.entries == ()
    (line,) = made.lines
    assert "and 1 more left out" in line


@pytest.mark.behaviour("B68")
@pytest.mark.parametrize("base", ["203.0.113.0", "2001:db8:1111:2222:3333:4444:5555:0"])
def test_a_value_that_is_too_long_has_fewer_whole_addresses(base: str) -> None:
    addresses = [ipaddress.ip_address(base) + number for number in range(250)]
    made = export(SOURCE, {"many": addresses, "few": addresses[:3]})
    value = dict(made.entries)["/dns/10.137.0.5/many"].decode()
    assert len(value) <= LONGEST_VALUE
    length = f"/{addresses[0].max_prefixlen}"
    found = ast.literal_eval(value)
    assert found == {f"{each}{length}" for each in addresses[: len(found)]}
    assert len(value) + len(f", '{addresses[len(found)]}{length}'") > LONGEST_VALUE
    (line,) = made.lines
    assert "many shortened" in line
    assert "few" not in line


def test_one_line_says_all_of_a_qube() -> None:
    many = [A2 + number for number in range(250)]
    made = export(SOURCE, {"h" * 99: (A1,), "many": many})
    (line,) = made.lines
    assert line.endswith("; the rules apply in full")
    assert "left out" in line
    assert "shortened" in line


@given(st.lists(st.ip_addresses(), max_size=200))
def test_no_value_is_too_long_or_cut_within_an_address(addresses: list) -> None:
    value, whole = text(addresses)
    assert len(value) <= LONGEST_VALUE
    words = value.decode().strip("{}").split(", ") if value != b"{}" else []
    wanted = [f"'{each}/{each.max_prefixlen}'" for each in addresses]
    assert all(word in wanted for word in words)
    assert whole == (len(words) == len(wanted))


@given(st.dictionaries(st.text(max_size=60), st.lists(st.ip_addresses(v=4), max_size=3), max_size=5))
def test_no_path_is_one_that_qubesdb_refuses(hosts: dict) -> None:
    for path, _ in export(SOURCE, hosts).entries:
        assert len(path) <= LONGEST_PATH
        assert path.isascii()
        assert path.startswith("/dns/10.137.0.5/")
