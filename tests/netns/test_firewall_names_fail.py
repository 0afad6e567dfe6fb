# SPDX-License-Identifier: GPL-2.0-or-later
"""What can be wrong with the name look-up: the agent survives it, says it once, and is right again afterwards."""

from __future__ import annotations

import signal
import time

import pytest

from tests.netns.test_agent_errors import survived
from tests.support.eventually import eventually
from tests.support.faults.adapter_errors import NAMES
from tests.support.faults.thrown import armed, throw, thrown
from tests.support.programs.name_lookup import NameServer, NamesUnit
from tests.support.qubes.firewall import Enforcing
from tests.support.qubes.provider import WORLD

NAME, MOVED = "www.example.org", "192.0.2.2"
RULES = (f"action=accept dsthost={NAME} proto=udp", "action=drop")
# How a look-up can misbehave towards the agent; each program ends with its first client.
_SERVE = "import socket, time; client, _ = socket.socket(fileno=3).accept(); said = client.recv(65536); "
WAYS = {
    "it does not start": "raise SystemExit(1)",
    "it ends early": _SERVE + "raise SystemExit(1)",
    "malformed": _SERVE + "client.send(b'answer 4 www.example.org addresses 300 192.0.2.999')",
    "not ASCII": _SERVE + "client.send(bytes(range(256)) * 8)",
    "unasked": _SERVE + "client.send(b'answer 4 bank.example.org addresses 300 192.0.2.66')",
    "other family": _SERVE + "client.send(b'answer 4 www.example.org addresses 300 2001:db8::1')",
    "twice": _SERVE + "[client.send(b'answer 4 www.example.org failed timeout') for _ in range(2)]",
    "flood": _SERVE + "client.setblocking(True); [client.send(b'x' * 4000) for _ in range(10000)]",
}


@pytest.mark.behaviour("B146")
@pytest.mark.parametrize(("place", "error"), NAMES)
def test_an_error_of_what_asks_for_names(place: str, error: str) -> None:
    host = Enforcing(agent=False)
    host.qube.start_agent(env=armed(host.qube, place, error))
    eventually(host.forwards, trouble=host.trouble)
    server, _unit = NameServer(host), NamesUnit(host)
    server.says(www=[WORLD])
    behind, pid = host.attach(), host.agent.pid
    host.applied(behind.ip, *RULES)
    eventually(lambda: host.named(NAME) == {WORLD}, trouble=host.trouble)
    server.says(www=[MOVED])
    throw(host.qube)
    host.agent.signal(signal.SIGHUP)
    assert thrown(host.qube, 20), f"the adapter was not asked\n{host.trouble()}"
    host.applied(behind.ip, *RULES)
    eventually(lambda: MOVED in host.named(NAME), 30, trouble=host.trouble)
    assert host.passes(behind)
    survived(pid, lambda: host.agent.running and host.agent.pid == pid, host.agent.output)


@pytest.mark.behaviour("B66")
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_look_up_that_misbehaves(way: str) -> None:
    host = Enforcing()
    server, unit = NameServer(host), NamesUnit(host, ("-c", way))
    server.says(www=[WORLD])
    behind, pid = host.attach(), host.agent.pid
    host.applied(behind.ip, *RULES)
    eventually(lambda: unit.starts > 0, trouble=host.trouble)
    assert not host.passes(behind)
    other = host.attach(5)
    host.applied(other.ip, "action=accept")
    assert host.passes(other)
    unit.stop()
    NamesUnit(host)
    eventually(lambda: host.named(NAME) == {WORLD}, 40, trouble=host.trouble)
    assert host.passes(behind), host.trouble()
    assert (host.agent.running, host.agent.pid) == (True, pid)
    log = host.agent.output()
    assert "Traceback" not in log
    assert "unexpected" not in log
    for line in set(log.splitlines()):
        if "name look-up" in line and "woken" not in line:
            assert log.splitlines().count(line) == 1, line


@pytest.mark.behaviour("B67")
@pytest.mark.behaviour("B74")
def test_without_a_look_up_commits_go_on_and_it_is_asked_when_it_comes() -> None:
    """The unit is masked, or hangs: rules are in force in milliseconds all the same, and the rest follows alone."""
    host = Enforcing()
    server = NameServer(host)
    server.says(www=[WORLD])
    behind, other = host.attach(), host.attach(5)
    host.applied(behind.ip, *RULES)
    eventually(lambda: "the socket of the name look-up does not exist" in host.agent.output(), trouble=host.trouble)
    hanging = NamesUnit(host, ("-c", "import time; time.sleep(600)"))
    eventually(lambda: hanging.starts > 0, 30, trouble=host.trouble)
    for number in range(5):
        start = time.monotonic()
        host.applied(other.ip, f"action=accept proto=udp dstports={number + 9}-{number + 9}")
        assert time.monotonic() - start < 1, "B67"
    assert not host.passes(behind)
    assert "name-unresolved" in host.qube.guestnet("check", check=False).stdout
    hanging.stop()
    NamesUnit(host)
    eventually(lambda: host.named(NAME) == {WORLD}, 40, trouble=host.trouble)
    assert host.passes(behind), host.trouble()
    assert host.agent.output().count("the socket of the name look-up does not exist") == 1
    eventually(lambda: "the name look-up answers again" in host.agent.output(), trouble=host.trouble)
