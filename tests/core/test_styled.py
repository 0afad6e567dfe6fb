# SPDX-License-Identifier: GPL-2.0-or-later
"""Lines with words that stand out, when they are coloured, and `status --brief`."""

from __future__ import annotations

import itertools

import pytest

from qubes_guestnet.cli.output import rendered
from qubes_guestnet.core.render import styled
from qubes_guestnet.core.render.status import brief
from qubes_guestnet.core.render.styled import ALWAYS, AUTO, NEVER, Line, Piece, line
from tests.core.test_provider_report import LINK, TODO, VIF, WELL
from tests.core.test_report import DONE, HELD, MISSING, OP
from tests.core.test_report import WELL as UPLINKS

WHEN = {
    "a terminal": ((AUTO, True, "", "xterm"), True),
    "a pipe": ((AUTO, False, "", "xterm"), False),
    "NO_COLOR": ((AUTO, True, "1", "xterm"), False),
    "a terminal without colour": ((AUTO, True, "", "dumb"), False),
    "always": ((ALWAYS, False, "1", "dumb"), True),
    "never": ((NEVER, True, "", "xterm"), False),
}


@pytest.mark.parametrize(("facts", "expected"), WHEN.values(), ids=WHEN.keys())
def test_when_there_is_colour(facts: tuple[str, bool, str, str], expected: bool) -> None:
    when, terminal, no_color, term = facts
    assert styled.in_colour(when, terminal=terminal, no_color=no_color, term=term) is expected


def test_a_line_is_its_pieces() -> None:
    made = line("a", styled.good("b"), line(styled.bad("c"), styled.warn("d")), styled.name("e"), styled.dim("f"))
    assert str(made) == "abcdef"
    assert str(made.pieces[1]) == "b"
    assert [piece.style for piece in made.pieces] == ["", "good", "bad", "warning", "name", "dim"]
    assert rendered((made,), colour=False) == "abcdef\n"


@pytest.mark.behaviour("B120")
def test_foreign_text_is_escaped_and_only_then_coloured() -> None:
    made = Line((Piece("\x1b[5mx", styled.BAD), Piece("\x1b]0;y")))
    assert rendered((made,), colour=True) == "\x1b[1;31m\\x1b[5mx\x1b[0m\\x1b]0;y\n"
    assert rendered((made,), colour=False) == "\\x1b[5mx\\x1b]0;y\n"


def test_a_line_an_interface() -> None:
    mac = DONE.settings.mac
    report = UPLINKS._replace(
        interfaces=(
            DONE, MISSING, MISSING._replace(detached=True), MISSING._replace(settings=HELD, detached=True),
            DONE._replace(removed=True), DONE._replace(plan=(OP,)), MISSING._replace(removed=True),
        ),
        provided=WELL._replace(vifs=(*WELL.vifs, TODO, WELL.vifs[0]._replace(seen=False))),
    )  # fmt: skip
    addresses = "10.137.0.5/32 fd09:24ef:4179::a89:5/128"
    assert [" ".join(str(each).split()) for each in brief(report)] == [
        f"eth0 configured {addresses}",
        f"{mac} not there",
        f"{mac} detached",
        f"{mac} detached",
        f"eth0 taken down {addresses}",
        f"eth0 NOT configured {addresses}",
        f"{mac} not there",
        f"vif4.0 configured {' '.join(map(str, VIF.addresses))}",
        f"vif4.0 NOT configured {' '.join(map(str, VIF.addresses))}",
        f"vif4.0 not seen {' '.join(map(str, VIF.addresses))}",
    ]
    first, second = itertools.islice(brief(UPLINKS._replace(interfaces=(DONE, DONE._replace(removed=True)))), 2)
    assert str(first).index("10.137") == str(second).index("10.137")
    assert LINK.name == "vif4.0"
