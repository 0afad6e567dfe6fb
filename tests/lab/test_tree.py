# SPDX-License-Identifier: GPL-2.0-or-later
"""Trees: what may stand in a file, what dom0 makes of it, and that the trees that come along grow."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from qubes_guestnet.errors import UsageError
from qubes_guestnet.lab import firewall_rules, probes, tree, world
from qubes_guestnet.lab.dom0 import Dom0
from qubes_guestnet.lab.stage import unreached
from qubes_guestnet.lab.vm import FIREWALL_FLAG
from qubes_guestnet.lab.world import Offer
from tests.support.eventually import eventually
from tests.support.needs import needs

NET = "[qube.net]\nprovides_network = true\n"


def test_every_key_arrives() -> None:
    text = f"""{NET}ipv6 = "1"
[qube.fake]
netvm = "net"
fake_ip = "192.168.1.128"
fake_gateway = "192.168.1.1"
fake_netmask = "255.255.255.0"
ip = "10.9.9.9"
ip6 = "2000:aaaa:bbbb::1"
flags = ["network-manager"]
[qube.disp]
disposable = true
ipv6 = ""
[world.net]
ipv6 = true
network = "172.16.0.0/16"
router = "172.16.0.1"
address = "172.16.9.9"
dns = ["172.16.0.1", "9.9.9.9"]
"""
    qubes = {spec.name: spec for spec in tree.parse(text, "some/where.toml").qubes}
    assert qubes["net"].offer == Offer(
        True, True, "172.16.0.0/16", "172.16.0.1", "172.16.9.9", ("172.16.0.1", "9.9.9.9")
    )
    dom0 = Dom0()
    vms = tree.plant(tree.parse(text, "where"), dom0)
    assert vms == dom0.vms
    assert vms["fake"].entries() == {
        "/qubes-mac": "00:16:3e:5e:6c:00",
        "/qubes-ip": "192.168.1.128",
        "/qubes-netmask": "255.255.255.0",
        "/qubes-gateway": "192.168.1.1",
        "/qubes-primary-dns": "10.139.1.1",
        "/qubes-secondary-dns": "10.139.1.2",
        "/qubes-ip6": "2000:aaaa:bbbb::1",
        "/qubes-gateway6": "fd09:24ef:4179::a89:1",
    }
    assert vms["fake"].flags == {"network-manager"}
    assert vms["net"].flags == {"qubes-network", "qubes-firewall"}
    assert vms["disp"].address == "10.138.0.1"
    assert vms["disp"].entries() == {}


@pytest.mark.behaviour("B161")
def test_the_release_of_its_dom0_and_a_mac_address() -> None:
    found = tree.parse(NET + 'mac = "02:00:00:00:00:07"\n[dom0]\nrelease = "4.2"', "x")
    assert (found.release, tree.parse(NET, "x").release) == ("4.2", "4.3")
    assert tree.plant(found, Dom0(release=found.release))["net"].mac == "02:00:00:00:00:07"


def test_firewall_rules_in_the_words_of_qvm_firewall() -> None:
    text = f"""{NET}
[qube.tables]
netvm = "net"
[[qube.tables.firewall]]
action = "accept"
dsthost = "test.example.com"
proto = "tcp"
dstports = 443
[[qube.tables.firewall]]
action = "drop"
proto = "icmp"
icmptype = "8"
comment = "no ping, please"
[qube.texts]
netvm = "net"
firewall = ["accept 10.0.0.0/8 udp 1-2", "action=accept specialtarget=dns comment=all, of it", "accept expire=+60"]
[qube.closed]
firewall = []
[qube.open]
"""
    vms = tree.plant(tree.parse(text, "x"), Dom0())
    found = {name: [*firewall_rules.entries(vm.firewall.rules, 4, 0).values()][1:] for name, vm in vms.items()}
    assert found == {
        "net": ["action=accept"],
        "tables": [
            "action=accept dsthost=test.example.com proto=tcp dstports=443-443", "action=drop proto=icmp icmptype=8",
        ],
        "texts": [
            "action=accept dst4=10.0.0.0/8 proto=udp dstports=1-2", "action=accept specialtarget=dns", "action=accept",
        ],
        "closed": [],
        "open": ["action=accept"],
    }  # fmt: skip
    assert [rule.comment for name in ("tables", "texts") for rule in vms[name].firewall.rules] == [
        "", "no ping, please", "", "all, of it", "",
    ]  # fmt: skip
    assert 50 < (vms["texts"].firewall.rules[2].expire or 0) - time.time() <= 60
    assert {name for name, vm in vms.items() if vm.limited} == {"tables", "texts", "closed"}
    assert {name: vm.flags for name, vm in vms.items() if vm.flags} == {"net": {"qubes-network", "qubes-firewall"}}


def test_where_rules_are_enforced_they_say_whether_a_ping_gets_out() -> None:
    text = f"""{NET}ipv6 = "1"
