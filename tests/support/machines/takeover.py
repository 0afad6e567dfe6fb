# SPDX-License-Identifier: GPL-2.0-or-later
"""The firewall of a running provider goes from core-agent's daemon to our agent."""

from __future__ import annotations

from tests.support.eventually import eventually, never
from tests.support.machines.client import commit
from tests.support.machines.core_agent import FIREWALL_NOTES
from tests.support.machines.kinds import OUTSIDE, REFUSED, Qube
from tests.support.packets.losses import at_most_arrive

UNIT, MARK = "qubes-firewall.service", "/run/qubes-guestnet/firewall"
LONG = 60


def check_takeover(qube: Qube) -> None:
    """Ours was installed just now: the daemon that runs goes on, until its unit is started again. Asserts.

    Args:
        qube: a provider, of any kind; of one that provides nothing there is nothing to see.
    """
    if not qube.kind.provides:
        return
    machine = qube.machine
    daemon = machine.property(UNIT, "MainPID")
    assert daemon != "0", qube.told()
    assert "qubes-firewall" in machine.run("cat", f"/proc/{daemon}/cmdline")
    machine.run("sh", "-c", f"test ! -e {MARK}")
    qube.wire()
    behind = qube.behind
    assert behind is not None
    eventually(lambda: behind.reaches(OUTSIDE), LONG, "a packet by the daemon's rules", qube.told)
    # As long as it runs, all of its unit is its own: a reload reaches it, another agent leaves its tables alone.
    before, tables = qube.noted(FIREWALL_NOTES).count("reload"), _tables(qube)
    with behind.every_packet_returns(OUTSIDE, "another agent beside the daemon"):
        qube.systemctl(f"reload {UNIT}")
        qube.systemctl("restart qubes-guestnet.service")
    eventually(lambda: qube.noted(FIREWALL_NOTES).count("reload") > before, LONG, "its reload", qube.told)
    assert (machine.property(UNIT, "MainPID"), _tables(qube)) == (daemon, tables)
    # The restart: from the daemon's rules to the lists of dom0 there is no moment in which a packet passes that the
    # user's script refuses, and then one that the list refuses.
    machine.write(*_entries(behind.address, "action=accept dst4=" + OUTSIDE + "/32"))
    with at_most_arrive(0, behind.inside.prefix, REFUSED, machine.router.prefix):
        qube.systemctl(f"restart {UNIT}")
        eventually(lambda: behind.reaches(OUTSIDE), LONG, "a packet by dom0's list", qube.told)
    machine.run("test", "-e", MARK)
    assert machine.run("sh", "-c", f"test -e /proc/{daemon} || echo gone") == "gone"
    assert "end" in qube.noted(FIREWALL_NOTES)
    assert 'comment "policy"' in machine.run("nft", "list", "table", "ip", "qubes-firewall")
    never(lambda: behind.inside.reaches(qube.target if qube.kind.uplink else REFUSED, within_s=1), 0.5)
    commit((behind,))
    assert machine.run("systemctl", "--failed", "--no-legend", "--plain") == "", qube.told()


def _tables(qube: Qube) -> str:
    listed = (qube.machine.run("nft", "-s", "list", "table", family, "qubes-firewall") for family in ("ip", "ip6"))
    return "\n".join(listed)


def _entries(address: str, *rules: str) -> tuple[str, ...]:
    """A list and its commit, as they were written while the daemon ran."""
    base = f"/qubes-firewall/{address}"
    entries = [f"{base}/policy", "drop"]
    for number, rule in enumerate(rules):
        entries += (f"{base}/{number:04}", rule)
    return (*entries, base, "")
