# SPDX-License-Identifier: GPL-2.0-or-later
"""`vif online` and `vif offline` with real packets: again, too early, too late, in the order of safety."""

from __future__ import annotations

import fcntl
import signal
import sys
import time
from pathlib import Path

import pytest

from qubes_guestnet.lab.qube import Service
from tests.support.eventually import eventually
from tests.support.packets.storm import shot, storm
from tests.support.qubes.provider import (
    ENTRIES6,
    GROUP_VIF,
    HALTED,
    HOTPLUG_LOG,
    OWN,
    UPLINK,
    VIF_MAC,
    WORLD,
    Client,
    Provider,
    several,
)

SPOOFED = "10.137.0.77"
resident_or_not = pytest.mark.parametrize("agent", [True, False], ids=["agent", "cold"])


IMPATIENT = """
from qubes_guestnet.cli import vif as hotplug
hotplug.DEVICE_SECONDS = hotplug.ANSWER_SECONDS = 0.3
"""
TELLING = """
from qubes_guestnet.cli import vif as hotplug
wait = hotplug._await
def telling(name):
    open("/run/lab/waits", "w").close()
    wait(name)
hotplug._await = telling
"""
UNPURGEABLE = """
from qubes_guestnet.system import conntrack
from qubes_guestnet.system.netlink import wire as netlink_wire
request = netlink_wire.Netfilter.request
def refusing(self, message, *words):
    if message == conntrack.IPCTNL_MSG_CT_DELETE:
        raise PermissionError(1, "refused")
    return request(self, message, *words)
netlink_wire.Netfilter.request = refusing
"""


def changed(host: Provider, text: str) -> str:
    """A PYTHONPATH with which a program runs this first."""
    host.qube.write("/run/lab/changed/sitecustomize.py", text)
    return ":".join(("/run/lab/changed", *sys.path))


def begin(host: Provider, behind: Client) -> Service:
    """Call `vif online`; it waits for the device."""
    command = (sys.executable, "-m", "qubes_guestnet", "vif", "online")
    environment = {**host.environment(behind), "PYTHONPATH": changed(host, TELLING)}
    called = host.qube.spawn(f"online-{behind.vif}", *command, env=environment)
    eventually(lambda: host.qube.path("/run/lab/waits").exists(), trouble=called.output)
    return called


def gone(host: Provider, behind: Client) -> None:
    """Nothing is left of a vif."""
    assert host.elements("allowed") == host.elements("allowed", "ip6") == set()
    assert behind.ip not in host.elements("downstream")
    assert host.routes(behind.vif) == host.routes(behind.vif, 6) == []
    assert not host.qube.path(f"/run/qubes-guestnet/vifs/{behind.vif}").exists()
    assert behind.ip not in host.connections()


@pytest.mark.behaviour("B47")
@resident_or_not
def test_online_again_and_twice_at_once_leaves_one_identical_set(agent: bool) -> None:
    host = Provider(ENTRIES6, agent=agent)
    behind = host.attach()
    before = host.state(behind.vif)
    host.online(behind)
    assert host.state(behind.vif) == before
    assert [status for status, _ in several(host, "online", [behind] * 3)] == [0] * 3, host.trouble()
    assert host.state(behind.vif) == before
    if agent:
        assert host.works(behind)


@pytest.mark.behaviour("B47")
def test_a_vif_that_was_there_before_anybody_listened() -> None:
    host = Provider(ENTRIES6, agent=False)
    early, other = host.plug(4), host.plug(5)
    host.qube.start_agent()
    for behind in (early, other):
        eventually(lambda name=behind: host.node(name, "hotplug-status") == "connected", trouble=host.trouble)
        assert host.works(behind)
        assert host.works(behind, version=6)
    before = host.state(early.vif)
    host.online(early)  # xl devd is late, and comes all the same
    assert host.state(early.vif) == before


@pytest.mark.behaviour("B48")
@resident_or_not
def test_the_device_comes_later(agent: bool) -> None:
    host = Provider(agent=agent)
    behind = Client(4, ["10.137.0.4"])
    host.describe(behind)
    called = begin(host, behind)
    assert called.running
    host.wire(behind)
    assert called.wait(10.0) == 0, host.trouble()
    assert host.node(behind, "hotplug-status") == "connected"
    assert "UP" in host.link(behind.vif)["flags"]


@pytest.mark.behaviour("B48")
@resident_or_not
def test_the_device_never_comes(agent: bool) -> None:
    host = Provider(agent=agent)
    behind = Client(4, ["10.137.0.4"])
    host.describe(behind)
    done = host.call("online", behind, PYTHONPATH=changed(host, IMPATIENT))
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    for told in (done.stderr, host.node(behind, "hotplug-error"), host.qube.read(HOTPLUG_LOG)):
        assert told.count("vif4.0") == 1
        assert "vif4.0: no such device after 0.3 s" in told
    assert host.node(behind, "hotplug-status") == "error"
    assert host.elements("allowed") == set()


