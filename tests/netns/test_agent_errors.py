# SPDX-License-Identifier: GPL-2.0-or-later
"""Every error of every adapter, thrown at the running agent once: it survives, says so once, and heals (B146)."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest

from tests.support.eventually import eventually
from tests.support.guest import ENTRIES6, GATEWAY6, IP6, Guest
from tests.support.hosting import ENTRIES6 as PROVIDER6
from tests.support.hosting import Hosting
from tests.support.thrown import armed, throw, thrown

pytestmark = pytest.mark.behaviour("B146")

SYSTEM = "qubes_guestnet.system"
KERNEL = 'KernelError("thrown", errno.EIO)'
GONE = 'Vanished("thrown", errno.ENODEV)'
FILE = 'FileError("/thrown", OSError(errno.EIO, "thrown"))'
FULL = 'FileError("/thrown", OSError(errno.ENOSPC, "thrown: No space left on device"))'
RAW = 'OSError(errno.EMFILE, "thrown: Too many open files")'
SLOW = 'NftError("nft: thrown, no end within 10 s")'
REFUSED = 'Refused("nft: thrown")'
PROGRAM = 'ProgramError("thrown: no end within 5 s")'
STORE = 'StoreError("QubesDB: thrown")'
BUG = 'ValueError("thrown, which no adapter should raise")'

# What the provider's half asks.
PROVIDER = [
    *((f"{SYSTEM}.nft:tables", error) for error in (SLOW, RAW, BUG)),
    *((f"{SYSTEM}.nft_kernel:table_names", error) for error in (KERNEL, BUG)),
    *((f"{SYSTEM}.nft:named_set", error) for error in (SLOW,)),
    *((f"{SYSTEM}.nft_kernel:generation", error) for error in (KERNEL, RAW)),
    *((f"{SYSTEM}.nft_kernel:Events.drain", error) for error in (KERNEL, RAW)),
    *((f"{SYSTEM}.nft:end", error) for error in (SLOW, REFUSED)),
    *((f"{SYSTEM}.programs:start", error) for error in (PROGRAM, RAW)),
    *((f"{SYSTEM}.programs:finish", error) for error in (PROGRAM,)),
    *((f"{SYSTEM}.conntrack:purge", error) for error in (KERNEL, RAW)),
    *((f"{SYSTEM}.tunables:read", error) for error in (FILE, RAW)),
    *((f"{SYSTEM}.tunables:write", error) for error in (FILE, RAW)),
    *((f"{SYSTEM}.vifs:Folder.all", error) for error in (FILE,)),
    *((f"{SYSTEM}.vifs:Folder.load", error) for error in (FILE, RAW)),
    *((f"{SYSTEM}.vifs:Folder.save", error) for error in (FILE, FULL)),
    *((f"{SYSTEM}.vifs:Folder.names", error) for error in (FILE, RAW)),
    *((f"{SYSTEM}.hotplug_socket:Server.accept", error) for error in (RAW, BUG)),
    *((f"{SYSTEM}.services:provides", error) for error in (RAW,)),
    *((f"{SYSTEM}.netlink:Kernel.vifs", error) for error in (KERNEL, RAW)),
    *((f"{SYSTEM}.netlink:Kernel.link_named", error) for error in (KERNEL, GONE)),
    *((f"{SYSTEM}.outside:start", error) for error in (PROGRAM,)),
]
# What every pass asks.
EVERYWHERE = [
    *((f"{SYSTEM}.netlink:Kernel.links", error) for error in (KERNEL, RAW)),
    *((f"{SYSTEM}.netlink:Kernel.observe", error) for error in (KERNEL, GONE, BUG)),
    *((f"{SYSTEM}.netlink:Kernel.apply", error) for error in (KERNEL, GONE, RAW)),
    *((f"{SYSTEM}.netlink:Kernel.neighbour_state", error) for error in (KERNEL, RAW)),
    *((f"{SYSTEM}.netlink:Events.drain", error) for error in (KERNEL, RAW)),
    *((f"{SYSTEM}.netlink:Events.neighbours", error) for error in (KERNEL,)),
    *((f"{SYSTEM}.files:read", error) for error in (FILE, RAW)),
    *((f"{SYSTEM}.files:facts", error) for error in (FILE, RAW)),
    *((f"{SYSTEM}.files:publish", error) for error in (FILE, FULL, RAW)),
    *((f"{SYSTEM}.owned:Ledger.__enter__", error) for error in (FILE, RAW)),
    *((f"{SYSTEM}.owned:Ledger.save", error) for error in (FULL, RAW)),
    *((f"{SYSTEM}.standing:publish", error) for error in (FULL, RAW)),
    *((f"{SYSTEM}.systemd:notify", error) for error in (RAW,)),
    *((f"{SYSTEM}.sysctl:apply", error) for error in (PROGRAM, RAW)),
    *((f"{SYSTEM}.services:flags", error) for error in (RAW,)),
    *((f"{SYSTEM}.services:configured_style", error) for error in (FILE, 'ConfigError("/thrown: bad")')),
    *((f"{SYSTEM}.networkmanager:facts", error) for error in (FILE, RAW)),
    *((f"{SYSTEM}.networkmanager:profiles", error) for error in (FILE, RAW)),
    *((f"{SYSTEM}.qubesdb_direct:DirectStore.multiread", error) for error in (STORE, RAW)),
    *((f"{SYSTEM}.qubesdb_direct:DirectWatches.drain", error) for error in (STORE, RAW)),
    *((f"{SYSTEM}.qubesdb:connect", error) for error in (STORE, RAW)),
    *((f"{SYSTEM}.qubesdb:connect_watches", error) for error in (STORE, RAW)),
]


def told(log: str) -> int:
    """How often the agent said it; QubesDB's outage is told with more words around it."""
    return sum("thrown" in line and "asker" not in line for line in log.splitlines())


