# SPDX-License-Identifier: GPL-2.0-or-later
"""What dom0 does to a qube's network, faithfully, and including what it does badly.

Read in core-admin (`vm/qubesvm.py: create_qdb_entries`, `vm/mix/net.py`): the entries are written one at a time, in the
order of `entries()`; IPv6 entries are written when there is IPv6 and are *not* removed when there is none; a change
of provider detaches the interface, writes all entries anew, and attaches a new interface; "no provider" detaches and
writes nothing. So the entries say what the settings are if the interface exists, never that it does.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import StoreError
from ..system import qubesdb
from .namespaces import LabError
from .provider import VIRTUAL_DNS, Provider, Vif
from .qube import QUBESDB_FOLDER, Qube

INTERFACE = "eth0"
_PREFIX6 = "fd09:24ef:4179::a89:"


class Vm:
    """A qube as dom0 knows it.

    Args:
        name: its name.
        qid: its number: the last part of its addresses and of its MAC, and its domain number.
        provides: its networking, when it provides network.
        ipv6: the feature of that name: True on, False off, None: as the provider's.
    """

    def __init__(self, name: str, qid: int, provides: Provider | None = None, ipv6: bool | None = None) -> None:
        self.name = name
        self.qid = qid
        self.provides = provides
        self.ipv6 = ipv6
        self.netvm: Vm | None = None
        self.database: dict[str, bytes] = {}
        self.qube: Qube | None = None
        self.vif: str | None = None
        self.attached = 0
        # Options of the provider's end, see `Vif`.
        self.proxy_arp = True
        self.proxy_delay = 0

    @property
    def address(self) -> str:
        """IPv4 address."""
        return f"10.137.{self.qid >> 8}.{self.qid & 255}"

    @property
    def address6(self) -> str:
        """IPv6 address, in use where IPv6 is on."""
        return f"{_PREFIX6}{self.qid:x}"

    @property
    def mac(self) -> str:
        """Address of its interface."""
        return f"00:16:3e:5e:6c:{self.qid & 255:02x}"

    @property
    def has_ipv6(self) -> bool:
        """Whether the feature is on, by itself or by what it is connected to."""
        if self.ipv6 is not None:
            return self.ipv6
        return self.netvm is not None and self.netvm.has_ipv6

    def entries(self) -> dict[str, str]:
        """The network entries dom0 writes, in its order; none without a provider."""
        if self.netvm is None:
            return {}
        written = {
            "/qubes-mac": self.mac,
            "/qubes-ip": self.address,
            "/qubes-netmask": "255.255.255.255",
            "/qubes-gateway": self.netvm.address,
            "/qubes-primary-dns": VIRTUAL_DNS[0],
            "/qubes-secondary-dns": VIRTUAL_DNS[1],
        }
        if self.has_ipv6:
            written["/qubes-ip6"] = self.address6
        if self.has_ipv6 and self.netvm.has_ipv6:
            written["/qubes-gateway6"] = self.netvm.address6
        return written

    @property
    def running(self) -> Qube:
        """The qube; LabError when it is not started."""
        if self.qube is None:
            raise LabError(f"{self.name} is not running")
        return self.qube


class Dom0:
    """dom0 of one lab."""

    def __init__(self) -> None:
        self.vms: dict[str, Vm] = {}

    def create_provider(self, name: str, ipv6: bool = False) -> Vm:
        """Create and start a network qube with a world of its own outside."""
        vm = self._create(Vm(name, self._next_qid(), Provider(name, ipv6), ipv6))
        assert vm.provides is not None
        vm.qube = vm.provides.qube
        return vm

    def create(self, name: str, netvm: Vm | None = None, ipv6: bool | None = None) -> Vm:
        """Create a qube, not started."""
        vm = self._create(Vm(name, self._next_qid(), None, ipv6))
        vm.netvm = netvm
        return vm

    def _next_qid(self) -> int:
        return len(self.vms) + 1

    def _create(self, vm: Vm) -> Vm:
        self.vms[vm.name] = vm
        return vm

    def start(self, vm: Vm) -> Qube:
        """Start it as Xen does: entries first, then the interface; its agent is for the caller to start."""
        qube = vm.qube = Qube(vm.name)
        vm.database = {"/name": vm.name.encode(), "/type": b"AppVM", "/qubes-vm-type": b"AppVM"}
        self.start_store(vm)
        self.write_entries(vm)
        if vm.netvm is not None:
            self.attach(vm)
        return qube

    def start_store(self, vm: Vm) -> None:
        """Start its QubesDB daemon with all that dom0 has for it: what happens at its start, and after a crash."""
        vm.running.start_store({key: value.decode() for key, value in vm.database.items()})

    def set_netvm(self, vm: Vm, netvm: Vm | None) -> None:
        """`qvm-prefs VM netvm`, of a running qube."""
        self.detach(vm)
        vm.netvm = netvm
        if netvm is not None:
            self.write_entries(vm)
            self.attach(vm)

    def attach(self, vm: Vm, interface: str = INTERFACE) -> None:
        """Plug its interface in: a new one, with a new number, each time; the qube's kernel names it `interface`."""
        if vm.netvm is None or vm.netvm.provides is None:
            raise LabError(f"{vm.name} has no provider to attach to")
        address6, gateway6 = (vm.address6, vm.netvm.address6) if vm.has_ipv6 else (None, None)
        vif = Vif(
            f"vif{vm.qid}.{vm.attached}", vm.qid, vm.address, vm.netvm.address, address6, gateway6,
            vm.proxy_arp, vm.proxy_delay,
        )  # fmt: skip
        vm.netvm.provides.attach(vif, vm.running, interface, vm.mac)
        vm.vif = vif.name
        vm.attached += 1

    def crash_provider(self, netvm: Vm) -> None:
        """Kill a provider, with its world: no clean shutdown; the interfaces of the qubes behind it vanish."""
        assert netvm.provides is not None
        netvm.provides.kill()
        for vm in self.vms.values():
            if vm.netvm is netvm:
                vm.vif = None

    def restart_provider(self, netvm: Vm) -> None:
        """Start a provider again after a crash, and attach the qubes that are behind it."""
        assert netvm.provides is not None
        netvm.provides = Provider(netvm.name, netvm.provides.ipv6)
        netvm.qube = netvm.provides.qube
        for vm in self.vms.values():
            if vm.netvm is netvm:
                self.attach(vm)

    def detach(self, vm: Vm) -> None:
        """Unplug its interface, if it has one. The entries stay."""
        if vm.vif is not None and vm.netvm is not None and vm.netvm.provides is not None:
            vm.netvm.provides.detach(vm.vif)
        vm.vif = None

    def write_entries(self, vm: Vm) -> None:
        """Write its network entries, one at a time; nothing is ever removed."""
        for key, value in vm.entries().items():
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
