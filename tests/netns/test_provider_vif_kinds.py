# SPDX-License-Identifier: GPL-2.0-or-later
"""Vifs of every kind: with IPv6 and without, two with one address, strange names, hostile values."""

from __future__ import annotations

import json
import sys

import pytest

from tests.support.eventually import eventually
from tests.support.qubes.provider import ENTRIES, ENTRIES6, GATEWAY, GATEWAY6, OWN, WORLD, Client, Provider, several

LINK_LOCAL = "fe80::fcff:ffff:feff:ffff"
# In place of a kernel without IPv6, or with it switched off: what programs see of it.
KERNELS = {
    "ipv6.disable=1": "mount -t tmpfs none /proc/sys/net/ipv6",
    "disable_ipv6": "for each in all default; do echo 1 > /proc/sys/net/ipv6/conf/$each/disable_ipv6; done",
}


@pytest.mark.behaviour("B54")
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("asked", [ENTRIES, ENTRIES6], ids=["IPv4 asked for", "both asked for"])
def test_a_provider_whose_kernel_has_no_ipv6(kernel: str, asked: dict[str, str]) -> None:
    host = Provider(asked, agent=False)
    host.qube.run("sh", "-ec", KERNELS[kernel])
    host.qube.start_agent()
    behind = host.plug()
    done = host.call("online", behind)
    assert done.returncode == 0, host.trouble()
    eventually(lambda: host.forwards(), trouble=host.trouble)
    assert host.works(behind)
    assert host.elements("allowed", "ip6") == set()
    assert (host.oracle.addresses(behind.vif), host.routes(behind.vif, 6)) == ({f"{GATEWAY}/32"}, [])
    assert set(host.oracle.neighbours(behind.vif)) == {"10.137.0.4"}
    assert host.agent.output().count("IPv6 is switched off in the kernel") == (asked is ENTRIES6)
    assert "ipv6" not in done.stdout
    host.offline(behind)
    assert host.elements("allowed") == set()


@pytest.mark.behaviour("B112")
def test_no_rule_needs_the_names_of_protocols_of_netbase() -> None:
    host = Provider(ENTRIES6, rules=False, agent=False)
    host.qube.run("mount", "--bind", "/dev/null", "/etc/protocols")
    host.qube.guestnet("rules", "load")
    host.qube.start_agent()
    behind = host.attach()
    assert host.works(behind)
    assert host.works(behind, version=6)


@pytest.mark.behaviour("B55")
@pytest.mark.behaviour("B56")
def test_what_ipv6_on_a_vif_is() -> None:
    host = Provider(ENTRIES6)
    behind = host.attach()
    assert host.oracle.addresses(behind.vif) == {f"{GATEWAY}/32", f"{GATEWAY6}/128"}
    assert host.oracle.neighbours(behind.vif) == {behind.ip: behind.mac, behind.ip6: behind.mac}
    conf = f"ipv6/conf/{behind.vif}"
    for name, value in (("proxy_ndp", "1"), ("drop_unsolicited_na", "1"), ("accept_ra", "0"), ("disable_ipv6", "0")):
        assert host.tunable(f"{conf}/{name}") == value
    # An error on the way comes from that address: without one there would be only silence (#718).
    assert host.works(behind, version=6)
    behind.port.forget()
    behind.qube.run("ping", "-6", "-n", "-c", "1", "-t", "1", "-W", "1", "2000:abcd:1::7", check=False)
    eventually(lambda: behind.port.drain() or any(packet[40] == 3 for packet in behind.port.packets if packet[6] == 58))


@pytest.mark.behaviour("B55")
def test_a_link_local_gateway_is_the_kernels_own_and_not_put_there_again() -> None:
    host = Provider({**ENTRIES, "/qubes-netvm-gateway6": LINK_LOCAL})
    host.ipv6 = True
    behind = host.attach()
    found = host.oracle.ip("-6", "address", "show", "dev", behind.vif)
    addresses = [(each["local"], each["prefixlen"]) for link in found for each in link["addr_info"]]
    assert addresses == [(LINK_LOCAL, 64)]
    assert host.oracle.neighbours(behind.vif) == {behind.ip: behind.mac, behind.ip6: behind.mac}


