# SPDX-License-Identifier: GPL-2.0-or-later
"""Select the connections that a change of rules ends: those that were accepted and are now refused.

A connection is judged as the chain `forward` saw its first packet, after DNAT: its destination is the source address of
the answers, and its port is their source port (behaviour B71: the daemon of core-agent compared ports as texts, and
destinations before DNAT). If the rules are unchanged, no connection ends.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from ..namedtuple import NamedTuple
from ..values import IPAddress
from .binding import Bound, bind
from .evaluator import REFUSE, Packet, judge


class Connection(NamedTuple):
    """An entry of conntrack.

    Args:
        number: its id, by which it is deleted.
        source: source of the first packet.
        server: source of the answers, which is the destination after DNAT.
        protocol: IP protocol number.
        port: source port of the answers, for TCP and UDP.
        icmp_type: type of the first packet, for ICMP.
    """

    number: int
    source: IPAddress
    server: IPAddress
    protocol: int
    port: int | None = None
    icmp_type: int | None = None


class Rules(NamedTuple):
    """The rules in force at one time.

    Args:
        lists: the lists by address.
        dns: the name servers, of both families.
    """

    lists: Mapping[IPAddress, Bound] = {}
    dns: Collection[IPAddress] = frozenset()


def is_same_list(one: Bound | None, other: Bound | None) -> bool:
    """Return whether both are the same list from dom0, whatever the addresses of its names.

    Only a commit ends connections, not a name server's answer: round-robin names would interrupt downloads (F-24).
    """
    if one is None or other is None:
        return one is other
    return (one.ruleset, one.refused) == (other.ruleset, other.refused)


def to_end(
    connections: Iterable[Connection], before: Rules, after: Rules, own: Collection[IPAddress] = ()
) -> tuple[int, ...]:
    """Return the ids of the connections that were accepted and are now refused.

    Args:
        connections: connections of any source.
        before: former rules. If an address has no list here, all of its refused connections end. This is the case after
            a restart, unless the former agent wrote down that it has judged by the same list (`judged_text`): it may
            have been killed between the load of a list and this step.
        after: present rules. If an address has no list here, none of its connections end: its vif is gone, or its list
            is incomplete.
        own: addresses of this provider, whose connections are not forwarded and thus not subject to the rules.
    """
    found, same_servers = [], frozenset(before.dns) == frozenset(after.dns)
    verdicts: dict[tuple[IPAddress, Packet], bool] = {}
    for each in connections:
        now, then = after.lists.get(each.source), before.lists.get(each.source)
        if now is None or each.server in own or (is_same_list(now, then) and same_servers):
            continue
        packet = Packet(each.server, each.protocol, each.port, each.icmp_type)
        ends = verdicts.get((each.source, packet))
        if ends is None:
            refused = not judge(now, packet, after.dns).passes
            ends = verdicts[each.source, packet] = refused and _may_have_passed(then, packet, before.dns)
        if ends:
            found.append(each.number)
    return tuple(found)


def _may_have_passed(then: Bound | None, packet: Packet, dns: Collection[IPAddress]) -> bool:
    """Return whether a former list accepted a packet, by the present or the former addresses of its names.

    A connection to an address that a name no longer has continues until the next commit (F-24).
    """
    if then is None or judge(then, packet, dns).passes:
        return True
    return not then.refused and judge(bind(then.ruleset, {}), packet, dns).answer != REFUSE
