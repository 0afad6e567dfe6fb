# SPDX-License-Identifier: GPL-2.0-or-later
"""One pass while things fail: the kernel refuses or forgets, interfaces go, files cannot be written, we are killed."""

from __future__ import annotations

import errno
import ipaddress
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qubes_guestnet import flow
from qubes_guestnet.core.dns.resolv_conf import HEADER
from qubes_guestnet.core.plan import Op, Verb
from qubes_guestnet.core.values import BACKEND_MAC, Link, Route, State
from qubes_guestnet.errors import FileError, KernelError
from qubes_guestnet.reconcile import take_down
from tests.core.qube import FOREIGN, Qube, eth0, only, with_foreign, words
from tests.support.faults.refuse import refuse

# A fresh interface takes eight operations; see the test that counts them.
FRESH = range(8)
SERVERS = HEADER + b"nameserver 10.139.1.1\nnameserver 10.139.1.2\n"


class Killed(BaseException):
    """SIGKILL: nothing is tidied up."""


@pytest.fixture
def qube(folder: Path) -> Qube:
    return Qube(folder, eth0())


@pytest.fixture
def settled(folder: Path) -> Qube:
    """A qube that has all it should have, and on whose interface others have been at work."""
    qube = Qube(folder, with_foreign())
    qube.run()
    assert qube.run().settled
    return qube


def number(qube: Qube, position: int, action: Callable[[], Any]) -> None:
    """Do something before the operation of this number, once."""
    seen = []

    def before(op: Op) -> None:
        seen.append(op)
        if len(seen) == position + 1:
            action()

    qube.kernel.before = before


def test_how_many_operations_a_fresh_interface_takes(qube: Qube) -> None:
    qube.run()
    assert len(qube.log) == len(FRESH)


@pytest.mark.parametrize("position", FRESH)
@pytest.mark.parametrize("code", [errno.EPERM, errno.ENOBUFS])
def test_one_refused_operation_stops_no_other(qube: Qube, position: int, code: int) -> None:
    plan = only(qube.run(dry_run=True)).plan
    chosen = plan[position]
    qube.kernel.refuse = lambda op: code if op == chosen else 0
    report = qube.run()
    names = [error for error in report.errors if str(error).startswith(str(chosen))]
    assert len(names) == 1
    assert isinstance(names[0], KernelError)
    assert names[0].retryable is (code == errno.ENOBUFS)
    assert qube.kernel.log.count(chosen) == 1
    assert chosen in only(report).plan
    assert not report.settled
    assert qube.resolv_conf.read_bytes() == SERVERS
    # Without its address a family gets nothing else, and without the link up the kernel takes no route.
    without = {op for op in plan if chosen.verb is Verb.ADDRESS_ADD and op.family == chosen.family}
    if chosen.verb is not Verb.LINK_UP:
        assert set(report.applied) == set(plan) - {chosen} - without
    qube.kernel.refuse = lambda _op: 0
    assert qube.run().settled


@pytest.mark.behaviour("B129")
def test_a_kernel_without_ipv6_has_ipv4_and_dns(qube: Qube) -> None:
    qube.kernel.ipv6 = False
    report = qube.run()
    assert qube.shown() == {"10.137.0.5/32", "neighbour 10.138.0.1", "0.0.0.0/0 device"}
    assert qube.resolv_conf.read_bytes() == SERVERS
    assert only(report).plan == report.errors == ()
    assert report.settled
    assert [note.code for note in only(report).notes] == ["ipv6-off"]
    qube.run()
    assert not [op for op in qube.log if "-6" in op]
    qube.kernel.ipv6 = True
    report = qube.run()
    assert len([op for op in qube.log if "-6" in op]) == 3
    assert list(only(report).notes) == []


@pytest.mark.parametrize("position", FRESH)
def test_an_interface_that_vanishes_in_the_middle_is_no_error(qube: Qube, position: int) -> None:
    number(qube, position, qube.kernel.interfaces.clear)
    report = qube.run()
    assert report.errors == ()
    assert only(report).link is None
    assert len(report.applied) == position
    assert qube.record.interfaces == ()


@pytest.mark.behaviour("B4")
@pytest.mark.parametrize("position", FRESH)
def test_one_that_comes_back_as_another_is_configured_with_newer_keys(qube: Qube, position: int) -> None:
    """dom0 may have written them between the reading and the new interface, so this pass leaves it alone."""

    def replug() -> None:
        qube.kernel.interfaces = {7: eth0(index=7, name="eth1")}

    number(qube, position, replug)
    report = qube.run(present=frozenset(qube.kernel.interfaces))
    assert (report.errors, report.late, report.settled, qube.shown(7)) == ((), True, False, set())
    report = qube.run()
    assert report.errors == ()
    assert report.settled
    assert len(qube.shown(7)) == len(FRESH) - 2  # all but group and up


