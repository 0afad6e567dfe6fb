# SPDX-License-Identifier: GPL-2.0-or-later
"""Firewall rules of the lab's dom0: its grammar, the exact operations on QubesDB, and the edits of qvm-firewall.

The 42 lists of `tests/golden/firewall/dom0.json` are what dom0's own code did, in both families.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qubes_guestnet.lab import firewall_edits, firewall_rules
from qubes_guestnet.lab.firewall_rules import ACCEPT_ALL, Rule, RuleError, Rules

FILE = Path(__file__).resolve().parents[1] / "golden" / "firewall" / "dom0.json"
LISTS: list[dict[str, Any]] = json.loads(FILE.read_text(encoding="utf-8"))
NOW = 1_790_000_000.0
ADDRESSES = {4: "10.137.0.3", 6: "fd09:24ef:4179::a89:3"}


def rules(*texts: str) -> Rules:
    return tuple(map(firewall_rules.parse, texts))


# --- what dom0 does --------------------------------------------------------------------------------------------------


def test_there_are_all_lists() -> None:
    assert len(LISTS) == 42


@pytest.mark.parametrize("case", LISTS, ids=lambda case: case["note"])
def test_the_operations_are_dom0s_in_order(case: dict[str, Any]) -> None:
    parsed = rules(*case["rules"])
    done = firewall_rules.cycle(ADDRESSES, parsed, NOW) * case["saves"]
    # `order` has no value beside a removal.
    assert [[verb, key, value] if verb == "write" else [verb, key] for verb, key, value in done] == case["order"]
    assert list(firewall_rules.listed(parsed, NOW)) == case["shown"]
    for version in (4, 6):
        base = f"/qubes-firewall/{ADDRESSES[version]}"
        found = firewall_rules.entries(parsed, version, NOW)
        assert {base: "", **{f"{base}/{key}": value for key, value in found.items()}} == case[f"entries{version}"]


def test_a_family_without_address_is_left_out() -> None:
    done = firewall_rules.cycle({4: "10.137.0.3", 6: None}, ACCEPT_ALL, NOW)
    assert done == [
        ("rm", "/qubes-firewall/10.137.0.3/", ""),
        ("write", "/qubes-firewall/10.137.0.3/policy", "drop"),
        ("write", "/qubes-firewall/10.137.0.3/0000", "action=accept"),
        ("write", "/qubes-firewall/10.137.0.3", ""),
    ]


def test_from_the_ten_thousandth_rule_on_a_number_has_five_digits() -> None:
    found = list(firewall_rules.entries(ACCEPT_ALL * 10001, 4, NOW))
    assert (found[0], found[1], found[-2], found[-1]) == ("policy", "0000", "9999", "10000")


@pytest.mark.parametrize(
    ("text", "written"),
    [
        # Host bits, capital letters and zeros stay as typed; ports and ICMP types become numbers.
        ("action=accept dst4=10.0.0.1/24", "action=accept dst4=10.0.0.1/24"),
        ("action=accept dst4=10.0.0.0/08", "action=accept dst4=10.0.0.0/08"),
        ("action=accept proto=tcp dstports=0022-65535", "action=accept proto=tcp dstports=22-65535"),
        ("action=drop proto=icmp icmptype=008", "action=drop proto=icmp icmptype=8"),
        # The value says the family, whatever the option is.
        ("action=accept dst4=fd00::1", "action=accept dst6=fd00::1/128"),
        ("action=accept dst6=10.0.0.1", "action=accept dst4=10.0.0.1/32"),
        ("action=accept dstname=a.example", "action=accept dsthost=a.example"),
        # Names that resolve nowhere, and no name at all.
        *(
            (f"action=accept dsthost={name}", f"action=accept dsthost={name}")
            for name in ("", ".", "a..b", "-", "127.1", "a" * 300)
        ),
    ],
)  # fmt: skip
def test_what_else_dom0_accepts(text: str, written: str) -> None:
    assert firewall_rules.text(firewall_rules.parse(text)) == written


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "'' is no option; give option=value, with one blank between options"),
        ("accept", "'accept' is no option; give option=value, with one blank between options"),
        ("action=accept  proto=tcp", "'' is no option; give option=value, with one blank between options"),
        ("proto=tcp", "action is missing; give action=accept or action=drop"),
        ("action=allow", "action=allow is not valid; give accept or drop"),
        ("action=Accept", "action=Accept is not valid; give accept or drop"),
        ("action=accept foo=1", "foo=1: no such option; the options are action, dsthost, proto, special"),
        ("action=accept action=drop", "action=drop: action is given twice; give it once"),
        ("action=accept dst4=1.2.3.4 dsthost=a", "dsthost=a: dsthost is given twice; give it once"),
        ("action=accept proto=sctp", "proto=sctp is not valid; give tcp or udp or icmp"),
        ("action=accept proto=icmpv6", "proto=icmpv6 is not valid; give tcp or udp or icmp"),
        ("action=accept specialtarget=ntp", "specialtarget=ntp is not valid; give dns"),
        ("action=accept dsthost=A.example", "dsthost=A.example is not valid; give an address, a network, or a name"),
        ("action=accept dsthost=a/24", "dsthost=a/24 is not valid; give a network such as 192.168.0.0/16 or fd00::/8"),
        ("action=accept dsthost=1.2.3/24", "dsthost=1.2.3/24 is not valid; give a network such as"),
        ("action=accept dsthost=ä", "dsthost=ä is not valid; give an address"),
        ("action=accept dst4=1.2.3.4/33", "dst4=1.2.3.4/33 is not valid; give a length from 0 to 32"),
        ("action=accept dst4=1.2.3.4/", "dst4=1.2.3.4/ is not valid; give a length from 0 to 32"),
        ("action=accept dst4=1.2.3.4/8/8", "dst4=1.2.3.4/8/8 is not valid; give a length from 0 to 32"),
        ("action=accept dst6=fd00::/129", "dst6=fd00::/129 is not valid; give a length from 0 to 128"),
        ("action=accept dst6=fe80::1%eth0", "dst6=fe80::1%eth0 is not valid; give an address"),
        ("action=accept dstports=80", "dstports=80: only with a protocol that has ports; add proto=tcp or udp"),
        ("action=accept proto=icmp dstports=80", "dstports=80: only with a protocol that has ports; add proto=tcp"),
        *(
            (f"action=accept proto=tcp dstports={ports}", f"dstports={ports} is not valid; give a port or a range such")
            for ports in ("65536", "65536-65536", "80-", "-80", "-", "", "80-90-100", "80,90", "http", "٣", "9" * 5000)
        ),
        ("action=accept proto=tcp dstports=90-80", "dstports=90-80 is not valid; give the lower port first"),
        ("action=accept icmptype=8", "icmptype=8: only with ICMP; add proto=icmp"),
        ("action=accept proto=tcp icmptype=0", "icmptype=0: only with ICMP; add proto=icmp"),
        *(
            (f"action=accept proto=icmp icmptype={icmp}", f"icmptype={icmp} is not valid; give a number from 0 to 255")
            for icmp in ("256", "-1", "", "echo", "0008")
        ),
        ("action=accept expire=+300", "expire=+300 is not valid; give a Unix time in seconds"),
        ("action=accept expire=tomorrow", "expire=tomorrow is not valid; give a Unix time in seconds"),
        ("action=accept expire=" + "9" * 12, f"expire={'9' * 12} is not valid; give a Unix time in seconds"),
        ("action=accept comment=a\nb", "comment=a\nb is not valid; use ASCII letters, digits, blanks and :;,./-_[]"),
        ("action=accept comment=a=b", "comment=a=b is not valid; use ASCII letters"),
    ],
)  # fmt: skip
def test_what_dom0_refuses_is_told_with_option_value_and_remedy(text: str, told: str) -> None:
    with pytest.raises(RuleError) as caught:
        firewall_rules.parse(text)
    assert str(caught.value).startswith(told)
    assert caught.value.problem
    assert caught.value.remedy


# --- qvm-firewall ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "raw"),
    [
        ("accept", "action=accept"),
        ("drop 10.0.0.0/8", "action=drop dst4=10.0.0.0/8"),
        ("accept a.example tcp 443", "action=accept proto=tcp dsthost=a.example dstports=443-443"),
        ("accept a.example icmp 8", "action=accept proto=icmp dsthost=a.example icmptype=8"),
        ("accept dsthost=a.example udp 53", "action=accept proto=udp dsthost=a.example dstports=53-53"),
        ("proto=tcp accept a.example 1-2", "action=accept proto=tcp dsthost=a.example dstports=1-2"),
        ("accept specialtarget=dns", "action=accept specialtarget=dns"),
        ("accept dst4=fd00::1 tcp", "action=accept proto=tcp dst6=fd00::1/128"),
        ("accept expire=+300", f"action=accept expire={NOW + 300:.0f}"),
        ("accept comment=b,c expire=5", "action=accept expire=5 comment=b,c"),
        # Of length 0: qvm-firewall has no destination then.
        ("accept 0.0.0.0/0", "action=accept"),
        ("accept ::/0 tcp", "action=accept proto=tcp"),
    ],
)
def test_the_arguments_of_qvm_firewall(words: str, raw: str) -> None:
    assert firewall_edits.raw(firewall_rules.from_words(words.split(), NOW)) == raw


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("", "action is missing; give action=accept"),
        ("accept a tcp 1 2", "2: one word too many; the order is action, dsthost, proto, dstports, icmptype; else"),
        ("accept a=b=c", "a=b=c: more than one =; give option=value"),
        ("accept colour=red", "colour=red: no such option; the options are action"),
        ("accept a tcp 8 icmptype=3", "icmptype=3: only with ICMP; add proto=icmp"),
        ("accept a icmp dstports=3", "dstports=3: only with a protocol that has ports; add"),
        ("accept expire=+", "expire=+ is not valid; give seconds, such as +300, or a Unix time"),
        ("accept expire=+1.5", "expire=+1.5 is not valid; give seconds, such as +300, or a Unix time"),
        ("accept dst4=10.0.0.1 dst6=fd00::1", "dst6=fd00::1: dsthost is given twice; give it once"),
    ],
)
def test_wrong_arguments_are_told(words: str, told: str) -> None:
    with pytest.raises(RuleError) as caught:
        firewall_rules.from_words(words.split(), NOW)
    assert str(caught.value).startswith(told)


def test_rules_are_added_and_removed_by_number_and_by_value() -> None:
    one, two, three = rules("action=accept dst4=1.2.3.4/32", "action=accept proto=icmp", "action=drop comment=x")
    found = firewall_edits.added((one,), three)
    assert found == (one, three)
    assert firewall_edits.added(found, two, 1) == (one, two, three)
    assert firewall_edits.added(found, two, 99) == (one, three, two)
    assert firewall_edits.without_number(found, 1) == (one,)
    assert firewall_edits.without((one, three, one), one) == (three, one)
    for refused in (
        lambda: firewall_edits.added(found, two, -1),
        lambda: firewall_edits.without_number(found, 2),
        lambda: firewall_edits.without_number(found, -1),
        lambda: firewall_edits.without_number((), 0),
        lambda: firewall_edits.without(found, Rule("drop")),  # it has no comment
    ):
        with pytest.raises(RuleError) as caught:
            refused()
        assert caught.value.remedy


def test_a_change_loses_expired_rules_and_destinations_of_length_0() -> None:
    found = rules("action=accept dst4=0.0.0.0/0", "action=accept expire=5", "action=drop dst6=::/0 proto=tcp")
    assert firewall_edits.read_by_client(found, NOW) == rules("action=accept", "action=drop proto=tcp")


def test_the_table_of_the_list() -> None:
    rule = firewall_rules.parse(
        f"action=accept dsthost=a.example proto=tcp dstports=443 expire={NOW + 9:.0f} comment=b c"
    )
    assert dict(zip(firewall_edits.HEAD, firewall_edits.row(3, rule, NOW), strict=True)) == {
        "no": "3", "action": "accept", "host": "a.example", "protocol": "tcp", "port(s)": "443", "special target": "-",
        "icmp type": "-", "expire": "+9s", "comment": "b c",
    }  # fmt: skip
    ping = firewall_rules.parse("action=drop proto=icmp icmptype=0")
    assert firewall_edits.row(0, ping, NOW)[1:] == ("drop", "-", "icmp", "-", "-", "0", "-", "-")


# --- what a list means -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("texts", "limited"),
    [
        (["action=accept"], False),
        (["action=accept comment=all"], False),
        (["action=accept", "action=drop"], False),
        ([f"action=accept expire={NOW + 9:.0f}", "action=drop"], False),
        (["action=accept expire=5", "action=drop"], True),
        ([], True),
        (["action=drop"], True),
        (["action=accept proto=tcp", "action=accept"], True),
    ],
)
def test_a_qube_is_limited_unless_its_first_rule_accepts_everything(texts: list[str], limited: bool) -> None:
    assert firewall_rules.limits(rules(*texts), NOW) is limited


@pytest.mark.parametrize(
    ("texts", "passes"),
    [
        (["action=accept"], (True, True)),
        ([], (False, False)),
        (["action=accept expire=5"], (False, False)),
        (["action=accept proto=tcp", "action=accept specialtarget=dns"], (False, False)),
        (["action=accept proto=icmp"], (True, True)),
        (["action=accept proto=icmp icmptype=8"], (True, False)),
        (["action=accept proto=icmp icmptype=128"], (False, True)),
        (["action=drop dst4=192.168.1.1/16", "action=accept"], (False, True)),
        (["action=accept dst6=2001:db8::/32"], (False, False)),
        (["action=accept dsthost=a.example"], (True, False)),
        (["action=drop dsthost=b.example", "action=accept"], (True, True)),
    ],
)
def test_whether_a_ping_passes(texts: list[str], passes: tuple[bool, bool]) -> None:
    names = {"a.example": ("192.168.123.45",)}
    found = tuple(
        firewall_rules.allows_ping(rules(*texts), host, names, NOW) for host in ("192.168.123.45", "2000:abcd::1")
    )
    assert found == passes