[world.net]
ipv6 = true
[qube.proxy]
netvm = "net"
provides_network = true
firewall = ["accept test.example.com icmp 8"]
[qube.behind]
netvm = "proxy"
[qube.beside]
netvm = "net"
firewall = ["accept six.example.com"]
[qube.closed]
netvm = "proxy"
firewall = []
"""
    dom0 = Dom0()
    vms = tree.plant(tree.parse(text, "x"), dom0)
    dom0.start_all()
    assert (vms["closed"].reaches4, vms["closed"].reaches6) == (False, False)
    vms["proxy"].flags.discard(FIREWALL_FLAG)
    assert {name: (vm.reaches4, vm.reaches6) for name, vm in vms.items()} == {
        "net": (True, True), "proxy": (True, False), "behind": (True, False), "beside": (False, True),
        "closed": (True, False),
    }  # fmt: skip


def test_providers_come_before_those_behind_them() -> None:
    text = '[qube.a]\nnetvm = "b"\n[qube.b]\nnetvm = "net"\nprovides_network = true\n' + NET
    found = tree.parse(text, "x")
    assert [spec.name for spec in found.qubes] == ["net", "b", "a"]
    assert [spec.offer for spec in found.qubes] == [Offer(), None, None]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[qube.a", "x.toml: Expected ']'"),
        ("", "x.toml: there is no"),
        ("qube = 3", "x.toml: qube is not a table"),
        ("[qube]\na = 3", "x.toml: [qube] a is not a table"),
        ("[qubes.a]", "x.toml: the file: unknown key qubes; the keys are dom0, qube, world"),
        ('[qube."a b"]', "x.toml: [qube.a b]: not the name"),
        ('[qube."-a"]', "x.toml: [qube.-a]: not the name of a qube; a name consists of letters, digits, - and _, and"),
        (f"[qube.{'a' * 32}]", f"x.toml: [qube.{'a' * 32}]: not the name of a qube; a name has at most 31 characters"),
        ("x = " + "[" * 5000, "x.toml: "),
        (
            '[qube.a]\nip = "10.137.0.2"\n[qube.b]',
            "x.toml: [qube.b]: address 10.137.0.2 is already used by [qube.a]; give",
        ),
        (
            '[qube.a]\nip6 = "fd00::1"\n[qube.b]\nip6 = "fd00:0::1"',
            "x.toml: [qube.b]: address fd00::1 is already used by",
        ),
        ("[qube.a]\nnetwm = 3", "x.toml: [qube.a]: unknown key netwm; the keys are disposable, "),
        ("[qube.a]\ndisposable = 1", "x.toml: [qube.a]: disposable = 1 is not valid, expected true or false"),
        ("[qube.a]\nipv6 = true", 'x.toml: [qube.a]: ipv6 = True is not valid, expected "1" or ""'),
        ('[qube.a]\nip = "10.0.0"', "x.toml: [qube.a]: ip = '10.0.0' is not valid, expected "),
        ('[qube.a]\nmac = "fe:ff:ff:ff:ff:ff"', "x.toml: [qube.a]: mac = 'fe:ff:ff:ff:ff:ff' is not valid, expected "),
        (NET + "dom0 = 4", "x.toml: [qube.net]: unknown key dom0"),
        ("dom0 = 4\n" + NET, "x.toml: dom0 is not a table"),
        (NET + "[dom0]\nversion = 4", "x.toml: [dom0]: unknown key version; the keys are release"),
        (NET + "[dom0]\nrelease = 4.2", "x.toml: [dom0]: release = 4.2 is not valid, expected one of 4.3, 4.2, 4.1"),
        (NET + '[dom0]\nrelease = "3.2"', "x.toml: [dom0]: release = '3.2' is not valid, expected one of 4.3"),
        ("[qube.a]\nip = 10", "x.toml: [qube.a]: ip = 10 is not valid, expected an IPv4 address in quotes"),
        ('[qube.a]\nip6 = "10.0.0.1"', "x.toml: [qube.a]: ip6 = '10.0.0.1' is not valid"),
        ('[qube.a]\nflags = "x"', "x.toml: [qube.a]: flags = 'x' is not valid, expected a list of names"),
        ('[qube.a]\nflags = ["../x"]', "x.toml: [qube.a]: flags = ['../x'] is not valid"),
        (
            '[qube.a]\nfirewall = "accept"',
            "x.toml: [qube.a]: firewall = 'accept' is not valid, expected a list of rules, or",
        ),
        (
            "[qube.a]\nfirewall = [3]",
            'x.toml: [qube.a]: firewall rule 0: 3 is no rule; give a table, or a text such as "accept a.example tcp"',
        ),
        (
            '[qube.a]\nfirewall = ["accept", "accept tcp=1"]',
            "x.toml: [qube.a]: firewall rule 1: tcp=1: no such option; the options are action, dsthost",
        ),
        (
            '[qube.a]\n[[qube.a.firewall]]\naction = "accept"\ndstports = 80',
            "x.toml: [qube.a]: firewall rule 0: dstports=80: only with a protocol that has ports; add proto=tcp or udp",
        ),
        (
            "[qube.a]\n[[qube.a.firewall]]\naction = true",
            "x.toml: [qube.a]: firewall rule 0: action=True is not valid; give a text in quotes or a number",
        ),
        (
            '[qube.a]\n[[qube.firewall]]\naction = "accept"',
            "x.toml: [qube] firewall is not a table; write [[qube.NAME.firewall]], with the name of the qube",
        ),
        ('[qube.a]\nnetvm = "b"', "x.toml: [qube.a]: netvm = 'b': no such qube with provides_network"),
        ('[qube.a]\nnetvm = "b"\n[qube.b]', "x.toml: [qube.a]: netvm = 'b': no such qube with provides_network"),
        (
            '[qube.a]\nnetvm = "a"\nprovides_network = true',
            "x.toml: [qube.a]: netvm = 'a': the chain of providers is a loop",
        ),
        ("[qube.a]\n[world.a]", "x.toml: [world.a]: there is no [qube.a] that provides network"),
        (NET + "[world.net]\nipv4 = false", "x.toml: [world.net]: ipv4 = false is for a tunnel"),
        (NET + "[world.net]\ndns = []", "x.toml: [world.net]: dns = [] is not valid, expected a list of IPv4"),
        (NET + '[world.net]\nrouter = "10.0.0.1"', "x.toml: [world.net]: router 10.0.0.1 is not in 192.168.0.0/24"),
        (NET + '[world.net]\nrouter = "192.168.0.2"', "x.toml: [world.net]: router and address are the same"),
        (
            NET + '[world.net]\nnetwork = "192.168.0.0/16"',
            "x.toml: [world.net]: network 192.168.0.0/16 contains the world's host 192.168.123.45",
        ),
        (
            NET + '[qube.b]\nnetvm = "net"\nprovides_network = true\n[world.b]',
            "x.toml: [world.b]: b has IPv4 from net; give it a tunnel: ipv4 = false, ipv6 = true",
        ),
    ],
)
def test_what_is_not_valid_is_told_by_file_table_and_key(text: str, told: str) -> None:
    with pytest.raises(UsageError) as caught:
        tree.parse(text, "x.toml")
    assert str(caught.value).startswith(told)


def test_a_tree_is_found_by_name_or_path(tmp_path: Path) -> None:
    assert tree.names() == ("default", "ipv6-feature", "ipv6-tunnel")
    assert tree.load().name == "default"
    (tmp_path / "mine.toml").write_text(NET)
    assert tree.load(str(tmp_path / "mine.toml")).name == "mine"
    with pytest.raises(UsageError, match="ipv6-feature"):
        tree.load("nothing-of-the-kind")
    with pytest.raises(UsageError, match=f"{tmp_path}: Is a directory"):
        tree.load(str(tmp_path))


def test_the_figures_of_the_reference_document() -> None:
    feature = tree.plant(tree.load("ipv6-feature"), Dom0())
    assert {name for name, vm in feature.items() if not vm.has_ipv6} == {"ipv4-only"}
    assert feature["work"].entries()["/qubes-gateway6"] == feature["sys-firewall"].address6
    tunnel = tree.plant(tree.load("ipv6-tunnel"), Dom0())
    assert {name for name, vm in tunnel.items() if vm.has_ipv6} == {"ipv6-tunnel", "work", "research"}
    assert "/qubes-gateway6" not in tunnel["ipv6-tunnel"].entries()
    assert "/qubes-ip6" in tunnel["ipv6-tunnel"].entries()


@pytest.mark.parametrize("name", tree.names())
def test_a_tree_grows_and_everybody_reaches_what_it_should(name: str) -> None:
    needs("ip", "nft", "nsenter", "dnsmasq")
    dom0 = Dom0()
    vms = tree.plant(tree.load(name), dom0)
    dom0.start_all()
    for vm in vms.values():
        if vm.netvm is not None:
            assert eventually(lambda vm=vm: not unreached(vm), what=f"{vm} reaches"), unreached(vm)
        reached = probes.ping(vm.running, world.HOST6, 0.3) is not None
        assert reached is vm.reaches6, f"{vm} over IPv6"
