# SPDX-License-Identifier: GPL-2.0-or-later
"""The steps of the random walk: what dom0, the hypervisor, the user and bad luck do to one qube.

Each step does something to the real qube and tells the model. Which step comes next follows from the seed and from
the model alone, never from what the qube looks like at that moment: so a seed means the same steps again.
"""

from __future__ import annotations

import random
import signal
import time

from tests.lab.walk_model import (
    GATEWAY_ROUTE,
    GLOBAL,
    MAC,
    NO_DEFAULT,
    NO_DNS,
    OTHER_MAC,
    OWN,
    Model,
    Object,
    Value,
    version_of,
)
from tests.lab.walk_qube import FOREIGN, PYTHON, WalkQube
from tests.support.faults import hostile

# Key below /qubes- or /net-config/MAC/ → what dom0 may write there. The pools are apart: no two keys contradict.
GOOD: dict[str, tuple[str, ...]] = {
    "ip": tuple(f"10.137.0.{host}" for host in range(10, 60)),
    "netmask": ("255.255.255.255", "255.255.255.255", "255.255.255.0", "32", "26"),
    "gateway": tuple(f"10.138.0.{host}" for host in range(10, 60)),
    "ip6": tuple(f"fd09:24ef:4179::a89:{host:x}" for host in range(16, 64)),
    "netmask6": ("128", "128", "64"),
    "gateway6": ("fe80::fcff:ffff:feff:ffff", *(f"fd09:24ef:4179::b89:{host:x}" for host in range(16, 64))),
    "primary-dns": tuple(f"10.139.1.{host}" for host in range(1, 9)),
    "secondary-dns": tuple(f"10.139.2.{host}" for host in range(1, 9)),
}
PER_INTERFACE = ("ip", "netmask", "gateway", "ip6", "netmask6", "gateway6")
FIRST = {
    GLOBAL + "mac": MAC,
    **{GLOBAL + leaf: GOOD[leaf][0] for leaf in ("ip", "netmask", "gateway", "ip6", "gateway6")},
    **{GLOBAL + leaf: GOOD[leaf][0] for leaf in ("primary-dns", "secondary-dns")},
}
# Fewer than the agent writes back in a minute; a walk takes less.
OVERWRITES = 4
ANCHOR: Object = ("address", "192.168.77.7/32")
LINK_TARGET = "/run/systemd/resolve/stub-resolv.conf"


def hostile_values(leaf: str) -> list[bytes]:
    """What QubesDB lets a hostile dom0 write into a key; what is wrong only beside another key is left out."""
    more = hostile.KEYS[GLOBAL + leaf][0]
    values = [*hostile.HOSTILE.values(), *(value for name, value in more.items() if name != "its own")]
    return [value for value in values if b"\0" not in value and len(value) < 3072]


