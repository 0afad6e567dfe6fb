# SPDX-License-Identifier: GPL-2.0-or-later
"""The firewall of single qubes in a provider whose agent enforces it: what dom0 commits is what passes."""

from __future__ import annotations

import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from qubes_guestnet.core import debounce
from tests.support.eventually import eventually, never
from tests.support.qubes.firewall import BLOCKED, MARK, Enforcing

CHAIN = "qbs-10-137-0-4"


@pytest.mark.behaviour("B79")
def test_a_list_counts_from_its_commit_on() -> None:
    host = Enforcing()
    behind = host.attach()
    assert not host.passes(behind)
    assert not host.mapped()
    for version, address in ((4, behind.ip), (6, behind.ip6)):
        host.prepare(address, "action=accept proto=udp dstports=9-9", "action=drop")
        never(lambda: bool(host.mapped(4) - {behind.ip} or host.mapped(6)), 0.3)
        assert not host.handled(address)
        host.applied(address, "action=accept proto=udp dstports=9-9", "action=drop")
        assert host.mapped(version) == {address}
        assert host.passes(behind, 9, version), host.trouble()
        assert not host.passes(behind, 10, version)


@pytest.mark.behaviour("B91")
def test_half_of_a_set_is_never_in_force() -> None:
    """dom0 has begun the next list: what was in force stays, until the commit, or for as long as a set can take."""
    host = Enforcing()
    behind = host.attach()
    host.applied(behind.ip, "action=accept")
    before = host.chain(behind.ip)
    with host.dom0() as store:
        store.rm(f"/qubes-firewall/{behind.ip}/")
        store.write(f"/qubes-firewall/{behind.ip}/policy", b"accept")
    host.nft("add table ip another")  # a pass that has another reason
    never(lambda: host.chain(behind.ip) != before, 0.5)
    host.applied(behind.ip, "action=drop dst4=198.51.100.0/24", "action=accept", policy="drop")
    assert not host.passes(behind)
    counted = host.handled(behind.ip)
    with host.dom0() as store:
        store.rm(f"/qubes-firewall/{behind.ip}/")
        store.write(f"/qubes-firewall/{behind.ip}", b"")
    eventually(lambda: host.chain(behind.ip)[-1:] == [BLOCKED], trouble=host.trouble)
    eventually(lambda: host.handled(behind.ip) > counted, trouble=host.trouble)
    host.applied(behind.ip, "action=accept")
    assert host.passes(behind)


@pytest.mark.behaviour("B79")
def test_twenty_commits_in_a_second_end_with_the_last_one() -> None:
    host = Enforcing()
    behind, other = host.attach(), host.attach(5)
    host.applied(other.ip, "action=accept")
    for number in range(20):
        host.commit(behind.ip, f"action=accept proto=udp dstports={number}-{number}")
    eventually(lambda: " dport 19 " in "".join(host.chain(behind.ip)), trouble=host.trouble)
    assert host.passes(behind, 19)
    assert not host.passes(behind, 18)
    assert host.passes(other)
    assert 1 <= host.handled(behind.ip) <= 20


@pytest.mark.behaviour("B66")
@pytest.mark.behaviour("B78")
def test_a_bad_list_blocks_its_qube_alone_and_all_errors_are_told() -> None:
    host = Enforcing()
    behind, other = host.attach(), host.attach(5)
    host.applied(other.ip, "action=accept")
    host.applied(behind.ip, "action=accept")
    assert host.passes(behind)
    host.applied(behind.ip, "action=accept foo=1", "action=accept  proto=tcp", "action=accept")
    assert host.chain(behind.ip) == [BLOCKED]
    assert not host.passes(behind)
    assert host.passes(other)
    told = host.trouble()
    assert f"/qubes-firewall/{behind.ip}/0000" in told
    assert f"/qubes-firewall/{behind.ip}/0002" in told
    host.applied(other.ip, "action=accept proto=udp")
    assert host.passes(other)
    host.applied(behind.ip, "action=accept")
    assert host.passes(behind)


@pytest.mark.behaviour("B82")
def test_rules_of_users_in_the_public_chains_stay() -> None:
    host = Enforcing()
    behind = host.attach()
    for family in ("ip", "ip6"):
        for chain in ("forward", "qubes-forward", "prerouting", "postrouting"):
            host.nft(f'insert rule {family} qubes-firewall {chain} oifname "none" counter comment "mine"')
    host.applied(behind.ip, "action=accept")
    host.applied(behind.ip, "action=drop", policy="drop")
    host.agent.kill()
    host.qube.start_agent()
    host.applied(behind.ip, "action=accept")
    for family in ("ip", "ip6"):
        listing = host.oracle.run("nft", "list", "table", family, "qubes-firewall").stdout
        assert listing.count('comment "mine"') == 4
        assert listing.count("jump qubes-forward") == 1
    assert host.passes(behind)


