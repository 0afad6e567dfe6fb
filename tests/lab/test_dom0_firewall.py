# SPDX-License-Identifier: GPL-2.0-or-later
"""The firewall rules of qubes as the lab's dom0 writes them: when, in which order, and what stays."""

from __future__ import annotations

import pytest

from qubes_guestnet.lab import firewall_rules
from qubes_guestnet.lab.dom0 import Dom0, Vm
from qubes_guestnet.lab.firewall_rules import Rules
from qubes_guestnet.lab.stage import Stage
from tests.support.needs import needs
from tests.support.programs.dom0_words import as_recorded, firewall, operations

pytestmark = pytest.mark.behaviour("B161")


@pytest.fixture(autouse=True)
def _tools() -> None:
    needs("ip", "nsenter", "nft", "dnsmasq")


def rules(*texts: str) -> Rules:
    return tuple(map(firewall_rules.parse, texts))


def written(dom0: Dom0, netvm: Vm, address: str) -> dict[str, str]:
    """What the daemon of a provider has of a qube, by the last part of the key; of the base entry that is ""."""
    base = f"/qubes-firewall/{address}"
    found = {key: value.decode() for key, value in dom0.read_all(netvm).items() if f"{key}/".startswith(f"{base}/")}
    return {key.removeprefix(base).strip("/"): value for key, value in found.items()}


def test_a_change_writes_the_whole_list_and_nothing_else() -> None:
    stage = Stage(ipv6=True)
    dom0, netvm = stage.dom0, stage.netvm1
    vm = stage.start("vm", netvm)
    long = rules(*(f"action=accept dst4=192.0.2.{number}" for number in range(4)), "action=accept dst6=2001:db8::1")
    dom0.set_firewall(vm, long)
    assert written(dom0, netvm, vm.address) == {
        "": "", "policy": "drop", **{f"000{number}": f"action=accept dst4=192.0.2.{number}/32" for number in range(4)},
    }  # fmt: skip
    assert written(dom0, netvm, vm.address6) == {
        "": "", "policy": "drop", "0004": "action=accept dst6=2001:db8::1/128",
    }  # fmt: skip
    with operations(dom0) as done:
        dom0.set_firewall(vm, rules("action=drop"))
    assert done == firewall(netvm, vm, vm.address6, "action=drop")
    assert written(dom0, netvm, vm.address) == {"": "", "policy": "drop", "0000": "action=drop"}
    with operations(dom0) as again:
        dom0.reload_firewall(vm)
    assert again == done
    as_recorded(dom0, netvm, vm)


def test_of_a_halted_qube_nothing_is_written_until_it_starts() -> None:
    stage = Stage()
    dom0, netvm = stage.dom0, stage.netvm1
    vm = dom0.create("vm", netvm)
    with operations(dom0) as done:
        dom0.set_firewall(vm, rules("action=drop"))
    assert done == []
    with operations(dom0) as done:
        dom0.start(vm)
    assert [line for line in done if "firewall" in line] == firewall(netvm, vm, rules="action=drop") * 2


def test_what_was_written_stays_when_the_qube_leaves_and_when_it_loses_ipv6() -> None:
    stage = Stage(ipv6=True)
    dom0, netvm, other = stage.dom0, stage.netvm1, stage.provider("netvm2")
    vm = stage.start("vm", netvm)
    before = {key: value for key, value in dom0.read_all(netvm).items() if key.startswith("/qubes-firewall/")}
    assert len(before) == 6
    dom0.set_feature(vm, "ipv6", "")
    with operations(dom0) as done:
        dom0.set_firewall(vm, rules("action=drop"))
    assert done == firewall(netvm, vm, rules="action=drop")
    assert written(dom0, netvm, vm.address6)["0000"] == "action=accept", "dom0 leaves IPv6 as it was"
    dom0.set_netvm(vm, other)
    dom0.set_firewall(vm, rules("action=accept proto=icmp"))
    assert written(dom0, other, vm.address)["0000"] == "action=accept proto=icmp"
    assert written(dom0, netvm, vm.address)["0000"] == "action=drop"
    dom0.shutdown(vm)
    dom0.delete(vm)
    assert written(dom0, other, vm.address)["0000"] == "action=accept proto=icmp"


