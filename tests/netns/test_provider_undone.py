# SPDX-License-Identifier: GPL-2.0-or-later
"""What failed stays to do and is tried again; a vif is its device and not its name; askers and daemons."""

from __future__ import annotations

import os
import signal
import time

import pytest

from qubes_guestnet.core.provider import vif as rules
from qubes_guestnet.system import hotplug_socket
from tests.support.eventually import eventually
from tests.support.qubes.provider import ENTRIES, ENTRIES6, HOOKS, ROUTER, VIF_MAC, Provider

STANDIN_PATH = {"PATH": "/run/lab:/usr/sbin:/usr/bin:/sbin:/bin"}


def program(host: Provider, name: str, text: str) -> None:
    host.qube.write(f"/run/lab/{name}", f"#!/bin/sh\n{text}\n")
    host.qube.path(f"/run/lab/{name}").chmod(0o755)


def leads(host: Provider, server: str) -> bool:
    found = host.rules("ip", "dnat-dns")
    return bool(found) and all(server in rule for rule in found)


# --- what is to do -------------------------------------------------------------------------------------------------


@pytest.mark.behaviour("B147")
@pytest.mark.parametrize("failing", ["exit 1", "exec sleep 1000", "kill -9 $$"])
def test_a_failed_restart_of_the_updates_proxy_is_tried_again(failing: str) -> None:
    host = Provider(agent=False)
    program(host, "systemctl", f'echo "$@" >>/run/lab/asked\n[ -e /run/lab/up ] || {failing}')
    host.qube.set_flag("qubes-updates-proxy")
    host.qube.start_agent(env=STANDIN_PATH, deadline=30)
    eventually(lambda: leads(host, ROUTER), trouble=host.trouble)
    asked = lambda: host.qube.read("/run/lab/asked").count("try-restart")  # noqa: E731
    eventually(lambda: asked() > 1, 30, trouble=host.trouble)
    assert "all errors cleared" not in host.agent.output()
    # Until then everything else goes on.
    assert host.call("online", host.plug_bare(4)).returncode == 0
    host.qube.write("/run/lab/up", "")
    eventually(lambda: "all errors cleared" in host.agent.output(), 30, trouble=host.trouble)
    before = asked()
    host.agent.signal(signal.SIGHUP)
    host.write("/qubes-netvm-secondary-dns", "10.139.1.3")
    eventually(lambda: "10.139.1.3" in str(host.rules("ip", "dnat-dns")), trouble=host.trouble)
    assert asked() == before, "done once it is done"
    assert host.agent.output().count("try-restart qubes-updates-proxy.service: ") == 1


@pytest.mark.behaviour("B147")
def test_a_hotplug_command_that_cannot_be_started_is_tried_again() -> None:
    host = Provider(agent=False)
    host.qube.run("mkdir", "-p", "/run/systemd/system")
    text = 'echo >>/run/lab/asked; [ -e /run/lab/up ] || exit 1\nwhile [ "$1" != -- ]; do case $1 in --setenv=*)'
    text += ' export "${1#--setenv=}";; esac; shift; done; shift; "$@" >/run/lab/said 2>&1 &'
    program(host, "systemd-run", text)
    host.plug(4)
    host.qube.start_agent(env=STANDIN_PATH)
    eventually(lambda: host.qube.read("/run/lab/asked").count("\n") > 1, trouble=host.trouble)
    assert host.elements("allowed") == set()
    host.qube.write("/run/lab/up", "")
    eventually(lambda: host.elements("allowed") == {"vif4.0 10.137.0.4"}, trouble=host.trouble)
    assert host.agent.output().count("vif4.0 not started") == 1


# --- a device and its name -----------------------------------------------------------------------------------------


def replace(host: Provider, mac: str = VIF_MAC) -> None:
    """Another device under the name, and hotplug does not know yet."""
    host.qube.wire(f"ip link delete vif4.0; ip link add vif4.0 address {mac} type veth peer name farb")


def closed(host: Provider) -> bool:
    nobody = not any(
        entry.startswith("vif4.0 ") for entry in host.elements("allowed") | host.elements("allowed", "ip6")
    )
    return nobody and "UP" not in host.link("vif4.0")["flags"]


