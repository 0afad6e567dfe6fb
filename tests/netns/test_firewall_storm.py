# SPDX-License-Identifier: GPL-2.0-or-later
"""Many lists at once, and everything that takes rules away, under packets: nothing passes that no list allowed."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.netns.test_firewall_connections import Talk
from tests.support.eventually import eventually
from tests.support.packets.ports import listening
from tests.support.packets.storm import shot, storm
from tests.support.qubes.firewall import Enforcing
from tests.support.qubes.provider import WORLD, WORLD6

QUBES, ROUNDS = 50, 20
REAL = 4, 5
NEVER = 100 + ROUNDS + 1  # no round allows it
FORBIDDEN = "forbidden"


def entries(number: int) -> tuple[str, ...]:
    """The list of one round: its own port, and always TCP 443."""
    return f"action=accept proto=udp dstports={100 + number}-{100 + number}", "action=accept proto=tcp dstports=443-443"


@pytest.mark.scenario("S-034")
@pytest.mark.parametrize("version", [4, 6])
def test_all_lists_change_twenty_times_while_the_agent_is_killed(version: int) -> None:
    host = Enforcing(agent=False)
    clients = [host.plug(number) if number in REAL else host.plug_bare(number) for number in range(4, 4 + QUBES)]
    addresses = [client.ip if version == 4 else client.ip6 for client in clients]
    for address in addresses:
        host.commit(address, *entries(0))
    host.qube.start_agent()  # it finds the vifs, as at the start of a provider under running qubes
    eventually(lambda: host.mapped(version) == set(addresses) and host.forwards(version), 60, trouble=host.trouble)
    talking, beside = clients[:2]
    talk, outside = Talk(host, talking, 443, version), host.outside()
    shots = [
        shot(each.port, address, WORLD if version == 4 else WORLD6, FORBIDDEN, dport=port)
        for each, address in zip((talking, beside), addresses, strict=False)
        for port in (9, 99, NEVER)
    ]
    with storm(shots) as rounds, listening(outside):
        for number in range(1, ROUNDS + 1):
            if number == ROUNDS // 2:
                host.agent.kill()
            for address in addresses:
                host.commit(address, *entries(number))
            if number == ROUNDS // 2 + 2:
                host.qube.start_agent(wait=False)
            assert talk.goes_on(5.0), number
        rounds(50)
    last = f"th dport {100 + ROUNDS} "
    eventually(
        lambda: all(last in f"{_chain(host, address, version)} " for address in addresses), 60, trouble=host.trouble
    )
    assert talk.goes_on(5.0)
    for client in (talking, beside):
        assert host.passes(client, 100 + ROUNDS, version), host.trouble()
        assert not host.passes(client, 100 + ROUNDS - 1, version)
    assert FORBIDDEN not in outside.words()
    talk.close()


def _chain(host: Enforcing, address: str, version: int) -> str:
    return " ".join(host.chain(address, version)).replace("udp dport", "th dport")


@pytest.mark.scenario("S-035")
def test_upgrade_restart_kill_and_flush_let_nothing_pass_that_the_lists_do_not() -> None:
    host = Enforcing()
    client, waiting = host.attach(), host.attach(5)
    for address in (client.ip, client.ip6):
        host.applied(address, "action=accept proto=udp dstports=9-9")
    outside = host.outside()
    shots = [
        *(shot(client.port, source, target, FORBIDDEN, dport=10) for source, target in _ways(client.ip, client.ip6)),
        *(shot(waiting.port, source, target, FORBIDDEN) for source, target in _ways(waiting.ip, waiting.ip6)),
        *(shot(waiting.port, source, target, FORBIDDEN) for source, target in _ways(client.ip, client.ip6)),
    ]

    def upgrade() -> None:
        host.agent.stop()
        host.qube.guestnet("rules", "load")
        host.qube.start_agent()
        host.qube.guestnet("firewall-unit", "start", timeout=90)

    def restart() -> None:
        host.qube.guestnet("firewall-unit", "stop", timeout=90)
        host.qube.guestnet("firewall-unit", "start", timeout=90)

    def kill() -> None:
        host.agent.kill()
        host.qube.start_agent()

    actions: tuple[Callable[[], None], ...] = (upgrade, restart, kill, lambda: host.nft("flush ruleset"))
    for action in actions:
        with storm(shots) as rounds, listening(outside):  # one for each: a storm ends after half a minute
            rounds(20)
            action()
            for version in (4, 6):
                eventually(lambda: host.passes(client, 9, version), 30, trouble=host.trouble)  # noqa: B023
    assert FORBIDDEN not in outside.words(), host.trouble()


def _ways(source: str, source6: str) -> tuple[tuple[str, str], tuple[str, str]]:
    return (source, WORLD), (source6, WORLD6)
