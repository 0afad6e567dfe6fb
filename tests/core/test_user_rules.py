# SPDX-License-Identifier: GPL-2.0-or-later
"""What others have in our tables: found, lost, put back; from what nft 1.0.6 prints."""

from __future__ import annotations

import pytest

from qubes_guestnet.core.nft import listing_blocks, rules_text
from qubes_guestnet.core.provider import user_rules
from qubes_guestnet.core.provider.user_rules import Kept

pytestmark = pytest.mark.behaviour("B125")

HOOKED = ("prerouting", "antispoof", "egress", "postrouting", "input", "forward")


def chain(name: str, *rules: str, head: str = "") -> str:
    return f"\tchain {name} {{\n" + "".join(f"\t\t{line}\n" for line in ((head,) if head else ()) + rules) + "\t}\n"


def table(family: str, *blocks: str, own: str = "") -> str:
    return f"table {family} qubes {{\n{own}" + "\n".join(blocks) + "}"


def whole(family: str, *users: str) -> str:
    """Ours with all rules, as many as the text has, and what users have."""
    lines = rules_text.base(ipv6=True).splitlines()
    begin = f"add rule {family} qubes "
    chains = [
        chain(name, *(line.removeprefix(f"{begin}{name} ") for line in lines if line.startswith(f"{begin}{name} ")))
        for name in HOOKED
    ]
    sets = [f"\tset {name} {{\n\t\ttype ipv4_addr\n\t}}\n" for name in ("allowed", "downstream")]
    return table(family, *sets, *chains, chain("dnat-dns"), chain("custom-input"), *users)


SWITCH = chain("custom-forward", "counter drop", 'oifname "eth0" drop')
NAMED = "\tset lan {\n\t\ttype ipv4_addr\n\t\telements = { 10.0.0.1 }\n\t}\n"
ARP = table("arp", "\tset allowed {\n\t\ttype ifname . ipv4_addr . ether_addr\n\t}\n", chain("input", "counter drop"))
BEFORE = {"ip": whole("ip", SWITCH, NAMED), "ip6": whole("ip6", chain("custom-forward")), "arp": ARP}
TABLES = (
    "ip qubes",
    "ip6 qubes",
    "ip qubes-limits",
    "ip6 qubes-limits",
    "arp qubes",
    "inet qubes-guard",
    "inet qubes-offload",
    "inet mine",
)
KEPT = Kept((("ip", "chain custom-forward {", SWITCH), ("ip", "set lan {", NAMED)), ("inet mine",))
EMPTY = {"ip": "", "ip6": "", "arp": ""}


def test_what_others_have_is_all_but_ours_and_what_is_empty() -> None:
    assert user_rules.found(BEFORE, TABLES) == KEPT


def test_it_is_kept_in_a_file_that_says_the_same() -> None:
    assert user_rules.parse(user_rules.render(KEPT)) == KEPT
    assert user_rules.parse(user_rules.render(Kept())) == Kept()
    both = Kept((*KEPT.blocks, ("ip6", "chain custom-input {", chain("custom-input", "accept"))), ("ip nat",))
    assert user_rules.parse(user_rules.render(both)) == both
    assert user_rules.parse(b"\xff nonsense\ntable ip qubes {\n") == Kept()


def large(kind: str, name: str, count: int) -> str:
    """A set or map whose listing has about 14 bytes an element."""
    elements = ",\n\t\t\t     ".join(f"10.0.{n >> 8}.{n & 255}" for n in range(count))
    return f"\t{kind} {name} {{\n\t\ttype ipv4_addr\n\t\telements = {{ {elements} }}\n\t}}\n"


def bare(kind: str, name: str) -> str:
    return f"\t{kind} {name} {{\n\t\ttype ipv4_addr\n\t}}\n"


LONG = chain("custom-forward", *(f"ip daddr 10.0.{n >> 8}.{n & 255} drop" for n in range(12000)))
BIG, HALF = large("set", "big", 14000), large("set", "half", 6000)
TOO_LARGE = {
    "a chain alone": ((LONG,), (LONG,), ()),
    "a set": ((BIG, SWITCH), (bare("set", "big"), SWITCH), ("set big {",)),
    "a map": ((large("map", "big", 14000), SWITCH), (bare("map", "big"), SWITCH), ("map big {",)),
    "a small set beside it": ((BIG, NAMED), (bare("set", "big"), NAMED), ("set big {",)),
    "a set beside a long chain": ((NAMED, LONG), (NAMED, LONG), ()),
    "two that fit one by one": (
        (HALF, large("set", "more", 7000)), (HALF, bare("set", "more")), ("set more {",)),
}  # fmt: skip


@pytest.mark.parametrize(("users", "kept", "emptied"), TOO_LARGE.values(), ids=TOO_LARGE.keys())
def test_only_the_elements_of_sets_that_are_too_large_are_left_out_and_these_are_named(
    users: tuple[str, ...], kept: tuple[str, ...], emptied: tuple[str, ...]
) -> None:
    before = {"ip": whole("ip", *users), "ip6": ""}
    found = user_rules.found(before, TABLES)
    assert [text for _, _, text in found.blocks] == list(kept)
    assert found.emptied == tuple(("ip", head) for head in emptied)
    assert user_rules.parse(user_rules.render(found)) == found
    assert user_rules.lost(found, EMPTY, ()) == found
    assert user_rules.lost(found, before, TABLES) == Kept()