class Walk(WalkQube):
    """One qube, and everything that can happen to it.

    Args:
        seed: of all decisions.
        style: default-route style it starts with.
    """

    def __init__(self, seed: int, style: str) -> None:
        self.chance = random.Random(seed)
        super().__init__(Model({key: Value(value.encode()) for key, value in FIRST.items()}))
        self.reuses_numbers = self.chance.random() < 0.5
        if style == "gateway":
            self.toggle(GATEWAY_ROUTE)
        self.plug()
        self.start_agent()

    def step(self) -> None:
        """One of the things that happen to a qube, more or less as often as they do."""
        name = self.chance.choices(list(STEPS), list(STEPS.values()))[0]
        self.trail.append(name)
        getattr(self, name)()

    # --- dom0 --------------------------------------------------------------------------------------------------

    def write(self, key: str, value: bytes, good: bool = True) -> None:
        """One entry; while QubesDB is down dom0 keeps it, and the next start brings it."""
        self.tell(f"{key}={value[:40]!r}")
        self.model.keys[key] = Value(value, good)
        if self.model.served:
            self.appvm.write(key, value)
        self.model.changed(key[: key.index("-", 1) + 1] if key.startswith(GLOBAL) else "/net-config/")

    def remove(self, key: str) -> None:
        """One entry, or with a trailing slash all below."""
        self.tell(f"rm {key}")
        for each in [each for each in self.model.keys if each == key or (key.endswith("/") and each.startswith(key))]:
            del self.model.keys[each]
        if self.model.served:
            self.appvm.remove(key)
        self.model.changed(GLOBAL if key.startswith(GLOBAL) else "/net-config/")

    def some_key(self) -> tuple[str, str]:
        leaf = self.chance.choice(list(GOOD))
        own = leaf in PER_INTERFACE and OWN + "ip" in self.model.keys and self.chance.random() < 0.5
        return (OWN if own else GLOBAL) + leaf, leaf

    def write_good(self) -> None:
        key, leaf = self.some_key()
        self.write(key, self.chance.choice(GOOD[leaf]).encode())

    def write_hostile(self) -> None:
        key, leaf = self.some_key()
        self.write(key, self.chance.choice(hostile_values(leaf)), good=False)

    def write_empty(self) -> None:
        key, _ = self.some_key()
        self.write(key, b"")

    def remove_key(self) -> None:
        self.remove(self.some_key()[0])

    def heal(self) -> None:
        """dom0 puts right what is not, as its next change of provider would."""
        for key, value in list(self.model.keys.items()):
            if not value.good:
                self.write(key, self._right(key))

    def _right(self, key: str) -> bytes:
        leaf = key.rpartition("/")[2].removeprefix("qubes-")
        return MAC.encode() if leaf == "mac" else self.chance.choice(GOOD[leaf]).encode()

    def whole_set(self) -> None:
        """All entries anew, as at a change of provider, but with the interface there."""
        for key in FIRST:
            self.write(key, self._right(key))

    def own_set(self) -> None:
        leaves = list(PER_INTERFACE[: self.chance.choice((3, 6))])
        for leaf in self.chance.sample(leaves, len(leaves)):
            self.write(OWN + leaf, self.chance.choice(GOOD[leaf]).encode())

    def own_set_away(self) -> None:
        self.remove(OWN)

    def custom(self) -> None:
        if OWN + "custom" in self.model.keys:
            self.remove(OWN + "custom")
        else:
            self.write(OWN + "custom", self.chance.choice((b"", b"1")))
        # A permanent neighbour that goes or comes is no event the agent listens to, so it is one less to be lost.
        self.needs_hup = True

    def mac(self) -> None:
        spelling = self.chance.choice((MAC.encode(), MAC.upper().encode(), OTHER_MAC.encode(), b"", b"\n"))
        if not spelling:
            self.remove(GLOBAL + "mac")
            return
        bad = self.chance.choice(hostile_values("mac"))
        self.write(GLOBAL + "mac", bad if spelling == b"\n" else spelling, good=spelling != b"\n")

    def mac_back(self) -> None:
        if self.model.keys.get(GLOBAL + "mac") != Value(MAC.encode()):
            self.write(GLOBAL + "mac", MAC.encode())

    # --- the hypervisor ----------------------------------------------------------------------------------------

    def plug(self) -> None:
        if not self.model.plugged:
            late = self.chance.random() < 0.3
            self.attach(self.chance.choice(("eth0", "eth0", "enX0")), up=not late)
            if late:
                self.nap(0.1)
                self.carrier_back()

    def unplug(self) -> None:
        if self.model.plugged:
            self.tell(f"detach {self.vif}")
            self.appvm.unplug(self.vif)
            self.model.unplug()

    def change_provider(self) -> None:
        """In dom0's order: detach, write, attach."""
        self.unplug()
        if self.chance.random() < 0.5:
            self.whole_set()
        else:
            self.write_good()
        self.plug()

    def lose_carrier(self) -> None:
        if self.model.plugged:
            self.appvm.provider.wire(f"ip link set {self.vif} down")
            self.nap(0.05)
            self.carrier_back()

    def pause(self) -> None:
        """`qvm-pause`, and dom0 goes on meanwhile."""
        self.appvm.qube.pause()
        try:
            self.chance.choice((self.write_good, self.change_provider, self.unplug))()
        finally:
            self.appvm.qube.unpause()

    # --- the user ----------------------------------------------------------------------------------------------

    def link_down(self) -> None:
        if self.model.plugged and not self.model.removed:
            self.hand.run(f"ip link set {self.interface} down")
            self.model.downed()

    def link_up(self) -> None:
        if self.model.plugged and not self.model.removed:
            self.hand.run(f"ip link set {self.interface} up")

    def link_deleted(self) -> None:
        if self.model.plugged:
            self.hand.run(f"ip link delete {self.interface}")
            self.model.unplug()

    def rename(self) -> None:
        if self.model.plugged:
            self.wait_for_commands()  # they were given the old name
            self.rename_to({"eth0": "enX0", "enX0": "eth0"}[self.interface], down=self.chance.random() < 0.5)

    def add_foreign(self) -> None:
        each = self.chance.choice(list(FOREIGN))
        # Without any address the kernel removes all IPv4 routes and neighbours, whichever program made them.
        if self.model.plugged and not self.model.removed and each not in self.model.foreign:
            needed = {ANCHOR} - self.model.foreign if version_of(each) == 4 else set()
            self.make_foreign([*(needed - {each}), each])

    def remove_foreign(self) -> None:
        if self.model.foreign:
            chosen = self.chance.choice(sorted(self.model.foreign))
            held = [each for each in sorted(self.model.foreign) if version_of(each) == 4 and each != ANCHOR]
            self.take_foreign([*(held if chosen == ANCHOR else ()), chosen])

    def steal(self) -> None:
        """Another program removes something that we made."""
        asked = self.model.wanted().families
        ours: list[Object] = sorted(each for states in asked.values() if states for each in states[-1])
        if self.model.plugged and ours:
            chosen = self.chance.choice(ours)
            self.tell(" ".join(chosen))
            self.model.disturb(version_of(chosen))
            self.needs_hup |= chosen[0] == "neighbour"
            self.take_away(chosen)

    def overwrite(self) -> None:
        if self.overwrites < OVERWRITES:
            self.overwrites += 1
            text = f"# by hand {self.overwrites}\nnameserver 192.0.2.{self.overwrites}\n"
            link = self.chance.random() < 0.4
            self.replace_resolv_conf(LINK_TARGET if link else text, link=link)
            self.model.overwritten(("link", LINK_TARGET) if link else ("text", text))

    def toggle(self, flag: str = "") -> None:
        flag = flag or self.chance.choice((NO_DEFAULT, NO_DNS, GATEWAY_ROUTE))
        self.tell(flag)
        self.model.flags ^= {flag}
        self.appvm.qube.set_flag(flag, flag in self.model.flags)
        self.model.changed("flags")
        self.hang_up()

    # --- QubesDB and the agent ---------------------------------------------------------------------------------

    def stop_store(self) -> None:
        if self.model.served:
            self.model.served = False
            daemon = self.appvm.qube.store_daemon
            assert daemon is not None
            (daemon.kill if self.chance.random() < 0.5 else daemon.stop)()

    def restart_store(self) -> None:
        self.stop_store()
        self.start_store()

    def store_hangs(self) -> None:
        if self.model.served:
            daemon = self.appvm.qube.store_daemon
            assert daemon is not None
            daemon.signal(signal.SIGSTOP)
            try:
                self.chance.choice((self.hang_up, self.link_down, self.rename, self.unplug))()
                # Sometimes longer than the agent waits for an answer.
                self.nap(1.3 if self.chance.random() < 0.1 else 0.2)
            finally:
                daemon.signal(signal.SIGCONT)

    def kill_agent(self) -> None:
        if self.chance.random() < 0.6:  # in the middle of a pass
            leaf = self.chance.choice(("ip", "ip6", "gateway"))
            self.write(GLOBAL + leaf, self.chance.choice(GOOD[leaf]).encode())
            self.nap(0.012)
        self.agent.kill()
        self.model.disturb()
        if self.chance.random() < 0.3:
            self.write_good()
        self.start_agent(wait=self.chance.random() < 0.3)

    def restart_agent(self) -> None:
        self.await_ready()
        assert self.agent.stop() == 0, "SIGTERM"
        self.start_agent(wait=self.chance.random() < 0.3)

    def hang_up(self) -> None:
        """SIGHUP; before the agent is ready it would end a Python that has only just started."""
        self.needs_hup |= not self.ready
        if self.ready:
            self.agent.signal(signal.SIGHUP)

    # --- commands beside the agent -----------------------------------------------------------------------------

    def apply(self) -> None:
        self._beside("apply")

    def uplink_add(self) -> None:
        self._beside("uplink", "add", self.interface)

    def look(self) -> None:
        self._beside(self.chance.choice(("status", "plan", "check")))

    def _beside(self, *words: str) -> None:
        if self.model.served and not self.model.removed and len(self.commands) < 2:
            self.tell(" ".join(words))
            self.called += 1
            service = self.appvm.qube.spawn(f"command-{self.called}", PYTHON, "-m", "qubes_guestnet", *words)
            self.commands.append(service)
            if self.chance.random() < 0.5:  # it takes a while to start, and then to be in the middle of something
                for _ in range(3):
                    self.nap(0.08)
                    self.write_good()

    def uplink_remove(self) -> None:
        """What is done to it before the firewall goes away; `uplink add` brings it back."""
        self.wait_for_commands()
        model = self.model
        if model.plugged and model.served and not model.removed and model.wanted().known:
            # It takes down only what was configured, and whether the agent has come to that is a matter of time.
            self.appvm.qube.guestnet("uplink", "add", self.interface, check=False)
            done = self.appvm.qube.guestnet("uplink", "remove", self.interface)
            assert "down" in done.stdout, done
            model.downed()
            model.removed = True

    def uplink_back(self) -> None:
        """Someone asks for it again."""
        if self.model.removed and self.model.served:
            words = self.chance.choice((("apply",), ("uplink", "add", self.interface)))
            self.appvm.qube.guestnet(*words, check=False)
            self.model.removed = False
            self.model.changed()

    def nap(self, longest: float) -> None:
        """A moment of that length at most."""
        time.sleep(self.chance.uniform(0, longest))


# What happens, and how often.
STEPS: dict[str, float] = {
    "write_good": 22, "write_hostile": 8, "write_empty": 3, "remove_key": 4, "heal": 4, "whole_set": 2,
    "own_set": 3, "own_set_away": 2, "custom": 1.5, "mac": 1.5, "mac_back": 3,
    "plug": 12, "unplug": 3, "change_provider": 4, "lose_carrier": 1, "pause": 1,
    "link_down": 2, "link_up": 1, "link_deleted": 1, "rename": 2, "add_foreign": 4, "remove_foreign": 2, "steal": 6,
    "overwrite": 1.5, "toggle": 4,
    "stop_store": 0.7, "restart_store": 1.2, "store_hangs": 1,
    "kill_agent": 3, "restart_agent": 0.5, "hang_up": 2,
    "apply": 1, "uplink_add": 1, "look": 0.4, "uplink_remove": 1.5, "uplink_back": 1.5,
}  # fmt: skip
