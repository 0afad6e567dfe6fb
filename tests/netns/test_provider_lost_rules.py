# SPDX-License-Identifier: GPL-2.0-or-later
"""The base rules are removed by another program: forwarding closes, all comes back, and what did not is named."""

from __future__ import annotations

import json
import signal

import pytest

from tests.support.eventually import eventually
from tests.support.qubes.provider import ENTRIES6, OWN, OWN6, WORLD, WORLD6, Client, Provider

FLUSH = "flush ruleset"
KILL_SWITCH = "add rule ip qubes custom-forward ip daddr 198.51.100.9 counter drop"
HOLD = "[provider]\nhold_after_flush = true\n"
MINE = "add table inet mine; add chain inet mine lan { type filter hook forward priority filter - 5; }"


def checked(host: Provider) -> dict[str, str]:
    """What `check` finds: code and problem."""
    found = json.loads(host.qube.guestnet("check", "--json", check=False).stdout)
    return {finding["code"]: finding["problem"] for finding in found}


def provider(host: Provider) -> dict[str, object]:
    """The provider's half of `status --json`."""
    found = json.loads(host.qube.guestnet("status", "--json", check=False).stdout)["provider"]
    assert isinstance(found, dict)
    return found


def well(entries: dict[str, str] = ENTRIES6) -> tuple[Provider, Client]:
    """A provider with a qube, all of it settled."""
    host = Provider(entries)
    behind = host.attach()
    eventually(lambda: host.works(behind), trouble=host.trouble)
    host.guarded()
    return host, behind


def remembered(host: Provider, words: str) -> None:
    """Wait until the agent has seen what was added."""
    eventually(lambda: words in host.qube.read("/run/qubes-guestnet/users-rules"), trouble=host.trouble)


def put_back(host: Provider, whole: tuple[object, ...]) -> None:
    eventually(lambda: host.settled() == whole, trouble=host.trouble)


@pytest.mark.behaviour("B125")
@pytest.mark.parametrize("removed", [FLUSH, "delete table ip qubes", "flush table ip qubes"])
def test_what_users_have_in_our_tables_comes_back_with_ours(removed: str) -> None:
    host, behind = well()
    whole = host.settled()
    host.nft(f"add set ip qubes lan {{ type ipv4_addr; elements = {{ 192.0.2.1 }}; }}; {KILL_SWITCH}")
    host.nft("add rule ip qubes custom-forward ip daddr @lan drop; add rule ip qubes custom-input tcp dport 22 accept")
    remembered(host, "tcp dport 22 accept")
    before = [host.rules("ip", chain) for chain in ("custom-forward", "custom-input")]
    host.nft(removed)
    eventually(lambda: host.rules("ip", "custom-forward") == before[0], trouble=host.trouble)
    assert [host.rules("ip", chain) for chain in ("custom-forward", "custom-input")] == before
    assert host.elements("lan") == {"192.0.2.1"}
    put_back(host, whole)
    assert "restore other programs' parts of our tables: ip qubes" in host.trouble()
    assert host.works(behind)


DEPENDENT = {
    "a jump to a chain behind": "add chain ip qubes mine; add rule ip qubes mine ip daddr 198.51.100.9 drop;"
    " add rule ip qubes custom-forward jump mine",
    "a map that leads to chains": "add chain ip qubes mine; add rule ip qubes mine drop;"
    " add map ip qubes ports { type inet_service : verdict; elements = { 99 : jump mine }; };"
    " add rule ip qubes custom-forward tcp dport vmap @ports",
    "a chain with a hook that jumps": "add chain ip qubes a { type filter hook forward priority -9; policy accept; };"
    " add chain ip qubes b; add rule ip qubes a ip daddr 198.51.100.9 goto b; add rule ip qubes b counter name c",
}


@pytest.mark.behaviour("B125")
@pytest.mark.parametrize("rules", DEPENDENT.values(), ids=DEPENDENT.keys())
def test_what_names_other_chains_and_sets_comes_back_with_them(rules: str) -> None:
    host, behind = well()
    host.nft(f"add counter ip qubes c; {rules}; add rule ip qubes custom-forward ip daddr 198.51.100.8 drop")
    remembered(host, "198.51.100.8")
    before = host.oracle.run("nft", "-s", "list", "table", "ip", "qubes").stdout
    host.nft(FLUSH)
    eventually(lambda: host.rules("ip", "dnat-dns") and host.forwards(4), trouble=host.trouble)
    after = host.oracle.run("nft", "-s", "list", "table", "ip", "qubes").stdout
    assert sorted(after.splitlines()) == sorted(before.splitlines())
    assert provider(host)["lost"] == []
    assert provider(host)["hold"] == ""
    assert host.works(behind)


