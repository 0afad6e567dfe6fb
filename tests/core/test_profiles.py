# SPDX-License-Identifier: GPL-2.0-or-later
"""Profiles, over random states of a model of NetworkManager: what is planned, carried out, and planned again."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qubes_guestnet import flow
from qubes_guestnet.core.operations import ORDER, ApplySysctl, Outcome, Planned, in_order, kind
from qubes_guestnet.core.owned_state import Interface, Record, checksum
from qubes_guestnet.core.report import InterfaceReport
from qubes_guestnet.core.settings import DnsSettings, Family, Settings, UplinkSettings
from qubes_guestnet.core.uplink import networkmanager as nm
from qubes_guestnet.core.uplink import profiles
from qubes_guestnet.core.uplink.desired import Flags, Style, StyleChoice
from qubes_guestnet.core.uplink.networkmanager import Manager, ManagerChoice
from qubes_guestnet.core.uplink.profiles import Device, Facts, ProfileFacts
from qubes_guestnet.core.uplink.service_operations import (
    ActivateProfile,
    LoadProfile,
    PublishProfile,
    ReapplyProfile,
    RemoveProfile,
    RewriteProfile,
)
from qubes_guestnet.core.values import Link, State
from qubes_guestnet.errors import GuestnetError
from tests.core.memory import Memory

many = settings(max_examples=400, deadline=None, derandomize=True)

MAC = "00:16:3e:5e:6c:05"
LINK = Link(2, "eth0", MAC)
NAME, UUID = nm.file_name("eth0"), nm.profile_uuid(MAC)
STALE, OFFICE = nm.file_name("eth9"), "office.nmconnection"
OLD, NEW, OTHERS = b"id=old", b"id=new", b"id=of another program"
FORMER = "[connection]\ninterface-name=ens6f0\n"


class Killed(BaseException):
    """SIGKILL: nothing is tidied up."""


class Refused(GuestnetError):
    """By the model."""


class NetworkManager:
    """A model: profiles on disk, those it has read, and the one in force on eth0.

    It puts a profile that it has not read before in force by itself, if it manages the device and nothing is in force.

    Attributes:
        killed: at how manieth operation the agent is killed; never with -1.
        refused: kinds of operations that fail.
    """

    def __init__(
        self, *, running: bool, managed: bool, disk: bytes | None, read: bytes | None, force: bytes | None, down: bool
    ) -> None:
        self.running, self.managed = running, managed
        self.disk = {NAME: disk} if disk else {}
        self.read = {UUID: read} if running and read else {}
        self.force = force if self.read and managed and not down else None
        self.disk.update({STALE: b"id=stale", OFFICE: FORMER.encode()})
        self.down = down  # by the user, on purpose
        self.killed, self.refused = -1, frozenset[str]()
        self.log: list[Any] = []
        self.ledger = Memory()

    def observe(self, record: Record, so_far: Outcome, text: bytes | None) -> Facts:
        """As `uplink.networkmanager` does."""
        found = []
        if text is not None:
            profile = ProfileFacts(LINK, MAC, text, self.disk.get(NAME) == text)
            if not profiles.in_force(profile, record.interface(LINK), so_far):
                profile = profile._replace(device=self.device())
            found.append(profile)
        stale = tuple((name, "") for name in (STALE, NAME) if name in self.disk and (name == STALE or text is None))
        saved = ((OFFICE, self.disk[OFFICE].decode()),)
        return Facts(tuple(found), stale, () if text is not None else (LINK,), saved, frozenset({"ens6", "eth0"}))

    def device(self) -> Device:
        if not self.running:
            return Device.ABSENT
        if self.force is not None:
            return Device.OURS
        return Device.OTHER if self.managed else Device.UNMANAGED

    def carry_out(self, op: Any) -> None:
        if self.killed == len(self.log):
            raise Killed
        self.log.append(op)
        if kind(op) in self.refused:
            raise Refused(str(op))
        _ACTIONS[type(op)](self, op)

    def _load(self, op: LoadProfile) -> None:
        if not self.running or op.name not in self.disk:
            raise Refused(str(op))
        new = UUID not in self.read
        self.read[UUID] = self.disk[op.name]
        if new and self.managed and self.force is None and not self.down:
            self.force = self.read[UUID]

    def _activate(self, op: ActivateProfile) -> None:
        if not self.running or not self.managed or op.uuid not in self.read:
            raise Refused(str(op))
        self.force = self.read[op.uuid]

    def _reapply(self, op: ReapplyProfile) -> None:
        if self.force is None:
            raise Refused(str(op))
        self.force = self.read[op.uuid]

    def _remove(self, op: RemoveProfile) -> None:
        self.disk.pop(op.name, None)
        if op.name == NAME:
            self.read.pop(UUID, None)
            self.force = None

    def settle(self, text: bytes | None) -> Outcome:
        """One pass."""

        def plan(record: Record, so_far: Outcome) -> Planned:
            planned = profiles.plan(self.observe(record, so_far, text), record, so_far)
            return planned._replace(ops=in_order(planned.ops))

        return flow.settle(plan, dict.fromkeys(ORDER, self.carry_out), self.ledger)[1]


def _publish(world: NetworkManager, op: PublishProfile) -> None:
    world.disk[op.name] = op.text


def _rewrite(world: NetworkManager, op: RewriteProfile) -> None:
    world.disk[op.name] = op.text.encode()


_ACTIONS: dict[type, Any] = {
    ApplySysctl: lambda *_: None,
    PublishProfile: _publish,
    RewriteProfile: _rewrite,
    LoadProfile: NetworkManager._load,
    ActivateProfile: NetworkManager._activate,
    ReapplyProfile: NetworkManager._reapply,
    RemoveProfile: NetworkManager._remove,
}

TEXTS = st.sampled_from((None, OLD, NEW, OTHERS))
WORLDS = st.fixed_dictionaries(
    {"running": st.booleans(), "managed": st.booleans(), "disk": TEXTS, "read": TEXTS, "down": st.booleans()}
)


def build(state: dict[str, Any], profile: str) -> NetworkManager:
    """A world, and what the record says of it: "" after a first start, else the sum of what was in force."""
    if profile.startswith(profiles.READ) and state["disk"] == OLD:
        state = {**state, "read": OLD}
    world = NetworkManager(**state, force=state["read"])
    world.ledger.save(Record((Interface(2, MAC, profile=profile),)))
    return world


RECORDED = st.sampled_from(("", nm.UNREAD, checksum(OLD), checksum(NEW), profiles.READ + checksum(OLD)))


@many
@given(WORLDS, RECORDED, st.sampled_from((OLD, NEW)))
def test_a_profile_is_put_in_force_and_a_second_plan_is_empty(
    state: dict[str, Any], recorded: str, text: bytes
) -> None:
    world = build(state, recorded)
    known = recorded == checksum(text) and world.disk.get(NAME) == text
    down = world.force is None
    outcome = world.settle(text)
    assert outcome.errors == ()
    assert world.disk[NAME] == text
    assert world.disk[OFFICE] == FORMER.replace("ens6f0", "ens6").encode(), "the user's own profile is only mended"
    assert STALE not in world.disk
    if world.running and world.managed and not known:
        assert world.read[UUID] == text
        taken_down = recorded and not recorded.startswith(profiles.READ) and down and world.force is None
        assert world.force == text or taken_down, "one that was in force before and is not now stays down"
    kinds = {kind(op) for op in world.log}
    if recorded and not recorded.startswith(profiles.READ):
        assert "ActivateProfile" not in kinds, "nor is it put in force by us"
    elif down:
        assert "ReapplyProfile" not in kinds, "there was nothing in force to change"
    before = len(world.log)
    assert world.settle(text) == Outcome(), [str(op) for op in world.log[before:]]


@many
@given(WORLDS, RECORDED, st.integers(0, 8), st.sampled_from((OLD, NEW)))
def test_killed_at_any_operation_the_next_pass_ends_where_this_one_would(
    state: dict[str, Any], recorded: str, at: int, text: bytes
) -> None:
    world = build(state, recorded)
    world.killed = at
    try:
        world.settle(text)
    except Killed:
        world.killed = -1
        world.settle(text)
    undisturbed = build(state, recorded)
    undisturbed.settle(text)
    assert (world.disk, world.read, world.force) == (undisturbed.disk, undisturbed.read, undisturbed.force)


@many
@given(WORLDS, RECORDED, st.frozensets(st.sampled_from(ORDER)))
def test_what_fails_stops_nothing_but_what_depends_on_it_and_heals(
    state: dict[str, Any], recorded: str, refused: frozenset[str]
) -> None:
    world = build(state, recorded)
    world.refused = refused
    world.settle(NEW)
    assert len(world.log) == len(set(world.log)), "nothing is tried twice in one pass"
    for kind_, name in ((RemoveProfile, STALE), (PublishProfile, NAME)):
        assert (kind_.__name__ in refused) or (name in world.disk) is (kind_ is PublishProfile)
    if "PublishProfile" in refused and world.disk.get(NAME) != NEW:
        assert not [op for op in world.log if isinstance(op, LoadProfile)], "another text is not loaded in its place"
    world.refused = frozenset()
    outcome = world.settle(NEW)
    assert outcome.errors == ()
    assert world.disk[NAME] == NEW
    assert world.settle(NEW) == Outcome()


@many
@given(WORLDS, RECORDED)
def test_an_interface_without_a_profile_has_none_left_and_starts_anew(state: dict[str, Any], recorded: str) -> None:
    world = build(state, recorded)
    assert world.settle(None).errors == ()
    assert set(world.disk) == {OFFICE}
    assert world.ledger.record.interface(LINK).profile == ""
    assert world.settle(None) == Outcome()


def test_a_fresh_profile_word_by_word() -> None:
    profile = ProfileFacts(LINK, MAC, NEW, device=Device.OTHER)
    planned = profiles.plan(Facts((profile,)), Record(), Outcome())
    assert [str(op) for op in in_order(planned.ops)] == [
        "systemd-sysctl for eth0",
        f"publish {nm.FOLDER}/{NAME}",
        f"nmcli connection load {nm.FOLDER}/{NAME}",
        'nmcli connection up "VM uplink eth0" ifname eth0',
    ]
    assert planned.record.interface(LINK).profile == ""


@pytest.mark.behaviour("B157")
@pytest.mark.parametrize("works", [True, False])
def test_an_interface_that_another_program_has_brought_up_with_our_profile_stays_up(works: bool) -> None:
    """core-agent's profile has the same uuid, and NetworkManager may refuse to reapply ours in its place."""
    profile = ProfileFacts(LINK, MAC, NEW, on_disk=True, device=Device.OURS, works=works)
    record = Record()
    first = profiles.plan(Facts((profile,)), record, Outcome())
    assert (ReapplyProfile(NAME, "eth0", UUID) in first.ops) is not works
    assert LoadProfile(NAME) in first.ops
    assert not any(isinstance(op, ActivateProfile) for op in first.ops)
    then = profiles.plan(Facts((profile,)), first.record, Outcome(done=tuple(first.ops)))
    assert (then.ops, then.record.interface(LINK).profile) == ((), checksum(NEW))


