# SPDX-License-Identifier: GPL-2.0-or-later
"""The name look-up under systemd: started by a request of root alone, in its sandbox, and gone when it is idle.

The machine is a provider: its agent, in its own sandbox, asks for the names that rules have.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.eventually import eventually
from tests.support.machines import client
from tests.support.machines.client import Client, attached, commit
from tests.support.machines.machine import Machine, Mounts, Process, end, line_of, spawn
from tests.support.machines.packages import TREE
from tests.system.test_boot import UNIT, configured
from tests.system.test_provider import GATEWAY6, OUTSIDE, OUTSIDE6, PROVIDER, outside

SERVICE, SOCKET = "qubes-guestnet-names.service", "qubes-guestnet-names.socket"
PATH = "/run/qubes-guestnet/names.sock"
LIMIT = 1.2
# In the router's namespace, at the address of the virtual DNS: a server that answers queries. One name has the
# addresses of the last line that it was given, of IPv4 and IPv6, for a second.
SERVE = """\
import sys
from tests.support.programs import name_server
has = [""]
def moves(query):
    version = 4 if query.kind == name_server.A else 6
    found = [each for each in has[0].split() if (":" in each) == (version == 6)]
    return name_server.reply(query, *(name_server.address(name_server.OWNER, each, ttl=1) for each in found))
name_server.REPLIES["moves"] = moves
servers = [name_server.Server("10.139.1.1"), name_server.Server("10.139.1.2", says="good")]
print("ready", flush=True)
for line in sys.stdin:
    has[0] = line
    print("moved", flush=True)
"""
MOVES, ELSEWHERE = "moves.hostile.test", "192.0.2.81"
LEAST_TTL = 30  # the shortest that may be chosen
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
    root = mounts.root(base, plain, installed)
    client.put_xenstore(mounts, root)
    machine = Machine(mounts, root, "names", PROVIDER, flags=("qubes-network", "qubes-firewall"))
    try:
        outside(machine)
        eventually(lambda: configured(machine), 60, "the network", machine.jobs)
        yield machine
    finally:
        machine.close()


@pytest.fixture(scope="module", autouse=True)
def server(qube: Machine) -> Iterator[Process]:
    process = spawn(*qube.router.prefix, "env", f"PYTHONPATH={TREE}", sys.executable, "-c", SERVE)
    try:
        assert line_of(process) == "ready"
        yield process
    finally:
        end(process)


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
        remedy = f"systemctl restart {SOCKET}; is it enabled or masked?"
        assert line == f"{PATH}: the socket of the name look-up does not exist; {remedy}"
        assert qube.property(UNIT, "ActiveState") == "active"
    finally:
        qube.run("systemctl", "unmask", "--runtime", SOCKET)
        qube.run("systemctl", "start", SOCKET)
    assert ask(qube, "good.hostile.test") == ["good.hostile.test addresses 192.0.2.1"]


# --- the agent, in its sandbox, and this unit ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def behind(qube: Machine) -> Iterator[Client]:
    with ExitStack() as stack:
        yield attached(qube, stack, 4, GATEWAY6)


def moved(server: Process, *addresses: str) -> None:
    """The name has these addresses from now on."""
    assert server.stdin is not None
    server.stdin.write(" ".join(addresses) + "\n")
    server.stdin.flush()
    assert line_of(server) == "moved"


def named(qube: Machine, family: str = "ip") -> set[str]:
    """The addresses that rules have for it."""
    listed = qube.run("nft", "list", "set", family, "qubes-firewall", f"n-{MOVES}", check=False)
    return set(listed.partition("elements = {")[2].partition("}")[0].replace(",", " ").split())


def told(qube: Machine) -> str:
    return qube.journal(UNIT) + qube.journal(SERVICE)


@pytest.mark.behaviour("B74")
@pytest.mark.behaviour("B78")
def test_a_rule_by_name_lets_packets_to_its_addresses_through(qube: Machine, server: Process, behind: Client) -> None:
    qube.run("systemctl", "stop", SERVICE)
    qube.run(
        "sh", "-c", f"mkdir -p /etc/qubes; printf '[firewall]\\nleast_ttl = {LEAST_TTL}\\n' >>/etc/qubes/guestnet.toml"
    )
    qube.router.run("ip", "address", "replace", f"{ELSEWHERE}/32", "dev", "lo")
    before = times(qube)
    moved(server, OUTSIDE, OUTSIDE6)
    commit((behind,), f"action=accept dsthost={MOVES} proto=icmp", "action=drop")
    for family, address in (("ip", OUTSIDE), ("ip6", OUTSIDE6)):
        eventually(lambda: named(qube, family) == {address}, 60, MOVES, lambda: told(qube))  # noqa: B023
        eventually(lambda: behind.reaches(address), 20, "a packet through", lambda: told(qube))  # noqa: B023
    assert not behind.inside.reaches(ELSEWHERE, within_s=0.5)
    assert times(qube) == before + 1
    assert qube.property(SERVICE, "ActiveState") == "active"
    shown = qube.run("qubes-guestnet", "firewall", "show", behind.address)
    assert MOVES in shown
    assert OUTSIDE in shown
    exported = qube.run("qubesdb-read", f"/dns/{behind.address}/{MOVES}")
    assert f"{OUTSIDE}/32" in exported


@pytest.mark.behaviour("B74")
def test_a_name_that_moves_is_followed_when_its_time_to_live_is_over(
    qube: Machine, server: Process, behind: Client
) -> None:
    """By the agent's own timer. The address before counts for a while: a client may have it still."""
    chain = ("nft", "-s", "list", "chain", "ip", "qubes-firewall", f"qbs-{behind.address.replace('.', '-')}")
    before = qube.run(*chain)
    moved(server, ELSEWHERE)
    eventually(lambda: ELSEWHERE in named(qube), 4 * LEAST_TTL, "the other address", lambda: told(qube))
    assert behind.reaches(ELSEWHERE), told(qube)
    assert named(qube) == {OUTSIDE, ELSEWHERE}
    assert qube.run(*chain) == before, "elements change, and no rule"


