# SPDX-License-Identifier: GPL-2.0-or-later
"""An interface that comes while a verb or the agent has read QubesDB already: it gets the new settings alone (B4)."""

from __future__ import annotations

import sys

import pytest

from tests.support.eventually import eventually
from tests.support.qubes.appvm import ENTRIES, IP, AppVm
from tests.support.qubes.provider import ENTRIES as PROVIDER_ENTRIES

NEW_IP = "10.137.0.66"
READ, GO_ON = "/run/lab/has-read", "/run/lab/go-on"
# The command, stopped once, directly after it has read the entries.
STOPPED = f"""
import os, sys, time
from qubes_guestnet.cli import main, reading
read = reading.entries
def stopped():
    found = read()
    if not os.path.exists({READ!r}):
        open({READ!r}, "w").close()
        while not os.path.exists({GO_ON!r}):
            time.sleep(0.01)
    return found
reading.entries = stopped
sys.exit(main.main())
"""
SETTING_UP = {
    "apply": ("apply",),
    "apply-interface": ("apply", "eth0"),
    "uplink-add": ("uplink", "add", "eth0"),
    "forwarding-on": ("forwarding", "on"),
}
SHOWING = {"plan": ("plan",), "apply-dry": ("apply", "--dry-run"), "status": ("status",), "check": ("check",)}


def interrupted(*verb: str, ip: str) -> tuple[AppVm, int, str]:
    """Replace the provider while the verb has the former keys in its hand. Return its exit status and output."""
    appvm = AppVm(plugged=False)
    running = appvm.qube.spawn("verb", sys.executable, "-c", STOPPED, *verb)
    eventually(lambda: appvm.qube.path(READ).exists(), trouble=running.tail)
    appvm.write("/qubes-ip", ip)
    appvm.plug()
    appvm.qube.path(GO_ON).touch()
    return appvm, running.wait(20), running.output()


@pytest.mark.behaviour("B4")
@pytest.mark.parametrize("verb", SETTING_UP.values(), ids=SETTING_UP)
def test_a_verb_sets_an_interface_up_with_the_keys_that_are_newer_than_it(verb: tuple[str, ...]) -> None:
    appvm, status, output = interrupted(*verb, ip=NEW_IP)
    assert (status, appvm.oracle.addresses("eth0")) == (0, {f"{NEW_IP}/32"}), output
    assert IP not in output


@pytest.mark.behaviour("B4")
@pytest.mark.parametrize("verb", SETTING_UP.values(), ids=SETTING_UP)
def test_former_settings_are_not_set_up_where_the_new_ones_are_invalid(verb: tuple[str, ...]) -> None:
    appvm, status, output = interrupted(*verb, ip="10.137.0.256")
    assert (status, appvm.oracle.addresses("eth0")) == (1, set()), output
    assert "/qubes-ip" in output


@pytest.mark.behaviour("B4")
@pytest.mark.parametrize("verb", SHOWING.values(), ids=SHOWING)
def test_a_verb_shows_what_belongs_to_the_interface_that_is_there(verb: tuple[str, ...]) -> None:
    appvm, _status, output = interrupted(*verb, ip=NEW_IP)
    assert IP not in output.replace(NEW_IP, "")
    assert verb == ("check",) or NEW_IP in output
    assert appvm.oracle.addresses("eth0") == set()


@pytest.mark.behaviour("B4")
@pytest.mark.behaviour("B125")
def test_an_interface_that_comes_without_qubesdb_waits_for_it_while_rules_are_restored() -> None:
    """A provider restores its rules without QubesDB too; that pass has no keys for an uplink that came meanwhile."""
    entries = {**PROVIDER_ENTRIES, **ENTRIES}
    appvm = AppVm(entries)
    appvm.qube.set_flag("qubes-network")
    appvm.qube.guestnet("rules", "load")
    appvm.agent()
    eventually(lambda: appvm.oracle.addresses("eth0") == {f"{IP}/32"}, trouble=appvm.log)
    appvm.qube.stop_store()
    eventually(lambda: "waiting for QubesDB" in str(appvm.qube.notifications()), trouble=appvm.log)
    appvm.unplug()
    appvm.plug()
    appvm.oracle.run("nft", "flush", "ruleset")
    eventually(lambda: "table ip qubes" in appvm.oracle.run("nft", "list", "tables").stdout, trouble=appvm.log)
    appvm.oracle.run("nft", "flush", "table", "ip", "qubes")  # which is noticed once the pass before is through
    eventually(lambda: "masquerade" in appvm.oracle.run("nft", "list", "ruleset").stdout, trouble=appvm.log)
    assert appvm.oracle.addresses("eth0") == set(), appvm.log()
    appvm.qube.start_store({**entries, "/qubes-ip": NEW_IP})
    eventually(lambda: appvm.oracle.addresses("eth0") == {f"{NEW_IP}/32"}, trouble=appvm.log)
