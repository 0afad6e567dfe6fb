# SPDX-License-Identifier: GPL-2.0-or-later
"""`plan` says what `apply` then does, whatever another program has changed in a provider; and then nothing more."""

from __future__ import annotations

import json

import pytest

from tests.support.eventually import eventually
from tests.support.qubes.appvm import AppVm
from tests.support.qubes.provider import ENTRIES6, HALTED, Provider

ELEMENT = 'element ip qubes allowed { "vif4.0" . 10.137.0.4 }'
CHANGES = {
    "nothing": "true",
    "an element": f"nft 'delete {ELEMENT}'",
    "the elements of a halted qube": "nft flush set ip qubes downstream",
    "the link of a vif": "ip link set vif4.0 down",
    "a route of a vif": "ip route del 10.137.0.4 dev vif4.0",
    "a setting of a vif": "echo 0 > /proc/sys/net/ipv4/conf/vif4.0/rp_filter",
    "the limits": "nft delete table ip qubes-limits",
    "the redirection": "nft flush chain ip qubes dnat-dns; nft flush chain ip qubes dns-reject",
    "the base rules": "nft flush chain ip qubes antispoof",
    "everything": "nft flush ruleset",
    "the device of a vif": "ip link del vif4.0",
    "a chain of the redirection, and servers": (
        "nft flush chain ip qubes dns-reject; echo nameserver 192.0.2.54 >/etc/resolv.conf"
    ),
    "several": f"nft 'delete {ELEMENT}'; ip route del 10.137.0.4 dev vif4.0; nft flush chain ip qubes dnat-dns",
}


def planned(host: Provider | AppVm) -> set[str]:
    """The operations of `plan`."""
    done = host.qube.guestnet("plan", "--json", check=False)
    assert done.returncode == 0, done.stderr
    return {each["operation"] for each in json.loads(done.stdout)}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_what_is_planned_is_done_and_then_nothing_is_planned(change: str) -> None:
    host = Provider(ENTRIES6, agent=False)
    host.qube.guestnet("apply", check=False)
    host.attach()
    host.qube.guestnet("apply", check=False)
    assert planned(host) == set()
    host.qube.run("sh", "-ec", change)
    before = planned(host)
    assert planned(host) == before, "to plan changes nothing"
    done = host.qube.guestnet("apply", check=False)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.splitlines()) == before
    eventually(lambda: planned(host) == set(), trouble=host.trouble)


def test_an_address_that_goes_while_another_table_is_missing_is_planned() -> None:
    """One set that was missing hid what all others held, and the plan lacked an operation (found by random states)."""
    host = Provider(ENTRIES6, agent=False)
    host.qube.guestnet("apply", check=False)
    host.nft("delete table arp qubes")
    host.write("/connected-ips", "")
    before = planned(host)
    assert any(f"delete element ip qubes downstream {{ {HALTED} }}" in words for words in before)
    assert set(host.qube.guestnet("apply", check=False).stdout.splitlines()) == before


def test_an_interface_that_was_taken_down_is_planned_as_apply_configures_it() -> None:
    appvm = AppVm()
    appvm.qube.guestnet("apply")
    appvm.qube.guestnet("uplink", "remove", "eth0")
    before = planned(appvm)
    assert "ip link set dev eth0 up" in before
    assert planned(appvm) == before, "to plan changes nothing"
    assert set(appvm.qube.guestnet("apply").stdout.splitlines()) == before
    assert planned(appvm) == set()
