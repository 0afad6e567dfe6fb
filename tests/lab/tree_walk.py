# SPDX-License-Identifier: GPL-2.0-or-later
"""The steps of a walk through a tree: what dom0 does to qubes and to their providers, and what then has to hold.

Which step comes next follows from the seed and from dom0's own state alone. The judge knows what dom0 wrote and when it
attached which; what is there it asks of packets and of what the providers say of their vifs.
"""

from __future__ import annotations

import errno
import json
import random
import socket
from collections import deque
from collections.abc import Callable

from qubes_guestnet.lab import probes, world
from qubes_guestnet.lab.dom0 import RELEASES, Vm
from qubes_guestnet.lab.namespaces import LabError
from qubes_guestnet.lab.stage import Stage
from qubes_guestnet.lab.vm import FAKE_GATEWAY, FAKE_IP, IPV6
from qubes_guestnet.lab.world import Offer
from tests.support.eventually import eventually

FAKES = ("192.168.1.5", "192.168.1.6", None)
GATEWAYS = ("192.168.1.1", None)
REFUSED = {errno.EACCES, errno.ECONNREFUSED}
# Only ever spent by an agent that does not converge.
DEADLINE_S = 20.0


class TreeWalk:
    """Two providers with worlds, a proxy, and a qube that is moved between them.

    Args:
        seed: of all decisions.
        release: of dom0.
    """

    def __init__(self, seed: int, release: str) -> None:
        self.chance = random.Random(seed)
        self.trail: deque[str] = deque(maxlen=40)
        self.stage = Stage()
        self.dom0 = self.stage.dom0
        self.dom0.release = RELEASES[release]
        self.dom0.reuses_numbers = self.chance.random() < 0.5
        self.netvms = [self.dom0.create_provider(name, offer=Offer(ipv6=True)) for name in ("net-a", "net-b")]
        self.proxy = self.dom0.create_provider("proxy", netvm=self.netvms[0])
        self.vm = self.stage.start("vm", self.proxy)
        self._attached: dict[str, tuple[object, tuple[str, str] | None]] = {}
        self._remember()

    def step(self) -> None:
        """One of the things that dom0 does."""
        name = self.chance.choices(list(STEPS), list(STEPS.values()))[0]
        self.trail.append(name)
        getattr(self, name)()
        self._remember()

    def tell(self, words: str) -> None:
        """More about the step that is under way."""
        self.trail.append(f"  {words}")

    # --- steps -------------------------------------------------------------------------------------------------

    def move_the_qube(self) -> None:
        """Also while it is paused."""
        netvm = self.chance.choice([*self.netvms, self.proxy, None])
        self.tell(f"to {netvm}, paused: {self.vm.running.paused}")
        self.dom0.set_netvm(self.vm, netvm)

    def move_the_proxy(self) -> None:
        """With this its own entries are rewritten, and those about the qube behind it."""
        netvm = self.chance.choice([*self.netvms, None])
        self.tell(f"to {netvm}")
        self.dom0.set_netvm(self.proxy, netvm)

    def pause(self) -> None:
        if not self.vm.running.paused:
            self.dom0.pause(self.vm)

    def unpause(self) -> None:
        if not self.vm.running.paused:
            return
        try:
            self.dom0.unpause(self.vm)
        except LabError as error:
            # An interface that goes while keys are written may be exchanged (B3). An agent that was paused, or waited
            # for a processor, reads both at one moment, and so expects another interface where dom0 attaches none.
            if self.vm.netvm is not None or "interface missing" not in error.problem:
                raise
            self.tell("expects another interface")

    def switch_ipv6(self) -> None:
        """On a running qube, which is told nothing."""
        vm, value = self.chance.choice([*self.netvms, self.proxy, self.vm]), self.chance.choice(("1", "1", "", None))
        self.tell(f"{vm} {value!r}")
        self.dom0.set_feature(vm, IPV6, value)

    def fake_address(self) -> None:
        fake, gateway = self.chance.choice(FAKES), self.chance.choice(GATEWAYS)
        self.tell(f"{fake} {gateway}")
        self.dom0.set_feature(self.vm, FAKE_IP, fake)
        self.dom0.set_feature(self.vm, FAKE_GATEWAY, gateway)

    def rewrite_entries(self) -> None:
        vm = self.chance.choice([*self.netvms, self.proxy])
        self.tell(str(vm))
        self.dom0.write_entries(vm)

    def restart_provider(self) -> None:
        vm = self.chance.choice([*self.netvms, self.proxy])
        end = self.chance.choice((self.dom0.shutdown, self.dom0.kill))
        self.tell(f"{vm} {end.__name__}")
        end(vm)
        self.dom0.start(vm)

    def restart_agent(self) -> None:
        vm = self.chance.choice([*self.netvms, self.proxy])
        self.tell(str(vm))
        assert vm.running.agent is not None
        vm.running.agent.kill()
        vm.running.start_agent()

    # --- the judge ---------------------------------------------------------------------------------------------

    def _remember(self) -> None:
        """What the provider was told of each qube when it was attached."""
        for vm in (self.proxy, self.vm):
            plugged, _ = self._attached.get(vm.name, (None, None))
            if vm.plugged is not None and vm.plugged is not plugged:
                self._attached[vm.name] = (vm.plugged, self._told(vm))

    @staticmethod
    def _told(vm: Vm) -> tuple[str, str] | None:
        """The fake address and gateway its provider reads of it now, None where it is shown its own."""
        assert vm.backend is not None
        base = f"/mapped-ip/{vm.address}/visible-"
        ip, gateway = (vm.backend.database.get(base + leaf, b"").decode() for leaf in ("ip", "gateway"))
        return None if ip in ("", vm.address) else (ip, gateway)

    def settled(self) -> None:
        """Everything runs, and is what dom0 has made of it."""
        self.unpause()
        self._remember()
        self.trail.append("-- at rest")
        eventually(lambda: not self.difference(), DEADLINE_S, "what dom0 asks for", self._trouble)

    def difference(self) -> str:
        """The first thing that is not as it must be. Asserts, so that the last one is in the message."""
        checks: tuple[Callable[[Vm], str], ...] = (self._ipv4, self._ipv6, self._mapping)
        found = next((words for vm in (self.proxy, self.vm) for check in checks if (words := check(vm))), "")
        assert not found, found
        return found

    def _leads_out(self, vm: Vm) -> bool:
        """Whether it is attached, and so is each provider up to a world."""
        return vm in self.netvms or (vm.netvm is not None and vm.plugged is not None and self._leads_out(vm.netvm))

    def _knows_itself(self, vm: Vm) -> bool:
        """Whether the qube was told the address that its provider takes it to have.

        dom0 attaches the clients of a provider that starts, and does not write their own entries again: after a change
        of the fake address the two differ, until the netvm of the qube is set anew.
        """
        if vm.plugged is None:
            return False
        _, told = self._attached[vm.name]
        return vm.database["/qubes-ip"].decode() == (told[0] if told else vm.address)

    def _ipv4(self, vm: Vm) -> str:
        wanted = self._leads_out(vm) and self._knows_itself(vm)
        found = probes.ping(vm.running, world.HOST, 1.0 if wanted else 0.2) is not None
        return "" if found is wanted else f"{vm} reaches the world by IPv4: {found}"

    def _ipv6(self, vm: Vm) -> str:
        wanted = vm.plugged is not None and vm.reaches6
        found = probes.ping(vm.running, world.HOST6, 1.0 if wanted else 0.2) is not None
        if found is not wanted:
            return f"{vm} reaches the world by IPv6: {found}"
        if self._refused(vm) and (told := _udp6(vm)) not in REFUSED:
            return f"IPv6 of {vm} is to be refused at once: {told}"
        return ""

    @staticmethod
    def _refused(vm: Vm) -> bool:
        """Its provider was not told of the IPv6 that the qube has; a fake address has none (behaviour B160)."""
        vif, netvm = vm.plugged, vm.backend
        if vif is None or netvm is None or vif.mapped or "/qubes-gateway6" not in vm.database:
            return False
        listed = bool(netvm.database.get("/connected-ips6"))
        return bool(vif.address6) and listed and not netvm.serves6

    def _mapping(self, vm: Vm) -> str:
        """A change of the fake address is named while the qube keeps what it was attached with (behaviour B159)."""
        if vm.plugged is None or vm.backend is None:
            return ""
        _, before = self._attached[vm.name]
        wanted = self._told(vm) != before
        report = json.loads(vm.backend.running.guestnet("status", "--json", check=False).stdout)
        (row,) = (each for each in report["provider"]["vifs"] if each["name"] == vm.plugged.name)
        named, mapped = row["mappings_when_attached_again"] is not None, [each["visible"] for each in row["mappings"]]
        if mapped != ([before[0]] if before else []):
            return f"{vm} is shown as {mapped}, and was attached with {before}"
        return "" if named is wanted else f"a changed fake address of {vm} is named: {named}"

    def _trouble(self) -> str:
        logs = (f"{vm}: {vm.running.agent.tail(1200)}" for vm in self.dom0.vms.values() if vm.qube and vm.qube.agent)
        return "\n".join(logs)


def _udp6(vm: Vm) -> int:
    """What the qube's kernel is told of a datagram to the world; 0: nothing in time."""
    with vm.running.socket(socket.AF_INET6, socket.SOCK_DGRAM) as client:
        client.settimeout(1.0)
        try:
            client.connect((world.HOST6, 9))
            client.send(b"?")
            client.recv(1)
        except TimeoutError:
            return 0
        except OSError as error:
            return error.errno or 0
    return 0


# What happens, and how often.
STEPS: dict[str, float] = {
    "move_the_qube": 5, "move_the_proxy": 4, "pause": 4, "unpause": 2, "switch_ipv6": 5, "fake_address": 5,
    "rewrite_entries": 3, "restart_provider": 2, "restart_agent": 1,
}  # fmt: skip