def test_a_profile_that_is_not_on_disk_is_not_taken_for_read_when_networkmanager_starts() -> None:
    """It may start before the file is there."""
    profile = ProfileFacts(LINK, MAC, NEW, device=Device.ABSENT)
    assert profiles.plan(Facts((profile,)), Record(), Outcome()).record.interface(LINK).profile == ""
    there = profiles.plan(Facts((profile._replace(on_disk=True),)), Record(), Outcome()).record.interface(LINK)
    assert there.profile == profiles.READ + checksum(NEW)


WAITING = {
    Device.ABSENT: (f"waiting for NetworkManager to start and load {nm.FOLDER}/{NAME}",),
    Device.UNMANAGED: (f"waiting for udev to release eth0, so that NetworkManager activates {nm.FOLDER}/{NAME}",),
    Device.UNASKED: (),
}


@pytest.mark.parametrize(("device", "waits"), WAITING.items())
def test_what_is_waited_for(device: Device, waits: tuple[str, ...]) -> None:
    profile = ProfileFacts(LINK, MAC, NEW, on_disk=True, device=device)
    assert profiles.plan(Facts((profile,)), Record(), Outcome()).waits == waits


@pytest.mark.parametrize(
    ("state", "uuid", "expected"),
    [("100 (connected)", UUID, Device.OURS), ("10 (unmanaged)", "", Device.UNMANAGED),
     ("10 (unmanaged)", UUID, Device.OURS),
     ("30 (disconnected)", "", Device.OTHER), ("100 (connected)", "another", Device.OTHER)],
)  # fmt: skip
def test_what_nmcli_says_of_an_interface(state: str, uuid: str, expected: Device) -> None:
    assert profiles.device(state, uuid, MAC) is expected


