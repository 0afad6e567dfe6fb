# SPDX-License-Identifier: GPL-2.0-or-later
"""Errors of adapters that only some qubes ask, thrown at the running agent: it survives and heals (B146)."""

from __future__ import annotations

import itertools
import shutil
import signal
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from qubes_guestnet.core.hooks import HOOKS as HOOK_PATHS
from qubes_guestnet.lab.daemons import Daemons
from qubes_guestnet.lab.qube import Qube, Service
from tests.netns.test_agent_errors import survived
from tests.netns.test_provider_resolved import leads
from tests.netns.test_resolved import knows
from tests.support.eventually import eventually
from tests.support.faults import adapter_errors as table
from tests.support.faults.thrown import armed, throw, thrown
from tests.support.needs import needs
from tests.support.programs import qubesdb_standin
from tests.support.qubes.appvm import DNS, ENTRIES6, GATEWAY6, IP6, AppVm
from tests.support.qubes.provider import ENTRIES6 as PROVIDER6
from tests.support.qubes.provider import ROUTER, UPLINK, Provider

pytestmark = pytest.mark.behaviour("B146")

SECOND, VPN = "198.51.100.52", "198.51.100.60"
SYSCTL = "/usr/lib/systemd/systemd-sysctl"
WITH6 = {"ip6": f"{IP6}/128", "gateway6": GATEWAY6}
thrown_at = pytest.mark.parametrize


def healthy(agent: Service, pid: int, status: Callable[[], str], log: Callable[[], str]) -> None:
    """The error is over, told at most once, and the agent is the one that it was."""
    eventually(lambda: "error \n" in status(), 30, trouble=log)
    survived(pid, lambda: agent.running and agent.pid == pid, log)


def guest_healthy(appvm: AppVm, agent: Service, pid: int) -> None:
    healthy(agent, pid, lambda: appvm.qube.read("/run/qubes-guestnet/status"), appvm.log)


def host_healthy(host: Provider, pid: int) -> None:
    healthy(host.agent, pid, lambda: host.qube.read("/run/qubes-guestnet/status"), host.agent.output)


def also(appvm: AppVm, environment: Mapping[str, str], text: str) -> None:
    """Run this before the agent begins."""
    path = f"{environment['PYTHONPATH'].partition(':')[0]}/sitecustomize.py"
    appvm.qube.write(path, appvm.qube.read(path) + text)


def asked(happened: bool, trouble: Callable[[], str]) -> None:
    assert happened, f"the adapter was not asked\n{trouble()}"


def asked_after(
    qube: Qube, change: Callable[[str], object], values: tuple[str, str], trouble: Callable[[], str]
) -> str:
    """Change something to and fro until the adapter is asked; return the value then.

    A message of the bus that arrives during a call is read by that call: on a busy machine, where a pass is still under
    way, one change may be followed without a call of this adapter.
    """
    alternating = itertools.cycle(values)

    def one() -> str:
        value = next(alternating)
        change(value)
        return value if thrown(qube, 3) else ""

    return eventually(one, 30, "the adapter is asked", trouble)


# --- a provider ------------------------------------------------------------------------------------------------------


@thrown_at(("place", "error"), table.FIRST)
def test_an_error_in_the_first_passes_of_a_provider(place: str, error: str) -> None:
    host = Provider(PROVIDER6, agent=False)
    environment = armed(host.qube, place, error)
    host.nft("add table ip others; add chain ip others f { type filter hook forward priority 5; }")
    throw(host.qube)
    host.qube.start_agent(env=environment)
    pid = host.agent.pid
    asked(thrown(host.qube, 10), host.trouble)
    eventually(lambda: host.forwards(4) and host.forwards(6), 30, trouble=host.trouble)
    host.guarded()
    assert host.call("online", host.plug_bare(4)).returncode == 0, host.trouble()
    assert "vif4.0 10.137.0.4" in host.elements("allowed")
    whole = host.settled()
    host.nft("flush ruleset")
    eventually(lambda: host.settled() == whole, 30, trouble=host.trouble)
    host_healthy(host, pid)


