# SPDX-License-Identifier: GPL-2.0-or-later
"""A plan as a difference: every kind of operation has what is, what will be, and a reason."""

from __future__ import annotations

import ipaddress

import pytest

from qubes_guestnet.core.operations import ORDER
from qubes_guestnet.core.plan import Op, Verb
from qubes_guestnet.core.provider.provider_operations import CloseForwarding
from qubes_guestnet.core.provider.provider_report import Lines
from qubes_guestnet.core.provider.rules_operations import LoadRules
from qubes_guestnet.core.provider.vif_operations import OpenVif, SetElement, WriteTunable
from qubes_guestnet.core.provider.vif_order import tunables
from qubes_guestnet.core.render import changes
from qubes_guestnet.core.render.changes import ABSENT, Change
from qubes_guestnet.core.render.status import as_plan
from qubes_guestnet.core.report import Report
from qubes_guestnet.core.uplink.desired import Flags, Style, StyleChoice, desired
from qubes_guestnet.core.uplink.desired import tunables as uplink_tunables
from qubes_guestnet.core.values import GROUP_UPLINK, Neighbour, Route, State, Tunable
from tests.core.test_operations import WORDS
from tests.core.test_provider_report import WELL as PROVIDED
from tests.core.test_report import DONE, RESOLVER, STATE, UPLINK, WELL

SAMPLES = tuple(each for each in WORDS.values() if not isinstance(each, Op))
ADDRESS, GATEWAY = ipaddress.ip_interface("10.137.0.5/32"), ipaddress.ip_address("10.138.0.1")
ANY, ANY6 = ipaddress.ip_network("0.0.0.0/0"), ipaddress.ip_network("::/0")


def of_uplink(op: Op, observed: State = STATE, choice: StyleChoice = DONE.choice) -> Change:
    """The one change of a report in which this is to do."""
    interface = DONE._replace(plan=(op,), observed=observed, choice=choice)
    (change,) = changes.changes(WELL._replace(interfaces=(interface,)))
    assert (change.operation, change.interface) == (str(op), "eth0")
    return change


def op(verb: Verb, subject: object = None) -> Op:
    return Op(verb, 2, "eth0", subject)  # type: ignore[arg-type]


