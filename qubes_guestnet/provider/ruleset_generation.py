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
# The texts of vifs that appear or disappear, and of the addresses of names; no other text is encoded.
_SHORT = (
    *(f"add table {family} {table}\n" for family in tables.IP_FAMILIES for table in (tables.LIMITS, tables.FIREWALL)),
    *(f"add chain {family} {tables.FIREWALL} " for family in tables.IP_FAMILIES),
    *("add element ", "delete element ", "flush set ", "add set "),
)


class Transactions:
    """The nft transactions of this process. The kernel counts those of all programs; this object counts ours.

    It has no knowledge of the desired rules: `PassMemory` has that, as marks of this count.
    """

    def __init__(self) -> None:
        self._made = 0  # number of our transactions
        self.ours = -1  # generation after our last transaction, if no other transaction came between
        self._families: tuple[str, ...] = ()
        self._listed: tuple[int, Mapping[str, str]] = (-1, {})  # nft's listing of our tables, and its generation

    @property
    def families(self) -> tuple[str, ...]:
        """Return the families of our tables that the kernel has; they never change.

        Raises:
            KernelError: the kernel has no nftables, or access is denied.
        """
        if not self._families:
            from ..system.nft import families as nft_families  # a boot finds out by loading

            nft_kernel.generation()  # a process without the permission gets the usual error, once
            self._families = nft_families.there()
        return self._families

    @property
    def arp(self) -> bool:
        """Return whether ARP is one of the families. Raises KernelError as `families`."""
        return tables.ARP in self.families

    def tables(self, families: Iterable[str]) -> Mapping[str, str]:
        """Return nft's listing of our tables, without counters; "" for a missing table.

        nft runs once per generation of the rules: three processes take some 10 ms, and each part of a pass needs the
        listing. Missing tables are not listed.

        Args:
            families: families that the kernel may have.

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
        """Return whether no other program has changed rules since a mark, or since just before our last transaction.

        Call this after listing the rules: only if it is true are the listed rules those that we loaded (B148).

        Args:
            since: a result of `mark`, if the listed rules are those of several transactions.

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
        """Load one transaction. Raises NftError if nft refused it; then none of it is in force."""
        self.begin(text)()

    def begin(self, text: str) -> Callable[[], None]:
        """Start to load one transaction, and return a function that waits for its end. See `run`.

        The caller can do other work while nft runs.
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
        """Carry out a transaction of ours without nft. Raises the errors of `transaction`.

        Args:
            transaction: changes a table other than those listed here, and returns whether it changed anything.
        """
        before = nft_kernel.generation()
        if transaction():
            self._count(before)
            self._keep_listing(before)

    def _keep_listing(self, before: int) -> None:
        """Keep the listing after a transaction of ours on other tables, unless another program made one."""
        if self._listed[0] == before and self.undisturbed():
            self._listed = (self.ours, self._listed[1])

    def _count(self, before: int) -> None:
        """Count a transaction of ours, unless it changed nothing: the kernel does not count it either."""
        if nft_kernel.generation() != before:
            self.ours = before + 1
            self._made += 1


def _begun(text: str) -> Callable[[], None]:
    """Begin one transaction by the fastest way; the returned function raises NftError if it was refused."""
    if text.startswith(_SHORT):
        from ..system.nft import encode  # not at boot

        encoded = encode.transaction(text)
        if encoded is not None:
            return encoded.commit
    started = nft.begin(text)
    return lambda: nft.end(started)


def _concerns_our_tables(text: str) -> bool:
    """Return whether a transaction may change the listing of our tables, without those of the limits."""
    words = text.replace("\n", " ")
    return any(f" {family} {tables.QUBES} " in f"{words} " for family in tables.FAMILIES)


def seen(chains: Iterable[tuple[str, str]], tables: Mapping[str, str] | None = None) -> str:
    """Return the checksum of nft's listing of some of our chains; MISSING if one is missing.

    Args:
        chains: pairs of family and name.
        tables: listings by family; None to run nft now.
    """
    chains = tuple(chains)
    if tables is None:
        tables = nft.tables(tuple(dict.fromkeys(family for family, _ in chains)))
    return base_rules.seen(chains, tables)
