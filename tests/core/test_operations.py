# SPDX-License-Identifier: GPL-2.0-or-later
"""The kinds of operations, their order and their words; and `flow`, over random plans and what is refused of them."""

from __future__ import annotations

import ipaddress
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qubes_guestnet import flow
from qubes_guestnet.core import operations, shared_operations
from qubes_guestnet.core.dns import redirection_operations
from qubes_guestnet.core.dns.redirection_operations import KeepForeignRedirection, LoadRedirection, SetFirewallServers
from qubes_guestnet.core.dns.resolv_conf import FileFacts
from qubes_guestnet.core.dns.resolved import LinkNames
from qubes_guestnet.core.endpoint import Endpoint
from qubes_guestnet.core.firewall import consequences
from qubes_guestnet.core.firewall import operations as firewall
from qubes_guestnet.core.firewall.binding import Bound
from qubes_guestnet.core.firewall.name_export import export
from qubes_guestnet.core.firewall.rules import Ruleset
from qubes_guestnet.core.operations import (
    BESIDE,
    ENDS_ROUND,
    JOINED,
    NEEDS_RECORD,
    ORDER,
    TRANSACTION,
    VANISHES_ALONE,
    WHOLE,
    ApplySysctl,
    Outcome,
    Planned,
    hinders,
    in_order,
    instead,
    kind,
)
from qubes_guestnet.core.owned_state import Record
from qubes_guestnet.core.plan import Op, Verb
from qubes_guestnet.core.provider import provider_operations, rules_operations, vif_operations
from qubes_guestnet.core.provider.provider_operations import (
    ChangeDownstream,
    CloseForwarding,
    EndFlowtable,
    LeaveGuard,
    LoadFlowtable,
    OpenForwarding,
    StandGuard,
)
from qubes_guestnet.core.provider.rules_operations import LoadRules, LoadRulesInParts, PurgeUntranslated, UnloadRules
from qubes_guestnet.core.provider.vif import Vif
from qubes_guestnet.core.shared_operations import PurgeConntrack, UnitJob
from qubes_guestnet.core.uplink import service_operations
from qubes_guestnet.core.uplink.service_operations import (
    ActivateProfile,
    LoadProfile,
    PublishFile,
    PublishProfile,
    ReapplyProfile,
    RemoveProfile,
    RevertLinkNames,
    RewriteProfile,
    SetLinkNames,
    StartHooks,
)
from qubes_guestnet.core.values import Tunable
from qubes_guestnet.core.vif_name import parse_name
from qubes_guestnet.dispatch import of_base_rules, of_firewall, of_guard, of_rules, of_uplink, of_vifs
from qubes_guestnet.errors import GuestnetError, Vanished
from tests.core.memory import Memory

Operation = Any  # the sum of all kinds is for the type checker

