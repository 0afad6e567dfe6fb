# SPDX-License-Identifier: GPL-2.0-or-later
"""The real resident agent, of a qube and of a provider, in namespaces: what it loads, weighs and holds open."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.needs import needs

TREE = Path(__file__).resolve().parents[2]
MEMORY_BUDGET = 2.0
PROVIDER_MEMORY_BUDGET = 3.0
LIMIT_S = 120

NOT_RESIDENT = {
    "argparse": "10 ms and 1 MB; verbs that need it import it late",
    "asyncio": "10 MB",
    "ctypes": "1 MB",
    "dns": "for the name look-up, a process of its own",
    "dataclasses": "0.7 MB: it imports inspect",
    "inspect": "1 MB",
    "json": "only `--json` needs it",
    "logging": "1 MB with what it imports",
    "qubes_guestnet.lab": "the lab is not for production",
    "qubes_guestnet.names": "it has internet sockets, and is a process of its own",
    "qubes_guestnet.agent.name_look_ups": "only with a firewall rule by name",
    "qubes_guestnet.provider.firewall_names": "only with a firewall rule by name",
    "qubes_guestnet.system.names_client": "only with a firewall rule by name",
    "random": "1 MB: hashlib",
    "ssl": "5 MB",
    "subprocess": "the agent runs no program on the happy path",
    "tempfile": "1 MB: random, shutil, compressors",
    "traceback": "0.3 MB",
    "typing": "1 MB; it is for the type checker",
    "unittest": "3 MB",
}


def _facts(which: str) -> Any:
    needs("ip", "cc", "dbus-daemon", "nft")
    command = [sys.executable, "-m", "bench", "--facts", which]
    done = subprocess.run(command, cwd=TREE, capture_output=True, text=True, timeout=LIMIT_S)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def facts() -> Any:
    return _facts("uplink")


@pytest.fixture(scope="module")
def provider_facts() -> Any:
    """Of a provider's agent that has set up 250 vifs."""
    return _facts("provider")


def _loaded(facts: Any, module: str) -> list[str]:
    return [name for name in facts["modules"] if name == module or name.startswith(module + ".")]


@pytest.mark.parametrize(("module", "why"), NOT_RESIDENT.items())
def test_the_agent_has_not_loaded(facts: Any, module: str, why: str) -> None:
    assert _loaded(facts, module) == [], why


def test_an_agent_that_provides_nothing_has_not_loaded_the_role(facts: Any) -> None:
    """What serves other qubes would cost each of them memory."""
    assert _loaded(facts, "qubes_guestnet.agent.hotplug_server") == []


@pytest.mark.parametrize(("module", "why"), NOT_RESIDENT.items())
def test_the_agent_of_a_provider_has_not_loaded(provider_facts: Any, module: str, why: str) -> None:
    assert "qubes_guestnet.agent.hotplug_server" in provider_facts["modules"]
    assert _loaded(provider_facts, module) == [], why


@pytest.mark.parametrize("vifs", ["1", "250"])
def test_memory_of_a_provider_stays_within_the_budget(provider_facts: Any, vifs: str) -> None:
    agent, bare = provider_facts["pss_kib"][vifs]["agent"], provider_facts["pss_kib"][vifs]["bare"]
    assert agent / bare <= PROVIDER_MEMORY_BUDGET, f"{agent} KiB against {bare} KiB: ratio {agent / bare:.2f}"


def test_250_vifs_leave_no_descriptor_open(provider_facts: Any) -> None:
    before, after = provider_facts["descriptors"]
    assert after == before


def test_the_whole_of_pyroute2_is_not_loaded(facts: Any) -> None:
    """Its package imports everything: 25 MB. The few message classes are loaded without it."""
    loaded = [name for name in facts["modules"] if name.split(".")[0] == "pyroute2"]
    assert 0 < len(loaded) < 20, loaded


def test_it_is_connected_to_the_bus(facts: Any) -> None:
    """Else the figures here would not be those of a qube with one."""
    assert "jeepney.low_level" in facts["modules"]
    assert not {"jeepney.io", "jeepney.bus"} & set(facts["modules"])


def test_memory_stays_within_the_budget(facts: Any) -> None:
    """PSS is not a timing: two readings of one build differ by about 1 %."""
    agent, bare = facts["pss_kib"]["agent"], facts["pss_kib"]["bare"]
    assert agent / bare <= MEMORY_BUDGET, f"{agent} KiB against {bare} KiB: ratio {agent / bare:.2f}"


def test_a_thousand_changes_leave_no_descriptor_open(facts: Any) -> None:
    before, after = facts["descriptors"]
    assert after == before