def survived(pid: int, running: Callable[[], bool], log: Callable[[], str]) -> None:
    assert running(), log()
    assert pid
    assert "Traceback" not in log()
    assert told(log()) <= 1, log()


@pytest.mark.parametrize(("place", "error"), PROVIDER)
def test_an_error_of_what_a_provider_asks(place: str, error: str) -> None:
    host = Hosting(PROVIDER6, agent=False)
    host.qube.start_agent(env=armed(host.qube, place, error))
    host.attach(4)
    eventually(host.forwards, trouble=host.trouble)
    pid = host.agent.pid
    throw(host.qube)
    host.write("/qubes-netvm-secondary-dns", "10.139.1.3")
    host.resolv_conf("192.168.0.3")
    host.agent.signal(signal.SIGHUP)
    host.call("online", host.plug_bare(5))
    host.unplug(host.plug_bare(6))
    if not thrown(host.qube, 2):
        host.qube.wire("ip link add vif8.0 address fe:ff:ff:ff:ff:ff type veth peer name far8")  # a stranger
        host.nft("flush ruleset")
        host.agent.signal(signal.SIGHUP)
    assert thrown(host.qube, 20), f"the adapter was not asked\n{host.trouble()}"

    def healed() -> bool:
        return (
            host.forwards(4)
            and host.forwards(6)
            and "error \n" in host.qube.read("/run/qubes-guestnet/status")
            and all("192.168.0.3" in rule or "10.139.1." not in rule for rule in host.rules("ip", "dnat-dns"))
            and bool(host.rules("ip", "dnat-dns"))
            and {"vif4.0 10.137.0.4"} <= host.elements("allowed")
            and host.agent.running
        )

    eventually(healed, 30, trouble=host.trouble)
    assert host.call("online", host.plug_bare(7)).returncode == 0
    assert "vif7.0 10.137.0.7" in host.elements("allowed")
    survived(pid, lambda: host.agent.running and host.agent.pid == pid, host.agent.output)


@pytest.mark.parametrize(("place", "error"), EVERYWHERE)
def test_an_error_of_what_every_pass_asks(place: str, error: str) -> None:
    guest = Guest(ENTRIES6)
    agent = guest.qube.start_agent(env=armed(guest.qube, place, error))
    guest.soon_configured(ip6=f"{IP6}/128", gateway6=GATEWAY6)
    pid = agent.pid
    throw(guest.qube)
    guest.write("/qubes-primary-dns", "10.139.1.9")
    guest.write("/qubes-ip", "10.137.0.6")
    guest.qube.wire("ip link set eth0 down")
    if not thrown(guest.qube, 2):
        guest.unplug()
        guest.plug()
        guest.qube.store_daemon.kill()
        guest.qube.start_store({**ENTRIES6, "/qubes-ip": "10.137.0.6", "/qubes-primary-dns": "10.139.1.9"})
    assert thrown(guest.qube, 20), "the adapter was not asked"
    guest.soon_configured(ip="10.137.0.6/32", ip6=f"{IP6}/128", gateway6=GATEWAY6, servers=None)
    eventually(lambda: "error \n" in guest.qube.read("/run/qubes-guestnet/status"), 30, trouble=guest.log)
    eventually(lambda: "10.139.1.9" in guest.qube.read("/etc/resolv.conf"), trouble=guest.log)
    survived(pid, lambda: agent.running and agent.pid == pid, guest.log)
