# SPDX-License-Identifier: GPL-2.0-or-later
"""Base rules and forwarding over time: when they come and go, what they leave alone, and what undoes them."""

from __future__ import annotations

import pytest

from tests.support.eventually import eventually, never
from tests.support.packets.ports import Port
from tests.support.qubes.provider import (
    DNS,
    ENTRIES,
    ENTRIES6,
    GATEWAY,
    GATEWAY6,
    LAN,
    OWN6,
    ROUTER,
    ROUTER6,
    UPLINK,
    WORLD,
    WORLD6,
    Provider,
)

OURS = ("prerouting", "antispoof", "egress", "postrouting", "input", "forward")
USERS = """
add rule ip qubes custom-input tcp dport 22 accept
add rule ip6 qubes custom-input tcp dport 22 accept
add rule ip qubes custom-forward ip daddr 192.0.2.99 drop
add rule ip6 qubes custom-forward ip6 daddr 2001:db8::99 drop
add chain ip qubes mine
add rule ip qubes mine counter
add chain ip qubes custom-nat { type nat hook postrouting priority 101; policy accept; }
add table inet theirs
add set inet theirs some { type ipv4_addr; elements = { 192.0.2.1 } }
add chain inet theirs forward { type filter hook forward priority 10; policy accept; }
add rule inet theirs forward tcp dport 25 drop
add table ip qubes-firewall
add chain ip qubes-firewall forward { type filter hook forward priority filter; policy accept; }
add chain ip qubes-firewall qubes-forward
add rule ip qubes-firewall forward jump qubes-forward
"""


def theirs(host: Provider) -> dict[str, object]:
    """All that is not ours."""
    tables = ("inet theirs", "ip qubes-firewall")
    listed = {name: host.oracle.run("nft", "-s", "list", "table", *name.split()).stdout for name in tables}
    own = {f"{family} {chain}": host.rules(family, chain) for family in ("ip", "ip6") for chain in CHAINS}
    assert all(own[name] for name in own if name not in ("ip custom-nat", "ip6 mine", "ip6 custom-nat"))
    chains = host.oracle.run("nft", "-s", "list", "table", "ip", "qubes").stdout
    return {**listed, **own, "custom-nat": "priority 101" in chains}


CHAINS = ("custom-input", "custom-forward", "mine", "custom-nat")


@pytest.mark.behaviour("B90")
def test_what_users_made_survives_everything_but_the_end() -> None:
    host = Provider(ENTRIES6)
    eventually(lambda: host.forwards(6), trouble=host.trouble)
    host.qube.run("sh", "-ec", f"nft -f - <<'END'\n{USERS}END")
    before = theirs(host)
    host.qube.guestnet("rules", "load")
    assert theirs(host) == before
    behind = host.attach()
    for gateway6 in ("", GATEWAY6):
        host.write("/qubes-netvm-gateway6", gateway6)
        eventually(lambda on=bool(gateway6): host.forwards(6) == on, trouble=host.trouble)
        assert theirs(host) == before
    host.agent.kill()
    host.qube.start_agent()
    # Another program changes a rule of ours: that one is repaired, and only that one.
    host.nft("flush chain ip qubes forward; add rule ip qubes input accept")
    eventually(lambda: "oifgroup 2 drop" in " ".join(host.rules("ip", "forward")).replace("counter ", ""))
    eventually(lambda: "accept" not in host.rules("ip", "input"), trouble=host.trouble)
    assert theirs(host) == before
    host.offline(behind)
    host.qube.guestnet("forwarding", "off")
    host.agent.stop()
    assert theirs(host) == before
    host.qube.guestnet("rules", "unload")
    tables = host.oracle.run("nft", "list", "tables").stdout
    assert tables.splitlines() == ["table inet theirs", "table ip qubes-firewall"]


