# SPDX-License-Identifier: GPL-2.0-or-later
"""A long life of one qube in the model: dom0, the user, a VPN and the hardware all do as they please.

After each thing that happens there is a pass, or one that is killed and then one. It has to end in what the present
keys ask for, with all that others made left as it is. `tests/lab` walks the same way with real qubes.
"""

from __future__ import annotations

import ipaddress
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qubes_guestnet.core.owned_state import Fallback
from qubes_guestnet.core.report import Report
from qubes_guestnet.core.uplink import desired as uplink
from qubes_guestnet.core.values import IPV4, IPV6, ROUTE_PROTOCOL, Neighbour, Route, State
from qubes_guestnet.reconcile import record_fallback, take_down
from tests.core.model import KERNEL, Interface, taken
from tests.core.qube import Qube, eth0, only
from tests.support.faults.hostile import GOOD, MAC

STEPS = 1000
VALUES: dict[str, tuple[bytes, ...]] = {
    "/qubes-ip": (b"10.137.0.5", b"10.137.0.6", b"192.168.7.7", b"bad", b""),
    "/qubes-netmask": (b"255.255.255.255", b"24", b"bad"),
    "/qubes-gateway": (b"10.138.0.1", b"10.138.0.2", b"bad", b""),
    "/qubes-ip6": (b"fd09::5", b"fd09::6", b"bad", b""),
    "/qubes-netmask6": (b"128", b"64"),
    "/qubes-gateway6": (b"fe80::1", b"fe80::2", b"fd0a::1", b""),
    "/qubes-primary-dns": (b"10.139.1.1", b"10.139.1.3", b"bad", b""),
    f"/net-config/{MAC}/custom": (b"", b"1"),
}
ADDRESSES = [
    ipaddress.ip_interface(text)
    for text in ("10.137.0.5/32", "10.137.0.6/24", "192.168.7.7/24", "fd09::5/64", "fd09::6/128", "fd77::7/64")
]
ROUTES = [
    Route(ipaddress.ip_network("10.8.0.0/16"), protocol=3),
    Route(ipaddress.ip_network("0.0.0.0/0"), metric=50, protocol=4),
    Route(ipaddress.ip_network("0.0.0.0/0"), protocol=4),
    Route(ipaddress.ip_network("::/0"), ipaddress.ip_address("fe80::99"), onlink=True, metric=1024, protocol=4),
]
NEIGHBOURS = [
    Neighbour(ipaddress.ip_address("192.168.7.1"), "02:00:00:00:00:01", permanent=False),
    Neighbour(ipaddress.ip_address("fd77::1"), "02:00:00:00:00:01"),
]
FLAGS = ("disable-default-route", "guestnet-gateway-route")


class Killed(BaseException):
    """SIGKILL."""


class Life:
    """A qube and what others made on its interface."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.chance = random.Random(seed)
        self.qube = Qube(folder, eth0())
        self.qube.run()
        self.index = 2
        self.foreign = State()
        self.deeds: dict[Callable[[], object], int] = {
            self.write: 12,
            self.toggle: 2,
            self.user_adds: 5,
            self.user_takes_away: 5,
            self.link_down: 2,
            self.replug: 1,
            self.remove_and_add: 1,
            self.fall_back: 1,
        }

    @property
    def interface(self) -> Interface:
        return self.qube.kernel.interfaces[self.index]

    def write(self) -> None:
        """dom0 writes a few keys, or all of them anew."""
        for _ in range(self.chance.randint(1, 3)):
            key = self.chance.choice([*VALUES])
            self.qube.entries[key] = self.chance.choice(VALUES[key])
        if self.chance.random() < 0.2:
            self.qube.entries = dict(GOOD)

    def toggle(self) -> None:
        flag = Path(self.qube.paths.flags, self.chance.choice(FLAGS))
        if flag.exists():
            flag.unlink()
        else:
            flag.touch()

    def user_adds(self) -> None:
        thing: Any = self.chance.choice([*ADDRESSES, *ROUTES, *NEIGHBOURS])
        interface = self.interface
        if isinstance(thing, Neighbour):
            interface.neighbours[thing.address] = thing
            self.foreign = self.foreign._replace(neighbours=self.foreign.neighbours | {thing})
        elif isinstance(thing, Route):
            if interface.up and thing not in interface.routes:
                interface.routes.append(thing)
                self.foreign = self.foreign._replace(routes=self.foreign.routes | {thing})
        elif not any(taken(thing, other) for other in interface.addresses):
            interface.addresses.append(thing)
            if interface.up:
                interface.set_up()  # for the routes that the kernel makes
            self.foreign = self.foreign._replace(addresses=self.foreign.addresses | {thing})

    def user_takes_away(self) -> None:
        """Something of anybody's; never the last IPv4 address, with which the kernel takes all the rest."""
        interface = self.interface
        things: list[Any] = [*interface.addresses, *interface.routes, *interface.neighbours.values()]
        thing = self.chance.choice(things) if things else None
        if isinstance(thing, Neighbour):
            del interface.neighbours[thing.address]
        elif isinstance(thing, Route):
            interface.routes.remove(thing)
        elif thing is not None and (thing.version == IPV6 or len(v4(interface.addresses)) > 1):
            interface.addresses.remove(thing)
        self.forget(interface.state())

    def link_down(self) -> None:
        self.interface.set_down()
        self.forget(self.interface.state())

    def replug(self) -> None:
        """The interface goes, and a new one comes: before a pass has seen that, or after."""
        self.qube.kernel.interfaces.clear()
        if self.chance.random() < 0.5:
            assert only(self.qube.run()).link is None
        self.index += 1
        self.qube.kernel.interfaces[self.index] = eth0(index=self.index)
        self.foreign = State()

    def remove_and_add(self) -> None:
        assert take_down(self.index, self.qube.kernel, self.qube.paths)
        self.forget(self.interface.state())
        self.qube.run()
        assert not self.interface.up
        self.qube.run(revive=True)

    def fall_back(self) -> None:
        record_fallback(self.qube.paths, self.index, MAC, Fallback(ipaddress.ip_address("10.138.0.1"), "slow"))

    def forget(self, state: State) -> None:
        """What is gone belongs to no program any longer."""
        self.foreign = State(
            addresses=self.foreign.addresses & state.addresses,
            neighbours=self.foreign.neighbours & state.neighbours,
            routes=self.foreign.routes & state.routes,
        )

    def step(self) -> Report:
        """Something happens, and a pass follows; sometimes it is killed half-way, and another follows."""
        self.chance.choices([*self.deeds], [*self.deeds.values()])[0]()
        if self.chance.random() < 0.15:
            self.killed_pass(self.chance.randrange(8))
        return self.qube.run(keys_written=self.chance.random() < 0.5)

    def killed_pass(self, after: int) -> None:
        count = iter(range(after))

        def before(_op: object) -> None:
            if next(count, None) is None:
                raise Killed

        self.qube.kernel.before = before
        try:
            self.qube.run()
        except Killed:
            pass
        finally:
            self.qube.kernel.before = lambda _op: None