@pytest.mark.behaviour("B57")
@pytest.mark.parametrize("agent", [True, False], ids=["agent", "cold"])
def test_whoever_asks_by_arp_is_answered_at_once_from_the_first_moment(agent: bool) -> None:
    host = Provider(agent=agent)
    behind = host.plug()
    ignoring = host.tunable(f"ipv4/conf/{behind.vif}/arp_ignore")
    host.online(behind)
    assert host.tunable(f"ipv4/conf/{behind.vif}/proxy_arp") == "1"
    assert host.tunable(f"ipv4/neigh/{behind.vif}/proxy_delay") == "0"
    assert host.tunable(f"ipv4/conf/{behind.vif}/arp_ignore") == ignoring == "0"
    if not agent:
        host.qube.guestnet("forwarding", "on")
    # Like Windows: a network of its own, and everybody is in it.
    behind.qube.wire(
        "ip neighbour flush all nud all; ip route replace default dev eth0; ip route replace 10.0.0.0/8 dev eth0"
    )
    for address in (WORLD, GATEWAY, "10.137.0.200", OWN):
        behind.qube.run("ping", "-n", "-c", "1", "-W", "1", address, check=False)
        found = behind.qube.ip("neighbour", "show", address)
        assert [entry.get("lladdr") for entry in found] == ["fe:ff:ff:ff:ff:ff"], address


@pytest.mark.behaviour("B58")
@pytest.mark.parametrize("agent", [True, False], ids=["agent", "cold"])
def test_two_vifs_with_one_address(agent: bool) -> None:
    """An HVM, and its stub domain with the emulated card."""
    host = Provider(agent=agent)
    emulated, own = host.plug(5, "10.137.0.4"), host.plug(4, "10.137.0.4")
    assert [status for status, _ in several(host, "online", (emulated, own))] == [0, 0], host.trouble()
    assert host.elements("allowed") == {"vif4.0 10.137.0.4", "vif5.0 10.137.0.4"}
    assert (host.routes("vif4.0"), host.routes("vif5.0")) == ([("10.137.0.4", 32748)], [("10.137.0.4", 32747)])
    (best,) = host.oracle.ip("route", "get", "10.137.0.4")
    assert best["dev"] == "vif5.0", "the later one started is preferred"
    if agent:
        assert host.works(emulated)
        assert host.works(own)
    host.unplug(emulated)
    host.offline(emulated)
    assert host.elements("allowed") == {"vif4.0 10.137.0.4"}
    assert "10.137.0.4" in host.elements("downstream")
    assert host.routes("vif4.0") == [("10.137.0.4", 32748)]
    if agent:
        assert host.works(own)
    host.offline(own)
    assert (host.elements("allowed"), "10.137.0.4" in host.elements("downstream")) == (set(), False)


@pytest.mark.behaviour("B58")
@pytest.mark.behaviour("B114")
@pytest.mark.parametrize("order", [(4, 5), (5, 4)], ids=["own first", "emulated first"])
def test_only_the_one_that_the_kernel_has_no_way_by_is_checked_by_the_rules_alone(order: tuple[int, int]) -> None:
    host = Provider()
    vifs = {number: host.attach(number, "10.137.0.4") for number in order}
    host.attach(6)

    def checks() -> list[str]:
        return [host.tunable(f"ipv4/conf/vif{number}.0/rp_filter") for number in (4, 5, 6)]

    assert checks() == ["2", "1", "1"]
    for number, source in ((4, "10.137.0.6"), (5, "10.137.0.6"), (4, "192.0.2.1")):
        vifs[number].port.send(source, WORLD, "stolen")
    outside = host.outside()
    assert all(host.works(vifs[number], outside) for number in order)
    assert outside.words() == {"works"}
    host.qube.run("sh", "-c", "for each in 4 5; do echo 0 > /proc/sys/net/ipv4/conf/vif$each.0/rp_filter; done")
    planned = [line.partition("  # ")[0] for line in host.qube.guestnet("plan").stdout.splitlines()]
    assert [line for line in planned if "rp_filter" in line] == [
        "sysctl net/ipv4/conf/vif4.0/rp_filter=2",
        "sysctl net/ipv4/conf/vif5.0/rp_filter=1",
    ]
    host.online(vifs[4])
    host.online(vifs[5])
    assert checks() == ["2", "1", "1"]
    host.unplug(vifs[5])
    host.offline(vifs[5])
    assert host.tunable("ipv4/conf/vif4.0/rp_filter") == "1"
    assert host.works(vifs[4])