@pytest.mark.behaviour("B125")
def test_a_part_that_nft_refuses_keeps_forwarding_closed_and_the_others_come_back() -> None:
    """A rule with `oif` of a VPN's interface, which is gone when the rules are."""
    host, behind = well()
    host.qube.run("ip", "link", "add", "tun9", "type", "veth", "peer", "name", "tun9p")
    host.nft("add chain ip qubes vpn; add rule ip qubes vpn oif tun9 counter accept; add chain ip6 qubes other")
    host.nft(f"add rule ip qubes custom-forward jump vpn; {KILL_SWITCH}; add rule ip6 qubes other counter drop")
    remembered(host, "198.51.100.9")
    before = {("ip", "custom-forward"), ("ip6", "other")}
    rules = {chain: host.rules(*chain) for chain in before}
    host.qube.run("sh", "-ec", "ip link del tun9; nft flush ruleset")
    eventually(lambda: provider(host)["hold"] == "held", trouble=host.trouble)
    eventually(lambda: host.rules("ip", "dnat-dns"), trouble=host.trouble)
    assert {chain: host.rules(*chain) for chain in before} == rules
    assert host.rules("ip", "vpn") == []
    lost = "rules of ip qubes chain vpn"
    assert provider(host)["lost"] == [lost]
    assert lost in checked(host)["user-rules-lost"]
    assert "not restored" in checked(host)["forwarding-off"]
    assert "ip qubes chain vpn is not restored: nft: " in host.trouble()
    # Neither a new qube, nor a reload, nor another start, nor another loss opens it.
    host.attach(5)
    host.agent.signal(signal.SIGHUP)
    host.agent.kill()
    host.qube.start_agent()
    host.nft(FLUSH)
    eventually(lambda: host.rules("ip", "dnat-dns"), trouble=host.trouble)
    assert not host.forwards(4)
    assert not host.forwards(6)
    assert provider(host)["hold"] == "held"
    host.nft("add chain ip qubes vpn; add rule ip qubes vpn counter accept")
    eventually(lambda: provider(host)["lost"] == [], trouble=host.trouble)
    assert not host.forwards(4)
    host.qube.guestnet("forwarding", "on")
    eventually(lambda: host.works(behind), trouble=host.trouble)


@pytest.mark.behaviour("B125")
def test_a_set_too_large_to_remember_keeps_forwarding_closed_and_the_chains_come_back() -> None:
    host, behind = well()

    def fill() -> None:
        for third in range(0, 80, 10):  # in a user namespace the kernel takes a few thousand at once
            elements = ", ".join(f"10.9.{third + n // 256}.{n % 256}" for n in range(2560))
            host.qube.write("/run/lab/big", f"add element ip qubes big {{ {elements} }}\n")
            host.qube.run("nft", "-f", "/run/lab/big")

    host.nft(f"add set ip qubes big {{ type ipv4_addr; }}; {KILL_SWITCH}")
    host.nft("add rule ip qubes custom-forward ip daddr @big drop; add rule ip qubes custom-input tcp dport 22 accept")
    fill()
    remembered(host, "# without its elements: ip set big {")
    before = [host.rules("ip", chain) for chain in ("custom-forward", "custom-input")]
    host.nft(FLUSH)
    eventually(lambda: provider(host)["hold"] == "held", trouble=host.trouble)
    eventually(lambda: host.rules("ip", "dnat-dns"), trouble=host.trouble)
    assert [host.rules("ip", chain) for chain in ("custom-forward", "custom-input")] == before
    assert provider(host)["lost"] == ["rules of ip qubes set big"]
    assert "ip qubes set big" in checked(host)["user-rules-lost"]
    assert not host.forwards(4)
    assert not host.forwards(6)
    fill()
    eventually(lambda: provider(host)["lost"] == [], trouble=host.trouble)
    assert not host.forwards(4)
    host.qube.guestnet("forwarding", "on")
    eventually(lambda: host.works(behind), trouble=host.trouble)


@pytest.mark.behaviour("B125")
def test_what_its_owner_took_out_of_a_chain_does_not_come_back() -> None:
    host, _ = well()
    host.nft(KILL_SWITCH)
    remembered(host, "198.51.100.9")
    host.nft("flush chain ip qubes custom-forward")
    eventually(lambda: "198.51.100.9" not in host.qube.read("/run/qubes-guestnet/users-rules"))
    whole = host.settled()
    host.nft(FLUSH)
    put_back(host, whole)
    assert host.rules("ip", "custom-forward") == []


