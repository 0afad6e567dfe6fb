# SPDX-License-Identifier: GPL-2.0-or-later
"""dom0 writes `/mapped-ip/…` again while the qube is attached: it keeps the addresses it was attached with."""

from __future__ import annotations

import errno
import json
import signal
from collections.abc import Callable
from typing import NamedTuple

import pytest

from tests.support.eventually import eventually
from tests.support.qubes.provider import GATEWAY, OWN, WORLD, Client, Provider

REAL, FAKE, OTHER = "10.137.0.4", "192.168.1.5", "192.168.1.6"
FAKE_GATEWAY, OTHER_GATEWAY = "192.168.1.1", "192.168.1.2"
BASE = f"/mapped-ip/{REAL}/visible-"


class Said(NamedTuple):
    """What dom0 says of the qube; None: the entry is not there."""

    ip: str | None
    gateway: str | None

    @property
    def speaks(self) -> str:
        """The address a qube has that was attached with this."""
        return self.ip or REAL


NOTHING, AS_IT_IS, FAKED = Said(None, None), Said(REAL, GATEWAY), Said(FAKE, FAKE_GATEWAY)
# Before and after. dom0 itself never removes an entry; a person may.
CHANGES = {
    "set": (AS_IT_IS, FAKED),
    "changed": (FAKED, Said(OTHER, FAKE_GATEWAY)),
    "visible is real": (FAKED, AS_IT_IS),
    "removed": (FAKED, NOTHING),
    "only the gateway": (FAKED, Said(FAKE, OTHER_GATEWAY)),
    "the real gateway": (FAKED, Said(FAKE, GATEWAY)),
}


def kill_the_agent(host: Provider) -> None:
    host.agent.kill()
    host.qube.start_agent()


# What happens besides: the qube has spoken or not, dom0 writes, and the agent is or is not the same.
STATES: dict[str, tuple[bool, bool, Callable[[Provider], object]]] = {
    "attached": (True, False, lambda host: None),
    "silent": (False, False, lambda host: None),
    "paused": (False, True, lambda host: None),
    "restarted agent": (False, False, kill_the_agent),
    "reloaded agent": (True, False, lambda host: host.agent.signal(signal.SIGHUP)),
}


def say(host: Provider, said: Said) -> None:
    """As dom0, one entry at a time."""
    for leaf, value in (("ip", said.ip), ("gateway", said.gateway)):
        if value is None:
            host.remove(BASE + leaf)
        else:
            host.write(BASE + leaf, value)


def provider(said: Said) -> Provider:
    host = Provider()
    say(host, said)
    return host


def works(host: Provider, behind: Client, source: str) -> bool:
    """Whether what it sends from an address comes out at the world's end."""
    outside = host.outside()
    try:
        behind.port.send(source, WORLD, "works")
    except OSError as error:  # the end of the link that is set up at this moment drops it: packet(7) says so
        if error.errno != errno.ENOBUFS:
            raise
        return False
    return outside.hears(lambda packet: packet.word == "works" and packet.source == OWN)


def namespaces(host: Provider) -> str:
    return host.qube.run("ls", "/run/netns", check=False).stdout.strip()


def findings(host: Provider) -> dict[str, str]:
    found = json.loads(host.qube.guestnet("check", "--json", check=False).stdout)
    return {finding["code"]: finding["remedy"] for finding in found}


def vif_line(host: Provider) -> str:
    return next(line for line in host.qube.guestnet("status").stdout.splitlines() if line.startswith("vif4.0"))


def attached_again(host: Provider, behind: Client) -> Client:
    """What dom0 does at a change of provider: detach, and attach."""
    behind.qube.wire("ip link delete eth0")
    host.offline(behind)
    again = Client(5, behind.addresses)
    host.describe(again)
    host.wire(again)
    host.online(again)
    return again