@pytest.mark.parametrize("position", FRESH)
def test_a_link_that_somebody_takes_down_in_the_middle_comes_up_again(qube: Qube, position: int) -> None:
    number(qube, position, qube.kernel.interfaces[2].set_down)
    report = qube.run()
    assert report.errors == ()
    assert report.settled


def test_a_kernel_that_forgets_is_an_error_that_names_what(qube: Qube) -> None:
    interface = qube.kernel.interfaces[2]
    default = Route(ipaddress.ip_network("0.0.0.0/0"))
    observe = qube.kernel.observe

    def forgetful(link: Link, *asked: Any) -> State:
        interface.routes = [route for route in interface.routes if route != default]
        return observe(link, *asked)

    qube.kernel.observe = forgetful  # type: ignore[method-assign]
    report = qube.run()
    assert words(report) == [
        "change did not persist: ip route append default dev eth0 scope link proto 81; is another program reverting it?"
    ]
    assert len(qube.kernel.log) == len(FRESH) + flow.ROUNDS - 1
    assert not report.settled


def test_what_the_last_round_has_healed_is_no_error(qube: Qube) -> None:
    interface = qube.kernel.interfaces[2]
    ups: list[Op] = []

    def forget(op: Op) -> None:
        if op.verb is Verb.ROUTE_ADD and len(ups) < flow.ROUNDS - 1:
            ups.append(op)
            interface.set_down()

    qube.kernel.before = forget
    report = qube.run()
    assert report.errors == ()
    assert report.settled
    assert only(report).observed == qube.state()._replace(neighbours=only(report).observed.neighbours)


def test_an_address_of_the_same_subnet_where_the_kernel_promotes_none(qube: Qube) -> None:
    """The new address hangs on the old one and goes with it; the second round puts it back."""
    qube.kernel.promote = False
    qube.entries["/qubes-netmask"] = b"255.255.255.0"
    assert qube.run().errors == ()
    qube.entries["/qubes-ip"] = b"10.137.0.6"
    report = qube.run()
    assert report.errors == ()
    assert report.settled
    assert "10.137.0.6/24" in qube.shown()
    assert "10.137.0.5/24" not in qube.shown()
    assert "0.0.0.0/0 device" in qube.shown()


