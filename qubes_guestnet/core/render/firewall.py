# SPDX-License-Identifier: GPL-2.0-or-later
"""Render the firewall of client qubes: the condition of each vif's addresses, as pieces of a line and as data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ..firewall.condition import BLOCKED, IN_FORCE, UNSEEN, WAITING, Condition
from ..values import IPAddress
from .styled import Line, Piece, bad, good, line, warn

if TYPE_CHECKING:
    from collections.abc import Callable

_WORDS: Mapping[str, tuple[Callable[[str], Piece], str]] = {
    IN_FORCE: (good, "in force"),
    WAITING: (warn, "waiting for dom0, nothing passes"),
    BLOCKED: (bad, "BLOCKED, everything is refused"),
    UNSEEN: (warn, "run as root to see it"),
}


def of(addresses: Iterable[IPAddress], conditions: Mapping[IPAddress, Condition]) -> Mapping[IPAddress, Condition]:
    """Return the conditions of some addresses; none if this program enforces no lists."""
    return {address: conditions[address] for address in addresses if address in conditions}


def pieces(conditions: Mapping[IPAddress, Condition]) -> Iterator[str | Piece]:
    """Yield the end of a vif's line: one condition if all its addresses have the same."""
    if not conditions:
        return
    states = {condition.state for condition in conditions.values()}
    if len(states) == 1:
        style, words = _WORDS[states.pop()]
        yield ", firewall: "
        yield style(words)
        return
    for number, (address, condition) in enumerate(conditions.items()):
        style, words = _WORDS[condition.state]
        yield f"{', ' if number else ', firewall: '}{address} "
        yield style(words)


def problems(conditions: Mapping[IPAddress, Condition]) -> Iterator[Line]:
    """Yield a line for each error of a list."""
    for condition in conditions.values():
        style = bad if condition.state == BLOCKED else warn
        for problem in condition.problems:
            yield line("  ", style(problem))


def as_data(conditions: Mapping[IPAddress, Condition]) -> list[dict[str, Any]]:
    """Return it for `--json`."""
    return [
        {"address": str(address), "state": condition.state, "problems": list(condition.problems)}
        for address, condition in conditions.items()
    ]
