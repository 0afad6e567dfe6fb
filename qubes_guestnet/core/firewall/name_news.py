# SPDX-License-Identifier: GPL-2.0-or-later
"""Problems of names in firewall rules, in words; new ones are logged."""

from __future__ import annotations

from collections.abc import Iterable

from . import name_cache, name_messages
from .name_cache import Cache, Entry
from .name_messages import NXDOMAIN, REFUSED, Question

# Codes of problems; UNKNOWN and STALE follow a failed look-up.
UNKNOWN, STALE, MISSING, INVALID, PART = "unknown", "stale", "missing", "invalid", "part"
_NAMED = 5  # in one line
_UNKNOWN_MEANS = "an accept entry with it matches nothing, a drop entry every destination"
_WORDS = {
    UNKNOWN: f"not known yet ({{why}}): {_UNKNOWN_MEANS}; the look-up is repeated",
    STALE: "cannot be looked up ({why}): the last addresses stay for up to 24 h; the look-up is repeated",
    MISSING: "does not exist (last answer); its addresses are removed if the next answer, in a minute, confirms that",
    INVALID: f"never looked up ({{why}}): {_UNKNOWN_MEANS}; write an address instead",
    PART: "has too many addresses: an accept entry matches the first of them, a drop entry every destination",
}


def trouble(question: Question, entry: Entry) -> tuple[str, str]:
    """Return the code and the words for the problem of a name; both are "" for none."""
    if entry.reason == REFUSED:
        code, why = INVALID, name_messages.problem_of(question.name) or "the look-up refuses it"
    elif not entry.answered:
        why = name_messages.REASONS.get(entry.reason, "it does not exist")
        code = UNKNOWN if entry.reason else ""
    elif entry.missing:
        code, why = MISSING, ""
    elif entry.failures:
        code, why = STALE, name_messages.REASONS.get(entry.reason, "")
    else:
        code, why = "" if entry.whole else PART, ""
    return code, _WORDS[code].format(why=why) if code else ""


def unknown(entry: Entry | None) -> str:
    """Return why the addresses of a name are unknown, as a short text to follow the name."""
    reason = entry.reason if entry is not None else ""
    return {NXDOMAIN: "does not exist", REFUSED: "is never looked up"}.get(reason, "is not known yet")


def news(before: Cache, after: Cache) -> tuple[str, ...]:
    """Return a line for each new kind of problem, with its names, and one for the names whose problem has ended."""
    found: dict[str, list[Question]] = {}
    for question, entry in sorted(after.entries.items()):
        code, words = trouble(question, entry)
        former = before.entries.get(question, name_cache.Entry())
        if code != trouble(question, former)[0]:
            found.setdefault(words or "answered again without a problem", []).append(question)
    return tuple(f"firewall: {_listed(names)}: {words}" for words, names in found.items())


def left_out(share: name_cache.Share) -> tuple[str, ...]:
    """Return a line for each qube whose rules have too many names."""
    return tuple(
        f"firewall of {qube}: {len(names)} names over the limit are not looked up ({_listed(names)}): "
        f"{_UNKNOWN_MEANS}; use fewer names"
        for qube, names in share.left_out.items()
    )


def _listed(questions: Iterable[Question]) -> str:
    names = [f"{question.name} (IPv{question.family})" for question in questions]
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