@pytest.mark.parametrize("where", ["links", "observe"])
def test_a_kernel_that_lets_nobody_look(qube: Qube, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    def refuse_to_tell(*_: Any) -> Any:
        raise KernelError("netlink dump 18", errno.EPERM)

    monkeypatch.setattr(qube.kernel, where, refuse_to_tell)
    report = qube.run()
    assert words(report) == ["netlink dump 18: Operation not permitted (EPERM); run as root"]
    assert (report.interfaces, report.resolver, report.applied) == ((), None, ())


def test_the_errors_of_a_round_are_told_though_the_next_one_sees_nothing(qube: Qube) -> None:
    qube.kernel.refuse = lambda op: errno.EPERM if op.verb is Verb.LINK_GROUP else 0
    links = qube.kernel.links

    def once(macs: frozenset[str]) -> tuple[Link, ...]:
        if qube.kernel.log:
            raise KernelError("netlink dump 18", errno.EPERM)
        return links(macs)

    qube.kernel.links = once  # type: ignore[method-assign]
    report = qube.run()
    assert [text.partition(":")[0] for text in words(report)] == ["ip link set dev eth0 group 1", "netlink dump 18"]
    assert len(report.applied) == len(FRESH) - 1


def test_a_full_run_costs_the_record_and_not_the_network(qube: Qube, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as full:
        refuse(full, "rename", errno.ENOSPC, lambda source, *_: "owned" in source)
        report = qube.run()
        assert len(report.errors) == 1
        assert "No space left" in words(report)[0]
        assert report.settled
        assert qube.resolv_conf.read_bytes() == SERVERS
        with pytest.raises(FileError):
            take_down_after_restart(qube)
    assert qube.record.interfaces == ()
    assert qube.run().settled


def take_down_after_restart(qube: Qube) -> None:
    Path(qube.paths.run, "owned").write_bytes(b"interface 2 00:16:3e:5e:6c:00\n")
    try:
        take_down(2, qube.kernel, qube.paths)
    finally:
        assert not qube.state().up
        Path(qube.paths.run, "owned").unlink()


def test_a_run_that_cannot_be_written_at_all(qube: Qube) -> None:
    Path(qube.paths.run).write_bytes(b"a file where the folder should be")
    report = qube.run()
    assert len(report.errors) == 1
    assert qube.log == []
    assert report.resolver is None


def test_a_resolv_conf_that_cannot_be_written(settled: Qube, monkeypatch: pytest.MonkeyPatch) -> None:
    settled.resolv_conf.write_bytes(b"nameserver 1.2.3.4\n")
    refuse(monkeypatch, "rename", errno.ENOSPC)
    report = settled.run()
    assert report.resolver is not None
    assert report.resolver.pending
    assert not report.resolver.written
    # The record, which is written ahead of it (B148), cannot be written either.
    assert [str(error).split(":")[0].rpartition("/")[2] for error in report.errors] == ["owned", "resolv.conf"]
    assert all(error.retryable for error in report.errors)
    assert settled.resolv_conf.read_bytes() == b"nameserver 1.2.3.4\n"


def test_a_resolv_conf_that_cannot_be_looked_at(settled: Qube, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse(monkeypatch, "lstat", errno.EIO, lambda path, **_: "resolv.conf" in os.fspath(path))
    report = settled.run()
    assert report.resolver is None
    assert "Input/output error" in words(report)[0]
    assert only(report).configured


def test_a_resolv_conf_that_is_fought_over(settled: Qube) -> None:
    settled.resolv_conf.write_bytes(b"nameserver 1.2.3.4\n")
    report = settled.run(may_rewrite=lambda content: content != SERVERS)
    assert "5 times in 60 s" in words(report)[0]
    assert settled.resolv_conf.read_bytes() == b"nameserver 1.2.3.4\n"
    report = settled.run(may_rewrite=lambda _content: True)
    assert report.errors == ()
    assert settled.resolv_conf.read_bytes() == SERVERS
    settled.resolv_conf.chmod(0o600)
    settled.run()
    assert settled.resolv_conf.stat().st_mode & 0o777 == 0o644


CHANGE = {
    "/qubes-ip": b"10.137.0.6",
    "/qubes-gateway": b"10.138.0.2",
    "/qubes-netmask6": b"64",
    "/qubes-gateway6": b"fd09::1",
}


def changed_plan(qube: Qube) -> tuple[Op, ...]:
    qube.flag("guestnet-gateway-route")
    qube.entries |= CHANGE
    return only(qube.run(dry_run=True)).plan


def test_how_many_operations_the_change_takes(settled: Qube) -> None:
    assert len(changed_plan(settled)) == 14


@pytest.mark.parametrize("position", range(14))
def test_killed_at_any_operation_a_restarted_agent_ends_the_same(settled: Qube, position: int) -> None:
    start = settled.state()
    plan = changed_plan(settled)

    def kill() -> None:
        raise Killed

    number(settled, position, kill)
    with pytest.raises(Killed):
        settled.run()
    made = settled.state()
    owned = settled.record.interfaces[0].owned
    assert made.addresses - start.addresses <= owned.addresses
    assert {entry.address for entry in made.neighbours - start.neighbours} <= owned.neighbours
    assert owned.addresses >= made.addresses - FOREIGN.addresses
    settled.kernel.before = lambda _op: None
    report = settled.run()
    assert report.errors == ()
    assert settled.kernel.log == list(plan[position:])
    assert_changed(settled)


def assert_changed(qube: Qube) -> None:
    """The state that the changed keys ask for, and what others made."""
    state = qube.state()
    assert {str(address) for address in state.addresses - FOREIGN.addresses} == {
        "10.137.0.6/32",
        "fd09:24ef:4179::a89:5/64",
    }
    assert FOREIGN.addresses <= state.addresses
    assert FOREIGN.routes <= state.routes
    assert FOREIGN.neighbours <= state.neighbours
    ours = {str(entry.address) for entry in state.neighbours if entry.mac == BACKEND_MAC}
    assert ours == {"10.138.0.2", "fd09::1"}
    ways = {(str(route.destination), str(route.gateway)) for route in state.routes if route.protocol == 81}
    assert ways == {
        ("0.0.0.0/0", "10.138.0.2"),
        ("10.138.0.2/32", "None"),
        ("::/0", "fd09::1"),
        ("fd09::1/128", "None"),
    }
    record = qube.record.interfaces[0].owned
    assert record.addresses == state.addresses - FOREIGN.addresses


def test_a_lost_record_costs_a_stale_address_and_never_a_foreign_one(settled: Qube) -> None:
    Path(settled.paths.run, "owned").write_bytes(b"\xff\x00 damaged\ninterface x y\naddress 192.168.7.7/24\n")
    settled.entries |= CHANGE
    report = settled.run()
    assert report.errors == ()
    assert {"10.137.0.5/32", "10.137.0.6/32"} <= settled.shown()
    assert FOREIGN.addresses <= settled.state().addresses


def test_link_down_by_hand_and_all_is_back_in_one_pass(settled: Qube) -> None:
    before = settled.state()
    settled.kernel.interfaces[2].set_down()
    assert settled.run().settled
    assert settled.state() == before._replace(
        addresses=settled.state().addresses,
        neighbours=before.neighbours - FOREIGN.neighbours,
        routes=before.routes - FOREIGN.routes - kernels(before),
    )


def kernels(state: State) -> frozenset[Route]:
    """Routes of the kernel to the IPv6 subnet that another program had set and that a link loses as it goes down."""
    return frozenset(route for route in state.routes if str(route.destination) == "fd77::/64")
