# SPDX-License-Identifier: GPL-2.0-or-later
"""Decide whether another program's chain must see packets of established connections, which an offload hides from it.

A rule is not an obstacle if offloaded connections provably get the same treatment as if their packets passed the rule:

* It matches other packets, see `other_packets`.
* It refuses nothing: it has `accept`, `return` or no verdict, whatever its conditions are, including limits and sets.
  Packets that it does not match go on to the next rules, which are judged separately. Counters, including named ones,
  and the kernel's log see only the first packets of an offloaded connection, as docs/provider.md says.
* It refuses only packets from a qube to the outside, by conditions that are constant for a connection. The packet that
  puts a connection into the flowtable has just passed the rule. This does not hold after a rule that accepts by
  variable conditions: it could accept a connection once, for example by a limit, that would later be refused.
* It jumps to a chain of such rules.

An answer to a qube may never have passed a rule: conntrack calls a connection established when it has seen an answer,
even if that was dropped. So a rule that may refuse answers is an obstacle, and so is a policy of drop. A mark is an
obstacle because routing, traffic control and chains at egress may need it on each packet; a log to a program (`log
group`), because the program may need every packet. An unknown expression counts as an obstacle.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ..namedtuple import NamedTuple
from . import listing as nft_listing
from . import other_packets
from .foreign_chains import Chain
from .tables import CONNTRACK, FIREWALL

ChainName = tuple[str, str, str]  # family, table, name
_Condition = tuple[str, bool, str]  # key, whether negated, value

_STATES = other_packets.STATES | {"established"}


def _keys(*words: str) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(key.split()) for key in words)


# Values that are the same for all packets that one end of a connection sends on one path; no named sets, marks, limits.
CONSTANT = _keys(
    *("iif", "iifname", "iifgroup", "oif", "oifname", "oifgroup"),
    *("ip saddr", "ip daddr", "ip6 saddr", "ip6 daddr", "ip protocol", "ip6 nexthdr", "meta l4proto"),
    *("tcp sport", "tcp dport", "udp sport", "udp dport", "th sport", "th dport"),
    *("ct original ip saddr", "ct original ip daddr", "ct original ip6 saddr", "ct original ip6 daddr"),
)
# Once a connection is established these are as constant as the others.
_SETTLED = _keys("ct state", "ct direction", "meta nfproto", "meta protocol")
_CHANGING = _keys(
    *("ct status", "ct mark", "meta mark", "mark", "meta length", "meta pkttype", "meta hour", "meta day", "meta time"),
    *("ip ttl", "ip dscp", "ip length", "ip6 hoplimit", "ip6 dscp", "ip6 length", "tcp flags", "icmp type"),
    *("icmpv6 type", "ct bytes", "ct packets", "ct avgpkt", "ct expiration", "ct count"),
)
_OPERATORS = frozenset({"!=", "==", "<", ">", "<=", ">=", "over"})
_PASSES = frozenset({"", "accept", "return", "continue"})
_REFUSES = frozenset({"drop", "reject"})
_JUMPS = frozenset({"jump", "goto"})
_USABLE = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.")
_SHOWN = 100
_MOST_CHAINS, _MOST_LOOKS = 64, 1000  # listing one takes 3 ms; many rules can jump to the same chain
REMEDY = "put `ct state established,related accept` before it, or restrict it with `ct state new`"
# The rules of the qubes' firewall against stolen addresses, which match no connection that is already established.
_AGAINST_SPOOFING = (
    ("prerouting", 'iifname != "vif*" ip saddr '),
    ("prerouting", 'iifname != "vif*" ip6 saddr '),
    ("postrouting", 'oifname != "vif*" ip daddr '),
    ("postrouting", 'oifname != "vif*" ip6 daddr '),
)


class Rule(NamedTuple):
    """A rule that is understood.

    Args:
        conditions: those that are the same for each packet of one way.
        changing: it also asks for what changes, or has a limit.
        verdict: "" for none.
        target: of a jump.
    """

    conditions: tuple[_Condition, ...]
    changing: bool
    verdict: str
    target: str = ""

    @property
    def fits_all(self) -> bool:
        """Return whether it matches every packet of an established connection."""
        return not (self.conditions or self.changing)


def judges(chain: Chain, listing: str, regular: Mapping[ChainName, str]) -> str:
    """Return the rule that may refuse packets of an established connection, and the remedy; "" if there is none.

    Args:
        chain: with a hook, or the one where users have their rules.
        listing: `nft -s list chain` of it.
        regular: the same of chains that it jumps to, as far as they are known.

    Raises:
        ValueError: a listing is not understood.
    """
    return _Look(chain, listing, regular).reason


def jumped_to(chain: Chain, listing: str, regular: Mapping[ChainName, str]) -> tuple[ChainName, ...]:
    """Return chains whose rules have to be known too, and are not yet; none when it is judged without them.

    Args:
        chain: as in `judges`, like the rest.
        listing: of it.
        regular: chains that are known.
    """
    try:
        look = _Look(chain, listing, regular)
    except ValueError:
        return ()  # `judges` says so
    return tuple(sorted(look.unknown)) if len(regular) + len(look.unknown) <= _MOST_CHAINS else ()


class _Look:
    """One look at a chain and those it jumps to.

    Attributes:
        reason: as `judges` gives it.
        unknown: chains that it jumps to whose rules are not known.
    """

    def __init__(self, chain: Chain, listing: str, regular: Mapping[ChainName, str]) -> None:
        self._chain, self._regular = chain, regular
        self._let_pass = False  # a rule so far lets pass by what changes
        self._names: list[str] = []  # of the chains so far, as often as they are jumped to
        self._not_read = ""  # the first rule that jumps to a chain that is not known
        self.unknown: set[ChainName] = set()
        self.reason = ""
        accepted = self._walk(chain.name, listing, ())
        self.reason = self.reason or self._not_read
        if not (self.reason or accepted or chain.policy == "accept"):
            remedy = self._remedy().replace("before it, or restrict it with `ct state new`", "into it")
            self.reason = f"its policy is {chain.policy}; {remedy}"

    def _walk(self, name: str, listing: str, way: tuple[_Condition, ...] | None) -> bool:
        """Judge the rules of one chain; return whether it accepts all established connections.

        Args:
            name: name of the chain.
            listing: its listing.
            way: conditions of the jump to it; None if they are variable.
        """
        self._names.append(name)
        found = nft_listing.chains(listing)
        if name not in found:
            raise ValueError("no such chain")
        for text in found[name]:
            words = nft_listing.words(text)
            if accepts(words):
                return True
            if other_packets.alone(words) or self._is_known(text):
                continue
            rule = understood(words)
            if rule is None or (rule.verdict in _REFUSES and not self._is_passed(rule, way)):
                self._stop(name, text)
            elif rule.verdict in _JUMPS:
                if self._follow(name, text, rule, way):
                    return True
            elif self._ends(rule, name, text):
                return rule.verdict == "accept"
            if self.reason:
                return False
        return False

    def _ends(self, rule: Rule, name: str, text: str) -> bool:
        """Handle a rule that refuses nothing; return whether it ends the chain, because it matches everything."""
        if rule.verdict == "return" and name == self._chain.name and self._chain.policy != "accept":
            self._stop(name, text)
        if rule.verdict in ("accept", "return"):
            self._let_pass = self._let_pass or rule.changing
            return rule.fits_all
        return False

    def _follow(self, name: str, text: str, rule: Rule, way: tuple[_Condition, ...] | None) -> bool:
        """Judge the chain that a rule jumps to; return whether it accepts all established connections."""
        if rule.verdict == "goto" and self._chain.policy != "accept":
            self._stop(name, text)  # from there packets come to the policy
            return False
        key = (self._chain.family, self._chain.table, rule.target)
        if len(self._names) > _MOST_LOOKS or not _USABLE.issuperset(rule.target):
            self._stop(name, text)
            return False
        if key not in self._regular:
            self.unknown.add(key)
            self._not_read = self._not_read or self._why(name, text)
            return False
        within = None if way is None or rule.changing else (*way, *rule.conditions)
        accepted = self._walk(rule.target, self._regular[key], within)
        self._let_pass = self._let_pass or rule.changing
        return accepted and rule.fits_all

    def _stop(self, name: str, text: str) -> None:
        self.reason = self._why(name, text)

    def _why(self, name: str, text: str) -> str:
        """Return the rule, where it stands if it is not the chain itself, and the remedy."""
        where = "" if name == self._chain.name else f" in {name}"
        return f"its rule `{_short(text)}`{where}; {self._remedy()}"

    def _remedy(self) -> str:
        """Return the remedy."""
        if self._chain.hook == "ingress":
            return "give the chain a priority below 300"
        if self._chain.hook == "prerouting" and self._chain.priority <= CONNTRACK:
            return "put it into a chain at hook forward, after `ct state established,related accept`"
        if "DOCKER-USER" in self._names:
            return "put `ct state established,related accept` first into DOCKER-USER, which Docker leaves to you"
        return REMEDY

    def _is_passed(self, rule: Rule, way: tuple[_Condition, ...] | None) -> bool:
        """Return whether a rule refuses only packets from a qube to the outside, and each connection always or never.

        An example is `oifgroup 1 drop` of a VPN qube. The packet that puts a connection into the flowtable has just
        passed it, it does not match answers, and a connection whose route changes leaves the flowtable
        (nf_flow_dst_check). After the forward hook the rule has not seen the packet yet.
        """
        if way is None or rule.changing or self._let_pass or self._chain.hook not in ("forward", "prerouting"):
            return False
        return any(_is_the_way_out(*each) for each in (*way, *rule.conditions))

    def _is_known(self, text: str) -> bool:
        """Return whether it is a rule of the Qubes firewall against stolen addresses, or one of wg-quick."""
        return _is_the_firewalls(self._chain, text) or _is_wg_quicks(self._chain, text)


def _short(rule: str) -> str:
    """Return a rule for a line of text."""
    return rule if len(rule) <= _SHOWN else f"{rule[:_SHOWN]}…"


def accepts(words: list[str]) -> bool:
    """Return whether a rule accepts every packet of an established connection."""
    words = _uncounted(words)
    if words[:2] != ["ct", "state"]:
        return False
    if words[2:3] == ["vmap"]:
        inner = " ".join(words[3:]).strip("{} ")
        return words[-1] == "}" and "established : accept" in map(str.strip, inner.split(","))
    states = " ".join(words[2:-1]).strip("{} ").replace(",", " ").split()
    return words[-1] == "accept" and "established" in states and _STATES.issuperset(states)


def _uncounted(words: list[str]) -> list[str]:
    """Without the counter of a rule."""
    if "counter" not in words:
        return words
    place = words.index("counter")
    return words[:place] + words[place + _passive(words[place:]) :]


def understood(words: list[str]) -> Rule | None:
    """Parse a rule of conditions, counters, limits, the kernel's log and a verdict; None if it has other parts."""
    words = nft_listing.without_log(words, nft_listing.KERNEL_LOG)
    conditions, changing = list[_Condition](), False
    while words:
        if words[0] in _PASSES | _REFUSES | _JUMPS:
            break
        length = _passive(words)
        if length:
            changing = changing or words[0] != "counter"
            words = words[length:]
            continue
        found = _condition(words, (*CONSTANT, *_SETTLED, *_CHANGING))
        if found is None:
            return None
        condition, length = found
        if condition[2].startswith("@") or tuple(condition[0].split()) in _CHANGING:
            changing = True
        else:
            conditions.append(condition)
        words = words[length:]
    verdict, rest = (words[0], words[1:]) if words else ("", [])
    if verdict in _JUMPS and len(rest) == 1:
        return Rule(tuple(conditions), changing, verdict, rest[0])
    return Rule(tuple(conditions), changing, verdict) if verdict == "reject" or not rest else None


