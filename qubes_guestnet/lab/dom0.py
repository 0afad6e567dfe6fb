# SPDX-License-Identifier: GPL-2.0-or-later
"""What dom0 does to a qube's network, faithfully, and including what it does badly.

Read in core-admin (`vm/qubesvm.py: create_qdb_entries`, `vm/mix/net.py`): the entries are written one at a time, in the
order of `Vm.entries()`; IPv6 entries are written when there is IPv6 and are *not* removed when there is none; a change
of provider detaches the interface, writes all entries anew, and attaches a new interface; "no provider" detaches and
writes nothing. So the entries say what the settings are if the interface exists, never that it does. A change of a
feature writes nothing at all until something else makes dom0 write.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

from ..errors import StoreError
from ..system import qubesdb
from . import world
from .hotplug import Hotplug
from .namespaces import LabError
from .provider import TUNNEL, UPLINK, Networking, Plain, Vif
from .qube import QUBESDB_FOLDER, Qube
from .vm import IPV6, Vm
from .world import Offer, World

__all__ = ["INTERFACE", "Dom0", "Vm"]

INTERFACE = "eth0"
_GATEWAY6 = "/qubes-netvm-gateway6"


class Dom0:
    """dom0 of one lab.

    Args:
        plain: providers made by `create_provider` are plain commands and not the real role.
    """

    def __init__(self, plain: bool = False) -> None:
        self.plain = plain
        self.vms: dict[str, Vm] = {}
        # At the start of a qube dom0 tells its provider of a fake address only when the vif is there already.
        self.late_mappings = True
        self._last_domid = 0
        self._unheard: list[tuple[Networking, Vif]] = []

    # --- creating ----------------------------------------------------------------------------------------------

    def create_provider(
        self, name: str, ipv6: bool = False, netvm: Vm | None = None, offer: Offer | None = None
    ) -> Vm:
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
            raise LabError(f"there is a qube {name} already")
        same_kind = sum(vm.disposable == disposable for vm in self.vms.values())
        vm = Vm(
            name, same_kind + 1, provides_network=provides_network, ipv6=ipv6, disposable=disposable, offer=offer
        )
        if self.plain and provides_network:
            vm.plain, vm.agent, vm.flags = True, False, set()
        self.vms[name] = vm
        vm.netvm = netvm
        self._tell_of_connected(netvm)
        return vm

    # --- running -----------------------------------------------------------------------------------------------

    def start(self, vm: Vm, agent: bool | None = None) -> Qube:
        """Start it as Xen does, its provider before it if need be.

        Args:
            vm: a halted one.
            agent: whether to start its agent; None: as it was at its last start, and at the first that of a provider.
        """
        if vm.qube is not None:
            raise LabError(f"{vm.name} is running already")
        if vm.netvm is not None and vm.netvm.qube is None:
            self.start(vm.netvm)
        vm.agent = vm.agent if agent is None else agent
        self._last_domid += 1
        vm.domid, vm.attached = self._last_domid, 0
        qube = vm.qube = Qube(vm.name)
        for flag in vm.flags:
            qube.set_flag(flag)
        kind = b"NetVM" if vm.provides_network and vm.netvm is None else b"AppVM"
        vm.database = {"/name": vm.name.encode(), "/type": b"AppVM", "/qubes-vm-type": kind}
        self.start_store(vm)
        self.write_entries(vm)
        if vm.agent and not vm.provides_network:
            qube.guestnet("rules", "load")  # as the unit does in every qube; that of a provider see Hotplug
        self._provide(vm)
        if vm.netvm is not None:
            self.attach(vm, late=self.late_mappings)
        if vm.agent:
            qube.start_agent()
        for other in self.connected(vm):
            if other.qube is not None:
                self.attach(other)
        return qube

    def _provide(self, vm: Vm) -> None:
        """What makes a started qube a provider, and its cable to the outside."""
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
        """Shut it down: its agent is asked to end, its provider hears of it; who is behind it loses the interface."""
        if vm.running.agent is not None:
            vm.running.agent.stop()
        self.kill(vm)

    def kill(self, vm: Vm) -> None:
        """`qvm-kill`: nothing in it is asked, its provider hears of it."""
        self.crash(vm)
        self.offline_late()

    def crash(self, vm: Vm) -> None:
        """It is gone, and nobody has noticed: its provider hears of it at `offline_late`."""
        netvm, vif = vm.netvm, vm.plugged
        vm.running.kill()
        vm.qube, vm.provides, vm.plugged, vm.domid = None, None, None, 0
        if vif is not None and netvm is not None and netvm.provides is not None:
            netvm.provides.vanished(vif)
            self._unheard.append((netvm.provides, vif))
        for other in self.connected(vm):
            if other.qube is not None and other.plugged is not None:
                # The kernel takes the other ends away with the network, at some moment of its own.
                other.qube.run("ip", "link", "delete", "dev", other.interface, check=False)
                other.plugged = None

    def offline_late(self) -> None:
        """Let providers hear of the interfaces of qubes that are gone; those providers that still run."""
        unheard, self._unheard = self._unheard, []
        for networking, vif in unheard:
            if any(vm.provides is networking for vm in self.vms.values()):
                networking.offline(vif)

    def restart(self, vm: Vm) -> Qube:
        """Shut down and start again."""
        self.shutdown(vm)
        return self.start(vm)

    def crash_provider(self, netvm: Vm) -> None:
        """Let a provider crash; the interfaces of the qubes behind it vanish."""
        self.crash(netvm)

    def restart_provider(self, netvm: Vm) -> None:
        """Start a provider again after a crash; the qubes behind it are attached again."""
        self.start(netvm)

    # --- settings ----------------------------------------------------------------------------------------------

    def set_netvm(self, vm: Vm, netvm: Vm | None) -> None:
        """`qvm-prefs VM netvm`. LabError for one that provides no network, or has its own from this qube."""
        if netvm is not None and not netvm.provides_network:
            raise LabError(f"{netvm.name} provides no network")
        if netvm is not None and netvm in self.below(vm):
            raise LabError(f"{vm.name} would provide network for itself: {netvm.name} is behind it")
        self.detach(vm)
        former, vm.netvm = vm.netvm, netvm
        self._tell_of_connected(former)
        self._tell_of_connected(netvm)
        if netvm is not None and vm.qube is not None:
            self.write_entries(vm)
            self.attach(vm)

    def set_feature(self, vm: Vm, feature: str, value: str | None) -> None:
        """`qvm-features VM FEATURE VALUE`; None: as if it had never been set.

        Running qubes are told nothing, as by dom0, see `reattach`; but for ipv6 the entries of the providers that are
        concerned follow at once, which in dom0 takes their restart or a person.
        """
        if value is None:
            vm.features.pop(feature, None)
        else:
            vm.features[feature] = value
        if feature != IPV6:
            return
        for each in self.below(vm):
            if each.provides_network and each.qube is not None:
                if each.gateway6 is None and _GATEWAY6 in each.database:
                    self.remove(each, _GATEWAY6)
                self._write_all(each, each.provider_entries())
                self._tell_of_connected(each)

    def reattach(self, vm: Vm) -> None:
        """What setting the same provider again does to a running qube: entries written anew, another interface."""
        self.set_netvm(vm, vm.netvm)

    def connected(self, netvm: Vm) -> tuple[Vm, ...]:
        """The qubes connected to a provider, halted ones too."""
        return tuple(vm for vm in self.vms.values() if vm.netvm is netvm)

    def below(self, vm: Vm) -> Iterator[Vm]:
        """A qube, and all that are connected to it, directly or through others."""
        yield vm
        for other in self.connected(vm):
            yield from self.below(other)

    # --- interfaces --------------------------------------------------------------------------------------------

    def attach(self, vm: Vm, interface: str = INTERFACE, late: bool = False) -> None:
        """Plug its interface in: a new one, with a new number, each time.

        Args:
            vm: a running qube; its provider is started if it is halted.
            interface: what the qube's kernel names it.
            late: the provider hears of a fake address only after the interface is there.
        """
        if not late:
            self._tell_of_mapping(vm)
        networking = self.plug(vm)
        assert vm.plugged is not None
        try:
            networking.online(vm.plugged)
            self.connect(vm, interface)
        except LabError:
            with contextlib.suppress(LabError):  # the first one says why
                self.detach(vm)
            raise
        if late:
            self._tell_of_mapping(vm)

    def plug(self, vm: Vm) -> Networking:
        """First step of `attach`: the device is at its provider. For the hotplug script see `Networking.online`."""
        if vm.netvm is None:
            raise LabError(f"{vm.name} has no provider to attach to")
        if vm.netvm.qube is None:
            self.start(vm.netvm)
        if vm.netvm.provides is None:
            raise LabError(f"{vm.name} cannot be attached: {vm.netvm.name} provides no network")
        gateway6 = vm.netvm.gateway6 if vm.has_ipv6 else None
        vm.plugged = Vif(
            vm.domid, vm.attached, vm.mac, vm.address, vm.netvm.visible_address, vm.networked6, gateway6,
            vm.visible_address != vm.address, vm.proxy_arp, vm.proxy_delay,
        )  # fmt: skip
        vm.attached += 1
        vm.netvm.provides.plug(vm.plugged)
        return vm.netvm.provides

    def connect(self, vm: Vm, interface: str = INTERFACE) -> None:
        """Last step of `attach`: as soon as the hotplug script has said so the qube has its interface."""
        if vm.plugged is None or vm.netvm is None or vm.netvm.provides is None:
            raise LabError(f"{vm.name} is not plugged in anywhere")
        vm.netvm.provides.connect(vm.plugged, vm.running, interface)
        vm.interface = interface

    def detach(self, vm: Vm) -> None:
        """Unplug its interface, if it has one: the device goes, then its provider hears of it. The entries stay."""
        vif, interface = vm.plugged, vm.interface
        vm.plugged, vm.interface = None, ""
        if vif is not None and vm.netvm is not None and vm.netvm.provides is not None:
            vm.netvm.provides.unplug(vif, vm.running, interface)
            vm.netvm.provides.offline(vif)

    # --- QubesDB -----------------------------------------------------------------------------------------------

    def start_store(self, vm: Vm) -> None:
        """Start its QubesDB daemon with all that dom0 has for it: what happens at its start, and after a crash."""
        vm.running.start_store({key: value.decode() for key, value in vm.database.items()})

    def write_entries(self, vm: Vm) -> None:
        """Write its network entries, one at a time; nothing is ever removed."""
        self._write_all(vm, vm.entries())
        if vm.provides_network:
            self._tell_of_connected(vm)

    def _tell_of_connected(self, netvm: Vm | None) -> None:
        if netvm is not None and netvm.qube is not None:
            self._write_all(netvm, netvm.connected_entries(self.connected(netvm)))

    def _tell_of_mapping(self, vm: Vm) -> None:
        if vm.netvm is not None and vm.netvm.qube is not None:
            self._write_all(vm.netvm, vm.mapped_entries())

    def _write_all(self, vm: Vm, entries: Mapping[str, str]) -> None:
        for key, value in entries.items():
            self.write(vm, key, value)

    def write(self, vm: Vm, key: str, value: str | bytes) -> None:
        """Write one entry. While the qube's daemon is down dom0 keeps it, and its next start brings it."""
        raw = value.encode() if isinstance(value, str) else value
        vm.database[key] = raw
        self._change(vm, {key: raw}, ())

    def remove(self, vm: Vm, key: str) -> None:
        """Remove one entry. dom0 does not do this to network entries; a person in dom0 may."""
        vm.database.pop(key, None)
        self._change(vm, {}, (key,))

    def read_all(self, vm: Vm) -> dict[str, bytes]:
        """Every entry its QubesDB daemon has now."""
        store = self._connect(vm)
        try:
            return store.multiread("/")
        finally:
            store.close()

    def _connect(self, vm: Vm) -> qubesdb.Store:
        try:
            return qubesdb.connect(writable=True, directory=str(vm.running.path(QUBESDB_FOLDER)))
        except StoreError as error:
            raise LabError(f"QubesDB of {vm.name}: {error}") from error

    def _change(self, vm: Vm, written: Mapping[str, bytes], removed: tuple[str, ...]) -> None:
        qube = vm.running
        if qube.store_daemon is None or not qube.store_daemon.running:
            return
        store = self._connect(vm)
        try:
            for key, value in written.items():
                store.write(key, value)
            for key in removed:
                store.rm(key)
        finally:
            store.close()
