# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs of the user's hooks, over random changes: once for each, and never twice, whatever fails."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qubes_guestnet import flow
from qubes_guestnet.core.hooks import HookFacts
from qubes_guestnet.core.operations import ORDER, Outcome, Planned
from qubes_guestnet.core.owned_state import Record
from qubes_guestnet.core.report import InterfaceReport
from qubes_guestnet.core.settings import DnsSettings, Family, Settings, UplinkSettings
from qubes_guestnet.core.uplink import hook_runs
from qubes_guestnet.core.uplink.desired import Style, StyleChoice
from qubes_guestnet.core.uplink.service_operations import StartHooks
from qubes_guestnet.core.values import Link, State
from qubes_guestnet.errors import GuestnetError
from tests.core.memory import Memory

many = settings(max_examples=300, deadline=None, derandomize=True)

HOOK = HookFacts("/rw/config/qubes-ip-change-hook", True, "/rw/config/qubes-ip-change-hook")
SETTINGS = Settings(dns=DnsSettings((ipaddress.ip_address("10.139.1.1"),)), provider=True)
CLOCK = 1234


class Killed(BaseException):
    """SIGKILL: nothing is tidied up."""


def uplink(number: int, last: int) -> InterfaceReport:
    """A configured uplink with one of a few addresses."""
    address = ipaddress.ip_interface(f"10.137.{number}.{last}/32")
    link = Link(number, f"eth{number}", f"00:16:3e:5e:6c:{number:02x}")
    state = State(up=True, addresses=frozenset({address}))
    asked = UplinkSettings(link.mac, Family(address, None))
    return InterfaceReport(asked, link, StyleChoice(Style.DEVICE, ""), state, state)


class Qube:
    """The hooks of a qube, and what they were told, an address each."""

    def __init__(self) -> None:
        self.ledger = Memory()
        self.hooks: list[HookFacts] = [HOOK]
        self.told: list[str] = []
        self.refuses = self.kills = False
        self.interfaces: list[InterfaceReport] = []

    def start(self, op: StartHooks) -> None:
        if self.refuses:
            raise GuestnetError("cannot be started")
        (state,) = (each.desired for each in self.interfaces if each.link and each.link.ifindex == op.ifindex)
        self.told += map(str, state.addresses)
        if self.kills:
            raise Killed

    def settle(self, *interfaces: InterfaceReport) -> Outcome:
        self.interfaces = list(interfaces)

        def plan(record: Record, so_far: Outcome) -> Planned:
            changes = hook_runs.changed(interfaces, SETTINGS, record)
            return hook_runs.plan(changes, self.hooks, record, CLOCK, so_far)

        return flow.settle(plan, dict.fromkeys(ORDER, self.start), self.ledger)[1]


HAPPENING = st.tuples(st.integers(1, 3), st.integers(1, 3), st.sampled_from(("well", "refused", "killed", "full")))


@many
@given(st.lists(HAPPENING, min_size=1, max_size=6))
@pytest.mark.behaviour("B14", "B147")
def test_once_for_each_change_whatever_happens(passes: list[tuple[int, int, str]]) -> None:
    qube, expected = Qube(), list[str]()
    known: dict[int, int] = {}  # what the hooks know of each of two uplinks
    for first, second, what in passes:
        qube.refuses, qube.kills, qube.ledger.full = what == "refused", what == "killed", what == "full"
        due = [(number, last) for number, last in ((2, first), (3, second)) if known.get(number) != last]
        try:
            outcome = qube.settle(uplink(2, first), uplink(3, second))
            assert bool(outcome.errors) == ((what in ("refused", "full") and bool(due)) or what == "full")
        except Killed:
            # The first was started; that the second is told is in the record too: rather not at all than twice.
            expected.append(f"10.137.{due[0][0]}.{due[0][1]}/32")
            known.update(due)
        if what == "refused":
            known.update(dict.fromkeys((number for number, _ in due), 0))
        if what == "well":
            expected += [f"10.137.{number}.{last}/32" for number, last in due]
            known.update(due)
        assert qube.told == expected


def test_what_is_noted_and_what_is_started() -> None:
    interface = uplink(2, 5)
    changes = hook_runs.changed([interface], SETTINGS, Record())
    assert changes == ((interface.link, "10.137.2.5/32||10.139.1.1"),)
    planned = hook_runs.plan(changes, [HOOK], Record(), CLOCK, Outcome())
    assert planned.ops == (StartHooks(2, (HOOK.path,)),)
    assert planned.record.provided.hooks == CLOCK, "what the hooks write from then on is theirs (behaviour B124)"
    none = hook_runs.plan(changes, [HOOK._replace(executable=False)], Record(), CLOCK, Outcome())
    assert (none.ops, none.record) == ((), planned.record)


@pytest.mark.parametrize(
    "interface", [uplink(2, 5)._replace(link=None), uplink(2, 5)._replace(observed=State())], ids=["gone", "half done"]
)
def test_an_interface_that_is_not_configured_is_no_change(interface: InterfaceReport) -> None:
    assert hook_runs.changed([interface], SETTINGS, Record()) == ()


def test_only_in_a_provider() -> None:
    assert hook_runs.changed([uplink(2, 5)], SETTINGS._replace(provider=False), Record()) == ()
