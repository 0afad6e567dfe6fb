# SPDX-License-Identifier: GPL-2.0-or-later
"""Probe whether the provider answers ARP for all addresses without delay, as a device route requires.

Linux delays proxied answers by a random 0 to 0.8 s (net.ipv4.neigh.*.proxy_delay), for every new destination anew, and
Whonix's gateway does not proxy at all: every connection then fails after 3 s. So with the style `device` the agent has
the kernel resolve addresses that every qube has, the virtual DNS servers, and watches how long that takes.

The best of three answers counts. One that is late by nature comes in time by chance once in eight times, and one that
is prompt can get lost when the link has just come up: the kernel asks again only after a second.
"""

from __future__ import annotations

import ipaddress

from ..namedtuple import NamedTuple
from ..owned_state import Fallback
from ..settings import Settings, UplinkSettings
from ..values import IPAddress, Link
from .desired import Style

# A provider that sets proxy_delay to 0 answers in 0.1 ms (median; 0.3 ms at most), one that does not in 400 ms.
PROMPT_SECONDS = 0.1
# The other end drops its packets until its kernel has noticed the carrier and assigned a queue (link_watch.c): one in
# ten first answers was lost, and a user's first query then waited a second until the kernel repeated the request.
REPEAT_SECONDS = 0.02


class Question(NamedTuple):
    """The subject of a probe. The verdict is valid as long as none of these fields changes.

    Args:
        ifindex: interface index.
        mac: its link-layer address.
        gateway: the IPv4 gateway.
        addresses: targets that the kernel can resolve, at least one.
    """

    ifindex: int
    mac: str
    gateway: IPAddress
    addresses: tuple[ipaddress.IPv4Address, ...]

    def next_address(self, answers: tuple[bool, ...]) -> ipaddress.IPv4Address:
        """Return the address to probe next.

        An address without an answer is not asked again: its late answer would pass for a prompt one.

        Args:
            answers: which of the former answers were prompt, in order.
        """
        other = self.addresses[-1]
        return self.addresses[0] if not answers or (len(answers) > 1 and answers[0]) else other

    def verdict(self, answers: tuple[bool, ...]) -> bool | None:
        """Return whether the provider answers for all addresses without delay; None if more answers are needed."""
        if answers.count(True) > 1:
            return True
        nobody_else = False in answers and len(self.addresses) == 1
        return False if answers.count(False) > 1 or nobody_else else None


def question(settings: Settings, uplink: UplinkSettings, link: Link | None, style: Style) -> Question | None:
    """Return the probe of an interface, None if it needs none.

    An interface without carrier is not probed: on Xen the carrier appears when the provider's side is configured.
    """
    if link is None or not link.running or style is not Style.DEVICE or uplink.ipv4 is None:
        return None
    # These have a permanent entry, or are our own addresses: the kernel would send no request.
    ours = (uplink.ipv4.gateway, uplink.ipv4.interface.ip)
    addresses = tuple(server for server in settings.dns.servers if server not in ours)
    if uplink.ipv4.gateway is None or not addresses:
        return None
    return Question(link.ifindex, link.mac, uplink.ipv4.gateway, addresses)


def fallback(asked: Question) -> Fallback:
    """Return the record entry for answers that did not arrive in time."""
    milliseconds = int(PROMPT_SECONDS * 1000)
    names = " and ".join(map(str, asked.addresses))
    reason = f"no ARP answer for {names} within {milliseconds} ms: the provider's proxy ARP is slow or off"
    return Fallback(asked.gateway, reason)


def standing(recorded: Fallback | None, uplink: UplinkSettings) -> str:
    """Return the reason of a valid recorded fall-back; "" if there is none, or if the gateway has changed."""
    gateway = uplink.ipv4.gateway if uplink.ipv4 else None
    return recorded.reason if recorded is not None and recorded.gateway == gateway else ""
