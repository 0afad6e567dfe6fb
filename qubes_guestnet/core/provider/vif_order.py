# SPDX-License-Identifier: GPL-2.0-or-later
"""One vif: the order in which it is configured and taken down, and its texts.

The order prevents unfiltered packets (behaviour B50): first the conntrack entries of a former holder of the address are
deleted, then the neighbour and the anti-spoofing element are added, and only then the link goes up and gets routes. The
sysctls come before all of these, because an interface with IPv6 disabled refuses IPv6 addresses.
"""

from __future__ import annotations

import ipaddress
import itertools
from collections.abc import Iterable, Mapping

from .. import plan
from ..namedtuple import NamedTuple
from ..nft import rules_text
from ..nft.limits import Counts
from ..values import IPV4, IPV6, IPAddress, IPInterface, Link, Owned, State, Tunable
from . import settings as provider
from .settings import ProviderSettings
from .vif import GONE, Device, Vif
from .vif import Mapping as Mapped

# Operations that let packets pass: the elements must exist before the first of these.
_LATE = frozenset({plan.Verb.LINK_UP, plan.Verb.ROUTE_ADD})


class VifReport(NamedTuple):
    """One vif in one pass.

    Args:
        vif: as recorded.
        link: the interface, None while it is not there.
        ops: operations of the kernel's that are still to do.
        elements: elements of the set `allowed` that are missing, in nft's words.
        tunables: still to set.
        now: the fake addresses that dom0 has written since the vif was set up, none for real ones: they count when the
            qube is attached again. None: dom0's mapping is unchanged, or was not read.
        seen: the sets were looked at, for which an ordinary user has not the right.
        limits: what nft is to load for its limits.
        counts: how many connections without an answer it has; None: not counted.
    """

    vif: Vif
    link: Link | None
    ops: tuple[plan.Op, ...] = ()
    elements: tuple[str, ...] = ()
    tunables: tuple[Tunable, ...] = ()
    now: tuple[Mapped, ...] | None = None
    seen: bool = True
    limits: str = ""
    counts: Counts | None = None

    @property
    def configured(self) -> bool:
        """Return whether the vif is present and, as far as checked, nothing is pending."""
        return self.link is not None and self.seen and not self.todo

    @property
    def todo(self) -> tuple[str, ...]:
        """The pending operations, one line each, in order."""
        early, late = split(self.ops)
        elements = (f"nft {element}" for element in self.elements)
        limits = (f"nft -f: limits of {self.vif.name.text}",) if self.limits else ()
        return (*map(str, self.tunables), *map(str, early), *elements, *limits, *map(str, late))


def tunables(name: str, *, ipv6: bool, outranked: bool = False) -> tuple[Tunable, ...]:
    """Return the sysctls of a vif, to be set before its link goes up.

    Args:
        name: of the vif.
        ipv6: whether the qube behind it has IPv6.
        outranked: the way to one of its addresses is by another vif, see `outranked`.
    """
    found = [
        # HVMs and Windows ask by ARP for everything (behaviour B57), and so do our own uplinks, by their device route.
        Tunable(("ipv4", "conf", name, "proxy_arp"), "1"),
        # Else the kernel delays each of these answers by a random 0 to 0.8 s.
        Tunable(("ipv4", "neigh", name, "proxy_delay"), "0"),
        # Else each ARP request in a foreign name takes an entry in the kernel's one neighbour table (behaviour B114).
        # Neighbour discovery in foreign names ends in the rules.
        source_check(name, outranked=outranked),
        Tunable(("ipv4", "conf", name, "accept_redirects"), "0"),
    ]
    if not ipv6:
        return (*found, Tunable(("ipv6", "conf", name, "disable_ipv6"), "1"))
    return (
        *found,
        Tunable(("ipv6", "conf", name, "disable_ipv6"), "0"),
        # Router advertisements and neighbour data of client qubes are ignored (behaviour B56).
        Tunable(("ipv6", "conf", name, "accept_ra"), "0"),
        Tunable(("ipv6", "conf", name, "accept_redirects"), "0"),
        Tunable(("ipv6", "conf", name, "drop_unsolicited_na"), "1"),
        Tunable(("ipv6", "conf", name, "proxy_ndp"), "1"),
        Tunable(("ipv6", "neigh", name, "proxy_delay"), "0"),
    )


def source_check(name: str, *, outranked: bool) -> Tunable:
    """Return the setting of the kernel's reverse path check on a vif.

    Strict, but for an HVM's vif whose address its stub domain's has as well (behaviour B58): the kernel knows one way
    to that address, and would drop all that the other one sends. The rules know both.
    """
    return Tunable(("ipv4", "conf", name, "rp_filter"), "2" if outranked else "1")


def outranked(vif: Vif, others: Iterable[Vif]) -> bool:
    """Return whether another vif with the same IPv4 address has the preferred route to it.

    Args:
        vif: one of them.
        others: in service; itself among them counts for nothing.
    """
    own = {address for address in vif.addresses if address.version == IPV4}
    # As the metrics of their routes have it. Of two with one metric the kernel takes either.
    later = (other for other in others if other.name != vif.name and other.name.domid >= vif.name.domid)
    return any(not own.isdisjoint(other.addresses) for other in later)