@pytest.mark.behaviour("B49")
@resident_or_not
@pytest.mark.parametrize("ipv6", [True, False])
def test_offline_when_the_device_is_gone(agent: bool, ipv6: bool) -> None:
    host = Provider(ENTRIES6, agent=agent) if ipv6 else Provider(agent=agent)
    behind = host.attach()
    if agent:
        assert host.works(behind)
    host.unplug(behind)
    for _ in range(2):
        host.offline(behind)
        gone(host, behind)
    assert host.qube.read(HOTPLUG_LOG) == ""
    assert host.elements("downstream") == {HALTED}


@pytest.mark.behaviour("B49")
@resident_or_not
def test_offline_while_the_device_is_there(agent: bool) -> None:
    host = Provider(ENTRIES6, agent=agent)
    behind = host.attach()
    host.offline(behind)
    gone(host, behind)
    assert "UP" not in host.link(behind.vif)["flags"]
    assert (host.oracle.addresses(behind.vif), host.oracle.neighbours(behind.vif)) == (set(), {})
    host.online(behind)
    assert host.link(behind.vif)["group"] in GROUP_VIF


@pytest.mark.behaviour("B49")
@resident_or_not
def test_offline_cleans_up_whatever_somebody_else_has_taken_away(agent: bool) -> None:
    host = Provider(ENTRIES6, agent=agent)
    behind = host.attach()
    host.nft('delete element ip qubes allowed { "vif4.0" . 10.137.0.4 }')
    host.qube.wire(f"ip route flush dev {behind.vif}; ip neighbour flush dev {behind.vif} nud all")
    host.nft("flush ruleset")
    host.unplug(behind)
    host.qube.write(f"/run/qubes-guestnet/vifs/{behind.vif}", "vif vif4.0 damaged")
    host.offline(behind)
    gone(host, behind)


@pytest.mark.behaviour("B49")
@resident_or_not
def test_offline_takes_the_namespace_of_a_fake_address_along(agent: bool) -> None:
    host = Provider({**ENTRIES6, "/mapped-ip/10.137.0.4/visible-ip": "192.168.1.128"}, agent=agent)
    behind = host.attach()
    assert host.qube.path("/run/netns/vif4-nat").exists()
    assert host.elements("allowed", "ip6") == set()
    behind.qube.wire("ip link delete eth0")  # the other end is in that namespace
    for _ in range(2):
        host.offline(behind)
        gone(host, behind)
        assert not host.qube.path("/run/netns/vif4-nat").exists()


@pytest.mark.behaviour("B50")
@resident_or_not
@pytest.mark.parametrize("version", [4, 6])
def test_nothing_passes_before_its_element_exists(agent: bool, version: int) -> None:
    """A qube sends all the time. Had the link come first, antispoof would have dropped packets that are allowed."""
    host = Provider(ENTRIES6, agent=agent)
    behind, outside, inside = host.plug(), host.outside(), host.inside(version)
    source, spoofed, target = (
        (behind.ip, SPOOFED, WORLD) if version == 4 else (behind.ip6, "fd09:24ef:4179::dead", "2000:abcd:1::7")
    )
    with storm([shot(behind.port, source, target, "own")]):
        host.online(behind)
    with storm([shot(behind.port, spoofed, target, "spoofed")]):
        host.offline(behind)
        assert host.drops("antispoof", "ip" if version == 4 else "ip6") > 0
        host.online(behind)
    if agent:
        assert outside.words() == {"own"}
    assert inside.words() == set()


def test_the_measure_of_the_order_can_fail() -> None:
    """The order that users suffered from, by hand: link up, then the element."""
    host = Provider()
    behind = host.plug()
    with storm([shot(behind.port, behind.ip, WORLD, "own")]) as rounds:
        host.qube.wire(f"ip link set {behind.vif} group 2; ip link set {behind.vif} up")
        rounds(20)
        host.nft(f'add element ip qubes allowed {{ "vif4.0" . {behind.ip} }}')
    assert host.drops("antispoof") > 0


@pytest.mark.behaviour("B50")
@resident_or_not
def test_no_allowed_packet_is_dropped_on_the_way_up(agent: bool) -> None:
    host = Provider(agent=agent)
    behind = host.plug()
    with storm([shot(behind.port, behind.ip, WORLD, "own")]):
        host.online(behind)
    assert host.drops("antispoof") == 0


