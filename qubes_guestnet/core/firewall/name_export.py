# SPDX-License-Identifier: GPL-2.0-or-later
"""The addresses of names in the form that third-party scripts read in QubesDB: `/dns/IP/HOST` (F-27, B68, B78).

The value is the text of a Python set of networks, as the daemon of qubes-core-agent-networking has always written it:
`{'192.0.2.1/32', '192.0.2.2/32'}`. QubesDB refuses long paths and values, so these are left out or shortened.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from ..namedtuple import NamedTuple
from ..values import IPV4, IPAddress

LONGEST_PATH = 63
LONGEST_VALUE = 3071
_PATH = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.:/@-")
_NAMED = 3  # in one line


class Export(NamedTuple):
    """The entries of one qube.

    Args:
        folder: folder to remove first, with everything below it.
        entries: pairs of path and value, sorted by path.
        lines: at most one line for the journal, about entries that are left out or shortened.
    """

    folder: str
    entries: tuple[tuple[str, bytes], ...]
    lines: tuple[str, ...]


def folder_of(source: IPAddress) -> str:
    """Return the folder with the names of one qube."""
    return f"/dns/{source}/"


def export(source: IPAddress, hosts: Mapping[str, Sequence[IPAddress]]) -> Export:
    """Return the entries of one qube.

    Args:
        source: the qube's address, as dom0 has it in the firewall's keys.
        hosts: the names as dom0 wrote them, because scripts look for the words of the rule, and the addresses of each;
            without any it has no entry.
    """
    folder = folder_of(source)
    entries, skipped, cut = [], [], []
    for host, addresses in sorted(hosts.items()):
        path = f"{folder}{host}"
        if not addresses:
            continue
        if not host or len(path) > LONGEST_PATH or not _PATH.issuperset(path):
            skipped.append(host)
            continue
        value, whole = text(addresses)
        entries.append((path, value))
        if not whole:
            cut.append(host)
    told = [_told(skipped, f"left out, because a path has up to {LONGEST_PATH} characters")] if skipped else []
    told += [_told(cut, f"shortened, because a value has up to {LONGEST_VALUE} bytes")] if cut else []
    lines = (f"{folder}: {'; '.join(told)}; the rules apply in full",) if told else ()
    return Export(folder, tuple(entries), lines)


def text(addresses: Iterable[IPAddress]) -> tuple[bytes, bool]:
    """Return the value with as many complete addresses as fit, and whether these are all."""
    words = [
        f"'{address}/{32 if address.version == IPV4 else 128}'"
        for address in sorted(addresses, key=lambda each: (each.version, int(each)))
    ]
    count, length = 0, len("{}") - len(", ")
    for word in words:
        length += len(word) + len(", ")
        if length > LONGEST_VALUE:
            break
        count += 1
    return f"{{{', '.join(words[:count])}}}".encode("ascii"), count == len(words)


def _told(hosts: Sequence[str], why: str) -> str:
    more = f" and {len(hosts) - _NAMED} more" if len(hosts) > _NAMED else ""
    return f"{', '.join(hosts[:_NAMED])}{more} {why}"