@pytest.mark.behaviour("B117")
@pytest.mark.parametrize("agent", ["started afterwards", "running"])
def test_a_new_device_of_a_known_name_is_a_stranger(agent: str) -> None:
    host = Provider(ENTRIES6)
    behind = host.plug_bare(4)
    host.online(behind)
    if agent == "running":
        replace(host)
    else:
        host.agent.kill()
        replace(host)
        host.qube.start_agent()
    eventually(lambda: closed(host), trouble=host.trouble)
    # Whatever makes the agent look at everything: nothing but hotplug says whose the device is.
    host.agent.signal(signal.SIGHUP)
    host.write("/qubes-netvm-gateway", "10.138.0.7")
    host.nft("flush ruleset")
    eventually(lambda: bool(host.rules("ip", "antispoof")), trouble=host.trouble)
    end = time.monotonic() + 1.5
    while time.monotonic() < end:
        assert closed(host)
        time.sleep(0.1)
    host.online(behind)
    eventually(lambda: "vif4.0 10.137.0.4" in host.elements("allowed"))
    assert "UP" in host.link("vif4.0")["flags"]


@pytest.mark.behaviour("B117")
def test_the_connections_of_a_device_that_went_are_forgotten() -> None:
    host = Provider()
    behind = host.attach(4)
    assert host.works(behind)
    assert behind.ip in host.connections()
    host.qube.wire("ip link delete vif4.0")
    eventually(lambda: behind.ip not in host.connections(), trouble=host.trouble)
    assert host.elements("allowed") == set()


@pytest.mark.behaviour("B117")
def test_the_record_of_a_former_release_is_taken_for_the_device_there_is() -> None:
    host = Provider()
    behind = host.attach(4)
    host.agent.kill()
    record = "/run/qubes-guestnet/vifs/vif4.0"
    lines = host.qube.read(record).splitlines()
    assert [line for line in lines if line.startswith("device ")] == [
        f"device {host.link('vif4.0')['ifindex']} {VIF_MAC}"
    ]
    host.qube.write(record, "".join(f"{line}\n" for line in lines if not line.startswith("device ")))
    host.qube.start_agent()
    eventually(lambda: "device " in host.qube.read(record), trouble=host.trouble)
    assert host.works(behind)


@pytest.mark.behaviour("B146")
def test_a_record_that_cannot_be_read_keeps_nothing_from_the_others() -> None:
    host = Provider(ENTRIES6)
    behind = host.attach(4)
    host.qube.run("mkdir", "-p", "/run/qubes-guestnet/vifs/vif9.0")
    host.nft("flush ruleset")
    host.agent.signal(signal.SIGHUP)
    eventually(lambda: "vif4.0 10.137.0.4" in host.elements("allowed"), trouble=host.trouble)
    eventually(host.forwards)
    assert host.works(behind)
    assert host.call("online", host.plug_bare(5)).returncode == 0
    eventually(lambda: "vifs/vif9.0" in host.agent.output(), trouble=host.trouble)
    time.sleep(1)
    assert sum("vifs/vif9.0" in line for line in host.agent.output().splitlines()) == 1, host.agent.output()
    host.qube.run("rmdir", "/run/qubes-guestnet/vifs/vif9.0")
    eventually(lambda: "all errors cleared" in host.agent.output(), trouble=host.trouble)


# --- askers and hooks ----------------------------------------------------------------------------------------------


@pytest.mark.behaviour("B118")
def test_a_question_is_carried_out_only_while_its_asker_is_there() -> None:
    host = Provider(ENTRIES)
    behind = host.plug_bare(4)
    host.online(behind)
    path = str(host.qube.path("/run/qubes-guestnet/vif.sock"))
    questions = (rules.described("vif4.0", b"00:16:3e:5e:6c:04", b"vif", b"10.137.0.66"),)
    os.kill(host.agent.pid, signal.SIGSTOP)
    for vif in questions:
        assert hotplug_socket.request(path, rules.ask("online", vif), 0.3) is None
        assert hotplug_socket.request(path, rules.ask("offline", vif), 0.3) is None
    os.kill(host.agent.pid, signal.SIGCONT)
    eventually(lambda: host.agent.output().count("its caller has gone") == 2, trouble=host.trouble)
    assert host.elements("allowed") == {"vif4.0 10.137.0.4"}
    assert "UP" in host.link("vif4.0")["flags"]


@pytest.mark.behaviour("B119")
def test_a_daemon_that_a_hook_leaves_lives_and_is_not_waited_for() -> None:
    host = Provider()
    host.qube.write(
        f"{HOOKS}/10-own",
        "(while :; do echo on; date +%s%N >/run/own.new; mv /run/own.new /run/own; sleep 0.05; done) &\n",
    )
    host.qube.path(f"{HOOKS}/10-own").chmod(0o755)
    begin = time.monotonic()
    host.attach()
    assert time.monotonic() - begin < 9, "the limit of a hook is 10 s"
    before = eventually(lambda: host.qube.read("/run/own"))
    eventually(lambda: host.qube.read("/run/own") not in ("", before))