def test_twenty_changes_are_twenty_commits_in_order() -> None:
    stage = Stage()
    dom0, netvm = stage.dom0, stage.netvm1
    vm = stage.start("vm", netvm)
    lists = [tuple(f"action=accept dst4=192.0.2.{each}/32" for each in range(number)) for number in range(20)]
    with operations(dom0) as done:
        for texts in lists:
            dom0.set_firewall(vm, rules(*texts))
    base = f"/qubes-firewall/{vm.address}"
    assert done == [
        line
        for texts in lists
        for line in (
            f"rm netvm1 {base}/",
            f"write netvm1 {base}/policy = drop",
            *(f"write netvm1 {base}/{number:04} = {text}" for number, text in enumerate(texts)),
            f"write netvm1 {base}",
        )
    ]


def test_expiry_is_a_new_commit_with_a_gap_and_after_the_next_change_without() -> None:
    stage = Stage()
    dom0, netvm = stage.dom0, stage.netvm1
    vm = stage.start("vm", netvm)
    now = dom0.time()
    dom0.time = lambda: now
    soon, later = int(now) + 10, int(now) + 20
    dom0.set_firewall(
        vm,
        rules(f"action=accept expire={soon}", f"action=accept proto=tcp expire={later}", "action=accept proto=icmp"),
    )
    assert dom0.next_expiry() == soon
    with operations(dom0) as done:
        dom0.time = lambda: soon
        dom0.expire_firewalls()
    assert done == [], "it counts up to that second"
    with operations(dom0) as done:
        dom0.time = lambda: soon + 0.5
        dom0.expire_firewalls()
    assert len(done) == 5
    assert written(dom0, netvm, vm.address) == {
        "": "", "policy": "drop", "0001": "action=accept proto=tcp", "0002": "action=accept proto=icmp",
    }  # fmt: skip
    assert dom0.next_expiry() == later
    dom0.time = lambda: later + 0.5
    dom0.expire_firewalls()
    # dom0 has loaded its file again, in which the first one was missing by then.
    assert written(dom0, netvm, vm.address) == {"": "", "policy": "drop", "0001": "action=accept proto=icmp"}
    assert dom0.next_expiry() is None
    dom0.set_firewall(vm, tuple(rule for rule in vm.firewall.rules if not rule.expired(dom0.time())))
    assert written(dom0, netvm, vm.address) == {"": "", "policy": "drop", "0000": "action=accept proto=icmp"}


def test_what_dom0_would_refuse_can_be_written_and_half_of_a_save_too() -> None:
    stage = Stage()
    dom0, netvm = stage.dom0, stage.netvm1
    vm = stage.start("vm", netvm)
    dom0.write_firewall(netvm, vm.address, {"policy": "drop", "0000": b"action=\xff=accept", "x": "", "00001": "a  b"})
    found = dom0.read_all(netvm)
    base = f"/qubes-firewall/{vm.address}"
    assert {key: value for key, value in found.items() if key.startswith(base)} == {
        base: b"", f"{base}/policy": b"drop", f"{base}/0000": b"action=\xff=accept", f"{base}/x": b"",
        f"{base}/00001": b"a  b",
    }  # fmt: skip
    with operations(dom0) as done:
        dom0.write_firewall(netvm, vm.address, {"0000": "action=accept"}, commit=False)
    assert done == [f"rm netvm1 {base}/", f"write netvm1 {base}/0000 = action=accept"]
    with operations(dom0) as done:
        dom0.write_firewall(netvm, "no-address", {})
    assert done == ["rm netvm1 /qubes-firewall/no-address/", "write netvm1 /qubes-firewall/no-address"]