def test_what_is_known_of_names_outlives_the_agent(qube: Machine, server: Process, behind: Client) -> None:
    """Also where no name server answers any more: nothing of the look-up is asked before the rules are in force."""
    before = named(qube)
    moved(server)
    with behind.every_packet_returns(ELSEWHERE):
        qube.run("systemctl", "restart", UNIT)
    assert ELSEWHERE in named(qube), told(qube)
    assert named(qube) <= before
    assert qube.run("systemctl", "--failed", "--no-legend", "--plain") == "", qube.jobs()


# --- long lists -------------------------------------------------------------------------------------------------------

# As much as a transaction of 20,000 rules; net.core.wmem_max is less wherever nothing has raised it.
ROOM = 8 << 20
MAKES_ROOM = f"""\
import socket
from qubes_guestnet.system.nft import batch
made = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)
batch._make_room(made, {ROOM})
print(made.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF))
"""
SANDBOXED = [
    "CapabilityBoundingSet",
    "NoNewPrivileges",
    "RestrictAddressFamilies",
    "SystemCallFilter",
    "SystemCallErrorNumber",
]


@pytest.mark.behaviour("B89")
def test_the_agents_sandbox_lets_it_send_as_long_a_transaction_as_it_likes(qube: Machine) -> None:
    """With its only capability it may exceed net.core.wmem_max, which a user namespace may not."""
    words = [word for name in SANDBOXED for word in ("-p", f"{name}={qube.property(UNIT, name)}")]
    said = qube.run("systemd-run", "--quiet", "--pipe", "--wait", *words, "/usr/bin/python3", "-I", "-c", MAKES_ROOM)
    assert int(said.split()[-1]) >= ROOM


@pytest.mark.behaviour("B89")
def test_a_thousand_rules_are_in_force_and_the_last_one_counts(qube: Machine, behind: Client) -> None:
    rules = [f"action=drop dst4=198.18.{n // 250}.{n % 250}/32 proto=tcp dstports={n + 1}-{n + 2}" for n in range(999)]
    commit((behind,), *rules, f"action=accept dst4={OUTSIDE}/32", "action=accept dst6=::/0")
    chain = f"qbs-{behind.address.replace('.', '-')}"
    listed = lambda: qube.run("nft", "list", "chain", "ip", "qubes-firewall", chain)  # noqa: E731
    eventually(lambda: listed().count(" dport ") == 999, 60, "all rules", lambda: told(qube))
    assert behind.reaches(OUTSIDE), told(qube)
    assert not behind.inside.reaches(ELSEWHERE, within_s=1)
    assert qube.property(UNIT, "NRestarts") == "0"
    commit((behind,))
    eventually(lambda: behind.reaches(ELSEWHERE), 20, "a packet through", lambda: told(qube))