@pytest.mark.behaviour("B144")
@pytest.mark.parametrize("kind", ["two qubes", "an HVM"])
def test_two_qubes_with_one_address_are_named(kind: str) -> None:
    host = Provider(ENTRIES)
    first, second = host.plug(4), host.plug(5, "10.137.0.4")
    if kind == "an HVM":
        for behind in (first, second):
            host.describe(behind, type="vif_ioemu", mac=first.mac)
    host.online(first)
    assert status_and_findings(host) == ([[]], [])
    host.online(second)
    duplicate = kind == "two qubes"
    problem = "the different qubes of vif4.0 and vif5.0 have the same address: 10.137.0.4; "
    wanted = ([["vif5.0"], ["vif4.0"]], [problem]) if duplicate else ([[], []], [])
    assert status_and_findings(host) == wanted
    text = host.qube.guestnet("status", check=False).stdout
    assert text.count("DUPLICATE ADDRESS") == 2 * duplicate
    assert host.qube.guestnet("status", "vif5.0", check=False).stdout.count("DUPLICATE ADDRESS") == duplicate
    host.unplug(second)
    host.offline(second)
    assert status_and_findings(host) == ([[]], [])


def status_and_findings(host: Provider) -> tuple[list[list[str]], list[str]]:
    """What `status` says of each vif, and what `check` finds of it."""
    vifs = json.loads(host.qube.guestnet("status", "--json", check=False).stdout)["provider"]["vifs"]
    done = host.qube.guestnet("check", "--json", check=False)
    words = "packets to it go to only one of them"
    found = [each["problem"] for each in json.loads(done.stdout) if each["code"] == "duplicate-address"]
    return [each["duplicate_of"] for each in vifs], [each.removesuffix(words) for each in found]


@pytest.mark.behaviour("B58")
@pytest.mark.behaviour("B108")
def test_dom0_and_the_last_domain_are_qubes_like_others_and_no_uplink_is_needed() -> None:
    host = Provider(uplink=False)
    for number, metric in ((0, 32752), (32751, 1), (32752, 0)):
        behind = host.plug(number, "10.137.0.9")
        host.online(behind)
        (route,) = host.oracle.routes(4, behind.vif)
        assert (route["dst"], route.get("metric", 0)) == ("10.137.0.9", metric)
        host.offline(behind)
    assert host.forwards()


NAMES = (
    "", "vif", "vif4", "vif4.", "vif.0", "vif-1.0", "vif04.0", "vif4.00", "vif32753.0", "vif4.0.0", "eth0", "vif4.0 ",
    "vif4.0\nvif5.0", "vif4.0;reboot", "../vif4.0", "vif4.0/../lo", "vif" + "4" * 40 + ".0", "vif\uff14.0", "-f",
)  # fmt: skip


@pytest.mark.behaviour("B58")
def test_no_other_name_is_a_vif() -> None:
    """As many as there are in one process: each is refused before anything is looked at or written."""
    host = Provider(agent=False)
    program = """
import os, sys
from qubes_guestnet.cli import main as cli
for name in sys.stdin.read().split("\\0"):
    for action in ("online", "offline"):
        os.environ["vif"] = name
        assert cli.main(["vif", action]) == 2, (action, name)
"""
    host.qube.write("/run/names", "\0".join(NAMES))
    before = host.oracle.run("nft", "list", "ruleset").stdout
    done = host.qube.run("sh", "-c", f"exec {sys.executable} -c '{program}' </run/names", check=False)
    assert done.returncode == 0, done.stderr
    assert len([line for line in done.stderr.splitlines() if "is not of the form vifN.M" in line]) == 2 * len(NAMES)
    assert host.oracle.run("nft", "list", "ruleset").stdout == before
    done = host.qube.guestnet("vif", "online", check=False, env={"vif": "vif4.0", "XENBUS_PATH": "backend/$(reboot)"})
    assert done.returncode == 2


