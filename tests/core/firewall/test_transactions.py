# SPDX-License-Identifier: GPL-2.0-or-later
"""The firewall of single qubes as operations: one transaction for all of them, and what is refused of it."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest

from qubes_guestnet import flow
from qubes_guestnet.core.firewall import consequences
from qubes_guestnet.core.firewall import operations as firewall
from qubes_guestnet.core.firewall.binding import Bound
from qubes_guestnet.core.firewall.rules import Ruleset
from qubes_guestnet.core.operations import TRANSACTION, Outcome, instead
from qubes_guestnet.errors import GuestnetError
from qubes_guestnet.system.nft.program import Refused

Operation = Any  # the sum of all kinds is for the type checker

ADDRESS = ipaddress.ip_address("10.137.0.5")


def of_qube(number: int) -> firewall.SetQubeRules:
    return firewall.SetQubeRules(Bound(Ruleset(ipaddress.ip_address(f"10.137.0.{number}"), accept=True)))


class Nft:
    """What refuses each transaction with one of these words, and loads the others.

    Attributes:
        asked: operations of each transaction that was tried.
    """

    def __init__(self, *refused: str) -> None:
        self._refused = refused
        self.asked: list[tuple[Operation, ...]] = []

    def carry_out(self, ops: tuple[Operation, ...]) -> Outcome:
        return flow.carry_out(ops, {TRANSACTION: self._begin})

    def _begin(self, ops: tuple[Operation, ...]) -> Any:
        self.asked.append(ops)

        def end() -> None:
            if any(word in firewall.transaction(ops) for word in self._refused):
                raise Refused("nft: refused")

        return end


TABLE = firewall.LoadFirewallTable(4, ())
QUBES = tuple(map(of_qube, range(1, 9)))


def test_the_firewall_of_all_qubes_is_one_transaction_of_any_size() -> None:
    nft = Nft()
    many_qubes = tuple(map(of_qube, range(256)))
    assert nft.carry_out((TABLE, *many_qubes)).done == (TABLE, *many_qubes)
    assert len(nft.asked) == 1


@pytest.mark.behaviour("B66")
@pytest.mark.parametrize("bad", range(8))
def test_of_a_refused_transaction_the_offender_is_refused_alone(bad: int) -> None:
    offender = QUBES[bad]
    refused = firewall.transaction((offender,)).splitlines()[2]
    nft = Nft(refused)
    outcome = nft.carry_out((TABLE, *QUBES, firewall.RemoveName(4, "example.org")))
    stands_in = instead(offender)
    assert set(outcome.done) == {TABLE, *QUBES, stands_in} - {offender}
    assert outcome.failed == (offender,)
    assert [str(error) for error in outcome.errors] == ["nft: refused"]
    assert len(outcome.done) == len(set(outcome.done))
    assert len(nft.asked) <= 8


@pytest.mark.behaviour("B66")
def test_where_even_to_refuse_everything_is_refused_the_old_chain_stays_and_is_named() -> None:
    outcome = Nft("10.137.0.3 ").carry_out(QUBES)
    assert set(outcome.done) == {*QUBES} - {QUBES[2]}
    assert outcome.failed == (QUBES[2], instead(QUBES[2]))
    assert len(outcome.errors) == 2


def test_a_table_that_is_refused_fails_all_and_a_program_that_cannot_start_is_no_refusal() -> None:
    outcome = Nft("table ip qubes-firewall").carry_out((TABLE, QUBES[0], QUBES[1]))
    assert (outcome.done, set(outcome.failed) >= {TABLE, *QUBES[:2]}) == ((), True)

    def begin(_ops: tuple[Operation, ...]) -> Any:
        raise GuestnetError("nft is not installed")

    outcome = flow.carry_out(QUBES, {TRANSACTION: begin})
    assert (outcome.failed, len(outcome.errors)) == (QUBES, 1)


@pytest.mark.behaviour("B78")
@pytest.mark.parametrize(
    ("value", "expected"), [(None, b"1"), (b"7", b"8"), (b"", b"1"), (b"-3", b"1"), (b"9" * 19, b"1"), (b"x", b"1")]
)
def test_a_counter_that_is_no_number_starts_anew(value: bytes | None, expected: bytes) -> None:
    assert consequences.counted(value) == expected


def test_nothing_handled_is_nothing_to_count() -> None:
    assert consequences.handled(()) == ()
    assert consequences.handled([ADDRESS]) == (consequences.CountHandled((ADDRESS,)),)


def test_more_connections_are_counted() -> None:
    assert "2 connections that" in str(consequences.EndConnections((b"", b"")))