many = settings(max_examples=300, deadline=None, derandomize=True)
ADDRESS, ADDRESS6 = ipaddress.ip_interface("10.137.0.5/32"), ipaddress.ip_interface("fd09::5/128")
NAMES = LinkNames(("10.139.1.1", "10.139.1.2"), ("~.",), default_route=True)
VIRTUAL = (ipaddress.IPv4Address("10.139.1.1"),)
SERVERS = (Endpoint(ipaddress.ip_address("192.0.2.1")),)
FOLDER = "/etc/NetworkManager/system-connections"
VIF = Vif(parse_name("vif4.0"), "00:16:3e:5e:6c:04", "vif", (ADDRESS.ip,))
RULES = firewall.SetQubeRules(Bound(Ruleset(ADDRESS.ip)))
OF_VIFS: dict[str, Operation] = {
    "ip link set dev vif4.0 down": vif_operations.CloseVif(Op(Verb.LINK_DOWN, 4, "vif4.0")),
    "nft -f: elements and limits of vif4.0 removed": vif_operations.RemoveElements("vif4.0", ""),
    "vif4.0: out of service": vif_operations.RemoveVifRecord("vif4.0"),
    "vif4.0: closed, its device is gone": vif_operations.MarkVifClosed(VIF),
    "vif4.0: taking it out of service is tried again": vif_operations.KeepVifRecord(VIF),
    "vif4.0: recorded": vif_operations.WriteVifRecord(VIF),
    "nft -f: limits of vif4.0": vif_operations.SetLimits("vif4.0", ""),
    'nft add element ip qubes allowed { "vif4.0" . 10.137.0.5 }': vif_operations.SetElement(
        "vif4.0", 'add element ip qubes allowed { "vif4.0" . 10.137.0.5 }'
    ),
    "sysctl net/ipv4/conf/vif4.0/proxy_arp=1": vif_operations.WriteTunable(
        "vif4.0", Tunable(("ipv4", "conf", "vif4.0", "proxy_arp"), "1")
    ),
    "ip link set dev vif4.0 group 2": vif_operations.PrepareVif(Op(Verb.LINK_GROUP, 4, "vif4.0", 2)),
    "ip link set dev vif4.0 up": vif_operations.OpenVif(Op(Verb.LINK_UP, 4, "vif4.0")),
}
WORDS: dict[str, Operation] = {
    **OF_VIFS,
    "systemd-sysctl for eth0": ApplySysctl("eth0"),
    "ip link set dev eth0 up": Op(Verb.LINK_UP, 2, "eth0"),
    f"publish {FOLDER}/office: interface name of the former release changed": RewriteProfile("office", "id=office"),
    f"publish {FOLDER}/qubes-uplink-eth0": PublishProfile("qubes-uplink-eth0", b"id=eth0"),
    f"nmcli connection load {FOLDER}/qubes-uplink-eth0": LoadProfile("qubes-uplink-eth0"),
    'nmcli connection up "VM uplink eth0" ifname eth0': ActivateProfile("qubes-uplink-eth0", "eth0", "1-2"),
    "nmcli device reapply eth0": ReapplyProfile("qubes-uplink-eth0", "eth0", "1-2"),
    f"remove {FOLDER}/qubes-uplink-eth9": RemoveProfile("qubes-uplink-eth9", ""),
    "start hook /rw/config/a /rw/config/b": StartHooks(2, ("/rw/config/a", "/rw/config/b")),
    "resolvectl dns eth0 10.139.1.1 10.139.1.2; resolvectl domain eth0 ~.": SetLinkNames(2, "eth0", NAMES),
    "resolvectl revert eth0": RevertLinkNames(2, "eth0"),
    "nft -f: table inet qubes-offload with a flowtable of 1 devices": LoadFlowtable(((2, "eth0", 1500),), False),
    "nft -f: table inet qubes-offload deleted": EndFlowtable(),
    "sysctl net/ipv4/ip_forward=0": CloseForwarding(4),
    "sysctl net/ipv4/ip_forward=1": OpenForwarding(4),
    "nft: table inet qubes-guard of this process": StandGuard(),
    "nft: table inet qubes-guard deleted": LeaveGuard(),
    "publish /etc/resolv.conf": PublishFile("/etc/resolv.conf", b"", FileFacts()),
    "nft add element ip qubes downstream { 10.137.0.5 }": ChangeDownstream((ADDRESS.ip,), ()),
    "nft -f: virtual DNS 10.139.1.1->192.0.2.1": LoadRedirection(VIRTUAL, SERVERS),
    "nft -f: virtual DNS rejected": LoadRedirection(VIRTUAL, (), "rejected"),
    "nft -f: virtual DNS: keeping another program's rules in dnat-dns: x": KeepForeignRedirection(None, (), (), "x"),
    "conntrack -D: entries of 10.139.1.1, 10.137.0.5": PurgeConntrack((*VIRTUAL, ADDRESS.ip)),
    "nft -f: dns-addr of qubes-firewall: 192.0.2.1": SetFirewallServers((ipaddress.IPv4Address("192.0.2.1"),)),
    "nft -f: base rules of the tables ip qubes, ip6 qubes and arp qubes": LoadRules(("ip", "ip6", "arp"), "rules"),
    "nft -f: base rules of the tables ip qubes and ip6 qubes; restore other programs' parts of our tables: "
    "ip qubes chain mine, each part alone": LoadRulesInParts(("ip", "ip6"), "rules", (("ip", "chain mine {", ""),)),
    "nft -f: tables ip qubes, ip6 qubes and arp qubes deleted": UnloadRules(("ip", "ip6", "arp")),
    "conntrack -D: untranslated entries of the qubes": PurgeUntranslated((ADDRESS.ip,)),
    "systemctl --no-block reload qubes-firewall.service": UnitJob("reload", "qubes-firewall.service"),
    "nft -f: table ip qubes-firewall, our rules in forward": firewall.LoadFirewallTable(4, ("forward",)),
    "nft -f: name servers of ip qubes-firewall: none": firewall.SetDnsServers(4, ()),
    "nft -f: IPv4 addresses of example.org: +10.137.0.5": firewall.ChangeName(4, "example.org", (ADDRESS.ip,)),
    "nft -f: firewall of 10.137.0.5: 0 rules": RULES,
    "nft -f: firewall of 10.137.0.5: removed, everything is dropped": firewall.RemoveQubeRules(ADDRESS.ip),
    "nft -f: chain ip qubes-firewall qbs-10-137-0-5: removed": firewall.RemoveQubeChain(4, "qbs-10-137-0-5"),
    "nft -f: IPv4 addresses of example.org: no rule uses the name, removed": firewall.RemoveName(4, "example.org"),
    "conntrack -D: 1 connection that the firewall refuses now": consequences.EndConnections((b"",)),
    "qubesdb-write /dns/10.137.0.5/: 0 names": consequences.ExportNames((export(ADDRESS.ip, {}),)),
    "qubesdb-write /qubes-firewall-handled/10.137.0.5: one more": consequences.CountHandled((ADDRESS.ip,)),
}


