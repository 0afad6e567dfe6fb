# SPDX-License-Identifier: GPL-2.0-or-later
"""The journal of a real agent explains each pass, and `monitor` follows it live."""

from __future__ import annotations

import json
import os
import signal
import sys

from qubes_guestnet import __version__
from qubes_guestnet.lab.qube import Service
from tests.netns.test_provider_status import Provider
from tests.support.eventually import eventually
from tests.support.qubes.appvm import ENTRIES, IP, MAC, AppVm

PROGRAM = (sys.executable, "-m", "qubes_guestnet")


def lines(appvm: AppVm) -> list[str]:
    return appvm.log().splitlines()


def wait_for(appvm: AppVm, line: str) -> int:
    """The number of the line, once the agent has said it."""
    eventually(lambda: line in lines(appvm), what=line, trouble=appvm.log)
    return lines(appvm).index(line)


def test_it_begins_with_its_version_and_roles() -> None:
    appvm = AppVm()
    appvm.agent()
    assert lines(appvm)[:2] == [f"qubes-guestnet {__version__} started: role uplink", f"eth0 found ({MAC})"]
    assert lines(appvm)[2].startswith("woken by the start of the agent: ")
    provider = Provider()
    assert provider.qube.agent is not None
    assert provider.qube.agent.output().splitlines()[0].endswith(" started: role provider")


def test_each_cause_is_named_with_what_was_done() -> None:
    appvm = AppVm()
    appvm.agent()
    appvm.write("/qubes-ip", "10.137.0.77")
    begin = wait_for(appvm, "woken by QubesDB (/qubes-ip): 2 operations")
    assert lines(appvm)[begin + 1 : begin + 3] == [
        "ip address add 10.137.0.77/32 dev eth0", f"ip address del {IP}/32 dev eth0"
    ]  # fmt: skip
    appvm.write("/qubes-ip6", "rubbish")
    wait_for(appvm, "woken by QubesDB (/qubes-ip6): 1 error")
    appvm.ip("route", "delete", "default", "dev", "eth0")
    wait_for(appvm, "repair, because another program changed a route: 1 operation")
    appvm.qube.run("sh", "-c", "echo nameserver 192.0.2.53 > /etc/resolv.conf")
    begin = wait_for(appvm, "repair, because another program changed resolv.conf: 1 operation")
    assert lines(appvm)[begin + 1] == "/etc/resolv.conf written: 10.139.1.1 10.139.1.2"
    appvm.unplug()
    wait_for(appvm, "eth0 gone")
    appvm.plug()
    wait_for(appvm, "eth0 back")
    assert not [line for line in lines(appvm) if line.startswith("repair") and "link" in line]


def test_what_changes_nothing_is_told_only_verbosely() -> None:
    appvm = AppVm()
    agent = appvm.agent()
    appvm.write("/qubes-ip", IP)
    agent.signal(signal.SIGHUP)
    appvm.write("/qubes-ip", "10.137.0.77")
    eventually(lambda: appvm.said(": 2 operations"), trouble=appvm.log)
    assert appvm.said("nothing to do") == 0, appvm.log()
    agent.stop()
    appvm.qube.agent = agent = appvm.qube.spawn("verbose", *PROGRAM, "agent", "-v")
    eventually(lambda: appvm.said("woken by the start of the agent: nothing to do"), trouble=appvm.log)
    appvm.write("/qubes-ip", "10.137.0.77")
    eventually(lambda: appvm.said("woken by QubesDB (/qubes-ip): nothing to do"), trouble=appvm.log)
    agent.signal(signal.SIGHUP)
    eventually(lambda: appvm.said("woken by SIGHUP: nothing to do"), trouble=appvm.log)


def test_the_same_again_and_again_is_told_ever_less() -> None:
    appvm = AppVm()
    appvm.agent()
    word = "repair, because another program changed a route: 1 operation"
    for _ in range(9):
        eventually(lambda: "default" in appvm.qube.run("ip", "route").stdout, trouble=appvm.log)
        appvm.ip("route", "delete", "default", "dev", "eth0")
    eventually(lambda: appvm.said("times in a row)"), trouble=appvm.log)
    said = [line for line in lines(appvm) if line.startswith(word)]
    assert len(said) <= 6
    assert appvm.said("route append") < 9


# --- monitor ---------------------------------------------------------------------------------------------------------


def end(following: Service) -> None:
    os.kill(following.pid, signal.SIGINT)
    assert following.wait(10) == 0, following.tail()


def test_monitor_follows_passes_causes_and_operations() -> None:
    appvm = AppVm()
    appvm.agent()
    following = appvm.qube.spawn("monitor-text", *PROGRAM, "monitor")
    programs = appvm.qube.spawn("monitor-json", *PROGRAM, "monitor", "--json")
    for each in (following, programs):
        eventually(lambda each=each: "following qubes-guestnet" in each.output(), trouble=each.output)
    appvm.write("/qubes-ip", "10.137.0.77")
    for each in (following, programs):
        eventually(lambda each=each: "nothing to do" in each.output(), trouble=each.output)
    said = [line.partition(" ")[2] for line in following.output().splitlines()]
    begin = said.index("woken by QubesDB (/qubes-ip): 2 operations")
    assert said[begin + 1] == "  ip address add 10.137.0.77/32 dev eth0"
    data = [json.loads(line) for line in programs.output().splitlines()]
    assert [set(each) for each in data] == [{"time", "level", "kind", "text", "lost"}] * len(data)
    kinds = [each["kind"] for each in data]
    assert kinds[:4] == ["agent", "pass", "operation", "operation"]
    assert {each["level"] for each in data if each["text"].endswith("nothing to do")} == {"debug"}
    end(following)
    end(programs)


def test_monitor_waits_for_the_next_agent() -> None:
    appvm = AppVm()
    failed = appvm.qube.guestnet("monitor", check=False)
    assert (failed.returncode, failed.stdout) == (1, "")
    assert failed.stderr == "qubes-guestnet: the resident agent is not running; systemctl start qubes-guestnet\n"
    agent = appvm.agent()
    following = appvm.qube.spawn("monitor", *PROGRAM, "monitor", "--color=always")
    eventually(lambda: "following" in following.output(), trouble=following.output)
    agent.stop()
    eventually(lambda: "the agent ended; waiting for the next one" in following.output(), trouble=following.output)
    appvm.agent()
    eventually(lambda: following.output().count("following") == 2, trouble=following.output)
    assert "\x1b[1m" in following.output()
    end(following)


def test_in_a_provider_too() -> None:
    provider = Provider()
    following = provider.qube.spawn("monitor", *PROGRAM, "monitor")
    eventually(lambda: "following" in following.output(), trouble=following.output)
    provider.nft("delete table ip qubes")
    eventually(lambda: "another program changed" in following.output(), trouble=following.output)
    eventually(lambda: "base rules" in following.output(), trouble=following.output)
    end(following)


def test_the_agent_works_where_nothing_can_follow_it() -> None:
    appvm = AppVm(ENTRIES)
    appvm.qube.run("mkdir", "-p", "/run/qubes-guestnet/monitor.sock")
    appvm.agent()
    appvm.check()
    assert appvm.said("`monitor` cannot follow this agent") == 1