@pytest.mark.behaviour("B125")
def test_tables_of_others_that_went_along_are_named_until_they_are_there_again() -> None:
    host, _ = well()
    whole = host.settled()
    host.nft(MINE)
    remembered(host, "inet mine")
    host.nft(FLUSH)
    put_back(host, whole)
    assert provider(host)["lost"] == ["table inet mine"]
    assert "table inet mine" in checked(host)["user-rules-lost"]
    assert "another program removed our rules, and with them: table inet mine" in host.trouble()
    host.nft(MINE)
    eventually(lambda: provider(host)["lost"] == [], trouble=host.trouble)
    assert "user-rules-lost" not in checked(host)
    # And one that is not needed any more is forgotten on request.
    host.nft(FLUSH)
    eventually(lambda: provider(host)["lost"] == ["table inet mine"], trouble=host.trouble)
    host.qube.guestnet("forwarding", "on")
    assert provider(host)["lost"] == []


@pytest.mark.behaviour("B125")
def test_forwarding_stays_closed_where_its_owner_wants_that() -> None:
    host, behind = well()
    host.qube.write("/etc/qubes/guestnet.toml", HOLD)
    host.nft("delete table ip6 qubes")
    eventually(lambda: provider(host)["hold"] == "held", trouble=host.trouble)
    eventually(lambda: host.rules("ip6", "forward"), trouble=host.trouble)
    other = host.attach(5)
    host.agent.signal(signal.SIGHUP)
    assert "hold_after_flush" in checked(host)["forwarding-off"]
    assert not host.forwards(4)
    assert not host.forwards(6)
    host.agent.kill()
    host.qube.start_agent()
    assert not host.forwards(4)
    host.qube.guestnet("forwarding", "on")
    eventually(lambda: host.works(behind) and host.works(other), trouble=host.trouble)


@pytest.mark.behaviour("B125")
def test_a_value_that_is_neither_keeps_it_closed_and_is_an_error() -> None:
    host, _ = well()
    host.qube.write("/etc/qubes/guestnet.toml", HOLD.replace("true", '"yes"'))
    host.nft(FLUSH)
    eventually(lambda: provider(host)["hold"] == "held", trouble=host.trouble)
    assert "[provider] hold_after_flush: 'yes'; [provider] hold_after_flush is true or false" in host.trouble()


@pytest.mark.behaviour("B126")
@pytest.mark.behaviour("B146")
@pytest.mark.parametrize(("version", "damaged"), [(4, False), (6, False), (4, True)])
def test_connections_that_began_without_translation_do_not_stay_untranslated(version: int, damaged: bool) -> None:
    """No agent and so no guard: what came out meanwhile is what conntrack remembers.

    The record of another vif that cannot be read keeps these connections from nothing.
    """
    host, behind = well()
    if damaged:
        host.qube.run("mkdir", "/run/qubes-guestnet/vifs/vif9.0")
    host.agent.kill()
    own, world = (behind.ip, WORLD) if version == 4 else (behind.ip6, WORLD6)
    outside = host.outside()
    # Without any rule that asks for connections the kernel would track none.
    host.nft(f"{MINE}; add rule inet mine lan ct state established accept")
    host.nft("delete table ip qubes; delete table ip6 qubes")
    host.oracle.run("conntrack", "-F")
    behind.port.send(own, world, "away")
    assert outside.hears(lambda packet: packet.word == "away")
    assert outside.heard()[-1].source == own
    host.qube.start_agent()
    eventually(lambda: host.forwards(version) and host.rules("ip", "dnat-dns"), trouble=host.trouble)
    behind.port.send(own, world, "back")
    assert outside.hears(lambda packet: packet.word == "back")
    assert {packet.source for packet in outside.heard() if packet.word == "back"} == {OWN if version == 4 else OWN6}
    assert "untranslated entries of the qubes" in host.trouble()


@pytest.mark.behaviour("B126")
@pytest.mark.parametrize("changed", ["flush chain ip qubes input", "add rule ip qubes forward counter", FLUSH])
def test_connections_that_are_translated_go_on(changed: str) -> None:
    host, behind = well()
    whole = host.settled()
    outside = host.outside()
    behind.port.send(behind.ip, WORLD, "first")
    assert outside.hears(lambda packet: packet.word == "first")

    def known() -> list[str]:
        lines = host.connections().splitlines()
        return [line for line in lines if f"src={behind.ip} dst={WORLD}" in line and f"dst={OWN}" in line]

    assert len(known()) == 1
    host.nft(changed)
    put_back(host, whole)
    eventually(lambda: host.rules("ip", "forward")[-1].endswith("drop"), trouble=host.trouble)
    assert len(known()) == 1


