# SPDX-License-Identifier: GPL-2.0-or-later
"""A provider whose flag asks for the firewall of the qubes, and that firewall is not there, or not ready (B155)."""

from __future__ import annotations

import pytest

from qubes_guestnet.core.check.findings import Evidence, findings
from qubes_guestnet.core.check.provider_findings import Ground
from qubes_guestnet.core.nft.foreign_chains import firewall
from qubes_guestnet.core.provider.provider_report import ProviderReport
from qubes_guestnet.core.provider.settings import ProviderSettings
from qubes_guestnet.core.render.provider import as_text
from qubes_guestnet.core.report import Report, Standing
from qubes_guestnet.core.settings import Settings

FORWARDS = ProviderReport(ProviderSettings(True), True, forwarding=frozenset({4}), ruled=True)
CLOSED = FORWARDS._replace(forwarding=frozenset(), unfiltered=True)
READY, MISSING, DEAD = "firewall-not-ready", "firewall-missing", "firewall-not-running"


@pytest.mark.behaviour("B155")
def test_status_says_that_nothing_is_forwarded_and_why() -> None:
    first = "provider: forwards nothing (qubes-firewall.service is not ready)"
    assert str(next(iter(as_text(CLOSED)))) == first
    assert str(next(iter(as_text(CLOSED._replace(closed=True))))) == first


@pytest.mark.behaviour("B155")
@pytest.mark.parametrize(
    ("report", "ground", "code"),
    [
        (FORWARDS, Ground(), ""),
        (CLOSED, Ground(), READY),
        (CLOSED, Ground(firewall="missing"), READY),
        (CLOSED, Ground(firewall="failed"), READY),
        (FORWARDS, Ground(firewall="missing"), MISSING),
        (FORWARDS, Ground(firewall="failed"), DEAD),
    ],
)
def test_check_says_it_and_names_the_unit(report: ProviderReport, ground: Ground, code: str) -> None:
    found = findings(Evidence(Report(Settings(), provided=report), standing=Standing(True), ground=ground))
    told = [finding for finding in found if finding.code in (READY, MISSING, DEAD)]
    assert [(finding.code, finding.severity) for finding in told] == ([(code, "error")] if code else [])
    assert all("start qubes-firewall" in finding.remedy for finding in told)
    words = "its last rules stay in force" if code == DEAD else "unfiltered"
    assert all(words in finding.problem.lower() for finding in told)


@pytest.mark.behaviour("B155")
@pytest.mark.parametrize(
    ("filtered", "state", "wrong", "words"),
    [
        (True, "active", "", ""),
        (True, "reloading", "", ""),
        (True, "queued", "", ""),
        (True, "", "", ""),
        (True, "failed", "failed", " by the last rules of the firewall (qubes-firewall.service is failed)"),
        (True, "activating", "activating", " by the last rules of the firewall (qubes-firewall.service is activating)"),
        (True, "inactive", "inactive", " by the last rules of the firewall (qubes-firewall.service is inactive)"),
        (False, "active", "missing", ", UNFILTERED (the service qubes-firewall is on, but there is no firewall)"),
        (False, "", "missing", ", UNFILTERED (the service qubes-firewall is on, but there is no firewall)"),
    ],
)
def test_a_firewall_that_does_not_run_is_told_in_the_first_line(
    state: str, wrong: str, words: str, *, filtered: bool
) -> None:
    assert firewall(filtered, state) == wrong
    line = str(next(iter(as_text(FORWARDS._replace(firewall=wrong)))))
    assert line == f"provider: forwards IPv4{words}"


@pytest.mark.behaviour("B101")
@pytest.mark.parametrize(
    ("forwarding", "words"),
    [((), "it does not forward"), ((4, 6), "IPv4 and IPv6 forwarding is on, because another program enabled it")],
)
def test_without_its_flag_check_says_what_the_kernel_does(forwarding: tuple[int, ...], words: str) -> None:
    """The flag and the record were removed under a running provider, so nothing said that forwarding was ours."""
    report = ProviderReport(ProviderSettings(True), forwarding=frozenset(forwarding))
    found = findings(Evidence(Report(Settings(), provided=report), standing=Standing(True)))
    (told,) = (finding.problem for finding in found if finding.code == "provider-flag-missing")
    assert told.endswith(f"is not set: {words}")
