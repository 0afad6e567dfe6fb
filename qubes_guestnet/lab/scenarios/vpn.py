# SPDX-License-Identifier: GPL-2.0-or-later
"""A VPN qube whose tunnel goes up and down again and again, its names told in one of four ways.

S-410a to S-410d have the kill switch of docs/provider.md: nothing of the qube behind is ever on the uplink; while the
tunnel is up names lead into it and nowhere else; and within 2 s they follow it up, and down again.

A round begins only when the redirection has left the former tunnel. Else what is seen may be the tunnel before: an
agent that has read the names of its end, and is still loading them, would be caught in a tunnel it has not heard of.

S-410e to S-410h are the same four without a kill switch, so what keeps names in the tunnel is the redirection alone.
From the moment when names have followed the tunnel until it goes down, no question is on the uplink: a capture counts
what is for the ports of DNS and of DNS over TLS. Meanwhile systemd-resolved restarts, the agent is killed and starts
again, and `dns sync` is called.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator
from typing import NamedTuple

from ...core.dns.resolv_conf import RewriteBudget
from .. import probes, world
from ..daemons import Daemons
from ..dom0 import INTERFACE, Vm
from ..namespaces import LabError
from ..provider import VIRTUAL_DNS
from ..qube import Qube, eventually
from ..stage import Stage
from ..tunnel import DEVICE, SERVER, Chatter, Tunnel, Uplink
from .names import redirections

CYCLES, CYCLES6 = 50, 20
NAMES_CYCLES, NAMES_CYCLES6 = 20, 10
_RESTART_EVERY = 10  # rounds
_NAMES_DEADLINE = 2.0
_UNCHANGED = 100  # exit status of `dns sync`
_RESOLV_CONF = "/etc/resolv.conf"
_VIRTUAL_LINES = "".join(f"nameserver {address}\\n" for address in VIRTUAL_DNS)
_FLAG = "network-manager"


class _Client(NamedTuple):
    """What a VPN's client does when its tunnel goes up and down; `disturb` is what else happens while it is up."""

    up: Callable[[], None]
    down: Callable[[], None]
    disturb: Callable[[int], None] = lambda _number: None


class _Ways:
    """How a VPN's client tells of its name server; one method a way."""

    def __init__(self, tunnel: Tunnel) -> None:
        self.tunnel, self.qube = tunnel, tunnel.qube
        self.daemons: Daemons | None = None

    def resolved(self) -> _Client:
        """By systemd-resolved, which restarts now and then while the tunnel is up."""
        daemons = self.daemons = Daemons(self.qube)
        daemons.dbus()
        daemons.resolved()

        def up() -> None:
            self.tunnel.up()
            self.tunnel.halves()
            daemons.resolvectl("dns", DEVICE, SERVER)
            daemons.resolvectl("domain", DEVICE, "~.")

        def restart(number: int) -> None:
            if number % _RESTART_EVERY == _RESTART_EVERY - 1:
                told = _noticed(self.qube)
                daemons.stop("resolved")
                _held(self.qube, told + 1)
                daemons.resolved()

        return _Client(up, self.tunnel.down, restart)

    def resolvconf(self) -> _Client:
        """By a new resolv.conf, renamed over the old one as openresolv does, and the old one renamed back."""

        def up() -> None:
            self.tunnel.up()
            self._write(f"nameserver {SERVER}\\n")
            self.tunnel.halves()

        def down() -> None:
            self._write(_VIRTUAL_LINES)
            self.tunnel.down()

        return _Client(up, down)

    def wg_quick(self) -> _Client:
        """By the file too, written in place, and routes in a table of their own.

        The names of a tunnel that is gone are left in the file for the agent, which writes it back a bounded number of
        times; after that the client takes them back.
        """
        left = 0

        def up() -> None:
            self.tunnel.up()
            self.qube.run("sh", "-c", f"echo 'nameserver {SERVER}' >{_RESOLV_CONF}")
            self.tunnel.everything()

        def down() -> None:
            nonlocal left
            left += 1
            self.tunnel.down()
            if left > RewriteBudget.LIMIT:
                self._write(_VIRTUAL_LINES)

        return _Client(up, down)

    def networkmanager(self) -> _Client:
        """By a connection of NetworkManager's, which has the uplink too and writes the file."""
        daemons = self.daemons = Daemons(self.qube)
        self.qube.set_flag(_FLAG)
        daemons.dbus()
        daemons.prepare_networkmanager()
        daemons.networkmanager()
        eventually(
            "NetworkManager has the uplink", lambda: daemons.device("GENERAL.STATE", INTERFACE).startswith("100")
        )
        six = (
            ("ipv6.method", "manual", "ipv6.addresses", "fd64::2/64")
            if self.tunnel.ipv6
            else ("ipv6.method", "disabled")
        )
        daemons.nmcli(
            "connection", "add", "type", "ethernet", "con-name", DEVICE, "ifname", DEVICE, "autoconnect", "no",
            "ipv4.method", "manual", "ipv4.addresses", "10.64.9.2/16", "ipv4.dns", SERVER, "ipv4.dns-priority", "-10",
            "ipv4.routes", "0.0.0.0/1,128.0.0.0/1", "ipv4.never-default", "yes", *six,
        )  # fmt: skip

        def up() -> None:
            self.tunnel.up()
            daemons.nmcli("device", "set", DEVICE, "managed", "yes")
            daemons.nmcli("connection", "up", DEVICE)

        def down() -> None:
            daemons.nmcli("connection", "down", DEVICE)
            self.tunnel.down()

        return _Client(up, down)

    def _write(self, text: str) -> None:
        self.qube.run("sh", "-c", f"printf '{text}' >{_RESOLV_CONF}.new; mv {_RESOLV_CONF}.new {_RESOLV_CONF}")


