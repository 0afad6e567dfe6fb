# SPDX-License-Identifier: GPL-2.0-or-later
"""Rules for other packets than those of an established TCP or UDP connection: only such a one is offloaded.

A condition counts that none of its packets meets, wherever it stands in the rule (behaviour B134).
"""

from __future__ import annotations

STATES = frozenset({"new", "invalid", "related", "untracked"})
# By number where netbase is not installed.
_PROTOCOLS = frozenset(
    {"icmp", "1", "igmp", "2", "gre", "47", "esp", "50", "ah", "51", "ipv6-icmp", "58", "sctp", "132"}
)
_PROTOCOL_KEYS = (["meta", "l4proto"], ["ip", "protocol"], ["ip6", "nexthdr"])
_ICMP_KEYS = frozenset({"type", "code", "id", "sequence", "mtu", "gateway"})
# What is sent to one of these is answered from another address, so conntrack never sees an answer.
_NO_HOST = frozenset({"224.0.0.0/4", "255.255.255.255", "ff00::/8"})
_DESTINATIONS = (["ip", "daddr"], ["ip6", "daddr"])
_END = frozenset({"accept", "drop", "reject", "jump", "goto", "return"})


def alone(words: list[str]) -> bool:
    """Return whether a rule is for other packets alone.

    Args:
        words: of the rule, as `listing.words` has them.
    """
    for place, word in enumerate(words):
        if word in _END:
            return False
        if _is_for_others(words[place : place + 2], words[place + 2 :]):
            return True
    return False


def _is_for_others(key: list[str], rest: list[str]) -> bool:
    """Return whether a condition is one that none of their packets meets.

    Args:
        key: its first two words.
        rest: of the rule.
    """
    if key == ["ct", "state"]:
        return _are_other_states(rest)
    if key == ["tcp", "flags"]:
        return _is_syn(rest)
    if key in _PROTOCOL_KEYS:
        return _are_among(rest, _PROTOCOLS)
    if key in _DESTINATIONS:
        return _are_among(rest, _NO_HOST)
    return key[0] in ("icmp", "icmpv6") and key[1:] != [] and key[1] in _ICMP_KEYS


def _are_among(rest: list[str], values: frozenset[str]) -> bool:
    """Return whether what a condition asks for, one value or a set of them, is all among these."""
    return bool(rest) and bool(_elements(rest)) and values.issuperset(_elements(rest))


def _elements(rest: list[str]) -> list[str]:
    """Return the elements of a set that a condition begins with, or the value or list that stands there."""
    end = rest.index("}") if rest[0] == "{" and "}" in rest else 1
    return " ".join(rest[:end]).strip("{ ").replace(",", " ").split()


def _are_other_states(rest: list[str]) -> bool:
    """Return whether `ct state` fits no packet of an established connection.

    `!= established,related` fits every packet: nft compares the state, which is one of them, with the sum of both.
    `! established,related` and `!= { established, related }` are what is meant by it.
    """
    if rest[:2] == ["vmap", "{"] and "}" in rest:
        entries = " ".join(rest[2 : rest.index("}")]).split(",")
        return STATES.issuperset(entry.partition(":")[0].strip() for entry in entries)
    if rest[:1] not in (["!="], ["!"]):
        return _are_among(rest, STATES)
    if not rest[1:] or rest[2:3] == ["|"]:
        return False
    states = _elements(rest[1:])
    return "established" in states and (rest[0] == "!" or rest[1] == "{" or len(states) == 1)


def _is_syn(rest: list[str]) -> bool:
    """Return whether `tcp flags` asks for SYN, as what clamps the MSS does: with these packets a connection begins.

    nft says `tcp flags syn`, `tcp flags syn / syn,rst`, or in version 1.0.0 `tcp flags & (syn | rst) == syn`.
    """
    if rest[:1] == ["&"]:
        rest = rest[rest.index("==") + 1 :] if "==" in rest[:-1] else []
        return bool(rest) and "syn" in rest[0].split(",")
    if rest[1:2] == ["/"]:
        return "syn" in rest[0].split(",")
    return rest[:1] == ["syn"]
