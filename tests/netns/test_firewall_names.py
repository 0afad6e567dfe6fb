# SPDX-License-Identifier: GPL-2.0-or-later
"""Rules by name: a provider's agent beside the real look-up and a real name server."""

from __future__ import annotations

import ast
import itertools
import signal
import time

import pytest

from qubes_guestnet.lab.qube import Service
from tests.support.eventually import eventually, never
from tests.support.programs.name_lookup import KNOWN, SECOND, NameServer, NamesUnit, hastened
from tests.support.programs.name_server import SAYS, Server
from tests.support.qubes.firewall import Enforcing
from tests.support.qubes.provider import ROUTER, WORLD, WORLD6

NAME = "www.example.org"
RULES = (f"action=accept dsthost={NAME} proto=udp", "action=drop")


@pytest.mark.behaviour("B73")
@pytest.mark.behaviour("B78")
@pytest.mark.parametrize(("version", "addresses"), [(4, {WORLD, "192.0.2.1"}), (6, {WORLD6})])
def test_a_rule_by_name_is_for_the_addresses_that_the_name_has(version: int, addresses: set[str]) -> None:
    host = Enforcing()
    server, _unit = NameServer(host), NamesUnit(host)
    server.says(www=[WORLD, WORLD6, "192.0.2.1"])
    behind = host.attach()
    address = behind.ip if version == 4 else behind.ip6
    host.applied(address, *RULES)
    eventually(lambda: host.named(NAME, version) == addresses, trouble=host.trouble)
    assert host.passes(behind, 9, version), host.trouble()
    length = 32 if version == 4 else 128
    eventually(lambda: exported(host, address) == {f"{each}/{length}" for each in addresses}, trouble=host.trouble)
    assert host.agent.output().count("woken by the name look-up") == 1
    assert "names in firewall rules" not in host.agent.output()


def exported(host: Enforcing, address: str, name: str = NAME) -> set[str]:
    """What scripts read in QubesDB, as they read it."""
    with host.dom0() as store:
        value = store.read(f"/dns/{address}/{name}")
    return ast.literal_eval(value.decode()) if value else set()


@pytest.mark.behaviour("B74")
@pytest.mark.parametrize(("version", "first", "second"), [(4, WORLD, "192.0.2.2"), (6, WORLD6, "2001:db8::2")])
def test_a_name_that_moves_changes_elements_and_nothing_else(version: int, first: str, second: str) -> None:
    """The new address counts at once, and the former one for a while: a client may have it still."""
    host = Enforcing(agent=False)
    server, _unit = NameServer(host, ttl=1), NamesUnit(host)
    server.says(www=[first])
    host.qube.start_agent(env=hastened(host))
    behind = host.attach()
    address = behind.ip if version == 4 else behind.ip6
    host.applied(address, *RULES)
    eventually(lambda: host.named(NAME, version) == {first}, trouble=host.trouble)
    chain, handled = host.chain(address, version), host.handled(address)
    monitor = watched(host)
    server.says(www=[second])
    eventually(lambda: host.named(NAME, version) == {first, second}, 20, trouble=host.trouble)
    assert host.passes(behind, 9, version)
    eventually(lambda: host.named(NAME, version) == {second}, 30, trouble=host.trouble)
    assert not host.passes(behind, 9, version)
    eventually(lambda: len(changes(monitor.output())) == 2, trouble=monitor.output)
    assert [line.split()[0] for line in changes(monitor.output())] == ["add", "delete"]
    assert all(f"n-{NAME} {{ " in line for line in changes(monitor.output())), monitor.output()
    assert (host.chain(address, version), host.handled(address)) == (chain, handled)
    length = 32 if version == 4 else 128
    eventually(lambda: exported(host, address) == {f"{second}/{length}"}, trouble=host.trouble)


def watched(host: Enforcing) -> Service:
    """What nft tells of changes from now on."""
    monitor, count = host.qube.spawn("monitor", "nft", "monitor"), itertools.count()

    def hears() -> bool:
        host.nft(f"add table ip another{next(count)}")
        return "another" in monitor.output()

    eventually(hears, trouble=monitor.output)
    return monitor


def changes(said: str) -> list[str]:
    """What a monitor of nft said of the firewall's tables."""
    return [line for line in said.splitlines() if "qubes-firewall" in line]