def _led(qube: Qube) -> None:
    """Within 2 s every virtual address leads to the tunnel's server."""
    try:
        eventually("names lead into the tunnel", lambda: _leads(qube) == {SERVER}, _NAMES_DEADLINE)
    except LabError as error:
        log = qube.agent.tail(1500) if qube.agent else ""
        raise LabError(f"{error.problem}: they lead to {_leads(qube)}", log) from None


def _left(qube: Qube) -> None:
    """Within 2 s of its end no virtual address leads to the tunnel's server."""
    try:
        eventually("names have left the tunnel that is gone", lambda: SERVER not in _leads(qube), _NAMES_DEADLINE)
    except LabError as error:
        raise LabError(error.problem, qube.agent.tail(1500) if qube.agent else "") from None


def _noticed(qube: Qube) -> int:
    """How often the agent has said that systemd-resolved is away."""
    return qube.agent.output().count("its last answer stays valid") if qube.agent else 0


def _held(qube: Qube, told: int) -> None:
    """While systemd-resolved is away its last answer holds; the agent says once each time that it is away.

    Args:
        qube: with the VPN.
        told: how often the agent has said so by then.
    """
    assert qube.agent is not None
    try:
        eventually("it is noticed", lambda: _noticed(qube) >= told, _NAMES_DEADLINE)
    except LabError as error:
        raise LabError(f"{error.problem}: names lead to {_leads(qube)}", qube.agent.tail(1500)) from None
    if found := _leads(qube) - {SERVER}:
        raise LabError(f"without systemd-resolved names lead to {found}")


def _leads(qube: Qube) -> set[str]:
    return set(redirections(qube).values())


def _asked(client: socket.socket) -> None:
    """Within 2 s each virtual address answers, from a port that was used before."""
    left = set(VIRTUAL_DNS)

    def answered() -> bool:
        left.difference_update({address for address in left if probes.query(client, address, world.NAME, 0.2)})
        return not left

    eventually("names resolve", answered, _NAMES_DEADLINE)


@contextlib.contextmanager
def _vpn_qube(stage: Stage, *, kill_switch: bool) -> Iterator[tuple[Vm, Vm, Tunnel, Uplink]]:
    """A VPN qube, and a qube behind it that never stops talking."""
    words = "with a kill switch" if kill_switch else "without a kill switch"
    stage.step(f"a VPN qube {words}, and a qube behind it that never stops talking")
    vpn = stage.proxy("vpn")
    vm = stage.start("vm1", vpn)
    stage.reaches(vm)
    for family in ("ip", "ip6") if kill_switch else ():
        vpn.running.run("nft", "add", "rule", family, "qubes", "custom-forward", "oifgroup", "1", "counter", "drop")
    with contextlib.ExitStack() as stack:
        tunnel = Tunnel(vpn.running, ipv6=stage.ipv6)
        stack.callback(tunnel.close)
        uplink = Uplink(vpn.running, INTERFACE)
        stack.callback(uplink.close)
        targets = (world.HOST, *((world.HOST6,) if stage.ipv6 else ()))
        chatter = Chatter(vm.running, VIRTUAL_DNS, targets)
        stack.callback(chatter.stop)
        yield vpn, vm, tunnel, uplink


