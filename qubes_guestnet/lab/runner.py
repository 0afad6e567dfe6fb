# SPDX-License-Identifier: GPL-2.0-or-later
"""`lab run`: scenarios one after the other, each on a stage of its own, with progress and a closing table."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import NamedTuple

from ..errors import UsageError
from .ground import require
from .progress import Display, Teller, follow
from .scenarios import VARIANTS, Variant
from .stage import Stage


class Outcome(NamedTuple):
    """How a scenario ended; `notes` are its findings, `error` is "" when it held."""

    variant: Variant
    held: bool
    seconds: float
    steps: tuple[str, ...]
    notes: tuple[str, ...]
    error: str


def chosen(words: Sequence[str]) -> tuple[Variant, ...]:
    """Return the variants whose names begin with one of the words, by default all. UsageError: a word matches none."""
    for word in words:
        if not any(variant.name.startswith(word) for variant in VARIANTS):
            raise UsageError(f"no scenario begins with {word}", "`qubes-guestnet lab run --list` shows them")
    return tuple(v for v in VARIANTS if not words or any(v.name.startswith(word) for word in words))


def play(variant: Variant, display: Display | None = None) -> Outcome:
    """Run one scenario in namespaces of its own."""
    steps: list[str] = []
    notes: list[str] = []
    error = ""
    status = 1

    def inside(teller: Teller) -> None:
        try:
            variant.scenario.play(Stage(variant.ipv6, variant.gateway, teller))
        except Exception as problem:
            teller.tell(error=str(problem), kind=type(problem).__name__)
            raise SystemExit(1) from None

    start = time.monotonic()
    for event in follow(inside):
        if event is None:
            if display:
                display.tick()
        elif "step" in event:
            steps.append(event["step"])
            if display:
                display.step_within(f"{variant.name}  {event['step']}")
        elif "note" in event:
            notes.append(event["note"])
        elif "error" in event:
            error = event["error"] if event["kind"] == "LabError" else f"{event['kind']}: {event['error']}"
        else:
            status = event["status"]
    if status and not error:
        error = f"ended with status {status}"
    if error and steps:
        error = f"at “{steps[-1]}”: {error}"
    return Outcome(variant, not error, time.monotonic() - start, tuple(steps), tuple(notes), error)


def main(words: Sequence[str], only_list: bool = False, as_json: bool = False) -> int:
    """Run the chosen scenarios; 0 when all held."""
    variants = chosen(words)
    display = Display()
    if only_list:
        display.table(("scenario", "what"), [(v.name, v.scenario.title) for v in variants])
        return 0
    require()
    outcomes = []
    for variant in variants:
        if not as_json:
            display.begin(f"{variant.name}  {variant.scenario.title}")
        outcome = play(variant, None if as_json else display)
        outcomes.append(outcome)
        if not as_json:
            display.step_within(f"{variant.name}  {variant.scenario.title}")
            display.note("\n".join(outcome.notes))
            display.end(outcome.held)
            if outcome.error:
                display.detail(outcome.error, "red")
    if as_json:
        print(json.dumps([_as_json(outcome) for outcome in outcomes], indent=2))
    else:
        _closing(display, outcomes)
    return 0 if all(outcome.held for outcome in outcomes) else 1


def _closing(display: Display, outcomes: Sequence[Outcome]) -> None:
    display.line()
    rows = [
        (o.variant.name, f"{o.seconds:.1f} s", "held" if o.held else "BROKEN", o.variant.scenario.title)
        for o in outcomes
    ]
    display.table(("scenario", "time", "result", "what"), rows)
    held = sum(outcome.held for outcome in outcomes)
    display.line()
    display.line(f" {held} of {len(outcomes)} held, in {sum(outcome.seconds for outcome in outcomes):.0f} s")


def _as_json(outcome: Outcome) -> dict[str, object]:
    return {
        "scenario": outcome.variant.name,
        "title": outcome.variant.scenario.title,
        "held": outcome.held,
        "seconds": round(outcome.seconds, 3),
        "notes": outcome.notes,
        "error": outcome.error,
    }
