# SPDX-License-Identifier: GPL-2.0-or-later
"""Names as others have them: their rules in dnat-dns (B123), resolv.conf of a VPN or a hook (B124, B130)."""

from __future__ import annotations

import errno
import json
import time

import pytest

from tests.netns.test_provider_dns import OF_A_PROXY, came_out, connected, leads, nothing_virtual
from tests.support.eventually import eventually
from tests.support.qubes.provider import DNS, DNS2, ENTRIES, ROUTER, UPLINK_MAC, WORLD, Provider

PROXY = {**ENTRIES, **OF_A_PROXY, "/qubes-mac": UPLINK_MAC}
VPN, SECOND = "10.64.0.1", "198.51.100.52"
# A tunnel with a link layer, as in a namespace without WireGuard, and one without.
VETH = "ip link add wg0 type veth peer name far; ip link set far up"
TUN = "ip tuntap add wg0 mode tun"
UP = "ip link set wg0 up; ip address add 10.64.9.2/32 dev wg0"


def codes(host: Provider) -> dict[str, str]:
    done = host.qube.guestnet("check", "--json", check=False)
    return {finding["code"]: finding["problem"] for finding in json.loads(done.stdout)}


def guide(host: Provider, *rules: str) -> None:
    """What guides do: flush, and one nft for each rule."""
    host.nft("flush chain ip qubes dnat-dns")
    for rule in rules:
        host.nft(f"add rule ip qubes dnat-dns {rule}")


FOUR = [
    f"ip daddr {address} {protocol} dport 53 dnat to {VPN}" for address in (DNS, DNS2) for protocol in ("udp", "tcp")
]
GUIDES = {
    "by address": FOUR,
    "by interface": [f'iifname "vif*" {protocol} dport 53 dnat to {VPN}' for protocol in ("udp", "tcp")],
    "by UDP alone": [f"iifgroup 2 udp dport 53 counter dnat to {VPN}"],
}


@pytest.mark.behaviour("B123")
@pytest.mark.parametrize("entries", [PROXY, ENTRIES], ids=["proxy", "network card"])
@pytest.mark.parametrize("what", GUIDES)
def test_what_a_guide_puts_there_stays_is_named_and_ends_with_its_owner(what: str, entries: dict[str, str]) -> None:
    host = Provider(entries)
    leads(host, *((DNS, DNS2) if entries is PROXY else (ROUTER,)))
    behind, outside = host.attach(), host.outside()
    before = host.rules("ip", "dnat-dns")
    guide(host, *GUIDES[what])
    wanted = host.rules("ip", "dnat-dns")
    eventually(lambda: "keeping another program's rules" in host.trouble(), trouble=host.trouble)
    assert came_out(behind, outside, DNS) == VPN
    assert VPN in codes(host)["dns-foreign"]
    status = json.loads(host.qube.guestnet("status", "--json", check=False).stdout)["provider"]["dns"]
    assert (status["servers"], status["problem"]) == ([VPN], "dns-foreign")
    told = host.trouble().count("keeping another program's rules")  # its rules come one by one, with looks in between
    # Whatever happens meanwhile: other servers, another vif, the base rules anew, another agent.
    host.resolv_conf(SECOND)
    host.online(host.plug(5))
    host.qube.guestnet("rules", "load")
    assert host.qube.guestnet("dns", "sync", check=False).returncode in (0, 100)
    host.agent.kill()
    host.qube.start_agent()
    host.qube.guestnet("apply", check=False)
    assert host.rules("ip", "dnat-dns") == wanted
    assert host.trouble().count("keeping another program's rules") == told, host.trouble()
    host.nft("flush chain ip qubes dnat-dns")
    eventually(
        lambda: len(host.rules("ip", "dnat-dns")) == len(before) and host.rules("ip", "dnat-dns") != wanted,
        trouble=host.trouble,
    )
    assert "dns-foreign" not in codes(host)
    nothing = [packet for packet in outside.heard() if packet.word.startswith("question") and packet.target != VPN]
    assert nothing == []


