# SPDX-License-Identifier: GPL-2.0-or-later
"""What the journal says of a pass: causes, operations, and interfaces that come and go."""

from __future__ import annotations

import pytest

from qubes_guestnet.core.render import pass_log
from qubes_guestnet.core.render.pass_log import Causes, interfaces, moves, pass_line
from qubes_guestnet.core.report import InterfaceReport, Report
from qubes_guestnet.core.settings import Settings
from qubes_guestnet.core.values import Link
from qubes_guestnet.errors import GuestnetError
from tests.core.test_provider_report import WELL as PROVIDED
from tests.core.test_report import DONE, LINK, MISSING, WELL
from tests.support.faults.hostile import MAC

NOTHING = Causes()

LINES = {
    "the start": ((pass_log.START,), 3, 0, "woken by the start of the agent: 3 operations", True),
    "keys": ((pass_log.KEYS,), 1, 0, "woken by QubesDB: 1 operation", True),
    "keys that change nothing": ((pass_log.KEYS,), 0, 0, "woken by QubesDB: nothing to do", False),
    "keys that are not valid": ((pass_log.KEYS,), 0, 2, "woken by QubesDB: 2 errors", True),
    "half of it": ((pass_log.KEYS,), 1, 1, "woken by QubesDB: 1 operation, 1 error", True),
    "a reload": ((pass_log.RELOAD,), 0, 0, "woken by SIGHUP: nothing to do", False),
    "an event that changes nothing": ((pass_log.ROUTE,), 0, 0, "woken by a change of a route: nothing to do", False),
    "a repair": ((pass_log.ROUTE,), 1, 0, "repair, because another program changed a route: 1 operation", True),
    "a repair of several": (
        (pass_log.RULES, pass_log.ADDRESS), 2, 0,
        "repair, because another program changed an address, nft rules: 2 operations", True,
    ),
    "keys beside an event": (
        (pass_log.ROUTE, pass_log.KEYS), 1, 0, "woken by QubesDB: 1 operation", True
    ),
    "a timer": ((pass_log.RETRY,), 1, 0, "woken by a timer (operations were pending): 1 operation", True),
    "nothing that was noted": ((), 1, 0, "woken by nothing known: 1 operation", True),
}  # fmt: skip


@pytest.mark.parametrize(("kinds", "operations", "errors", "text", "told"), LINES.values(), ids=LINES.keys())
def test_the_line_of_a_pass(kinds: tuple[str, ...], operations: int, errors: int, text: str, told: bool) -> None:
    assert pass_line(NOTHING.plus(kinds), operations, errors) == (text, told)


def test_an_interface_that_came_is_no_repair() -> None:
    causes = NOTHING.plus((pass_log.LINK,))
    assert pass_line(causes, 1, moved=True).text == "woken by a change of a link: 1 operation"


def test_what_a_pass_causes_by_itself() -> None:
    causes = NOTHING.plus((pass_log.LINK, pass_log.KEYS, pass_log.FILES, pass_log.RETRY))
    assert causes.echoes == {pass_log.LINK, pass_log.FILES}
    assert pass_line(NOTHING.plus((pass_log.OWN,)), 0) == (
        "woken by the changes of the pass before: nothing to do", False
    )  # fmt: skip


@pytest.mark.behaviour("B146")
@pytest.mark.parametrize(
    ("kinds", "echoes", "changed", "pending", "said"),
    [
        ((), (), True, False, "woken by nothing known: 1 operation"),
        ((pass_log.KEYS,), (pass_log.RULES,), True, False, "woken by QubesDB: 1 operation"),
        ((), (pass_log.RULES,), True, False, "repair, because another program changed nft rules: 1 operation"),
        ((), (pass_log.RULES,), False, False, "woken by the changes of the pass before: nothing to do"),
        ((), (pass_log.RULES,), True, True, "woken by the changes of the pass before: 1 operation"),
        ((pass_log.RULES,), (), True, True, "repair, because another program changed nft rules: 1 operation"),
    ],
)
def test_what_the_pass_before_left_is_no_repair(
    kinds: tuple[str, ...], echoes: tuple[str, ...], changed: bool, pending: bool, said: str
) -> None:
    causes = NOTHING.plus(kinds).explained(NOTHING.plus(echoes), changed=changed, pending=pending)
    assert pass_line(causes, int(changed)).text == said


def test_every_cause_has_words() -> None:
    kinds = {value for name, value in vars(pass_log).items() if name.isupper() and isinstance(value, str)}
    assert set(pass_log._WORDS) == kinds >= set(pass_log.TIMERS.values())


def test_the_keys_are_named_but_not_without_end() -> None:
    causes = NOTHING.plus((pass_log.KEYS,), ("/qubes-ip", "/qubes-gateway")).plus((), ("/qubes-ip",))
    assert causes.words == "QubesDB (/qubes-gateway /qubes-ip)"
    many = causes.plus((), (f"/x/{number}" for number in range(10)))
    assert many.words == "QubesDB (/qubes-gateway /qubes-ip /x/0 /x/1 /x/2 /x/3 and 6 more)"


@pytest.mark.parametrize(
    ("report", "words"),
    [
        (WELL, "role uplink"),
        (WELL._replace(provided=PROVIDED), "role uplink and provider"),
        (Report(Settings(), provided=PROVIDED), "role provider"),
        (Report(Settings(), provided=PROVIDED._replace(active=False)), "no role (dom0 names no interface)"),
        (Report(Settings(held=True)), "role uplink"),
        (Report(Settings()), "no role (dom0 names no interface)"),
    ],
)
def test_the_roles(report: Report, words: str) -> None:
    assert pass_log.roles(report) == words
    assert pass_log.start_line("1.2", words) == f"qubes-guestnet 1.2 started: {words}"


def as_new(index: int, name: str = "eth0") -> InterfaceReport:
    return DONE._replace(link=Link(index, name, MAC, up=True, driver="vif"))


WALK = (
    (MISSING, []),
    (DONE, [f"eth0 found ({MAC})"]),
    (DONE, []),
    (MISSING, ["eth0 gone"]),
    (MISSING, []),
    (DONE, ["eth0 back"]),
    (as_new(7), ["eth0 gone and back"]),
    (as_new(7, "enX0"), ["eth0 renamed to enX0"]),
    (MISSING, ["enX0 gone"]),
    (as_new(8, "eth0"), ["enX0 back, as eth0"]),
)


def test_an_interface_that_comes_and_goes() -> None:
    known: pass_log.Interfaces = {}
    for interface, expected in WALK:
        after = interfaces(known, Report(WELL.settings, (interface,)))
        assert list(moves(known, after)) == expected, interface
        known = after
    assert interfaces(known, Report(WELL.settings)) == {}
    assert LINK.name == "eth0"


@pytest.mark.behaviour("B146")
def test_a_pass_that_could_not_look_tells_of_no_interface_that_it_is_gone() -> None:
    """The journal said "no role (dom0 names no interface)" after any error that no adapter documents."""
    before = {MAC: ("eth0", 2)}
    blind = Report(Settings(), errors=(GuestnetError("no look"),), blind=True)
    assert interfaces(before, blind) == before
    assert interfaces(before, Report(Settings())) == {}


@pytest.mark.behaviour("B146")
def test_an_error_that_stands_in_a_qube_without_uplink_hides_no_interface_that_goes() -> None:
    """A bad key in guestnet.toml, say, in sys-net: it counted as a pass that could not look."""
    assert interfaces({MAC: ("eth0", 2)}, Report(Settings(), errors=(GuestnetError("a bad key"),))) == {}
