# SPDX-License-Identifier: GPL-2.0-or-later
"""Detect transactions of other programs in nftables since the last listing of a part of the rules."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from ..core import owned_state
from ..core.nft import tables
from ..core.nft.mark import Mark
from ..core.provider import base_rules
from ..system.nft import kernel as nft_kernel
from ..system.nft import program as nft

MISSING = owned_state.MISSING
# What vifs come and go by, and the addresses of names; anything else is not even looked at.
_SHORT = (
    *(f"add table {family} {table}\n" for family in tables.IP_FAMILIES for table in (tables.LIMITS, tables.FIREWALL)),
    *(f"add chain {family} {tables.FIREWALL} " for family in tables.IP_FAMILIES),
    *("add element ", "delete element ", "flush set ", "add set "),
)


class Transactions:
    """What this process does to the rules. The kernel counts the transactions of all programs; this counts ours.

    It remembers nothing about what the rules should be: that is in `PassMemory`, as marks of this count.
    """

    def __init__(self) -> None:
        self._made = 0  # of them, by us
        self.ours = -1  # generation that our last transaction makes, when no other one comes between
        self._families: tuple[str, ...] = ()
        self._listed: tuple[int, Mapping[str, str]] = (-1, {})  # what nft said of our tables, and at which generation

    @property
    def families(self) -> tuple[str, ...]:
        """Families of tables that the kernel has, of ours. What it is built with stays.

        Raises:
            KernelError: the kernel has no nftables, or we may not ask.
        """
        if not self._families:
            from ..system.nft import families as nft_families  # a boot finds out by loading

            nft_kernel.generation()  # a process without the permission gets the usual error, once
            self._families = nft_families.there()
        return self._families

    @property
    def arp(self) -> bool:
        """Whether ARP is among them. Raises KernelError as `families`."""
        return tables.ARP in self.families

    def tables(self, families: Iterable[str]) -> Mapping[str, str]:
        """Return what nft lists of our tables, without counters; "" for one that is not there.

        It is asked once for each state of the rules: three processes take some 10 ms, and each part of a pass wants to
        know. A table that is not there is not asked for.

        Args:
            families: that the kernel may have.

        Raises:
            KernelError: as for `families`.
            NftError: nft does not run.
        """
        families, generation = tuple(families), nft_kernel.generation()
        listed = dict(self._listed[1]) if self._listed[0] == generation else {}
        missing = tuple(family for family in families if family not in listed)
        if missing:
            names = nft_kernel.table_names()
            there = tuple(family for family in missing if f"{family} {tables.QUBES}" in names)
            listed |= dict.fromkeys(missing, "") | (nft.tables(there) if there else {})
            self._listed = (generation, listed)
        return {family: listed[family] for family in families}

    def mark(self) -> Mark:
        """Return a point in time, for `undisturbed`. Raises KernelError."""
        return Mark(nft_kernel.generation(), self._made)

    def undisturbed(self, since: Mark | None = None) -> bool:
        """Return whether no other program has changed anything since a mark, or since just before our last transaction.

        Asked after a look at the rules: only then is what was seen what we have loaded (behaviour B148).

        Args:
            since: by `mark`, where what is looked at is of several transactions.

        Raises:
            KernelError: as for `families`.
        """
        if since is None:
            return nft_kernel.generation() == self.ours
        return nft_kernel.generation() == since.generation + self._made - since.made

    def unchanged(self, since: Mark | None) -> bool:
        """Return whether only this process has changed rules since a mark; False for no mark.

        Raises:
            KernelError: as for `families`.
        """
        return since is not None and self.undisturbed(since)

    def run(self, text: str) -> None:
        """Load one transaction. Raises NftError when it was refused; nothing of it is in force then."""
        self.begin(text)()

    def begin(self, text: str) -> Callable[[], None]:
        """Start to load one transaction; it is in force when what is returned has returned. See `run`.

        nft takes its time, in which its caller can do something else.
        """
        before, elsewhere = nft_kernel.generation(), not _concerns_our_tables(text)
        finish = _begun(text)

        def end() -> None:
            finish()
            self._count(before)
            if elsewhere:
                self._keep_listing(before)

        return end

    def do(self, transaction: Callable[[], bool]) -> None:
        """Carry out what is, or is not, one transaction of ours by another way than nft. Raises what it raises.

        Args:
            transaction: on another table than those that are listed here; it returns whether it was one.
        """
        before = nft_kernel.generation()
        if transaction():
            self._count(before)
            self._keep_listing(before)

    def _keep_listing(self, before: int) -> None:
        """After a transaction of ours on other tables: what nft said of these is so still, unless others made one."""
        if self._listed[0] == before and self.undisturbed():
            self._listed = (self.ours, self._listed[1])

    def _count(self, before: int) -> None:
        """After a transaction of ours, unless it changed nothing: then the kernel does not count it either."""
        if nft_kernel.generation() != before:
            self.ours = before + 1
            self._made += 1


def _begun(text: str) -> Callable[[], None]:
    """Begin one transaction by the shortest way; what is returned raises NftError when it was refused."""
    if text.startswith(_SHORT):
        from ..system.nft import encode  # not at boot

        encoded = encode.transaction(text)
        if encoded is not None:
            return encoded.commit
    started = nft.begin(text)
    return lambda: nft.end(started)


def _concerns_our_tables(text: str) -> bool:
    """Whether a transaction may change what is listed of our tables; those of the limits are others."""
    words = text.replace("\n", " ")
    return any(f" {family} {tables.QUBES} " in f"{words} " for family in tables.FAMILIES)


def seen(chains: Iterable[tuple[str, str]], tables: Mapping[str, str] | None = None) -> str:
    """Sum of what nft lists of some of our chains; MISSING when one is missing.

    Args:
        chains: family and name of each.
        tables: listings by family; None for asking nft now.
    """
    chains = tuple(chains)
    if tables is None:
        tables = nft.tables(tuple(dict.fromkeys(family for family, _ in chains)))
    return base_rules.seen(chains, tables)
