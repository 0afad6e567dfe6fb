# SPDX-License-Identifier: GPL-2.0-or-later
"""The background process of an interactive lab: holds the namespaces, and serves its commands at a unix socket.

One command is done after the other, as dom0 does it; what runs in a qube by `lab exec` goes on beside them. A command
is a JSON object with a verb, answered by `step` objects, if it takes its time, and at last by `done` or `error`.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
from collections.abc import Callable
from functools import partial
from typing import Any

from ..errors import GuestnetError, UsageError
from . import firewall_edits, firewall_rules, reach, tree
from .dom0 import Dom0, Vm
from .execution import Execution
from .firewall_rules import ACCEPT_ALL, Rules
from .namespaces import LabError
from .progress import Teller
from .qube import eventually
from .stage import addresses, interface_of
from .tree import Tree
from .wire import Channel, Message

_IMPATIENCE = 5.0
_SETTLED = 5.0
# A rule counts up to the second in which it expires.
_AFTER = 0.01
_LOOPBACK = "lo"
# What dom0 writes only where there is IPv6, and never removes.
_IPV6_KEYS = ("/qubes-ip6", "/qubes-gateway6", "/qubes-netvm-gateway6")
Step = Callable[[str], None]


def run(listener: socket.socket, grown: Tree, teller: Teller) -> int:
    """Let a tree grow, and serve until `down`. For process 1 of its own namespaces.

    Args:
        listener: where the commands come from.
        grown: the tree.
        teller: told each step, and in the end `up` or `error`.

    Returns:
        The exit status.
    """
    session = Session(grown)
    try:
        session.grow(teller.step)
    except GuestnetError as error:
        teller.tell(error=error.problem, remedy=error.remedy)
        return 1
    teller.tell(up=True)
    Server(listener, session).serve()
    return 0


class Session:
    """One lab and what can be asked of it: each public method with a step is a verb.

    Args:
        grown: its tree.
    """

    def __init__(self, grown: Tree) -> None:
        self.tree = grown
        self.dom0 = Dom0(release=grown.release)
        self._vms = tree.plant(grown, self.dom0)

    def grow(self, step: Step) -> None:
        """Start all qubes, providers first."""
        for vm in self._vms.values():
            step(f"{vm.name} starts" + (f", behind {vm.netvm.name}" if vm.netvm else ""))
            self.dom0.start(vm)

    # --- verbs -------------------------------------------------------------------------------------------------

    def set_netvm(self, step: Step, qube: str, netvm: str | None) -> Message:
        """`qvm-prefs QUBE netvm NETVM`, and wait until its agent has followed."""
        vm = self.vm(qube)
        other = self.vm(netvm) if netvm is not None else None
        if other is not None and not other.provides_network:
            able = ", ".join(each.name for each in self._vms.values() if each.provides_network)
            raise UsageError(f"{netvm} provides no network", f"these do: {able}")
        if other is not None and other in self.dom0.below(vm):
            raise UsageError(f"{netvm} gets its network from {qube}", "a qube cannot provide for itself")
        step(f"{qube} gets its network from {netvm}" if netvm else f"{qube} loses its network")
        self.dom0.set_netvm(vm, other)
        _settle(vm)
        return {}

    def set_feature(self, step: Step, qube: str, feature: str, value: str | None, restart: bool) -> Message:
        """`qvm-features QUBE FEATURE VALUE`; with `restart`, restart the qubes that learn of it only then."""
        vm = self.vm(qube)
        self.dom0.set_feature(vm, feature, value)
        unaware = [each for each in self.dom0.below(vm) if each.qube is not None and _behind_the_times(each)]
        for each in unaware if restart else ():
            step(f"{each.name} restarts")
            self.dom0.restart(each)
            _settle(each)
        return {"unaware": [] if restart else [each.name for each in unaware]}

    def firewall(
        self, _step: Step, qube: str, action: str, words: list[str], before: int | None, number: int | None,
        reload: bool,
    ) -> Message:  # fmt: skip
        """`qvm-firewall QUBE`: add, del or reset a rule, or list the rules."""
        vm, now = self.vm(qube), self.dom0.time()
        rules = firewall_edits.read_by_client(vm.firewall.rules, now)
        if action == "add":
            rules = firewall_edits.added(rules, firewall_rules.from_words(words, now), before)
        elif action == "del":
            rules = _without(rules, words, number, now)
        elif action == "reset":
            rules = ACCEPT_ALL
        else:
            if reload and vm.qube is not None:
                self.dom0.reload_firewall(vm)
            rows = [firewall_edits.row(at, rule, now) for at, rule in enumerate(rules)]
            return {"raw": list(map(firewall_edits.raw, rules)), "rows": rows}
        self.dom0.set_firewall(vm, rules)
        return {}

    def status(self, _step: Step, measure: bool) -> Message:
        """Return the state of each qube; its reach is None if not measured."""
        running = {vm.name: vm.qube for vm in self._vms.values() if vm.qube is not None}
        reached = reach.measure(running) if measure else {}
        rows = [self._row(vm, reached.get(vm.name)) for vm in self._vms.values()]
        return {"tree": self.tree.name, "measured": measure, "qubes": rows}

    def _row(self, vm: Vm, reached: reach.Reach | None) -> Message:
        outside = vm.world.offer if vm.world is not None else None
        return {
            "name": vm.name,
            "state": _state(vm),
            "netvm": vm.netvm.name if vm.netvm else None,
            "provides_network": vm.provides_network,
            "vif": vm.vif,
            "features": dict(vm.features),
            "addresses": _addresses(vm),
            "firewall": {"limited": vm.limited, "rules": firewall_rules.listed(vm.firewall.rules, self.dom0.time())},
            "agent": _agent(vm),
            "ipv4": reached and reached.ipv4,
            "ipv6": reached and reached.ipv6,
            "world": outside and {"ipv4": outside.ipv4, "ipv6": outside.ipv6},
            "asked": {"ipv4": vm.reaches4, "ipv6": vm.reaches6},
        }

    def until_expiry(self) -> float | None:
        """Return the seconds until a firewall rule expires, None if none does."""
        moment = self.dom0.next_expiry()
        return max(0.0, moment - self.dom0.time()) + _AFTER if moment is not None else None

    # --- qubes -------------------------------------------------------------------------------------------------

    def vm(self, name: str) -> Vm:
        """Return a qube by its name; UsageError when there is none."""
        if name not in self._vms:
            raise UsageError(f"there is no qube {name}", f"the qubes are {', '.join(self._vms)}")
        return self._vms[name]


def _without(rules: Rules, words: list[str], number: int | None, now: float) -> Rules:
    if (number is None) == (not words):
        raise UsageError(
            "give exactly one of a rule and --rule-no", "`list` prints the numbers, `list --raw` the rules"
        )
    if number is not None:
        return firewall_edits.without_number(rules, number)
    return firewall_edits.without(rules, firewall_rules.from_words(words, now))


def _state(vm: Vm) -> str:
    if vm.qube is None:
        return "halted"
    return "paused" if vm.qube.paused else "running"


def _agent(vm: Vm) -> str:
    agent = vm.qube.agent if vm.qube is not None else None
    if agent is None:
        return "none"
    return "running" if agent.running else "ended"


def _addresses(vm: Vm) -> list[str]:
    """Return what the qube's kernel has, IPv4 first: that of a provider for those behind it, too, but once."""
    if vm.qube is None:
        return []
    links = [link for link in vm.qube.ip("address") if link["ifname"] != _LOOPBACK]
    found = dict.fromkeys(address.partition("/")[0] for link in links for address in addresses(link))
    return sorted(found, key=lambda address: ":" in address)


