# SPDX-License-Identifier: GPL-2.0-or-later
"""Medians, spreads, and the one line that a benchmark prints."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import NamedTuple


class Spread(NamedTuple):
    """Of a sample, in its own unit."""

    median: float
    low: float
    high: float
    p99: float


def spread(sample: Sequence[float]) -> Spread:
    """Median, quartiles and 99th percentile (the highest value below 100 samples)."""
    ordered = sorted(sample)
    low, _, high = statistics.quantiles(ordered, n=4)
    return Spread(statistics.median(ordered), low, high, ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))])


class Result(NamedTuple):
    """What one benchmark found.

    Args:
        name: of the budget.
        ratio: measured.
        budget: the highest ratio allowed, or None where the budget is in `kept` alone.
        details: lines of information.
        kept: False breaks the budget whatever the ratio.
    """

    name: str
    ratio: float
    budget: float | None
    details: tuple[str, ...] = ()
    kept: bool = True

    @property
    def passed(self) -> bool:
        """Whether the budget is kept."""
        return self.kept and (self.budget is None or self.ratio <= self.budget)

    def __str__(self) -> str:
        limit = "" if self.budget is None else f" (budget {self.budget:g})"
        verdict = "ok" if self.passed else "BUDGET BROKEN"
        return "\n".join((f"{self.name}: ratio {self.ratio:.2f}{limit} {verdict}", *(f"    {d}" for d in self.details)))
