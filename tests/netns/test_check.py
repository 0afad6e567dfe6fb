# SPDX-License-Identifier: GPL-2.0-or-later
"""`check`: each of its codes, for a cause that is real."""

from __future__ import annotations

import json
import signal
import sys

import pytest

from tests.support.eventually import eventually
from tests.support.qubes.appvm import DNS, ENTRIES, GATEWAY, MAC, RESOLV_CONF, AppVm

# Answers every query by itself, which is an answer.
DNS_SERVER = f"""
import socket
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("{GATEWAY}", 53))
print("up", flush=True)
while True:
    query, client = server.recvfrom(512)
    server.sendto(query[:2] + b"\\x80\\x05" + query[4:], client)
"""
WELL = {**ENTRIES, "/qubes-primary-dns": GATEWAY, "/qubes-secondary-dns": ""}


def healthy(appvm: AppVm) -> None:
    """Its name server is the gateway, where one listens."""
    server = appvm.provider.spawn("dns", sys.executable, "-c", DNS_SERVER)
    eventually(lambda: "up" in server.output(), trouble=server.output)
    appvm.qube.guestnet("rules", "load")
    appvm.agent()


def test_all_is_well() -> None:
    appvm = AppVm(WELL)
    healthy(appvm)
    done = appvm.qube.guestnet("check")
    assert (done.returncode, done.stdout, done.stderr) == (0, "all is well\n", "")
    assert json.loads(appvm.qube.guestnet("check", "--json").stdout) == []


def test_a_finding_has_a_code_what_is_wrong_and_what_to_do() -> None:
    appvm = AppVm(WELL, plugged=False)
    appvm.qube.guestnet("rules", "load")
    appvm.agent()
    done = appvm.qube.guestnet("check", check=False)
    assert done.returncode == 1
    first, second = done.stdout.splitlines()
    expected = f"dom0 expects an interface with the MAC address {MAC}, but no such interface exists"
    assert first == f"error: interface-missing: {expected}"
    assert second.startswith("  -> is the provider running?")
    (finding,) = json.loads(appvm.qube.guestnet("check", "--json", check=False).stdout)
    assert set(finding) == {"code", "severity", "problem", "remedy"}


def kill_qubesdb(appvm: AppVm) -> None:
    assert appvm.qube.store_daemon is not None
    appvm.qube.store_daemon.kill()


def stop_agent(appvm: AppVm) -> None:
    assert appvm.qube.agent is not None
    appvm.qube.agent.stop()


def undo_something(appvm: AppVm) -> None:
    stop_agent(appvm)
    appvm.ip("link", "set", "eth0", "group", "7")


def overwrite_resolv_conf(appvm: AppVm) -> None:
    stop_agent(appvm)
    appvm.qube.write(RESOLV_CONF, "nameserver 192.0.2.1\n")


def lower_the_limit(appvm: AppVm) -> None:
    """Shown by the kernel in the first network namespace only."""
    folder = "/proc/sys/net/ipv4/neigh"
    appvm.qube.run("mount", "-t", "tmpfs", "tmpfs", folder)
    appvm.qube.run("sh", "-ec", f"mkdir {folder}/default; echo 1024 > {folder}/default/gc_thresh3")


def damage_the_record(appvm: AppVm) -> None:
    stop_agent(appvm)
    appvm.qube.run("sh", "-ec", "rm /run/qubes-guestnet/owned; mkdir /run/qubes-guestnet/owned")


def break_the_file(appvm: AppVm) -> None:
    assert appvm.qube.agent is not None
    appvm.qube.write("/etc/qubes/guestnet.toml", "]")
    appvm.qube.agent.signal(signal.SIGHUP)


def fall_back(appvm: AppVm) -> None:
    appvm.write("/qubes-primary-dns", DNS)
    appvm.unplug()
    appvm.plug(arp="own")
    appvm.soon_configured(style="gateway", servers=(DNS,))


CODES = {
    "no-qubesdb": (kill_qubesdb, set()),
    "no-provider": (lambda appvm: appvm.remove("/qubes-ip"), set()),
    "settings-invalid": (lambda appvm: appvm.write("/qubes-ip6", "rubbish"), {"agent-error"}),
    "config-invalid": (break_the_file, {"agent-error"}),
    "plan-not-empty": (undo_something, {"agent-not-running"}),
    "resolv-conf-differs": (overwrite_resolv_conf, {"agent-not-running"}),
    "resolv-conf-foreign": (
        lambda appvm: appvm.qube.write("/etc/qubes/protected-files.d/mine", "/etc/resolv.conf\n"),
        set(),
    ),
    "dns-unreachable": (lambda appvm: appvm.write("/qubes-secondary-dns", "10.137.0.7"), set()),
    "fallback-in-use": (fall_back, {"dns-unreachable"}),
    "agent-not-running": (stop_agent, set()),
    "agent-error": (lambda appvm: appvm.write("/qubes-netmask", "rubbish"), {"settings-invalid"}),
    "taken-down": (lambda appvm: appvm.qube.guestnet("uplink", "remove", "eth0"), set()),
    "neighbour-limit-low": (lower_the_limit, set()),
    "pass-failed": (damage_the_record, {"agent-not-running"}),
    "interface-missing": (
        lambda appvm: (appvm.unplug(), appvm.write("/qubes-gateway", "10.137.0.9")),
        set(),
    ),
}


@pytest.mark.parametrize("code", CODES)
def test_every_code_for_real(code: str) -> None:
    cause, besides = CODES[code]
    appvm = AppVm(WELL)
    healthy(appvm)
    cause(appvm)
    expected = {code} | besides

    def found() -> bool:
        done = appvm.qube.guestnet("check", "--json", check=False)
        findings = json.loads(done.stdout)
        errors = [finding for finding in findings if finding["severity"] == "error"]
        assert (done.returncode, done.stderr) == (1 if errors else 0, "")
        assert {finding["code"] for finding in findings} == expected
        return True

    eventually(found, what=f"{code} alone", trouble=appvm.log)