@pytest.mark.behaviour("B75")
def test_a_name_that_ends_is_forgotten_and_one_whose_server_hangs_is_not() -> None:
    host = Enforcing(agent=False)
    server, _unit = NameServer(host, ttl=1), NamesUnit(host)
    server.says(www=[WORLD], two=["192.0.2.9"])
    host.qube.start_agent(env=hastened(host))
    behind = host.attach()
    host.applied(behind.ip, RULES[0], "action=accept dsthost=two.example.org proto=tcp", "action=drop")
    eventually(lambda: host.named("two.example.org") == {"192.0.2.9"}, trouble=host.trouble)
    server.says(two=["192.0.2.9"])
    eventually(lambda: host.named(NAME) == set(), 30, trouble=host.trouble)
    assert not host.passes(behind)
    assert host.named("two.example.org") == {"192.0.2.9"}, "one bad name is one entry"
    eventually(lambda: exported(host, behind.ip) == set(), trouble=host.trouble)
    log = host.agent.output()
    assert log.count(f"{NAME} (IPv4): does not exist (last answer)") == 1, log
    server.says(www=[WORLD], two=["192.0.2.9"])
    eventually(lambda: host.named(NAME) == {WORLD}, 30, trouble=host.trouble)
    server.pause()
    eventually(lambda: "cannot be looked up (the name servers do not answer)" in host.agent.output(), 60)
    assert host.passes(behind)
    host.applied(behind.ip, RULES[0], "action=accept proto=udp dstports=77-77", "action=drop")
    assert host.passes(behind)
    server.resume()
    eventually(lambda: "answered again without a problem" in host.agent.output(), 60, trouble=host.trouble)


@pytest.mark.behaviour("B75")
@pytest.mark.parametrize(("version", "address"), [(4, WORLD), (6, WORLD6)])
def test_a_name_is_forgotten_at_the_second_answer_that_it_does_not_exist(version: int, address: str) -> None:
    """One such answer is an accident of its servers: its addresses stay. Two, some time apart, are none."""
    host = Enforcing(agent=False)
    server, _unit = NameServer(host, ttl=1), NamesUnit(host)
    server.says(www=[address])
    host.qube.start_agent(env=hastened(host, apart=8))
    behind = host.attach()
    host.applied(behind.ip if version == 4 else behind.ip6, *RULES)
    eventually(lambda: host.named(NAME, version) == {address}, trouble=host.trouble)

    def refused() -> int:
        return server.log().count(f"{NAME} is NXDOMAIN")

    for back in (True, False):
        before = refused()
        server.says()
        eventually(lambda: refused() == before + 1, 20, trouble=server.log)  # noqa: B023
        assert host.named(NAME, version) == {address}
        assert host.passes(behind, 9, version), host.trouble()
        if back:
            server.says(www=[address])
            answered = server.log().count(f"{NAME} is {address}")
            eventually(lambda: server.log().count(f"{NAME} is {address}") > answered + 1, 40, trouble=server.log)  # noqa: B023
            assert host.named(NAME, version) == {address}
            assert refused() == before + 1
    eventually(lambda: host.named(NAME, version) == set(), 40, trouble=host.trouble)
    assert refused() == before + 2
    assert not host.passes(behind, 9, version)


@pytest.mark.behaviour("B45")
@pytest.mark.behaviour("B76")
def test_other_name_servers_are_asked_in_the_pass_that_redirects_to_them() -> None:
    host = Enforcing()
    first, second, _unit = NameServer(host), NameServer(host, SECOND), NamesUnit(host)
    first.says(www=[WORLD])
    second.says(www=["192.0.2.2"])
    behind = host.attach()
    host.applied(behind.ip, "action=accept specialtarget=dns", *RULES)
    eventually(lambda: host.named(NAME) == {WORLD}, trouble=host.trouble)
    monitor = watched(host)
    host.resolv_conf(SECOND)
    eventually(lambda: host.named(NAME) == {WORLD, "192.0.2.2"}, trouble=host.trouble)
    assert host.passes(behind), "an address that left the answer stays for a while"
    assert second.asked
    # One transaction has the redirection and the servers that the rules for DNS accept.
    whole = [part for part in monitor.output().split("# new generation") if "dns-addr" in part]
    assert len(whole) == 1, monitor.output()
    assert "dnat-dns" in whole[0]
    assert SECOND in whole[0].partition("dns-addr")[2]
    before = first.asked
    host.resolv_conf("192.168.0.1")
    eventually(lambda: first.asked > before, trouble=host.trouble)