HOSTILE = {
    "address": {"ip": '10.137.0.4 } ; flush ruleset ; add element ip qubes allowed { "lo" . 10.0.0.1'},
    "everybody": {"ip": "0.0.0.0"},
    "network": {"ip": "10.137.0.0/16"},
    "loopback": {"ip": "127.0.0.1"},
    "multicast": {"ip": "224.0.0.1"},
    "link-local": {"ip": "fe80::1"},
    "mapped": {"ip": "::ffff:10.137.0.4"},
    "one good, one bad": {"ip": "10.137.0.4 nonsense"},
}
XENSTORE = {
    "no MAC": {"mac": ""},
    "bad MAC": {"mac": "00:16:3e:5e:6c:zz"},
    "a group's MAC": {"mac": "01:16:3e:5e:6c:04"},
    "a long MAC": {"mac": "00:16:3e:5e:6c:04; reboot"},
    "bad type": {"type": "vif;reboot"},
}


@pytest.mark.behaviour("B56")
def test_a_value_that_is_none_is_refused_and_everybody_is_told() -> None:
    host = Provider(ENTRIES6)
    behind, other = host.plug(4, "10.137.0.4"), host.attach(5)
    before = host.state(other.vif)
    calls = [(name, {}, changed) for name, changed in HOSTILE.items()]
    calls += [(name, changed, {}) for name, changed in XENSTORE.items()]
    for name, nodes, changed in calls:
        host.describe(behind, **nodes)
        done = host.call("online", behind, **changed)
        assert done.returncode == 1, name
        assert "vif4.0: " in done.stderr, name
        assert len(done.stderr.splitlines()) == 1, name
        assert "is not a valid" in host.node(behind, "hotplug-error"), name
        assert host.node(behind, "hotplug-status") == "error", name
        assert "UP" not in host.link(behind.vif)["flags"], name
    assert host.state(other.vif) == before
    host.describe(behind)
    host.online(behind)  # a good one heals
    assert host.works(behind)


@pytest.mark.behaviour("B49")
@pytest.mark.parametrize("agent", [True, False], ids=["agent", "no agent"])
def test_what_was_refused_goes_without_a_word(agent: bool) -> None:
    """Xen calls us for it all the same, and its values are what they were."""
    host = Provider(ENTRIES6, agent=agent)
    behind, other = host.plug(4, "10.137.0.4"), host.attach(5)
    before = host.state(other.vif)
    for nodes, changed in (({}, HOSTILE["network"]), (XENSTORE["no MAC"], {}), (XENSTORE["bad type"], {})):
        host.describe(behind, **nodes)
        assert host.call("online", behind, **changed).returncode == 1
        done = host.call("offline", behind, **changed)
        assert (done.returncode, done.stderr) == (0, ""), nodes or changed
    assert host.state(other.vif) == before


def test_what_the_former_holder_of_a_name_was_allowed_the_next_one_is_not() -> None:
    """vif4.0 went without a call of hotplug: the toolstack was killed, and the name came again."""
    host = Provider(ENTRIES6)
    former, outside = host.attach(4), host.outside()
    host.unplug(former)
    new = host.plug(4, "10.137.0.44", "fd09:24ef:4179::a89:2c")
    host.online(new)
    assert host.elements("allowed") == {"vif4.0 10.137.0.44"}
    assert host.elements("allowed", "ip6") == {"vif4.0 fd09:24ef:4179::a89:2c"}
    new.port.send(former.ip, WORLD, "as the former")
    assert host.works(new, outside)
    assert outside.words() == {"works"}
    assert set(host.oracle.neighbours(new.vif)) == set(new.addresses)


def test_another_address_for_a_vif_that_is_there() -> None:
    host = Provider(ENTRIES)
    behind = host.attach(4)
    changed = Client.__new__(Client)
    changed.__dict__.update(behind.__dict__)
    changed.addresses = ("10.137.0.44",)
    host.describe(changed)
    host.online(changed)
    assert host.elements("allowed") == {"vif4.0 10.137.0.44"}
    assert host.routes(behind.vif) == [("10.137.0.44", 32748)]
    assert host.oracle.neighbours(behind.vif) == {"10.137.0.44": behind.mac}
