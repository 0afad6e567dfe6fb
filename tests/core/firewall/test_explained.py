# SPDX-License-Identifier: GPL-2.0-or-later
"""What each entry says about a packet, and the lines and data of `firewall test`."""

from __future__ import annotations

import re
from ipaddress import ip_address
from typing import Any

import pytest

from qubes_guestnet.core.firewall import shown
from qubes_guestnet.core.firewall.name_cache import Entry, Held
from qubes_guestnet.core.firewall.name_messages import NXDOMAIN, Question
from qubes_guestnet.core.nft.tables import FIREWALL
from qubes_guestnet.core.packet import way
from qubes_guestnet.core.packet.chains import Place
from qubes_guestnet.core.packet.loaded import Rule
from qubes_guestnet.core.packet.match import Asked, Device, Packet
from qubes_guestnet.core.packet.way import DROPPED, PASSES, REFUSED, UNCLEAR, Step, Walked
from qubes_guestnet.core.render import firewall_way
from qubes_guestnet.core.render.firewall_way import Judged
from tests.core.firewall.made import FOUR
from tests.core.firewall.test_shown import ADDRESS, CACHE, facts

WORLD = ip_address("192.0.2.1")
CHAIN = ("ip", FIREWALL, "qbs-10-137-0-5")
KNOWN = CACHE._replace(
    entries={
        **CACHE.entries,
        Question(4, "many.org"): Entry((Held(ip_address("192.0.2.7"), 90, 300),), answered=90, whole=False),
        Question(4, "gone.org"): Entry(reason=NXDOMAIN, missing=90),
        Question(4, "odd.org"): Entry(reason="refused"),
    }
)
UNSURE = re.compile(r"known|looked|exist")
ODD = Place(("ip", "mine", "c"), Rule("meta skuid 0 drop", "", ()))


def packet(protocol: int = 6, port: int | None = 443, icmp_type: int | None = None, to: Any = WORLD) -> Packet:
    source = ip_address(FOUR)
    return Packet(Device("vif4.0", 2), source, to, protocol, port, icmp_type, Asked(source, to, port))


def judged(*entries: str, by: Step | None = None, outcome: str = PASSES, sent: Packet | None = None) -> Judged:
    sent = sent or packet()
    (listed,) = shown.lists((ADDRESS,), facts(*entries, cache=KNOWN)) if entries else (None,)
    said = firewall_way.explained(listed, sent, frozenset({ip_address("192.0.2.53")}))
    steps = (Step("route", PASSES, "out by eth0"), *((by,) if by is not None else ()))
    return Judged(sent, Walked(steps, sent, outcome, by), said, listed, ("a note",))


def step(comment: str | None, outcome: str = REFUSED, chain: tuple[str, str, str] = CHAIN, **more: Any) -> Step:
    rule = Rule("counter reject", comment, ()) if comment is not None else None
    return Step("firewall", outcome, "words", Place(chain, rule), **more)


@pytest.mark.parametrize(
    ("entry", "sent", "why"),
    [
        ("action=drop dst4=10.0.0.0/8", packet(), "another destination"),
        ("action=drop proto=udp", packet(), "another protocol"),
        ("action=drop proto=icmp icmptype=8", packet(1, None, 13), "another ICMP type"),
        ("action=accept specialtarget=dns", packet(1, None, 8), "not a DNS query"),
        ("action=accept specialtarget=dns", packet(), "not a DNS query"),
        ("action=accept specialtarget=dns", packet(17, 53), "the destination is not a name server of this provider"),
        ("action=accept proto=tcp dstports=80-80", packet(), "another port"),
        ("action=accept dstports=80-80", packet(47, None), "another port"),
        ("action=accept dsthost=a.org", packet(to=ip_address("192.0.2.9")), "192.0.2.9 is not an address of a.org"),
        ("action=accept dsthost=many.org", packet(), "not all addresses of many.org are known"),
        ("action=drop dsthost=b.org", packet(), "b.org is not known yet"),
        ("action=drop dsthost=new.org", packet(), "new.org is not known yet"),
        ("action=accept dsthost=gone.org", packet(), "gone.org does not exist"),
        ("action=drop dsthost=odd.org", packet(), "odd.org is never looked up"),
        ("action=drop dsthost=a..b", packet(), "the name is never looked up"),
        ("action=accept dsthost=a.org", packet(), ""),
    ],
)
def test_why_an_entry_does_not_match(entry: str, sent: Packet, why: str) -> None:
    (found,) = judged(entry, sent=sent).explained
    assert found.why == why
    assert found.matches is (True if not why else None if UNSURE.search(why) else False)


