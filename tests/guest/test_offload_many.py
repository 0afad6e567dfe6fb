# SPDX-License-Identifier: GPL-2.0-or-later
"""How much is done for it: nothing without a reason; and more interfaces than the kernel takes in one message (256)."""

from __future__ import annotations

import json
import time

import pytest

from tests.support.eventually import eventually
from tests.support.packets.flows import TABLE, TCP, Offload, flowing
from tests.support.qubes.provider import WORLD, Client, Provider

PAIRS = 130
GROUP, BATCH = "77", "/run/lab/many"
WINDOW_S = 2.0


def handle(host: Provider) -> int:
    """Number of the table, another one each time that it is made anew."""
    listed = json.loads(host.oracle.run("nft", "-j", "list", "tables", "inet").stdout)["nftables"]
    return int(next(entry["table"]["handle"] for entry in listed if entry.get("table", {}).get("name") == TABLE[1]))


@pytest.mark.behaviour("B62", "B106")
def test_it_is_left_alone_while_nothing_changes(host: Provider, behind: Client, offload: Offload) -> None:
    def calm() -> bool:
        before = handle(host)
        time.sleep(WINDOW_S)  # what is measured is this time, and not an outcome
        return handle(host) == before

    eventually(calm, 30, "it is not made anew", host.trouble)
    before = handle(host)
    host.write("/qubes-netvm-secondary-dns", "10.139.1.3")  # a pass, and a change of rules, but of our own
    eventually(lambda: "10.139.1.3" in " ".join(host.rules("ip", "dnat-dns")), 20, "a pass", host.trouble)
    assert calm()
    assert handle(host) == before
    host.nft("add table inet other; delete table inet other")
    eventually(lambda: handle(host) != before, 20, "it is made anew", host.trouble)
    assert eventually(calm, 30, "once", host.trouble)


@pytest.mark.behaviour("B62")
def test_hundreds_of_interfaces(host: Provider, behind: Client, offload: Offload) -> None:
    lines = [f"link add many{number} group {GROUP} type veth peer name more{number}\n" for number in range(PAIRS)]
    host.qube.write(BATCH, "".join(lines))
    host.qube.run("ip", "-batch", BATCH, timeout=60)
    eventually(offload.complete, 60, "offload is on for all", lambda: f"{offload.devices()}\n{host.trouble()}")
    assert len(offload.devices() or ()) > 2 * PAIRS
    with flowing(behind.qube, host.world, WORLD, TCP) as flow:
        offload.takes(flow)
    host.qube.run("ip", "link", "delete", "group", GROUP, timeout=60)
    eventually(offload.complete, 60, "offload is on for what is left", host.trouble)
    assert "offload: on (" in host.qube.guestnet("status", check=False).stdout
