# SPDX-License-Identifier: GPL-2.0-or-later
"""Names of a list bound to addresses: unknown ones, limits, and the option that blocks the qube instead."""

from __future__ import annotations

import pytest

from qubes_guestnet.core.firewall.binding import UNKNOWN, bind
from qubes_guestnet.core.firewall.lines import Line
from qubes_guestnet.core.firewall.name_cache import Known
from qubes_guestnet.core.firewall.name_messages import MOST_ADDRESSES
from tests.core.firewall.made import SIX, A, answers, bound, ruleset

BOTH = ("action=accept dsthost=example.org proto=tcp dstports=80-80", "action=drop dsthost=example.org proto=udp")
TCP80 = {"protocols": ("tcp",), "ports": (80, 80)}


@pytest.mark.behaviour("B75")
def test_an_unknown_name_makes_an_accept_match_nothing_and_a_drop_everything() -> None:
    found = bound(*BOTH)
    assert found.unknown == ("example.org",)
    # The set is there for the answer that comes; it is empty.
    assert found.lines == (Line(0, True, host="example.org", **TCP80), Line(1, False, protocols=("udp",)))
    assert found.of("example.org") == UNKNOWN
    assert found.hosts == ("example.org",)


@pytest.mark.behaviour("B74")
def test_a_known_name_is_a_set_for_both() -> None:
    found = bound(*BOTH, example_org=["192.0.2.9", "192.0.2.10", "2001:db8::1"])
    assert found.unknown == ()
    assert found.lines == (
        Line(0, True, host="example.org", **TCP80),
        Line(1, False, host="example.org", protocols=("udp",)),
    )
    assert found.of("example.org") == Known((A("192.0.2.9"), A("192.0.2.10")), True)


def test_a_name_without_an_address_of_the_family_matches_nothing_and_the_rest_holds() -> None:
    found = bound(*BOTH, "action=accept proto=icmp", address=SIX, example_org=[])
    assert found.unknown == ()
    assert [line.host for line in found.lines] == ["example.org", "example.org", None]
    assert found.of("example.org") == Known((), True)


@pytest.mark.parametrize("name", ["localhost", "x.localhost", "printer.local", "127.1"])
def test_a_name_that_is_never_asked_has_no_set(name: str) -> None:
    entries = (f"action=accept dsthost={name}", f"action=drop dsthost={name} proto=tcp")
    found = bind(ruleset(*entries), answers(4, {name: ["192.0.2.1"]}))
    assert (found.unknown, found.hosts) == ((), ())
    assert found.lines == (Line(1, False, protocols=("tcp",)),)


def test_of_an_answer_that_is_not_whole_an_accept_has_a_part_and_a_drop_all() -> None:
    found = bind(ruleset(*BOTH), answers(4, {"example.org": ["192.0.2.1"]}, whole=False))
    assert found.unknown == ("example.org",)
    assert found.lines == (Line(0, True, host="example.org", **TCP80), Line(1, False, protocols=("udp",)))
    assert found.of("example.org").addresses == (A("192.0.2.1"),)


def test_of_a_name_with_too_many_addresses_an_accept_has_the_first_and_a_drop_all() -> None:
    addresses = [f"10.9.{number // 256}.{number % 256}" for number in range(MOST_ADDRESSES + 1)]
    found = bound(*BOTH, example_org=reversed(addresses))
    assert found.of("example.org") == Known(tuple(map(A, addresses[:MOST_ADDRESSES])), False)
    assert found.lines[1] == Line(1, False, protocols=("udp",))
    (warning,) = found.warnings
    assert "example.org has 65 addresses" in warning
    assert bound(*BOTH, example_org=addresses[:MOST_ADDRESSES]).warnings == ()


@pytest.mark.parametrize(
    ("entries", "names", "refused"),
    [
        (BOTH, {}, True),
        (BOTH, {"example_org": ["192.0.2.1"]}, False),
        (BOTH, {"example_org": []}, False),
        (("action=accept dsthost=127.1",), {}, True),
        (("action=accept",), {}, False),
    ],
)
def test_the_option_blocks_the_qube_while_a_name_is_unknown(
    entries: tuple[str, ...], names: dict[str, list[str]], refused: bool
) -> None:
    known = answers(4, {host.replace("_", "."): addresses for host, addresses in names.items()})
    found = bind(ruleset(*entries, policy=b"accept"), known, block_unresolved=True)
    assert (found.refused, found.accept, found.lines == ()) == (refused, not refused, refused)
    assert not bind(ruleset(*entries), known).refused


def test_a_list_with_an_error_is_refused_whatever_the_names_are() -> None:
    found = bound(*BOTH, "foo", policy=b"accept", example_org=["192.0.2.1"])
    assert (found.refused, found.accept, found.lines, found.hosts) == (True, False, (), ())


def test_a_rule_that_matches_nothing_has_no_line() -> None:
    assert bound("action=drop specialtarget=dns proto=icmp", "action=accept dsthost=a..b").lines == ()
    assert bound("action=drop dsthost=a..b").lines == (Line(0, False),)


def test_an_equal_list_is_that_of_the_last_pass() -> None:
    names = answers(4, {"example.org": ["192.0.2.1"]})
    before = bind(ruleset(*BOTH), names)
    assert bind(ruleset(*BOTH), names, before=before) is before
    assert bind(ruleset(*BOTH), {}, before=before) is not before
    assert bind(ruleset(*BOTH), {}, before=before, block_unresolved=True).refused


def test_equal_lists_have_one_hash() -> None:
    assert hash(bound(*BOTH)) == hash(bound(*BOTH, example_org=["192.0.2.1"]))
    assert hash(bound(*BOTH)) != hash(bound("foo"))
