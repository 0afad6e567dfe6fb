# SPDX-License-Identifier: GPL-2.0-or-later
"""The kinds of qubes that have both packages, ours and the stand-in for core-agent's: what each is booted with."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from tests.support.eventually import eventually
from tests.support.machines import client
from tests.support.machines.client import Client
from tests.support.machines.core_agent import HARDENING, USER_SCRIPT
from tests.support.machines.machine import MAC, Machine, Mounts
from tests.support.packets.losses import every_packet_returns

FORWARDING = ("/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/ipv6/conf/all/forwarding")
ENTRIES = {
    "/qubes-mac": MAC,
    "/qubes-ip": "10.137.0.7",
    "/qubes-netmask": "255.255.255.255",
    "/qubes-gateway": "10.138.1.2",
    "/qubes-ip6": "fd09:24ef:4179::a89:7",
    "/qubes-gateway6": "fd09:24ef:4179::a8a:102",
    "/qubes-primary-dns": "10.139.1.1",
    "/qubes-secondary-dns": "10.139.1.2",
}
NETVM = {
    "/qubes-netvm-network": "10.138.7.9",
    "/qubes-netvm-netmask": "255.255.255.255",
    "/qubes-netvm-gateway": "10.138.7.9",
    "/qubes-netvm-primary-dns": "10.139.1.1",
    "/qubes-netvm-secondary-dns": "10.139.1.2",
}
UNIT, RULES, WAIT = "qubes-guestnet.service", "qubes-guestnet-rules.service", "qubes-guestnet-wait-uplink.service"
UPLINK, BARRIER = "qubes-network-uplink@eth0.service", "qubes-network-uplink.service"
# Of each unit what people do with it, and what has to be said to have everything as it was.
TREATMENTS = (
    (f"restart {UNIT}",),
    (f"stop {UNIT}", f"start {UNIT}"),
    (f"reload {UNIT}",),
    (f"restart {RULES}",),
    (f"reload {RULES}",),
    (f"stop {RULES}", f"start {UNIT}"),
    ("restart qubes-antispoof.service",),
    ("stop qubes-antispoof.service", f"start {UNIT}"),
    ("restart qubes-iptables.service",),
    (f"restart {WAIT}",),
    ("daemon-reload",),
    ("daemon-reexec",),
    ("isolate multi-user.target",),
)
OF_AN_UPLINK = ((f"restart {BARRIER}",), (f"restart {UPLINK}",))
SERVER, OUTSIDE = "10.139.1.1", "192.0.2.80"
CARD, CARD_MAC, CARD_ADDRESS = "ens6", "52:54:00:12:34:56", "198.51.100.2"
CARD_PROFILE = f"""\
[connection]
id=card
type=ethernet
interface-name={CARD}

[ipv4]
method=manual
address1={CARD_ADDRESS}/32
route1=0.0.0.0/0

[ipv6]
method=disabled
"""
# What was forwarded while the first user script ran, for two seconds from when an agent would have begun to.
SAMPLED = "/run/while-the-script-ran"
# One word for each time that it ran.
RAN = "/run/the-script-ran"
# What it has the firewall refuse is not refused before it has run.
REFUSED = "192.0.2.81"
SCRIPT = f"""\
#!/bin/sh
echo ran >>{RAN}
if [ -e {SAMPLED} ] || [ ! -e /usr/bin/qubes-guestnet ]; then
    sleep 0.5
else
    for n in $(seq 200); do
        ! systemctl is-active --quiet qubes-guestnet.service || break
        sleep 0.1
    done
    for n in $(seq 20); do
        cat {" ".join(FORWARDING)} >>{SAMPLED}
        sleep 0.1
    done
fi
nft insert rule ip qubes-firewall forward ip daddr {REFUSED} counter drop
"""


# A user's change in core-agent's file.
USERS_CHOICE = r"net.ipv4.conf.\*.secure_redirects"


class Kind(NamedTuple):
    """One kind of qube.

    Args:
        role: AppVM, ProxyVM or NetVM.
        networkmanager: it is installed, and its service is on.
        ours_first: our package was installed before core-agent's.
    """

    role: str
    networkmanager: bool
    ours_first: bool

    @property
    def name(self) -> str:
        """For the test's own name."""
        return f"{self.role}-{'nm' if self.networkmanager else 'plain'}-{'ours' if self.ours_first else 'theirs'}-first"

    @property
    def provides(self) -> bool:
        """It gives network to others."""
        return self.role != "AppVM"

    @property
    def uplink(self) -> bool:
        """It gets its network from another qube."""
        return self.role != "NetVM"

    @property
    def entries(self) -> dict[str, str]:
        """QubesDB at boot."""
        return {**(ENTRIES if self.uplink else {}), **(NETVM if self.provides else {})}

    @property
    def flags(self) -> tuple[str, ...]:
        """Its services."""
        provider = ("qubes-network", "qubes-firewall") if self.provides else ()
        hardened = ("harden-network-interfaces",) if self.hardened else ()
        return (*provider, *hardened, *(("network-manager",) if self.networkmanager else ()))

    @property
    def hardened(self) -> bool:
        """The service harden-network-interfaces is on."""
        return self.role == "ProxyVM"

    def prepare(self, mounts: Mounts, root: Path) -> None:
        """What belongs to this kind alone, into a root that is not running."""
        tree = f"{root}/tree"
        if self.provides:
            client.put_xenstore(mounts, root)
            script = f"{tree}{USER_SCRIPT}"
            mounts.run(f"mkdir -p {Path(script).parent}; cat >{script} <<'END'\n{SCRIPT}END\nchmod +x {script}")
        if self.hardened:
            mounts.run(f"sed -i 's/^{USERS_CHOICE} .*/{USERS_CHOICE} = 1/' {tree}{HARDENING}")
        if self.networkmanager and not self.uplink:
            profile = f"{tree}/etc/NetworkManager/system-connections/card.nmconnection"
            mounts.run(f"cat >{profile} <<'END'\n{CARD_PROFILE}END\nchmod 600 {profile}")

    def boot(self, mounts: Mounts, root: Path, *, plugged: bool = True) -> Machine:
        """Boot it, with its interface or without."""
        wire = ("eth0", MAC) if self.uplink else (CARD, CARD_MAC)
        return Machine(mounts, root, self.role.lower(), self.entries, flags=self.flags, plugged=plugged, wire=wire)


