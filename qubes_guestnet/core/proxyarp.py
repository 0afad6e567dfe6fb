# SPDX-License-Identifier: GPL-2.0-or-later
"""Does the provider answer ARP for everybody, promptly? A device route needs that.

Linux delays proxied answers by a random 0 to 0.8 s (net.ipv4.neigh.*.proxy_delay), for every new destination anew, and
Whonix's gateway does not proxy at all: every connection then fails after 3 s. So with the style `device` the agent has
the kernel resolve one address that every qube has, the first virtual DNS server, and watches how long that takes.
"""

from __future__ import annotations

import ipaddress

from .namedtuple import NamedTuple
from .record import Fallback
from .settings import Settings, UplinkSettings
from .uplink import Style
from .values import IPAddress, Link

# A provider that sets proxy_delay to 0 answers in 0.1 ms (median; 0.3 ms at most), one that does not in 400 ms.
PROMPT_SECONDS = 0.1


class Question(NamedTuple):
    """What a probe is about. The answer holds as long as none of this changes.

    Args:
        ifindex: interface index.
        mac: its link-layer address.
        gateway: the IPv4 gateway.
        address: whom the kernel is to resolve.
    """

    ifindex: int
    mac: str
    gateway: IPAddress
    address: ipaddress.IPv4Address


def question(settings: Settings, uplink: UplinkSettings, link: Link | None, style: Style) -> Question | None:
    """What to probe on an interface, None where there is nothing to find out.

    An interface without carrier is not asked: on Xen the carrier comes when the provider's side is set up.
    """
    if link is None or not link.running or style is not Style.DEVICE:
        return None
    if uplink.ipv4 is None or uplink.ipv4.gateway is None or not settings.dns.servers:
        return None
    address = settings.dns.servers[0]
    if address == uplink.ipv4.gateway or address == uplink.ipv4.interface.ip:
        return None  # has a permanent entry, or is us: the kernel would not ask
    return Question(link.ifindex, link.mac, uplink.ipv4.gateway, address)


def fallback(asked: Question) -> Fallback:
    """The record of an answer that did not come in time."""
    milliseconds = int(PROMPT_SECONDS * 1000)
    reason = f"no ARP answer for {asked.address} within {milliseconds} ms, the provider proxies it late or not at all"
    return Fallback(asked.gateway, asked.address, reason)


def standing(recorded: Fallback | None, settings: Settings, uplink: UplinkSettings) -> str:
    """Why a recorded fall-back still holds, "" when there is none or what it was about has changed.

    The provider is who it was as long as the gateway is. Another DNS server is a reason to ask anew, but no server,
    or one that nobody can ask about, is not: a bad DNS value must not cost the qube its routes.
    """
    gateway = uplink.ipv4.gateway if uplink.ipv4 else None
    if recorded is None or recorded.gateway != gateway:
        return ""
    first = settings.dns.servers[:1]
    return recorded.reason if not first or first[0] in (recorded.probed, gateway) else ""
