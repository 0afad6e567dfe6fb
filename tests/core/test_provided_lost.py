# SPDX-License-Identifier: GPL-2.0-or-later
"""How it reads that rules were lost, and that forwarding was switched off by others."""

from __future__ import annotations

import pytest

from qubes_guestnet.core.findings import Evidence, findings
from qubes_guestnet.core.provided import ProviderReport
from qubes_guestnet.core.provider_findings import UNSEEN, Ground
from qubes_guestnet.core.rendering_provider import as_text
from qubes_guestnet.core.report import Report, Standing
from qubes_guestnet.core.settings import Settings
from tests.core.test_provided import OFFLOAD, WELL

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
            "provider: forwards nothing (our rules were removed; `forwarding on` ends it)",
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
    assert list(as_text(report)) == lines


@pytest.mark.parametrize(("report", "ground", "expected"), FOUND.values(), ids=FOUND.keys())
def test_what_check_says(report: ProviderReport | None, ground: Ground, expected: list[tuple[str, str]]) -> None:
    found = findings(Evidence(Report(Settings(), provided=report), standing=Standing(running=True), ground=ground))
    assert [(finding.code, finding.severity) for finding in found] == expected
