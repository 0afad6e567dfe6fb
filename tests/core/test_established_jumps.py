# SPDX-License-Identifier: GPL-2.0-or-later
"""Chains that others jump to, Docker's among them: what is in them counts against a flowtable too."""

from __future__ import annotations

import pytest

from qubes_guestnet.core.nft import flowtable
from qubes_guestnet.core.nft.foreign_chains import Chain
from tests.support.judge.nft_words import chain, hooked, shown, table

pytestmark = pytest.mark.behaviour("B62", "B134")

FORWARD = Chain("inet", "filter", "FORWARD", "filter", "forward", 0)
JUDGES = "chain inet filter FORWARD may refuse established connections"


def docker(policy: str = "accept", *users: str) -> tuple[Chain, str, dict[tuple[str, str, str], str]]:
    """The chain FORWARD as Docker's iptables makes it, and those that it jumps to."""
    rules = (
        "counter jump DOCKER-USER",
        "counter jump DOCKER-ISOLATION-STAGE-1",
        'oifname "docker0" ct state related,established counter accept',
        'oifname "docker0" counter jump DOCKER',
        'iifname "docker0" oifname != "docker0" counter accept',
        'iifname "docker0" oifname "docker0" counter accept',
    )
    others = {
        "DOCKER-USER": (*users, "counter return"),
        "DOCKER-ISOLATION-STAGE-1": (
            'iifname "docker0" oifname != "docker0" counter jump DOCKER-ISOLATION-STAGE-2',
            "counter return",
        ),
        "DOCKER-ISOLATION-STAGE-2": ('oifname "docker0" counter drop', "counter return"),
        "DOCKER": (
            'iifname != "docker0" oifname "docker0" ip daddr 172.17.0.2 tcp dport 80 counter accept',
            'iifname != "docker0" oifname "docker0" counter drop',
        ),
    }
    listed = {("ip", "filter", name): regular(name, *rules) for name, rules in others.items()}
    head = Chain("ip", "filter", "FORWARD", "filter", "forward", 0, policy)
    return head, table("ip filter", chain("FORWARD", hooked("forward", policy=policy), *rules)).strip(), listed


def regular(name: str, *rules: str) -> str:
    """`nft -s list chain` of a chain without a hook."""
    return table("ip filter", chain(name, "", *rules)).strip()


def asked(head: Chain, listing: str, chains: dict[tuple[str, str, str], str]) -> tuple[str, list[str]]:
    """What is against it, and names of chains that had to be listed too."""
    known: dict[tuple[str, str, str], str] = {}
    while missing := flowtable.jumped_to([(head, listing)], known):
        known.update({name: chains.get(name, "") for name in missing})
    return flowtable.obstacle([(head, listing)], regular=known), [name for _, _, name in known]


def test_chains_of_docker_are_followed() -> None:
    reason, listed = asked(*docker())
    assert reason == ""
    assert sorted(listed) == ["DOCKER", "DOCKER-ISOLATION-STAGE-1", "DOCKER-ISOLATION-STAGE-2", "DOCKER-USER"]


def test_the_policy_of_docker_is_named_with_the_chain_where_its_owner_may_accept() -> None:
    reason, _ = asked(*docker("drop", 'iifname "vif*" counter accept'))
    assert reason == (
        "chain ip filter FORWARD may refuse established connections: its policy is drop; "
        "put `ct state established,related accept` first into DOCKER-USER, which Docker leaves to you"
    )
    assert asked(*docker("drop", "ct state established,related accept"))[0] == ""


JUMPS = {
    "nothing in it": (("jump a",), {"a": ()}, ""),
    "accepted there": (("jump a", "drop"), {"a": ("ct state established accept",)}, ""),
    "everything accepted there": (("jump a", "drop"), {"a": ("accept",)}, ""),
    "everything returned there": (("jump a", "drop"), {"a": ("return", "accept")}, "`drop`; put"),
    "accepted there, but not for all": (
        ('iifname "x" jump a', "drop"),
        {"a": ("ct state established accept",)},
        "`drop`; put",
    ),
    "refused there": (("jump a",), {"a": ("counter", "tcp dport 25 drop")}, "`tcp dport 25 drop` in a; put"),
    "refused there, on the way out": (('oifname "eth0" jump a',), {"a": ("ip daddr 10.0.0.0/8 drop",)}, ""),
    "refused there, on the way out, within a limit": (
        ('oifname "eth0" limit rate 1/second jump a',),
        {"a": ("oifgroup 1 drop",)},
        "`oifgroup 1 drop` in a; put",
    ),
    "accepted there within a limit, refused later": (
        ("jump a", "oifgroup 1 drop"),
        {"a": ("limit rate 1/second accept",)},
        "`oifgroup 1 drop`; put",
    ),
    "two steps": (("jump a",), {"a": ("jump b",), "b": ("meta mark set 1",)}, "`meta mark set 1` in b; put"),
    "one step further, and no more": (("goto a",), {"a": ("counter",)}, ""),
    "refused one step further": (("goto a",), {"a": ("drop",)}, "`drop` in a; put"),
    "not there": (("ip saddr 10.137.0.5 jump a",), {}, "cannot be read: no such chain"),
    "not understood there": (("jump a",), {"a": ('drop comment "x',)}, "cannot be read: a quotation mark is missing"),
    "a name that nft would take for more": (("jump a;b",), {}, "`jump a;b`; put"),
    "first packets alone": (("ct state new jump a",), {"a": ("drop",)}, ""),
}


@pytest.mark.parametrize(("rules", "chains", "reason"), JUMPS.values(), ids=JUMPS.keys())
def test_jumps(rules: tuple[str, ...], chains: dict[str, tuple[str, ...]], reason: str) -> None:
    listed = {("inet", "filter", name): regular(name, *rules) for name, rules in chains.items()}
    found, _ = asked(FORWARD, shown(*rules), listed)
    assert found == "" if not reason else reason in found


def test_a_goto_and_a_return_come_to_the_policy() -> None:
    strict = FORWARD._replace(policy="drop")
    for rule in ('iifname "x" goto a', 'iifname "x" return'):
        listing = shown(rule, "ct state established accept", policy="drop")
        assert asked(strict, listing, {("inet", "filter", "a"): regular("a")})[0].startswith(f"{JUDGES}: its rule")


def test_only_so_many_chains_are_listed() -> None:
    many = shown(*(f"ip saddr 10.137.0.{n} jump q{n}" for n in range(70)))
    assert asked(FORWARD, many, {}) == (
        f"{JUDGES}: its rule `ip saddr 10.137.0.0 jump q0`; "
        "put `ct state established,related accept` before it, or restrict it with `ct state new`",
        [],
    )


def test_chains_that_jump_to_each_other_very_often_are_given_up() -> None:
    listed = {("inet", "filter", f"c{n}"): regular(f"c{n}", *[f"jump c{n + 1}"] * 4) for n in range(8)}
    listed["inet", "filter", "c8"] = regular("c8", "counter")
    assert asked(FORWARD, shown("jump c0"), listed)[0].startswith(f"{JUDGES}: its rule `jump c")