@pytest.mark.behaviour("B123")
def test_what_leads_nowhere_is_put_back_and_told() -> None:
    host = Provider()
    leads(host, ROUTER)
    behind, outside = host.attach(), host.outside()
    for rules in ((), (FOUR[0],), ("udp dport 53 accept",), (f"udp dport 53 dnat to {DNS2}",)):
        guide(host, *rules)
        leads(host, ROUTER)
        assert came_out(behind, outside, DNS) == ROUTER
    assert "restored it: the chain is empty" in host.trouble()
    assert f"restored it: {DNS2} ends at itself" in host.trouble()
    nothing_virtual(outside)


@pytest.mark.behaviour("B123")
def test_ours_beside_a_users_follow_the_servers() -> None:
    host = Provider()
    leads(host, ROUTER)
    one = f"ip saddr 10.137.0.77 udp dport 53 dnat to {VPN}"
    host.nft(f"insert rule ip qubes dnat-dns {one}")
    eventually(lambda: "keeping another program's rules" in host.trouble(), trouble=host.trouble)
    host.resolv_conf(SECOND)

    def followed() -> bool:
        rules = host.rules("ip", "dnat-dns")
        return rules[0] == one and {rule.split()[-1] for rule in rules[1:]} == {SECOND}

    eventually(followed, trouble=host.trouble)
    behind, outside = host.attach(), host.outside()
    assert came_out(behind, outside, DNS) == SECOND
    host.nft("flush chain ip qubes dnat-dns")
    leads(host, SECOND)


PERHAPS = {
    "a Pi-hole": [
        "ip saddr != 10.137.0.20 udp dport 53 dnat to VPN",
        "ip saddr != 10.137.0.20 tcp dport 53 dnat to VPN",
    ],
    "sources": ["ip saddr { 10.137.0.0/16, 10.138.0.0/16 } udp dport 53 dnat to VPN"],
    "at once": ["meta l4proto . th dport { tcp . 53, udp . 53 } dnat to VPN"],
    "not our own": ["fib daddr type != local udp dport 53 dnat to VPN"],
    "one vif": ['iifname "vif4.0" udp sport 1024-65535 udp dport 53 limit rate 100/second dnat to VPN'],
}


@pytest.mark.behaviour("B123")
@pytest.mark.parametrize("what", PERHAPS)
def test_what_is_not_understood_stays_and_what_it_does_not_lead_is_refused(what: str) -> None:
    host = Provider(PROXY, servers=[DNS])
    leads(host, DNS, DNS2)
    behind, outside = host.attach(), host.outside()
    guide(host, *(rule.replace("VPN", VPN) for rule in PERHAPS[what]))
    wanted = host.rules("ip", "dnat-dns")
    eventually(lambda: "keeping another program's rules" in host.trouble(), trouble=host.trouble)
    assert host.rules("ip", "dnat-dns") == wanted
    assert came_out(behind, outside, DNS) == VPN
    assert f"{VPN} or refused" in codes(host)["dns-foreign"]


@pytest.mark.behaviour("B123")
def test_rules_that_lead_to_this_qube_are_not_told_as_refused() -> None:
    host = Provider()
    leads(host, ROUTER)
    guide(host, "udp dport 53 redirect to :5353", "tcp dport 53 redirect")
    eventually(lambda: "virtual DNS: rules of another program" in host.trouble(), trouble=host.trouble)
    assert f"{DNS} -> this qube" in host.trouble()
    assert "refused" not in host.trouble()


@pytest.mark.behaviour("B123")
def test_for_another_qube_alone_the_rest_goes_to_the_provider_of_this_one() -> None:
    host = Provider(PROXY, servers=[DNS])
    leads(host, DNS, DNS2)
    behind, outside = host.attach(), host.outside()
    host.nft(f"insert rule ip qubes dnat-dns ip saddr 10.137.0.77 udp dport 53 dnat to {VPN}")
    eventually(lambda: "keeping another program's rules" in host.trouble(), trouble=host.trouble)
    assert came_out(behind, outside, DNS) == DNS


