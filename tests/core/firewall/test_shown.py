# SPDX-License-Identifier: GPL-2.0-or-later
"""What `firewall show` tells of a list, as values, lines and data."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_address
from typing import Any

import pytest

from qubes_guestnet.core.firewall import shown
from qubes_guestnet.core.firewall.binding import bind
from qubes_guestnet.core.firewall.entries import by_address
from qubes_guestnet.core.firewall.listing import Element, Listed
from qubes_guestnet.core.firewall.name_cache import Cache, Entry, Held
from qubes_guestnet.core.firewall.name_messages import Question
from qubes_guestnet.core.firewall.ruleset import chain_of
from qubes_guestnet.core.firewall.shown import Facts, ListShown
from qubes_guestnet.core.render import firewall_lists
from qubes_guestnet.core.render.firewall_lists import ANOTHER, OFF, OURS
from tests.core.firewall.made import FOUR, SIX, answers, ruleset

ADDRESS, CHAIN = ip_address(FOUR), chain_of(ip_address(FOUR))
ENTRIES = (
    "action=accept dsthost=a.org proto=tcp",
    "action=drop dsthost=b.org",
    "action=accept dsthost=a.org proto=tcp dstports=80-80",
    "action=accept specialtarget=dns proto=icmp",
)
NEW = {"a.org": ["192.0.2.1", "192.0.2.2"]}
CACHE = Cache(
    (),
    {
        Question(4, "a.org"): Entry(
            (Held(ip_address("192.0.2.1"), 90, 300), Held(ip_address("192.0.2.2"), 40, 60)), answered=90
        ),
        Question(4, "b.org"): Entry(failures=2, reason="timeout"),
    },
)


def stored(*entries: str, address: str = FOUR, policy: str = "drop") -> Any:
    base = f"/qubes-firewall/{address}"
    raw = {f"{base}/{number:04}": each.encode() for number, each in enumerate(entries)}
    return by_address({f"{base}/policy": policy.encode(), **raw, base: b""})


def facts(*entries: str, names: Mapping[str, list[str]] = NEW, **changed: Any) -> Facts:
    """These entries, in force."""
    bound = bind(ruleset(*entries), answers(4, names))
    rules = (*(f'counter accept comment "{comment}"' for comment in bound.comments),)
    element = Element(f"jump {CHAIN}", bound.signature)
    table = Listed({CHAIN: rules}, {ADDRESS: element}, {}, frozenset({ip_address("192.0.2.53")}))
    made = Facts(stored(*entries), {4: table}, {4: {CHAIN: {"0000": 5, "0001": 0, "policy": 7}}}, CACHE, 100)
    return made._replace(**changed)


def one(given: Facts, address: str = FOUR) -> ListShown:
    (found,) = shown.lists((ip_address(address),), given)
    return found


def text(given: Facts, enforcer: str = OURS) -> list[str]:
    lists = shown.lists((ADDRESS,), given)
    return [str(each) for each in firewall_lists.as_text(lists, {ADDRESS: "vif4.0"}, enforcer)]


def test_a_list_in_force_with_its_packets_and_names() -> None:
    assert text(facts(*ENTRIES)) == [
        "vif4.0 10.137.0.5: in force",
        "  /qubes-firewall/10.137.0.5/0003: 'action=accept specialtarget=dns proto=icmp': DNS uses TCP and "
        "UDP, port 53: the rule matches nothing; remove it, or its proto and dstports",
        "  0000  action=accept dsthost=a.org proto=tcp  5 packets",
        "  0001  action=drop dsthost=b.org  0 packets"
        "  # widened to every destination: not all addresses of b.org are known",
        "  0002  action=accept dsthost=a.org proto=tcp dstports=80-80"
        "  # never decides: entry 0000 matches all of its packets",
        "  0003  action=accept specialtarget=dns proto=icmp  # matches nothing: DNS uses TCP and UDP, port 53",
        "  policy drop  7 packets",
        "  a.org: 192.0.2.1 (received 10 s ago, time to live 300 s),"
        " 192.0.2.2 (not in the last answer; received 60 s ago, time to live 60 s)",
        "  b.org: not known",
        "    not known yet (the name servers do not answer): an accept entry with it matches nothing, a drop entry "
        "every destination; the look-up is repeated",
    ]


@pytest.mark.parametrize(
    ("entry", "names", "note"),
    [
        ("action=accept dsthost=c.org", {}, "matches nothing: c.org is unknown"),
        ("action=drop dsthost=c.org", {}, "widened to every destination: not all addresses of c.org are known"),
        ("action=accept dsthost=a..b", {}, "the name is never looked up: it matches nothing"),
        ("action=drop dsthost=a..b", {}, "it matches every destination"),
        (
            "action=accept dsthost=c.org",
            {"c.org": frozenset({ip_address("192.0.2.9")})},
            "not all addresses of c.org are known",
        ),
        ("action=accept", {}, ""),
    ],
)
def test_notes(entry: str, names: Any, note: str) -> None:
    given = facts(entry)
    table = (given.listed or {})[4]._replace(names=names)
    assert one(given._replace(listed={4: table})).entries[0].note == note


def test_a_name_that_no_cache_has_shows_what_is_loaded() -> None:
    given = facts("action=accept dsthost=c.org")
    table = (given.listed or {})[4]._replace(names={"c.org": frozenset({ip_address("192.0.2.9")})})
    found = one(given._replace(listed={4: table}, cache=Cache()))
    assert [str(each.address) for each in found.names[0].addresses] == ["192.0.2.9"]
    assert firewall_lists.as_data((found,), {}, OURS)["lists"][0]["names"] == [
        {
            "name": "c.org", "known": True, "trouble": None,
            "addresses": [{"address": "192.0.2.9", "heard": None, "ttl": None, "current": True}],
        }
    ]  # fmt: skip
    assert "  c.org: 192.0.2.9" in text(given._replace(listed={4: table}, cache=Cache()))
    nothing = one(given._replace(listed=None)).names[0]
    assert (nothing.known, nothing.trouble) == (False, "not looked up yet")
    empty = Cache((), {Question(4, "c.org"): Entry((), answered=90)})
    assert "  c.org: no address" in text(given._replace(cache=empty))


def test_entries_that_are_not_in_force_are_said_so_and_have_no_counts() -> None:
    given = facts("action=accept")._replace(stored=stored("action=drop"))
    assert text(given) == [
        "vif4.0 10.137.0.5: in force; the entries in QubesDB, shown below, are not those in force yet",
        "  0000  action=drop",
        "  policy drop",
    ]


def test_a_list_with_an_error_shows_all_of_it() -> None:
    given = facts("action=accept foo=1")
    assert text(given) == [
        "vif4.0 10.137.0.5: BLOCKED: everything is refused",
        "  /qubes-firewall/10.137.0.5/0000: 'action=accept foo=1': the option 'foo' is not known; all traffic of this "
        "address is refused until it is corrected in dom0: qvm-firewall",
        "  0000  action=accept foo=1",
        "  policy drop",
    ]
    assert one(given._replace(packets={4: {CHAIN: {"blocked": 1}}})).policy == 1
    assert text(given._replace(packets={4: {CHAIN: {"blocked": 1}}}))[-1] == "  policy drop  1 packet"


def test_dom0_has_written_nothing_yet() -> None:
    given = facts()._replace(stored=by_address({}), listed={})
    assert text(given) == [
        "vif4.0 10.137.0.5: waiting: dom0 has committed no list since its vif appeared, so nothing passes"
    ]
    assert one(given, SIX).same is None


def test_without_root_and_where_another_program_enforces_them() -> None:
    given = facts("action=accept")
    unseen = given._replace(listed=None)
    assert text(unseen)[0] == "vif4.0 10.137.0.5: run as root to see whether it is in force"
    other = given._replace(enforced=False)
    assert text(other, ANOTHER)[1:] == ["vif4.0 10.137.0.5: 1 entries", "  0000  action=accept", "  policy drop"]
    assert "NO effect" in text(other, OFF)[0]
    assert one(other).condition is None


def test_a_name_server_that_an_entry_refuses_before_it_is_allowed() -> None:
    given = facts("action=drop dst4=192.0.2.0/24", "action=accept specialtarget=dns")
    assert "  entry 0000 refuses the name server 192.0.2.53 before another one allows it (specialtarget=dns)" in text(
        given
    )


def test_a_name_with_too_many_addresses_is_told() -> None:
    many = tuple(Held(ip_address(f"192.0.2.{number}"), 90, 300) for number in range(70))
    cache = Cache((), {Question(4, "a.org"): Entry(many, answered=90)})
    assert any("70 addresses" in words for words in text(facts("action=accept dsthost=a.org")._replace(cache=cache)))


def test_what_is_no_entry_of_a_list_is_passed_over() -> None:
    entries = {"policy": b"drop", "1": b"action=accept", "odd": b"", "100000": b"", "\xb2": b""}
    given = facts()._replace(stored=facts().stored._replace(sets={ADDRESS: entries}))
    assert [(each.number, each.text) for each in one(given).entries] == [(1, "action=accept")]
    assert shown.words(b"\xff\x1b[0m") == "\\xff\\x1b[0m"


def test_the_names_of_several_lists_are_known_together() -> None:
    first, second = {"0000": b"action=accept dsthost=a.org"}, {"0000": b"action=accept dsthost=b.org"}
    stored = by_address({
        f"/qubes-firewall/{address}/{key}": value
        for address, written in (("10.137.0.4", first), ("10.137.0.5", second))
        for key, value in (("policy", b"drop"), *written.items())
    })  # fmt: skip
    held = {
        Question(4, host): Entry((Held(ip_address("192.0.2.9"), 90, 60),), answered=90) for host in ("a.org", "b.org")
    }
    facts = Facts(stored, None, cache=Cache((), held))
    assert set(shown.names((ip_address("10.137.0.4"), ip_address("10.137.0.5")), facts)) == {(4, "a.org"), (4, "b.org")}
    assert set(shown.names((ip_address("10.137.0.5"),), facts)) == {(4, "b.org")}
