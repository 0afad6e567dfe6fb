# SPDX-License-Identifier: GPL-2.0-or-later
"""The entries below /qubes-firewall/, by address of the qube; and of which address a watch tells.

dom0 writes `/qubes-firewall/IP/policy`, `/qubes-firewall/IP/NNNN`, and at last an empty `/qubes-firewall/IP`, which is
the commit. It spells an address in one way. Another spelling is no second source of rules for it, but an error.
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
    """What QubesDB holds.

    Args:
        sets: address → the last part of each key below its folder → raw value. An address with a commit alone has an
            empty set.
        committed: addresses with a commit, of now or of any former time.
        problems: of the names of folders; such a folder means nothing.
    """

    sets: Mapping[IPAddress, Mapping[str, bytes]] = {}
    committed: frozenset[IPAddress] = frozenset()
    problems: tuple[Problem, ...] = ()


def by_address(untrusted_entries: Mapping[str, bytes]) -> Stored:
    """Return the entries by address. It does not raise, whatever they are.

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
    """Return the address that a path of a watch is about, and whether it is its commit.

    Args:
        path: as the watch gave it; (None, False) for one of no address.
    """
    if not path.startswith(FOLDER):
        return None, False
    untrusted_name, slash, _ = path.removeprefix(FOLDER).partition("/")
    address = _address(untrusted_name)
    return address, address is not None and not slash


def gathered(paths: Iterable[str]) -> tuple[str, ...]:
    """Return paths that say the same of commits and of what is being written, at most two for each address.

    A list of 4096 rules is as many events before its commit.

    Args:
        paths: as watches gave them, in order; those that are about no address are left out.
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
    """Return whether a watch told of a commit."""
    return any(told_of(path)[1] for path in paths)


def others(paths: Iterable[str]) -> tuple[str, ...]:
    """Return the paths that are not the firewall's."""
    return tuple(path for path in paths if not path.startswith(FOLDER))


@lru_cache(maxsize=512)  # a list of 1000 rules has as many paths, all with one address
def _address(untrusted_name: str) -> IPAddress | None:
    """Return an address that is written as dom0 writes it; None for all else."""
    try:
        address = checks.address(untrusted_name.encode("ascii"))
    except ValueError:
        return None
    return address if str(address) == untrusted_name else None
