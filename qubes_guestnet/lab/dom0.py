# SPDX-License-Identifier: GPL-2.0-or-later
"""dom0's operations on a qube's network, reproduced with their faults.

Read in core-admin 4.4.0 (`vm/qubesvm.py: start, create_qdb_entries`, `vm/mix/net.py`, `ext/r3compatibility.py`), and in
its branch of 4.2 where that differs (behaviour B161). The agent has to cope with:

* At the start of a qube dom0 first writes its provider's entries, then attaches the interface, then writes the qube's
  own entries.
* Entries are written one at a time, and none is removed: they say what the settings are if the interface exists, never
  that it does. "No provider" detaches and writes nothing. A change of a feature writes nothing at all.
* With a provider's own entries (its start, a change of its netvm) dom0 rewrites those about each running client.
* The netvm of a paused qube: its entries change at once, its interface only after it runs again (4.2: at once too).

* Firewall rules are written for the provider: before its client's interface exists, and again after the client's start;
  after the interface when the provider is changed; and at the provider's start before the interface, then no more.
"""

from __future__ import annotations

import contextlib
from typing import NamedTuple

from . import world
from .hotplug import Hotplug
from .interfaces import INTERFACE, Interfaces
from .namespaces import LabError
from .provider import TUNNEL, UPLINK, Networking, Plain, Vif
from .qube import Qube
from .vm import FIREWALL_FLAG, Vm
from .world import Offer, World

__all__ = ["INTERFACE", "RELEASES", "Dom0", "Release", "Vm"]

# What our qubes-firewall.service makes, which the lab has no systemd for: the agent is to enforce the rules.
_OURS = "/run/qubes-guestnet/firewall"
_GATEWAY6 = "/qubes-netvm-gateway6"
_WAIT, _WAIT_SECONDS = "qubes.WaitForNetworkUplink", 10


class Release(NamedTuple):
    """What differs between releases of Qubes OS.

    Args:
        defers: the interface of a paused qube is exchanged only after it runs again.
        tells_first: the provider of a starting qube is told before the interface comes, and not after it.
    """

    defers: bool
    tells_first: bool


# 4.1 stands for all dom0 before 2024-06, the first releases of 4.2 among them.
RELEASES = {"4.3": Release(True, True), "4.2": Release(False, True), "4.1": Release(False, False)}
NEWEST = "4.3"


