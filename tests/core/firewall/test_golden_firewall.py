# SPDX-License-Identifier: GPL-2.0-or-later
"""The 27 examples of the firewall's specification, a folder each below `tests/golden/firewall`.

* `entries.txt`: QubesDB, as in the other golden cases; `known.txt`: a line `dns` with the name servers, and a line for
  each name that was answered: family, name, addresses.
* `verdicts.txt`: source, protocol, destination, port or ICMP type, answer, and the entry that decides. Written by hand.
* `rules.txt`, `ruleset.nft`: written by `--regold`; read the diff.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from qubes_guestnet.core.firewall import evaluator, operations
from qubes_guestnet.core.firewall.binding import Bound, bind
from qubes_guestnet.core.firewall.entries import by_address
from qubes_guestnet.core.firewall.evaluator import Packet, judge
from qubes_guestnet.core.firewall.name_cache import Known
from qubes_guestnet.core.firewall.parsing import parse
from qubes_guestnet.core.firewall.plan import Wanted, plan
from qubes_guestnet.core.firewall.rules import Rule
from qubes_guestnet.core.values import IPAddress
from qubes_guestnet.lab.store_entries import parse_entries
from tests.core.firewall.made import A
from tests.core.ruleset import Ruleset

FOLDER = Path(__file__).resolve().parents[2] / "golden" / "firewall"
CASES = sorted(path.parent for path in FOLDER.glob("*/entries.txt"))
PROTOCOLS = {"tcp": 6, "udp": 17}
ENTRIES = {evaluator.POLICY: "policy", evaluator.BLOCKED: "blocked"}


def lists(case: Path) -> tuple[dict[IPAddress, Bound], frozenset[IPAddress]]:
    """The bound lists of a case, and its name servers."""
    entries = parse_entries((case / "entries.txt").read_bytes(), "entries.txt")
    names: dict[tuple[int, str], Known] = {}
    dns: frozenset[IPAddress] = frozenset()
    for line in (case / "known.txt").read_text().splitlines():
        word, *rest = line.split()
        if word == "dns":
            dns = frozenset(map(A, rest))
        else:
            names[int(word), rest[0]] = Known(tuple(map(A, rest[1:])), True)
    stored = by_address({path.decode(): value for path, value in entries.items()})
    return {address: bind(parse(address, each), names) for address, each in stored.sets.items()}, dns


def in_words(rule: Rule) -> str:
    """A rule, for the file."""
    words = [f"{rule.number:04}", "accept" if rule.accept else "drop"]
    words += [
        f"{field}={value}" for field, value in rule._asdict().items() if field not in ("number", "accept") and value
    ]
    return " ".join(words)


def rules(found: dict[IPAddress, Bound]) -> str:
    text = ""
    for address, each in found.items():
        text += f"{address}: {'accept' if each.ruleset.accept else 'drop'}\n"
        text += "".join(f"  {in_words(rule)}\n" for rule in each.ruleset.rules)
        text += "".join(f"  {problem}\n" for problem in each.ruleset.problems)
    return text


def texts(case: Path) -> dict[str, str]:
    found, dns = lists(case)
    servers = {version: frozenset(each for each in dns if each.version == version) for version in (4, 6)}
    return {
        "rules.txt": rules(found),
        "ruleset.nft": operations.transaction(plan({}, Wanted(found, servers))),
    }


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_rules_and_ruleset(case: Path, pytestconfig: pytest.Config) -> None:
    if pytestconfig.getoption("--regold"):
        from tests import conftest

        conftest._guard.allowed = None
        for name, text in texts(case).items():
            (case / name).write_text(text)
    assert texts(case) == {name: (case / name).read_text() for name in ("rules.txt", "ruleset.nft")}
    kernel = Ruleset()
    kernel.load(texts(case)["ruleset.nft"])


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_verdicts(case: Path) -> None:
    found, dns = lists(case)
    for line in (case / "verdicts.txt").read_text().splitlines():
        source, protocol, destination, detail, answer, entry = line.split()
        bound = found.get(A(source))
        if bound is None:
            assert (answer, entry) == ("none", "-"), line
            continue
        target, number = A(destination), int(detail) if detail.isdecimal() else None
        icmp = protocol == "icmp"
        code = (58 if target.version == 6 else 1) if icmp else PROTOCOLS.get(protocol) or int(protocol)
        verdict = judge(bound, Packet(target, code, None if icmp else number, number if icmp else None), dns)
        assert (verdict.answer, ENTRIES.get(verdict.entry, f"{verdict.entry:04}")) == (answer, entry), line


def test_all_examples_are_there() -> None:
    assert [case.name[:2] for case in CASES] == [f"{number:02}" for number in range(1, 28)]
    known = {"entries.txt", "known.txt", "verdicts.txt", "rules.txt", "ruleset.nft"}
    assert all({path.name for path in case.iterdir()} == known for case in CASES)
