# SPDX-License-Identifier: GPL-2.0-or-later
"""The tables and keys of guestnet.toml.

A misspelt key is an error: if it were ignored, the user would wrongly believe that forwarding stays closed, or that the
file chooses the name servers.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import shown

# Tables and their keys; their readers check the values.
KNOWN: Mapping[str, frozenset[str]] = {
    "uplink": frozenset({"default-route"}),
    "provider": frozenset({"hold_after_flush", "unanswered_names", "unanswered_connections"}),
    "dns": frozenset({"servers", "hold"}),
    "firewall": frozenset({"unresolved", "least_ttl"}),
}


# In characters. tomllib takes minutes for a key of some ten thousand parts (B122); no valid line is so long.
LONGEST_LINE = 1024


class Unknown(ValueError):
    """A table or a key that the program does not know.

    Args:
        problem: one line that names it.
        remedy: one line that lists the known ones.
    """

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(problem)
        self.remedy = remedy


def check_lines(text: str) -> None:
    """Check the file before it is parsed. Raises Unknown."""
    for number, line in enumerate(text.splitlines(), 1):
        if len(line) > LONGEST_LINE:
            raise Unknown(f"line {number} has {len(line)} characters", f"the limit is {LONGEST_LINE}; split it")


def check_tables(document: Mapping[str, object]) -> None:
    """Check the top-level names of the file. Raises Unknown."""
    for name in document:
        if name not in KNOWN:
            owners = [f"[{table}] {name}" for table, keys in KNOWN.items() if name in keys]
            raise Unknown(
                f"{_quoted(name)} is not a known table", f"meant: {owners[0]}" if owners else _listed("tables", KNOWN)
            )


def check_keys(name: str, table: object) -> None:
    """Check one table.

    Args:
        name: one of KNOWN.
        table: what the file has under that name.

    Raises:
        Unknown: it is not a table, or has an unknown key.
    """
    if not isinstance(table, dict):
        raise Unknown(f"{name} is not a table", f"write [{name}] on a line of its own, and its keys below")
    for key in table:
        if key not in KNOWN[name]:
            raise Unknown(f"[{name}] {_quoted(key)} is not a known key", _listed("keys", KNOWN[name]))


def _quoted(name: str) -> str:
    return shown(name.encode("utf-8", "replace"))


def _listed(what: str, names: Mapping[str, object] | frozenset[str]) -> str:
    return f"the {what} are {', '.join(sorted(names))}"