@pytest.mark.behaviour("B92")
def test_ipv6_off_is_off_for_the_qubes_and_only_for_them() -> None:
    host = Provider(ENTRIES)
    host.ipv6 = True
    behind, outside, inside = host.attach(4), host.outside(), host.inside(6)
    host.nft("add rule ip6 qubes custom-input accept; add rule ip6 qubes custom-forward accept")  # may be named
    host.qube.wire(f"""
        echo 1 > /proc/sys/net/ipv6/conf/all/forwarding; echo 0 > /proc/sys/net/ipv6/conf/{behind.vif}/disable_ipv6
        ip -6 address add {GATEWAY6}/128 dev {behind.vif} nodad; ip -6 route add {behind.ip6}/128 dev {behind.vif}
        ip -6 neighbour replace {behind.ip6} lladdr {behind.mac} nud permanent dev {behind.vif}
    """)
    for target in (WORLD6, GATEWAY6):
        behind.port.send(behind.ip6, target, "out")
    outside.send(WORLD6, behind.ip6, "in")
    outside.send(WORLD6, OWN6, "to a port")
    assert host.works(behind, outside)
    assert outside.words() == {"works"}
    assert (behind.port.words(), inside.words()) == (set(), {"to a port"})
    # What the provider has itself goes on (B96).
    assert host.qube.run("ping", "-n", "-c", "1", "-W", "2", ROUTER6).returncode == 0


@pytest.mark.behaviour("B96")
@pytest.mark.parametrize("entries", [ENTRIES, ENTRIES6], ids=["IPv6 off", "IPv6 on"])
def test_the_ipv6_of_a_network_card_is_left_to_its_owner(entries: dict[str, str]) -> None:
    """Of its settings only `forwarding` follows that of all interfaces, which is the kernel's doing."""

    def card() -> list[str]:
        look = (
            f"grep -s . /proc/sys/net/ipv6/conf/{UPLINK}/*; ip -6 address show {UPLINK}; ip -6 route show dev {UPLINK}"
        )
        return [line for line in host.qube.run("sh", "-c", look).stdout.splitlines() if "/forwarding:" not in line]

    host = Provider(entries, rules=False, agent=False)
    before = card()
    assert OWN6 in "".join(before)
    host.qube.guestnet("rules", "load")
    host.qube.start_agent()
    behind = host.attach()
    eventually(lambda: host.works(behind), trouble=host.trouble)
    host.qube.guestnet("apply")
    assert card() == before
    host.agent.stop()
    host.qube.guestnet("forwarding", "off")
    assert card() == before


@pytest.mark.behaviour("B93")
@pytest.mark.parametrize("entries", [ENTRIES, ENTRIES6], ids=["IPv6 off", "IPv6 on"])
def test_a_dhcpv6_server_answers_and_nobody_else_does(entries: dict[str, str]) -> None:
    host = Provider(entries)
    behind, outside, inside = host.attach(), host.outside(), host.inside(6)
    (own,) = [
        each["local"]
        for link in host.oracle.ip("-6", "address", "show", "dev", UPLINK, "scope", "link")
        for each in link["addr_info"]
        if each.get("scope") == "link"
    ]
    outside.send("fe80::7", own, "reply", sport=547, dport=546)
    outside.send("fe80::7", own, "another port", sport=547, dport=547)
    outside.send(WORLD6, OWN6, "from afar", sport=547, dport=546)
    behind.port.send("fe80::7", own, "from a qube", sport=547, dport=546)
    assert inside.hears(lambda packet: packet.word == "reply")
    assert host.works(behind)
    assert inside.words() == {"reply"}


@pytest.mark.behaviour("B65")
def test_forwarding_comes_after_the_rules_and_goes_before_them() -> None:
    host = Provider(ENTRIES6, rules=False, agent=False)
    assert not host.forwards()
    # Rules alone forward nothing.
    host.qube.guestnet("rules", "load")
    assert (host.forwards(), host.forwards(6)) == (False, False)
    assert all(host.rules(family, chain) for family in ("ip", "ip6") for chain in OURS)
    host.qube.guestnet("forwarding", "on")
    assert (host.forwards(), host.forwards(6)) == (True, True)
    assert host.rules("ip", "dnat-dns")
    host.qube.guestnet("forwarding", "off")
    assert (host.forwards(), host.forwards(6)) == (False, False)
    assert host.rules("ip", "forward"), "they stay until their own unit stops"
    host.qube.start_agent()  # it stays off until `on`
    assert (host.forwards(), host.forwards(6)) == (False, False)
    host.qube.guestnet("forwarding", "on")
    assert host.forwards()
    # An agent that crashes leaves all as it is.
    host.agent.kill()
    assert host.forwards()
    assert host.rules("ip", "forward")
    host.qube.guestnet("rules", "unload")
    assert (host.forwards(), host.forwards(6)) == (False, False)
    assert not host.rules("ip", "forward")