def _play(stage: Stage, way: Callable[[_Ways], _Client]) -> None:
    """Up and down: nothing of the qube behind is ever on the uplink, and its names come back."""
    with _vpn_qube(stage, kill_switch=True) as (vpn, vm, tunnel, uplink):
        client = way(_Ways(tunnel))
        cycles = CYCLES6 if stage.ipv6 else CYCLES
        stage.step(f"the tunnel goes up and down {cycles} times")
        with vm.running.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            for number in range(cycles):
                client.up()
                _led(vpn.running)
                client.disturb(number)
                _asked(asking)
                if found := _leads(vpn.running) - {SERVER}:
                    log = vpn.running.agent.tail(1500) if vpn.running.agent else ""
                    raise LabError(f"while the tunnel is up names also lead to {found}, in round {number + 1}", log)
                client.down()
                _left(vpn.running)
        if leaked := uplink.leaked():
            raise LabError(f"{leaked} packets of {vm.name} were on the uplink")


def _play_names(stage: Stage, way: Callable[[_Ways], _Client]) -> None:
    """The same without a kill switch: once names have followed the tunnel, no question is on the uplink."""
    with _vpn_qube(stage, kill_switch=False) as (vpn, vm, tunnel, uplink):
        client = way(_Ways(tunnel))
        stage.step("without a tunnel the questions are on the uplink, so the capture sees them")
        eventually("questions are seen", uplink.questions)
        cycles = NAMES_CYCLES6 if stage.ipv6 else NAMES_CYCLES
        stage.step(f"the tunnel goes up and down {cycles} times: no question is on the uplink while it is up")
        with vm.running.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            for number in range(cycles):
                client.up()
                _led(vpn.running)
                _asked(asking)
                # Questions from a port that was in use go the former way until conntrack has forgotten it.
                eventually("the questions have followed", lambda: not uplink.questions(), _NAMES_DEADLINE)
                client.disturb(number)
                _disturb(vpn.running, number)
                _asked(asking)
                if leaked := uplink.questions():
                    raise LabError(f"up for the {number + 1}. time: {leaked} questions were on the uplink")
                client.down()
                _left(vpn.running)


def _disturb(qube: Qube, number: int) -> None:
    """Of five rounds in one the agent is killed and starts again, and in one its owner calls `dns sync`."""
    if number % 5 == 4:
        assert qube.agent is not None
        qube.agent.kill()
        qube.start_agent()
    elif number % 5 == 2 and qube.guestnet("dns", "sync", check=False).returncode not in (0, _UNCHANGED):
        raise LabError("`dns sync` failed")


def s_410a(stage: Stage) -> None:
    """Names told by systemd-resolved, which restarts meanwhile."""
    _play(stage, _Ways.resolved)


def s_410b(stage: Stage) -> None:
    """Names told by resolvconf, which renames a new resolv.conf over the old one, and back."""
    _play(stage, _Ways.resolvconf)


def s_410c(stage: Stage) -> None:
    """Names and routes as wg-quick sets them: the file first, then a table of its own; the file is not taken back."""
    _play(stage, _Ways.wg_quick)


def s_410d(stage: Stage) -> None:
    """A connection of NetworkManager's."""
    _play(stage, _Ways.networkmanager)


def s_410e(stage: Stage) -> None:
    """As S-410a, without a kill switch."""
    _play_names(stage, _Ways.resolved)


def s_410f(stage: Stage) -> None:
    """As S-410b, without a kill switch."""
    _play_names(stage, _Ways.resolvconf)


def s_410g(stage: Stage) -> None:
    """As S-410c, without a kill switch."""
    _play_names(stage, _Ways.wg_quick)


def s_410h(stage: Stage) -> None:
    """As S-410d, without a kill switch."""
    _play_names(stage, _Ways.networkmanager)
