# SPDX-License-Identifier: GPL-2.0-or-later
"""The name look-up under systemd: started by a request of root alone, in its sandbox, and gone when it is idle."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.eventually import eventually
from tests.support.machines.machine import Machine, Mounts, end, line_of, spawn
from tests.support.machines.packages import TREE
from tests.system.test_boot import ENTRIES, UNIT, configured

SERVICE, SOCKET = "qubes-guestnet-names.service", "qubes-guestnet-names.socket"
PATH = "/run/qubes-guestnet/names.sock"
LIMIT = 1.2
# In the router's namespace, at the address of the virtual DNS: a server that answers queries.
SERVE = """\
import time
from tests.support.programs.name_server import Server
servers = [Server("10.139.1.1"), Server("10.139.1.2", says="good")]
print("ready", flush=True)
time.sleep(3600)
"""
ASK = """\
import ipaddress, select, sys
from qubes_guestnet.core import endpoint
from qubes_guestnet.core.firewall.name_messages import Question, Request
from qubes_guestnet.errors import GuestnetError
from qubes_guestnet.system.names_client import LookUp
servers = endpoint.of(tuple(map(ipaddress.ip_address, sys.argv[2].split(","))))
try:
    look_up = LookUp(sys.argv[1], Request(servers, tuple(Question(4, name) for name in sys.argv[3:])))
    poll = select.poll()
    poll.register(look_up.fileno(), select.POLLIN)
    while not look_up.ended:
        poll.poll(int(look_up.seconds_left() * 1000))
        for answer in look_up.read():
            print(answer.question.name, answer.kind, *answer.addresses, answer.reason)
except GuestnetError as error:
    print(error)
"""


@pytest.fixture(scope="module")
def qube(mounts: Mounts, base: Path, plain: Path, installed: Path) -> Iterator[Machine]:
    machine = Machine(mounts, mounts.root(base, plain, installed), "names", ENTRIES)
    command = [*machine.router.prefix, "env", f"PYTHONPATH={TREE}", sys.executable, "-c", SERVE]
    server = spawn(*command)
    try:
        assert line_of(server) == "ready"
        eventually(lambda: configured(machine), 60, "the network", machine.jobs)
        machine.router.run("ip", "route", "replace", ENTRIES["/qubes-ip"], "dev", "vif4.0")
        yield machine
    finally:
        end(server)
        machine.close()


def ask(qube: Machine, *names: str, user: str = "", servers: str = "10.139.1.1") -> list[str]:
    """What the agent's end is told, in lines."""
    prefix = ["setpriv", f"--reuid={user}", "--clear-groups"] if user else []
    said = qube.run(*prefix, "/usr/bin/python3", "-I", "-c", ASK, PATH, servers, *names, check=False)
    return sorted(line.strip() for line in said.splitlines())


def times(qube: Machine) -> int:
    """How often the service has been started."""
    return qube.journal(SERVICE).count("Started ")


def test_a_qube_without_a_rule_by_name_never_starts_it(qube: Machine) -> None:
    assert qube.property(SOCKET, "ActiveState") == "active"
    assert qube.inside.run("systemctl", "--quiet", "is-enabled", SOCKET, check=False).returncode == 0
    assert qube.property(SERVICE, "ActiveState") == "inactive"
    assert qube.property(SERVICE, "ActiveEnterTimestampMonotonic") == "0"
    assert qube.run("systemctl", "--failed", "--no-legend", "--plain") == "", qube.jobs()


def test_a_request_starts_it_and_has_its_answers(qube: Machine) -> None:
    names = ("good.hostile.test", "missing.hostile.test", "hundred.hostile.test", "localhost")
    assert ask(qube, *names) == [
        "good.hostile.test addresses 192.0.2.1",
        f"hundred.hostile.test part {' '.join(f'198.18.0.{number}' for number in range(64))}",
        "localhost refused",
        "missing.hostile.test nxdomain",
    ], qube.journal(SERVICE)
    assert ask(qube, "servfail.hostile.test", servers="10.139.1.1,10.139.1.2") == [
        "servfail.hostile.test addresses 192.0.2.1"
    ]
    assert qube.property(SERVICE, "ActiveState") == "active"