@pytest.mark.parametrize(("words", "op"), WORDS.items(), ids=lambda each: type(each).__name__)
def test_an_operation_reads_as_what_it_does(words: str, op: Operation) -> None:
    assert str(op) == words


def test_every_kind_has_its_place_its_adapter_and_its_words() -> None:
    modules = (operations, service_operations, provider_operations, vif_operations, rules_operations)
    modules += (firewall, consequences, shared_operations, redirection_operations)
    made = (each for module in modules for each in vars(module).values() if isinstance(each, type))
    kinds = {each.__name__ for each in made if each.__module__ in {module.__name__ for module in modules}}
    kinds -= {"Planned", "Outcome"}
    assert len(ORDER) == len(set(ORDER))
    assert {*kinds, "Op"} == set(ORDER) == {kind(op) for op in WORDS.values()}
    uplink = of_uplink(SimpleNamespace(apply=None), SimpleNamespace())  # type: ignore[arg-type]
    vifs = of_vifs(SimpleNamespace(), SimpleNamespace(), SimpleNamespace())  # type: ignore[arg-type]
    provider = {*of_rules(SimpleNamespace()), *of_base_rules(SimpleNamespace()), *vifs}  # type: ignore[arg-type]
    provider |= {*of_guard(SimpleNamespace(), SimpleNamespace())}  # type: ignore[arg-type]
    provider |= {*of_firewall(SimpleNamespace(), SimpleNamespace)}  # type: ignore[arg-type]
    assert {*uplink, *provider} == {*ORDER, TRANSACTION}
    assert set(ORDER) >= ENDS_ROUND | NEEDS_RECORD | JOINED | WHOLE | BESIDE | VANISHES_ALONE
    assert {each.__name__ for each in firewall.ORDER} == WHOLE
    assert not WHOLE & JOINED


EVERYTHING: list[Operation] = [
    *WORDS.values(),
    Op(Verb.ADDRESS_ADD, 2, "eth0", ADDRESS),
    Op(Verb.ADDRESS_ADD, 2, "eth0", ADDRESS6),
    Op(Verb.ADDRESS_DEL, 2, "eth0", ADDRESS),
    Op(Verb.ADDRESS_ADD, 3, "eth1", ADDRESS),
    PublishProfile("qubes-uplink-eth1", b"id=eth1"),
    LoadProfile("qubes-uplink-eth1"),
    ActivateProfile("qubes-uplink-eth1", "eth1", "1-3"),
    ApplySysctl("eth1"),
    StartHooks(3, ("/rw/config/a",)),
    CloseForwarding(6),
]


@many
@given(st.lists(st.sampled_from(EVERYTHING), unique=True))
def test_the_order_is_the_tables_and_within_a_kind_the_planners(ops: list[Operation]) -> None:
    made = in_order(ops)
    assert sorted(map(str, made)) == sorted(map(str, ops))
    for former, later in pairwise(made):
        before, after = ORDER.index(kind(former)), ORDER.index(kind(later))
        assert (before, ops.index(former)) < (after, ops.index(later))


