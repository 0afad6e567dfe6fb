# SPDX-License-Identifier: GPL-2.0-or-later
"""The same boot as a provider, with qubes behind it; one machine, in the order of this file."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.eventually import eventually, never
from tests.support.machines import client
from tests.support.machines.client import Client, attached, commit
from tests.support.machines.core_agent import SCRIPTS, USER_SCRIPT
from tests.support.machines.kinds import FORWARDING
from tests.support.machines.machine import Machine, Mounts, elements, processes
from tests.support.machines.put_in import ANSWERER, ASK, PROXY_UNIT, WITNESS
from tests.system.test_boot import ENTRIES, UNIT, configured, install, pid

RULES = "qubes-guestnet-rules.service"
GATEWAY, GATEWAY6 = "10.138.7.9", "fd09:24ef:4179::a8a:709"
PROVIDER = {
    **ENTRIES,
    "/qubes-netvm-network": "10.138.7.9",
    "/qubes-netvm-netmask": "255.255.255.255",
    "/qubes-netvm-gateway": GATEWAY,
    "/qubes-netvm-gateway6": GATEWAY6,
    "/qubes-netvm-primary-dns": "10.139.1.1",
    "/qubes-netvm-secondary-dns": "10.139.1.2",
}
OUTSIDE, OUTSIDE6 = "192.0.2.80", "2001:db8::80"
FIREWALL, MARK, RAN = "qubes-firewall.service", "/run/qubes-guestnet/firewall", "/usr/the-script-ran"
# What the agent's sandbox forbids.
SCRIPT = f"#!/bin/sh\ncat {FORWARDING[0]} >>{RAN}\n"
PROXY = "qubes-updates-proxy"
AT_ONCE = 10
# Of one attach: Xen's script, which becomes our program; three questions to xenstore and one answer; nft. And two more.
PROCESSES_EACH = 8
EVENTS = ("up", "down", "vpn-up", "vpn-down", "dhcp4-change", "dhcp6-change", "connectivity-change", "hostname")
# The whole of an agent may take 64 MB; a tenth qube makes it no bigger than the first.
GROWTH_KB = 2048


@pytest.fixture(scope="module")
def qube(mounts: Mounts, base: Path, plain: Path, installed: Path, boot) -> Machine:
    root = mounts.root(base, plain, installed)
    client.put_xenstore(mounts, root)
    units = f"{root}/tree/etc/systemd/system"
    mounts.run(f"mkdir -p {units}/multi-user.target.wants; cat >{units}/witness.service <<'END'\n{WITNESS}END\n")
    mounts.run(f"ln -s ../witness.service {units}/multi-user.target.wants/")
    mounts.run(f"cat >{units}/{PROXY}.service <<'END'\n{PROXY_UNIT}END\n")
    script = f"{root}/tree{USER_SCRIPT}"
    mounts.run(f"mkdir -p {Path(script).parent}; cat >{script} <<'END'\n{SCRIPT}END\nchmod +x {script}")
    machine = boot(root, "provider", PROVIDER, flags=("qubes-network", "qubes-firewall", PROXY))
    outside(machine)
    return machine


def outside(machine: Machine) -> None:
    """A host beyond the provider's own provider, which has a route to the provider and to no qube behind it."""
    for words in (
        f"address replace {OUTSIDE}/32 dev lo",
        f"-6 address replace {OUTSIDE6}/128 dev lo",
        f"route replace {ENTRIES['/qubes-ip']}/32 dev vif4.0",
        f"-6 route replace {ENTRIES['/qubes-ip6']}/128 dev vif4.0",
    ):
        machine.router.run("ip", *words.split())


@pytest.fixture(scope="module")
def close_qubes() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture(scope="module")
def first(qube: Machine, close_qubes: ExitStack) -> Client:
    """The qube that is behind this one all the time."""
    return attached(qube, close_qubes, 4, GATEWAY6)


def forwards(qube: Machine) -> list[str]:
    return qube.run("cat", *FORWARDING).split()


def told(qube: Machine) -> str:
    return qube.journal(UNIT) + qube.journal(RULES)


