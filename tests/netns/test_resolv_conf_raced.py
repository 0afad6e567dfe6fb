# SPDX-License-Identifier: GPL-2.0-or-later
"""A VPN's client writes resolv.conf while the agent writes it back: the client's words stay; a fight over the file."""

from __future__ import annotations

import sys

import pytest

from qubes_guestnet.core.dns.resolv_conf import RewriteBudget
from tests.netns.test_provider_dns import OF_A_PROXY, leads
from tests.support.eventually import eventually
from tests.support.qubes.appvm import ENTRIES, AppVm
from tests.support.qubes.provider import DNS, DNS2, UPLINK_MAC, Provider
from tests.support.qubes.provider import ENTRIES as OF_A_PROVIDER

VPN = """
    ip link add tun0 type veth peer name far; ip link set far up; ip link set tun0 up
    ip address add 10.8.0.2/24 dev tun0
"""
# `apply`, and a program that runs once, when the new file is on disk and not in place yet.
RACED = """
import subprocess, sys
from qubes_guestnet.system import files
sync, scripts = files._sync, sys.argv[1:]
def raced(fd):
    sync(fd)
    while scripts:
        subprocess.run(["sh", "-ec", scripts.pop()], check=True)
files._sync = raced
from qubes_guestnet.cli.main import main
sys.exit(main(["apply"]))
"""
CLIENTS = {
    "renamed": "echo nameserver 10.8.0.1 >/etc/new; mv /etc/new /etc/resolv.conf",
    "in place": "echo nameserver 10.8.0.1 >/etc/resolv.conf",
    "appended": "echo nameserver 10.8.0.1 >>/etc/resolv.conf",
    "a link": "echo nameserver 10.8.0.1 >/etc/vpn.conf; ln -sfn vpn.conf /etc/resolv.conf",
}


@pytest.mark.behaviour("B124")
@pytest.mark.scenario("S-410")
@pytest.mark.parametrize("client", CLIENTS)
def test_what_a_client_writes_between_the_look_and_the_writing_stays(client: str) -> None:
    appvm = AppVm(ENTRIES)
    appvm.qube.write("/etc/resolv.conf", "nameserver 10.9.0.1\n")  # of a tunnel that is gone
    done = appvm.qube.run(sys.executable, "-c", RACED, VPN + CLIENTS[client], check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "nameserver 10.8.0.1" in appvm.qube.run("cat", "/etc/resolv.conf").stdout
    assert not [name for name in appvm.qube.run("ls", "-a", "/etc").stdout.split() if "guestnet-" in name]


def test_without_a_tunnel_they_are_written_over_all_the_same() -> None:
    appvm = AppVm(ENTRIES)
    appvm.qube.write("/etc/resolv.conf", "nameserver 10.9.0.1\n")
    done = appvm.qube.run(sys.executable, "-c", RACED, CLIENTS["renamed"], check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "10.8.0.1" not in appvm.qube.read("/etc/resolv.conf")
    assert "10.139.1.1" in appvm.qube.read("/etc/resolv.conf")


# `apply` while a client has truncated the file; it writes while the agent waits.
TRUNCATED = """
import os, sys
from types import SimpleNamespace
from qubes_guestnet import dispatch
client = open("/etc/resolv.conf", "w")
def rests(seconds):
    assert 0 < seconds <= 0.1
    client.write("nameserver 10.8.0.1\\n")
    client.flush()
dispatch.time = SimpleNamespace(time=lambda: os.stat("/etc/resolv.conf").st_mtime + 0.01, sleep=rests)
from qubes_guestnet.cli.main import main
sys.exit(main(["apply"]))
"""


@pytest.mark.behaviour("B124")
def test_a_client_that_has_truncated_the_file_writes_it_in_peace() -> None:
    """What it writes went into a file that had been replaced, and names left outside of the tunnel."""
    appvm = AppVm(ENTRIES)
    appvm.qube.run("sh", "-ec", VPN)
    done = appvm.qube.run(sys.executable, "-c", TRUNCATED, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert appvm.qube.read("/etc/resolv.conf") == "nameserver 10.8.0.1\n"


# The file changes before each first attempt of a pass to write it: the attempt fails, and the pass plans again.
CHANGING = """
from qubes_guestnet.system import files
publish = files.publish
def published(path, data, *words, **named):
    if path == "/etc/resolv.conf" and b"changed" not in open(path, "rb").read():
        with open(path, "a") as file:
            file.write("# changed\\n")
    publish(path, data, *words, **named)
files.publish = published
"""


@pytest.mark.behaviour("B124")
def test_a_file_that_changes_before_it_is_written_counts_as_overwritten_once() -> None:
    """Each of these counted twice, and the agent gave the file up as one that another program insists on."""
    host = Provider({**OF_A_PROVIDER, **OF_A_PROXY, "/qubes-mac": UPLINK_MAC}, servers=[DNS], agent=False)
    host.qube.write("/run/lab/changing/sitecustomize.py", CHANGING)
    host.qube.start_agent(env={"PYTHONPATH": ":".join(("/run/lab/changing", *sys.path))})
    for number in range(RewriteBudget.LIMIT - 1):
        host.resolv_conf(f"192.0.2.{number}")
        eventually(lambda: DNS in host.qube.read("/etc/resolv.conf"), trouble=host.trouble)
    assert "another program overwrote" not in host.trouble()


@pytest.mark.behaviour("B123")
def test_a_resolv_conf_that_another_program_keeps_overwriting_delays_no_names() -> None:
    """The pause of resolv.conf is up to a minute; a chain that leads nowhere is restored after a second."""
    host = Provider({**OF_A_PROVIDER, **OF_A_PROXY, "/qubes-mac": UPLINK_MAC}, servers=[DNS])
    leads(host, DNS, DNS2)
    for number in range(RewriteBudget.LIMIT):
        host.resolv_conf(f"192.0.2.{number}")
        eventually(lambda: DNS in host.qube.read("/etc/resolv.conf"), trouble=host.trouble)
    host.resolv_conf("192.0.2.99")
    eventually(lambda: "another program overwrote /etc/resolv.conf" in host.trouble(), trouble=host.trouble)
    leads(host, "192.0.2.99")
    host.nft("flush chain ip qubes dnat-dns")
    leads(host, "192.0.2.99")