@thrown_at(("place", "error"), table.AGAIN)
def test_an_error_while_the_role_of_a_provider_goes_and_comes(place: str, error: str) -> None:
    host = Provider(PROVIDER6, agent=False)
    host.qube.start_agent(env=armed(host.qube, place, error))
    pid = host.agent.pid
    host.attach(4)
    eventually(lambda: host.forwards(4), trouble=host.trouble)
    host.guarded()
    throw(host.qube)
    host.qube.set_flag("qubes-network", False)
    host.agent.signal(signal.SIGHUP)
    eventually(lambda: not host.forwards(4), 30, trouble=host.trouble)
    eventually(lambda: not guard(host), 30, trouble=host.trouble)
    host.qube.set_flag("qubes-network", True)
    host.agent.signal(signal.SIGHUP)
    asked(thrown(host.qube, 10), host.trouble)
    eventually(lambda: host.forwards(4) and host.forwards(6), 30, trouble=host.trouble)
    host.guarded()
    host_healthy(host, pid)


def guard(host: Provider) -> bool:
    done = host.oracle.run("nft", "list", "tables", check=False)
    return "qubes-guard" in done.stdout


@thrown_at(("place", "error"), table.UPSTREAM)
def test_an_error_of_what_follows_the_servers_of_resolved(place: str, error: str) -> None:
    needs("dbus-daemon", "/lib/systemd/systemd-resolved")
    host = Provider(agent=False, servers=["127.0.0.53"])
    daemons = Daemons(host.qube)
    daemons.dbus()
    daemons.resolved()
    daemons.resolvectl("dns", UPLINK, ROUTER)
    host.qube.start_agent(env=armed(host.qube, place, error))
    pid = host.agent.pid
    leads(host, ROUTER)
    throw(host.qube)
    change = lambda server: daemons.resolvectl("dns", UPLINK, server)  # noqa: E731
    server = asked_after(host.qube, change, (SECOND, VPN), host.trouble)
    eventually(lambda: all(server in rule for rule in host.rules("ip", "dnat-dns")), 30, trouble=host.trouble)
    leads(host, server)
    daemons.resolvectl("dns", UPLINK, ROUTER)
    leads(host, ROUTER)
    host_healthy(host, pid)


@thrown_at(("place", "error"), table.HOOKS)
def test_an_error_of_what_starts_a_users_hook(place: str, error: str) -> None:
    appvm = AppVm({**ENTRIES6, "/qubes-netvm-network": "10.137.0.0"})
    appvm.qube.write(HOOK_PATHS[0], "#!/bin/sh\nip -o -4 address show dev eth0 >> /rw/hook.log\n")
    appvm.qube.path(HOOK_PATHS[0]).chmod(0o755)
    agent = appvm.agent(env=armed(appvm.qube, place, error))
    pid = agent.pid
    eventually(lambda: "10.137.0.5/32" in appvm.qube.read("/rw/hook.log"), trouble=appvm.log)
    throw(appvm.qube)
    appvm.write("/qubes-ip", "10.137.0.6")
    asked(thrown(appvm.qube, 10), appvm.log)
    eventually(lambda: "10.137.0.6/32" in appvm.qube.read("/rw/hook.log"), 30, trouble=appvm.log)
    appvm.soon_configured(ip="10.137.0.6/32", **WITH6)
    guest_healthy(appvm, agent, pid)
    assert appvm.qube.read("/rw/hook.log").count("10.137.0.6/32") == 1


# --- any qube --------------------------------------------------------------------------------------------------------


@thrown_at(
    ("place", "error", "library"),
    [*((*row, True) for row in table.LINK_NAMES), *((*row, False) for row in table.LINK_NAMES_BY_COMMAND)],
)
def test_an_error_of_what_tells_resolved_the_servers(place: str, error: str, library: bool) -> None:
    needs("dbus-daemon", "/lib/systemd/systemd-resolved")
    appvm = AppVm(ENTRIES6)
    daemons = Daemons(appvm.qube)
    daemons.dbus()
    daemons.resolved()
    environment = armed(appvm.qube, place, error)
    if not library:
        also(appvm, environment, "import sys\nsys.modules['jeepney'] = None\n")
    agent = appvm.agent(env=environment)
    pid = agent.pid
    knows(appvm, daemons)
    throw(appvm.qube)
    change = lambda server: appvm.write("/qubes-secondary-dns", server)  # noqa: E731
    server = asked_after(appvm.qube, change, ("10.139.1.3", "10.139.1.4"), appvm.log)
    eventually(lambda: server in daemons.resolvectl("dns", "eth0"), 30, trouble=appvm.log)
    knows(appvm, daemons, (DNS, server))
    appvm.soon_configured(servers=(DNS, server), **WITH6)
    guest_healthy(appvm, agent, pid)


