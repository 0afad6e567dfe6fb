# SPDX-License-Identifier: GPL-2.0-or-later
"""A provider whose flag asks for the firewall of the qubes, and that firewall is not there, or not ready (B155)."""

from __future__ import annotations

import pytest

from qubes_guestnet.core.findings import Evidence, findings
from qubes_guestnet.core.provided import ProviderReport
from qubes_guestnet.core.provider import ProviderSettings
from qubes_guestnet.core.provider_findings import Ground
from qubes_guestnet.core.rendering_provider import as_text
from qubes_guestnet.core.report import Report, Standing
from qubes_guestnet.core.settings import Settings

FORWARDS = ProviderReport(ProviderSettings(True), True, forwarding=frozenset({4}), ruled=True)
CLOSED = FORWARDS._replace(forwarding=frozenset(), unfiltered=True)
READY, MISSING = "firewall-not-ready", "firewall-missing"


@pytest.mark.behaviour("B155")
def test_status_says_that_nothing_is_forwarded_and_why() -> None:
    first = "provider: forwards nothing (qubes-firewall.service is not ready)"
    assert next(iter(as_text(CLOSED))) == first
    assert next(iter(as_text(CLOSED._replace(closed=True)))) == first


@pytest.mark.behaviour("B155")
@pytest.mark.parametrize(
    ("report", "ground", "code"),
    [
        (FORWARDS, Ground(), ""),
        (CLOSED, Ground(), READY),
        (CLOSED, Ground(unfiltered=True), READY),
        (FORWARDS, Ground(unfiltered=True), MISSING),
    ],
)
def test_check_says_it_and_names_the_unit(report: ProviderReport, ground: Ground, code: str) -> None:
    found = findings(Evidence(Report(Settings(), provided=report), standing=Standing(True), ground=ground))
    told = [finding for finding in found if finding.code in (READY, MISSING)]
    assert [(finding.code, finding.severity) for finding in told] == ([(code, "error")] if code else [])
    assert all("systemctl start qubes-firewall" in finding.remedy for finding in told)
    assert all("unfiltered" in finding.problem.lower() for finding in told)