@pytest.mark.behaviour("B99")
def test_the_rules_are_there_before_any_network(qube: Machine) -> None:
    times = [
        int(qube.property(unit, name))
        for unit, name in (
            (RULES, "ActiveEnterTimestampMonotonic"),
            ("network-pre.target", "ActiveEnterTimestampMonotonic"),
            (UNIT, "InactiveExitTimestampMonotonic"),
        )
    ]
    assert 0 < times[0] <= times[1] <= times[2], (times, told(qube))
    seen = qube.run("cat", "/run/at-network-pre")
    for wanted in ("table ip qubes {", "table ip6 qubes {", "chain antispoof {", "chain input {"):
        assert wanted in seen
    assert "eth0    inet" not in seen
    # And nothing was forwarded yet.
    assert seen.split()[-2:] == ["0", "0"]


@pytest.mark.behaviour("B99")
def test_the_uplink_needs_the_rules(qube: Machine) -> None:
    assert RULES in qube.property(UNIT, "Requires").split()
    assert RULES in qube.property(UNIT, "After").split()
    assert "network-pre.target" in qube.property(RULES, "Before").split()
    assert RULES in qube.property("network-pre.target", "Requires").split()


@pytest.mark.behaviour("B101")
def test_it_forwards_after_the_boot(qube: Machine) -> None:
    assert qube.run("systemctl", "--failed", "--no-legend", "--plain") == "", qube.jobs()
    assert configured(qube), told(qube)
    eventually(lambda: forwards(qube) == ["1", "1"], what="forwarding", trouble=lambda: told(qube))


@pytest.mark.scenario("S-001a")
def test_a_qube_is_attached_and_reaches_the_world(qube: Machine, first: Client) -> None:
    assert first.xenstore("hotplug-status") == "connected", told(qube)
    assert first.xenstore("hotplug-error") == ""
    assert qube.inside.is_up(first.vif)
    eventually(lambda: first.reaches(OUTSIDE), what="a packet through", trouble=lambda: told(qube))
    eventually(lambda: first.reaches(OUTSIDE6), what="an IPv6 packet through", trouble=lambda: told(qube))


@pytest.mark.behaviour("B65")
@pytest.mark.behaviour("B81")
def test_the_firewall_s_unit_is_ready_before_anything_is_forwarded(qube: Machine) -> None:
    """Without core-agent: its script ran once, outside the sandbox, while nothing was forwarded."""
    assert qube.inside.run("systemctl", "--quiet", "is-enabled", FIREWALL, check=False).returncode == 0
    assert qube.run("cat", RAN) == "0"
    entered, units = "ActiveEnterTimestampMonotonic", (RULES, UNIT, FIREWALL, "qubes-network.service")
    assert (times := [0, *(int(qube.property(unit, entered)) for unit in units)]) == sorted(set(times))
    qube.run("test", "-e", MARK)


@pytest.mark.behaviour("B137")
def test_the_command_of_core_agent_s_daemon_starts_the_unit(qube: Machine) -> None:
    """Scripts of users call it; it returns at once, also where the unit is active already."""
    ran = qube.run("cat", RAN)
    qube.run("qubes-firewall")
    eventually(lambda: qube.property(FIREWALL, "Job") in ("", "0"), what="the end of its job", trouble=qube.jobs)
    assert qube.run("cat", RAN) == ran
    assert qube.inside.run("qubes-firewall", "--help", check=False).returncode == 2
    qube.run("systemctl", "stop", FIREWALL)
    qube.run("qubes-firewall")
    eventually(lambda: forwards(qube) == ["1", "1"], what="forwarding", trouble=lambda: told(qube))
    qube.run("test", "-e", MARK)
    qube.run("rm", RAN)
    qube.run("sh", "-c", f"echo {ran} >{RAN}")


@pytest.mark.behaviour("B79")
def test_what_dom0_commits_is_what_passes(qube: Machine, first: Client) -> None:
    commit((first,), f"action=drop dst4={OUTSIDE}/32", "action=accept")
    eventually(lambda: not first.inside.reaches(OUTSIDE, within_s=0.5), what="a refusal", trouble=lambda: told(qube))
    assert first.reaches(OUTSIDE6), told(qube)
    commit((first,), "action=accept", "action=accept")
    eventually(lambda: first.reaches(OUTSIDE), what="a packet through", trouble=lambda: told(qube))