def test_its_sandbox_holds(qube: Machine) -> None:
    ask(qube, "good.hostile.test")
    assert qube.exposure(SERVICE) <= LIMIT
    pid = qube.property(SERVICE, "MainPID")
    status = qube.run("cat", f"/proc/{pid}/status")
    fields = dict(line.split(":\t", 1) for line in status.splitlines())
    none = "0" * 16
    capabilities = {name: fields[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")}
    assert capabilities == dict.fromkeys(capabilities, none)
    assert (fields["NoNewPrivs"], fields["Seccomp"], fields["Threads"]) == ("1", "2", "1")
    assert all(61184 <= int(user) <= 65519 for user in fields["Uid"].split()), "a user of its own (systemd.exec(5))"
    view = ["nsenter", "-t", pid, "--mount"]
    assert "Read-only" in qube.run(*view, "touch", "/usr/touched", check=False)
    assert "Permission denied" in qube.run(
        *view, "setpriv", "--reuid=65000", "--clear-groups", "ls", "/run/qubes-guestnet", check=False
    )
    # The socket it was handed, its two streams and the event loop's own: no file, and no other socket.
    kinds = {
        line.split(" -> ")[1].partition(":")[0] for line in qube.run("ls", "-l", f"/proc/{pid}/fd").splitlines()[1:]
    }
    assert kinds <= {"socket", "anon_inode", "/dev/null"}, kinds


def test_the_kernel_is_told_what_it_may_not_reach(qube: Machine) -> None:
    """Where it has the filter, BPF in a control group; the program itself sees to it everywhere (tests/netns)."""
    denied = {"::1/128", "ff00::/8", "127.0.0.0/8", "224.0.0.0/4"}
    assert set(qube.property(SERVICE, "IPAddressDeny").split()) == denied
    assert ask(qube, "good.hostile.test", servers="127.0.0.1,::1") == ["good.hostile.test failed unreachable"]


def test_other_users_are_refused(qube: Machine) -> None:
    assert qube.run("stat", "--format=%a %U", PATH) == "600 root"
    (line,) = ask(qube, "good.hostile.test", user="65534")
    assert line == f"{PATH}: Permission denied; run as root"
    # By the service too, should another program loosen the mode.
    qube.run("chmod", "0666", PATH)
    try:
        (line,) = ask(qube, "good.hostile.test", user="65534")
        assert "name look-up" in line
        assert "user 65534 is not root" in qube.journal(SERVICE)
    finally:
        qube.run("chmod", "0600", PATH)
    assert ask(qube, "good.hostile.test") == ["good.hostile.test addresses 192.0.2.1"]


def test_it_ends_when_it_is_idle_and_comes_again(qube: Machine) -> None:
    ask(qube, "good.hostile.test")
    before = times(qube)
    eventually(
        lambda: qube.property(SERVICE, "ActiveState") == "inactive", 90, "its end", lambda: qube.journal(SERVICE)
    )
    assert qube.property(SERVICE, "Result") == "success"
    assert qube.property(SOCKET, "ActiveState") == "active"
    assert ask(qube, "good.hostile.test") == ["good.hostile.test addresses 192.0.2.1"]
    assert times(qube) == before + 1


def test_a_broken_one_is_not_started_in_a_circle_and_heals(qube: Machine) -> None:
    """As while packages are replaced: neither unit gives up for good."""
    qube.run("systemctl", "stop", SERVICE)
    module = qube.run("/usr/bin/python3", "-I", "-c", "import qubes_guestnet.names as m; print(m.__path__[0])")
    before = times(qube)
    qube.run("mv", f"{module}/service.py", f"{module}/service.away")
    try:
        process = spawn(
            *qube.inside.prefix, "/usr/bin/python3", "-I", "-c", ASK, PATH, "10.139.1.1", "good.hostile.test"
        )
        eventually(lambda: qube.property(SERVICE, "NRestarts") not in ("0", "1"), 60, "a second restart")
        assert times(qube) - before < 10
        assert qube.property(SOCKET, "ActiveState") == "active"
    finally:
        qube.run("mv", f"{module}/service.away", f"{module}/service.py")
    # The one that waits has its answer then.
    assert line_of(process) == "good.hostile.test addresses 192.0.2.1"
    end(process)


@pytest.mark.behaviour("B32")
def test_no_unit_complains(qube: Machine) -> None:
    told = qube.run("systemd-analyze", "verify", "--man=no", SERVICE, SOCKET, "default.target", check=False)
    assert [line for line in told.splitlines() if "guestnet" in line or "cycle" in line.lower()] == []


def test_without_its_unit_the_agent_is_told_the_remedy(qube: Machine) -> None:
    qube.run("systemctl", "mask", "--runtime", "--now", SOCKET)
    try:
        (line,) = ask(qube, "good.hostile.test")
        assert line == f"{PATH}: the name look-up is not there; systemctl restart {SOCKET}; is it enabled or masked?"
        assert qube.property(UNIT, "ActiveState") == "active"
    finally:
        qube.run("systemctl", "unmask", "--runtime", SOCKET)
        qube.run("systemctl", "start", SOCKET)
    assert ask(qube, "good.hostile.test") == ["good.hostile.test addresses 192.0.2.1"]
