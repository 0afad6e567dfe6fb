# SPDX-License-Identifier: GPL-2.0-or-later
"""A change of rules applies to connections that are offloaded."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.support.eventually import eventually
from tests.support.packets.flows import TCP, UDP, Offload, flowing
from tests.support.qubes.provider import WORLD, Client, Provider

FIREWALL = """
    table ip qubes-firewall {{
        chain forward {{
            type filter hook forward priority 0; policy drop;
            ct state established,related accept
            iifname != "vif*" accept
            ip saddr {source} jump qbs-{name}
        }}
        chain qbs-{name} {{
            accept
        }}
    }}
"""


@contextmanager
def foreign(host: Provider, add: str, remove: str) -> Iterator[None]:
    """Rules of another program, there while the block lasts."""
    host.nft(add)
    try:
        yield
    finally:
        host.nft(remove)


def handle(host: Provider, chain: str) -> int:
    """The only rule in a chain."""
    listed = json.loads(host.oracle.run("nft", "-j", "-a", "list", "chain", "ip", "qubes", chain).stdout)
    (found,) = (entry["rule"]["handle"] for entry in listed["nftables"] if "rule" in entry)
    return int(found)


@pytest.mark.behaviour("B62", "B63")
def test_a_rule_in_custom_forward_cuts_what_is_offloaded(host: Provider, behind: Client, offload: Offload) -> None:
    """One that only the answers meet, which never come by any chain while they are offloaded."""
    with flowing(behind.qube, host.world, WORLD, TCP) as flow:
        offload.takes(flow)
        host.nft(f"add rule ip qubes custom-forward ip daddr {behind.ip} drop")
        try:
            flow.cut(flow.near)
            assert offload.gone()
        finally:
            host.nft(f"delete rule ip qubes custom-forward handle {handle(host, 'custom-forward')}")
        eventually(offload.complete, 20, "offload is on again")
        flow.goes_on()
        offload.takes(flow)


@pytest.mark.behaviour("B62", "B63")
@pytest.mark.parametrize("hook", ["forward", "postrouting", "prerouting"])
def test_a_chain_of_somebody_else_cuts_what_is_offloaded(
    host: Provider, behind: Client, offload: Offload, hook: str
) -> None:
    chain = f"add table inet other; add chain inet other judge {{ type filter hook {hook} priority 10; }}"
    with flowing(behind.qube, host.world, WORLD, UDP) as flow:
        offload.takes(flow)
        with foreign(host, f"{chain}; add rule inet other judge ip saddr {WORLD} drop", "delete table inet other"):
            flow.cut(flow.near)
            assert offload.gone()
        eventually(offload.complete, 20, "offload is on again")
        offload.takes(flow)


@pytest.mark.behaviour("B62", "B63")
def test_a_firewall_that_lets_known_connections_pass_first_leaves_it_on(
    host: Provider, behind: Client, offload: Offload
) -> None:
    """And a change of its policy, with which the connection is forgotten, ends what is offloaded at once."""
    name = behind.ip.replace(".", "-")
    qube_chain = f"ip qubes-firewall qbs-{name}"
    load = FIREWALL.format(source=behind.ip, name=name)
    with (
        foreign(host, load, "delete table ip qubes-firewall"),
        flowing(behind.qube, host.world, WORLD, TCP) as stream,
        flowing(behind.qube, host.world, WORLD, UDP) as datagrams,
    ):
        eventually(offload.complete, 20, "offload is on")
        for flow in (stream, datagrams):
            offload.takes(flow)
        host.nft(f"flush chain {qube_chain}; add rule {qube_chain} drop")
        host.oracle.run("conntrack", "-D", "-s", behind.ip)
        for flow in (stream, datagrams):
            flow.stands()
            assert not offload.marked(flow)


@pytest.mark.behaviour("B62")
def test_an_empty_chain_judges_nobody(host: Provider, behind: Client, offload: Offload) -> None:
    chain = "add table inet other; add chain inet other judge { type filter hook forward priority 10; }"
    with (
        foreign(host, chain, "delete table inet other"),
        flowing(behind.qube, host.world, WORLD, TCP) as flow,
    ):
        eventually(offload.complete, 20, "offload is on")
        offload.takes(flow)


CUSTOM = "ip qubes custom-forward"
HARMLESS = {
    "the MSS clamped": "tcp flags syn / syn,rst tcp option maxseg size set rt mtu",
    "counted": "counter",
    "a port opened": "ip daddr 10.137.0.4 tcp dport 443 ct state established,related,new counter accept",
    "a way from qube to qube": "ip saddr 10.137.0.4 ip daddr 10.137.0.5 tcp dport 22 accept",
    "logged on the way out": 'oifgroup 1 tcp dport 25 log prefix "mail " drop',
    "a limit, accepted": "limit rate 10/minute burst 5 packets accept",
}
WG_QUICK = """
    table ip wg-quick-wg0 {
        chain preraw {
            type filter hook prerouting priority raw;
            iifname != "wg0" ip daddr 10.64.9.2 fib saddr type != local drop
        }
        chain premangle {
            type filter hook prerouting priority mangle;
            meta l4proto udp meta mark set ct mark
        }
        chain postmangle {
            type filter hook postrouting priority mangle;
            meta l4proto udp meta mark 0xca6c ct mark set meta mark
        }
    }
