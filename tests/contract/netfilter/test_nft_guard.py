# SPDX-License-Identifier: GPL-2.0-or-later
"""The table that belongs to a socket: what others can do to it, and when it goes."""

from __future__ import annotations

import subprocess

import pytest

from qubes_guestnet.errors import KernelError
from qubes_guestnet.system.nft.guard import Guard
from tests.support.eventually import eventually

# ruff: noqa: E501
pytestmark = pytest.mark.behaviour("B125")

GUARD = """table inet qubes-guard {
	chain prerouting {
		type filter hook prerouting priority -400; policy accept;
		iifgroup 2 meta pkttype host meta pkttype set other accept
		iifname "vif*" meta pkttype host meta pkttype set other accept
		iifgroup != 2 meta pkttype host fib daddr oifname "vif*" meta pkttype set other
	}

	chain input {
		type filter hook input priority -400; policy accept;
		meta pkttype other counter drop
		iifgroup != 2 fib saddr oifname "vif*" counter drop
		iifgroup 1 icmp type redirect counter drop
		iifgroup 2 icmp type redirect counter drop
		iifgroup 1 icmpv6 type nd-redirect counter drop
		iifgroup 2 icmpv6 type nd-redirect counter drop
	}

	chain before-input {
		type filter hook input priority filter - 1; policy accept;
		iifname "lo" accept
		iifgroup 2 ct state invalid,established,related,new meta priority set meta priority & c7ff:ffff | 4000:0 accept
		iifname "vif*" ct state invalid,established,related,new meta priority set meta priority & c7ff:ffff | 4000:0 accept
		ct state new meta priority set meta priority & c7ff:ffff | 4000:0 accept
	}

	chain behind-input {
		type filter hook input priority filter + 1; policy accept;
		meta priority & 4000:0 != none counter drop
	}

	chain before-forward {
		type filter hook forward priority filter - 1; policy accept;
		iifgroup 2 meta priority set meta priority & c7ff:ffff | 4000:0 accept
		oifgroup 2 meta priority set meta priority & c7ff:ffff | 4000:0 accept
		iifname "vif*" meta priority set meta priority & c7ff:ffff | 4000:0 accept
		oifname "vif*" meta priority set meta priority & c7ff:ffff | 4000:0 accept
	}

	chain behind-forward {
		type filter hook forward priority filter + 1; policy accept;
		meta priority & 4000:0 != none counter drop
		ct state established,related iifgroup 2 oifgroup != 2 meta priority set meta priority & c7ff:ffff | 4000:0 accept
		ct state established,related meta priority set meta priority & 87ff:ffff accept
		meta priority & 3800:0 == none accept
		meta priority & 1000:0 == none iifgroup 2 oifgroup != 2 meta priority set meta priority & c7ff:ffff | 4000:0 accept
		meta priority & 1000:0 == none meta priority set meta priority & 87ff:ffff accept
		meta priority & 800:0 != none counter drop
		iifgroup 1 counter drop
		oifgroup 2 counter drop
		oifname "vif*" counter drop
		iifgroup 2 oifgroup != 2 meta priority set meta priority & c7ff:ffff | 4000:0 accept
		meta priority set meta priority & 87ff:ffff accept
	}

	chain behind-egress {
		type filter hook postrouting priority 301; policy accept;
		meta priority & 4000:0 != none counter drop
		oifname "vif*" oifgroup != 2 counter drop
	}
}
"""


def nft(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["nft", *words], capture_output=True, text=True, timeout=20, check=False)


def listed() -> str:
    """The ruleset without what names the owner."""
    lines = nft("-s", "list", "ruleset").stdout.splitlines(keepends=True)
    text = "".join(line.partition(" # ")[0] + "\n" if " # " in line else line for line in lines)
    return text.replace("\tflags owner\n\n", "")


def test_it_stays_whatever_others_flush_and_goes_with_its_owner() -> None:
    guard = Guard()
    assert guard.stand()
    assert not guard.stand(), "it stands already"
    assert listed() == GUARD
    for text in (
        "flush ruleset", "flush ruleset inet", "delete table inet qubes-guard", "flush table inet qubes-guard",
        "add rule inet qubes-guard input accept", "insert rule inet qubes-guard prerouting accept",
        "add table inet qubes-guard { flags dormant; }",
    ):  # fmt: skip
        nft(text)
        assert listed() == GUARD, text
    assert guard.leave()
    assert not guard.leave()
    eventually(lambda: listed() == "")


def test_a_second_one_is_refused_and_takes_nothing_away() -> None:
    guard = Guard()
    guard.stand()
    with pytest.raises(KernelError, match="nft add table inet qubes-guard"):
        Guard().stand()
    assert listed() == GUARD
    guard.leave()


def test_a_table_of_that_name_that_somebody_made_is_an_error_that_says_so() -> None:
    nft("add table inet qubes-guard")
    with pytest.raises(KernelError, match="qubes-guard"):
        Guard().stand()
    nft("delete table inet qubes-guard")