def cells(*, flipped: bool) -> tuple[Kind, ...]:
    """All six, each in one order of installation; flipped, in the other one."""
    orders = {"AppVM": True, "ProxyVM": False, "NetVM": True}
    return tuple(
        Kind(kind, networkmanager, first ^ networkmanager ^ flipped)
        for kind, first in orders.items()
        for networkmanager in (False, True)
    )


class Qube:
    """One kind of qube, running, and what belongs to it."""

    def __init__(self, mounts: Mounts, root: Path, kind: Kind, *, plugged: bool = True) -> None:
        self.mounts, self.root, self.kind = mounts, root, kind
        self.machine = kind.boot(mounts, root, plugged=plugged)
        self.stack = ExitStack()
        self.behind: Client | None = None

    def reboot(self) -> None:
        """The same disk, from the start."""
        self.close()
        self.machine = self.kind.boot(self.mounts, self.root)

    def close(self) -> None:
        """Nothing of it is left but its disk."""
        self.stack.close()
        self.behind = None
        self.machine.close()

    @property
    def target(self) -> str:
        """What answers its own packets."""
        return SERVER if self.kind.uplink else OUTSIDE

    def configured(self) -> bool:
        """The interface that it has, be it dom0's or a card of its own."""
        name, address = ("eth0", "10.137.0.7/32") if self.kind.uplink else (CARD, f"{CARD_ADDRESS}/32")
        found = self.machine.inside.addresses(name)
        return address in found and self.machine.inside.is_up(name)

    def forwards(self) -> list[str]:
        """Whether it forwards IPv4 and IPv6, as the kernel says it."""
        return self.machine.run("cat", *FORWARDING).split()

    def noted(self, path: str) -> list[str]:
        """The words in a file there; none while it is not there."""
        return self.machine.run("sh", "-c", f"cat {path} 2>/dev/null || :").split()

    def told(self) -> str:
        """What failed, and the end of the journal."""
        return self.machine.jobs() + self.machine.journal("*")[-20000:]

    def systemctl(self, words: str) -> None:
        """Have systemd do something."""
        self.machine.run("systemctl", *words.split())

    @contextmanager
    def nothing_is_lost(self, what: str, *, forwarded: bool = True) -> Iterator[None]:
        """Not one of its own packets, nor, if they are to be forwarded meanwhile, of the qube behind it."""
        with ExitStack() as stack:
            stack.enter_context(every_packet_returns(self.machine.network, self.target, what))
            if self.behind is not None and forwarded:
                stack.enter_context(self.behind.every_packet_returns(OUTSIDE, what))
            yield
            eventually(self._has_no_jobs, 60, f"the end of {what}", self.told)

    def _has_no_jobs(self) -> bool:
        """Not all that a command of systemctl causes has ended when the command has."""
        return self.machine.run("systemctl", "list-jobs", "--no-legend", "--plain") in ("", "No jobs running.")

    def dpkg(self, *words: str) -> str:
        """Run dpkg, which is asked nothing; what it says."""
        return self.machine.run("env", "DEBIAN_FRONTEND=noninteractive", "dpkg", *words, check=False)

    def give(self, package: Path) -> str:
        """Put a file into the running qube; its path there."""
        target = f"/var/tmp/{package.name}"
        with package.open("rb") as data:
            subprocess.run([*self.machine.inside.prefix, "sh", "-c", f"cat >{target}"], stdin=data, check=True)
        return target

    def wire(self) -> None:
        """What is beyond: the world, and for a provider a qube behind it."""
        router = self.machine.router
        source = ENTRIES["/qubes-ip"] if self.kind.uplink else CARD_ADDRESS
        for address in (OUTSIDE, REFUSED, ENTRIES["/qubes-gateway"]):
            router.run("ip", "address", "replace", f"{address}/32", "dev", "lo")
        router.run("ip", "route", "replace", f"{source}/32", "dev", "vif4.0")
        if not self.kind.uplink and not self.kind.networkmanager:
            for words in ("link set {0} up", "address replace {1}/32 dev {0}", "route replace default dev {0}"):
                self.machine.inside.run("ip", *words.format(CARD, CARD_ADDRESS).split())
        if self.kind.provides and self.behind is None:
            self.behind = Client(self.machine, 4)
            self.stack.callback(self.behind.close)
            self.behind.plug()
            self.behind.hotplug()
