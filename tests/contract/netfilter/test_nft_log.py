# SPDX-License-Identifier: GPL-2.0-or-later
"""Packets that the kernel reports by nflog, in a namespace of its own."""

from __future__ import annotations

import socket

import pytest

from qubes_guestnet.system.nft import log
from tests.support.judge.oracle import Oracle

# Packets of this test are forwarded nowhere, so they are reported where they leave.
RULES = f"""
add table inet test
add chain inet test output {{ type filter hook output priority 0; }}
add rule inet test output udp dport 9 log group {log._GROUP} snaplen 160
"""


def send(count: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sending:
        for number in range(count):
            sending.sendto(b"%d" % number, ("127.0.0.1", 9))


@pytest.fixture(autouse=True)
def reported(oracle: Oracle) -> None:
    oracle.run("ip", "link", "set", "lo", "up")
    for line in RULES.strip().splitlines():
        oracle.run("nft", line)


def test_each_packet_is_reported_and_none_is_lost() -> None:
    with log.Log("") as packets:
        send(20)
        assert len(list(packets.packets())) == 20
        assert packets.lost == 0


def test_the_reader_knows_that_the_kernel_dropped_some(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "_BUFFER", 1)  # the kernel takes its least instead
    with log.Log("") as packets:
        send(200)
        found = list(packets.packets())
        assert packets.lost > 0
        assert 0 < len(found) < 200
        lost = packets.lost
        send(1)
        assert len(list(packets.packets())) == 1, "the next ones are reported again"
        assert packets.lost == lost