@thrown_at(("place", "error"), table.FIRST_PLAIN)
def test_an_error_at_the_start_in_a_qube_that_provides_nothing(place: str, error: str) -> None:
    appvm = AppVm(ENTRIES6)
    appvm.qube.guestnet("rules", "load")
    environment = armed(appvm.qube, place, error)
    throw(appvm.qube)
    agent = appvm.agent(env=environment)
    pid = agent.pid
    asked(thrown(appvm.qube, 10), appvm.log)
    appvm.soon_configured(**WITH6)
    appvm.write("/qubes-ip", "10.137.0.6")
    appvm.soon_configured(ip="10.137.0.6/32", **WITH6)
    appvm.qube.run("nft", "flush", "ruleset")  # by another program
    tables = lambda: appvm.oracle.run("nft", "list", "tables").stdout  # noqa: E731
    eventually(lambda: "table ip qubes" in tables(), trouble=appvm.log)
    appvm.qube.write("/etc/resolv.conf", "nameserver 192.0.2.53\n")
    appvm.soon_configured(ip="10.137.0.6/32", **WITH6)
    guest_healthy(appvm, agent, pid)


@thrown_at(("place", "error"), table.BINDING)
def test_an_error_of_the_binding_of_qubesdb(place: str, error: str) -> None:
    appvm = AppVm(ENTRIES6)
    environment = armed(appvm.qube, place, error)
    folder = environment["PYTHONPATH"].partition(":")[0]
    shutil.copy(Path(qubesdb_standin.__file__), appvm.qube.path(f"{folder}/qubesdb.py"))
    agent = appvm.agent(env=environment)
    pid = agent.pid
    appvm.soon_configured(**WITH6)
    throw(appvm.qube)
    appvm.write("/qubes-ip", "10.137.0.6")
    asked(thrown(appvm.qube, 10), appvm.log)
    appvm.soon_configured(ip="10.137.0.6/32", **WITH6)
    appvm.write("/qubes-ip", "10.137.0.7")
    appvm.soon_configured(ip="10.137.0.7/32", **WITH6)
    guest_healthy(appvm, agent, pid)


@thrown_at(("place", "error"), table.MONITOR)
def test_an_error_of_what_serves_a_follower_of_the_journal(place: str, error: str) -> None:
    appvm = AppVm(ENTRIES6)
    agent = appvm.agent(env=armed(appvm.qube, place, error))
    pid = agent.pid
    appvm.soon_configured(**WITH6)
    following = appvm.qube.spawn("monitor", *appvm.program("monitor"))
    eventually(lambda: "following" in following.output(), 20, trouble=appvm.log)
    throw(appvm.qube)
    appvm.qube.spawn("another", *appvm.program("monitor"))
    appvm.write("/qubes-ip", "10.137.0.6")
    asked(thrown(appvm.qube, 10), appvm.log)
    appvm.soon_configured(ip="10.137.0.6/32", **WITH6)
    appvm.write("/qubes-ip", "10.137.0.7")
    eventually(lambda: "10.137.0.7/32" in following.output(), trouble=appvm.log)
    guest_healthy(appvm, agent, pid)


@thrown_at(("place", "error"), table.HANGING)
def test_an_error_while_a_program_that_hangs_is_ended(place: str, error: str) -> None:
    appvm = AppVm(ENTRIES6)
    needs(SYSCTL)
    agent = appvm.agent(env=armed(appvm.qube, place, error))
    pid = agent.pid
    appvm.soon_configured(**WITH6)
    appvm.qube.write("/run/lab/hangs", "#!/bin/sh\necho $$ > /run/lab/hung\nexec sleep 600\n")
    appvm.qube.path("/run/lab/hangs").chmod(0o755)
    appvm.qube.run("mount", "--bind", "/run/lab/hangs", SYSCTL)
    throw(appvm.qube)
    appvm.qube.wire("ip link set eth0 down")
    asked(thrown(appvm.qube, 20), appvm.log)
    appvm.qube.run("umount", "--lazy", SYSCTL)
    appvm.soon_configured(**WITH6)
    guest_healthy(appvm, agent, pid)
    eventually(lambda: not running_in(appvm, "sleep\0600"), trouble=appvm.log)


def running_in(appvm: AppVm, words: str) -> list[str]:
    """Processes of the qube with these words on their command line, stopped ones too."""
    listed = appvm.qube.run("sh", "-c", "grep -alF 'sleep' /proc/[0-9]*/cmdline || :").stdout.split()
    return [path for path in listed if appvm.qube.run("cat", path, check=False).stdout.startswith(words)]
