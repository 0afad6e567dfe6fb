# SPDX-License-Identifier: GPL-2.0-or-later
"""Which connections a change of rules ends: those that it turned from accepted to refused, and no others.

A connection is judged by what the chain `forward` saw of its first packet: after DNAT, the destination is the source of
the answers, and the port is theirs (behaviour B71: the daemon of core-agent compared ports as texts, and destinations
before DNAT). Where the rules are the same there is nothing to end.
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
        source: of the first packet.
        server: source of the answers: the destination after DNAT.
        protocol: IP protocol number.
        port: source port of the answers, of TCP and UDP.
        icmp_type: of the first packet, of ICMP.
    """

    number: int
    source: IPAddress
    server: IPAddress
    protocol: int
    port: int | None = None
    icmp_type: int | None = None


class Rules(NamedTuple):
    """What was or is in force.

    Args:
        lists: by address.
        dns: the name servers, of both families.
    """

    lists: Mapping[IPAddress, Bound] = {}
    dns: Collection[IPAddress] = frozenset()


def is_same_list(one: Bound | None, other: Bound | None) -> bool:
    """Return whether two are one list of dom0's, whatever the addresses of its names are.

    A name server's answer ends no connection, only a commit does: round-robin names would cut each download (F-24).
    """
    if one is None or other is None:
        return one is other
    return (one.ruleset, one.refused) == (other.ruleset, other.refused)


def to_end(
    connections: Iterable[Connection], before: Rules, after: Rules, own: Collection[IPAddress] = ()
) -> tuple[int, ...]:
    """Return the ids of the connections that were accepted and are refused.

    Args:
        connections: of any source.
        before: an address without a list here may have had anything: what is refused now ends. So it is after a restart
            of the agent, because a former one may have been killed between the load of a list and this; a connection
            to an address that has left the answer of a name ends then too, which is the limit of F-24.
        after: of an address without a list here nothing ends: its vif is gone, or its list is not whole.
        own: addresses of this provider. What ends here is not forwarded, so these rules are not about it.
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
    """Return whether a former list let a packet pass, by what its names have now or by what they had before.

    A connection outlives an address that left the answer of a name, up to the next commit and not longer (F-24).
    """
    if then is None or judge(then, packet, dns).passes:
        return True
    return not then.refused and judge(bind(then.ruleset, {}), packet, dns).answer != REFUSE
