# SPDX-License-Identifier: GPL-2.0-or-later
"""What an ordinary user of a provider is told: all that may be seen, and for the rest what to do to see it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.support.needs import needs
from tests.support.qubes.provider import Provider

pytestmark = pytest.mark.behaviour("B140")

PROGRAM = (sys.executable, "-m", "qubes_guestnet")
UNSEEN = "only root can read the base rules and the rules of client qubes: they were not checked"


def ask(host: Provider, *words: str) -> subprocess.CompletedProcess[str]:
    """The program, by a user that may change nothing."""
    needs("unshare")
    return host.qube.run("unshare", "--user", *PROGRAM, *words, check=False)


@pytest.mark.parametrize("there", [True, False], ids=["rules", "no rules"])
@pytest.mark.parametrize("agent", [True, False], ids=["agent", "no agent"])
def test_status_and_check_name_what_they_did_not_see(there: bool, agent: bool) -> None:
    host = Provider()
    host.attach()
    if not agent or not there:
        host.agent.kill()
    if not there:
        host.nft("flush ruleset")
    done = ask(host, "status")
    assert (done.returncode, done.stderr) == (1, "")
    lines = done.stdout.splitlines()
    for line in (
        "  base rules: run as root to see them",
        "vif4.0: 10.137.0.4, run as root to see whether it may send",
        f"{UNSEEN}; run as root: sudo qubes-guestnet status",
    ):
        assert line in lines, done.stdout
    assert {line for line in lines if line.startswith("error:")} <= {
        "error: nft generation: Operation not permitted (EPERM); run as root"
    }
    assert "there are problems" not in done.stdout
    one = ask(host, "status", "vif4.0")
    assert (one.returncode, "vif4.0: 10.137.0.4, run as root" in one.stdout) == (1, True)
    assert ask(host, "status", "vif5.0").returncode == 2
    data = json.loads(ask(host, "status", "--json").stdout)
    assert (data["wrong"], [vif["configured"] for vif in data["provider"]["vifs"]]) == (True, [None])
    assert all(error.endswith("; run as root") for error in data["errors"])
    found = {each["code"]: each for each in json.loads(ask(host, "check", "--json").stdout)}
    assert set(found) - {"agent-not-running"} == {"needs-root"}
    assert (found["needs-root"]["severity"], found["needs-root"]["problem"]) == ("warning", UNSEEN)
    assert ask(host, "check").returncode == 1


def test_what_is_wrong_and_can_be_seen_is_told_as_well() -> None:
    host = Provider()
    behind = host.attach()
    host.agent.kill()
    host.qube.run("ip", "link", "set", behind.vif, "down")
    done = ask(host, "status")
    assert (done.returncode, "vif4.0: 10.137.0.4, NOT configured, first: " in done.stdout) == (1, True)
    assert done.stdout.endswith("there are problems: `qubes-guestnet check` lists them with their remedies\n")
    assert "vif-not-configured" in ask(host, "check").stdout


@pytest.mark.parametrize(
    "words", ["plan", "plan --json", "rules load", "forwarding off", "forwarding on", "dns sync", "apply"]
)
def test_every_verb_that_looks_or_changes_says_once_what_to_do(words: str) -> None:
    host = Provider()
    done = ask(host, *words.split())
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert lines
    assert len(set(lines)) == len(lines)
    assert all("run as root" in line or "run this as root" in line for line in lines), lines


@pytest.mark.parametrize("lost", [True, False], ids=["without base rules", "with base rules"])
def test_the_remedies_of_check_work_without_an_agent(lost: bool) -> None:
    host = Provider()
    behind = host.attach()
    host.agent.kill()
    host.nft("flush ruleset" if lost else "insert rule ip qubes forward accept")
    (first,) = (
        each["remedy"]
        for each in json.loads(host.qube.guestnet("check", "--json", check=False).stdout)
        if each["code"] == ("rules-missing" if lost else "rules-changed")
    )
    command = first.split("qubes-guestnet ")[1].split(";")[0].split()
    assert host.qube.guestnet(*command).returncode == 0
    assert host.qube.guestnet("status", check=False).returncode == 0
    assert host.works(behind)