@pytest.mark.behaviour("B53")
@resident_or_not
def test_a_new_holder_of_an_address_hears_nothing_of_the_connections_of_the_former(agent: bool) -> None:
    host = Provider()
    former, outside = host.attach(4), host.outside()
    assert host.works(former, outside)
    outside.send(WORLD, OWN, "answer", sport=9, dport=1024)
    assert former.port.hears(lambda packet: packet.word == "answer")
    assert f"src={former.ip}" in host.connections()
    if not agent:
        host.agent.stop()
    # Killed, without a call of hotplug before the address has its next holder.
    host.unplug(former)
    new = host.attach(5, former.ip)
    assert f"src={former.ip}" not in host.connections()
    outside.send(WORLD, OWN, "late", sport=9, dport=1024)
    assert host.works(new, outside)
    assert new.port.words() == set()
    host.offline(new)
    assert f"src={former.ip}" not in host.connections()


FAILURES = {
    "the count cannot be read": ("mount --bind /proc/1/mem /proc/sys/net/netfilter/nf_conntrack_count", ""),
    "an entry cannot be deleted": ("", UNPURGEABLE),
}


@pytest.mark.behaviour("B53")
@resident_or_not
@pytest.mark.parametrize("failure", FAILURES)
def test_no_purge_no_attachment(agent: bool, failure: str) -> None:
    host = Provider(agent=False)
    script, patch = FAILURES[failure]
    path = changed(host, patch)
    if agent:
        host.qube.start_agent(env={"PYTHONPATH": path})
    host.oracle.run("conntrack", "-I", "-s", "10.137.0.4", "-d", WORLD, "-p", "udp", "--sport", "7", "--dport", "9",
                    "-t", "60")  # fmt: skip
    host.qube.run("sh", "-ec", script)
    behind = host.plug()
    done = host.call("online", behind, PYTHONPATH=path)
    assert done.returncode == 1
    assert "conntrack" in host.node(behind, "hotplug-error")
    assert host.node(behind, "hotplug-status") == "error"
    assert "UP" not in host.link(behind.vif)["flags"]
    assert host.elements("allowed") == set()


@pytest.mark.behaviour("B53")
def test_a_failing_purge_does_not_stop_a_detachment_half_way() -> None:
    host = Provider(agent=False)
    behind = host.attach()
    host.qube.run("mount", "--bind", "/proc/1/mem", "/proc/sys/net/netfilter/nf_conntrack_count")
    done = host.call("offline", behind)
    assert done.returncode == 1
    assert "conntrack" in done.stderr
    assert host.elements("allowed") == set()
    assert "UP" not in host.link(behind.vif)["flags"]
    # What is left to do stays known (B147): the record is that of no device, and the next agent does all of it.
    record = f"/run/qubes-guestnet/vifs/{behind.vif}"
    assert "device 0\n" in host.qube.read(record)
    host.qube.run("umount", "/proc/sys/net/netfilter/nf_conntrack_count")
    host.qube.start_agent()
    eventually(lambda: "address" not in host.qube.read(record), trouble=host.trouble)
    assert "UP" not in host.link(behind.vif)["flags"]
    assert host.elements("allowed") == set()


def test_a_stopped_agent_does_not_hold_an_attachment_up_for_ever() -> None:
    """One that does not answer is as good as none; when it goes on, it finds all done."""
    host = Provider()
    behind = host.plug()
    # The agent looks at the new device on its own. Stopped in the middle of a pass it holds the lock that the command
    # needs, and the command fails, as it should (FileError: "is it suspended?").
    with host.qube.path("/run/qubes-guestnet/lock").open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        pid = host.agent.pid
        host.agent.signal(signal.SIGSTOP)
        eventually(lambda: Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T")
    done = host.call("online", behind, PYTHONPATH=changed(host, IMPATIENT))
    assert done.returncode == 0, done.stderr
    before = host.state(behind.vif)
    host.agent.signal(signal.SIGCONT)
    assert host.works(behind)
    assert host.state(behind.vif) == before
    assert (host.link(behind.vif)["address"], host.link(UPLINK)["group"]) == (VIF_MAC, "default")


@pytest.mark.behaviour("B119")
@pytest.mark.parametrize("action", ["online", "offline"])
def test_programs_that_hang_end_before_xen_gives_up(action: str) -> None:
    """Xen's libxl waits 40 s for a script (LIBXL_HOTPLUG_TIMEOUT); then it reports its timeout and not the cause."""
    host = Provider()
    behind = host.attach() if action == "offline" else host.plug()
    host.agent.kill()
    host.qube.write("/run/lab/hanging", "#!/bin/sh\nexec sleep 1000\n")
    host.qube.path("/run/lab/hanging").chmod(0o755)
    host.replace_nft("/run/lab/hanging")
    start = time.monotonic()
    done = host.call(action, behind)
    assert time.monotonic() - start < 40
    # What a vif ends by is no text for nft; without an agent, what one begins by needs the base rules to be listed.
    wanted = (1, True) if action == "online" else (0, False)
    assert (done.returncode, "nft" in done.stderr) == wanted, done.stderr
    if action == "offline":
        host.restore_nft()
        assert behind.vif not in host.oracle.run("nft", "list", "ruleset").stdout
