# SPDX-License-Identifier: GPL-2.0-or-later
"""Operations that an adapter refuses, with an error of its own or with one that it does not document."""

from __future__ import annotations

from typing import Any

import pytest

from qubes_guestnet import flow
from qubes_guestnet.core.operations import ORDER, Outcome, Planned
from qubes_guestnet.core.owned_state import Record
from qubes_guestnet.core.uplink.service_operations import ActivateProfile, ReapplyProfile, StartHooks
from qubes_guestnet.errors import KernelError
from tests.core.memory import Memory

Operation = Any  # the sum of all kinds is for the type checker


def test_an_operation_that_is_refused_and_what_stands_in_for_it_are_one_error() -> None:
    def refuse(op: Operation) -> None:
        raise KernelError(str(op), 16)

    op = ReapplyProfile("a", "eth0", "1")
    outcome = flow.carry_out([op], dict.fromkeys(ORDER, refuse))
    assert outcome.failed == (op, ActivateProfile("a", "eth0", "1"))
    assert [str(error) for error in outcome.errors] == [
        'nmcli connection up "VM uplink eth0" ifname eth0: Device or resource busy (EBUSY)'
    ]


@pytest.mark.behaviour("B146")
def test_an_error_that_no_adapter_documents_fails_its_operation_alone() -> None:
    """It ended the pass: what came behind was not done, and a hook that was noted as run was never run."""

    def broken(_op: Operation) -> None:
        raise OSError("too many open files")

    ops = [StartHooks(2, ("/hook",)), StartHooks(3, ("/hook",))]
    done: list[Operation] = []
    outcome = flow.carry_out(ops, {"StartHooks": lambda op: done.append(op) if op == ops[1] else broken(op)})
    assert (outcome.failed, outcome.done, done) == ((ops[0],), (ops[1],), [ops[1]])
    assert "OSError: too many open files" in str(outcome.errors[0])

    def blind(_record: Record, _so_far: Outcome) -> Planned:
        raise ValueError("no adapter says so")

    planned, outcome = flow.settle(blind, {}, Memory())
    assert (planned.ops, outcome) == ((), Outcome())
    assert "ValueError: no adapter says so" in str(planned.errors[0])
