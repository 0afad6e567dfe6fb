# SPDX-License-Identifier: GPL-2.0-or-later
"""What the rules of a qube have counted and hold, as `nft --json` shows it."""

from __future__ import annotations

import json
from typing import Any

from .qube import Qube

_TABLE = "qubes"


def counted(qube: Qube, family: str, chain: str) -> tuple[int, ...]:
    """Return the packets of each counter in a chain of the table `qubes`, in rule order; `family` is "ip" or "ip6"."""
    rules = (entry["rule"]["expr"] for entry in _listed(qube, "chain", family, chain) if "rule" in entry)
    return tuple(part["counter"]["packets"] for rule in rules for part in rule if isinstance(part.get("counter"), dict))


def elements(qube: Qube, family: str, name: str) -> set[tuple[str, ...]]:
    """Return elements of a set of that table; those of more than one part as they are, the others as a tuple of one."""
    (found,) = (entry["set"] for entry in _listed(qube, "set", family, name) if "set" in entry)
    members = found.get("elem", ())
    return {tuple(member["concat"]) if isinstance(member, dict) else (member,) for member in members}


def count(qube: Qube, family: str, chain: str, *match: str) -> None:
    """Add a rule to a chain of that table that only counts, as a user may."""
    qube.run("nft", "add", "rule", family, _TABLE, chain, *match, "counter")


def _listed(qube: Qube, kind: str, family: str, name: str) -> list[dict[str, Any]]:
    # Not `-json`, which nft takes for -j -s -o -n: without any counts.
    listing: dict[str, list[dict[str, Any]]] = json.loads(
        qube.run("nft", "--json", "list", kind, family, _TABLE, name).stdout
    )
    return listing["nftables"]
