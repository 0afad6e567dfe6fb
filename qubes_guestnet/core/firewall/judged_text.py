# SPDX-License-Identifier: GPL-2.0-or-later
"""The lists by which connections were last judged, as text, kept in /run so that a restart of the agent ends none.

A refresh of a name ends no connection, only a commit does (F-24). An agent that has just started does not know whether
there was a commit meanwhile, or whether the one before it was killed between the load of a list and the end of its
connections. So each list is written down once its connections are judged. Where it is the same list after the
restart, and still loaded, there was no commit; anything else is judged as if anything had been allowed before.

A line for the name servers and one for each list. Of a damaged file nothing counts.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping

from ..namedtuple import NamedTuple
from ..values import IPAddress
from .binding import Bound
from .commits import ordered
from .connections import Rules

TYPE_CHECKING = False  # of `typing`, which costs 5 ms and 1 MB (see system/deferred_imports)
if TYPE_CHECKING:
    from .listing import Listed

HEADER = "judged 1"
LONGEST = 1 << 20
_SIGNATURE = frozenset("0123456789abcdef-")


class Judged(NamedTuple):
    """The record of a former agent.

    Args:
        signatures: address → the checksum of the rules of its list.
        dns: the name servers, of both families.
    """

    signatures: Mapping[IPAddress, str] = {}
    dns: frozenset[IPAddress] = frozenset()


def render(rules: Rules) -> bytes:
    """Return the text of the lists by which connections were judged."""
    lines = [HEADER, " ".join(("dns", *map(str, ordered(rules.dns))))]
    lines += [f"list {address} {rules.lists[address].signature}" for address in ordered(rules.lists)]
    return "".join(f"{line}\n" for line in lines).encode("ascii")


def parse(untrusted_data: bytes | None) -> Judged:
    """Return what a former agent wrote down; nothing where there is no file, or a damaged one.

    Args:
        untrusted_data: the file; None where there is none.
    """
    try:
        return _parse(untrusted_data or b"")
    except ValueError:  # also UnicodeDecodeError
        return Judged()


def _parse(untrusted_data: bytes) -> Judged:
    if len(untrusted_data) > LONGEST:
        raise ValueError("too long")
    header, dns, *lines, end = untrusted_data.decode("ascii").split("\n")
    word, *servers = dns.split(" ")
    if (header, word, end) != (HEADER, "dns", ""):
        raise ValueError("not of this version, or not whole")
    signatures: dict[IPAddress, str] = {}
    for line in lines:
        word, address, signature = line.split(" ")
        if word != "list" or not signature or not _SIGNATURE.issuperset(signature):
            raise ValueError(f"not a line of it: {line[:40]!r}")
        signatures[ipaddress.ip_address(address)] = signature
    return Judged(signatures, frozenset(map(ipaddress.ip_address, servers)))


def restored(judged: Judged, lists: Mapping[IPAddress, Bound], loaded: Mapping[int, Listed]) -> Rules:
    """Return the lists by which connections were judged before a restart, as far as they are the same now.

    Args:
        judged: by `parse`.
        lists: that are to be in force.
        loaded: what is, by family, before anything of this agent.
    """
    same = {}
    for address, bound in lists.items():
        found = loaded.get(address.version)
        element = found.qubes.get(address) if found is not None else None
        if element is not None and judged.signatures.get(address) == bound.signature == element.comment:
            same[address] = bound
    return Rules(same, judged.dns)
