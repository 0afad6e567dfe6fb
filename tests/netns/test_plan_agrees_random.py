# SPDX-License-Identifier: GPL-2.0-or-later
"""`plan` and `apply` agree in random states of a provider: several of its parts damaged at once, and keys changed.

`make test` tries 30 states, `make soak STEPS=1000` that many. A failure prints its damage and its seed; `make soak
SEED=N STEPS=10` repeats it.
"""

from __future__ import annotations

import os
import random

import pytest

from tests.netns.test_plan_agrees import planned
from tests.support.eventually import eventually
from tests.support.qubes.provider import ENTRIES6, Provider

STATES = int(os.environ.get("GUESTNET_SOAK_STEPS") or 30)
SEED = int(os.environ["GUESTNET_SEED"])  # set by tests/conftest.py where the caller gave none
STATES_A_TEST = 10
SEEDS = [SEED + number for number in range(-(-STATES // STATES_A_TEST))]

FAMILIES = ("ip", "ip6")
VIFS = ("vif4.0", "vif5.0", "vif6.0")
DAMAGE = (
    *(f"nft flush chain {family} qubes {chain}" for family in FAMILIES for chain in ("antispoof", "forward", "input")),
    *(f"nft delete table {family} {table}" for family in FAMILIES for table in ("qubes", "qubes-limits")),
    *(f"nft flush set {family} qubes {name}" for family in FAMILIES for name in ("allowed", "downstream")),
    *(f"nft insert rule {family} qubes forward accept" for family in FAMILIES),
    *(f"nft add rule {family} qubes custom-forward counter accept" for family in FAMILIES),
    "nft flush set arp qubes allowed",
    "nft delete table arp qubes",
    "nft flush ruleset",
    "nft flush chain ip qubes dnat-dns",
    "nft flush chain ip qubes dns-reject",
    "nft 'add element ip qubes allowed { \"vif9.0\" . 10.137.0.9 }'",
    "nft 'add element ip qubes downstream { 10.137.0.99 }'",
    "nft 'add table ip mine { chain forward { type filter hook forward priority -5; }; }'",
    "nft delete table ip mine",
    *(f"ip link set {vif} down" for vif in VIFS),
    *(f"ip route flush dev {vif}" for vif in VIFS),
    *(f"ip -6 route flush dev {vif} proto 81" for vif in VIFS),
    *(f"ip neighbour flush dev {vif} nud permanent" for vif in VIFS),
    *(f"ip link set {vif} group 0" for vif in VIFS),
    *(f"ip link set {vif} mtu 1400" for vif in VIFS),
    *(f"echo 0 >/proc/sys/net/ipv4/conf/{vif}/rp_filter" for vif in VIFS),
    *(f"echo 1 >/proc/sys/net/ipv4/conf/{vif}/accept_redirects" for vif in VIFS),
    "ip address add 192.0.2.7/32 dev vif4.0",
    "echo 0 >/proc/sys/net/ipv4/ip_forward",
    "echo 1 >/proc/sys/net/ipv4/ip_forward",
    "echo 0 >/proc/sys/net/ipv6/conf/all/forwarding",
    "echo nameserver 192.0.2.53 >/etc/resolv.conf",
    "echo nameserver 192.0.2.54 >/etc/resolv.conf",
)
KEYS = {
    "/qubes-netvm-primary-dns": ("10.139.1.1", "10.139.1.3"),
    "/qubes-netvm-secondary-dns": ("10.139.1.2", ""),
    "/connected-ips": ("10.137.0.4 10.137.0.5 10.137.0.6", "10.137.0.4", "10.137.0.4 10.137.0.77", ""),
    "/qubes-netvm-gateway6": ("fe80::fcff:ffff:feff:ffff", ""),
}


@pytest.mark.soak
@pytest.mark.parametrize("seed", SEEDS)
def test_what_is_planned_in_a_random_state_is_done_and_then_nothing_is_planned(seed: int) -> None:
    host = Provider(ENTRIES6, agent=False)
    host.qube.guestnet("apply", check=False)
    for number in range(4, 7):
        host.attach(number)
    host.qube.guestnet("apply", check=False)
    chosen = random.Random(seed)
    for state in range(STATES_A_TEST):
        damage = chosen.sample(DAMAGE, chosen.randint(0, 4))
        keys = {key: chosen.choice(values) for key, values in KEYS.items() if chosen.random() < 0.2}
        where = f"state {state} of seed {seed}: {damage} {keys}"
        host.qube.run("sh", "-c", "\n".join((*damage, ":")))
        for key, value in keys.items():
            host.write(key, value)
        before = planned(host)
        assert planned(host) == before, f"to plan changes nothing: {where}"
        done = host.qube.guestnet("apply", check=False)
        assert done.returncode == 0, f"{where}\n{done.stderr}"
        assert set(done.stdout.splitlines()) == before, where
        eventually(lambda: planned(host) == set(), what=where, trouble=host.trouble)
