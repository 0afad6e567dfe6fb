# SPDX-License-Identifier: GPL-2.0-or-later
"""No qube makes or changes a neighbour entry of its provider, whatever it says by ARP or neighbour discovery."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable
from typing import NamedTuple

import pytest

from tests.support.eventually import eventually
from tests.support.faults.lacking_arp import lacking
from tests.support.packets import icmp
from tests.support.packets.arp import ANSWERS, ASKS, Speaker
from tests.support.qubes.provider import (
    ENTRIES6,
    GATEWAY,
    GATEWAY6,
    OWN,
    OWN6,
    ROUTER,
    ROUTER6,
    VIF_MAC,
    WORLD,
    WORLD6,
    Client,
    Provider,
)

pytestmark = pytest.mark.behaviour("B114")

ELSEWHERE, ELSEWHERE6 = "203.0.113.9", "fd77::9"
OTHER_MAC = "02:00:00:00:00:99"
STRICT = ("0", "1", "2")


class Stage(NamedTuple):
    """A hostile qube, its neighbour, and their provider."""

    host: Provider
    evil: Client
    other: Client
    speaker: Speaker


def staged(check: str = "1") -> Stage:
    """What the provider's owner sets for all interfaces holds beside what we set for each vif.

    Args:
        check: rp_filter of all.
    """
    host = Provider(ENTRIES6)
    host.oracle.run("sysctl", "-qw", f"net.ipv4.conf.all.rp_filter={check}")
    evil, other = host.attach(4), host.attach(5)
    return Stage(host, evil, other, Speaker(evil.qube, "eth0", VIF_MAC))


def known(host: Provider, *vifs: str) -> dict[tuple[str, str], str]:
    """Each address that the provider has an entry for, by interface: its MAC address, and whether that is permanent."""
    return {
        (entry["dev"], entry["dst"]): f"{entry.get('lladdr')} {'PERMANENT' in entry['state']}"
        for family in ("-4", "-6")
        for entry in host.oracle.ip(family, "neighbour", "show", "nud", "all")
        if entry["state"] != ["NOARP"] and (not vifs or entry["dev"] in vifs)
    }


def entries_of_others(host: Provider, vif: str) -> None:
    """What an owner could have made on a vif, and what would take any answer."""
    for address in (ROUTER, ELSEWHERE, ROUTER6, ELSEWHERE6):
        host.qube.wire(f"ip neighbour replace {address} lladdr {OTHER_MAC} nud stale dev {vif}")


def foreign_frames(speaker: Speaker, mac: str, senders: Iterable[str], targets: Iterable[str]) -> int:
    """Ask and answer in foreign names, also about themselves; how many were sent."""
    count = 0
    for sender, target, operation, broadcast in itertools.product(
        senders, (*targets, ""), (ASKS, ANSWERS), (True, False)
    ):
        speaker.say(operation, sender, mac, target or sender, broadcast=broadcast)
        count += 1
    return count


@pytest.mark.parametrize("check", STRICT)
def test_arp_in_foreign_names(check: str) -> None:
    host, evil, other, speaker = staged(check)
    entries_of_others(host, evil.vif)
    before = known(host)
    senders = (other.ip, ROUTER, OWN, GATEWAY, WORLD, ELSEWHERE, "10.137.0.77")
    targets = (GATEWAY, OWN, WORLD, other.ip, evil.ip)
    foreign_frames(speaker, evil.mac, senders, targets)
    foreign_frames(speaker, OTHER_MAC, senders, targets[:2])
    # In its own name with another address of the link layer.
    foreign_frames(speaker, OTHER_MAC, [evil.ip], targets)
    assert not speaker.is_answered(evil.ip, OTHER_MAC, GATEWAY)
    assert not speaker.is_answered(other.ip, evil.mac, WORLD)
    for target in (GATEWAY, OWN, WORLD, other.ip, "198.51.100.200"):
        speaker.must_be_answered(evil.ip, evil.mac, target)
    assert known(host) == before
    outside = host.outside()
    assert host.works(evil, outside)
    assert host.works(other, outside)


@pytest.mark.parametrize("check", STRICT)
def test_a_probe_for_a_duplicate_is_answered_as_the_kernel_does(check: str) -> None:
    """RFC 5227: a host that is about to take an address asks for it without one of its own."""
    host, evil, other, speaker = staged(check)
    before = known(host)
    speaker.must_be_answered("0.0.0.0", evil.mac, GATEWAY)
    for target in (evil.ip, other.ip, WORLD, ROUTER):
        assert not speaker.is_answered("0.0.0.0", evil.mac, target), target
    for operation, broadcast in itertools.product((ASKS, ANSWERS), (True, False)):
        speaker.say(operation, "0.0.0.0", OTHER_MAC, "0.0.0.0", broadcast=broadcast)
    speaker.must_be_answered(evil.ip, evil.mac, WORLD)
    assert known(host) == before


@pytest.mark.behaviour("B58")
@pytest.mark.parametrize("check", STRICT)
def test_an_hvm_and_its_stub_domain(check: str) -> None:
    """The kernel checks the one that it has no way by not as strictly; what it may say by ARP is the same."""
    host = Provider(ENTRIES6)
    host.oracle.run("sysctl", "-qw", f"net.ipv4.conf.all.rp_filter={check}")
    own, emulated, other = host.plug(4), host.plug(5, "10.137.0.4", "fd09:24ef:4179::a89:4"), host.attach(6)
    for behind in (own, emulated):
        host.describe(behind, type="vif_ioemu", mac=own.mac)
        host.online(behind)
    assert host.tunable("ipv4/conf/vif4.0/rp_filter") == "2"
    before = known(host)
    for behind in (own, emulated):
        speaker = Speaker(behind.qube, "eth0", VIF_MAC)
        foreign_frames(speaker, own.mac, (other.ip, ROUTER, OWN, GATEWAY, ELSEWHERE), (GATEWAY, WORLD, other.ip))
        for target in (GATEWAY, OWN, WORLD):
            speaker.must_be_answered(own.ip, own.mac, target)
    assert known(host) == before


def test_a_vif_without_its_group_and_one_without_addresses_say_nothing() -> None:
    host = Provider(ENTRIES6)
    early, other = host.plug(4), host.attach(5)
    host.qube.wire(f"ip link set {early.vif} up; echo 1 > /proc/sys/net/ipv4/conf/{early.vif}/proxy_arp")
    # Whatever else would let it speak.
    host.nft(f'add element arp qubes allowed {{ "{early.vif}" . {early.ip} . {early.mac} }}')
    host.qube.wire(f"ip route add {early.ip} dev {early.vif}")
    before = known(host)
    speaker = Speaker(early.qube, "eth0", VIF_MAC)
    senders = (early.ip, other.ip, ROUTER, "0.0.0.0")
    foreign_frames(speaker, early.mac, senders, (GATEWAY, WORLD))
    assert not speaker.is_answered(early.ip, early.mac, OWN)
    # In its group and without the address that its element is about.
    host.nft(f'delete element arp qubes allowed {{ "{early.vif}" . {early.ip} . {early.mac} }}')
    host.qube.wire(f"ip link set {early.vif} group 2")
    foreign_frames(speaker, early.mac, senders[:-1], (GATEWAY, WORLD))
    assert not speaker.is_answered(early.ip, early.mac, OWN)
    assert known(host) == before
    host.online(early)
    speaker.must_be_answered(early.ip, early.mac, OWN)


def test_what_is_no_vif_is_not_judged() -> None:
    host, _, _, _ = staged()
    speaker = Speaker(host.world, "lan", "02:00:00:00:00:01")
    speaker.must_be_answered(ROUTER, "02:00:00:00:00:02", OWN)
    speaker.must_be_answered("192.168.0.77", "02:00:00:00:00:77", OWN)


@pytest.mark.parametrize("strict", [True, False])
def test_neighbour_discovery_in_foreign_names_and_about_others(strict: bool) -> None:
    host, evil, other, _ = staged()
    if not strict:
        # Of an owner that would learn from every sender.
        for setting in ("drop_unsolicited_na=0", "accept_untracked_na=1", "accept_ra=2", "accept_redirects=1"):
            host.oracle.run("sysctl", "-qw", f"net.ipv6.conf.{evil.vif.replace('.', '/')}.{setting}", check=False)
    entries_of_others(host, evil.vif)
    before = known(host)
    foreign = (other.ip6, ROUTER6, OWN6, GATEWAY6, WORLD6, ELSEWHERE6, "fe80::77", "fe80::fcff:ffff:feff:ffff", "::")
    targets = (GATEWAY6, OWN6, other.ip6, WORLD6, icmp.ALL_NODES)
    packets = []
    for source, target, mac in itertools.product(foreign, targets, (evil.mac, OTHER_MAC)):
        about = source if source != "::" else GATEWAY6
        packets.append(icmp.solicited_neighbour(source, target, target.replace(icmp.ALL_NODES, GATEWAY6), mac))
        packets += [icmp.advertised_neighbour(source, target, about, mac, solicited=each) for each in (True, False)]
    # From its own address, about others, and about itself with another address of the link layer.
    for about, target, mac in itertools.product((*foreign[:-1], evil.ip6), targets, (evil.mac, OTHER_MAC)):
        packets += [icmp.advertised_neighbour(evil.ip6, target, about, mac, solicited=each) for each in (True, False)]
        packets.append(icmp.solicited_neighbour(evil.ip6, target, about, mac))
    for source in (evil.ip6, GATEWAY6, "fe80::77"):
        packets.append(icmp.advertised_router(source, OTHER_MAC, "2001:db8:bad::"))
        packets.append(icmp.solicited_router(source, OTHER_MAC))
    for packet in packets:
        evil.port.send_packet(packet)
    # A right one is answered: by an advertisement, from the address that it asks for.
    evil.port.forget()
    evil.port.send_packet(icmp.solicited_neighbour(evil.ip6, GATEWAY6, GATEWAY6, evil.mac))
    answer = bytes((icmp.NEIGHBOUR_ADVERT, 0))
    eventually(lambda: evil.port.drain() or any(packet[40:42] == answer for packet in evil.port.packets))
    assert known(host) == before
    outside = host.outside()
    assert host.works(evil, outside, 6)
    assert host.works(other, outside, 6)


def test_many_names_take_nothing_of_the_one_table() -> None:
    """As many entries as this would make, of any qube, end the table for all."""
    host, evil, _, speaker = staged("2")
    before = known(host)
    for number in range(2000):
        speaker.say(ASKS, f"203.0.{number >> 8}.{number & 255}", evil.mac, GATEWAY, broadcast=True)
    speaker.must_be_answered(evil.ip, evil.mac, WORLD)
    assert known(host) == before


def test_what_is_lost_of_it_comes_back_and_closes_forwarding_meanwhile() -> None:
    host, evil, _, speaker = staged("2")
    for removed in ("delete table arp qubes", "flush chain arp qubes input", "flush set arp qubes allowed"):
        before = host.oracle.run("nft", "-s", "list", "table", "arp", "qubes").stdout
        host.nft(removed)
        eventually(
            lambda before=before: (
                host.oracle.run("nft", "-s", "list", "table", "arp", "qubes", check=False).stdout == before
            ),
            what=removed,
            trouble=host.trouble,
        )
        eventually(host.forwards, trouble=host.trouble)
        speaker.must_be_answered(evil.ip, evil.mac, WORLD)
    assert "closed" in host.trouble() or "forwarding" in host.trouble()
    host.offline(evil)
    assert f'"{evil.vif}"' not in host.oracle.run("nft", "list", "table", "arp", "qubes").stdout


def test_a_kernel_without_nftables_for_arp_has_all_the_rest() -> None:
    host = Provider(ENTRIES6, rules=False, agent=False)
    environment = lacking(host.qube)
    host.qube.guestnet("rules", "load", env=environment)
    agent = host.qube.start_agent(env=environment)
    behind = host.plug(4)
    host.online(behind, **environment)
    outside = host.outside()
    assert host.works(behind, outside)
    assert host.works(behind, outside, 6)
    Speaker(behind.qube, "eth0", VIF_MAC).must_be_answered(behind.ip, behind.mac, WORLD)
    # What is taken away comes back as it was, without what the kernel does not have.
    whole = host.settled()
    host.nft("flush ruleset")
    eventually(lambda: host.settled() == whole, trouble=host.trouble)
    eventually(lambda: host.forwards() and host.works(behind, outside), trouble=host.trouble)
    assert agent.output().count("no nftables for ARP") == 1, "told where the rules are loaded"
    done = host.qube.guestnet("check", "--json", check=False, env=environment)
    assert [each["severity"] for each in json.loads(done.stdout) if each["code"] == "arp-unfiltered"] == ["note"]
    assert host.qube.guestnet("plan", env=environment).stdout == ""
    assert host.call("offline", behind, **environment).returncode == 0
    host.agent.stop()
    host.qube.guestnet("rules", "unload", env=environment)
    assert "qubes" not in host.oracle.run("nft", "list", "tables").stdout


def test_rules_of_a_former_release_are_no_rules_that_were_lost() -> None:
    """An upgrade: there was no table for ARP, and nothing is closed, held or told because of that."""
    host = Provider(ENTRIES6, rules=False, agent=False)
    environment = lacking(host.qube)  # loads just what a former release loaded
    host.qube.guestnet("rules", "load", env=environment)
    host.qube.start_agent(env=environment)
    behind = host.plug(4)
    host.online(behind, **environment)
    host.agent.stop()
    assert "arp" not in host.oracle.run("nft", "list", "tables").stdout
    host.qube.run("umount", "/usr/sbin/nft")
    host.qube.write("/etc/qubes/guestnet.toml", "[provider]\nhold_after_flush = true\n")
    agent = host.qube.start_agent()
    Speaker(behind.qube, "eth0", VIF_MAC).must_be_answered(behind.ip, behind.mac, WORLD)
    assert host.oracle.run("nft", "list", "table", "arp", "qubes").stdout.count(behind.ip) == 1
    assert host.forwards()
    assert host.works(behind)
    assert "removed" not in agent.output()
    assert "gone" not in agent.output()