HINDERED = [
    (PublishProfile("a", b""), LoadProfile("a"), True),
    (PublishProfile("a", b""), ActivateProfile("a", "eth0", "1"), True),
    (LoadProfile("a"), ReapplyProfile("a", "eth0", "1"), True),
    (PublishProfile("a", b""), LoadProfile("b"), False),
    (RewriteProfile("a", ""), PublishProfile("a", b""), False),
    (StartHooks(2, ("/a",)), SetLinkNames(2, "eth0", NAMES), False),
    (Op(Verb.ADDRESS_ADD, 2, "eth0", ADDRESS), Op(Verb.ADDRESS_ADD, 2, "eth0", ADDRESS), True),
    (Op(Verb.ADDRESS_ADD, 2, "eth0", ADDRESS), Op(Verb.ADDRESS_ADD, 2, "eth0", ADDRESS6), False),
    (Op(Verb.ADDRESS_ADD, 2, "eth0", ADDRESS), Op(Verb.ADDRESS_ADD, 3, "eth1", ADDRESS), False),
    (Op(Verb.ADDRESS_ADD, 2, "eth0", ADDRESS), Op(Verb.ADDRESS_DEL, 2, "eth0", ADDRESS), False),
    (Op(Verb.NEIGHBOUR_SET, 2, "eth0", ADDRESS), Op(Verb.ADDRESS_ADD, 2, "eth0", ADDRESS), False),
    (Op(Verb.LINK_UP, 2, "eth0"), LoadProfile("a"), False),
    (LoadRedirection(VIRTUAL, SERVERS), PurgeConntrack(VIRTUAL), True),
    (LoadRedirection(VIRTUAL, SERVERS), PurgeConntrack((ADDRESS.ip,)), False),
    (KeepForeignRedirection(None, VIRTUAL, (), ""), PurgeConntrack(VIRTUAL), True),
    *(
        (op, vif_operations.OpenVif(Op(Verb.LINK_UP, 4, "vif4.0")), number > 4)
        for number, op in enumerate(OF_VIFS.values())
    ),
    (vif_operations.SetElement("vif4.0", ""), vif_operations.OpenVif(Op(Verb.LINK_UP, 5, "vif5.0")), False),
    (PurgeConntrack(VIRTUAL, "vif4.0"), vif_operations.WriteVifRecord(VIF), True),
    (vif_operations.WriteVifRecord(VIF), vif_operations.PrepareVif(Op(Verb.LINK_GROUP, 4, "vif4.0", 2)), True),
    (vif_operations.RemoveElements("vif4.0", ""), vif_operations.RemoveVifRecord("vif4.0"), True),
]


@pytest.mark.parametrize(("failed", "op", "expected"), HINDERED)
def test_what_stops_what(failed: Operation, op: Operation, expected: bool) -> None:
    assert hinders(failed, op) is expected


def test_what_stands_in_for_what() -> None:
    assert instead(ReapplyProfile("a", "eth0", "1")) == ActivateProfile("a", "eth0", "1")
    assert instead(ActivateProfile("a", "eth0", "1")) is None


# --- the flow ------------------------------------------------------------------------------------------------------


def plans() -> st.SearchStrategy[list[Operation]]:
    """Without an operation and the one that stands in for it in one plan."""
    return st.lists(st.sampled_from(EVERYTHING), unique=True).filter(lambda ops: not {*map(instead, ops)} & {*ops})


class World:
    """What is to be done in it, until it is done; it refuses and forgets what a test says.

    Attributes:
        left: operations that are still to do.
        refused: refused whenever they are tried.
        kept: False: what is done is undone at once.
        asked: what was tried, in order.
    """

    def __init__(self, left: list[Operation], refused: frozenset[Operation] = frozenset()) -> None:
        self.left, self.refused, self.kept = in_order(left), refused, True
        self.asked: list[Operation] = []

    def plan(self, record: Record, _so_far: Outcome) -> Planned:
        return Planned(self.left, record)

    def carry_out(self, op: Operation) -> None:
        self.asked.append(op)
        if op in self.refused:
            raise GuestnetError(f"refused: {op}")
        if self.kept:
            self.left = tuple(each for each in self.left if each not in (op, *_stood_in_for(op)))

    def settle(self, ledger: Memory | None = None) -> tuple[Planned, Outcome]:
        return flow.settle(self.plan, dict.fromkeys(ORDER, self.carry_out), ledger or Memory())


def _stood_in_for(op: Operation) -> list[Operation]:
    return [each for each in EVERYTHING if instead(each) == op]


@many
@given(plans(), st.frozensets(st.sampled_from(EVERYTHING)))
def test_all_is_done_but_what_is_refused_and_what_depends_on_it(
    ops: list[Operation], refused: frozenset[Operation]
) -> None:
    world = World(ops, refused)
    planned, outcome = world.settle()
    assert len(world.asked) == len(set(world.asked)), "what failed is not tried again in the same pass"
    assert sorted(map(str, outcome.errors)) == sorted(f"refused: {op}" for op in outcome.failed if _says(op, world))
    assert set(planned.ops) == set(world.left) <= set(outcome.failed), "and is in the next plan"
    for op in set(ops) - set(outcome.done):
        stood_in = instead(op)
        if stood_in is not None and stood_in in outcome.done:
            continue
        assert op in refused or any(hinders(other, op) for other in outcome.failed)
    for former, later in pairwise(world.asked):
        same_round = kind(former) not in ENDS_ROUND
        assert not same_round or ORDER.index(kind(former)) <= ORDER.index(kind(later))
    if not refused:
        again = World(list(world.left))
        assert (again.settle()[1], again.asked) == (Outcome(), [])


