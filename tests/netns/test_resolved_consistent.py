# SPDX-License-Identifier: GPL-2.0-or-later
"""An answer of systemd-resolved is of one moment, though it takes several questions: a VPN comes up between them."""

from __future__ import annotations

import ipaddress
import itertools
import time
from pathlib import Path
from typing import Any

import pytest

from qubes_guestnet.core.dns.upstream_servers import LinkServers
from qubes_guestnet.core.endpoint import Endpoint
from qubes_guestnet.system.dbus import resolved

VERBS = ("dns", "domain", "default-route", "dnsovertls")
BEFORE = {
    "dns": "Global:\nLink 2 (eth0): 10.139.1.1\nLink 3 (wg0):\n",
    "domain": "Global:\nLink 2 (eth0): ~.\nLink 3 (wg0):\n",
    "default-route": "Link 2 (eth0): yes\nLink 3 (wg0): no\n",
    "dnsovertls": "Global: no\nLink 2 (eth0): no\nLink 3 (wg0): yes\n",
}
AFTER = {
    "dns": "Global:\nLink 2 (eth0): 10.139.1.1\nLink 3 (wg0): 10.64.0.1\n",
    "domain": "Global:\nLink 2 (eth0): ~.\nLink 3 (wg0): ~.\n",
    "default-route": "Link 2 (eth0): yes\nLink 3 (wg0): yes\n",
    "dnsovertls": "Global: no\nLink 2 (eth0): no\nLink 3 (wg0): no\n",
}
OURS = LinkServers(2, (Endpoint(ipaddress.ip_address("10.139.1.1")),), everything=True, uplink=True)
TUNNEL = LinkServers(3, (Endpoint(ipaddress.ip_address("10.64.0.1")),), everything=True)
SCRIPT = """#!/bin/sh
echo "$1" >>{folder}/asked
if [ -e {folder}/$1.first ]; then cat {folder}/$1.first; rm {folder}/$1.first; else cat {folder}/$1; fi
"""
TORN = [late for size in (1, 2, 3) for late in itertools.combinations(VERBS, size)]


def program(folder: Path, late: tuple[str, ...]) -> resolved.ByCommand:
    """A resolvectl that prints the state after the VPN came up, but the first time for these verbs the one before."""
    for verb in VERBS:
        (folder / verb).write_text(AFTER[verb])
        if verb in late:
            (folder / f"{verb}.first").write_text(BEFORE[verb])
    script = folder / "resolvectl"
    script.write_text(SCRIPT.format(folder=folder))
    script.chmod(0o755)
    return resolved.ByCommand(str(script))


@pytest.mark.behaviour("B37", "B127")
@pytest.mark.parametrize("late", TORN, ids="+".join)
def test_no_answer_is_put_together_of_two_states(
    late: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resolved, "_started", time.monotonic)
    heard = resolved.ask(program(tmp_path, late), frozenset({2}), (OURS,))
    # Without the server of the tunnel it is what was there before.
    assert heard.links == ((OURS,) if "dns" in late else (OURS, TUNNEL))


def test_what_did_not_change_is_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolved, "_started", time.monotonic)
    heard = resolved.ask(program(tmp_path, ()), frozenset({2}), (OURS, TUNNEL))
    assert heard.links == (OURS, TUNNEL)
    assert sorted((tmp_path / "asked").read_text().split()) == sorted(VERBS)


class Bus:
    """A bus on which a link's property changes when it was asked for the first time.

    Args:
        endless: it changes each time, and back.
    """

    def __init__(self, *, endless: bool = False) -> None:
        self.asked = 0
        self._endless = endless

    def call(self, _service: str, path: str, _interface: str, member: str, *_: object) -> Any:
        """What systemd-resolved answers."""
        if member == "GetLink":
            return ("/link",)
        if path != "/link":
            servers = [(2, 2, bytes((10, 139, 1, 1))), (3, 2, bytes((10, 64, 0, 1)))]
            domains = [(2, ".", True), (3, "corp.example", False)]
            return ({"DNS": ("a(iiay)", servers), "Domains": ("a(isb)", domains)},)
        self.asked += 1
        default = self.asked % 4 in (1, 2) if self._endless else self.asked <= 2
        return ({"DefaultRoute": ("b", default)},)


@pytest.mark.behaviour("B37", "B127")
def test_a_link_that_stops_to_take_every_name_is_seen_so_by_the_bus_too() -> None:
    heard = resolved.ask(resolved.ByBus(Bus()), frozenset({2}))  # type: ignore[arg-type]
    assert heard.links is not None
    assert [link.default_route for link in heard.links] == [False, False]


def test_what_never_stays_the_same_is_no_reason_to_ask_for_ever() -> None:
    bus = Bus(endless=True)
    assert resolved.ask(resolved.ByBus(bus), frozenset({2})).links is not None  # type: ignore[arg-type]
    assert bus.asked == 8
