# SPDX-License-Identifier: GPL-2.0-or-later
"""A provider whose kernel has no flowtables, as this one, or where rules of others are against one: it says so.

What becomes of connections where there is one is seen in tests/guest.
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from tests.support.eventually import eventually
from tests.support.qubes.provider import ENTRIES6, Provider

UNIT = Path(__file__).parents[2] / "systemd" / "qubes-guestnet.service"
COUNTED, LOG = "/run/lab/counted", "/run/lab/nft.log"
REFUSED = "off: the kernel takes no flowtable (nft: /dev/stdin:4:13-17: Error: Could not process rule: "
# A chain that judges everything, behind those of each case: as long as there is one, nothing is loaded. It has another
# name each time, which shows that the rules were looked at since.
JUDGE = """
table inet judge
delete table inet judge
table inet judge {{
  chain late{number} {{
    type filter hook forward priority 9; policy accept
    tcp dport 25 drop
  }}
}}
"""
# As core-agent makes it for two qubes.
FIREWALL = """
table ip qubes-firewall {
  set dns-addr { type ipv4_addr; }
  chain qbs-10-137-0-5 {
    ip daddr @dns-addr udp dport 53 accept
    reject with icmp type admin-prohibited
  }
  chain qubes-forward {
    ip saddr 10.137.0.5 jump qbs-10-137-0-5
  }
  chain forward {
    type filter hook forward priority 0; policy drop
    ct state established,related accept
    meta iifname != "vif*" accept
    jump qubes-forward
  }
  chain prerouting {
    type filter hook prerouting priority -300; policy accept
    iifname != "vif*" ip saddr { 10.137.0.5, 10.137.0.6 } drop
  }
  chain postrouting {
    type filter hook postrouting priority -300; policy accept
    oifname != "vif*" ip daddr { 10.137.0.5, 10.137.0.6 } drop
  }
}
"""


def table(name: str, *chains: str) -> str:
    return f"table {name} {{\n" + "".join(chains) + "}\n"


def chain(name: str, head: str, *rules: str) -> str:
    return f"chain {name} {{\n" + "".join(f"{line}\n" for line in (f"type {head}" if head else "", *rules)) + "}\n"


def custom(*rules: str, family: str = "ip") -> tuple[str, str]:
    """Rules of a user's, and how they go."""
    name = f"{family} qubes custom-forward"
    return "".join(f"add rule {name} {rule}\n" for rule in rules), f"flush chain {name}\n"


def foreign(name: str, *chains: str) -> tuple[str, str]:
    """A table of others, and how it goes."""
    return table(name, *chains), f"delete table {name}\n"