@pytest.mark.behaviour("B80")
def test_the_rules_of_a_qube_go_with_its_vif_and_the_next_one_waits_for_a_commit() -> None:
    host = Enforcing()
    behind = host.attach()
    host.applied(behind.ip, "action=accept")
    host.offline(behind)
    host.unplug(behind)
    eventually(lambda: not host.mapped() and not host.chain(behind.ip), trouble=host.trouble)
    again = host.attach(6, behind.ip, behind.ip6)
    never(lambda: bool(host.mapped()), 0.3)
    assert not host.passes(again)
    host.applied(behind.ip, "action=accept")
    assert host.passes(again)


@pytest.mark.behaviour("B80")
def test_of_a_vif_that_comes_back_at_once_nothing_of_the_former_one_is_in_force() -> None:
    host = Enforcing()
    behind = host.attach()
    host.applied(behind.ip, "action=accept")
    host.offline(behind)
    host.online(behind)
    assert not host.mapped()
    assert not host.passes(behind)


@pytest.mark.behaviour("B80")
def test_a_vif_that_comes_back_before_the_next_pass_loses_its_rules_once() -> None:
    """S-111 under load: the rules were removed in vain a second time, nft refused that, and the qube did not start."""
    host = Enforcing()
    behind = host.attach()
    host.applied(behind.ip, "action=accept")
    with ThreadPoolExecutor() as both:
        host.agent.signal(signal.SIGSTOP)
        requests = []
        for action in ("offline", "online"):
            requests.append(both.submit(host.call, action, behind))
            time.sleep(0.7)  # both wait at the socket, in this order
        host.agent.signal(signal.SIGCONT)
        done = [request.result() for request in requests]
    assert [(each.returncode, each.stderr) for each in done] == [(0, ""), (0, "")], host.trouble()
    assert not host.mapped()
    assert not host.passes(behind)


@pytest.mark.behaviour("B80")
@pytest.mark.parametrize("number", [3, 6], ids=["a lower number", "a higher number"])
def test_the_late_end_of_a_former_vif_takes_nothing_from_the_one_that_has_its_address_now(number: int) -> None:
    """After the crash of a qube Xen calls `vif offline` late: then dom0 has committed for the next vif already."""
    host = Enforcing()
    former = host.attach(4)
    host.applied(former.ip, "action=accept")
    host.unplug(former)
    behind = host.attach(number, former.ip, former.ip6)
    host.applied(behind.ip, "action=accept")
    assert host.passes(behind)
    host.offline(former)
    never(lambda: not host.mapped(), 0.3)
    assert host.passes(behind)


@pytest.mark.behaviour("B80")
def test_a_list_that_was_committed_before_the_provider_booted_counts_for_the_first_vif_alone() -> None:
    """When a provider starts under running qubes dom0 writes their lists, attaches their vifs, and commits no more."""
    host = Enforcing(agent=False)
    host.commit("10.137.0.4", "action=accept")
    host.qube.start_agent()
    eventually(lambda: host.forwards(), trouble=host.trouble)
    behind = host.attach()
    eventually(lambda: bool(host.mapped()), trouble=host.trouble)
    assert host.passes(behind)
    host.offline(behind)
    host.unplug(behind)
    eventually(lambda: not host.mapped(), trouble=host.trouble)
    host.agent.kill()
    host.qube.start_agent()
    again = host.attach(6, behind.ip, behind.ip6)
    never(lambda: bool(host.mapped()), 0.3)
    assert not host.passes(again)


@pytest.mark.behaviour("B65")
def test_a_restart_of_the_agent_opens_nothing_and_loses_nothing() -> None:
    host = Enforcing()
    behind, waiting = host.attach(), host.attach(5)
    host.applied(behind.ip, "action=accept proto=udp dstports=9-9")
    before = host.chain(behind.ip)
    for kill in (True, False) * 2:
        (host.agent.kill if kill else host.agent.stop)()
        assert host.passes(behind)
        assert not host.passes(behind, 10)
        host.qube.start_agent()
        for _ in range(10):
            assert host.passes(behind), host.trouble()
            assert not host.passes(waiting)
        assert not host.passes(behind, 10)
        assert host.chain(behind.ip) == before
    host.agent.kill()
    host.commit(behind.ip, "action=accept proto=udp dstports=10-10")
    host.qube.start_agent()
    eventually(lambda: host.passes(behind, 10), trouble=host.trouble)
    assert not host.passes(behind)


@pytest.mark.behaviour("B65")
def test_nothing_is_forwarded_before_the_tables_are_in_and_after_they_went() -> None:
    host = Enforcing(agent=False)
    assert not host.forwards()
    host.qube.start_agent()
    eventually(lambda: host.forwards(), trouble=host.trouble)
    for family in ("ip", "ip6"):
        assert "policy drop" in host.oracle.run("nft", "list", "chain", family, "qubes-firewall", "forward").stdout
    behind = host.attach()
    host.applied(behind.ip, "action=accept")
    for gone in ("delete table ip qubes-firewall", "delete table ip6 qubes-firewall", "flush ruleset"):
        host.nft(gone)
        eventually(lambda: host.mapped() == {behind.ip} and host.forwards(), trouble=host.trouble)
        # The agent may be about to hear of it: until then both are as before.
        eventually(lambda: host.passes(behind), trouble=host.trouble)
    host.nft(f"flush chain ip qubes-firewall {CHAIN}")
    eventually(lambda: len(host.chain(behind.ip)) == 2, trouble=host.trouble)