@pytest.mark.behaviour("B73")
@pytest.mark.behaviour("B76")
def test_the_firewall_s_unit_is_restarted_and_reloaded_without_loss(qube: Machine, first: Client) -> None:
    with first.every_packet_returns(OUTSIDE):
        for verb in ("restart", "reload", "try-restart", "try-reload-or-restart"):
            qube.run("systemctl", verb, FIREWALL)
    assert qube.run("cat", RAN).split() == ["0", "1", "1"]
    qube.run("systemctl", "stop", FIREWALL)
    assert forwards(qube) == ["0", "0"]
    assert not first.inside.reaches(OUTSIDE, within_s=1)
    assert qube.run("sh", "-c", f"test -e {MARK} || echo gone") == "gone"
    qube.run("systemctl", "start", FIREWALL)
    assert first.reaches(OUTSIDE), told(qube)
    assert qube.run("cat", RAN).split() == ["0", "1", "1", "0"]


def test_its_names_are_resolved_by_the_provider_s_servers(qube: Machine, first: Client) -> None:
    answerer = subprocess.Popen([*qube.router.prefix, "python3", "-c", ANSWERER], stdout=subprocess.PIPE, text=True)
    try:
        assert answerer.stdout is not None
        assert answerer.stdout.readline() == "ready\n"
        ask = lambda: first.inside.run("python3", "-c", ASK, "10.139.1.1", check=False).stdout  # noqa: E731
        eventually(lambda: ask() == "question answered\n", what="an answer", trouble=lambda: told(qube))
    finally:
        answerer.kill()
        answerer.communicate()


@pytest.mark.behaviour("B99")
def test_another_address_than_its_own_gets_nowhere(qube: Machine, first: Client) -> None:
    first.inside.run("ip", "address", "add", "10.137.0.99/32", "dev", "lo")
    spoofed = first.inside.run(
        "ping", "-n", "-c", "2", "-i", "0.2", "-W", "1", "-I", "10.137.0.99", OUTSIDE, check=False
    )
    assert spoofed.returncode == 1
    assert ", 0 received" in spoofed.stdout
    assert first.reaches(OUTSIDE)


def test_the_tap_device_of_a_device_model_is_left_alone(qube: Machine, first: Client) -> None:
    before = qube.run("nft", "-s", "list", "ruleset")
    qube.run("sh", "-c", f"rm -f {client.XENSTORE}/{first.folder}/hotplug-status")
    for command in ("add", "remove"):
        first.hotplug(command, device="tap")
    assert first.xenstore("hotplug-status") == ""
    assert qube.run("nft", "-s", "list", "ruleset") == before
    assert qube.inside.is_up(first.vif)


@pytest.mark.parametrize("way", ["restart", "reload", "kill"])
def test_no_packet_is_lost_when_the_agent_is_another_one(qube: Machine, first: Client, way: str) -> None:
    before = pid(qube)
    with first.every_packet_returns(OUTSIDE):
        if way == "kill":
            qube.run("kill", "-KILL", str(before))
            eventually(lambda: pid(qube) not in (0, before), 30, "another process")
        else:
            qube.run("systemctl", way, UNIT)
        eventually(lambda: qube.property(UNIT, "ActiveState") == "active", 30, "a ready agent")
    assert forwards(qube) == ["1", "1"]


def test_the_rules_outlive_their_unit_and_a_restart_of_it_forwards_again(qube: Machine, first: Client) -> None:
    """What a shutdown, and a person, do with it: there is no moment without the rules."""
    rules = qube.run("nft", "-s", "list", "chain", "ip", "qubes", "antispoof")
    qube.run("systemctl", "stop", RULES)
    assert qube.property(UNIT, "ActiveState") == "inactive"
    assert qube.run("nft", "-s", "list", "chain", "ip", "qubes", "antispoof") == rules
    qube.run("systemctl", "start", UNIT)
    eventually(lambda: first.reaches(OUTSIDE), what="a packet through", trouble=lambda: told(qube))


