# SPDX-License-Identifier: GPL-2.0-or-later
"""Errors of what enforces the firewall, thrown at the running agent: what is refused ends all the same (B146)."""

from __future__ import annotations

import pytest

from tests.netns.test_agent_errors import survived
from tests.netns.test_firewall_connections import Talk
from tests.support.eventually import eventually
from tests.support.faults.adapter_errors import ENFORCED
from tests.support.faults.thrown import armed, throw, thrown
from tests.support.programs.name_lookup import NameServer, NamesUnit
from tests.support.qubes.firewall import Enforcing
from tests.support.qubes.provider import WORLD

NAME = "www.example.org"
BEFORE = ("action=accept proto=tcp", f"action=accept proto=udp dsthost={NAME}")
AFTER = (f"action=accept proto=tcp dstports=80-80 dsthost={NAME}", f"action=accept proto=udp dsthost={NAME}")
JUDGED = "/run/qubes-guestnet/judged"


def exported(host: Enforcing, address: str) -> bytes | None:
    """The addresses of the name, as third-party scripts read them."""
    with host.dom0() as store:
        return store.read(f"/dns/{address}/{NAME}")


def left(host: Enforcing, address: str) -> bytes | None:
    """An entry that another program wrote beside it, and the next export removes."""
    with host.dom0() as store:
        return store.read(f"/dns/{address}/left.example.org")


@pytest.mark.behaviour("B146", "B70", "B78")
@pytest.mark.parametrize(("place", "error"), ENFORCED)
def test_an_error_of_what_enforces_the_firewall(place: str, error: str) -> None:
    host = Enforcing(agent=False)
    host.qube.start_agent(env=armed(host.qube, place, error))
    eventually(host.forwards, trouble=host.trouble)
    server, _unit = NameServer(host), NamesUnit(host)
    server.says(www=[WORLD])
    behind, pid = host.attach(), host.agent.pid
    host.applied(behind.ip, *BEFORE)
    eventually(lambda: exported(host, behind.ip) == f"{{'{WORLD}/32'}}".encode(), trouble=host.trouble)
    eventually(lambda: host.qube.read(JUDGED).count(f"list {behind.ip} ") == 1, trouble=host.trouble)
    refused, kept = Talk(host, behind, 443), Talk(host, behind, 80)
    assert refused.goes_on()
    assert kept.goes_on()
    judged, counted = host.qube.read(JUDGED), host.handled(behind.ip)
    with host.dom0() as store:
        store.write(f"/dns/{behind.ip}/left.example.org", b"{'192.0.2.77/32'}")
    throw(host.qube)
    host.commit(behind.ip, *AFTER)
    assert thrown(host.qube, 20), f"the adapter was not asked\n{host.trouble()}"
    eventually(lambda: not refused.goes_on(0.3), 20, trouble=host.trouble)
    eventually(lambda: host.handled(behind.ip) > counted, 20, trouble=host.trouble)
    eventually(lambda: host.qube.read(JUDGED) != judged, 20, trouble=host.trouble)
    eventually(lambda: "error \n" in host.qube.read("/run/qubes-guestnet/status"), 30, trouble=host.trouble)
    assert kept.goes_on()
    eventually(lambda: not left(host, behind.ip), 20, trouble=host.trouble)
    eventually(lambda: exported(host, behind.ip) == f"{{'{WORLD}/32'}}".encode(), 20, trouble=host.trouble)
    assert host.handled(behind.ip) == counted + 1, "one commit, whatever failed"
    assert host.qube.read(JUDGED).count(f"list {behind.ip} ") == 1
    assert host.passes(behind)
    host.applied(behind.ip, "action=drop")
    assert not kept.goes_on(0.4)
    assert not host.passes(behind)
    survived(pid, lambda: host.agent.running and host.agent.pid == pid, host.agent.output)
    assert sum("thrown" in line for line in host.agent.output().splitlines()) == 1, host.agent.output()
    assert "because another program" not in host.agent.output()
    for talk in (refused, kept):
        talk.close()
