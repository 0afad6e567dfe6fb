# SPDX-License-Identifier: GPL-2.0-or-later
"""Every error of every adapter, thrown at the running agent once: it survives, says so once, and heals (B146)."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest

from tests.support.eventually import eventually
from tests.support.faults.adapter_errors import EVERYWHERE, PROVIDER
from tests.support.faults.thrown import armed, throw, thrown
from tests.support.qubes.appvm import ENTRIES6, GATEWAY6, IP6, AppVm
from tests.support.qubes.provider import ENTRIES6 as PROVIDER6
from tests.support.qubes.provider import Provider

pytestmark = pytest.mark.behaviour("B146")


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
    host = Provider(PROVIDER6, agent=False)
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
    appvm = AppVm(ENTRIES6)
    agent = appvm.qube.start_agent(env=armed(appvm.qube, place, error))
    appvm.soon_configured(ip6=f"{IP6}/128", gateway6=GATEWAY6)
    pid = agent.pid
    throw(appvm.qube)
    appvm.qube.write("/etc/resolv.conf", "nameserver 192.0.2.53\n")  # another program's, which has no tunnel
    appvm.write("/qubes-primary-dns", "10.139.1.9")
    appvm.write("/qubes-ip", "10.137.0.6")
    appvm.qube.wire("ip link set eth0 down")
    if not thrown(appvm.qube, 2):
        appvm.unplug()
        appvm.plug()
        appvm.qube.store_daemon.kill()
        appvm.qube.start_store({**ENTRIES6, "/qubes-ip": "10.137.0.6", "/qubes-primary-dns": "10.139.1.9"})
    assert thrown(appvm.qube, 20), "the adapter was not asked"
    appvm.soon_configured(ip="10.137.0.6/32", ip6=f"{IP6}/128", gateway6=GATEWAY6, servers=None)
    eventually(lambda: "error \n" in appvm.qube.read("/run/qubes-guestnet/status"), 30, trouble=appvm.log)
    eventually(lambda: "10.139.1.9" in appvm.qube.read("/etc/resolv.conf"), trouble=appvm.log)
    survived(pid, lambda: agent.running and agent.pid == pid, appvm.log)