def test_forwarding_that_was_ended_stays_off_until_somebody_says_on(qube: Machine, first: Client) -> None:
    qube.run("qubes-guestnet", "forwarding", "off")
    assert forwards(qube) == ["0", "0"]
    assert not first.inside.reaches(OUTSIDE, within_s=1)
    qube.run("systemctl", "restart", RULES, UNIT)
    assert forwards(qube) == ["0", "0"]
    qube.run("qubes-guestnet", "forwarding", "on")
    eventually(lambda: first.reaches(OUTSIDE), what="a packet through", trouble=lambda: told(qube))


def memory(qube: Machine) -> int:
    """Of the agent, in kB."""
    rollup = qube.run("grep", "^Pss:", f"/proc/{pid(qube)}/smaps_rollup")
    return int(rollup.split()[1])


@pytest.mark.behaviour("B104")
def test_many_at_once_cost_few_processes(
    qube: Machine, first: Client, close_qubes: ExitStack, record_property, capsys: pytest.CaptureFixture[str]
) -> None:
    many = [Client(qube, domid) for domid in range(10, 10 + AT_ONCE)]
    for another in many:
        close_qubes.callback(another.close)
        another.plug(GATEWAY6)
    qube.run("udevadm", "settle")
    started, kilobytes = processes(qube), memory(qube)
    client.hotplug_all(many)
    each, growth = (processes(qube) - started) / AT_ONCE, memory(qube) - kilobytes
    commit(many)
    with capsys.disabled():
        print(f"\n{AT_ONCE} vifs at once: {each:.1f} processes each, agent {kilobytes} kB and {growth} kB more")
    record_property("processes_each", each)
    record_property("growth_kb", growth)
    assert [another.xenstore("hotplug-status") for another in many] == ["connected"] * AT_ONCE, told(qube)
    for another in many:
        assert another.reaches(OUTSIDE), told(qube)
    assert each <= PROCESSES_EACH
    assert growth <= GROWTH_KB
    group = f"cd /sys/fs/cgroup; cat systemd/system.slice/{UNIT}/cgroup.procs || cat system.slice/{UNIT}/cgroup.procs"
    assert qube.run("sh", "-c", group).split() == [str(pid(qube))]
    with first.every_packet_returns(OUTSIDE):
        for another in many:
            another.unplug()
    assert len(elements(qube)) == 1, elements(qube)


@pytest.mark.behaviour("B14")
def test_a_vif_that_nobody_told_of_is_set_up_outside_the_sandbox(qube: Machine, close_qubes: ExitStack) -> None:
    """It came before anybody listened. xenstore and a user's hook are out of reach for the agent itself."""
    hook = "/rw/config/network-hooks.d/note"
    qube.run("sh", "-c", f"mkdir -p {Path(hook).parent}; printf '#!/bin/sh\\necho \"$@\" >>/usr/noted\\n' >{hook}")
    qube.run("chmod", "+x", hook)
    qube.run("systemctl", "stop", UNIT)
    late = Client(qube, 30)
    close_qubes.callback(late.close)
    late.plug()
    assert forwards(qube) == ["1", "1"]
    assert not late.inside.reaches(OUTSIDE, within_s=1)
    qube.run("systemctl", "start", UNIT)
    eventually(lambda: late.xenstore("hotplug-status") == "connected", what="its vif", trouble=lambda: told(qube))
    commit((late,))
    assert late.reaches(OUTSIDE), told(qube)
    assert qube.run("cat", "/usr/noted").splitlines() == [
        f"online {late.vif} vif {address}" for address in (late.address, late.address6)
    ]
    late.unplug()


def test_a_qube_with_a_fake_address_reaches_the_world(qube: Machine, close_qubes: ExitStack) -> None:
    """Its namespace is made by what Xen calls, and survives the agent."""
    mapped, visible = Client(qube, 31), "10.137.0.250"
    close_qubes.callback(mapped.close)
    folder = f"/mapped-ip/{mapped.address}"
    qube.write(f"{folder}/visible-ip", visible, f"{folder}/visible-gateway", "10.137.0.251")
    mapped.plug(visible=visible)
    mapped.hotplug()
    assert mapped.xenstore("hotplug-status") == "connected", told(qube)
    eventually(lambda: mapped.reaches(OUTSIDE), what="a packet through", trouble=lambda: told(qube))
    link = qube.inside.link(mapped.vif)
    assert link is not None
    assert link["address"] == client.VIF_MAC
    with mapped.every_packet_returns(OUTSIDE):
        qube.run("systemctl", "restart", UNIT)
    mapped.unplug()
    assert qube.inside.link(mapped.vif) is None
    assert qube.run("ip", "netns") == ""


