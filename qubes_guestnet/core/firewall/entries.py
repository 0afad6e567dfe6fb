# SPDX-License-Identifier: GPL-2.0-or-later
"""The entries below /qubes-firewall/, by address of the qube, and the addresses in events of a watch.

dom0 writes `/qubes-firewall/IP/policy`, `/qubes-firewall/IP/NNNN`, and finally an empty `/qubes-firewall/IP`, which is
the commit. It spells each address in one way; any other spelling is an error, not a second source of rules.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache

from ...errors import shown
from .. import checks
from ..namedtuple import NamedTuple
from ..values import IPAddress
from .rules import Problem

FOLDER = "/qubes-firewall/"
_EXPECTED = "the address of a qube as dom0 writes it, such as 10.137.0.5 or fd09:24ef:4179::a89:5"


class Stored(NamedTuple):
    """The firewall entries in QubesDB.

    Args:
        sets: address → the last part of each key below its folder → raw value. An address that has only a commit has an
            empty set.
        committed: addresses with a commit, new or old.
        problems: invalid names of folders; such folders are ignored.
    """

    sets: Mapping[IPAddress, Mapping[str, bytes]] = {}
    committed: frozenset[IPAddress] = frozenset()
    problems: tuple[Problem, ...] = ()


def by_address(untrusted_entries: Mapping[str, bytes]) -> Stored:
    """Return the entries by address. The function raises no error, whatever the entries are.

    Args:
        untrusted_entries: path → raw value; paths outside the folder are ignored.
    """
    sets: dict[IPAddress, dict[str, bytes]] = {}
    committed: set[IPAddress] = set()
    invalid: dict[str, Problem] = {}
    for path, value in untrusted_entries.items():
        if not path.startswith(FOLDER):
            continue
        untrusted_name, slash, leaf = path.removeprefix(FOLDER).partition("/")
        address = _address(untrusted_name)
        if address is None:
            name = shown(untrusted_name.encode("utf-8", "replace"))
            problem = Problem(f"{FOLDER}{name}", "", f"not {_EXPECTED}", "the folder is ignored; remove it in dom0")
            invalid.setdefault(untrusted_name, problem._replace(blocks=False))
            continue
        entries = sets.setdefault(address, {})
        if slash:
            entries[leaf] = value
        else:
            committed.add(address)
    return Stored(sets, frozenset(committed), tuple(problem for _, problem in sorted(invalid.items())))


def told_of(path: str) -> tuple[IPAddress | None, bool]:
    """Return the address in a path from a watch, and whether the path is its commit.

    Args:
        path: path from the watch; (None, False) is returned for a path without an address.
    """
    if not path.startswith(FOLDER):
        return None, False
    untrusted_name, slash, _ = path.removeprefix(FOLDER).partition("/")
    address = _address(untrusted_name)
    return address, address is not None and not slash


def gathered(paths: Iterable[str]) -> tuple[str, ...]:
    """Return at most two paths per address that carry the same information on commits and unfinished writes.

    A list of 4096 rules causes as many events before its commit.

    Args:
        paths: paths from watches, in order; those without an address are left out.
    """
    found: dict[str, None] = {}
    for path in paths:
        address, commit = told_of(path)
        if address is not None:
            short = f"{FOLDER}{address}" if commit else f"{FOLDER}{address}/"
            found.pop(short, None)
            found[short] = None
    return tuple(found)


def commits(paths: Iterable[str]) -> bool:
    """Return whether a watch reported a commit."""
    return any(told_of(path)[1] for path in paths)


def others(paths: Iterable[str]) -> tuple[str, ...]:
    """Return the paths outside the firewall's folder."""
    return tuple(path for path in paths if not path.startswith(FOLDER))


@lru_cache(maxsize=512)  # a list of 1000 rules has as many paths, all with one address
def _address(untrusted_name: str) -> IPAddress | None:
    """Return an address in dom0's spelling; None for any other text."""
    try:
        address = checks.address(untrusted_name.encode("ascii"))
    except ValueError:
        return None
    return address if str(address) == untrusted_name else None
