# SPDX-License-Identifier: GPL-2.0-or-later
"""Rules of other programs in the chain `dnat-dns`: the target of each virtual DNS address, and whether to keep them.

Guides for Pi-hole, dnscrypt, Tailscale and VPNs flush the chain and add their own rules at boot. When the agent
reverted these at once, the queries of all qubes left outside of the tunnel (behaviour B123). So the agent keeps such
rules, unless a virtual address certainly ends at a virtual address, which no server would answer, or at no server; they
end when the user removes them.

The chain is evaluated for a UDP query from a qube: rule by rule, into the chains that it jumps to. An unknown condition
may or may not match, so both results are considered as possible. The chain `dns-reject` rejects queries that are not
redirected, so that nothing leaks.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Iterator, Mapping

from ..endpoint import DNS_PORT, Endpoint, port
from ..namedtuple import NamedTuple
from ..nft import listing as nft_listing

CHAIN = "dnat-dns"
_DEPTH = 16  # the kernel's limit for nested jumps
# Ends other than a server. THROUGH: no rule translates the query, so its target stays a virtual address.
HERE, DROPPED, UNKNOWN, THROUGH = "this qube", "dropped", "an unknown target", "nowhere"
_NEXT = "next rule"  # a rule that only counts or marks
_PERHAPS_THROUGH = "refused"
_VERDICTS = {"accept": THROUGH, "drop": DROPPED, "reject": DROPPED, "queue": UNKNOWN}
_UDP = frozenset({"udp", "17"})

End = Endpoint | str
_Sure = tuple[End, bool]  # an end, and whether queries certainly reach it


class Judgement(NamedTuple):
    """The effect of the rules in the chain.

    Args:
        kept: whether the rules stay.
        words: the targets of the virtual addresses, or why the rules are replaced, in one line.
        servers: name servers among the targets, each once.
    """

    kept: bool
    words: str
    servers: tuple[Endpoint, ...] = ()


# A script changes a chain by several calls of nft: an incomplete chain may become complete.
QUIET_SECONDS, LONGEST_SECONDS = 1, 5


def rules(listing: str) -> tuple[str, ...]:
    """Return the rules of the chain; none if it is missing or not understood."""
    try:
        return nft_listing.chains(listing).get(CHAIN, ())
    except ValueError:
        return ()


def unfinished(first: float, last: float, now: float) -> bool:
    """Return whether to wait before the chain is restored.

    Args:
        first: when a change by another program was first seen, in seconds.
        last: when the last change was seen.
        now: present time of the same clock.
    """
    return now - last < QUIET_SECONDS and now - first < LONGEST_SECONDS


def refreshed(there: Iterable[str], former: Iterable[str], ours: Iterable[str]) -> tuple[str, ...]:
    """Return the rules of a chain with rules of ours and of others, after an update of ours.

    Args:
        there: present rules of the chain.
        former: our rules as last loaded.
        ours: our new rules; they replace the first of the former ones. If the chain has none of these, it belongs to
            another program and stays unchanged.
    """
    there, former = tuple(there), frozenset(former)
    first = next((place for place, rule in enumerate(there) if rule in former), None)
    if first is None:
        return there
    return (*there[:first], *ours, *(rule for rule in there[first:] if rule not in former))


def judge(listing: str, virtual: Iterable[ipaddress.IPv4Address]) -> Judgement:
    """Evaluate the chain for a query to each virtual address.

    Args:
        listing: `nft -s list table ip qubes`.
        virtual: the addresses that client qubes query.
    """
    try:
        chains = nft_listing.chains(listing)
    except ValueError as error:
        return Judgement(kept=False, words=str(error))
    if not chains.get(CHAIN):
        return Judgement(kept=False, words="the chain is empty")
    virtual, servers, words = tuple(virtual), list[Endpoint](), list[str]()
    for address in virtual:
        ends = tuple(dict.fromkeys(_base(chains, address)))
        bad = [(end, sure) for end, sure in ends if _is_nowhere(end, virtual)]
        answers = any(end != DROPPED and not _is_nowhere(end, virtual) for end, _ in ends)
        worst = next((end for end, sure in bad if sure or not answers), None)
        if worst is not None:
            return Judgement(kept=False, words=f"{address} ends at {worst if worst != THROUGH else 'itself'}")
        servers += [end for end, _ in ends if isinstance(end, Endpoint)]
        told = dict.fromkeys(_PERHAPS_THROUGH if end == THROUGH else str(end) for end, _ in ends)
        words.append(f"{address} -> {' or '.join(told)}")
    return Judgement(kept=True, words=", ".join(words), servers=tuple(dict.fromkeys(servers)))


def _is_nowhere(end: End, virtual: tuple[ipaddress.IPv4Address, ...]) -> bool:
    return end == THROUGH or (isinstance(end, Endpoint) and end.address in virtual)


def _base(chains: Mapping[str, tuple[str, ...]], address: ipaddress.IPv4Address) -> Iterator[_Sure]:
    """Yield every possible end of a query to this address."""
    for end, sure in _walk(chains, CHAIN, address, 0, sure=True):
        yield (THROUGH if end == _NEXT else end), sure


def _walk(
    chains: Mapping[str, tuple[str, ...]], name: str, address: ipaddress.IPv4Address, depth: int, *, sure: bool
) -> Iterator[_Sure]:
    """Yield the ends within a chain; _NEXT if its caller continues. `sure`: queries certainly enter the chain."""
    if depth > _DEPTH or name not in chains:
        yield THROUGH, sure
        return
    for rule in chains[name]:
        met, verdict = _taken_apart(rule, address)
        if met is False or not verdict:
            continue
        here, goes_on = sure and met is True, False
        if verdict[0] == "return":
            found: tuple[_Sure, ...] = ((_NEXT, here),)
        elif verdict[0] in ("jump", "goto") and len(verdict) == 2:
            found = tuple(_walk(chains, verdict[1], address, depth + 1, sure=here))
            if verdict[0] == "jump":  # a chain called by `goto` returns to the caller of this chain
                goes_on = any(end == _NEXT for end, _ in found)
                found = tuple(each for each in found if each[0] != _NEXT)
        else:
            found = tuple((end, here) for end in _ends(verdict, address))
        yield from found
        if met and not goes_on:
            return
        sure = sure and not found
    yield _NEXT, sure


def _ends(verdict: list[str], address: ipaddress.IPv4Address) -> Iterator[End]:
    """Yield the ends of a verdict other than a jump."""
    if verdict[0] == "vmap":
        yield UNKNOWN
    elif verdict[0] in _VERDICTS:
        yield _VERDICTS[verdict[0]]
    elif verdict[0] == "redirect":
        yield HERE
    else:  # dnat
        yield from _targets(verdict[1:], address)


def _targets(words: list[str], address: ipaddress.IPv4Address) -> Iterator[End]:
    """Yield the targets after `dnat`: `to 10.8.0.1`, `ip to 10.8.0.1:5353`, `to ip daddr map { 10.139.1.1 : … }`."""
    words = words[words.index("to") + 1 :] if "to" in words else []
    if not words:
        yield UNKNOWN
    elif "map" not in words:
        yield _target(words[0])
    elif "{" not in words:
        yield UNKNOWN  # a named map, which may change without notice
    else:
        inner = " ".join(words[words.index("{") + 1 :]).rpartition("}")[0]
        entries = [tuple(part.strip() for part in entry.partition(" : ")[::2]) for entry in inner.split(",")]
        by_address = words[:2] == ["ip", "daddr"]
        own = [value for key, value in entries if by_address and key.partition(" . ")[0] == str(address)]
        for value in own or [value for _, value in entries]:
            yield _target(value.replace(" . ", ":"))


def _target(word: str) -> End:
    host, colon, number = word.partition("-")[0].partition(":")
    try:
        address = ipaddress.IPv4Address(host)
        if address.is_loopback:
            return HERE
        return Endpoint(address, port(number.partition("-")[0]) if colon else DNS_PORT)
    except ValueError:
        return UNKNOWN


# --- one rule ----------------------------------------------------------------------------------------------------


def _taken_apart(rule: str, address: ipaddress.IPv4Address) -> tuple[bool | None, list[str]]:
    """Return whether a UDP query from a qube to this address matches (None: perhaps), and the verdict."""
    words = _words(rule)
    if "vmap" in words:  # verdict maps are not followed
        return None, ["vmap"]
    met: bool | None = True
    while words:
        if words[0] in _ENDING:
            return met, words
        length, answer = _condition(words, address)
        if answer is False:
            return False, []
        met = met and answer
        words = words[length:]
    return met, []


_ENDING = frozenset({*_VERDICTS, "dnat", "redirect", "return", "jump", "goto"})
_LOG_OPTIONS = frozenset({"prefix", "group", "level", "flags", "snaplen", "queue-threshold"})


def _words(rule: str) -> list[str]:
    """Split a rule into words; quoted text is one word, and comments are dropped."""
    found = list[str]()
    for number, part in enumerate(rule.split('"')):
        if number % 2 == 0:
            found += part.split()
        elif found[-1:] == ["comment"]:
            del found[-1]
        else:
            found.append(part)
    return found


def _condition(words: list[str], address: ipaddress.IPv4Address) -> tuple[int, bool | None]:
    """Return the number of words of the first condition, and whether it matches (None if it is not understood)."""
    if words[0] == "counter":
        return (3 if words[1:2] == ["name"] else 1), True
    if words[2:3] == ["set"]:  # `meta mark set 0x1`, `ct mark set meta mark` change the packet; they match all packets
        return (5 if words[3:4] in (["ct"], ["meta"]) else 4), True
    if "." in words[1:3]:
        return _concatenation(words)
    if words[0] == "log":
        return 1 + 2 * sum(word in _LOG_OPTIONS for word in words[1:12:2]), True
    for key, check in _KEYS.items():
        size = len(key)
        if tuple(words[:size]) != key:
            continue
        negated = words[size : size + 1] == ["!="]
        begin = size + negated
        length = words.index("}", begin) + 1 - begin if words[begin : begin + 1] == ["{"] and "}" in words else 1
        values = [value for word in words[begin : begin + length] if (value := word.strip("{},"))]
        answers = [check(value, address) for value in values]
        answer = True if True in answers else None if None in answers else False
        return begin + length, answer if answer is None else answer != negated
    return 1, None


def _concatenation(words: list[str]) -> tuple[int, None]:
    """Return the number of words of `meta l4proto . th dport { tcp . 53, udp . 53 }`, values included; it may match."""
    if "}" in words:
        return words.index("}") + 1, None
    return next((place for place, word in enumerate(words) if word in _ENDING), len(words)), None


def _daddr(value: str, address: ipaddress.IPv4Address) -> bool | None:
    first, dash, last = value.partition("-")
    try:
        if dash:
            return ipaddress.IPv4Address(first) <= address <= ipaddress.IPv4Address(last)
        return address in ipaddress.IPv4Network(value, strict=False)
    except ValueError:
        return None  # a set by name


def _port(value: str, _address: object) -> bool | None:
    first, dash, last = value.partition("-")
    if value == "domain":
        return True
    if value.startswith("@"):
        return None  # a set by name
    if not first.isdecimal() or (dash and not last.isdecimal()):
        return False  # another service by its name
    return int(first) <= DNS_PORT <= int(last if dash else first)


def _vif(value: str, _address: object) -> bool | None:
    """Return whether an interface pattern matches all vifs (True), one of them (None) or none (False)."""
    if value in ("vif*", "2") or (value.endswith("*") and "vif".startswith(value[:-1])):
        return True
    return None if value.startswith(("vif", "@")) else False


def _tcp(_value: str, _address: object) -> bool:
    return False


_KEYS: dict[tuple[str, ...], Callable[[str, ipaddress.IPv4Address], bool | None]] = {
    ("ip", "daddr"): _daddr,
    ("udp", "dport"): _port,
    ("th", "dport"): _port,
    ("tcp", "dport"): _tcp,
    ("ct", "state"): lambda value, _address: "new" in value.split(","),
    ("meta", "nfproto"): lambda value, _address: value == "ipv4",
    ("meta", "l4proto"): lambda value, _address: value in _UDP,
    ("ip", "protocol"): lambda value, _address: value in _UDP,
    ("iifname",): _vif,
    ("iifgroup",): _vif,
    ("iif",): _vif,
}
