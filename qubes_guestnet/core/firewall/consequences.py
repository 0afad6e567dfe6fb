# SPDX-License-Identifier: GPL-2.0-or-later
"""The steps after new rules are in force: delete connections, then write to QubesDB."""

from __future__ import annotations

from collections.abc import Iterable

from .. import checks
from ..namedtuple import NamedTuple, distinct
from ..plural import amount
from ..values import IPAddress
from .name_export import Export

TYPE_CHECKING = False  # of `typing`, which costs 5 ms and 1 MB (see system/deferred_imports)
if TYPE_CHECKING:
    from typing import TypeAlias

HANDLED = "/qubes-firewall-handled/"
# dom0's programs compare the counter; if another program overwrote it, it starts again.
_LONGEST_COUNTER = 18


@distinct
class EndConnections(NamedTuple):
    """Delete the conntrack entries of connections that were accepted and are now refused.

    Args:
        entries: the kernel's dump of the entries, each with its id.
    """

    entries: tuple[bytes, ...]

    def __str__(self) -> str:
        count = len(self.entries)
        return f"conntrack -D: {amount(count, 'connection')} that the firewall refuses now"


@distinct
class ExportNames(NamedTuple):
    """Write the addresses of names below /dns/ (behaviours B68, B78), all over one connection.

    Args:
        exports: one per qube whose list was committed, or whose names have new addresses.
    """

    exports: tuple[Export, ...]

    def __str__(self) -> str:
        folders = " ".join(each.folder for each in self.exports)
        count = sum(len(each.entries) for each in self.exports)
        return f"qubesdb-write {folders}: {amount(count, 'name')}"


@distinct
class CountHandled(NamedTuple):
    """Count a commit of each of these qubes as handled (behaviour B78), once its rules are in force."""

    addresses: tuple[IPAddress, ...]

    @property
    def paths(self) -> tuple[str, ...]:
        """Return the paths of the counters."""
        return tuple(f"{HANDLED}{address}" for address in self.addresses)

    def __str__(self) -> str:
        return f"qubesdb-write {' '.join(self.paths)}: one more"


def counted(untrusted_value: bytes | None) -> bytes:
    """Return the next value of a counter.

    Args:
        untrusted_value: the present value, None if absent; a value that is not a number counts as absent.
    """
    value = untrusted_value or b""
    number = int(value) if checks.is_decimal(value, _LONGEST_COUNTER) else 0
    return str(number + 1).encode("ascii")


def handled(addresses: Iterable[IPAddress]) -> tuple[CountHandled, ...]:
    """Return the operation that counts commits of these qubes, if there are any."""
    addresses = tuple(addresses)
    return (CountHandled(addresses),) if addresses else ()


if TYPE_CHECKING:
    Consequence: TypeAlias = EndConnections | ExportNames | CountHandled
