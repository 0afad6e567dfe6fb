# SPDX-License-Identifier: GPL-2.0-or-later
"""The interfaces that dom0 attaches and detaches, and the entries that it writes with them; `dom0` has the order."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from . import iptables
from .firewalls import Firewalls
from .hotplug import addresses
from .namespaces import LabError
from .provider import Networking, Vif
from .vm import Vm

INTERFACE = "eth0"


class Interfaces(Firewalls):
    """The interfaces and entries of a lab's qubes.

    Attributes:
        reuses_numbers: the number of an interface is used again once it was detached, as by libxl.
    """

    def __init__(self) -> None:
        super().__init__()
        self.reuses_numbers = True

    def connected(self, netvm: Vm) -> tuple[Vm, ...]:
        """Return the qubes connected to a provider, halted ones too."""
        return tuple(vm for vm in self.vms.values() if vm.netvm is netvm)

    def below(self, vm: Vm) -> Iterator[Vm]:
        """Yield a qube, and all that are connected to it, directly or through others."""
        yield vm
        for other in self.connected(vm):
            yield from self.below(other)

    # --- interfaces --------------------------------------------------------------------------------------------

    def attach(self, vm: Vm, interface: str = INTERFACE, late: bool = False) -> None:
        """Attach a new interface, then write the firewall rules: the order of a change of the provider.

        Args:
            vm: a running qube, behind a running provider.
            interface: see `attach_only`; late likewise.
        """
        self.attach_only(vm, interface, late)
        self.reload_firewall(vm)

    def attach_only(self, vm: Vm, interface: str = INTERFACE, late: bool = False) -> None:
        """Attach a new interface and write no rules, as at the start of a provider, which has the rules already.

        Args:
            vm: a running qube, behind a running provider.
            interface: what the qube's kernel names it.
            late: dom0 writes a fake address for the provider only after the interface exists.
        """
        if not late and vm.netvm is not None and vm.netvm.qube is not None:
            self.tell_of_mapping(vm, vm.netvm)
        networking = self.plug(vm)
        assert vm.plugged is not None
        try:
            networking.online(vm.plugged)
            self.connect(vm, interface)
        except LabError:
            with contextlib.suppress(LabError):  # the first error has the cause
                self.detach(vm)
            raise
        if late and vm.netvm is not None:
            self.tell_of_mapping(vm, vm.netvm)

    def plug(self, vm: Vm) -> Networking:
        """Run the first step of `attach`: add the device to its provider. For the hotplug script see
        `Networking.online`.
        """
        if vm.netvm is None:
            raise LabError(f"{vm.name} has no provider to attach to")
        if vm.netvm.qube is None:
            raise LabError(f"{vm.name} cannot be attached: {vm.netvm.name} is halted", "start it first")
        if vm.netvm.provides is None:
            raise LabError(f"{vm.name} cannot be attached: {vm.netvm.name} provides no network")
        gateway6 = vm.netvm.gateway6 if vm.has_ipv6 else None
        vm.attached = 0 if self.reuses_numbers or not self._counts(vm) else vm.attached + 1
        vm.plugged, vm.backend, vm.numbered = Vif(
            vm.domid, vm.attached, vm.mac, vm.address, vm.netvm.visible_address, vm.networked6, gateway6,
            vm.visible_address != vm.address, vm.proxy_arp, vm.proxy_delay,
        ), vm.netvm, vm.domid  # fmt: skip
        self.did("attach", vm.netvm, vm.plugged.name, f"{vm.mac} {addresses(vm.plugged)}")
        vm.netvm.provides.plug(vm.plugged)
        return vm.netvm.provides

    @staticmethod
    def _counts(vm: Vm) -> bool:
        """Return whether it had an interface since its start."""
        return vm.numbered == vm.domid

    def connect(self, vm: Vm, interface: str = INTERFACE) -> None:
        """Run the last step of `attach`: the qube gets its interface once the hotplug script has reported success."""
        if vm.plugged is None or vm.backend is None or vm.backend.provides is None:
            raise LabError(f"{vm.name} is not plugged in anywhere")
        vm.backend.provides.connect(vm.plugged, vm.running, interface)
        vm.interface = interface

    def detach(self, vm: Vm) -> None:
        """Detach its interface, if it has one: remove the device, then notify its provider. The entries stay."""
        vif, backend, interface = vm.plugged, vm.backend, vm.interface
        vm.plugged, vm.backend, vm.interface = None, None, ""
        if vif is not None and backend is not None and backend.provides is not None:
            self.did("detach", backend, vif.name)
            backend.provides.unplug(vif, vm.running, interface)
            backend.provides.offline(vif)

    # --- entries -----------------------------------------------------------------------------------------------

    def write_entries(self, vm: Vm) -> None:
        """Write its network entries, and those of its running clients that it reads as their provider."""
        self.write_all(vm, vm.entries())
        if vm.provides_network:
            self.refresh_connected(vm)
            for client in self.connected(vm):
                if client.qube is not None:
                    self.tell_of_mapping(client, vm)
                    self.reload_firewall(client)
        self.write(vm, "/qubes-vm-type", vm.kind)
        self.write(vm, "/qubes-iptables-error", "")
        self.write_iptables(vm)

    def refresh_connected(self, netvm: Vm) -> None:
        """Write a running provider's list of connected qubes."""
        self.write_all(netvm, netvm.connected_entries(self.connected(netvm)))

    def tell_provider(self, vm: Vm, netvm: Vm) -> None:
        """Write the client list of a starting qube's provider, the addresses that the qube sees, and its rules."""
        self.refresh_connected(netvm)
        self.tell_of_mapping(vm, netvm)
        self.reload_firewall(vm)

    def tell_of_mapping(self, vm: Vm, netvm: Vm) -> None:
        """Write a client qube's fake addresses for its provider."""
        self.write_all(netvm, vm.mapped_entries())

    def write_iptables(self, vm: Vm) -> None:
        """Write the rules for programs from before 4.0, unless the template supports newer ones."""
        if vm.feature(iptables.FEATURE):
            return
        self.remove(vm, iptables.RULES)
        self.write_all(vm, iptables.entries((client.domid, client.address) for client in self.connected(vm)))
