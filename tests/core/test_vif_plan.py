# SPDX-License-Identifier: GPL-2.0-or-later
"""The vifs of a provider over random states, faults and kills: models of nftables and of the kernel, and a record.

After each single operation: nothing passes that may not. In the end: what is desired is there, a second plan is empty,
and what others made is as it was.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qubes_guestnet.core.nft import limits, rules_text
from qubes_guestnet.core.operations import Outcome
from qubes_guestnet.core.plan import Verb
from qubes_guestnet.core.provider import vif_order, vif_plan
from qubes_guestnet.core.provider.vif import GONE, Device, Vif
from qubes_guestnet.core.provider.vif_operations import (
    PrepareVif,
    RemoveElements,
    SetElement,
    SetLimits,
    WriteTunable,
    WriteVifRecord,
)
from qubes_guestnet.core.provider.vif_plan import Common, Facts
from qubes_guestnet.core.shared_operations import PurgeConntrack
from qubes_guestnet.core.values import Link
from qubes_guestnet.core.vif_name import parse_name
from qubes_guestnet.system.nft.program import NftError, Refused
from tests.core.provider_model import ADDRESSES, BACKEND, KINDS, MAC, NAMES, OFF, ON, Killed, World

many = settings(max_examples=200, deadline=None, derandomize=True)

COMMON = st.builds(
    Common,
    st.sampled_from((ON, OFF)),
    st.sampled_from((0, 1400)),
    st.sampled_from((limits.Limits(), limits.Limits(100, 1000))),
    st.just(limits.USUAL),
    st.booleans(),
)
ACTION = st.fixed_dictionaries(
    {
        "what": st.sampled_from(("online", "online", "replug", "unplug", "offline", "sweep", "flush", "settings")),
        "name": st.sampled_from(NAMES),
        # One qube has one, the same or another after each start; a stub domain's vif has the same as its qube's.
        "addresses": st.sampled_from((ADDRESSES[:1], ADDRESSES[:2], ADDRESSES[::2], ADDRESSES[1::2], ())),
        "fails": st.sampled_from((None, None, None, *KINDS)),
        "killed": st.sampled_from((0, 0, 0, 1, 2, 3, 5, 8, 13)),
        "settings": st.sampled_from((ON, OFF)),
    }
)


def act(world: World, each: dict[str, Any]) -> None:
    name = each["name"]
    world.fails, world.killed, world.count = frozenset({each["fails"]} - {None}), each["killed"], 0
    try:
        if each["what"] == "online":
            if world.link(name) is None:
                world.plug(name, each["addresses"])
            world.online(name)
        elif each["what"] == "replug":
            world.plug(name, each["addresses"])
        elif each["what"] == "unplug":
            world.unplug(name)
        elif each["what"] == "offline" and name in world.records:
            world.drop(world.records[name])
        elif each["what"] == "flush":
            for family in ("ip", "ip6"):
                for own in ("allowed", "downstream"):
                    keys = [key for key in world.nft.elements(family, "qubes", own) if "10.9.0.9" not in key]
                    if keys:
                        world.nft.load(f"delete element {family} qubes {own} {{ {', '.join(keys)} }}\n")
        elif each["what"] == "settings":
            world.common = world.common._replace(settings=each["settings"])
        world.sweep()
    except Killed:
        pass


@many
@given(COMMON, st.lists(ACTION, min_size=1, max_size=6))
@pytest.mark.behaviour("B50", "B53", "B148")
def test_at_every_moment_nothing_passes_that_may_not_and_in_the_end_all_is_as_desired(
    common: Common, actions: list[dict[str, Any]]
) -> None:
    world = World(common)
    for each in actions:
        act(world, each)
    world.fails, world.killed = frozenset(), 0
    for name, addresses in world.qubes.items():
        if addresses:
            outcome = world.online(name)
            assert not outcome.errors
    assert not world.sweep().errors
    world.as_desired()
    assert world.sweep() == Outcome(), "a second plan is empty"
    for name in tuple(world.records):
        world.unplug(name)
    assert not world.sweep().errors
    assert not world.records
    assert world.of_others() == world.foreign
    assert not any(world.allowed(name) for name in NAMES)
    assert world.sweep() == Outcome()


def fresh(name: str = "vif4.0", addresses: Any = ADDRESSES[::2]) -> World:
    world = World(Common(ON))
    world.plug(name, addresses)
    assert not world.online(name).errors
    world.as_desired()
    return world


@pytest.mark.behaviour("B50")
@pytest.mark.parametrize("kind", [PurgeConntrack, WriteVifRecord, SetLimits, SetElement, WriteTunable, PrepareVif])
def test_a_link_stays_down_where_anything_before_it_is_refused(kind: type) -> None:
    world = World(Common(ON))
    world.plug("vif4.0", ADDRESSES[::2])
    world.fails = frozenset({kind})
    assert world.online("vif4.0").errors
    link = world.link("vif4.0")
    assert link is not None
    assert not link.up


@pytest.mark.behaviour("B50")
def test_sets_that_others_emptied_are_filled_again_and_nothing_else_of_the_vif_is_changed() -> None:
    world = fresh()
    assert world.refill() == Outcome()
    world.nft.load(rules_text.detach("vif4.0", ADDRESSES[::2], (), "") + limits.detach("vif4.0"))
    assert not world.allowed("vif4.0")
    outcome = world.refill()
    assert not outcome.errors
    assert {type(op) for op in outcome.done} == {SetLimits, SetElement}
    world.as_desired()
    assert world.refill() == Outcome()


def test_what_one_vif_is_refused_keeps_nothing_from_another() -> None:
    world = World(Common(ON))
    for name, addresses in (("vif4.0", ADDRESSES[:1]), ("vif5.0", ADDRESSES[1:2])):
        world.plug(name, addresses)
        assert not world.online(name).errors
    world.nft.load(
        rules_text.detach("vif4.0", ADDRESSES[:1], (), "") + rules_text.detach("vif5.0", ADDRESSES[1:2], (), "")
    )
    begin = world.begin

    def one_refused(ops: tuple[Any, ...]) -> Callable[[], None]:
        return partial(world._refuse, ops[0]) if any(op.name == "vif4.0" for op in ops) else begin(ops)

    def carried(op: Any) -> None:
        if isinstance(op, SetElement) and op.name == "vif4.0":
            raise Refused("nft: no")
        world.nft.load(op.text)

    world.begin = one_refused  # type: ignore[method-assign]
    world.carry_out = carried  # type: ignore[method-assign]
    assert world.sweep().errors
    assert world.allowed("vif5.0") == set(ADDRESSES[1:2])
    assert not world.allowed("vif4.0")


def test_where_nft_does_not_answer_nothing_is_tried_one_by_one() -> None:
    world = World(Common(ON))
    world.plug("vif4.0", ADDRESSES[:1])
    asked = []

    def hangs(ops: tuple[Any, ...]) -> Callable[[], None]:
        asked.append(ops)
        raise NftError("nft: too slow")

    world.begin = hangs  # type: ignore[method-assign]
    (error,) = world.online("vif4.0").errors
    assert error.problem == "nft: too slow"
    assert len(asked) == 1


def test_a_vif_that_went_while_it_was_set_up() -> None:
    world = World(Common(ON))
    world.plug("vif4.0", ADDRESSES[:1])
    world.kernel.before = lambda op: world.unplug("vif4.0") if op.verb is Verb.LINK_UP else None
    (error,) = world.online("vif4.0").errors
    assert error.problem == "went"


@pytest.mark.behaviour("B117")
def test_a_failed_end_is_tried_again_and_its_record_stays_until_then() -> None:
    world = fresh()
    world.unplug("vif4.0")
    world.fails = frozenset({PurgeConntrack})
    assert world.drop(world.records["vif4.0"]).errors
    assert world.records["vif4.0"].device == GONE
    world.fails = frozenset()
    assert not world.sweep().errors
    assert not world.records


@pytest.mark.behaviour("B117")
def test_another_device_with_the_name_is_a_stranger() -> None:
    world = fresh()
    world.plug("vif4.0", ADDRESSES[1:2])
    assert not world.sweep().errors
    assert not world.allowed("vif4.0")
    assert world.records["vif4.0"] == Vif(parse_name("vif4.0"), MAC.format(4), "vif", device=GONE)


def test_addresses_stay_protected_where_it_is_not_known_who_may_come_back() -> None:
    vif, other = (Vif(parse_name(name), MAC.format(1), "vif", ADDRESSES[1:2]) for name in ("vif4.0", "vif5.0"))
    ways = ((ON, True, False), (ON, False, True), (ON._replace(held=frozenset({"connected"})), True, True))
    ways += ((ON._replace(active=False), True, True),)
    for settings_now, sure, kept in ways:
        ops = vif_plan.lock_out(vif, Common(settings_now), (), {}, sure=sure)
        assert isinstance(ops[0], RemoveElements)
        assert ("downstream" not in ops[0].text) is kept
    (first, *_) = vif_plan.lock_out(vif, Common(ON), (other,), {}, sure=True)
    assert isinstance(first, RemoveElements)
    assert "downstream" not in first.text


def test_without_an_address_there_is_no_connection_to_forget() -> None:
    vif = Vif(parse_name("vif4.0"), MAC.format(4), "vif", device=Device(1, BACKEND))
    ops = vif_plan.lock_out(vif, Common(ON), (), {}, sure=True)
    assert [type(op) for op in ops] == [RemoveElements]
    found = vif_plan.report(Facts(vif, None, Link(1, "vif4.0", BACKEND, driver="vif")), Common(ON))
    assert not found.seen
    assert not any(isinstance(op, PurgeConntrack) for op in vif_plan.set_up(found, None, Outcome(), fresh=True))
    assert vif_plan.report(Facts(vif, None, None), Common(ON)).link is None


@pytest.mark.behaviour("B58")
def test_a_vif_that_shares_an_address_is_checked_by_the_routes_as_they_are_now() -> None:
    first, second = (Vif(parse_name(name), MAC.format(4), "vif_ioemu", ADDRESSES[:1]) for name in NAMES[:2])
    path = ("ipv4", "conf", "vif4.0", "rp_filter")
    assert vif_plan.source_checks((first,)) == (path,)
    (op,) = vif_plan.checks(second, (first,), (first, second), {path: "1"})
    assert (op.name, str(op)) == ("vif5.0", "sysctl net/ipv4/conf/vif4.0/rp_filter=2")
    assert vif_plan.checks(second, (first,), (first, second), {path: "2"}) == ()
    assert vif_plan.checks(second, (first,), (first, second), {path: None}) == ()


def test_addresses_that_a_vif_may_not_use_now_are_taken_out_of_the_sets() -> None:
    """As when IPv6 goes from its provider."""
    vif = Vif(parse_name("vif4.0"), MAC.format(4), "vif", ADDRESSES)
    present = vif_order.adding("\n".join(vif_plan.allowed(vif, Common(ON))))
    wrong = vif_plan.wrong_elements(vif, Common(OFF), present)
    assert vif_plan.wrong_elements(vif, Common(ON), present) == ()
    assert wrong
    assert all(line.startswith("delete element ip6 qubes ") for line in wrong)