def test_entries_behind_the_one_that_decides_are_left_out() -> None:
    assert [each.matches for each in judged("action=drop proto=udp", "action=accept", "action=drop").explained] == [
        False,
        True,
    ]
    assert judged("odd").explained == ()


def test_the_lines() -> None:
    given = judged("action=drop dsthost=b.org", "action=drop proto=udp", "action=accept", by=step("0002", PASSES))
    assert [str(each) for each in firewall_way.as_text(given)] == [
        "10.137.0.5 (vif4.0) to 192.0.2.1 tcp port 443",
        "  route               passes   out by eth0",
        "  firewall            passes   words",
        "    0000  action=drop dsthost=b.org: b.org is not known yet",
        "    0001  action=drop proto=udp: another protocol",
        "    0002  action=accept: matches",
        "                      a note",
        "PASSES: entry 0002 of the list of 10.137.0.5 accepts it",
    ]
    alone = judged(by=step("0002", PASSES, doubts=(ODD,)), outcome=UNCLEAR, sent=packet(99, None))
    assert [str(each) for each in firewall_way.as_text(alone)][-3:] == [
        "    not understood: ip mine c: meta skuid 0 drop",
        "                      a note",
        "UNCLEAR: a rule that this command does not understand decides: ip mine c: meta skuid 0 drop",
    ]
    assert "192.0.2.1 protocol 99" in str(next(iter(firewall_way.as_text(alone))))
    ping = next(iter(firewall_way.as_text(judged(sent=packet(1, None, 8)))))
    assert str(ping).endswith("192.0.2.1 icmp type 8")


@pytest.mark.parametrize(
    ("by", "outcome", "words"),
    [
        (None, PASSES, "no rule refuses it"),
        (step("", PASSES, ("ip", "qubes", "c")), PASSES, "no rule for 10.137.0.5 refuses it (words)"),
        (step("", PASSES, ("ip", FIREWALL, "forward")), PASSES, "no rule for 10.137.0.5 refuses it (words)"),
        (
            step("policy"), REFUSED,
            "no entry of the list of 10.137.0.5 matches, and its policy refuses it; the qube is told at once",
        ),
        (step("0003"), REFUSED, "entry 0003 of the list of 10.137.0.5 refuses it; the qube is told at once"),
        (step("blocked"), REFUSED, "the list of 10.137.0.5 has an error, which refuses it; the qube is told at once"),
        (
            step(None, DROPPED, ("ip", FIREWALL, "forward")), DROPPED,
            "the table qubes-firewall, which has no list of 10.137.0.5 (dom0 has committed none since its vif "
            "appeared), drops it; the qube gets no answer",
        ),
        (step("", DROPPED, ("ip", "qubes", "c")), DROPPED, "firewall: words; the qube gets no answer"),
        (Step("route", REFUSED, "no route"), REFUSED, "route: no route; the qube is told at once"),
        (Step("route", UNCLEAR, "words"), UNCLEAR, "a rule that this command does not understand decides: words"),
    ],
)  # fmt: skip
def test_the_reason(by: Step | None, outcome: str, words: str) -> None:
    assert firewall_way.reason(judged("action=accept", by=by, outcome=outcome)) == words


def test_the_data() -> None:
    given = judged("action=accept", by=step("0000", PASSES))
    found = firewall_way.all_data("a.org", (given, judged(by=step(None, DROPPED), outcome=DROPPED)), DROPPED)
    assert (found["name"], found["outcome"], len(found["packets"])) == ("a.org", DROPPED, 2)
    first, second = found["packets"]
    assert first["decided_by"]["entry"] == 0
    assert first["entries"] == [{"number": 0, "matches": True, "why": None}]
    assert second["decided_by"]["rule"] is None
    assert second["steps"][0]["chain"] is None
    assert firewall_way.as_data(judged())["decided_by"] is None
    moved = given._replace(walked=given.walked._replace(packet=packet()._replace(oif=Device("eth0", 1))))
    assert firewall_way.as_data(moved)["out_by"] == "eth0"


def test_of_several_addresses_the_worst_counts() -> None:
    one, other = judged(), judged(outcome=REFUSED)
    assert firewall_way.together(()) == PASSES
    assert firewall_way.together((one, other, one)) == REFUSED
    assert way.said(CHAIN) == "ip qubes-firewall qbs-10-137-0-5"
