# SPDX-License-Identifier: GPL-2.0-or-later
"""Texts for people name the actor: the words that hide it do not come back (CONTRIBUTING, Language)."""

from __future__ import annotations

import io
import re
import tokenize
from pathlib import Path

import pytest

TREE = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted(
    path
    for path in (*TREE.glob("docs/*.md"), *TREE.glob("docs/man/*"), *TREE.glob("docs/examples/*"), TREE / "README.md")
    if path.name != "behaviours.md"  # generated, in the words of the tests
)
OWN = Path(__file__)  # it has the words
PYTHON = ("qubes_guestnet", "tests", "bench", "tools")
MODULES = sorted(path for folder in PYTHON for path in (TREE / folder).rglob("*.py") if path != OWN)
# Whole files: pages, units, and what the packages run.
PAGES = sorted(
    path
    for pattern in (
        "tests/**/*.md",
        "systemd/**/*",
        "debian/*",
        "rpm/*",
        "tools/*",
        "newsfragments/README.md",
        "Makefile",
    )
    for path in TREE.glob(pattern)
    if path.is_file() and path.suffix != ".py" and b"\0" not in path.read_bytes()
)
PERSONS = re.compile(r"\b(who|whom|whoever|nobody|somebody)\b", re.IGNORECASE)
PERSONIFIED = re.compile(r"\bkernel (does not |doesn't )?(wants?|likes?|thinks?|believes?)\b", re.IGNORECASE)
RIDDLES = re.compile(
    r"\b(are|is) (healed|mended)\b|\bis no error\b|\b(see|and) what it says\b"
    r"|\bhas (his|its) way\b|\bas good as ours\b",
    re.IGNORECASE,
)
WORDS = (PERSONS, PERSONIFIED, RIDDLES)


def found(text: str) -> list[str]:
    """Return the words of the list that a text has, case as it is there."""
    return [match[0] for pattern in WORDS for match in pattern.finditer(text)]


def prose(source: str) -> list[tuple[int, str]]:
    """Return the strings and comments of a module, with their lines; names of variables are no prose."""
    kinds = {tokenize.STRING, tokenize.COMMENT, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return [(token.start[0], re.sub(r"{[^{}]*}", "", token.string)) for token in tokens if token.type in kinds]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Whoever changes a rule has his way", ["Whoever", "has his way"]),
        ("a probe that nobody answers", ["nobody"]),
        ("the kernel does not want two of them", ["kernel does not want"]),
        ("all errors are healed", ["are healed"]),
        ("unanswered probes are re-sent; the kernel keeps one entry", []),
    ],
)
def test_the_words_are_found(text: str, words: list[str]) -> None:
    assert found(text) == words


def test_a_name_is_no_prose() -> None:
    assert prose("nobody = 'x'  # y\n") == [(1, "'x'"), (1, "# y")]


@pytest.mark.parametrize("document", [*DOCUMENTS, *PAGES], ids=lambda path: str(path.relative_to(TREE)))
def test_documents_name_the_actor(document: Path) -> None:
    lines = document.read_text(encoding="utf-8").splitlines()
    assert [f"{number}: {line}" for number, line in enumerate(lines, 1) if found(line)] == []


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(TREE)))
def test_modules_name_the_actor(module: Path) -> None:
    texts = prose(module.read_text(encoding="utf-8"))
    assert [f"{number}: {text}" for number, text in texts if found(text)] == []