@pytest.mark.behaviour("B65")
def test_a_restart_of_the_agent_keeps_what_is_known() -> None:
    host = Enforcing()
    server, unit = NameServer(host), NamesUnit(host)
    server.says(www=[WORLD])
    behind = host.attach()
    host.applied(behind.ip, *RULES)
    eventually(lambda: host.named(NAME) == {WORLD}, trouble=host.trouble)
    server.pause()
    unit.stop()
    host.agent.signal(signal.SIGTERM)
    host.agent.wait()
    asked = server.asked
    host.qube.start_agent()
    never(lambda: host.named(NAME) != {WORLD}, 0.5)
    assert host.passes(behind)
    assert server.asked == asked
    host.agent.kill()
    host.qube.write(KNOWN, host.qube.read(KNOWN).replace(WORLD, "192.0.2.999"))
    host.qube.start_agent()
    eventually(lambda: host.named(NAME) == set(), trouble=host.trouble)
    assert host.agent.output().count("damaged") == 1
    NamesUnit(host)
    server.resume()
    eventually(lambda: host.named(NAME) == {WORLD}, 30, trouble=host.trouble)


def test_what_the_owner_chose_for_names_that_are_not_known() -> None:
    host = Enforcing(agent=False)
    host.qube.write("/etc/qubes/guestnet.toml", '[firewall]\nunresolved = "block-qube"\n')
    host.qube.start_agent()
    server = NameServer(host)
    server.says(www=["192.0.2.2"])
    behind = host.attach()
    host.applied(behind.ip, "action=accept proto=udp dstports=9-9", *RULES)
    assert not host.passes(behind), "until its name is known"
    host.qube.write("/etc/qubes/guestnet.toml", '[firewall]\nunresolved = "block"\n')
    host.agent.signal(signal.SIGHUP)
    eventually(lambda: "[firewall] unresolved: 'block' is neither" in host.agent.output(), trouble=host.trouble)
    assert not host.passes(behind), "what was configured stays"
    NamesUnit(host)
    eventually(lambda: host.named(NAME) == {"192.0.2.2"}, 30, trouble=host.trouble)
    eventually(lambda: host.passes(behind), trouble=host.trouble)
    assert "unresolved" in host.qube.guestnet("check", check=False).stdout


@pytest.mark.behaviour("B66")
@pytest.mark.behaviour("B68")
def test_names_that_are_too_many_too_long_or_hostile_take_nothing_from_others() -> None:
    host = Enforcing()
    unit, hostile = NamesUnit(host), Server(ROUTER, make=host.world.socket)
    behind, other = host.attach(), host.attach(5)
    long = "a" * 30 + ".good.hostile.test"  # with its folder, a path of 64 bytes
    hosts = [f"{label}.hostile.test" for label in SAYS] + [long]
    assert len(f"/dns/{behind.ip}/{long}") >= 64
    host.applied(behind.ip, *(f"action=accept dsthost={each} proto=udp" for each in hosts), "action=drop")
    start = time.monotonic()
    host.applied(other.ip, "action=accept")
    assert time.monotonic() - start < 1, "B67"
    assert host.passes(other)
    eventually(lambda: host.named("good.hostile.test") == {"192.0.2.1"}, 60, trouble=host.trouble)
    assert exported(host, behind.ip, "good.hostile.test") == {"192.0.2.1/32"}
    for label, says in SAYS.items():
        right = says[0] if isinstance(says[0], list) else []
        if isinstance(says[1], int) and says[1] == 64:
            eventually(lambda: len(host.named(f"{label}.hostile.test")) == 64, 60, trouble=host.trouble)  # noqa: B023
        else:
            eventually(lambda: host.named(f"{label}.hostile.test") == set(right), 60, trouble=host.trouble)  # noqa: B023
    assert "records.hostile.test (IPv4): has too many addresses" in host.agent.output()
    assert host.agent.running
    assert hostile.asked
    assert "error" not in unit.log()
    host.applied(behind.ip, *(f"action=accept dsthost=n{number}.hostile.test" for number in range(300)))
    eventually(lambda: "44 names over the limit are not looked up" in host.agent.output(), trouble=host.trouble)
    assert host.passes(other)