def _says(op: Operation, world: World) -> bool:
    """Whether an operation that failed has an error of its own: it was tried, and nothing could stand in for it."""
    return op in world.asked and instead(op) is None


@many
@given(plans().filter(bool))
def test_what_does_not_persist_is_one_error_after_a_bounded_number_of_rounds(ops: list[Operation]) -> None:
    world = World(ops)
    world.kept = False
    planned, outcome = world.settle()
    first = in_order(ops)[0]
    assert [str(error) for error in outcome.errors] == [
        f"change did not persist: {first}; is another program reverting it?"
    ]
    assert world.asked.count(first) == flow.ROUNDS
    assert outcome.failed == planned.ops == in_order(ops)


def test_operations_of_two_kinds_are_never_the_same() -> None:
    """Named tuples are equal to every tuple of equal fields: one that is loaded would be taken for one in force."""
    assert LoadProfile("eth0") != ApplySysctl("eth0")
    assert not LoadProfile("eth0") == ApplySysctl("eth0")  # noqa: SIM201
    assert LoadProfile("eth0") == LoadProfile("eth0")
    assert not LoadProfile("eth0") != LoadProfile("eth0")  # noqa: SIM202
    assert len({LoadProfile("eth0"), ApplySysctl("eth0"), LoadProfile("eth0")}) == 2
    assert all(a is b or a != b for a in EVERYTHING for b in EVERYTHING)


def test_what_vanishes_ends_the_round() -> None:
    ops = [Op(Verb.LINK_UP, 2, "eth0"), SetLinkNames(2, "eth0", NAMES)]
    world = World(list(ops))

    def vanish(op: Operation) -> None:
        world.left = ()
        raise Vanished(str(op), 19)

    assert flow.carry_out(ops, {"Op": vanish}) == Outcome()
    assert flow.settle(world.plan, {"Op": vanish}, Memory())[1] == Outcome()


def test_what_is_observed_after_the_end_of_a_round_counts() -> None:
    """NetworkManager has put the profile in force by itself: what was planned before is not done."""
    ops = [LoadProfile("a"), LoadProfile("b"), ActivateProfile("a", "eth0", "1"), SetLinkNames(2, "eth0", NAMES)]
    world = World(list(ops))
    plan = world.plan

    def observed(record: Record, so_far: Outcome) -> Planned:
        planned = plan(record, so_far)
        return planned._replace(
            ops=tuple(op for op in planned.ops if type(op) is not ActivateProfile or not so_far.done)
        )

    _, outcome = flow.settle(observed, dict.fromkeys(ORDER, world.carry_out), Memory())
    assert outcome.done == (ops[0], ops[1], ops[3])


@pytest.mark.behaviour("B14")
def test_without_a_record_only_what_needs_none_is_done() -> None:
    world, ledger = World([StartHooks(2, ("/a",)), SetLinkNames(2, "eth0", NAMES)]), Memory()
    ledger.full = True
    _, outcome = world.settle(ledger)
    assert world.asked == [SetLinkNames(2, "eth0", NAMES)]
    assert set(outcome.failed) == {StartHooks(2, ("/a",))}
    assert {str(error) for error in outcome.errors} == {"/run is full"}


def test_the_record_is_on_disk_before_anything_is_done() -> None:
    told = Record(published="1234")
    ledger = Memory()

    def carry_out(_op: Operation) -> None:
        assert ledger.record == told

    plans = iter([Planned((SetLinkNames(2, "eth0", NAMES),), told), Planned((), told)])
    _, outcome = flow.settle(lambda *_: next(plans), {"SetLinkNames": carry_out}, ledger)
    assert len(outcome.done) == 1


def test_the_ends_of_a_round_are_one_round_however_many_there_are() -> None:
    world = World([LoadProfile(f"a{number}") for number in range(2 * flow.ROUNDS)])
    assert world.settle()[1].errors == ()


def test_what_failed_in_a_former_round_stops_what_depends_on_it_still() -> None:
    world = World([ActivateProfile("a", "eth0", "1")])
    table = dict.fromkeys(ORDER, world.carry_out)
    outcome = flow.carry_out(world.left, table, (LoadProfile("a"),))
    assert (outcome.failed, world.asked) == ((ActivateProfile("a", "eth0", "1"),), [])
