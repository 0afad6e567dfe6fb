# SPDX-License-Identifier: GPL-2.0-or-later
"""The agent is restarted while connections go on: what no commit has refused is not cut, and nothing is lost."""

from __future__ import annotations

import sys

import pytest

from tests.netns.test_firewall_connections import Talk
from tests.support.eventually import eventually
from tests.support.packets.losses import every_packet_returns
from tests.support.programs.name_lookup import NameServer, NamesUnit, hastened
from tests.support.qubes.firewall import Enforcing
from tests.support.qubes.provider import WORLD, WORLD6

NAME = "www.example.org"
OTHER = {4: "192.0.2.2", 6: "2001:db8::2"}
RESTARTS = 20


@pytest.mark.behaviour("B65", "B73")
def test_twenty_restarts_of_the_agent_lose_no_ping() -> None:
    host = Enforcing()
    behind = host.attach()
    for address in (behind.ip, behind.ip6):
        host.applied(address, "action=accept proto=icmp")
    inside = ("nsenter", "-t", str(behind.qube.pid), "-n")
    with every_packet_returns(inside, WORLD, "restarts"), every_packet_returns(inside, WORLD6, "restarts"):
        for number in range(RESTARTS):
            (host.agent.kill if number % 2 else host.agent.stop)()
            host.qube.start_agent()
    assert host.mapped() == {behind.ip}
    assert not host.passes(behind)


@pytest.mark.behaviour("B70", "B74")
@pytest.mark.parametrize(("version", "address"), [(4, WORLD), (6, WORLD6)])
def test_a_connection_to_an_address_that_left_its_name_outlives_the_agent(version: int, address: str) -> None:
    """Only a commit ends it (F-24): also one that came while no agent ran."""
    host = Enforcing(agent=False)
    server, _unit = NameServer(host, ttl=1), NamesUnit(host)
    server.says(www=[address])
    environment = hastened(host)
    host.qube.start_agent(env=environment)
    behind = host.attach()
    source = behind.ip if version == 4 else behind.ip6
    host.applied(source, f"action=accept dsthost={NAME} proto=tcp")
    eventually(lambda: host.named(NAME, version) == {address}, trouble=host.trouble)
    talk = Talk(host, behind, 443, version)
    server.says(www=[OTHER[version]])
    eventually(lambda: host.named(NAME, version) == {OTHER[version]}, 30, trouble=host.trouble)
    assert talk.goes_on(5.0), "a refresh ends no connection"
    for kill in (True, False):
        (host.agent.kill if kill else host.agent.stop)()
        handled = host.handled(source)
        host.qube.start_agent(env=environment)
        eventually(lambda: host.handled(source) > handled, trouble=host.trouble)  # noqa: B023
        assert talk.goes_on(5.0), host.trouble()
    host.agent.kill()
    host.commit(source, "action=accept proto=icmp")
    host.qube.start_agent(env=environment)
    eventually(lambda: not talk.goes_on(0.3), 20, trouble=host.trouble)
    talk.close()


_DEADLY = """
import os
from qubes_guestnet.system import conntrack
begun = conntrack.begun
def killed(sources):
    if os.path.exists("/run/deadly"):
        os.kill(os.getpid(), 9)
    return begun(sources)
conntrack.begun = killed
"""


@pytest.mark.behaviour("B65", "B70")
def test_an_agent_killed_twice_before_it_judged_leaves_no_connection_of_the_list_between() -> None:
    """The list before comes again while no agent runs; what was written of it is of the time before."""
    host = Enforcing(agent=False)
    host.qube.write("/run/faults/sitecustomize.py", _DEADLY)
    environment = {"PYTHONPATH": ":".join(("/run/faults", *sys.path))}
    agent = host.qube.start_agent(env=environment)
    behind, few = host.attach(), "action=accept proto=tcp dstports=80-80"
    host.applied(behind.ip, few)
    host.qube.write("/run/deadly", "")
    host.commit(behind.ip, "action=accept")
    eventually(lambda: not agent.running, trouble=host.trouble)
    talk = Talk(host, behind, 443)
    assert talk.goes_on()
    host.commit(behind.ip, few)
    again = host.qube.start_agent(wait=False, env=environment)
    eventually(lambda: not again.running, trouble=host.trouble)
    assert "dport 80" in "".join(host.chain(behind.ip))
    host.qube.path("/run/deadly").unlink()
    host.qube.start_agent(env=environment)
    eventually(lambda: not talk.goes_on(0.3), 20, trouble=host.trouble)
    talk.close()
