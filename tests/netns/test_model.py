# SPDX-License-Identifier: GPL-2.0-or-later
"""The model of the kernel that the pure tests rely on does what the kernel does: the same walk through both."""

from __future__ import annotations

import ipaddress
import random

import pytest

from qubes_guestnet.core.plan import Op, Verb
from qubes_guestnet.core.values import BACKEND_MAC, IPV4, IPV6, ROUTE_PROTOCOL, Link, Neighbour, Route, State
from qubes_guestnet.errors import KernelError, Vanished
from qubes_guestnet.system.netlink.rtnl import Kernel
from tests.core.model import Interface, Model
from tests.support.judge.oracle import Oracle
from tests.support.needs import needs

MAC = "00:16:3e:5e:6c:00"
STEPS, LOOK_EVERY = 400, 25
ADDRESSES = [
    ipaddress.ip_interface(text)
    for text in (
        *("10.137.0.5/32", "10.137.0.5/24", "10.137.0.6/24", "10.137.0.7/32"),
        *("fd09::5/128", "fd09::5/64", "fd09::6/64"),
    )
]
GATEWAYS = [ipaddress.ip_address(text) for text in ("10.138.0.1", "10.137.0.9", "fe80::1", "fd09::1", "fd0a::1")]
DESTINATIONS = [ipaddress.ip_network(text) for text in ("0.0.0.0/0", "10.138.0.1", "::/0", "fd0a::1")]
PROTOCOLS = (81, 81, 3)
WEIGHTS = {
    Verb.LINK_GROUP: 1,
    Verb.LINK_UP: 5,
    Verb.LINK_DOWN: 2,
    Verb.ADDRESS_ADD: 10,
    Verb.ADDRESS_DEL: 6,
    Verb.NEIGHBOUR_SET: 5,
    Verb.NEIGHBOUR_DEL: 4,
    Verb.ROUTE_ADD: 20,
    Verb.ROUTE_DEL: 10,
}


def operation(chance: random.Random, link: Link) -> Op:
    """Any operation, with few values so that they meet."""
    verb = chance.choices([*WEIGHTS], [*WEIGHTS.values()])[0]
    subject: object = None
    if verb is Verb.LINK_GROUP:
        subject = chance.randrange(3)
    elif verb in (Verb.ADDRESS_ADD, Verb.ADDRESS_DEL):
        subject = chance.choice(ADDRESSES)
    elif verb is Verb.NEIGHBOUR_SET:
        subject = Neighbour(chance.choice(GATEWAYS), chance.choice((BACKEND_MAC, "02:00:00:00:00:01")))
    elif verb is Verb.NEIGHBOUR_DEL:
        subject = chance.choice(GATEWAYS)
    elif verb in (Verb.ROUTE_ADD, Verb.ROUTE_DEL):
        subject = route(chance)
    return Op(verb, link.ifindex, link.name, subject)  # type: ignore[arg-type]


def route(chance: random.Random) -> Route:
    """A route; of IPv6 a default route has a gateway and a host route has none, as ours are."""
    destination = chance.choice(DESTINATIONS)
    ways = [gateway for gateway in GATEWAYS if gateway.version == destination.version]
    gateway = chance.choice(ways) if destination.prefixlen == 0 and chance.random() < 0.6 else None
    if destination.version == IPV6 and destination.prefixlen == 0:
        gateway = gateway or ways[0]
    protocol = chance.choice(PROTOCOLS)
    # The kernel shows hops of one metric with the protocol of the first: ours are not to meet others there.
    base = 0 if destination.version == IPV4 else 1025 if protocol == ROUTE_PROTOCOL else 1024
    onlink = gateway is not None and chance.random() < 0.8
    return Route(destination, gateway, onlink=onlink, metric=base + chance.choice((0, 0, 100)), protocol=protocol)


def outcome(kernel: Kernel | Model, op: Op) -> tuple[str, int]:
    """What came of it: the kind of error and its errno."""
    try:
        kernel.apply(op)
    except KernelError as error:
        return "vanished" if isinstance(error, Vanished) else "refused", error.errno
    return "done", 0


def known(state: State) -> State:
    """Without the link-local route, which comes with the carrier: that is a matter of milliseconds."""
    return state._replace(routes=frozenset(r for r in state.routes if str(r.destination) != "fe80::/64"))


def shown(state: State) -> State:
    """What of a state the adapter shows: routes of others to whole networks are passed over."""
    ours_or_like_ours = (
        route
        for route in state.routes
        if route.protocol == ROUTE_PROTOCOL or route.destination.prefixlen in (0, route.destination.max_prefixlen)
    )
    return state._replace(routes=frozenset(ours_or_like_ours))


def seen(oracle: Oracle) -> set[str]:
    """What `ip` says of the interface."""
    words = oracle.addresses("eth0") | {f"{a} {m}" for a, m in oracle.neighbours("eth0").items()}
    for version in (4, 6):
        for entry in oracle.routes(version):
            for hop in entry.get("nexthops", [entry]):
                words.add(f"{entry['dst']} via {hop.get('gateway')} metric {entry.get('metric', 0)}")
    return words


def told(state: State) -> set[str]:
    """The same of a state."""
    words = {str(address) for address in state.addresses}
    words |= {f"{entry.address} {entry.mac}" for entry in state.neighbours}
    for way in known(state).routes:
        whole = way.destination.max_prefixlen == way.destination.prefixlen
        name = str(way.destination.network_address if whole else way.destination)
        words.add(f"{name if way.destination.prefixlen else 'default'} via {way.gateway} metric {way.metric}")
    return words


@pytest.mark.parametrize("promote", [True, False])
@pytest.mark.parametrize("seed", [1, 2])
def test_model_and_kernel_go_the_same_way(seed: int, promote: bool) -> None:
    needs("ip", "sysctl")
    oracle, kernel, chance = Oracle(), Kernel(), random.Random(seed)
    oracle.run("ip", "link", "set", "lo", "up")  # without a local table every IPv4 gateway is an invalid one
    oracle.run("ip", "link", "add", "eth0", "address", MAC, "type", "veth", "peer", "name", "vif0")
    oracle.run("ip", "link", "set", "vif0", "up")
    oracle.run("sysctl", "-q", f"net.ipv4.conf.eth0.promote_secondaries={int(promote)}")
    (link,) = kernel.links(frozenset({MAC}))
    model = Model(Interface(link))
    model.promote = promote
    history = []
    for step in range(STEPS):
        op = operation(chance, link)
        history.append(str(op))
        assert outcome(kernel, op) == outcome(model, op), history[-5:]
        (now,) = kernel.links(frozenset({MAC}))
        modelled = model.observe(model.links(frozenset({MAC}))[0], GATEWAYS)
        real = kernel.observe(now, GATEWAYS)._replace(mtu=0)  # which nothing here changes
        assert real == shown(modelled), history[-5:]
        if step % LOOK_EVERY == 0:
            assert seen(oracle) == told(modelled), history[-5:]
    kernel.close()
