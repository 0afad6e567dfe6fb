# SPDX-License-Identifier: GPL-2.0-or-later
"""What a name server's reply says, whatever it is: with the oldest and the newest dnspython."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qubes_guestnet.core.firewall import name_messages
from qubes_guestnet.core.firewall.name_messages import Answer, Question
from qubes_guestnet.names import replies
from qubes_guestnet.names.replies import Stranger, Truncated, Useless
from tests.support.programs import name_server
from tests.support.programs.name_server import LONG, NOT_THIS, ONE, REPLIES, SAYS, ZONE

# Processor time of one reply; without a bound on pointers it was 7 s (dnspython 2.3).
MOST_CPU_S = 2.0


def query(label: str, family: int = 4) -> replies.Query:
    return replies.query(Question(family, f"{label}.{ZONE}"))


def said(asked: replies.Query, wire: bytes) -> Any:
    """What a reply says, in the words of the table."""
    try:
        answer = replies.read(asked, wire, datagram=True)
    except Useless as useless:
        return useless.reason
    except Stranger:
        return NOT_THIS
    if len(answer.addresses) == name_messages.MOST_ADDRESSES:
        return ("part" if answer.kind == name_messages.PART else "whole", len(answer.addresses))
    if answer.addresses:
        assert answer.kind == name_messages.ADDRESSES
        return ([str(address) for address in answer.addresses], answer.ttl)
    return (answer.kind, answer.ttl)


@pytest.mark.parametrize("label", [*REPLIES, *LONG])
def test_each_reply_says_what_it_says_at_little_cost(label: str) -> None:
    asked = query(label)
    wire = {**REPLIES, **LONG}[label](name_server.parse(asked.wire))
    before = time.thread_time()
    found = said(asked, wire)
    assert time.thread_time() - before < MOST_CPU_S
    assert found == SAYS[label]


def test_the_family_decides() -> None:
    asked = query("both", 6)
    wire = REPLIES["both"](name_server.parse(asked.wire))
    assert said(asked, wire) == (["2001:db8::1"], 300)


def test_a_query_is_complete_and_small() -> None:
    parsed = name_server.parse(query("good", 6).wire)
    assert (parsed.name, parsed.kind) == (f"good.{ZONE}", name_server.AAAA)
    assert len(parsed.wire) < 512
    assert len({query("good").wire[:2] for _ in range(100)}) > 90, "identifiers are random"


def test_a_name_in_other_letters_is_the_same() -> None:
    asked = query("good")
    wire = REPLIES["good"](name_server.parse(asked.wire)._replace(name=f"GOOD.{ZONE.upper()}"))
    assert said(asked, wire) == (ONE, 300)


def test_a_truncated_datagram_is_asked_for_again() -> None:
    asked = query("good")
    wire = name_server.reply(name_server.parse(asked.wire), flags=name_server.TRUNCATED)
    with pytest.raises(Truncated):
        replies.read(asked, wire, datagram=True)
    assert replies.read(asked, wire, datagram=False) == Answer(asked.question, name_messages.NODATA)


def test_a_missing_name_of_which_much_is_said_is_not_believed() -> None:
    """Its addresses may be among what is not read."""
    asked = query("x")
    parsed = name_server.parse(asked.wire)
    records = [name_server.record(b"\0", name_server.TXT, b"")] * (replies.MOST_RECORDS + 1)
    assert said(asked, name_server.reply(parsed, *records)) == "garbage"
    assert said(asked, name_server.reply(parsed, *records[1:])) == ("nodata", 0)


@given(st.sampled_from([*REPLIES, "sixtyfour"]), st.data())
def test_no_bytes_raise_anything_else(label: str, data: st.DataObject) -> None:
    asked = query(label)
    wire = bytearray({**REPLIES, **LONG}[label](name_server.parse(asked.wire)))
    for _ in range(data.draw(st.integers(0, 6))):
        wire[data.draw(st.integers(2, len(wire) - 1))] = data.draw(st.integers(0, 255))
    wire = wire[: data.draw(st.integers(0, len(wire)))] + data.draw(st.binary(max_size=20))
    try:
        answer = replies.read(asked, bytes(wire), datagram=True)
    except (Useless, Stranger, Truncated):
        return
    assert name_messages.parse_answer(name_messages.render_answer(answer)) == answer