@pytest.mark.behaviour("B36")
@pytest.mark.behaviour("B42")
@pytest.mark.behaviour("B44")
def test_network_manager_s_word_is_followed(qube: Machine) -> None:
    """NetworkManager takes any other exit status than 0 for a failure."""
    script = "/usr/lib/NetworkManager/dispatcher.d/30-qubes-guestnet"
    assert qube.run("stat", "--format=%u %a", script) == "0 755"
    for event in EVENTS:
        qube.run(script, "eth0", event)
    unchanged = qube.inside.run("/usr/lib/qubes/qubes-setup-dnat-to-ns", check=False)
    assert unchanged.returncode == 100, unchanged.stderr
    # Where the agent does not run, no other program follows a change.
    qube.run("systemctl", "stop", UNIT)
    qube.run("sh", "-c", "cp /etc/resolv.conf /run/ours; echo nameserver 192.0.2.53 >/etc/resolv.conf")
    qube.run(script, "eth0", "hostname")
    assert "192.0.2.53" not in qube.run("nft", "list", "chain", "ip", "qubes", "dnat-dns")
    qube.run(script, "eth0", "dhcp4-change")
    assert "192.0.2.53" in qube.run("nft", "list", "chain", "ip", "qubes", "dnat-dns")
    qube.run("sh", "-c", "cat /run/ours >/etc/resolv.conf")
    changed = qube.inside.run("/usr/lib/qubes/qubes-setup-dnat-to-ns", check=False)
    assert changed.returncode == 0, changed.stderr
    qube.run("systemctl", "start", UNIT)


@pytest.mark.behaviour("B42")
def test_the_updates_proxy_is_restarted_when_the_servers_change_and_only_then(qube: Machine) -> None:
    """From within the sandbox."""
    unit = f"{PROXY}.service"
    run = lambda: qube.property(unit, "InvocationID")  # noqa: E731
    qube.run("systemctl", "start", unit)
    first_run = run()
    for server in ("10.139.1.77", ENTRIES["/qubes-primary-dns"]):
        before = run()
        qube.write("/qubes-primary-dns", server)
        eventually(lambda before=before: run() not in ("", before), what="another run", trouble=lambda: told(qube))
    assert run() != first_run
    eventually(lambda: qube.property(unit, "ActiveState") == "active", what="a proxy that runs")
    before = run()
    qube.write("/qubes-secondary-dns", ENTRIES["/qubes-secondary-dns"])
    qube.run("systemctl", "reload", UNIT)
    never(lambda: run() != before, 0.5, "a restart for nothing")


def test_an_upgrade_loses_no_packet(qube: Machine, first: Client, following: Path) -> None:
    target = "/var/tmp/following.deb"
    with following.open("rb") as package:
        subprocess.run([*qube.inside.prefix, "sh", "-c", f"cat >{target}"], stdin=package, check=True)
    with first.every_packet_returns(OUTSIDE):
        install(qube, "install", target)
    assert "Version: 9.0" in qube.run("dpkg", "--status", "qubes-guestnet")
    assert forwards(qube) == ["1", "1"]
    first.unplug()
    first.plug(GATEWAY6)
    first.hotplug()
    eventually(lambda: first.reaches(OUTSIDE), what="a packet through", trouble=lambda: told(qube))


def test_after_removal_nothing_is_forwarded(qube: Machine, first: Client) -> None:
    install(qube, "remove", "qubes-guestnet")
    assert forwards(qube) == ["0", "0"]
    assert not first.inside.reaches(OUTSIDE, within_s=1)
    assert configured(qube)  # its own network it keeps
    for script in SCRIPTS:
        assert qube.run("sh", "-c", f"test -e {script} || echo gone") == "gone"
    assert qube.run("dpkg-divert", "--list", "*qubes*") == ""
    assert qube.run("systemctl", "--failed", "--no-legend", "--plain") == ""
