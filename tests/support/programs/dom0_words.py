# SPDX-License-Identifier: GPL-2.0-or-later
"""What dom0 does, in the words of its record: each operation by rules written anew from core-admin."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from qubes_guestnet.lab.dom0 import Dom0, Vm

MAC = "00:16:3e:5e:6c:00"
# Not of the network: in every qube, at every writing of its own entries.
ALWAYS = ("/qubes-vm-type", "/qubes-iptables-error")
# By the agent of a provider.
WRITTEN_BACK = ("/qubes-firewall-handled/", "/dns/")


@contextmanager
def operations(dom0: Dom0) -> Iterator[list[str]]:
    """What is done within, in words; filled at the end."""
    found: list[str] = []
    begin = len(dom0.operations)
    yield found
    found += [str(each) for each in dom0.operations[begin:] if each.what not in ALWAYS]


def own(vm: Vm, gateway: str, *, provides: bool = False, ip6: str = "", gateway6: str = "") -> list[str]:
    """The own entries of a qube."""
    name, address = vm.name, vm.address
    virtual = (("primary", "10.139.1.1"), ("secondary", "10.139.1.2"))
    found = []
    if provides:
        found += [f"write {name} /qubes-netvm-network = {address}", f"write {name} /qubes-netvm-gateway = {address}"]
        found += [f"write {name} /qubes-netvm-gateway6 = {ip6}"] if ip6 else []
        found += [f"write {name} /qubes-netvm-netmask = 255.255.255.255"]
        found += [f"write {name} /qubes-netvm-{which}-dns = {server}" for which, server in virtual]
    if gateway:
        found += [
            f"write {name} /qubes-mac = {MAC}",
            f"write {name} /qubes-ip = {address}",
            f"write {name} /qubes-netmask = 255.255.255.255",
            f"write {name} /qubes-gateway = {gateway}",
        ]
        found += [f"write {name} /qubes-{which}-dns = {server}" for which, server in virtual]
        found += [f"write {name} /qubes-ip6 = {ip6}"] if ip6 else []
        found += [f"write {name} /qubes-gateway6 = {gateway6}"] if gateway6 else []
    return found


def connected(netvm: Vm, *vms: Vm, ip6: str = "") -> list[str]:
    """The qubes behind a provider; an empty value is written too."""
    addresses = " ".join(vm.address for vm in vms)
    return [
        f"write {netvm.name} /connected-ips" + (f" = {addresses}" if addresses else ""),
        f"write {netvm.name} /connected-ips6" + (f" = {ip6}" if ip6 else ""),
    ]


def mapped(netvm: Vm, vm: Vm, ip: str = "", gateway: str = "") -> list[str]:
    """What a provider is told of the address a qube sees."""
    base = f"write {netvm.name} /mapped-ip/{vm.address}/visible"
    return [f"{base}-ip = {ip or vm.address}", f"{base}-gateway = {gateway or netvm.address}"]


def firewall(netvm: Vm, vm: Vm, ip6: str = "", rules: str = "action=accept") -> list[str]:
    """What a provider is told of the rules of a qube; of a new one that is a single rule."""
    found = []
    for address in (vm.address, *([ip6] if ip6 else [])):
        base = f"/qubes-firewall/{address}"
        found += [
            f"rm {netvm.name} {base}/",
            f"write {netvm.name} {base}/policy = drop",
            f"write {netvm.name} {base}/0000 = {rules}",
            f"write {netvm.name} {base}",
        ]
    return found


def attach(netvm: Vm, vm: Vm, number: int = 0, ip6: str = "") -> str:
    return f"attach {netvm.name} vif{vm.domid}.{number} = {MAC} {vm.address}" + (f" {ip6}" if ip6 else "")


def detach(netvm: Vm, vm: Vm, number: int = 0) -> str:
    return f"detach {netvm.name} vif{vm.domid}.{number}"


ASK = "ask vm qubes.WaitForNetworkUplink"


def as_recorded(dom0: Dom0, *vms: Vm) -> None:
    """The daemons have just what is on record, and what an agent that enforces firewall rules writes back."""
    for vm in vms:
        found = {key: value for key, value in dom0.read_all(vm).items() if not key.startswith(WRITTEN_BACK)}
        assert found == vm.database
        last = {each.what: each.value for each in dom0.operations if (each.verb, each.qube) == ("write", vm.name)}
        assert {key: found[key].decode() for key in last if key in found} == {
            key: value for key, value in last.items() if key in found
        }
