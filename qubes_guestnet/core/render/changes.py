# SPDX-License-Identifier: GPL-2.0-or-later
"""A plan as a difference: the present value, the future value and the reason of each operation.

`plan` and `status --json` print it. What a kind of operation changes is a row of a table here, by its class; a test
says which row is missing. An operation of the kernel's is explained by what was observed on its interface.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from .. import wording
from ..namedtuple import NamedTuple
from ..plan import Op, Verb, route_words
from ..provider.vif_operations import VifOperation
from ..report import InterfaceReport, Report, server_words
from ..values import IPV6, Neighbour, Route, State, Tunable

TYPE_CHECKING = False  # of `typing`, which costs 5 ms and 1 MB (see system/deferred_imports)
if TYPE_CHECKING:
    from typing import Any

    _Words = tuple[str, str, str]

ABSENT = "absent"


class Change(NamedTuple):
    """One operation of a plan.

    Args:
        operation: in the syntax of ip(8), nft(8) and others.
        interface: its interface, "" for none.
        before: the present value; "" if it was not read.
        after: the future value.
        reason: one line.
    """

    operation: str
    interface: str
    before: str
    after: str
    reason: str


# The reason for a setting below /proc/sys, by the last word of its path.
_TUNABLES = {
    "accept_ra": "only dom0 gives this interface addresses and routes",
    "accept_redirects": "only dom0 gives this interface routes",
    "drop_unsolicited_na": "a neighbour must not announce the address of another one",
    "drop_gratuitous_arp": "a neighbour must not announce the address of another one",
    "proxy_arp": "the qube asks by ARP for every destination",
    "proxy_ndp": "the qube asks by NDP for its gateway",
    "proxy_delay": "ARP answers for the qube must not be delayed",
    "rp_filter": "packets with the address of another qube are dropped",
    "disable_ipv6": "as dom0 gives the qube IPv6, or not",
}

# The reason for an operation on an uplink, and for one on a vif.
_UPLINK = {
    Verb.LINK_GROUP: "group 1 marks the uplink",
    Verb.LINK_MTU: "dom0 sets the MTU",
    Verb.LINK_UP: "the interface is ready",
    Verb.LINK_DOWN: "`uplink remove` was called",
    Verb.ADDRESS_ADD: "dom0 gives this address",
    Verb.ADDRESS_DEL: "dom0 no longer gives this address",
    Verb.NEIGHBOUR_SET: "the gateway has the MAC of Xen's backend, so the first packet needs no ARP",
    Verb.NEIGHBOUR_DEL: "it is no longer the gateway",
    Verb.ROUTE_DEL: "dom0's settings no longer require this route",
}
_VIF = {
    Verb.LINK_GROUP: "group 2 marks the interface of a client qube",
    Verb.LINK_MTU: "the MTU of the qubes is that of the uplink",
    Verb.LINK_UP: "the rules that limit the qube to its own addresses are in force",
    Verb.LINK_DOWN: "the vif is taken out of service",
    Verb.ADDRESS_ADD: "the gateway of the qube answers here",
    Verb.ADDRESS_DEL: "the qube has another gateway",
    Verb.NEIGHBOUR_SET: "the address belongs to this qube, whatever its neighbours claim",
    Verb.NEIGHBOUR_DEL: "the qube no longer has this address",
    Verb.ROUTE_ADD: "the qube is reached here",
    Verb.ROUTE_DEL: "the qube no longer has this address",
}


def _redirection(op: Any) -> _Words:
    servers = " ".join(map(str, op.servers))
    return "", servers or op.refused or "refused", "the virtual DNS addresses follow this qube's own name servers"


def _names(op: Any) -> _Words:
    return "", " ".join(op.names.servers), f"systemd-resolved asks the servers that dom0 names for {op.interface}"


def _downstream(op: Any) -> _Words:
    return "", _difference(op), "dom0 lists these addresses as those of client qubes"


def _difference(op: Any) -> str:
    return " ".join([*(f"+{address}" for address in op.add), *(f"-{address}" for address in op.remove)])


def _addresses(op: Any) -> _Words:
    return "", _difference(op) or "none", "the name servers gave another answer"


def _of_vif(op: Any) -> _Words:
    return (*_ends(op.op, None), _VIF[op.op.verb])


def _element(op: Any) -> _Words:
    if op.line.startswith("delete"):
        return "present", ABSENT, "the qube may no longer send from this address"
    return ABSENT, "present", "the qube may send from this address, and from no other"


# Kind of operation → before, after, reason; a function if these depend on the operation.
KINDS: dict[str, _Words | Callable[[Any], _Words]] = {
    "EndFlowtable": ("connections may be offloaded", "no offload", "offloaded packets would bypass the rules"),
    "CloseForwarding": ("1", "0", "nothing is forwarded before the rules that protect the qubes are in force"),
    "OpenForwarding": ("0", "1", "this qube provides network, and all rules that protect client qubes are in force"),
    "LoadRules": ("missing or different", "in force", "no qube may use the address of another one"),
    "LoadRulesInParts": ("refused together", "each part alone", "rules of users and other programs stay"),
    "UnloadRules": ("in force", "no base rules", "`rules unload` was called"),
    "PurgeUntranslated": ("in conntrack", "deleted", "connections that began without rules stay untranslated"),
    "LeaveGuard": ("in force", "no guard", "this qube provides network to no other qube"),
    "StandGuard": ("no guard", "in force", "no packet passes while the base rules are missing"),
    "CloseVif": _of_vif,
    "RemoveElements": ("may send", "may send nothing", "the qube is gone, or its device belongs to another one"),
    "WriteVifRecord": ("", "recorded", "the configuration of the qube can be removed later"),
    "SetLimits": ("missing or different", "in force", "no qube may take all connections for itself"),
    "SetElement": _element,
    "WriteTunable": lambda op: ("", op.tunable.value, _TUNABLES[op.tunable.path[-1]]),
    "PrepareVif": _of_vif,
    "OpenVif": _of_vif,
    "RemoveVifRecord": ("in service", "out of service", "the device of the qube no longer exists"),
    "MarkVifClosed": ("in service", "closed", "its device is gone; hotplug still needs its record"),
    "KeepVifRecord": ("partly out of service", "tried again", "taking the vif out of service failed"),
    "ChangeDownstream": _downstream,
    "LoadRedirection": _redirection,
    "KeepForeignRedirection": lambda op: ("", op.ends, "rules of another program in dnat-dns stay in force"),
    "PurgeConntrack": ("in conntrack", "deleted", "old connections must not outlive the change"),
    "SetFirewallServers": lambda op: (
        "", " ".join(map(str, op.addresses)) or "none", "the firewall of the qubes allows DNS to these servers"
    ),
    "LoadFirewallTable": ("missing or different", "in force", "it drops packets that no rule of a qube accepts"),
    "SetDnsServers": lambda op: (
        "", " ".join(map(str, op.servers)) or "none", "the firewall of the qubes allows DNS to these servers"
    ),
    "ChangeName": _addresses,
    "SetQubeRules": lambda op: (
        "missing or different", "in force", f"dom0 has committed rules for {op.bound.ruleset.address}"
    ),
    "RemoveQubeRules": ("in force", ABSENT, "no vif has this address, or dom0 has committed no rules since"),
    "RemoveQubeChain": ("present", "empty or absent", "no qube uses it"),
    "RemoveName": ("present", ABSENT, "no rule uses the name"),
    "EndConnections": ("in conntrack", "deleted", "new rules refuse what former ones accepted"),
    "ExportNames": ("", "written", "scripts read the addresses of names there"),
    "CountHandled": ("", "one more", "programs of dom0 and scripts wait until rules are in force"),
    "UnitJob": lambda op: ("", f"{op.verb} queued", f"{op.unit} uses the name servers that changed"),
    "ApplySysctl": ("files of sysctl.d not applied", "applied", "they must be applied before the link goes up"),
    "PublishFile": ("missing or different", "as dom0 asks", "programs of this qube find their name servers there"),
    "RewriteProfile": ("former interface name", "present interface name", "the profile is the user's own"),
    "PublishProfile": ("missing or different", "as dom0 asks", "NetworkManager configures the uplink from it"),
    "LoadProfile": ("not read", "read", "NetworkManager does not watch its folder"),
    "ActivateProfile": ("not in force", "in force", "NetworkManager configures the uplink from it"),
    "ReapplyProfile": ("former settings in force", "new settings in force", "the profile changed"),
    "RemoveProfile": ("present", ABSENT, "NetworkManager no longer configures this interface"),
    "StartHooks": ("not run", "started", "addresses, gateways or servers changed since the hooks last ran"),
    "SetLinkNames": _names,
    "RevertLinkNames": ("has servers", "no servers", "dom0 gives this interface no name servers"),
    "LoadFlowtable": lambda op: (
        "no flowtable of these devices", f"{len(op.names)} devices", "packets of known connections take less time"
    ),
}  # fmt: skip

# A step that another program must take first.
_OTHERWISE = ("", "later", "another program has to act first")


def changes(report: Report) -> tuple[Change, ...]:
    """Return every operation of a plan with its difference, in the order of `report.plan`.

    Args:
        report: of a dry pass.
    """
    return tuple(_changes(report))


def _changes(report: Report) -> Iterator[Change]:
    provided = report.provided
    for op in (*report.rules_todo, *(provided.before.todo if provided is not None else ())):
        yield _explained(op)
    for interface in report.interfaces:
        yield from (_of_uplink(op, interface) for op in interface.plan)
    resolver = report.resolver
    if resolver is not None and resolver.pending:
        before, after = server_words(resolver.current), server_words(resolver.wanted or b"")
        yield Change(resolver.operation, "", before, after, wording.owner(resolver.decision))
    for op in (*report.todo, *(provided.after.todo if provided is not None else ())):
        yield _explained(op)


def _explained(op: object) -> Change:
    """Return the change of an operation, or of a step that another program must take first, in words."""
    found = KINDS.get(type(op).__name__)
    if found is not None:
        name = op.name if isinstance(op, VifOperation) else getattr(op, "interface", "")
        return Change(str(op), name, *(found if isinstance(found, tuple) else found(op)))
    return Change(str(op), "", *_OTHERWISE)


def _of_uplink(op: Op, interface: InterfaceReport) -> Change:
    if isinstance(op.subject, Tunable):
        reason = _TUNABLES[op.subject.path[-1]]
    elif op.verb is Verb.ROUTE_ADD and isinstance(op.subject, Route):
        reason = _route_reason(op.subject, interface)
    else:
        reason = _UPLINK[op.verb]
    return Change(str(op), op.name, *_ends(op, interface.observed), reason)


def _route_reason(route: Route, interface: InterfaceReport) -> str:
    if route.destination.prefixlen:
        return "the gateway is reached here"
    if route.destination.version == IPV6:
        return "IPv6 always leaves by the gateway"
    return f"default route: {wording.style(interface.choice)}"


def _ends(op: Op, observed: State | None) -> tuple[str, str]:
    """Return the present and the future value of a kernel operation; if nothing was observed, as far as known."""
    subject = op.subject
    if op.verb in (Verb.LINK_UP, Verb.LINK_DOWN):
        return ("down", "up") if op.verb is Verb.LINK_UP else ("up", "down")
    if op.verb in (Verb.LINK_GROUP, Verb.LINK_MTU):
        known = "" if observed is None else str(observed.group if op.verb is Verb.LINK_GROUP else observed.mtu)
        return known, str(subject)
    if isinstance(subject, Tunable):
        there = {tunable.path: tunable.value for tunable in observed.tunables} if observed is not None else {}
        return there.get(subject.path, ""), subject.value
    thing = " ".join(route_words(subject, op.name)) if isinstance(subject, Route) else str(subject)
    if isinstance(subject, Neighbour):
        entries = observed.neighbours if observed is not None else ()
        former = next((_entry(entry) for entry in entries if entry.address == subject.address), ABSENT)
        return former, f"{subject.mac} permanent"
    return (thing, ABSENT) if op.verb in (Verb.ADDRESS_DEL, Verb.NEIGHBOUR_DEL, Verb.ROUTE_DEL) else (ABSENT, thing)


def _entry(neighbour: Neighbour) -> str:
    return f"{neighbour.mac or 'unresolved'}{' permanent' if neighbour.permanent else ''}"
