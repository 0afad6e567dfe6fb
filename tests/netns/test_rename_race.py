# SPDX-License-Identifier: GPL-2.0-or-later
"""An interface that is renamed while it is looked at, as udev does when eth0 becomes enX0 (#7284)."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest

from qubes_guestnet.system.netlink import rtnl as netlink
from tests.support.judge.oracle import Oracle
from tests.support.needs import needs

MAC = "00:16:3e:5e:6c:05"


class Renaming(netlink.Kernel):
    """A command runs between the look at all links and what is asked of one by its name."""

    def __init__(self, oracle: Oracle, command: str) -> None:
        super().__init__()
        self._oracle, self._command = oracle, command

    def _dump(self, *arguments: Any, **named: Any) -> list[Any]:
        found = super()._dump(*arguments, **named)
        command, self._command = self._command, ""
        if command:
            self._oracle.run("sh", "-ec", command)
        return found


@pytest.mark.behaviour("B8")
@pytest.mark.parametrize(
    "command",
    [
        "ip link set eth0 name enX0",
        "ip link set eth0 name enX0; ip link add eth0 type bridge",
        "ip link set eth0 name enX0; ip link set other name eth0",
    ],
    ids=["renamed", "a bridge takes the name", "another takes the name"],
)
def test_a_rename_in_mid_look_is_no_loss(command: str) -> None:
    needs("ip")
    oracle = Oracle()
    oracle.run("ip", "link", "add", "eth0", "address", MAC, "type", "veth", "peer", "name", "other")
    index = oracle.ip("link", "show", "dev", "eth0")[0]["ifindex"]
    with contextlib.closing(Renaming(oracle, command)) as kernel:
        (link,) = kernel.links(frozenset({MAC}))
    assert (link.name, link.ifindex, link.driver) == ("enX0", index, "veth")


def test_an_interface_that_goes_in_mid_look_is_gone() -> None:
    needs("ip")
    oracle = Oracle()
    oracle.run("ip", "link", "add", "eth0", "address", MAC, "type", "veth", "peer", "name", "other")
    with contextlib.closing(Renaming(oracle, "ip link delete eth0")) as kernel:
        assert kernel.links(frozenset({MAC})) == ()