@pytest.mark.behaviour("B133")
@pytest.mark.parametrize("version", [4, 6])
def test_an_owner_who_switches_forwarding_off_is_obeyed_and_named(version: int) -> None:
    host, behind = well()
    path = "ipv4/ip_forward" if version == 4 else "ipv6/conf/all/forwarding"
    host.qube.wire(f"echo 0 > /proc/sys/net/{path}")
    host.attach(5)
    host.agent.signal(signal.SIGHUP)
    words = f"another program switched IPv{version} forwarding off"
    eventually(lambda: words in host.trouble(), trouble=host.trouble)
    host.agent.kill()
    host.qube.start_agent()
    host.attach(6)
    host.nft(FLUSH)
    eventually(lambda: host.rules("ip", "dnat-dns"), trouble=host.trouble)
    eventually(lambda: host.forwards(10 - version), trouble=host.trouble)
    assert not host.forwards(version)
    assert provider(host)["stopped"] == [f"ipv{version}"]
    assert f"IPv{version} is not forwarded: the user or another program" in checked(host)["forwarding-off"]
    host.qube.guestnet("forwarding", "on")
    assert host.forwards(version)
    eventually(lambda: host.works(behind), trouble=host.trouble)
    assert provider(host)["stopped"] == []


@pytest.mark.behaviour("B133")
def test_an_owner_who_switches_it_on_again_is_obeyed_too() -> None:
    host, behind = well()
    host.qube.wire("echo 0 > /proc/sys/net/ipv4/ip_forward")
    eventually(lambda: provider(host)["stopped"] == ["ipv4"], trouble=host.trouble)
    host.qube.wire("echo 1 > /proc/sys/net/ipv4/ip_forward")
    host.agent.signal(signal.SIGHUP)
    eventually(lambda: host.works(behind), trouble=host.trouble)
    assert provider(host)["stopped"] == []
    host.qube.guestnet("forwarding", "off")
    assert not host.forwards()


@pytest.mark.behaviour("B125")
def test_nft_that_fails_leaves_forwarding_closed_until_it_works() -> None:
    host, behind = well()
    whole = host.settled()
    host.replace_nft("/bin/false")
    host.real_nft("flush ruleset")
    eventually(lambda: not host.forwards(4) and not host.forwards(6), trouble=host.trouble)
    host.restore_nft()
    put_back(host, whole)
    assert host.works(behind)


@pytest.mark.behaviour("B125")
def test_without_qubesdb_they_come_back_too() -> None:
    host, behind = well()
    whole = host.settled()
    host.qube.stop_store()
    eventually(lambda: "QubesDB" in host.trouble(), trouble=host.trouble)
    host.nft(FLUSH)
    put_back(host, whole)
    eventually(lambda: host.works(behind), trouble=host.trouble)


SYSTEMCTL = """#!/bin/sh
echo "$@" >>/run/lab/asked
case "$*" in *show*) cat /run/lab/state; esac
"""


@pytest.mark.behaviour("B125")
def test_the_firewall_of_the_qubes_is_started_anew_and_waited_for() -> None:
    """tests/system has the real unit; here is each answer that systemd can give."""
    host = Provider(ENTRIES6, agent=False)
    behind = host.attach()
    host.qube.write("/run/lab/state", "ActiveState=active\nJob=\n")
    host.qube.write("/run/lab/systemctl", SYSTEMCTL)
    host.qube.path("/run/lab/systemctl").chmod(0o755)
    host.qube.run("mkdir", "-p", "/run/systemd/system")
    host.qube.set_flag("qubes-firewall")
    host.qube.start_agent(env={"PATH": "/run/lab:/usr/sbin:/usr/bin:/sbin:/bin"})
    eventually(lambda: host.works(behind), trouble=host.trouble)
    host.nft("add table ip qubes-firewall")
    remembered(host, "ip qubes-firewall")

    def says(state: str) -> None:
        host.qube.write("/run/lab/state.new", state)
        host.qube.path("/run/lab/state.new").replace(host.qube.path("/run/lab/state"))

    says("ActiveState=active\nJob=17\n")
    host.nft(FLUSH)
    eventually(lambda: "--no-block restart qubes-firewall.service" in host.qube.read("/run/lab/asked"))
    eventually(lambda: host.rules("ip", "dnat-dns"), trouble=host.trouble)
    assert "qubes-firewall.service is not ready" in checked(host)["forwarding-off"]
    for state in ("activating", "deactivating"):
        asked = host.qube.read("/run/lab/asked").count("show")
        says(f"ActiveState={state}\nJob=0\n")
        eventually(lambda asked=asked: host.qube.read("/run/lab/asked").count("show") > asked + 1)
        assert not host.forwards()
    says("ActiveState=failed\nJob=\n")
    eventually(lambda: "qubes-firewall.service is failed" in host.trouble())
    assert not host.forwards()
    says("ActiveState=active\nJob=\n")
    eventually(lambda: host.works(behind), trouble=host.trouble)
    assert host.qube.read("/run/lab/asked").count("restart") == 1
