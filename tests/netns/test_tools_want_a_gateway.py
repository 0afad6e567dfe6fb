# SPDX-License-Identifier: GPL-2.0-or-later
"""A real program that cannot live with a default route without a gateway, and the flag that is its remedy (B131).

pasta is another one. It gives up the rights of root for a user that the lab's namespace does not have.
"""

from __future__ import annotations

import re

import pytest

from qubes_guestnet.lab.qube import Qube
from tests.support.eventually import eventually
from tests.support.needs import needs
from tests.support.qubes.provider import DNS, DNS2, Provider

pytestmark = pytest.mark.behaviour("B131")

GATEWAY, NOBODY = "10.138.0.1", "192.0.2.0/28"
# nmap is linked with a library that Debian leads to by a link in /etc, which unpacked packages lack.
LIBRARIES = {"LD_LIBRARY_PATH": "/usr/lib/x86_64-linux-gnu/blas:/usr/lib/aarch64-linux-gnu/blas"}
both = pytest.mark.parametrize("gateway", [False, True], ids=["device", "gateway"])


def asking(gateway: bool) -> tuple[Provider, Qube]:
    """A provider, and a qube behind it with a resident agent and one of the two styles of route."""
    host = Provider()
    behind = host.attach()
    qube = behind.qube
    qube.wire("ip route flush dev eth0; ip address flush dev eth0")
    if gateway:
        qube.set_flag("guestnet-gateway-route")
    qube.start_store({
        "/qubes-mac": behind.mac, "/qubes-ip": behind.ip, "/qubes-gateway": GATEWAY,
        "/qubes-primary-dns": DNS, "/qubes-secondary-dns": DNS2,
    })  # fmt: skip
    qube.start_agent()
    eventually(lambda: any(route["dst"] == "default" for route in qube.ip("route")))
    return host, qube


@both
def test_nmap_finds_hosts_that_are_not_there_without_a_gateway(gateway: bool) -> None:
    needs("nmap")
    _host, qube = asking(gateway)
    words = ("nmap", "-sn", "-n", "--max-retries", "1", "--host-timeout", "5s", NOBODY)
    said = qube.run(*words, timeout=60.0, env=LIBRARIES).stdout
    found = re.search(r"16 IP addresses \((\d+) hosts? up\)", said)
    assert found is not None, said
    assert int(found[1]) == (0 if gateway else 16), said