def test_no_rules_no_forwarding() -> None:
    """They cannot be loaded: then nothing is forwarded any more."""
    host = Provider(rules=False, agent=False)
    host.qube.write("/run/lab/nft", "#!/bin/sh\necho 'Error: out of order' >&2; exit 1\n")
    host.qube.path("/run/lab/nft").chmod(0o755)
    broken = {"PATH": "/run/lab:/usr/sbin:/usr/bin:/sbin:/bin"}
    for verb in (("rules", "load"), ("forwarding", "on")):
        done = host.qube.guestnet(*verb, check=False, env=broken)
        assert done.returncode == 1
        assert "out of order" in done.stderr
        assert not host.forwards()
    behind = host.plug()
    assert host.call("online", behind, **broken).returncode == 1
    assert "UP" not in host.link(behind.vif)["flags"]
    host.qube.guestnet("forwarding", "on")
    assert host.forwards()
    host.nft("flush ruleset")
    host.qube.guestnet("forwarding", "on", check=False, env=broken)
    assert not host.forwards()


@pytest.mark.behaviour("B101")
@pytest.mark.parametrize("kind", ["a template", "a plain qube"])
def test_who_is_no_provider_forwards_nothing_whatever_it_is_asked(kind: str) -> None:
    entries = ENTRIES if kind == "a template" else {"/qubes-mac": "02:00:00:00:00:01"}
    host = Provider(entries, flag=kind == "a plain qube")
    for verb in (("rules", "load"), ("forwarding", "on"), ("dns", "sync")):
        host.qube.guestnet(*verb, check=False)
        assert (host.forwards(), host.forwards(6)) == (False, False)
    never(lambda: host.forwards(), 0.3)
    # What it forwards of its own, for containers, is none of our business (B83).
    host.qube.wire("echo 1 > /proc/sys/net/ipv4/ip_forward")
    host.qube.guestnet("forwarding", "on", check=False)
    host.agent.kill()
    host.qube.start_agent()
    assert host.forwards()


def test_what_concerns_no_qube_is_forwarded_as_ever() -> None:
    """Containers in a provider, and a hotspot."""
    host = Provider(ENTRIES6)
    behind, outside = host.attach(), host.outside()
    host.world.wire("ip link add docker0 type veth peer name inside; ip link set docker0 up")
    host.qube.wire("""
        ip link add docker0 type veth peer name pod0 address 02:00:00:00:00:11
        ip link set docker0 up; ip link set pod0 up; ip address add 172.17.0.1/16 dev docker0
        ip neighbour add 172.17.0.9 lladdr 02:00:00:00:00:11 nud permanent dev docker0
    """)
    (docker,) = host.qube.ip("link", "show", "docker0")
    pod = Port(host.qube, "pod0", docker["address"])
    pod.send("172.17.0.9", WORLD, "from a container")
    assert outside.hears(lambda packet: packet.word == "from a container")
    outside.send(ROUTER, "172.17.0.9", "to a container")
    assert pod.hears(lambda packet: packet.word == "to a container")
    # But a container is no way around the rules for a qube.
    pod.send("172.17.0.9", behind.ip, "into a qube")
    pod.send(behind.ip, WORLD, "as a qube")
    behind.port.send(behind.ip, DNS, "a port of a virtual address", dport=9)
    assert host.works(behind, outside)
    assert outside.words() == {"from a container", "works"}
    assert behind.port.words() == set()


def test_flushed_rules_come_back_with_everything_in_them() -> None:
    host = Provider(ENTRIES6)
    behind = host.attach()
    wanted = {(family, chain): host.rules(family, chain) for family in ("ip", "ip6") for chain in (*OURS, "dnat-dns")}
    before = host.state(behind.vif)
    host.nft("flush ruleset")
    eventually(lambda: host.rules("ip", "dnat-dns"), trouble=host.trouble)
    eventually(lambda: host.state(behind.vif) == before, trouble=host.trouble)
    assert {(family, chain): host.rules(family, chain) for family, chain in wanted} == wanted
    assert host.works(behind)
    assert host.works(behind, version=6)
    assert (host.oracle.addresses(behind.vif), host.world.ip("link", "show", LAN)[0]["operstate"]) == (
        {f"{GATEWAY}/32", f"{GATEWAY6}/128"},
        "UP",
    )
