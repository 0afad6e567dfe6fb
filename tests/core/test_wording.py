# SPDX-License-Identifier: GPL-2.0-or-later
"""Decisions in plain words."""

from __future__ import annotations

import pytest

from qubes_guestnet.core import wording
from qubes_guestnet.core.dns.resolv_conf import Decision, FileFacts, Owner, choose_owner
from qubes_guestnet.core.uplink.desired import Style, StyleChoice
from qubes_guestnet.core.uplink.networkmanager import Manager, ManagerChoice, ManagerFacts, choose_manager

OWNERS = {
    FileFacts(): "written by qubes-guestnet (no other program manages this file)",
    FileFacts(protected_by="/rw/config/protected-files.d/x"): (
        "not written by qubes-guestnet (protected by /rw/config/protected-files.d/x)"
    ),
    FileFacts(immutable=True): (
        "not written by qubes-guestnet (the file is immutable or append-only: lsattr shows it)"
    ),
    FileFacts(disabled=True): "no name server is written (service flag disable-dns-server)",
    FileFacts(networkmanager=True): "written by NetworkManager (service flag network-manager)",
    FileFacts(hook="/rw/config/qubes-ip-change-hook"): "kept as a hook wrote it (/rw/config/qubes-ip-change-hook)",
    FileFacts(tunnel="wg0"): "kept as another program wrote it (a VPN is up: wg0)",
}


@pytest.mark.parametrize(("facts", "words"), OWNERS.items())
def test_which_program_writes_resolv_conf(facts: FileFacts, words: str) -> None:
    assert wording.owner(choose_owner(facts)) == words


def test_every_owner_has_words() -> None:
    assert set(wording._OWNERS) == set(Owner)
    assert set(wording.STYLES) == set(Style)
    assert wording.owner(Decision(Owner.HOOK, "hook=yes")) == "kept as a hook wrote it (yes)"


@pytest.mark.parametrize(
    ("flag", "nmcli", "words"),
    [
        (False, False, "qubes-guestnet (service flag network-manager is not set)"),
        (False, True, "qubes-guestnet (service flag network-manager is not set)"),
        (True, False, "qubes-guestnet (service flag network-manager is set, but nmcli is not installed)"),
        (True, True, "NetworkManager (service flag network-manager)"),
    ],
)
def test_which_program_configures_an_interface(flag: bool, nmcli: bool, words: str) -> None:
    assert wording.manager(choose_manager(ManagerFacts(flag, nmcli))) == words


def test_facts_without_words_are_shown_as_they_are() -> None:
    assert wording.manager(ManagerChoice(Manager.DIRECT, "x=y")) == "x=y"


def test_the_default_route() -> None:
    assert wording.style(StyleChoice(Style.DEVICE, "default")) == "device route (default)"
    assert wording.style(StyleChoice(Style.GATEWAY, "guestnet.toml")) == "gateway route (guestnet.toml)"
