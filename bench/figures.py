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
    p90: float
    p99: float


def spread(sample: Sequence[float]) -> Spread:
    """Median, quartiles, 90th and 99th percentile (the highest value where there are too few)."""
    ordered = sorted(sample)
    low, _, high = statistics.quantiles(ordered, n=4)
    p90, p99 = (ordered[min(len(ordered) - 1, int(len(ordered) * part))] for part in (0.9, 0.99))
    return Spread(statistics.median(ordered), low, high, p90, p99)


class Result(NamedTuple):
    """What one benchmark found.

    Args:
        name: what was measured, against what.
        ratio: measured.
        budget: in words; "" for a figure that has none.
        passed: whether the budget is kept.
        details: lines of information.
        disturbed: what other work on this machine did to the figures; a budget that seems broken is then not judged.
    """

    name: str
    ratio: float
    budget: str
    passed: bool
    details: tuple[str, ...]
    disturbed: str = ""

    def __str__(self) -> str:
        broken = f"not measurable here, {self.disturbed}" if self.disturbed else "BUDGET BROKEN"
        verdict = "ok" if self.passed else broken
        judged = f"budget {self.budget}: {verdict}" if self.budget else "for information"
        line = f"{self.name}: ratio {self.ratio:.2f} ({judged})"
        return "\n".join((line, *(f"    {detail}" for detail in self.details)))