"""


@pytest.mark.behaviour("B134")
@pytest.mark.parametrize("rule", HARMLESS.values(), ids=HARMLESS.keys())
def test_a_rule_that_refuses_nothing_leaves_it_on(host: Provider, behind: Client, offload: Offload, rule: str) -> None:
    """And a connection that is offloaded beside it carries what either end sends."""
    with (
        foreign(host, f"add rule {CUSTOM} {rule}", f"flush chain {CUSTOM}"),
        flowing(behind.qube, host.world, WORLD, TCP) as flow,
    ):
        eventually(offload.complete, 20, "offload is on", host.trouble)
        offload.takes(flow)
        flow.goes_on()


COUNTED = """
    table inet theirs {
        counter web { }
        chain seen {
            counter name web
            limit rate 1/second log prefix "seen "
        }
        chain forward {
            type filter hook forward priority 1; policy accept;
            jump seen
            iifname "vif*" oifname "eth0" tcp dport 25 reject
        }
    }
"""


@pytest.mark.behaviour("B134")
def test_a_table_that_jumps_counts_and_logs_leaves_it_on(host: Provider, behind: Client, offload: Offload) -> None:
    with (
        foreign(host, COUNTED, "delete table inet theirs"),
        flowing(behind.qube, host.world, WORLD, TCP) as flow,
    ):
        eventually(offload.complete, 20, "offload is on", host.trouble)
        offload.takes(flow)
        flow.goes_on()


@pytest.mark.behaviour("B134")
def test_a_limit_in_front_of_a_refusal_ends_it(host: Provider, behind: Client, offload: Offload) -> None:
    """What the limit accepted at first is refused later, and that has to be seen."""
    rules = f"limit rate 1/hour burst 20 packets accept; add rule {CUSTOM} iifgroup 2 drop"
    with flowing(behind.qube, host.world, WORLD, UDP) as flow:
        offload.takes(flow)
        with foreign(host, f"add rule {CUSTOM} {rules}", f"flush chain {CUSTOM}"):
            flow.cut(flow.far)
            assert offload.gone()
        eventually(offload.complete, 20, "offload is on again")


@pytest.mark.behaviour("B134")
@pytest.mark.parametrize("kind", [TCP, UDP])
def test_the_table_of_wg_quick_leaves_it_on(
    host: Provider, behind: Client, offload: Offload, kind: socket.SocketKind
) -> None:
    with (
        foreign(host, WG_QUICK, "delete table ip wg-quick-wg0"),
        flowing(behind.qube, host.world, WORLD, kind) as flow,
    ):
        eventually(offload.complete, 20, "offload is on", host.trouble)
        offload.takes(flow)
        flow.goes_on()