# As its iptables-nft makes it.
DOCKER = """
table ip filter {{
  chain DOCKER-USER {{
    {user}
  }}
  chain DOCKER-ISOLATION-STAGE-2 {{
    oifname "docker0" counter drop
    counter return
  }}
  chain DOCKER-ISOLATION-STAGE-1 {{
    iifname "docker0" oifname != "docker0" counter jump DOCKER-ISOLATION-STAGE-2
    counter return
  }}
  chain DOCKER {{
    iifname != "docker0" oifname "docker0" counter drop
  }}
  chain FORWARD {{
    type filter hook forward priority filter; policy {policy}
    counter jump DOCKER-USER
    counter jump DOCKER-ISOLATION-STAGE-1
    oifname "docker0" ct state related,established counter accept
    oifname "docker0" counter jump DOCKER
    iifname "docker0" oifname != "docker0" counter accept
  }}
}}
"""
DOCKER_ENDS = "delete table ip filter\n"
MANY = ", ".join(f"192.0.2.{last}" for last in range(1, 100))
# What others do, how it ends, and which of their chains is in the way.
CASES = {
    "the firewall of the qubes": (FIREWALL, "delete table ip qubes-firewall\n", ""),
    "a kill switch": (
        *custom("oifgroup 1 counter drop", 'oifname "eth0" counter reject with icmp admin-prohibited'),
        "",
    ),
    "all but the tunnel": (*custom('iifname "vif*" oifname != "tun0" counter drop', family="ip6"), ""),
    "a block of the LAN": (
        *custom("oifgroup != 2 ip daddr { 10.0.0.0/8, 192.168.0.0/16 } ct original ip daddr != 10.139.1.1 reject"),
        "",
    ),
    "a rule about what comes": (*custom("iifgroup 1 counter drop"), "ip qubes custom-forward"),
    "the same for IPv6": (*custom("iifgroup 1 counter drop", family="ip6"), "ip6 qubes custom-forward"),
    "a limit": (*custom("oifgroup 1 limit rate over 1 mbytes/second drop"), "ip qubes custom-forward"),
    "what keeps known connections": (
        *custom('ct state related,established counter accept comment "first"', "oifgroup 1 drop"),
        "",
    ),
    "docker": (DOCKER.format(policy="drop", user="return"), DOCKER_ENDS, "ip filter FORWARD"),
    "docker with a policy of accept": (DOCKER.format(policy="accept", user="return"), DOCKER_ENDS, ""),
    "docker, and its owner's rule": (
        DOCKER.format(policy="drop", user="ct state established,related accept"),
        DOCKER_ENDS,
        "",
    ),
    "counters, logs and limits that refuse nothing": (
        "table inet theirs {\ncounter web { }\nlimit slow { rate 5/second; }\n"
        "set seen { type ipv4_addr; }\n"
        "chain forward {\ntype filter hook forward priority 1; policy accept\n"
        "tcp dport 443 counter name web\n"
        'log prefix "seen: " level info\n'
        "limit rate 10/minute burst 5 packets accept\n"
        "limit name slow accept\n"
        "ip daddr @seen counter accept\n"
        'iifname "vif*" limit rate over 1 mbytes/second burst 2 mbytes accept\n}\n}\n',
        "delete table inet theirs\n",
        "",
    ),
    "a limit in front of a kill switch": (
        *custom("limit rate 10/minute accept", "oifgroup 1 drop"),
        "ip qubes custom-forward",
    ),
    "a mark": (*custom("oifgroup 1 meta mark set 1 accept"), "ip qubes custom-forward"),
    "a log of a program's": (*custom("log group 2"), "ip qubes custom-forward"),
    "translation of addresses": (
        *foreign("ip nat", chain("POSTROUTING", "nat hook postrouting priority srcnat", 'oifname "x" masquerade')),
        "",
    ),
    "firewalld": (
        *foreign(
            "inet firewalld",
            chain(
                "filter_PREROUTING",
                "filter hook prerouting priority filter + 10; policy accept",
                "meta nfproto ipv6 fib saddr . mark . iif oif missing drop",
            ),
            chain(
                "filter_FORWARD",
                "filter hook forward priority filter + 10; policy accept",
                "ct state { established, related } accept",
                "reject with icmpx type admin-prohibited",
            ),
        ),
        "inet firewalld filter_PREROUTING",
    ),
    "a map of states": (
        *foreign(
            "inet theirs",
            chain(
                "forward",
                "filter hook forward priority filter; policy drop",
                "ct state vmap { established : accept, related : accept, invalid : drop }",
                "tcp dport 80 accept",
            ),
        ),
        "",
    ),
    "early ingress, and egress": (
        *foreign(
            "netdev theirs",
            chain("in", "filter hook ingress device lo priority filter + 5", "ip saddr 192.0.2.1 drop"),
            chain("out", "filter hook egress device lo priority filter", "ip saddr 192.0.2.1 drop"),
        ),
        "",
    ),
    "late ingress": (
        *foreign(
            "netdev theirs", chain("late", "filter hook ingress device lo priority 300", "ip saddr 192.0.2.1 drop")
        ),
        "netdev theirs late",
    ),
    "a rule of several lines": (
        *foreign(
            "inet theirs",
            chain(
                "forward",
                "filter hook forward priority 1; policy accept",
                f"ct state new ip saddr {{ {MANY} }} drop",
                "ct state established accept",
                "drop",
            ),
        ),
        "",
    ),
}


