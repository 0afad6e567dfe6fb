# SPDX-License-Identifier: GPL-2.0-or-later
"""A qube that provides no network: its agent notices that its base rules are gone, and has them loaded again."""

from __future__ import annotations

import pytest

from tests.support.eventually import eventually
from tests.support.qubes.provider import Provider

pytestmark = pytest.mark.behaviour("B140")

AWAY = (
    "flush ruleset",
    "delete table ip6 qubes",
    "flush chain ip qubes input",
    "table ip qubes { flags dormant; }",
    "table arp qubes { flags dormant; }",
)


def rules(host: Provider) -> list[object]:
    listing = (("nft", "-s", "list", "table", family, "qubes") for family in ("ip", "ip6", "arp"))
    return [host.settled(), *["dormant" in host.oracle.run(*words, check=False).stdout for words in listing]]


@pytest.mark.parametrize("removed", AWAY)
def test_base_rules_that_are_removed_come_back(removed: str) -> None:
    host = Provider({}, flag=False)
    whole = rules(host)
    host.nft("add rule ip qubes custom-input tcp dport 22 accept")
    eventually(lambda: "dport 22" in host.qube.read("/run/qubes-guestnet/users-rules"), trouble=host.trouble)
    host.nft(removed)
    eventually(lambda: rules(host) == whole, trouble=host.trouble)
    assert host.rules("ip", "custom-input") == ["tcp dport 22 accept"]
    assert "nft -f: base rules" in host.trouble()


def test_they_come_back_after_a_time_without_an_agent_and_without_qubesdb() -> None:
    host = Provider({}, flag=False)
    whole = rules(host)
    host.agent.kill()
    host.nft("flush ruleset")
    host.qube.start_agent()
    eventually(lambda: rules(host) == whole, trouble=host.trouble)
    host.qube.stop_store()
    eventually(lambda: "QubesDB" in host.trouble(), trouble=host.trouble)
    host.nft("flush ruleset")
    eventually(lambda: rules(host) == whole, trouble=host.trouble)


def test_why_they_do_not_come_back_is_told() -> None:
    host = Provider({}, flag=False)
    whole = rules(host)
    host.replace_nft("/bin/false")
    host.real_nft("flush ruleset")
    eventually(lambda: "nft" in host.qube.guestnet("check", check=False).stdout)
    eventually(lambda: "agent-error" in host.qube.guestnet("check", check=False).stdout, trouble=host.trouble)
    host.restore_nft()
    eventually(lambda: rules(host) == whole, trouble=host.trouble)


@pytest.mark.parametrize("removed", AWAY)
def test_without_an_agent_plan_and_status_list_them_and_apply_loads_them(removed: str) -> None:
    host = Provider({}, flag=False, agent=False)
    whole, line = rules(host), "nft -f: base rules of the tables ip qubes, ip6 qubes and arp qubes"
    assert host.qube.guestnet("plan").stdout == ""
    host.nft(removed)
    because = "missing or different → in force: no qube may use the address of another one"
    assert host.qube.guestnet("plan").stdout.splitlines() == [f"{line}  # {because}"]
    assert f"to do:\n  {line}\n" in host.qube.guestnet("status", check=False).stdout
    assert host.qube.guestnet("apply").stdout.splitlines() == [line]
    assert rules(host) == whole
    for verb in ("plan", "apply"):
        assert host.qube.guestnet(verb).stdout == ""
    host.qube.guestnet("rules", "unload")  # on purpose: nothing is lost
    assert host.qube.guestnet("plan").stdout == ""


def test_forwarding_on_says_that_there_is_nothing_to_forward() -> None:
    host = Provider({}, flag=False, agent=False)
    done = host.qube.guestnet("forwarding", "on")
    assert (done.returncode, done.stdout) == (
        0,
        "this qube is not a provider: there is nothing to forward\n",
    )
    assert not host.forwards()