def _passive(words: list[str]) -> int:
    """Return how many words a counter, a limit or a quota at the begin of these takes; 0 for none of them."""
    first, named = words[0], words[1:2] == ["name"]
    if first == "counter" or (named and first in ("limit", "quota")):
        return 3 if named else 1
    if first == "limit" and words[1:2] == ["rate"]:
        length = 4 if words[2:3] == ["over"] else 3
        while words[length : length + 1] and (words[length][0].isdecimal() or words[length] in _LIMIT_WORDS):
            length += 1
        return length
    return 0


_LIMIT_WORDS = frozenset(
    {"burst", "packets", "bytes", "kbytes", "mbytes", "bytes/second", "kbytes/second", "mbytes/second"}
)


def _condition(words: list[str], keys: Iterable[tuple[str, ...]]) -> tuple[_Condition, int] | None:
    """Return the condition at the begin of a rule, and how many words it takes."""
    key = next((key for key in keys if tuple(words[: len(key)]) == key), None)
    if key is None:
        return None
    rest = words[len(key) :]
    operator = rest[0] if rest and rest[0] in _OPERATORS else ""
    rest = rest[bool(operator) :]
    if not rest or rest[0] in ("set", "&", "vmap", "map"):
        return None
    length = rest.index("}") + 1 if rest[0] == "{" and "}" in rest else 1
    # Anything but equality says less than which value it is.
    value = " ".join(rest[:length]) if operator in ("", "!=", "==") else f"@{operator}"
    return (" ".join(key), operator == "!=", value), len(key) + bool(operator) + length