class Dom0(Interfaces):
    """dom0 of one lab.

    Args:
        plain: providers made by `create_provider` are plain commands and not the real role.
        release: one of `RELEASES`.
    """

    def __init__(self, plain: bool = False, release: str = NEWEST) -> None:
        super().__init__()
        self.plain = plain
        self.release = RELEASES[release]
        self._last_domid = 0
        self._unheard: list[tuple[Networking, Vif]] = []
        self._lost: list[tuple[Vm, Vm]] = []

    # --- creating ----------------------------------------------------------------------------------------------

    def create_provider(self, name: str, ipv6: bool = False, netvm: Vm | None = None, offer: Offer | None = None) -> Vm:
        """Create and start a network qube, with a world of its own outside unless it is connected to another one."""
        if netvm is None and offer is None:
            offer = Offer(ipv6=ipv6)
        vm = self.create(name, netvm, ipv6 if netvm is None else ipv6 or None, provides_network=True, offer=offer)
        self.start(vm)
        return vm

    def create(
        self, name: str, netvm: Vm | None = None, ipv6: bool | str | None = None, *,
        provides_network: bool = False, disposable: bool = False, offer: Offer | None = None,
    ) -> Vm:  # fmt: skip
        """Create a qube, not started. See `Vm` for what can be set besides before its start.

        Raises:
            LabError: there is one of that name.
        """
        if name in self.vms:
            raise LabError(f"the qube {name} exists already")
        used = {vm.qid for vm in self.vms.values() if vm.disposable == disposable}
        qid = next(number for number in range(1, len(used) + 2) if number not in used)
        vm = Vm(name, qid, provides_network=provides_network, ipv6=ipv6, disposable=disposable, offer=offer)
        if self.plain and provides_network:
            vm.plain, vm.agent, vm.flags = True, False, set()
        self.vms[name] = vm
        self.set_netvm(vm, netvm)
        return vm

    def delete(self, vm: Vm) -> None:
        """Run `qvm-remove`. Its provider is notified only at the next start of another client.

        Raises:
            LabError: it runs, or has qubes connected to it.
        """
        if vm.qube is not None or self.connected(vm):
            raise LabError(f"{vm.name} is in use")
        self.did("delete", vm)
        del self.vms[vm.name]
        if vm.world is not None:
            vm.world.kill()

    # --- running -----------------------------------------------------------------------------------------------

    def start(self, vm: Vm, agent: bool | None = None) -> Qube:
        """Start it, its provider before it if need be.

        Args:
            vm: a halted one.
            agent: whether to start its agent; None: as it was at its last start, and at the first that of a provider.
        """
        if vm.qube is not None:
            raise LabError(f"{vm.name} is running already")
        if vm.netvm is not None and vm.netvm.qube is None:
            self.start(vm.netvm)
        vm.agent = vm.agent if agent is None else agent
        if vm.netvm is not None and self.release.tells_first:
            self.tell_provider(vm, vm.netvm)
        qube = self._create_domain(vm)
        if vm.netvm is not None and not self.release.tells_first:
            self.tell_provider(vm, vm.netvm)
        if vm.netvm is not None:
            self.write_iptables(vm.netvm)
        vm.database = {"/name": vm.name.encode(), "/type": b"AppVM"}
        self.start_store(vm)
        self.write_entries(vm)
        self.did("resume", vm)
        if vm.agent and not vm.provides_network:
            qube.guestnet("rules", "load")  # as the unit does in every qube; for a provider see Hotplug
        self._provide(vm)
        if vm.plugged is not None:
            self.connect(vm)
        if vm.agent:
            qube.start_agent()
        self.reload_firewall(vm)
        self._attach_clients(vm)
        return qube

    def _create_domain(self, vm: Vm) -> Qube:
        """Create the domain, not running yet, with its interface at its provider."""
        self._last_domid += 1
        vm.domid, vm.deferred_from = self._last_domid, None
        qube = vm.qube = Qube(vm.name)
        for flag in vm.flags:
            qube.set_flag(flag)
        if FIREWALL_FLAG in vm.flags and vm.provides_network:
            qube.write(_OURS, "")
        self.did("create", vm)
        if vm.netvm is None:
            return qube
        try:
            networking = self.plug(vm)
            assert vm.plugged is not None
            networking.online(vm.plugged)
        except LabError:
            with contextlib.suppress(LabError):  # the first one says why
                self.kill(vm)
            raise
        return qube

    def _attach_clients(self, netvm: Vm) -> None:
        """Attach the running client qubes of a provider that has just started; a paused one when it resumes."""
        for vm in self.connected(netvm):
            if vm.qube is None or self._waits(vm):
                continue
            if vm.deferred_from is not None:
                self._apply_deferred(vm)
            else:
                self.attach_only(vm)

    def _provide(self, vm: Vm) -> None:
        """Make a started qube a provider, with its cable to the outside."""
        if vm.provides_network:
            ipv6 = vm.has_ipv6
            if vm.plain:
                uplink, dns = (INTERFACE, None) if vm.netvm else (UPLINK, world.HOST)
                vm.provides = Plain(vm.running, uplink, ipv6, dns)
            else:
                vm.provides = Hotplug(vm.running)
        if vm.offer is not None:
            if vm.world is None:
                vm.world = World(f"world-of-{vm.name}", vm.offer)
            vm.world.connect(vm.running, UPLINK if vm.netvm is None else TUNNEL)

    def start_all(self) -> None:
        """Start every qube that is halted, providers first."""
        for vm in self.vms.values():
            if vm.qube is None:
                self.start(vm)

    def shutdown(self, vm: Vm) -> None:
        """Shut it down: its agent is asked to end, its provider hears of it; qubes behind it lose their interface."""
        if vm.running.agent is not None and not vm.running.paused:
            vm.running.agent.stop()
        self.kill(vm)

    def kill(self, vm: Vm) -> None:
        """Run `qvm-kill`: end it without asking it, and notify its provider."""
        self.crash(vm)
        self.offline_late()

    def crash(self, vm: Vm) -> None:
        """End the qube without a notice to dom0 and its provider, which follows at `offline_late`."""
        backend, vif = vm.backend, vm.plugged
        self.did("end", vm)
        vm.running.kill()
        vm.qube, vm.provides, vm.plugged, vm.backend, vm.domid, vm.deferred_from = None, None, None, None, 0, None
        if vif is not None and backend is not None and backend.provides is not None:
            backend.provides.vanished(vif)
            self._unheard.append((backend.provides, vif))
        for other in self.vms.values():
            if other.qube is not None and other.backend is vm:
                # The kernel removes the other ends with the network namespace, some time later.
                other.qube.wire(f"ip link delete {other.interface} 2>/dev/null || :")
                other.plugged = other.backend = None
                self._lost.append((other, vm))

    def offline_late(self) -> None:
        """Notify dom0 and running providers of qubes that are gone."""
        unheard, self._unheard = self._unheard, []
        for networking, vif in unheard:
            if any(vm.provides is networking for vm in self.vms.values()):
                networking.offline(vif)
        lost, self._lost = self._lost, []
        for vm, backend in lost:
            if vm.qube is not None and self._waits(vm) and vm.deferred_from is None:
                vm.deferred_from = backend.name

    def restart(self, vm: Vm) -> Qube:
        """Shut down and start again."""
        self.shutdown(vm)
        return self.start(vm)

    def pause(self, vm: Vm) -> None:
        """`qvm-pause`."""
        self.did("pause", vm)
        vm.running.pause()

    def unpause(self, vm: Vm) -> None:
        """`qvm-unpause`, and what dom0 has put off until then.

        Raises:
            LabError: also when the qube says that its uplink is not configured in time.
        """
        self.did("resume", vm)
        vm.running.unpause()
        self._apply_deferred(vm)

    def _waits(self, vm: Vm) -> bool:
        """Return whether changes to its interface are put off."""
        return self.release.defers and vm.running.paused

    def _apply_deferred(self, vm: Vm) -> None:
        if vm.deferred_from is None or (vm.netvm is not None and vm.netvm.qube is None):
            return  # the second is tried again at the start of that provider
        former = self.vms.get(vm.deferred_from)
        self.detach(vm)
        if vm.netvm is not None:
            self._netvm_was_set(vm, former)
        vm.deferred_from = None
        self.did("ask", vm, _WAIT)
        if vm.running.agent is not None and vm.running.agent.running:
            vm.running.guestnet("wait-uplink", "--timeout", str(_WAIT_SECONDS), timeout=_WAIT_SECONDS + 5.0)

    # --- settings ----------------------------------------------------------------------------------------------

    def set_netvm(self, vm: Vm, netvm: Vm | None) -> None:
        """`qvm-prefs VM netvm`.

        Raises:
            LabError: the other one provides no network, has its own from this qube, or is halted while this one runs.
        """
        if netvm is not None and not netvm.provides_network:
            raise LabError(f"{netvm.name} provides no network")
        if netvm is not None and netvm in self.below(vm):
            raise LabError(f"{netvm.name} gets its network from {vm.name}, so it cannot be its provider")
        if netvm is not None and vm.qube is not None and netvm.qube is None:
            raise LabError(f"QubesVMNotStartedError: {vm.name} runs, and {netvm.name} is halted", "start it first")
        if vm.qube is not None and self._waits(vm):
            if vm.deferred_from is None:
                vm.deferred_from = vm.netvm.name if vm.netvm is not None else ""
        elif vm.qube is not None:
            self.detach(vm)
        former, vm.netvm = vm.netvm, netvm
        self._netvm_was_set(vm, former)

    def _netvm_was_set(self, vm: Vm, former: Vm | None) -> None:
        for each in (former, vm.netvm) if vm.netvm is not None else (former,):
            if each is not None and each.qube is not None:
                self.refresh_connected(each)
        if vm.netvm is not None and vm.qube is not None:
            self.write_entries(vm)
            if self._waits(vm):
                self.reload_firewall(vm)
            else:
                self.attach(vm)

    def set_feature(self, vm: Vm, feature: str, value: str | None) -> None:
        """`qvm-features VM FEATURE VALUE`; None: as if it had never been set. No qube is told, see `reattach`."""
        if value is None:
            vm.features.pop(feature, None)
        else:
            vm.features[feature] = value

    def correct_by_hand(self, netvm: Vm) -> None:
        """Rewrite a provider's entries as at its start, as a user can with qubesdb-write and -rm."""
        if netvm.gateway6 is None and _GATEWAY6 in netvm.database:
            self.remove(netvm, _GATEWAY6)
        self.write_all(netvm, netvm.provider_entries())
        self.refresh_connected(netvm)

    def reattach(self, vm: Vm) -> None:
        """Set the same provider again on a running qube: rewrite the entries, and replace the interface."""
        self.set_netvm(vm, vm.netvm)
