# SPDX-License-Identifier: GPL-2.0-or-later
"""What a qube must be like, by rules written anew from the design: the judge of the random walk.

It never looks whether a value is valid: the step that writes one says so. An object of the kernel is a tuple of words.

Where a family is *held* (one of its values is not valid) it must have what it had at the last valid moment. The agent
sees only some of the moments, and which ones is its own affair; so all that it could have made since it was last seen
at rest is remembered, and it must have exactly one of these.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import NamedTuple

MAC = "00:16:3e:5e:6c:05"
OTHER_MAC = "00:16:3e:5e:6c:77"
BACKEND_MAC = "fe:ff:ff:ff:ff:ff"
OWN = f"/net-config/{MAC}/"
GLOBAL = "/qubes-"
NO_DEFAULT, NO_DNS, GATEWAY_ROUTE = "disable-default-route", "disable-dns-server", "guestnet-gateway-route"
LONGEST = {4: 32, 6: 128}
# Of a route without and with a metric of its own; each further uplink is worse by 100.
METRIC, WORSE = {4: 0, 6: 1025}, 100

Object = tuple[str, ...]
Objects = frozenset[Object]
File = tuple[str, ...]
NOTHING: Objects = frozenset()


class Value(NamedTuple):
    """An entry, and whether it is one that dom0 may write there."""

    data: bytes
    good: bool = True


class Wanted(NamedTuple):
    """What the entries and flags ask for.

    Args:
        families: 4 and 6 → every state that is right; None: held.
        servers: for resolv.conf; None: held.
        up: the link must be up.
        known: the entries name the interface.
    """

    families: dict[int, list[Objects] | None]
    servers: tuple[str, ...] | None
    up: bool
    known: bool


def wanted(keys: dict[str, Value], flags: set[str]) -> Wanted:
    """What these entries and flags ask for, of an interface that is there."""
    mac = keys.get(GLOBAL + "mac", Value(b""))
    named = mac.good and mac.data.decode().lower() == MAC
    own = {version: bool(keys.get(OWN + _leaf("ip", version), Value(b"")).data) for version in (4, 6)}
    known = named or own[4] or own[6]
    rank = 0 if named or not mac.data else 1
    folder = OWN if own[4] or not named else GLOBAL
    families: dict[int, list[Objects] | None] = {}
    for version in (4, 6):
        if known:
            families[version] = _family(version, folder, keys, flags, rank)
        else:  # not the agent's any longer; while its owner is unknown, nothing changes
            families[version] = [NOTHING] if mac.good else None
    up = any(states and states[0] for states in families.values())
    primary = GLOBAL if not named else folder
    return Wanted(families, _servers(keys, mac, primary), up, known)


def _leaf(name: str, version: int) -> str:
    return name if version == 4 else f"{name}6"


def _text(keys: dict[str, Value], key: str) -> str:
    return keys.get(key, Value(b"")).data.decode("latin-1")


def _family(version: int, folder: str, keys: dict[str, Value], flags: set[str], rank: int) -> list[Objects] | None:
    names = [folder + _leaf(leaf, version) for leaf in ("ip", "netmask", "gateway")]
    address, netmask, gateway = (_text(keys, name) for name in names)
    if not address:
        return [NOTHING]
    if not all(keys[name].good for name in names if name in keys):
        return None
    interface = ipaddress.ip_interface(f"{address}/{netmask or LONGEST[version]}")
    objects: set[Object] = {("address", interface.with_prefixlen)}
    metric = str(METRIC[version] + WORSE * rank)
    if not gateway:
        # B139: a device route needs none. A further uplink and one whose peer is no Qubes provider get no default.
        barred = rank or OWN + "custom" in keys or {NO_DEFAULT, GATEWAY_ROUTE} & flags
        routes = set() if barred or version == 6 else {_route(version, "default", "", metric)}
        return [frozenset(objects | routes)]
    gateway = str(ipaddress.ip_address(gateway))
    if OWN + "custom" not in keys:
        objects.add(("neighbour", gateway, BACKEND_MAC))
    by_gateway = NO_DEFAULT in flags or version == 6 or GATEWAY_ROUTE in flags
    # With the device route, a provider that answers late on a busy machine is a good reason to fall back.
    states = [objects | _routes(version, gateway, metric, NO_DEFAULT not in flags)]
    if not by_gateway:
        states.append(objects | {_route(version, "default", "", metric)})
    return [frozenset(state) for state in states]


def _routes(version: int, gateway: str, metric: str, default: bool) -> set[Object]:
    found = set()
    if not gateway.startswith("fe80:"):  # link-local is on every link anyway
        found.add(_route(version, gateway, "", metric))
    if default:
        found.add(_route(version, "default", gateway, metric))
    return found


def _route(version: int, destination: str, gateway: str, metric: str, protocol: str = "81") -> Object:
    scope = "link" if version == 4 and not gateway else "global"
    return ("route", str(version), destination, gateway, scope, "onlink" if gateway else "", metric, protocol)


def _servers(keys: dict[str, Value], mac: Value, primary: str) -> tuple[str, ...] | None:
    names = (GLOBAL + "primary-dns", GLOBAL + "secondary-dns")
    if not all(keys[name].good for name in names if name in keys):
        return None
    first, second = (_text(keys, name) for name in names)
    if not first:  # the gateway stands in
        if not mac.good:
            return None
        if mac.data and _text(keys, primary + "ip"):
            if _family(4, primary, keys, set(), 0) is None:
                return None
            first = _text(keys, primary + "gateway")
    return tuple(dict.fromkeys(server for server in (first, second) if server))


def rewritten(file: File, servers: tuple[str, ...] | None, flags: set[str]) -> File:
    """What becomes of a resolv.conf: ("ours", server…), ("text", what another wrote) or ("link", target)."""
    if servers is None:
        return file
    if NO_DNS in flags or not servers:
        return ("text", "") if file[0] == "ours" else file
    return ("ours", *servers)


class Held:
    """What one part (a family, or resolv.conf) may be while its settings are not valid.

    Args:
        now: what it is.
    """

    def __init__(self, now: Objects) -> None:
        self.possible = {now}
        # Something took parts of it away, or made a mixture: only that it is nothing else can be asked.
        self.loose = False

    def allows(self, seen: Objects) -> bool:
        """Whether this can be what it had."""
        if self.loose:
            return seen <= NOTHING.union(*self.possible)
        return seen in self.possible


class Model:
    """The qube as the walk has made it, and what follows from that.

    Attributes:
        keys: what dom0 has.
        flags: those that are set.
        served: QubesDB answers.
        plugged: the interface is there.
        removed: `uplink remove` took it down.
        foreign: objects on the interface that are the user's.
        families: 4 and 6 → what the interface may have of it.
        files: what resolv.conf may be.
    """

    def __init__(self, keys: dict[str, Value]) -> None:
        self.keys = keys
        self.flags: set[str] = set()
        self.served = True
        self.plugged = self.removed = False
        self.foreign: set[Object] = set()
        self.families = {4: Held(NOTHING), 6: Held(NOTHING)}
        self.files: set[File] = {("text", "")}
        self._touched: set[str] = set()

    def wanted(self) -> Wanted:
        """What is asked for now."""
        return wanted(self.keys, self.flags)

    def changed(self, what: str = "") -> None:
        """Keys, flags or the interface have changed: one more moment that the agent may see.

        Args:
            what: "/qubes-", "/net-config/" or "flags". They are not read at one moment: a mixture is possible.
        """
        if what:
            self._touched.add(what)
        if not self.served or not self.plugged:
            return
        asked = self.wanted()
        for version, states in asked.families.items():
            if states is not None and not self.removed:
                self.families[version].possible.update(states)
        self.files |= {rewritten(file, asked.servers, self.flags) for file in self.files}

    @property
    def ambiguous(self) -> bool:
        """Whether something is held that may be one of several states."""
        asked = self.wanted()
        held = [self.families[version] for version, states in asked.families.items() if states is None or self.removed]
        return any(each.loose or len(each.possible) > 1 for each in held) or (
            asked.servers is None and len(self.files) > 1
        )

    def disturb(self, *versions: int) -> None:
        """Parts of these families were taken away, and while they are held they are not put back."""
        for version in versions or (4, 6):
            self.families[version].loose = True

    def plug(self) -> None:
        """A new interface, with nothing on it."""
        self.plugged, self.removed = True, False
        self.families = {4: Held(NOTHING), 6: Held(NOTHING)}
        self.changed()

    def unplug(self) -> None:
        """The interface is gone with everything on it."""
        self.plugged = self.removed = False
        self.foreign.clear()
        self.families = {4: Held(NOTHING), 6: Held(NOTHING)}

    def downed(self) -> None:
        """The link was down for a moment: of all that is on it the kernel keeps the IPv4 addresses only."""
        self.foreign = {each for each in self.foreign if each[0] == "address" and ":" not in each[1]}
        self.disturb()

    def overwritten(self, file: File) -> None:
        """Another program put another resolv.conf in place; a pass on its way may still put its own there."""
        self.files.add(file)
        self.changed()

    # --- judging -----------------------------------------------------------------------------------------------

    def difference(self, up: bool, seen: Objects, file: File) -> str:
        """What is not as it must be once everything is at rest; "" when all is.

        Args:
            up: the link is up.
            seen: all objects on the interface, none if there is none.
            file: resolv.conf.
        """
        asked = self.wanted()
        if self.plugged:
            if missing := self.foreign - seen:
                return f"foreign objects are gone: {sorted(missing)}"
            if self.removed and up:
                return "the link is up and was taken down"
            if asked.up and not self.removed and not up:
                return "the link is down"
            ours = {version: _of(version, seen - self.foreign) for version in (4, 6)}
            for version, states in asked.families.items():
                if wrong := self._family_differs(version, states, ours[version]):
                    return wrong
        return self._file_differs(asked, file)

    def _family_differs(self, version: int, states: list[Objects] | None, ours: Objects) -> str:
        held = self.families[version]
        if states is not None and not self.removed:
            return "" if ours in states else f"IPv{version} is {_shown([ours])}, and should be {_shown(states)}"
        if len(self._touched) > 1:
            held.loose = True
        if held.allows(ours):
            return ""
        word = "part of one of" if held.loose else "one of"
        return f"IPv{version} is {_shown([ours])}, and is held, so {word} {_shown(held.possible)}"

    def _file_differs(self, asked: Wanted, file: File) -> str:
        possible = {rewritten(each, asked.servers, self.flags) for each in self.files}
        # The walk's tun0 carries a default route all the time: a file with servers may be its program's (B124).
        possible |= {each for each in self.files if each[0] == "text"}
        if not self.plugged or not asked.known or asked.servers is None:
            possible |= self.files
            if len(self._touched) > 1:
                return ""
        return "" if file in possible else f"resolv.conf is {file}, and should be one of {possible}"

    def rest(self, seen: Objects, file: File) -> None:
        """It was found as it must be, and this is how it was found: what is held has to stay exactly so."""
        asked = self.wanted()
        for version, held in self.families.items():
            states = asked.families[version]
            held.loose = False
            if states is None or self.removed:
                held.possible = {_of(version, seen - self.foreign)}
            else:
                held.possible = set(states)
        self.files = {file}
        self._touched.clear()


def _of(version: int, objects: Iterable[Object]) -> Objects:
    """The objects of one family."""
    return frozenset(each for each in objects if version_of(each) == version)


def version_of(each: Object) -> int:
    """4 or 6."""
    return int(each[1]) if each[0] == "route" else 6 if ":" in each[1] else 4


def _shown(states: Iterable[Objects]) -> str:
    words = (["; ".join(" ".join(filter(None, each)) for each in sorted(state))] for state in states)
    return " or ".join(each or "nothing" for (each,) in words)