def _is_the_way_out(key: str, negated: bool, value: str) -> bool:
    """Return whether only packets from a qube to the outside meet a condition: in by a vif, or out by another device.

    Of a set each element has to say so; where all but these are meant, one is enough.
    """
    names = [name.strip('"') for name in value.strip("{} ").replace(",", " ").split()]
    if negated:
        return (key == "oifgroup" and "2" in names) or (key == "oifname" and "vif*" in names)
    return bool(names) and all(_is_outward(key, name) for name in names)


def _is_outward(key: str, name: str) -> bool:
    """The same of a single interface, group or pattern of names."""
    if key == "iifgroup":
        return name == "2"
    if key in ("iif", "iifname"):
        return name.startswith("vif")
    if key == "oifgroup":
        return name == "default" or (name.isdecimal() and name != "2")  # nft has this name for group 0
    if key not in ("oif", "oifname") or name.startswith("vif"):
        return False
    known = name.removesuffix("*")  # "v*" may be a vif's
    return bool(known) and _USABLE.issuperset(known) and (known == name or not "vif".startswith(known))


def _is_the_firewalls(chain: Chain, rule: str) -> bool:
    """Return whether it is a rule of the Qubes firewall against stolen addresses."""
    if chain.table != FIREWALL or not rule.endswith(" drop"):
        return False
    return any(chain.hook == hook and rule.startswith(begin) for hook, begin in _AGAINST_SPOOFING)


def _is_wg_quicks(chain: Chain, rule: str) -> bool:
    """Return whether it is a rule of wg-quick, in a table of that name.

    It refuses packets to the tunnel's address that arrive by another interface, and a flowtable distinguishes
    connections by interface. It also stores the mark of its own encrypted packets, which no packet of a qube has.
    """
    if not chain.table.startswith("wg-quick-"):
        return False
    words = nft_listing.words(rule)
    udp = words[:2] == ["meta", "l4proto"] and words[2:3] in (["udp"], ["17"])  # by number where netbase is not there
    if chain.hook == "prerouting" and udp and words[3:] == ["meta", "mark", "set", "ct", "mark"]:
        return True
    if chain.hook == "prerouting" and words[-6:] == ["fib", "saddr", "type", "!=", "local", "drop"]:
        return words[:2] == ["iifname", "!="] and words[3:5] in (["ip", "daddr"], ["ip6", "daddr"]) and len(words) == 12
    marked = udp and words[3:5] == ["meta", "mark"]
    return chain.hook == "postrouting" and marked and words[6:] == ["ct", "mark", "set", "meta", "mark"]