FAMILY = Family(ipaddress.ip_interface("10.137.0.5/32"), ipaddress.ip_address("10.138.0.1"))
MANAGED = InterfaceReport(
    UplinkSettings(MAC, FAMILY), LINK, StyleChoice(Style.DEVICE, ""), State(addresses=frozenset({FAMILY.interface})),
    manager=ManagerChoice(Manager.NETWORKMANAGER, ""),
)  # fmt: skip

UNKNOWN = MANAGED._replace(desired=State(), settings=UplinkSettings(MAC, held=frozenset({4})))


@pytest.mark.parametrize(
    ("interface", "dns", "has", "keeps"),
    [
        (MANAGED, DnsSettings(), True, True),
        (MANAGED._replace(link=None), DnsSettings(), False, False),
        (MANAGED._replace(removed=True), DnsSettings(), False, False),
        (MANAGED._replace(manager=ManagerChoice()), DnsSettings(), False, False),
        (MANAGED._replace(settings=UplinkSettings(MAC, FAMILY, held=frozenset({6}))), DnsSettings(), False, True),
        (MANAGED, DnsSettings(held=True), False, True),
        (MANAGED._replace(desired=State()), DnsSettings(), False, False),
        (
            MANAGED._replace(desired=State(), settings=UplinkSettings(MAC, held=frozenset({4}))),
            DnsSettings(),
            False,
            True,
        ),
    ],
)
def test_which_interface_has_a_profile_and_which_keeps_it(
    interface: InterfaceReport, dns: DnsSettings, has: bool, keeps: bool
) -> None:
    profile = profiles.asked(interface, Settings(dns=dns), Flags())
    assert (profile is not None) == has
    assert profiles.keeps(interface) == keeps
    if profile is not None:
        assert (profile.link, profile.mac) == (LINK, MAC)
        assert b"address1=10.137.0.5/32" in profile.text


def test_an_interface_that_is_taken_out_of_service() -> None:
    assert list(profiles.forget(Interface(2, MAC), LINK)) == []
    assert list(profiles.forget(Interface(2, MAC, profile="1234"), LINK)) == [RemoveProfile(NAME, UUID)]