def _settle(vm: Vm) -> None:
    """Wait until its agent has given its interface the addresses dom0 told it; LabError with its log if it does not."""
    agent = vm.qube.agent if vm.qube is not None else None
    if vm.netvm is None or agent is None or not agent.running or vm.running.paused:
        return
    wanted = {vm.visible_address, *((vm.networked6,) if vm.networked6 is not None else ())}

    def there() -> bool:
        link = interface_of(vm.running, vm.mac)
        return link is not None and wanted <= {address.partition("/")[0] for address in addresses(link)}

    try:
        eventually(f"{vm.name} has {' and '.join(sorted(wanted))}", there, _SETTLED)
    except LabError as error:
        raise LabError(error.problem, f"its agent's log:\n{agent.tail()}") from None


def _behind_the_times(vm: Vm) -> bool:
    """Return whether its QubesDB says other things of its network than dom0 would write at its start."""
    written = {key: value.encode() for key, value in vm.entries().items()}
    return any(vm.database.get(key) != written.get(key) for key in {*written, *_IPV6_KEYS})


class Server:
    """Serves a session's verbs, `exec` and `down`.

    Args:
        listener: where commands come from.
        session: what serves them.
    """

    def __init__(self, listener: socket.socket, session: Session) -> None:
        self._listener = listener
        self._session = session
        self._selector = selectors.DefaultSelector()
        self._executions: dict[Channel, Execution] = {}
        self._verbs: dict[str, Callable[..., Message]] = {
            "set": session.set_netvm, "feature": session.set_feature, "firewall": session.firewall,
            "status": session.status,
        }  # fmt: skip
        self._ended = False

    def serve(self) -> None:
        """Serve until `down`."""
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        while not self._ended:
            # One at a time: what one does can take the next one's reason away.
            for key, _ in self._selector.select(self._session.until_expiry())[:1]:
                key.data()
            self._session.dom0.expire_firewalls()

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        channel = Channel(connection)
        channel.limit(_IMPATIENCE)
        self._selector.register(channel, selectors.EVENT_READ, partial(self._read, channel))

    def _read(self, channel: Channel) -> None:
        try:
            messages = channel.receive()
        except (OSError, ValueError):  # not a process of ours
            messages = None
        if messages is None:
            self._hang_up(channel)
            return
        for message in messages:
            self._take(channel, message)

    def _take(self, channel: Channel, message: Message) -> None:
        try:
            answer = self._follow(channel, **message)
        except GuestnetError as error:
            answer = {"error": error.problem, "remedy": error.remedy, "usage": isinstance(error, UsageError)}
        except Exception as error:  # a bug in one command must not take the lab away
            answer = {"error": f"{type(error).__name__}: {error}", "remedy": "", "usage": False}
        if answer is not None:
            _say(channel, answer)

    def _follow(self, channel: Channel, verb: str, **arguments: Any) -> Message | None:
        """Do it; the answer, None when it comes later or never."""
        if verb == "exec":
            self._execute(channel, **arguments)
            return None
        if verb == "signal":
            if channel in self._executions:
                self._executions[channel].signal(**arguments)
            return None
        if verb == "down":
            self._ended = True
            return {"done": {}}
        return {"done": self._verbs[verb](lambda text: _say(channel, {"step": text}), **arguments)}

    # --- commands in qubes -------------------------------------------------------------------------------------

    def _execute(self, channel: Channel, qube: str, **arguments: Any) -> None:
        descriptors, channel.descriptors = channel.descriptors, []
        try:
            execution = Execution(self._session.vm(qube).running, descriptors=descriptors, **arguments)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        self._executions[channel] = execution
        self._selector.register(execution, selectors.EVENT_READ, partial(self._over, channel))

    def _over(self, channel: Channel) -> None:
        execution = self._executions.pop(channel)
        self._selector.unregister(execution)
        _say(channel, {"done": {"status": execution.close()}})

    def _hang_up(self, channel: Channel) -> None:
        self._selector.unregister(channel)
        channel.close()
        execution = self._executions.pop(channel, None)
        if execution is not None:
            self._selector.unregister(execution)
            execution.hang_up()


def _say(channel: Channel, message: Message) -> None:
    with contextlib.suppress(OSError):  # the client is gone, or does not read; its end is noticed next
        channel.send(message)