@pytest.mark.behaviour("B123")
def test_an_own_chain_in_front_of_ours_goes_on_working() -> None:
    host = Provider()
    leads(host, ROUTER)
    host.nft("add table ip mine; add chain ip mine names { type nat hook prerouting priority dstnat - 1; }")
    host.nft(f"add rule ip mine names iifgroup 2 udp dport 53 dnat to {VPN}")
    behind, outside = host.attach(), host.outside()
    host.resolv_conf(SECOND)
    leads(host, SECOND)
    assert came_out(behind, outside, DNS) == VPN


def wrote(host: Provider, *servers: str) -> None:
    """As openresolv does: a new file, renamed over the old one."""
    text = "# Generated by resolvconf\\n" + "".join(f"nameserver {server}\\n" for server in servers)
    host.qube.run("sh", "-c", f"printf '{text}' > /etc/.resolv.new; mv /etc/.resolv.new /etc/resolv.conf")


def named(host: Provider) -> list[str]:
    return [
        line.split()[1] for line in host.qube.read("/etc/resolv.conf").splitlines() if line.startswith("nameserver")
    ]


@pytest.mark.behaviour("B124")
@pytest.mark.parametrize(
    ("setup", "server"),
    [
        pytest.param(f"{VETH}; {UP}; ip route add 10.64.0.0/16 dev wg0", VPN, id="a route to the server"),
        pytest.param(f"{TUN}; {UP}", VPN, id="before its routes, as wg-quick and OpenVPN tell of it"),
        pytest.param(
            f"{VETH}; {UP}; ip route add 0.0.0.0/1 dev wg0; ip route add 128.0.0.0/1 dev wg0",
            "9.9.9.9",
            id="the halves of a default route",
        ),
        pytest.param(
            f"{VETH}; {UP}; ip route add default dev wg0 table 51820; ip rule add not fwmark 1 table 51820",
            "9.9.9.9",
            id="a table of its own",
        ),
        pytest.param(
            f"{VETH}; {UP}; ip route add default dev wg0 metric 700", "9.9.9.9", id="a default route behind ours"
        ),
    ],
)
def test_a_vpns_server_in_resolv_conf_is_kept_while_the_vpn_is_there(setup: str, server: str) -> None:
    host = Provider(PROXY, servers=[DNS])
    eventually(lambda: named(host) == [DNS, DNS2], trouble=host.trouble)
    host.qube.wire(setup)
    wrote(host, server)
    leads(host, server)
    time.sleep(1.0)  # longer than it takes to write it back
    assert named(host) == [server]
    assert "wg0" in codes(host)["resolv-conf-kept"]
    assert json.loads(host.qube.guestnet("status", "--json", check=False).stdout)["resolver"]["owner"] == "tunnel"
    host.qube.wire("ip rule del table 51820 2>/dev/null || true; ip link delete wg0")
    eventually(lambda: named(host) == [DNS, DNS2], trouble=host.trouble)
    leads(host, DNS, DNS2)


BY_WRITING = {
    "pppd": "{ grep -v ^nameserver /etc/resolv.conf; echo nameserver VPN; } >/etc/.new; mv /etc/.new /etc/resolv.conf",
    "sed": "sed 's/^nameserver.*/nameserver VPN/' /etc/resolv.conf >/etc/.new; mv /etc/.new /etc/resolv.conf",
    "sed in place": "sed 's/^nameserver.*/nameserver VPN/' /etc/resolv.conf >/tmp/new; cat /tmp/new >/etc/resolv.conf",
    "echo >>": "echo nameserver VPN >>/etc/resolv.conf",
}


@pytest.mark.behaviour("B124")
@pytest.mark.parametrize("how", BY_WRITING)
def test_a_vpns_server_below_our_first_lines_is_the_vpns(how: str) -> None:
    host = Provider(PROXY, servers=[DNS])
    eventually(lambda: named(host) == [DNS, DNS2], trouble=host.trouble)
    host.qube.wire(f"{TUN}; {UP}")
    host.qube.run("sh", "-c", BY_WRITING[how].replace("VPN", VPN))
    there = named(host)
    eventually(lambda: "resolv-conf-kept" in codes(host), trouble=host.trouble)
    host.agent.kill()
    host.qube.start_agent()
    host.qube.guestnet("apply", check=False)
    assert named(host) == there
    assert VPN in there
    host.qube.wire("ip link delete wg0")
    eventually(lambda: named(host) == [DNS, DNS2], trouble=host.trouble)
    leads(host, DNS, DNS2)


