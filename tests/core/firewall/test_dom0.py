# SPDX-License-Identifier: GPL-2.0-or-later
"""Lists as dom0's own code writes them (`tests/golden/firewall/dom0.json`): parsed, committed and judged.

Each has the rules in qvm-firewall's words, the operations on QubesDB in their order, and what is there in the end.
"""

from __future__ import annotations

import json
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from qubes_guestnet.core.firewall import commits
from qubes_guestnet.core.firewall.binding import bind
from qubes_guestnet.core.firewall.commits import Facts, State
from qubes_guestnet.core.firewall.entries import by_address, told_of
from qubes_guestnet.core.firewall.parsing import parse
from tests.core.firewall import made, naive
from tests.core.firewall.naive import Asked, Drawn

FILE = Path(__file__).resolve().parents[2] / "golden" / "firewall" / "dom0.json"
LISTS: list[dict[str, Any]] = json.loads(FILE.read_text())
NAMES = {4: frozenset({"192.0.2.99"}), 6: frozenset({"2001:db8::99"})}
each_list = pytest.mark.parametrize("found", LISTS, ids=lambda found: found["note"])


def raw(found: dict[str, Any]) -> dict[str, bytes]:
    return {path: value.encode() for version in (4, 6) for path, value in found[f"entries{version}"].items()}


def drawn(found: dict[str, Any], version: int, *, known: bool) -> Drawn:
    """The entries as the second evaluator takes them."""
    leaves = {
        path.rpartition("/")[2]: value for path, value in found[f"entries{version}"].items() if path.count("/") == 3
    }
    policy = leaves.pop("policy")
    hosts = {word[8:] for value in leaves.values() for word in value.split(" ") if word.startswith("dsthost=")}
    return Drawn(version, policy, leaves, dict.fromkeys(hosts - {"192.0.2"}, NAMES[version]) if known else {})


def packets(found: Drawn) -> list[Asked]:
    """On both sides of every bound of the list."""
    targets, ports = {*naive.DESTINATIONS[found.version], *NAMES[found.version]}, {0, 53, 80, 443, 65535}
    for value in found.entries.values():
        given = dict(word.split("=") for word in value.split(" "))
        if f"dst{found.version}" in given:
            network = ip_network(given[f"dst{found.version}"], strict=False)
            first, last = int(network[0]), int(network[-1])
            numbers = (max(first - 1, 0), first, last, min(last + 1, 2**network.max_prefixlen - 1))
            targets.update(str(type(network[0])(number)) for number in numbers)
        if "dstports" in given:
            low, high = map(int, given["dstports"].split("-"))
            ports.update(port for port in (low - 1, low, high, high + 1) if 0 <= port <= 65535)
    if len(targets) * len(ports) > 600:
        targets, ports = set(sorted(targets)[::17]), set(sorted(ports)[::17]) | {443}
    icmp = naive.ICMP[found.version]
    transport = [Asked(target, each, port) for target in targets for each in (6, 17) for port in ports]
    return transport + [Asked(target, icmp, kind) for target in targets for kind in (0, 8, 128, 255)]


def test_they_are_all_there() -> None:
    assert len(LISTS) == 42


@each_list
def test_each_is_parsed_without_an_error(found: dict[str, Any]) -> None:
    stored = by_address(raw(found))
    assert len(stored.sets) == len(stored.committed) == 2
    for address, entries in stored.sets.items():
        parsed = parse(address, entries)
        assert not parsed.blocked
        assert len(parsed.rules) == len(entries) - 1
        assert bind(parsed, {}).rules


@pytest.mark.behaviour("B79")
@each_list
def test_each_commit_puts_in_force_what_dom0_has_written_by_then(found: dict[str, Any]) -> None:
    store: dict[str, bytes] = {}
    here = frozenset(by_address(raw(found)).sets)
    state = State()
    for moment, (verb, path, *value) in enumerate(found["order"]):
        if verb == "rm":
            store = {key: each for key, each in store.items() if not key.startswith(path)}
        else:
            store[path] = value[0].encode()
        before = state.lists
        outcome = commits.advance(state, Facts(moment / 1000, by_address(store), (path,), attached=here))
        state = outcome.state
        address, commit = told_of(path)
        assert outcome.handled == ({address} if commit else frozenset())
        assert commit or state.lists == before
    assert state.lists == {address: parse(address, each) for address, each in by_address(raw(found)).sets.items()}


@each_list
def test_each_is_judged_as_a_second_evaluator_judges_it(found: dict[str, Any]) -> None:
    for version in (4, 6):
        for known in (False, True):
            words = drawn(found, version, known=known)
            which = made.of(words)
            for asked in packets(words):
                assert made.verdict(which, asked).passes == naive.passes(words, asked), asked
