# SPDX-License-Identifier: GPL-2.0-or-later
"""The model of nftables that the property tests use (`tests/core/ruleset.py`) beside the real one.

The same random sequence of our texts, and of what other programs change, goes to both: each takes and refuses the same,
and has the same chains, number of rules, and elements afterwards.
"""

from __future__ import annotations

import ipaddress
import json
import random
import subprocess
from collections.abc import Iterable

import pytest

from qubes_guestnet.core.dns import upstream_servers
from qubes_guestnet.core.endpoint import Endpoint
from qubes_guestnet.core.firewall import ruleset as firewall_rules
from qubes_guestnet.core.nft import limits, rules_text
from qubes_guestnet.system.nft.program import Refused
from tests.core.firewall import made
from tests.core.ruleset import Ruleset

ADDRESSES = tuple(map(ipaddress.ip_address, ("10.137.0.4", "10.137.0.5", "fd09::4")))
V = (ipaddress.IPv4Address("10.139.1.1"), ipaddress.IPv4Address("10.139.1.2"))
SERVERS = (Endpoint(ipaddress.ip_address("192.0.2.1")), Endpoint(ipaddress.ip_address("10.139.1.1")))
MAC = "00:16:3e:5e:6c:04"


def texts() -> tuple[str, ...]:
    """What the program loads, and what other programs do to it."""
    vifs = ("vif4.0", "vif5.0")
    found = [
        rules_text.base(ipv6=on, refuse6=refused) for on, refused in ((True, False), (False, False), (False, True))
    ]
    for name in vifs:
        found += [
            rules_text.attach(name, ADDRESSES, MAC),
            rules_text.detach(name, ADDRESSES[:1], ADDRESSES[1:], MAC),
            limits.attach(name, (4, 6), limits.Limits()),
            limits.attach(name, (4,), limits.Limits(100, 1000)),
            limits.detach(name),
            rules_text.attach(name, ADDRESSES[:1], "") + limits.attach(name, (4,), limits.Limits()),
        ]
    for servers in (SERVERS[:1], SERVERS, ()):
        found.append(rules_text.dnat(upstream_servers.pairs(V, servers), V, servers))
    found += [rules_text.unload(), rules_text.downstream(ADDRESSES[:2], ADDRESSES[2:])]
    return (
        *found,
        'delete element ip qubes allowed { "vif4.0" . 10.137.0.4 }\n',
        "flush set ip qubes downstream\n",
        "flush chain ip qubes antispoof\n",
        "add rule ip qubes custom-forward jump nowhere\n",
        "add rule ip qubes custom-forward ip saddr @nothing drop\n",
        "add rule ip qubes custom-forward jump dns-reject\n",
        "delete chain ip qubes antispoof\n",
        "delete set ip qubes allowed\n",
        "delete table ip6 qubes-limits\n",
        "delete chain ip qubes-limits vif4.0\n",
        "add element ip qubes downstream { 10.9.0.9 }\nadd element ip qubes missing { 10.9.0.9 }\n",
        "add chain ip qubes dnat-dns { type filter hook forward priority 0; policy accept; }\n",
    )


def firewall() -> list[str]:
    """What is loaded of the firewall of single qubes, and what another program does to it."""
    named = made.bound("action=accept dsthost=a.org proto=tcp", "action=drop proto=udp", a_org=["192.0.2.1"])
    four, six = made.bound("action=accept"), made.bound("action=accept dsthost=a.org", address=made.SIX)
    tables = "".join(firewall_rules.tables(version, firewall_rules.CHAINS) for version in (4, 6))
    address = named.ruleset.address
    return [
        tables,
        tables + firewall_rules.name(4, "a.org", named.of("a.org").addresses, ()) + firewall_rules.qube(named),
        firewall_rules.qube(four),
        firewall_rules.qube(named, displaces=True),
        firewall_rules.name(6, "a.org", (), ()) + firewall_rules.qube(six),
        firewall_rules.name(4, "a.org", (ADDRESSES[0],), (ADDRESSES[1],)),
        firewall_rules.without_element(address),
        firewall_rules.without_element(address) + firewall_rules.without_chain(4, "qbs-10-137-0-5", keep=False),
        firewall_rules.without_chain(4, "qbs-10-137-0-5", keep=True),
        firewall_rules.without_name(4, "a.org"),
        firewall_rules.dns_servers(4, ADDRESSES[:2]),
        "add rule ip qubes-firewall qubes-forward ip saddr 10.9.9.9 jump qbs-10-137-0-5\n",
        "flush chain ip qubes-firewall forward\n",
    ]


def load(text: str) -> bool:
    """Whether the real one takes it."""
    done = subprocess.run(["nft", "-f", "-"], input=text, text=True, capture_output=True, timeout=60)
    return done.returncode == 0


def modelled(model: Ruleset, text: str) -> bool:
    try:
        model.load(text)
    except Refused:
        return False
    return True


def real() -> dict[str, object]:
    """Chains with the number of their rules, and sets with their elements."""
    done = subprocess.run(["nft", "-j", "list", "ruleset"], text=True, capture_output=True, timeout=60, check=True)
    found: dict[str, object] = {}
    for entry in json.loads(done.stdout)["nftables"]:
        for kind, each in entry.items():
            where = f"{each.get('family')} {each.get('table')}"
            if kind == "chain":
                found[f"{where} {each['name']}"] = 0
            elif kind == "rule":
                found[f"{where} {each['chain']}"] = int(str(found[f"{where} {each['chain']}"])) + 1
            elif kind in ("set", "map"):
                found[f"{where} @{each['name']}"] = sorted(map(_key, each.get("elem", [])))
    return found


def _key(element: object) -> str:
    """Of an element as nft prints it in JSON; of that of a map the key."""
    if isinstance(element, list):
        return _key(element[0])
    if isinstance(element, dict):
        if "elem" in element:
            return _key(element["elem"]["val"])
        return " . ".join(map(str, element["concat"]))
    return str(element)


def of(model: Ruleset) -> dict[str, object]:
    found: dict[str, object] = {}
    for (family, table), each in model.tables.items():
        found |= {f"{family} {table} {name}": len(chain.rules) for name, chain in each.chains.items()}
        found |= {
            f"{family} {table} @{name}": sorted(key.replace('"', "") for key in own.elements)
            for name, own in each.sets.items()
        }
    return found


def told(items: Iterable[str]) -> str:
    return "".join(f"--\n{each}" for each in items)


@pytest.mark.parametrize("seed", range(12))
def test_the_model_takes_refuses_and_holds_what_the_kernel_does(seed: int) -> None:
    compared(seed, rules_text.base(ipv6=True), texts())


@pytest.mark.parametrize("seed", range(6))
def test_the_model_does_so_for_the_firewall_of_single_qubes(seed: int) -> None:
    compared(seed, firewall()[0], tuple(firewall()))


def compared(seed: int, first: str, others: tuple[str, ...]) -> None:
    """Load random texts into both, one after the other."""
    chance, model, done = random.Random(seed), Ruleset(), list[str]()
    for text in (first, *(chance.choice(others) for _ in range(25))):
        done.append(text)
        assert modelled(model, text) == load(text), told(done[-3:])
        assert of(model) == real(), told(done[-3:])
