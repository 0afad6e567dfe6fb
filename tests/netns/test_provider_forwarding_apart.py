# SPDX-License-Identifier: GPL-2.0-or-later
"""Forwarding of a single interface that its owner, or another program, has switched off: obeyed, named, and ended."""

from __future__ import annotations

import json
import signal

import pytest

from tests.support.eventually import eventually
from tests.support.qubes.provider import ENTRIES6, UPLINK, Provider

VIF = "vif4.0"
CASES = [
    (name, family, path)
    for name in (UPLINK, VIF)
    for family, path in (("IPv4", f"ipv4/conf/{name}/forwarding"), ("IPv6", f"ipv6/conf/{name}/forwarding"))
]


def checked(host: Provider) -> list[str]:
    """Problems of `check` about forwarding."""
    found = json.loads(host.qube.guestnet("check", "--json", check=False).stdout)
    return [finding["problem"] for finding in found if finding["code"] == "forwarding-off"]


@pytest.mark.behaviour("B133")
@pytest.mark.parametrize(("name", "family", "path"), CASES, ids=[f"{name}-{family}" for name, family, _ in CASES])
def test_a_single_interface_that_does_not_forward_is_named_and_left_until_forwarding_on(
    name: str, family: str, path: str
) -> None:
    host = Provider(ENTRIES6)
    behind = host.attach()
    eventually(lambda: host.works(behind), trouble=host.trouble)
    assert checked(host) == []
    host.qube.wire(f"echo 0 > /proc/sys/net/{path}")
    wanted = f"packets from {name} are not forwarded: the user or another program set net/{path} to 0"
    assert checked(host) == [wanted]
    status = host.qube.guestnet("status", check=False).stdout
    assert f"but not packets from {name}, whose own forwarding is 0" in status
    data = json.loads(host.qube.guestnet("status", "--json", check=False).stdout)["provider"]
    assert data["not_forwarded"] == [name]
    host.agent.signal(signal.SIGHUP)
    host.attach(5)
    assert host.qube.guestnet("apply").returncode == 0
    assert checked(host) == [wanted], "it is its owner's to switch on"
    host.qube.guestnet("forwarding", "on")
    eventually(lambda: host.works(behind), trouble=host.trouble)
    assert checked(host) == []
    assert host.forwards(4)
    assert host.forwards(6)
