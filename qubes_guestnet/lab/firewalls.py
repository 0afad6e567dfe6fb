# SPDX-License-Identifier: GPL-2.0-or-later
"""When dom0 writes the firewall rules of a qube into its provider's QubesDB, and how its rules change and expire.

Read in core-admin 4.4.0 (`vm/mix/net.py`, `firewall.py`). Nothing removes the rules when a qube leaves.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from . import firewall_rules
from .databases import Databases
from .firewall_rules import Rules
from .vm import Vm


class Firewalls(Databases):
    """The qubes of a lab and their rule lists.

    Attributes:
        vms: by name.
        time: the clock, in Unix time.
    """

    def __init__(self) -> None:
        super().__init__()
        self.vms: dict[str, Vm] = {}
        self.time = time.time

    def reload_firewall(self, vm: Vm) -> None:
        """Write a qube's rules for its provider, if that runs; also `qvm-firewall --reload`.

        For IPv4, then IPv6 where it has an address: remove the folder, write policy and rules, commit.
        """
        if vm.netvm is None or vm.netvm.qube is None:
            return
        if any(rule.destination is not None and rule.destination[0] == "dsthost" for rule in vm.firewall.rules):
            vm.netvm.serve_names()
        addresses = {4: vm.address, 6: vm.networked6}
        self.do_all(vm.netvm, firewall_rules.cycle(addresses, vm.firewall.rules, self.time()))

    def set_firewall(self, vm: Vm, rules: Rules) -> None:
        """Change a qube's rules, as `qvm-firewall` and the settings window do: each save writes the whole list."""
        vm.firewall.rules = rules
        self._save(vm)

    def expire_firewalls(self) -> None:
        """Write the lists that have expired rules again. dom0 does it when the time has come, see `next_expiry`."""
        now = self.time()
        for vm in self.vms.values():
            if any(moment < now for moment in vm.firewall.timers):
                vm.firewall.timers = {moment for moment in vm.firewall.timers if moment >= now}
                vm.firewall.rules = vm.firewall.saved
                self._save(vm)

    def next_expiry(self) -> float | None:
        """Return the Unix time of the next expiry, None if no rule expires."""
        return min((moment for vm in self.vms.values() for moment in vm.firewall.timers), default=None)

    def _save(self, vm: Vm) -> None:
        vm.firewall.save(self.time())
        if vm.qube is not None:
            self.reload_firewall(vm)

    def write_firewall(self, netvm: Vm, address: str, entries: Mapping[str, str | bytes], commit: bool = True) -> None:
        """Write entries as they are, also ones that dom0 would refuse, in the order of a save.

        Args:
            netvm: the provider.
            address: of the qube, or another word for the path.
            entries: below the address; what is missing stays missing, the policy too.
            commit: whether the base entry is written last.
        """
        base = f"{firewall_rules.BASE}{address}"
        self.remove(netvm, f"{base}/")
        for key, value in entries.items():
            self.write(netvm, f"{base}/{key}", value)
        if commit:
            self.write(netvm, base, "")