def v4(addresses: Any) -> list[Any]:
    return [address for address in addresses if address.version == IPV4]


def assert_right(life: Life, report: Report) -> None:
    """For each family that is not held: what the keys ask for, what others made, and nothing else."""
    interface = only(report)
    state, desired, foreign = life.interface.state(), interface.desired, life.foreign
    wanted = uplink.desired(interface.settings, interface.choice.style, flags(life))
    assert interface.desired._replace(tunables=frozenset()) == wanted
    if not v4(state.addresses):  # with the last address the kernel takes the routes and neighbours of IPv4
        routes4 = {route for route in foreign.routes - state.routes if route.destination.version == IPV4}
        entries4 = {entry for entry in foreign.neighbours - state.neighbours if entry.address.version == IPV4}
        foreign = life.foreign = foreign._replace(
            routes=foreign.routes - routes4, neighbours=foreign.neighbours - entries4
        )
    assert foreign.addresses <= state.addresses
    assert foreign.routes <= state.routes
    assert foreign.neighbours <= state.neighbours
    ips = {address.ip for address in foreign.addresses if address.version == IPV6}
    ways = {(route.destination, route.gateway, route.metric) for route in foreign.routes}
    for version in {IPV4, IPV6} - interface.settings.held:
        ours = {a for a in state.addresses - foreign.addresses if a.version == version}
        wanted = {a for a in desired.addresses - foreign.addresses if a.version == version and a.ip not in ips}
        assert ours == wanted
        made = {n for n in state.neighbours - foreign.neighbours if n.address.version == version}
        assert made == {n for n in desired.neighbours if n.address.version == version}
        routes = {r for r in state.routes if r.protocol == ROUTE_PROTOCOL and r.destination.version == version}
        missing = {r for r in desired.routes if r.destination.version == version} - routes
        assert routes <= desired.routes
        assert {(route.destination, route.gateway, route.metric) for route in missing} <= ways
    assert all(r in foreign.routes or r.protocol in (ROUTE_PROTOCOL, KERNEL) for r in state.routes)


def flags(life: Life) -> uplink.Flags:
    return uplink.Flags(*(Path(life.qube.paths.flags, name).exists() for name in (FLAGS[0], "-", FLAGS[1])))


@pytest.mark.behaviour("B5")
@pytest.mark.behaviour("B7")
@pytest.mark.parametrize("seed", [1, 25])
def test_every_step_of_a_long_life_ends_in_what_the_keys_ask_for(folder: Path, seed: int) -> None:
    life = Life(folder, seed)
    for step in range(STEPS):
        report = life.step()
        try:
            assert {error for error in report.errors if error not in report.settings.errors} == set()
            assert_right(life, report)
            life.qube.run()
            assert life.qube.log == []
        except AssertionError as error:
            raise AssertionError(f"seed {seed}, step {step}: {error}") from error
