# SPDX-License-Identifier: GPL-2.0-or-later
"""Servers in systemd-resolved, over random states of a model of it: what is planned, carried out, and planned again."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qubes_guestnet import flow
from qubes_guestnet.core.dns import resolved_links
from qubes_guestnet.core.dns.resolved import LinkNames
from qubes_guestnet.core.dns.resolved_links import LinkFacts
from qubes_guestnet.core.operations import ORDER, Outcome, Planned
from qubes_guestnet.core.owned_state import Interface, Record
from qubes_guestnet.core.report import InterfaceReport
from qubes_guestnet.core.settings import DnsSettings, Family, Settings, UplinkSettings
from qubes_guestnet.core.uplink.desired import Flags, Style, StyleChoice
from qubes_guestnet.core.uplink.networkmanager import Manager, ManagerChoice
from qubes_guestnet.core.uplink.service_operations import RevertLinkNames, SetLinkNames
from qubes_guestnet.core.values import Link, State
from qubes_guestnet.errors import GuestnetError
from tests.core.memory import Memory

many = settings(max_examples=300, deadline=None, derandomize=True)

LINKS = (Link(2, "eth0", "00:16:3e:5e:6c:05"), Link(3, "eth1", "00:16:3e:5e:6c:06"))
SERVER = ipaddress.ip_address("10.139.1.1")
OURS = LinkNames(("10.139.1.1",), ("~.",), default_route=True)
CHOICES = (None, OURS, LinkNames(("10.139.1.2",), ("~.",), default_route=True))
NONE, THEIRS = LinkNames(), LinkNames(("192.0.2.53",), ("example.org",))


class Killed(BaseException):
    """SIGKILL: nothing is tidied up."""


class Resolved:
    """A model: what each link has; it is not there at all, or hangs at an operation, or the agent is killed there."""

    def __init__(self, seen: list[LinkNames], recorded: list[bool]) -> None:
        self.seen = dict(zip(LINKS, seen, strict=True))
        self.present = True
        self.killed = self.hangs = -1
        self.log: list[object] = []
        entries = (Interface(*link[:1], link.mac, resolved=flag) for link, flag in zip(LINKS, recorded, strict=True))
        self.ledger = Memory(Record(tuple(entries)))

    def carry_out(self, op: SetLinkNames | RevertLinkNames) -> None:
        self.log.append(op)
        if self.killed == len(self.log):
            raise Killed
        if self.hangs == len(self.log):
            raise GuestnetError("does not answer")
        link = next(link for link in LINKS if link.ifindex == op.ifindex)
        self.seen[link] = op.names if isinstance(op, SetLinkNames) else NONE

    def settle(self, wanted: list[LinkNames | None]) -> Outcome:
        def plan(record: Record, so_far: Outcome) -> Planned:
            asked = [LinkFacts(link, names) for link, names in zip(LINKS, wanted, strict=True)]
            found = [each for each in asked if resolved_links.concerned(each, record)]
            if self.present:
                found = [each._replace(seen=self.seen[each.link]) for each in found]
            return resolved_links.plan(found, record, so_far)

        return flow.settle(plan, dict.fromkeys(ORDER, self.carry_out), self.ledger)[1]

    def recorded(self, link: Link) -> bool:
        return self.ledger.record.interface(link).resolved


SEEN = st.tuples(*2 * [st.sampled_from((NONE, THEIRS, *filter(None, CHOICES)))]).map(list)
WANTED = st.tuples(*2 * [st.sampled_from(CHOICES)]).map(list)
RECORDED = st.tuples(st.booleans(), st.booleans()).map(list)


def is_right(world: Resolved, wanted: list[LinkNames | None], before: Resolved) -> bool:
    """Each link has what is asked for; nothing of ours where nothing is, and what others set where nothing was ours."""
    for link, names in zip(LINKS, wanted, strict=True):
        expected = names or (NONE if before.recorded(link) else before.seen[link])
        if (world.seen[link], world.recorded(link)) != (expected, names is not None):
            return False
    return True


@many
@given(SEEN, RECORDED, WANTED)
def test_each_link_has_what_is_asked_for_and_what_others_set_stays(
    seen: list[LinkNames], recorded: list[bool], wanted: list[LinkNames | None]
) -> None:
    world, before = Resolved(seen, recorded), Resolved(seen, recorded)
    assert world.settle(wanted).errors == ()
    assert is_right(world, wanted, before)
    assert world.settle(wanted) == Outcome(), "a second plan is empty"


@many
@given(SEEN, RECORDED, WANTED, WANTED, st.integers(1, 3), st.booleans())
def test_killed_or_let_down_at_any_operation_nothing_of_ours_is_forgotten(
    seen: list[LinkNames],
    recorded: list[bool],
    first: list[LinkNames | None],
    then: list[LinkNames | None],
    at: int,
    hangs: bool,
) -> None:
    world = Resolved(seen, recorded)
    world.hangs, world.killed = (at, -1) if hangs else (-1, at)
    try:
        outcome = world.settle(first)
        assert len(outcome.errors) == (world.hangs in range(1, len(world.log) + 1))
    except Killed:
        pass
    world.hangs = world.killed = -1
    for link in LINKS:
        changed = any(op.ifindex == link.ifindex for op in world.log if isinstance(op, SetLinkNames))  # type: ignore[attr-defined]
        assert world.recorded(link) or not changed, "the record is ahead"
    between = Resolved([world.seen[link] for link in LINKS], [world.recorded(link) for link in LINKS])
    world.settle(then)
    assert is_right(world, then, between)


@given(SEEN, RECORDED, WANTED)
def test_while_it_is_not_running_nothing_is_done_and_nothing_forgotten(
    seen: list[LinkNames], recorded: list[bool], wanted: list[LinkNames | None]
) -> None:
    world = Resolved(seen, recorded)
    world.present = False
    assert world.settle(wanted) == Outcome()
    assert [world.recorded(link) for link in LINKS] == recorded


FAMILY = Family(ipaddress.ip_interface("10.137.0.5/32"), None)
UP = InterfaceReport(
    UplinkSettings(LINKS[0].mac, FAMILY), LINKS[0], StyleChoice(Style.DEVICE, ""),
    State(addresses=frozenset({FAMILY.interface})),
)  # fmt: skip
DNS = DnsSettings((SERVER,))


@pytest.mark.behaviour("B21")
@pytest.mark.parametrize(
    ("interface", "dns", "expected"),
    [
        (UP, DNS, LinkFacts(LINKS[0], OURS)),
        (UP._replace(link=None), DNS, None),
        (UP, DNS._replace(held=True), None),
        (UP._replace(removed=True), DNS, LinkFacts(LINKS[0], None)),
        (UP._replace(desired=State()), DNS, LinkFacts(LINKS[0], None)),
        (UP._replace(rank=1), DNS, LinkFacts(LINKS[0], None)),
        (UP._replace(manager=ManagerChoice(Manager.NETWORKMANAGER, "")), DNS, LinkFacts(LINKS[0], None)),
        (
            UP._replace(desired=State(), settings=UplinkSettings(LINKS[0].mac, held=frozenset({4}))),
            DNS,
            LinkFacts(LINKS[0], OURS),
        ),
    ],
)
def test_what_is_asked_for_on_a_link(interface: InterfaceReport, dns: DnsSettings, expected: LinkFacts | None) -> None:
    assert resolved_links.asked(interface, Settings(dns=dns), Flags()) == expected


def test_an_interface_that_is_taken_out_of_service() -> None:
    assert list(resolved_links.forget(Interface(2, LINKS[0].mac), LINKS[0])) == []
    assert list(resolved_links.forget(Interface(2, LINKS[0].mac, resolved=True), LINKS[0])) == [
        RevertLinkNames(2, "eth0")
    ]
