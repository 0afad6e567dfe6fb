# SPDX-License-Identifier: GPL-2.0-or-later
"""How it reads that rules were lost, and that forwarding was switched off by others."""

from __future__ import annotations

import errno

import pytest

from qubes_guestnet.core.check.findings import Evidence, findings
from qubes_guestnet.core.check.provider_findings import MISSING, UNSEEN, Ground
from qubes_guestnet.core.provider.provider_report import ProviderReport
from qubes_guestnet.core.render import data as render_data
from qubes_guestnet.core.render import status as render_status
from qubes_guestnet.core.render.provider import as_data, as_text
from qubes_guestnet.core.report import Report, Standing
from qubes_guestnet.core.settings import Settings
from qubes_guestnet.errors import KernelError
from tests.core.test_provider_report import OFFLOAD, WELL

(VIF,) = WELL.vifs
pytestmark = pytest.mark.behaviour("B125", "B133", "B140")

TEXTS = {
    "switched off by its owner": (
        WELL._replace(forwarding=frozenset(), stopped=frozenset({4}), lost=("table inet mine",), vifs=()),
        [
            "provider: forwards nothing (IPv4 switched off by its owner or another program: `forwarding on` ends that)",
            "  lost together with our rules: table inet mine",
            "virtual DNS: 10.139.1.1 10.139.1.2 -> 192.168.1.1 (/etc/resolv.conf)",
            OFFLOAD,
        ],
    ),
    "held after the rules were lost": (
        WELL._replace(forwarding=frozenset(), hold="held", vifs=()),
        [
            "provider: forwards nothing (another program removed our rules; `forwarding on` ends it)",
            "virtual DNS: 10.139.1.1 10.139.1.2 -> 192.168.1.1 (/etc/resolv.conf)",
            OFFLOAD,
        ],
    ),
}
FOUND = {
    "an ordinary user asks": (None, Ground(UNSEEN), [("needs-root", "warning"), ("no-provider", "note")]),
    "switched off by its owner": (
        WELL._replace(forwarding=frozenset(), stopped=frozenset({4})),
        Ground(),
        [("forwarding-off", "error")],
    ),
    "held": (WELL._replace(forwarding=frozenset(), hold="held"), Ground(), [("forwarding-off", "error")]),
    "the firewall is waited for": (
        WELL._replace(forwarding=frozenset(), hold="firewall", lost=("table ip qubes-firewall",)),
        Ground(),
        [("forwarding-off", "error"), ("user-rules-lost", "warning")],
    ),
}


@pytest.mark.parametrize(("report", "lines"), TEXTS.values(), ids=TEXTS.keys())
def test_the_lines_for_a_terminal(report: ProviderReport, lines: list[str]) -> None:
    assert list(map(str, as_text(report))) == lines


@pytest.mark.parametrize(("report", "ground", "expected"), FOUND.values(), ids=FOUND.keys())
def test_what_check_says(report: ProviderReport | None, ground: Ground, expected: list[tuple[str, str]]) -> None:
    found = findings(Evidence(Report(Settings(), provided=report), standing=Standing(running=True), ground=ground))
    assert [(finding.code, finding.severity) for finding in found] == expected


def test_what_an_ordinary_user_does_not_see_is_no_fault_of_the_qubes() -> None:
    denied, missing = KernelError("nft generation", errno.EPERM), KernelError("nft generation", errno.ENOENT)
    assert str(denied) == "nft generation: Operation not permitted (EPERM); run as root"
    unseen = VIF._replace(seen=False)
    report = WELL._replace(ruled=False, errors=(denied,), vifs=(unseen, unseen._replace(link=None)))
    lines = list(map(str, as_text(report)))
    assert lines[1] == "  base rules: run as root to see them"
    assert lines[-2].endswith(", run as root to see whether it may send")
    assert lines[-1].endswith(", NOT configured, first: its device is gone")
    data = as_data(report, {})
    assert data is not None
    assert [vif["configured"] for vif in data["vifs"]] == [None, None]
    whole = Report(Settings(), provided=report, errors=(denied, denied, missing), rules_todo=("first",))
    assert whole.plan[0] == "first"
    told = list(map(str, render_status.as_text(whole, Standing())))
    assert [line for line in told if line.startswith("error:")] == [f"error: {denied}", f"error: {missing}"]
    assert render_data.as_data(whole, render_data.Beside())["errors"] == [str(denied), str(missing)]
    found = findings(Evidence(whole, standing=Standing(running=True), ground=Ground(UNSEEN)))
    assert [(each.code, each.severity) for each in found] == [("pass-failed", "error"), ("needs-root", "warning")]


@pytest.mark.parametrize(("report", "remedy"), [(None, "rules load"), (WELL, "apply")])
def test_the_remedy_for_rules_that_are_gone_leaves_forwarding_as_it_should_be(
    report: ProviderReport | None, remedy: str
) -> None:
    evidence = Evidence(Report(Settings(), provided=report), standing=Standing(running=True), ground=Ground(MISSING))
    assert findings(evidence)[0].remedy == f"qubes-guestnet {remedy}"


@pytest.mark.parametrize(("hold", "waits"), [("", False), ("held", False), ("firewall", True)])
def test_only_a_missing_firewall_is_waited_for(hold: str, waits: bool) -> None:
    assert WELL._replace(hold=hold).waits is waits