@pytest.mark.behaviour("B65")
def test_without_the_fact_that_it_is_ours_the_lists_are_left_to_another_program() -> None:
    host = Enforcing(agent=False)
    host.qube.run("rm", MARK)
    host.qube.start_agent()
    behind = host.attach()
    eventually(lambda: host.works(behind), trouble=host.trouble)
    host.commit(behind.ip, "action=drop")
    never(lambda: "qubes-firewall" in host.oracle.run("nft", "list", "tables").stdout, 0.5)


@pytest.mark.behaviour("B79")
def test_a_commit_directly_behind_another_one_waits_for_nothing() -> None:
    """dom0 commits IPv6 behind IPv4; a pass ago is no reason to wait for silence, as it is with other keys."""
    host = Enforcing()
    behind = host.attach()
    for address in (behind.ip, behind.ip6):
        host.applied(address, "action=accept")
    behind_another, after_a_rest = [], []
    for number in range(10):
        host.applied(behind.ip, f"action=accept proto=udp dstports={number}-{number}")
        behind_another.append(_taken(host, behind.ip6, number))
        time.sleep(4 * debounce.QUIET_SECONDS)  # what the judged time is to be without
        after_a_rest.append(_taken(host, behind.ip6, number + 100))
    # On a busy machine each takes its time, and those that wait for silence take as much more.
    assert min(behind_another) < min(after_a_rest) + 0.8 * debounce.QUIET_SECONDS, (behind_another, after_a_rest)


def _taken(host: Enforcing, address: str, port: int) -> float:
    """Seconds from a commit until it is counted as handled."""
    start, before = time.monotonic(), host.handled(address)
    host.commit(address, f"action=accept proto=udp dstports={port}-{port}")
    with host.dom0() as store:
        while int(store.read(f"/qubes-firewall-handled/{address}") or 0) == before:
            assert time.monotonic() < start + 20, host.trouble()
    return time.monotonic() - start


# The kernel takes every list that the agent makes, so a refusal is made up, as long as this file is there.
_REFUSED = "/run/lab/refused"
_REFUSING = f"""
import os
from qubes_guestnet.system.nft import encode, program
encoded = encode.transaction
class Refusing:
    def commit(self):
        raise program.Refused("nft: refused")
def transaction(words):
    return Refusing() if "th dport 666 " in words and os.path.exists("{_REFUSED}") else encoded(words)
encode.transaction = transaction
"""


@pytest.mark.behaviour("B66")
@pytest.mark.parametrize("how", ["SIGHUP", "the table was lost"])
def test_a_list_that_nft_refused_is_tried_again(how: str) -> None:
    host = Enforcing(agent=False)
    host.qube.write("/run/lab/refusing/sitecustomize.py", _REFUSING)
    host.qube.write(_REFUSED, "")
    host.qube.start_agent(env={"PYTHONPATH": ":".join(("/run/lab/refusing", *sys.path))})
    behind, other = host.attach(), host.attach(5)
    host.commit(behind.ip, "action=accept proto=udp dstports=666-666")
    eventually(lambda: host.mapped() >= {behind.ip}, trouble=host.trouble)
    host.applied(other.ip, "action=accept")
    assert "nft: refused" in host.agent.output()
    assert not host.passes(behind, 666)
    assert host.passes(other)
    host.qube.path(_REFUSED).unlink()
    never(lambda: host.passes(behind, 666), 0.5)
    if how == "SIGHUP":
        host.agent.signal(signal.SIGHUP)
    else:
        host.nft("delete table ip qubes-firewall")
    eventually(lambda: host.passes(behind, 666), trouble=host.trouble)
    assert host.passes(other)


@pytest.mark.behaviour("B90")
def test_what_the_agent_knows_of_the_table_without_a_listing_is_what_is_there() -> None:
    """After all kinds of changes a look at everything finds nothing to do."""
    host = Enforcing()
    behind, other = host.attach(), host.attach(5)
    for rules in (["action=accept dsthost=a.example.org", "action=drop"], ["action=accept"], ["action=x"], []):
        for address in (behind.ip, behind.ip6, other.ip):
            host.applied(address, *rules)
    host.resolv_conf("192.168.0.3")
    eventually(lambda: "192.168.0.3" in host.agent.output().rpartition("nft -f: virtual DNS")[2], trouble=host.trouble)
    host.offline(other)
    host.unplug(other)
    eventually(lambda: host.mapped() == {behind.ip}, trouble=host.trouble)
    host.applied(behind.ip, "action=accept dsthost=b.example.org")
    host.agent.signal(signal.SIGHUP)
    host.applied(behind.ip, "action=accept dsthost=b.example.org")
    assert (
        "nft -f"
        not in host.agent.output()
        .rpartition("qubesdb-write /qubes-firewall-handled")[0]
        .rpartition("qubesdb-write /qubes-firewall-handled")[2]
    ), host.trouble()