@pytest.mark.behaviour("B124")
def test_ours_of_a_former_provider_is_ours_beside_a_vpn() -> None:
    host = Provider(PROXY, servers=[DNS])
    eventually(lambda: named(host) == [DNS, DNS2], trouble=host.trouble)
    host.agent.kill()
    host.qube.wire(f"{TUN}; {UP}")
    host.write("/qubes-primary-dns", SECOND)
    host.qube.start_agent()
    eventually(lambda: named(host) == [SECOND, DNS2], trouble=host.trouble)


@pytest.mark.behaviour("B124")
def test_without_a_vpn_it_is_written_back_and_told_once_with_the_remedy() -> None:
    host = Provider(PROXY, servers=[DNS])
    eventually(lambda: named(host) == [DNS, DNS2], trouble=host.trouble)
    for _ in range(2):
        wrote(host, "9.9.9.9")
        eventually(lambda: named(host) == [DNS, DNS2], trouble=host.trouble)
    eventually(lambda: "protected-files.d" in host.trouble(), trouble=host.trouble)
    assert host.trouble().count("named 9.9.9.9") == 1


@pytest.mark.behaviour("B124")
def test_what_a_hook_writes_is_kept_while_the_hook_is_there() -> None:
    host = Provider(PROXY, agent=False)
    hook = "/rw/config/qubes-ip-change-hook"
    host.qube.write(hook, f"#!/bin/sh\necho 'nameserver {VPN}' >/etc/resolv.conf\n")
    host.qube.path(hook).chmod(0o755)
    host.qube.start_agent()
    leads(host, VPN)
    time.sleep(1.0)  # longer than it takes to write it back
    assert named(host) == [VPN]
    assert "hook" in codes(host)["resolv-conf-kept"]
    host.qube.path(hook).unlink()
    host.qube.guestnet("apply", check=False)
    assert named(host) == [DNS, DNS2]


@pytest.mark.behaviour("B124")
def test_what_a_hook_makes_of_our_file_is_the_hooks() -> None:
    host = Provider(PROXY, agent=False)
    hook = "/rw/config/qubes-ip-change-hook"
    sed = f"sed 's/^nameserver.*/nameserver {VPN}/' /etc/resolv.conf >/tmp/r; cat /tmp/r >/etc/resolv.conf"
    host.qube.write(hook, f"#!/bin/sh\n{sed}\n")
    host.qube.path(hook).chmod(0o755)
    host.qube.start_agent()
    leads(host, VPN)
    time.sleep(1.0)  # longer than it takes to write it back
    assert set(named(host)) == {VPN}


@pytest.mark.behaviour("B124")
@pytest.mark.parametrize("end", ["", "exit 1", "sleep 100 &"], ids=["well", "failed", "with a daemon"])
def test_what_another_program_writes_after_the_hook_has_ended_is_not_the_hooks(end: str) -> None:
    host = Provider(PROXY, agent=False)
    hook = "/rw/config/qubes-ip-change-hook"
    host.qube.write(hook, f"#!/bin/sh\necho 'nameserver {VPN}' >/etc/resolv.conf\n{end}\n")
    host.qube.path(hook).chmod(0o755)
    host.qube.start_agent()
    eventually(lambda: host.qube.path("/run/qubes-guestnet/ended-qubes-ip-change-hook").exists(), trouble=host.trouble)
    leads(host, VPN)
    time.sleep(1.1)  # what is written within a second is taken for the hook's
    wrote(host, "9.9.9.9")
    eventually(lambda: named(host) == [DNS, DNS2], trouble=host.trouble)


