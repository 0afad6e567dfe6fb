# SPDX-License-Identifier: GPL-2.0-or-later
"""The firewall of the qubes was there, and its rules go: what it would refuse is not forwarded (B155).

With systemd and a daemon: tests/system/test_beside.
"""

from __future__ import annotations

import json

import pytest

from tests.support.eventually import eventually, never
from tests.support.qubes.provider import ENTRIES6, Provider

FIREWALL = "; ".join(
    f"add table {family} qubes-firewall;"
    f" add chain {family} qubes-firewall forward {{ type filter hook forward priority 0; policy drop; }};"
    f" add rule {family} qubes-firewall forward accept"
    for family in ("ip", "ip6")
)
GONE = (
    "delete table ip qubes-firewall",
    "delete table ip6 qubes-firewall",
    "add table ip qubes-firewall { flags dormant; }",
    "add table ip6 qubes-firewall { flags dormant; }",
    "flush ruleset",
)


def codes(host: Provider) -> set[str]:
    found = json.loads(host.qube.guestnet("check", "--json", check=False).stdout)
    return {finding["code"] for finding in found}


def first_line(host: Provider) -> str:
    lines = host.qube.guestnet("status", check=False).stdout.splitlines()
    return next(line for line in lines if line.startswith("provider: "))


def filtered(*, flag: bool = True) -> Provider:
    """A provider whose firewall said that it is ready."""
    host = Provider(ENTRIES6, agent=False)
    if flag:
        host.qube.set_flag("qubes-firewall")
    host.qube.guestnet("forwarding", "hold")
    host.qube.start_agent()
    host.nft(FIREWALL)
    host.qube.guestnet("forwarding", "release")
    behind = host.attach()
    eventually(lambda: host.works(behind) and host.forwards(6), trouble=host.trouble)
    assert "firewall-missing" not in codes(host)
    assert first_line(host) == "provider: forwards IPv4 and IPv6"
    return host


@pytest.mark.behaviour("B155")
@pytest.mark.parametrize("gone", GONE)
def test_forwarding_ends_and_begins_again_with_its_rules(gone: str) -> None:
    host = filtered()
    host.nft(gone)
    eventually(lambda: not host.forwards(), trouble=host.trouble)
    assert "firewall-not-ready" in codes(host)
    assert first_line(host) == "provider: forwards nothing (qubes-firewall.service is not ready)"
    assert "the rules of qubes-firewall.service are gone" in host.trouble() or gone == GONE[-1]
    host.qube.guestnet("forwarding", "on", check=False)
    host.agent.kill()
    host.qube.start_agent()
    never(host.forwards, 0.5)
    host.nft(FIREWALL)
    eventually(lambda: host.forwards(), trouble=host.trouble)


@pytest.mark.behaviour("B155")
def test_one_that_was_never_ready_and_one_without_its_flag_hold_up_nothing() -> None:
    """What is there without core-agent, or is a user's own; `check` says that there is no firewall."""
    host = filtered(flag=False)
    host.nft(GONE[0])
    never(lambda: not host.forwards(), 0.5)
    host.qube.set_flag("qubes-firewall")
    assert "firewall-missing" in codes(host)
    assert ", UNFILTERED (" in first_line(host)


@pytest.mark.behaviour("B155")
def test_release_without_rules_is_obeyed_and_told() -> None:
    host = filtered()
    host.qube.guestnet("forwarding", "hold")
    host.nft(GONE[0])
    host.qube.guestnet("forwarding", "release")
    eventually(lambda: host.forwards(), trouble=host.trouble)
    assert "firewall-missing" in codes(host)