@pytest.mark.behaviour("B159")
@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("change", CHANGES)
def test_what_it_was_attached_with_holds(change: str, state: str) -> None:
    (before, after), (spoken, paused, besides) = CHANGES[change], STATES[state]
    host = provider(before)
    behind = host.attach()
    if spoken:
        assert works(host, behind, before.speaks)
    assert "mapping-changed" not in findings(host)
    if paused:
        behind.qube.pause()
    kept, there = host.state(behind.vif), namespaces(host)
    say(host, after)
    besides(host)
    eventually(lambda: "mapping-changed" in findings(host), trouble=host.trouble)
    host.write("/connected-ips", "10.137.0.99 10.137.0.98")  # one more pass, and its end is to be seen
    eventually(lambda: "10.137.0.98" in host.elements("downstream"), trouble=host.trouble)
    if paused:
        behind.qube.unpause()
    assert "set up now" not in host.agent.output(), host.trouble()
    now = host.state(behind.vif)
    assert [part for part in now if part not in kept] == [host.elements("downstream")]
    assert namespaces(host) == there
    assert works(host, behind, before.speaks)
    assert "attach the qube again" in findings(host)["mapping-changed"]
    assert "when the qube is attached again" in vif_line(host)
    again = attached_again(host, behind)
    assert works(host, again, after.speaks)
    assert "mapping-changed" not in findings(host)


@pytest.mark.behaviour("B61")
@pytest.mark.behaviour("B159")
@pytest.mark.parametrize("besides", [False, True], ids=["agent", "restarted agent"])
def test_a_late_one_is_followed_where_there_was_none_and_the_qube_is_silent(besides: bool) -> None:
    host = provider(NOTHING)
    behind = host.attach()
    # It believes to have its fake address, and what it sends from there is dropped.
    behind.port.send(FAKE, WORLD, "early")
    if besides:
        host.agent.stop()
    say(host, FAKED)
    if besides:
        host.qube.start_agent()
    eventually(lambda: namespaces(host) == "vif4-nat", trouble=host.trouble)
    eventually(lambda: works(host, behind, FAKE), trouble=host.trouble)
    eventually(lambda: "mapping-changed" not in findings(host))
    # Once: from now on it holds.
    say(host, Said(OTHER, FAKE_GATEWAY))
    eventually(lambda: "mapping-changed" in findings(host), trouble=host.trouble)
    assert works(host, behind, FAKE)


@pytest.mark.behaviour("B159")
def test_a_late_one_is_not_followed_where_the_qube_has_spoken_by_its_real_address() -> None:
    host = provider(NOTHING)
    behind = host.attach()
    assert works(host, behind, REAL)
    say(host, FAKED)
    eventually(lambda: "mapping-changed" in findings(host), trouble=host.trouble)
    assert (namespaces(host), works(host, behind, REAL)) == ("", True)
    # What conntrack knows runs out, and changes nothing.
    eventually(lambda: "told" in host.qube.read(f"/run/qubes-guestnet/vifs/{behind.vif}").splitlines())
    host.qube.run("conntrack", "-F")
    say(host, Said(OTHER, FAKE_GATEWAY))
    kill_the_agent(host)
    assert (namespaces(host), works(host, behind, REAL)) == ("", True)


@pytest.mark.behaviour("B159")
def test_a_real_address_that_is_told_late_is_told_for_good() -> None:
    """What dom0 before 2024-06 does at the first start of a qube without fake address."""
    host = provider(NOTHING)
    behind = host.attach()
    say(host, AS_IT_IS)
    eventually(lambda: "told" in host.qube.read(f"/run/qubes-guestnet/vifs/{behind.vif}").splitlines())
    say(host, FAKED)
    eventually(lambda: "mapping-changed" in findings(host), trouble=host.trouble)
    assert (namespaces(host), works(host, behind, REAL)) == ("", True)


@pytest.mark.behaviour("B61")
@pytest.mark.behaviour("B105")
def test_a_late_one_that_is_not_valid_waits_for_a_good_value() -> None:
    host = provider(NOTHING)
    behind = host.attach()
    say(host, Said("rubbish", FAKE_GATEWAY))
    host.write("/connected-ips", "10.137.0.98")
    eventually(lambda: "10.137.0.98" in host.elements("downstream"), trouble=host.trouble)
    assert namespaces(host) == ""
    say(host, FAKED)
    eventually(lambda: namespaces(host) == "vif4-nat", trouble=host.trouble)
    eventually(lambda: works(host, behind, FAKE), trouble=host.trouble)