@pytest.mark.behaviour("B130")
def test_a_link_is_followed_wherever_it_leads_and_whatever_becomes_of_that() -> None:
    host = Provider(agent=False)
    write = "mkdir -p /run/net; echo nameserver {} >/run/net/n; mv /run/net/n /run/net/resolv.conf"
    host.qube.run("sh", "-c", "ln -sfn /run/net/resolv.conf /run/first; ln -sfn /run/first /etc/resolv.conf")
    host.qube.start_agent()
    leads(host)  # it leads to nothing yet
    for server in (ROUTER, SECOND, WORLD):
        host.qube.run("sh", "-c", write.format(server))
        leads(host, server)
    host.qube.run("sh", "-c", f"rm -r /run/net; {write.format(ROUTER)}")
    leads(host, ROUTER)
    host.qube.run("sh", "-c", f"echo nameserver {SECOND} >/run/other; ln -sfn /run/other /run/first")
    leads(host, SECOND)


@pytest.mark.behaviour("B130")
def test_three_ipv6_servers_in_front_hide_no_other() -> None:
    host = Provider(servers=["fd00::1", "fd00::2", "fd00::3", ROUTER, SECOND])
    leads(host, ROUTER, SECOND)


@pytest.mark.behaviour("B130")
@pytest.mark.parametrize(
    "make",
    [
        "mkdir /etc/resolv.conf",
        "ln -s resolv.conf /etc/resolv.conf",
        "mkfifo /etc/resolv.conf",
        "(echo nameserver 192.168.0.1; yes '# 012345678901234567890' | head -4000) >/etc/resolv.conf",
    ],
    ids=["folder", "circle", "fifo", "huge"],
)
def test_a_file_that_cannot_be_read_refuses_names_and_nothing_else(make: str) -> None:
    host = Provider(agent=False)
    host.qube.run("sh", "-c", f"rm -f /etc/resolv.conf; {make}")
    host.qube.start_agent()
    behind, outside = host.attach(), host.outside()
    eventually(host.forwards, trouble=host.trouble)
    assert host.works(behind)
    assert connected(behind, DNS) == errno.ECONNREFUSED
    assert came_out(behind, outside, DNS) == ""
    nothing_virtual(outside)
    assert "cannot be read" in codes(host)["dns-unreadable"]
    host.qube.run("sh", "-c", f"rm -rf /etc/resolv.conf; echo nameserver {ROUTER} >/etc/resolv.conf")
    leads(host, ROUTER)


@pytest.mark.behaviour("B123")
def test_the_owners_servers_never_lead_a_virtual_address_to_itself() -> None:
    host = Provider(agent=False)
    host.qube.run("mkdir", "-p", "/etc/qubes")
    host.qube.write("/etc/qubes/guestnet.toml", f'[dns]\nservers = ["{DNS}"]\n')
    host.qube.start_agent()
    behind, outside = host.attach(), host.outside()
    eventually(lambda: "[dns] servers" in host.trouble(), trouble=host.trouble)
    assert came_out(behind, outside, DNS) == ""
    assert connected(behind, DNS) == errno.ECONNREFUSED
    nothing_virtual(outside)
    host.qube.write("/etc/qubes/guestnet.toml", f'[dns]\nservers = ["{DNS}", "{SECOND}"]\n')
    host.qube.guestnet("apply", check=False)
    leads(host, SECOND)


@pytest.mark.behaviour("B142")
def test_the_kill_switch_without_a_tunnel_is_told_and_with_it_nothing_is_red() -> None:
    host = Provider(PROXY, servers=[DNS])
    leads(host, DNS, DNS2)
    for family in ("ip", "ip6"):
        host.nft(f"add rule {family} qubes custom-forward oifgroup 1 counter drop")
    found = codes(host)
    assert "nothing over IPv4:" in found["kill-switch-closed"]
    host.qube.wire(f"{VETH}; {UP}; ip address add {VPN}/32 dev lo; ip route add 0.0.0.0/1 dev wg0")
    wrote(host, VPN)
    leads(host, VPN)
    found = codes(host)
    assert "kill-switch-closed" not in found
    assert "oifgroup 1" in found["custom-forward-drops"]
    # Of the servers only the tunnel's is asked, not those of the provider, which nothing asks.
    assert DNS not in found.get("dns-unreachable", "")