def said(host: Provider) -> str:
    """What `status` says of offload."""
    data = json.loads(host.qube.guestnet("status", "--json", check=False).stdout)
    return str(data["provider"]["offload"])


def logged(host: Provider) -> list[str]:
    """What the agent has said of it."""
    return [line for line in host.agent.output().splitlines() if "offload" in line]


def start_counted(host: Provider) -> None:
    """Start the agent, whose calls of nft are noted from then on."""
    host.qube.write(f"{COUNTED}/nft", f'#!/bin/sh\necho "$@" >>{LOG}\nexec /usr/sbin/nft "$@"\n')
    host.qube.path(f"{COUNTED}/nft").chmod(0o755)
    host.qube.start_agent(env={"PATH": f"{COUNTED}:/usr/sbin:/usr/bin:/sbin:/bin"})


def looks(host: Provider) -> int:
    """How often the agent has looked at the chains of others."""
    return host.qube.read(LOG).splitlines().count("list chains")


@pytest.mark.behaviour("B62")
def test_a_kernel_without_flowtables_breaks_nothing() -> None:
    host = Provider(ENTRIES6, agent=False)
    start_counted(host)
    behind = host.attach(4)
    assert host.works(behind)
    assert host.works(behind, version=6)
    eventually(lambda: said(host).startswith(REFUSED), what="status says why", trouble=lambda: said(host))
    assert f"offload: {said(host)}\n" in host.qube.guestnet("status", check=False).stdout
    assert len(logged(host)) == 1
    assert host.qube.guestnet("plan").stdout == ""

    assert looks(host) == 1
    before = len(host.qube.read(LOG).splitlines())
    for number in range(5):  # each is a reason for a pass, and none to ask anew
        host.qube.wire(f"ip link add tun{number} type veth peer name far{number}")
    host.write("/qubes-netvm-secondary-dns", "10.139.1.3")  # what is to do once all that is over
    eventually(lambda: "10.139.1.3->" in host.agent.output(), what="a pass", trouble=host.trouble)
    assert len(logged(host)) == 1
    assert looks(host) == 1
    asked = host.qube.read(LOG).splitlines()[before:]
    assert len(asked) <= 3, asked  # the redirection was loaded, and its chains listed
    assert host.works(behind)

    host.agent.stop()
    host.qube.start_agent()
    assert host.works(behind)
    assert len(logged(host)) == 2  # one for each life


@pytest.mark.behaviour("B62")
def test_what_others_rules_have_against_it() -> None:
    host = Provider(ENTRIES6, agent=False)
    host.nft(JUDGE.format(number=0))
    start_counted(host)

    def judged_by(chain: str) -> None:
        expected = f"off: chain {chain} may refuse established connections: its "
        eventually(lambda: said(host).startswith(expected), what=chain, trouble=lambda: said(host))

    judged_by("inet judge late0")
    for number, (add, remove, judge) in enumerate(CASES.values(), start=1):
        host.nft(add + JUDGE.format(number=number))
        judged_by(judge or f"inet judge late{number}")
        host.nft(remove + JUDGE.format(number=f"{number}-over"))
        judged_by(f"inet judge late{number}-over")
        host.qube.wire(f"ip link add tun{number} type veth peer name far{number}")  # a pass, and no reason to look
    assert looks(host) <= 1 + 2 * len(CASES)
    host.nft("delete table inet judge")
    eventually(lambda: said(host).startswith(REFUSED), what="it is tried", trouble=lambda: said(host))


@pytest.mark.behaviour("B62")
def test_what_the_unit_says_at_its_end_is_understood() -> None:
    (line,) = [line for line in UNIT.read_text().splitlines() if line.startswith("ExecStopPost=")]
    command = shlex.split(line.partition("=")[2].removeprefix("-"))
    host = Provider(agent=False)
    before = host.oracle.run("nft", "list", "ruleset").stdout
    for there in ("", "add table inet qubes-offload"):
        host.nft(there)
        assert host.qube.run(*command).stderr == ""
        assert host.oracle.run("nft", "list", "ruleset").stdout == before
