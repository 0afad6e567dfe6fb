# SPDX-License-Identifier: GPL-2.0-or-later
"""Chains of other programs as nft prints them, and the tables of iptables-legacy."""

from __future__ import annotations

from collections.abc import Iterable

from .. import files, programs
from .program import NftError

_SECONDS = 10.0
_LONGEST = 1 << 20  # `list chains` says some 10 bytes a chain and 80 a chain with a hook
_AT_ONCE = 4  # within the unit's TasksMax
_LEGACY = ("/proc/net/ip_tables_names", "/proc/net/ip6_tables_names")


def hooked() -> str:
    """`nft list chains`: every chain there is, without its rules.

    Raises:
        NftError: nft does not run.
    """
    (done,) = _together([("list", "chains")])
    if done.status:
        raise NftError(f"nft list chains: {done.output[:200]}")
    return done.output


def rules(chains: Iterable[tuple[str, str, str]]) -> tuple[str, ...]:
    """`nft -s list chain` of each; "" for one that nft does not find.

    Not in one nft: version 1.0.6 lists only the last of several. It takes 3 ms each, with 5000 rules beside it too.

    Args:
        chains: family, table and name, of characters that mean nothing to nft.

    Raises:
        NftError: nft does not run.
    """
    commands: list[tuple[str, ...]] = [("-s", "list", "chain", *chain) for chain in chains]
    listings: list[str] = []
    for first in range(0, len(commands), _AT_ONCE):
        done = _together(commands[first : first + _AT_ONCE])
        listings += ["" if each.status else each.output for each in done]
    return tuple(listings)


def legacy() -> tuple[str, ...]:
    """Return names of the tables of the former iptables that are in this kernel.

    Raises:
        FileError: the kernel denies access.
    """
    found: list[str] = []
    for path in _LEGACY:
        found += (files.read(path) or b"").decode("ascii", "replace").split()
    return tuple(found)


def _together(commands: list[tuple[str, ...]]) -> tuple[programs.Done, ...]:
    program = programs.find("nft")
    if not program:
        raise NftError("nft is not installed", "install nftables")
    try:
        return programs.run_together([(program, *command) for command in commands], _SECONDS, longest=_LONGEST)
    except programs.ProgramError as error:
        raise NftError(error.problem, error.remedy) from None