HOLDING = {
    "a chain": (chain("mine", "drop"), True),
    "a chain without rules": (chain("mine"), False),
    "one with a hook": (chain("mine", head="type filter hook forward priority filter; policy drop;"), True),
    "a set": (NAMED, True),
    "a set without elements": (bare("set", "lan"), False),
    "a set too large to keep": (BIG, True),
    "a map without elements": ("\tmap to {\n\t\ttype ipv4_addr : verdict\n\t}\n", False),
    "a counter": ("\tcounter mine {\n\t}\n", True),
}


@pytest.mark.parametrize(("block", "expected"), HOLDING.values(), ids=HOLDING.keys())
def test_what_is_there_without_its_content_is_not_back(block: str, expected: bool) -> None:
    assert bool(user_rules.holding(user_rules.found({"ip": whole("ip", block), "ip6": ""}, ()))) == expected


LOST = {
    "all": (EMPTY, (), KEPT),
    "one family": ({**BEFORE, "ip": ""}, TABLES, KEPT._replace(tables=())),
    "the other one": ({**BEFORE, "ip6": ""}, TABLES, Kept()),
    "all rules of a table": ({**BEFORE, "ip": table("ip", *map(chain, HOOKED), NAMED)}, TABLES,
                             Kept(KEPT.blocks[:1], ())),
    "a table made anew by others": ({**BEFORE, "ip": table("ip", SWITCH)}, TABLES, Kept(KEPT.blocks[1:], ())),
    "one with ours loaded again by others": (EMPTY, ("ip qubes", "inet mine"), KEPT._replace(tables=())),
    "one chain of ours": ({**BEFORE, "ip": BEFORE["ip"].replace("masquerade", "accept")}, (), Kept()),
    "what its owner took away alone": ({**BEFORE, "ip": whole("ip", chain("custom-forward"))}, (), Kept()),
}  # fmt: skip


@pytest.mark.parametrize(("now", "tables", "expected"), LOST.values(), ids=LOST.keys())
def test_what_went_together_with_our_rules_is_lost(
    now: dict[str, str], tables: tuple[str, ...], expected: Kept
) -> None:
    assert user_rules.lost(KEPT, now, tables) == expected


def test_the_text_puts_blocks_back_into_their_tables() -> None:
    assert user_rules.text(KEPT.blocks) == f"table ip qubes {{\n{SWITCH}{NAMED}}}\n"
    both = (KEPT.blocks[0], ("ip6", "chain x {", chain("x")), KEPT.blocks[1])
    assert user_rules.text(both) == f"table ip qubes {{\n{SWITCH}{NAMED}}}\ntable ip6 qubes {{\n{chain('x')}}}\n"
    assert user_rules.text(()) == ""
    assert user_rules.words(KEPT.blocks) == "ip qubes chain custom-forward, ip qubes set lan"


def test_one_by_one_chains_come_first_without_rules() -> None:
    hooked = chain("late", "drop", head="type filter hook forward priority filter; policy accept;")
    blocks = tuple(("ip", f"{text.splitlines()[0].strip()}", text) for text in (NAMED, SWITCH, hooked))
    assert user_rules.one_by_one(blocks) == (
        (f"table ip qubes {{\n{chain('custom-forward')}}}\n", blocks[1]),
        *((f"table ip qubes {{\n{block[2]}}}\n", block) for block in blocks),
    )


PASSABLE = {
    "all is there": (BEFORE, False),
    "nothing is there": (EMPTY, True),
    "no translation": ({**BEFORE, "ip": BEFORE["ip"].replace("\t\tmasquerade\n", "")}, True),
    "another rule in its place": ({**BEFORE, "ip": BEFORE["ip"].replace("masquerade", "accept")}, True),
    "the ports of this qube alone": ({**BEFORE, "ip6": BEFORE["ip6"].replace(
        listing_blocks.taken_apart(BEFORE["ip6"])[1]["chain input {"],
        chain("input"))}, False),
    "one rule more": ({**BEFORE, "ip": BEFORE["ip"].replace("\t\tmasquerade", "\t\tcounter\n\t\tmasquerade")}, False),
    "a table that sleeps": ({**BEFORE, "ip": BEFORE["ip"].replace("{\n", "{\n\tflags dormant\n", 1)}, True),
}  # fmt: skip


@pytest.mark.behaviour("B126")
@pytest.mark.parametrize(("now", "expected"), PASSABLE.values(), ids=PASSABLE.keys())
def test_whether_something_may_have_passed_untranslated(now: dict[str, str], expected: bool) -> None:
    assert user_rules.passable(now, ipv6=True) == expected


def test_blocks_are_chosen_in_their_order_and_all_or_none() -> None:
    chosen = listing_blocks.chosen(BEFORE, "chain", (("ip", "custom-forward"), ("ip6", "custom-forward")))
    assert chosen == f"table ip qubes {{\n{SWITCH}}}\ntable ip6 qubes {{\n{chain('custom-forward')}}}\n"
    assert listing_blocks.chosen(BEFORE, "chain", (("ip", "custom-forward"), ("ip6", "nowhere"))) == ""
    some = listing_blocks.there(BEFORE, "chain", (("ip", "nowhere"), ("ip", "custom-forward")))
    assert some == listing_blocks.chosen(BEFORE, "chain", (("ip", "custom-forward"),))
    assert listing_blocks.there(BEFORE, "chain", ()) == ""
    assert listing_blocks.rules(chain("x", "drop", head="type filter hook input priority filter; policy drop;")) == (
        "drop",
    )
