# SPDX-License-Identifier: GPL-2.0-or-later
"""Another kind of boot: a template without a network. Qubes with core-agent beside us are in test_beside."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.eventually import eventually, never
from tests.support.machines.machine import Machine, Mounts
from tests.system.test_boot import ENTRIES, UNIT, configured
from tests.system.test_provider import PROVIDER, RULES, forwards, told


@pytest.fixture(scope="module")
def template(mounts: Mounts, base: Path, plain: Path, installed: Path, boot) -> Machine:
    return boot(mounts.root(base, plain, installed), "template", {"/name": "debian-12"}, plugged=False)


@pytest.mark.behaviour("B97")
@pytest.mark.behaviour("B100")
def test_a_template_boots_without_waiting(template: Machine) -> None:
    assert template.run("systemctl", "--failed", "--no-legend", "--plain") == "", template.jobs()
    assert template.property(UNIT, "ActiveState") == "active"
    assert template.property(UNIT, "StatusText") == "no interface expected"
    # The limits are 20 s for the agent and 60 s for the barrier; neither was waited for, nor anything like it.
    began, ready = (
        int(template.property(UNIT, name))
        for name in ("InactiveExitTimestampMonotonic", "ActiveEnterTimestampMonotonic")
    )
    assert ready - began < 10_000_000
    template.run("systemctl", "start", "network-online.target")
    assert template.property("qubes-guestnet-wait-uplink.service", "ActiveState") == "active"


@pytest.mark.behaviour("B101")
def test_a_template_forwards_nothing(template: Machine) -> None:
    """And has the rules nevertheless, before anybody could attach something to it."""
    assert template.property(RULES, "ActiveState") == "active"
    assert "chain antispoof" in template.run("nft", "list", "table", "ip", "qubes")
    assert forwards(template) == ["0", "0"]
    template.inside.run("qubes-guestnet", "forwarding", "on", check=False)
    assert forwards(template) == ["0", "0"]


def test_an_interface_starts_its_agent(template: Machine) -> None:
    """By our udev rule alone, in a qube that has no other package of Qubes networking."""
    template.run("systemctl", "stop", UNIT)
    template.write(*(word for entry in ENTRIES.items() for word in entry))
    template.plug()
    eventually(lambda: configured(template), 20, "network", lambda: template.journal(UNIT))
    assert template.property(UNIT, "ActiveState") in ("activating", "active")


@pytest.mark.behaviour("B101")
def test_it_takes_both_the_flag_and_the_key_to_forward(template: Machine) -> None:
    """dom0 may give a network to provide to a qube whose owner does not want that, and the other way round."""
    provided = {key: value for key, value in PROVIDER.items() if key.startswith("/qubes-netvm-")}
    template.write(*(word for entry in provided.items() for word in entry))
    template.run("systemctl", "restart", UNIT)  # so that it is not asked before it has looked
    assert forwards(template) == ["0", "0"]
    template.write("/qubes-netvm-network", "")
    template.run("sh", "-c", "mkdir -p /run/qubes-service; : >/run/qubes-service/qubes-network")
    template.run("systemctl", "restart", UNIT)
    never(lambda: forwards(template) != ["0", "0"], 0.5, "forwarding")
    template.write("/qubes-netvm-network", PROVIDER["/qubes-netvm-network"])
    eventually(lambda: forwards(template) == ["1", "1"], what="forwarding", trouble=lambda: told(template))
    template.write("/qubes-netvm-network", "")
    eventually(lambda: forwards(template) == ["0", "0"], what="none again", trouble=lambda: told(template))