def has_ipv6(vif: Vif, settings: ProviderSettings) -> bool:
    """Return whether the qube of a vif has IPv6: it has an address, its provider has IPv6, and it has no fake
    address.
    """
    return settings.serves(IPV6) and not vif.mappings and any(address.version == IPV6 for address in vif.addresses)


def split(ops: Iterable[plan.Op]) -> tuple[tuple[plan.Op, ...], tuple[plan.Op, ...]]:
    """Split operations into those before the anti-spoofing elements, and those after, which let packets pass."""
    ops = tuple(ops)
    first = next((number for number, op in enumerate(ops) if op.verb in _LATE), len(ops))
    return ops[:first], ops[first:]


def added(ops: Iterable[plan.Op]) -> frozenset[IPInterface]:
    """Return the addresses that operations add."""
    return frozenset(
        op.subject
        for op in ops
        if op.verb is plan.Verb.ADDRESS_ADD
        and isinstance(op.subject, ipaddress.IPv4Interface | ipaddress.IPv6Interface)
    )


def device(link: Link) -> Device:
    """Return which interface it is, as the record of a vif has it."""
    return Device(link.ifindex, link.mac)


def is_its_own(vif: Vif, link: Link) -> bool:
    """Return whether an interface is the recorded one; True if the record does not identify it."""
    return vif.device is None or vif.device == device(link)


def there(records: Iterable[Vif], indexes: Mapping[str, int]) -> tuple[Vif, ...]:
    """Return the vifs whose own device is there; one of another device is a stranger (behaviour B117).

    Args:
        records: of all vifs.
        indexes: of the interfaces that there are, by name.
    """
    found = ((vif, indexes.get(vif.name.text)) for vif in records if vif.device != GONE)
    return tuple(
        vif for vif, index in found if index is not None and (vif.device is None or vif.device.ifindex == index)
    )


def letting_send(vifs: Iterable[Vif], settings: ProviderSettings, *, arp: bool) -> str:
    """Return the elements of the sets for vifs, as a part of a transaction; existing elements are ignored.

    Args:
        vifs: that are there.
        settings: of the provider.
        arp: the kernel has nftables for ARP.
    """
    return rules_text.attach_all(
        (vif.name.text, provider.elements(vif, settings).downstream, vif.mac if arp else "") for vif in vifs
    )


def owned(vif: Vif) -> Owned:
    """Return what on a vif is ours: its gateway addresses as recorded, and the neighbours it was told."""
    return Owned(vif.gateways, frozenset(vif.addresses))


def up(link: Link, desired: State, observed: State, vif: Vif, held: frozenset[str]) -> tuple[plan.Op, ...]:
    """Return the operations that configure a vif.

    Args:
        link: the interface.
        desired: by `settings.desired`.
        observed: what it has.
        vif: as recorded.
        held: settings that are not valid; what was made by them stays.
    """
    families = {"gateway": IPV4, "ipv6": IPV6}
    ops = plan.plan(link, desired, observed, owned(vif), peer=vif.mac)
    kept = {families[name] for name in held if name in families}
    return tuple(op for op in ops if op.family not in kept or op.verb in plan.ADDING)


def down(link: Link, observed: State, vif: Vif) -> tuple[plan.Op, ...]:
    """Return the operations that take a vif down: the link first, so that nothing passes during the rest."""
    return (*plan.takedown(link), *plan.plan(link, State(), observed, owned(vif), peer=vif.mac))


def listed(listing: str) -> frozenset[str]:
    """Return the elements that nft lists, as words: family, set, element.

    Args:
        listing: of the sets `allowed` and `downstream`, of both families.
    """
    found = set()
    family = name = ""
    for block in listing.split("}"):
        head, opened, members = block.partition("elements = {")
        words = head.split()
        for word, following in itertools.pairwise(words):
            family = following if word == "table" else family
            name = following if word == "set" else name
        found |= _members(family, name, members) if opened else set()
    return frozenset(found)


def is_there(line: str, present: frozenset[str]) -> bool:
    """Return whether all that a line of nft adds is listed.

    Args:
        line: `add element FAMILY qubes SET { … }`.
        present: by `listed`.
    """
    head, _, members = line.rstrip(" }").partition("{")
    _, _, family, _, name = head.split()
    return _members(family, name, members) <= present


def adding(text: str) -> frozenset[str]:
    """Return the elements that a text for nft adds, as `listed` has them."""
    found = set[str]()
    for line in text.splitlines():
        if line.startswith("add element "):
            head, _, members = line.rstrip(" }").partition("{")
            found |= _members(head.split()[2], head.split()[4], members)
    return frozenset(found)


def downstream(present: frozenset[str]) -> frozenset[IPAddress]:
    """Return the addresses in the sets `downstream`."""
    words = (element.split() for element in present)
    return frozenset(ipaddress.ip_address(element) for _, name, element, *_ in words if name == "downstream")


def _members(family: str, name: str, members: str) -> set[str]:
    return {f"{family} {name} {' '.join(member.split())}" for member in members.split(",")}
