# SPDX-License-Identifier: GPL-2.0-or-later
"""What qubes-firewall.service does at its start and stop, and which scripts of users run."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from qubes_guestnet.core.check.provider_findings import Ground, remarks
from qubes_guestnet.core.firewall import ruleset
from qubes_guestnet.core.operations import Outcome
from qubes_guestnet.core.owned_state import Provided, Record
from qubes_guestnet.core.provider import firewall_unit
from qubes_guestnet.core.provider.firewall_unit import RESTART, SCRIPT, Scripts
from qubes_guestnet.core.provider.provider_report import ProviderReport
from qubes_guestnet.core.provider.settings import ProviderSettings
from qubes_guestnet.core.render.provider import as_data, as_text

UNIT = "qubes-firewall.service"
REPORT = ProviderReport(ProviderSettings(), active=True, ruled=True)
TEXTS = st.text(st.characters(blacklist_characters="\t", blacklist_categories=("Cc", "Cs", "Zl", "Zp")), min_size=1)


@pytest.mark.parametrize("enforced", [False, True])
@pytest.mark.parametrize("filtered", [False, True])
def test_a_start_makes_the_tables_unless_ours_are_in_force(enforced: bool, filtered: bool) -> None:
    assert firewall_unit.begins(enforced=enforced, filtered=filtered) is not (enforced and filtered)


@pytest.mark.parametrize(
    ("jobs", "ends"),
    [
        ({}, True),
        ({UNIT: "stop"}, True),
        ({UNIT: "restart"}, False),
        ({UNIT: "restart", "shutdown.target": "start"}, True),
        ({UNIT: "try-restart", "qubes-guestnet.service": "stop"}, False),
    ],
)
def test_a_stop_is_for_good_unless_a_start_follows(jobs: dict[str, str], ends: bool) -> None:
    assert firewall_unit.ends(jobs) is ends


@pytest.mark.behaviour("B81")
def test_scripts_below_rw_are_not_run_in_a_qube_that_chooses_what_persists() -> None:
    folders = ("/etc/qubes/qubes-firewall.d", "/rw/config/qubes-firewall.d")
    assert firewall_unit.places(persists=False) == (folders, (SCRIPT,))
    assert firewall_unit.places(persists=True) == (folders[:1], ())


@pytest.mark.behaviour("B155")
def test_when_the_tables_are_lost_forwarding_is_held_and_the_unit_restarted() -> None:
    record = Record(provided=Provided(filtered=True))
    planned = firewall_unit.plan_lost(record, Outcome())
    assert planned.ops == (RESTART,)
    assert planned.record.provided == record.provided._replace(unfiltered=True)
    assert firewall_unit.plan_lost(planned.record, Outcome(done=(RESTART,))).ops == ()


@given(st.builds(Scripts, st.one_of(st.just(""), TEXTS), st.lists(st.tuples(TEXTS, TEXTS), max_size=3).map(tuple)))
def test_what_came_of_the_scripts_is_read_as_it_was_written(scripts: Scripts) -> None:
    assert firewall_unit.parse(firewall_unit.render(scripts)) == scripts


@example(b"failed without a reason\nelse\n\n\xff\n")
@given(st.binary(max_size=80))
def test_a_damaged_file_has_what_can_be_read(data: bytes) -> None:
    found = firewall_unit.parse(data)
    assert found == Scripts() or b"running " in data or b"failed " in data


@pytest.mark.behaviour("B81")
def test_a_script_that_runs_or_failed_is_named() -> None:
    waits = REPORT._replace(unfiltered=True, scripts=Scripts("/rw/config/slow"))
    found = next(each for each in remarks(waits, Ground()) if each.code == "firewall-not-ready")
    assert "qubes-firewall.service runs the script /rw/config/slow" in found.problem
    assert "correct it and then systemctl restart qubes-firewall" in found.remedy
    assert str(next(iter(as_text(waits)))).endswith("(qubes-firewall.service runs /rw/config/slow)")
    failed = REPORT._replace(forwarding=frozenset({4}), scripts=Scripts("", (("/etc/a\n", "exit status 3"),)))
    found = next(each for each in remarks(failed, Ground()) if each.code == "firewall-script-failed")
    assert found.severity == "warning"
    assert "/etc/a\\n failed (exit status 3)" in found.problem
    assert "  firewall script failed: /etc/a\\n (exit status 3)" in map(str, as_text(failed))
    data = as_data(failed, {})
    assert data is not None
    assert data["firewall_scripts"] == {"running": "", "failed": [{"path": "/etc/a\n", "reason": "exit status 3"}]}


@pytest.mark.parametrize(("version", "family"), [(4, "ip"), (6, "ip6")])
def test_tables_made_anew_hold_nothing_of_before(version: int, family: str) -> None:
    first, second, rest = ruleset.anew(version).split("\n", 2)
    assert (first, second) == (f"add table {family} qubes-firewall", f"delete table {family} qubes-firewall")
    assert rest == ruleset.tables(version, ruleset.own_rules(version))
    assert "policy drop" in rest