UPLINK_OPS = {
    "up": (op(Verb.LINK_UP), STATE, "down", "up"),
    "down": (op(Verb.LINK_DOWN), STATE, "up", "down"),
    "group": (op(Verb.LINK_GROUP, GROUP_UPLINK), State(group=5), "5", "1"),
    "mtu": (op(Verb.LINK_MTU, 1400), State(mtu=1500), "1500", "1400"),
    "address": (op(Verb.ADDRESS_ADD, ADDRESS), State(), ABSENT, "10.137.0.5/32"),
    "address that goes": (op(Verb.ADDRESS_DEL, ADDRESS), STATE, "10.137.0.5/32", ABSENT),
    "neighbour": (op(Verb.NEIGHBOUR_SET, Neighbour(GATEWAY)), State(), ABSENT, "fe:ff:ff:ff:ff:ff permanent"),
    "neighbour that another one claims": (
        op(Verb.NEIGHBOUR_SET, Neighbour(GATEWAY)),
        State(neighbours=frozenset({Neighbour(GATEWAY, "02:00:00:00:00:01", permanent=False)})),
        "02:00:00:00:00:01", "fe:ff:ff:ff:ff:ff permanent",
    ),
    "neighbour that does not answer": (
        op(Verb.NEIGHBOUR_SET, Neighbour(GATEWAY)),
        State(neighbours=frozenset({Neighbour(GATEWAY, "", permanent=True)})),
        "unresolved permanent", "fe:ff:ff:ff:ff:ff permanent",
    ),
    "neighbour that goes": (op(Verb.NEIGHBOUR_DEL, GATEWAY), STATE, str(GATEWAY), ABSENT),
    "route": (op(Verb.ROUTE_ADD, Route(ANY)), State(), ABSENT, "default dev eth0 scope link proto 81"),
    "route that goes": (op(Verb.ROUTE_DEL, Route(ANY)), STATE, "default dev eth0 scope link proto 81", ABSENT),
    "setting": (
        op(Verb.TUNABLE, Tunable(("ipv6", "conf", "eth0", "accept_ra"), "0")),
        State(tunables=frozenset({Tunable(("ipv6", "conf", "eth0", "accept_ra"), "1")})), "1", "0",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("operation", "observed", "before", "after"), UPLINK_OPS.values(), ids=UPLINK_OPS.keys())
def test_an_operation_on_an_uplink(operation: Op, observed: State, before: str, after: str) -> None:
    change = of_uplink(operation, observed)
    assert (change.before, change.after) == (before, after)
    assert len(change.reason.split()) > 3


@pytest.mark.parametrize(
    ("route", "style", "reason"),
    [
        (Route(ANY), StyleChoice(Style.DEVICE, "default"), "default route: device route (default)"),
        (Route(ANY, GATEWAY, onlink=True), StyleChoice(Style.GATEWAY, "guestnet.toml"),
         "default route: gateway route (guestnet.toml)"),
        (Route(ANY6, ipaddress.ip_address("fe80::1"), onlink=True), DONE.choice, "IPv6 always leaves by the gateway"),
        (Route(ipaddress.ip_network(GATEWAY)), DONE.choice, "the gateway is reached here"),
    ],
)  # fmt: skip
def test_the_reason_of_a_route(route: Route, style: StyleChoice, reason: str) -> None:
    assert of_uplink(op(Verb.ROUTE_ADD, route), choice=style).reason == reason


def test_every_verb_has_a_reason_on_an_uplink_and_on_a_vif() -> None:
    own = {Verb.TUNABLE}
    assert {*changes._UPLINK, Verb.ROUTE_ADD} == set(Verb) - own
    assert set(changes._VIF) == set(Verb) - own


def test_every_setting_that_is_written_has_a_reason() -> None:
    written = {*uplink_tunables("eth0"), *tunables("vif4.0", ipv6=True), *tunables("vif4.0", ipv6=False)}
    assert {tunable.path[-1] for tunable in written} <= set(changes._TUNABLES)


def test_every_kind_of_operation_is_explained() -> None:
    assert set(changes.KINDS) == set(ORDER) - {"Op"}
    for sample in SAMPLES:
        (change,) = changes.changes(Report(WELL.settings, todo=(sample,)))
        assert change.operation == str(sample)
        assert change.after
        assert len(change.reason.split()) > 2, change


def test_the_order_is_that_of_the_plan() -> None:
    provided = PROVIDED._replace(before=Lines((CloseForwarding(4),)), after=Lines((SAMPLES[1],)))
    report = WELL._replace(
        interfaces=(DONE._replace(plan=(op(Verb.LINK_UP),)),), resolver=RESOLVER._replace(current=b""),
        todo=(SAMPLES[0],), rules_todo=(LoadRules(("ip", "ip6"), ""),), provided=provided,
    )  # fmt: skip
    assert tuple(change.operation for change in changes.changes(report)) == report.plan
    rules, closing, _, publish, *_ = changes.changes(report)
    assert (rules.operation, rules.after) == ("nft -f: base rules of the tables ip qubes and ip6 qubes", "in force")
    assert closing.after == "0"
    assert (publish.before, publish.after) == ("no nameserver", "10.139.1.1 10.139.1.2")
    assert publish.reason == "written by qubes-guestnet (no other program manages this file)"


def test_what_is_to_do_for_a_vif() -> None:
    setting = tunables("vif4.0", ipv6=False)[0]
    todo = (
        WriteTunable("vif4.0", setting),
        SetElement("vif4.0", "add element x"),
        SetElement("vif4.0", "delete element x"),
        OpenVif(Op(Verb.LINK_UP, 7, "vif4.0")),
    )
    found = changes.changes(Report(WELL.settings, provided=PROVIDED._replace(after=Lines(todo))))
    assert [(change.interface, change.before, change.after) for change in found] == [
        ("vif4.0", "", setting.value),
        ("vif4.0", ABSENT, "present"),
        ("vif4.0", "present", ABSENT),
        ("vif4.0", "down", "up"),
    ]


def test_what_another_program_has_to_do_first() -> None:
    (change,) = changes.changes(Report(WELL.settings, todo=("NetworkManager has to start",)))
    assert change == Change("NetworkManager has to start", "", "", "later", "another program has to act first")


def test_ends_that_nothing_was_observed_of() -> None:
    """Of a vif there is no observed state in a report."""
    subjects = (op(Verb.LINK_MTU, 1400), op(Verb.NEIGHBOUR_SET, Neighbour(GATEWAY)))
    assert [changes._ends(each, None) for each in subjects] == [("", "1400"), (ABSENT, "fe:ff:ff:ff:ff:ff permanent")]
    assert changes._ends(op(Verb.TUNABLE, Tunable(("ipv4", "x"), "1")), None) == ("", "1")


def test_the_line_of_a_plan_is_a_command_with_a_comment() -> None:
    state = desired(UPLINK, Style.DEVICE, Flags())
    ops = (op(Verb.LINK_UP), op(Verb.LINK_MTU, 1400))
    report = WELL._replace(interfaces=(DONE._replace(plan=ops, observed=state),), todo=(SAMPLES[-1],))
    lines = list(map(str, as_plan(report)))
    assert lines[0] == "ip link set dev eth0 up  # down → up: the interface is ready"
    assert [line.partition("  # ")[0] for line in lines] == list(report.plan)
