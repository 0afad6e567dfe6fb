# SPDX-License-Identifier: GPL-2.0-or-later
"""When the guard of the resident agent comes and goes."""

from __future__ import annotations

import errno
from itertools import product

import pytest

from qubes_guestnet.core.operations import Planned
from qubes_guestnet.core.owned_state import Record
from qubes_guestnet.core.provider import guard_plan
from qubes_guestnet.core.provider.provider_operations import LeaveGuard, StandGuard


@pytest.mark.behaviour("B125")
@pytest.mark.parametrize(("active", "ruled", "stands"), list(product((True, False), repeat=3)))
def test_it_comes_once_rules_are_in_stays_while_they_are_away_and_goes_with_the_role(
    active: bool, ruled: bool, stands: bool
) -> None:
    ops = {(True, True, False): (StandGuard(),)}.get((active, ruled, stands), ())
    if not active and stands:
        ops = (LeaveGuard(),)
    assert guard_plan.plan(Record(), active=active, ruled=ruled, stands=stands) == Planned(ops, Record())


@pytest.mark.behaviour("B146")
@pytest.mark.parametrize(
    ("number", "lacking"),
    [(errno.EOPNOTSUPP, True), (errno.EINVAL, True), (errno.EIO, False), (errno.EMFILE, False), (errno.ENOMEM, False)],
)
def test_only_what_the_kernel_lacks_is_not_tried_again(number: int, lacking: bool) -> None:
    """After any error the guard stayed away for the life of the agent."""
    assert guard_plan.is_lacking(number) is lacking
