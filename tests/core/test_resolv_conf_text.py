# SPDX-License-Identifier: GPL-2.0-or-later
"""resolv.conf: its text, as it is written and read."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qubes_guestnet.core.dns.resolv_conf import HEADER, MAX_NAMESERVERS, parse, render
from tests.core.test_resolv_conf import FIRST, SECOND


def test_render() -> None:
    assert render([FIRST, SECOND]) == HEADER + b"nameserver 10.139.1.1\nnameserver 10.139.1.2\n"
    assert render([ipaddress.IPv6Address("fd09::53")]) == HEADER + b"nameserver fd09::53\n"
    assert render([]) == b""
    assert b"`qubes-guestnet status`" in HEADER
    assert all(line.startswith(b"#") for line in HEADER.splitlines())
    assert HEADER.endswith(b"\n")


def test_no_more_servers_than_the_c_library_uses() -> None:
    four = [ipaddress.IPv4Address(f"10.139.1.{last}") for last in range(1, 5)]
    assert render(four) == render(four[:3])
    assert parse(b"".join(b"nameserver %s\n" % str(server).encode() for server in four)).servers == tuple(four[:3])


ADDRESSES = st.lists(st.ip_addresses(), max_size=6)


@given(ADDRESSES)
def test_what_is_rendered_is_parsed(servers: list[ipaddress.IPv4Address | ipaddress.IPv6Address]) -> None:
    text = render(servers)
    assert parse(text).servers == tuple(servers[:MAX_NAMESERVERS])
    assert text in (b"", HEADER + text.removeprefix(HEADER))
    assert not text or text.endswith(b"\n")
    assert not any(line.split() == [b"nameserver"] for line in text.splitlines()), "no bare nameserver line (B22)"


@given(st.binary(max_size=200) | st.text(alphabet="nameserver 10.:;#\n\t", max_size=200).map(str.encode))
def test_parse_takes_any_bytes(data: bytes) -> None:
    assert len(parse(data).servers) <= MAX_NAMESERVERS


@pytest.mark.parametrize(
    ("data", "servers"),
    [
        (b"nameserver 10.139.1.1", ["10.139.1.1"]),
        (b"nameserver\t10.139.1.1  \r\n", ["10.139.1.1"]),
        (b"nameserver 10.139.1.1 # a comment\n", ["10.139.1.1"]),
        (b"nameserver fe80::1%eth0\n", ["fe80::1%eth0"]),
        (b"search a\nnameserver 10.139.1.2\nnameserver 10.139.1.1\n", ["10.139.1.2", "10.139.1.1"]),
        (b"# nameserver 10.139.1.1\n;nameserver 10.139.1.1\n", []),
        (b" nameserver 10.139.1.1\n", []),
        (b"nameserver\n", []),
        (b"nameserver \n", []),
        (b"nameserver10.139.1.1\n", []),
        (b"nameservers 10.139.1.1\n", []),
        (b"NAMESERVER 10.139.1.1\n", []),
        (b"nameserver x\nnameserver 10.139.1.1\n", ["10.139.1.1"]),
        (b"nameserver \xff\xfe\nnameserver 10.139.1.1\n", ["10.139.1.1"]),
        (b"\x00" * 10, []),
        (b"", []),
    ],
)
def test_parse(data: bytes, servers: list[str]) -> None:
    assert [str(server) for server in parse(data).servers] == servers
