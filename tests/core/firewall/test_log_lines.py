# SPDX-License-Identifier: GPL-2.0-or-later
"""What the kernel reports of a packet, and why a list refuses it. Every byte of it is a qube's."""

from __future__ import annotations

import struct
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qubes_guestnet.core.firewall import log_lines
from qubes_guestnet.core.firewall.binding import bind
from qubes_guestnet.core.firewall.evaluator import Packet
from tests.core.firewall.made import FOUR, SIX, bound, ruleset

WORLD, WORLD6 = "192.0.2.1", "2001:db8::1"


def ipv4(protocol: int, rest: bytes, *, fragment: int = 0, options: bytes = b"") -> bytes:
    head = bytes((0x45 + len(options) // 4, 0)) + struct.pack("!HHH", 20 + len(options) + len(rest), 0, fragment)
    ends = ip_address(FOUR).packed + ip_address(WORLD).packed
    return head + bytes((64, protocol, 0, 0)) + ends + options + rest


def ipv6(protocol: int, rest: bytes) -> bytes:
    head = struct.pack("!IHBB", 6 << 28, len(rest), protocol, 64)
    return head + ip_address(SIX).packed + ip_address(WORLD6).packed + rest


PORTS = struct.pack("!HH", 1024, 443) + bytes(16)
FOUR_TARGET, SIX_TARGET = ip_address(WORLD), ip_address(WORLD6)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (ipv4(6, PORTS), Packet(FOUR_TARGET, 6, 443)),
        (ipv4(17, PORTS, options=bytes(8)), Packet(FOUR_TARGET, 17, 443)),
        (ipv4(1, b"\x08\\0"), Packet(FOUR_TARGET, 1, None, 8)),
        (ipv4(6, PORTS, fragment=5), Packet(FOUR_TARGET, 6)),
        (ipv4(6, PORTS[:3]), Packet(FOUR_TARGET, 6)),
        (ipv4(47, PORTS), Packet(FOUR_TARGET, 47)),
        (ipv4(58, PORTS), Packet(FOUR_TARGET, 58)),
        (ipv6(17, PORTS), Packet(SIX_TARGET, 17, 443)),
        (ipv6(58, b"\x80\\0"), Packet(SIX_TARGET, 58, None, 128)),
        (ipv6(0, bytes((60, 0, *bytes(6))) + bytes((6, 1, *bytes(14))) + PORTS), Packet(SIX_TARGET, 6, 443)),
        (ipv6(44, bytes((17, *bytes(7))) + PORTS), Packet(SIX_TARGET, 17, 443)),
        (ipv6(44, b"\x11"), Packet(SIX_TARGET, 44)),
        (ipv6(60, b"\x11"), Packet(SIX_TARGET, 60)),
        (ipv6(60, bytes((60, 0, *bytes(6))) * 20), Packet(SIX_TARGET, 60)),
    ],
)
def test_headers(data: bytes, expected: Packet) -> None:
    assert log_lines.parse(data) == (ip_address(FOUR if data[0] >> 4 == 4 else SIX), expected)


@pytest.mark.parametrize(
    "data", [b"", b"\x00", ipv4(6, b"")[:19], b"\x4f" + ipv4(6, b"")[1:], b"\x41" * 30, ipv6(6, b"")[:39]]
)
def test_what_is_no_packet_is_an_error(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"header|neither"):
        log_lines.parse(data)


@given(st.binary(max_size=200), st.sampled_from([b"", b"\x45", b"\x60"]))
def test_whatever_a_qube_sends_is_a_packet_or_a_value_error(rest: bytes, first: bytes) -> None:
    try:
        seen = log_lines.parse(first + rest)
    except ValueError:
        return
    assert log_lines.text(log_lines.Refusal(seen, None, "x")).isprintable()


def test_words_of_a_refusal() -> None:
    seen = log_lines.parse(ipv4(6, PORTS))
    ping, other = log_lines.parse(ipv4(1, b"\x08")), log_lines.parse(ipv4(47, b""))
    listed = bound("action=drop dst4=192.0.2.0/24 proto=tcp", "action=accept proto=icmp", "action=drop")
    assert log_lines.refusal(ping, listed, ()) is None
    found = log_lines.refusal(seen, listed, ())
    assert found is not None
    assert log_lines.text(found) == f"{FOUR} → {WORLD} tcp port 443 refused by entry 0000"
    assert log_lines.data(found, 5.5) == {
        "time": 5.5, "from": FOUR, "to": WORLD, "protocol": 6, "port": 443, "icmp_type": None, "entry": 0,
        "words": "refused by entry 0000",
    }  # fmt: skip
    words = {
        "by the policy: no entry matches": bound(),
        "like everything: its list has an error, or an unknown name blocks it": bound("odd"),
        "until all addresses of the name in entry 0000 are known": bind(ruleset("action=accept dsthost=a.org"), {}),
    }
    for text, each in words.items():
        found = log_lines.refusal(other, each, ())
        assert found is not None
        assert log_lines.text(found) == f"{FOUR} → {WORLD} protocol 47 refused {text}"
        assert log_lines.data(found, 0)["entry"] in (None, 0)
    found = log_lines.refusal(ping, None, ())
    assert found is not None
    assert log_lines.text(found).endswith("icmp type 8 dropped: dom0 has committed no list since the vif appeared")
    assert log_lines.data(found, 0)["entry"] is None
