# SPDX-License-Identifier: GPL-2.0-or-later
"""What has to know where names go, over random passes and a model of the services: told of each change, and once."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qubes_guestnet import flow
from qubes_guestnet.core.dns import dependents
from qubes_guestnet.core.dns.dependents import FIREWALL, PROXY, Facts
from qubes_guestnet.core.dns.redirection_operations import SetFirewallServers
from qubes_guestnet.core.endpoint import Endpoint
from qubes_guestnet.core.operations import ORDER, Outcome, Planned
from qubes_guestnet.core.owned_state import Record
from qubes_guestnet.errors import GuestnetError
from tests.core.memory import Memory

many = settings(max_examples=400, deadline=None, derandomize=True)

FIRST, SECOND, SIXTH = (Endpoint(ipaddress.ip_address(text)) for text in ("192.0.2.1", "192.0.2.2", "2001:db8::1"))
SERVERS = ((), (FIRST,), (FIRST, SECOND), (SIXTH,), (SIXTH, FIRST))


class World:
    """The firewall's set and two services.

    Attributes:
        held: the elements of the set, None where it is not there.
        proxy: there is an updates proxy.
        active: the firewall's service is.
        told: servers that the proxy started with, and that the firewall looked names up at.
        fails: kinds of which every operation fails.
    """

    def __init__(self) -> None:
        self.held: frozenset[str] | None = frozenset({"ip dns-addr 127.0.0.53"})
        self.proxy = self.active = True
        self.told: dict[object, object] = {}
        self.fails: frozenset[object] = frozenset()
        self.ledger = Memory()
        self.servers: tuple[Endpoint, ...] = ()
        self.log: list[object] = []

    def carry_out(self, op: Any) -> None:
        self.log.append(op)
        if op in self.fails or type(op) in self.fails:
            raise GuestnetError(f"refused: {op}")
        if isinstance(op, SetFirewallServers):
            assert self.held is not None, "the set is the firewall's to make"
            self.held = frozenset(f"ip dns-addr {address}" for address in op.addresses)
        else:
            self.told[op] = self.servers

    def settle(self, servers: tuple[Endpoint, ...]) -> Outcome:
        """One pass, after the redirection leads to these servers."""
        self.servers, self.log = servers, []
        texts = tuple(map(str, servers)) or self.ledger.record.provided.servers
        self.ledger.save(Record(provided=self.ledger.record.provided._replace(servers=texts)))

        def plan(record: Record, so_far: Outcome) -> Planned:
            facts = Facts(servers, servers, self.held, self.proxy, dependents.behind(record) and self.active)
            return dependents.plan(facts, record, so_far)

        return flow.settle(plan, dict.fromkeys(ORDER, self.carry_out), self.ledger)[1]


PASS = st.fixed_dictionaries(
    {
        "servers": st.sampled_from(SERVERS),
        "set": st.booleans(),
        "proxy": st.booleans(),
        "active": st.booleans(),
        "fails": st.frozensets(st.sampled_from((PROXY, FIREWALL, SetFirewallServers)), max_size=2),
    }
)


@many
@given(st.lists(PASS, min_size=1, max_size=5))
@pytest.mark.behaviour("B45", "B136", "B147")
def test_each_is_told_of_each_change_and_once(passes: list[Any]) -> None:
    world = World()
    for each in passes:
        servers = each["servers"]
        world.held = (world.held or frozenset()) if each["set"] else None
        world.proxy, world.active, world.fails = each["proxy"], each["active"], each["fails"]
        outcome = world.settle(servers)
        assert len(world.log) == len(set(world.log))
        assert {str(error) for error in outcome.errors} == {f"refused: {op}" for op in outcome.failed}
        if SetFirewallServers not in world.fails and world.held is not None:
            assert world.held == {f"ip dns-addr {each}" for each in servers if each.address.version == 4}
        recorded, texts = world.ledger.record.provided, tuple(map(str, servers))
        for job, there, known in (
            (PROXY, world.proxy, recorded.proxied == texts),
            (FIREWALL, world.active, not dependents.behind(world.ledger.record)),
        ):
            if servers and job not in world.fails:
                assert known
                assert not there or job not in world.log or world.told[job] == servers
            if servers and job in world.fails and job in world.log:
                assert not known, "it is told by the next pass"
        world.fails = frozenset()
        world.settle(servers)
        if servers and world.proxy and world.told.get(PROXY) is None:
            assert PROXY not in world.log or world.told[PROXY] == servers
        assert world.settle(servers) == Outcome(), "a second plan is empty"


def test_word_by_word() -> None:
    record = Record(provided=Record().provided._replace(servers=("192.0.2.1",)))
    facts = Facts((FIRST,), (FIRST,), frozenset(), proxy=True, firewall=True)
    planned = dependents.plan(facts, record, Outcome())
    assert [str(op) for op in planned.ops] == [
        "nft -f: dns-addr of qubes-firewall: 192.0.2.1",
        "systemctl --no-block try-restart qubes-updates-proxy.service",
        "systemctl --no-block reload qubes-firewall.service",
    ]
    assert planned.record == record
    done = dependents.plan(facts._replace(held=None), record, Outcome(done=planned.ops))
    assert done.ops == ()
    assert (done.record.provided.proxied, dependents.behind(done.record)) == (("192.0.2.1",), False)


def test_rules_of_another_program_are_for_the_firewall_and_not_for_the_proxy() -> None:
    facts = Facts((SECOND,), (FIRST,), frozenset(), proxy=True)
    planned = dependents.plan(facts, Record(), Outcome(done=(PROXY,)))
    assert planned.ops == (SetFirewallServers((ipaddress.IPv4Address("192.0.2.2"),)),)
    assert planned.record.provided.proxied == ("192.0.2.1",)
    assert str(SetFirewallServers(())) == "nft -f: dns-addr of qubes-firewall: none"


def test_a_service_that_is_not_there_or_not_known_is_not_told() -> None:
    record = Record(provided=Record().provided._replace(servers=("192.0.2.1",)))
    assert dependents.plan(Facts((), (), proxy=True), record, Outcome()).ops == (), "with no server to ask"
    assert dependents.plan(Facts((FIRST,), (FIRST,), proxy=False), record, Outcome()).ops == ()
    unknown = dependents.plan(Facts((FIRST,), (FIRST,), firewall=None), record, Outcome())
    assert dependents.behind(unknown.record), "it is asked again by the next pass"
