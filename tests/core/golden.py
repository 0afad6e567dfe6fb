# SPDX-License-Identifier: GPL-2.0-or-later
"""Case folders below `tests/golden`: what a qube finds, and what it is to say and do.

A case is a folder `tests/golden/TOPIC/NAME` with

- `entries`: QubesDB, one `/path = value` a line, as `qubes-guestnet lab store --file` takes it;
- `observed.json`: the interfaces with what is on them, flags, and what `check` found out besides;
- `owned`, `guestnet.toml`, `resolv.conf.before`: files of the qube, where it has them;

and what is expected: `plan.txt`, `status.txt`, `check.txt`, and `resolv.conf` where there is one in the end.
"""

from __future__ import annotations

import ipaddress
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

from qubes_guestnet.core.check.findings import Evidence, findings
from qubes_guestnet.core.plan import route_words
from qubes_guestnet.core.render.status import as_text
from qubes_guestnet.core.report import Report, Standing
from qubes_guestnet.core.values import DEFAULT, Link, Neighbour, Route, State
from qubes_guestnet.lab.store_entries import parse_entries
from tests.core.model import Interface
from tests.core.qube import Qube

FOLDER = Path(__file__).resolve().parents[1] / "golden"
EXPECTED = ("plan.txt", "status.txt", "check.txt", "resolv.conf")


def cases() -> list[Path]:
    """The folder of every case."""
    return sorted(path.parent for path in FOLDER.glob("*/*/entries"))


def build(case: Path, folder: Path) -> tuple[Qube, dict[str, Any]]:
    """The qube of a case, its files below `folder`, and the rest of what was observed."""
    observed = json.loads((case / "observed.json").read_text())
    qube = Qube(folder, *map(interface, observed["interfaces"]))
    entries = parse_entries((case / "entries").read_bytes(), "entries")
    qube.entries = {path.decode(): value for path, value in entries.items()}
    for flag in observed.get("flags", ()):
        qube.flag(flag)
    run = Path(qube.paths.run)
    for name, target in (
        ("owned", run / "owned"),
        ("guestnet.toml", Path(qube.paths.config)),
        ("resolv.conf.before", qube.resolv_conf),
    ):
        if (case / name).exists():
            target.parent.mkdir(exist_ok=True)
            target.write_bytes((case / name).read_bytes())
            target.chmod(0o644)
    if "resolv.conf" in observed:
        qube.resolv_conf.symlink_to(observed["resolv.conf"])
    return qube, observed


def interface(facts: dict[str, Any]) -> Interface:
    """An interface as `observed.json` has it."""
    link = Link(
        facts["index"],
        facts["name"],
        facts["mac"],
        running=facts.get("carrier", True),
        driver=facts.get("driver", "vif"),
    )
    return Interface(
        link,
        State(
            facts.get("up", False),
            facts.get("group", 0),
            frozenset(map(ipaddress.ip_interface, facts.get("addresses", ()))),
            frozenset(map(neighbour, facts.get("neighbours", ()))),
            frozenset(map(route, facts.get("routes", ()))),
        ),
    )


def neighbour(text: str) -> Neighbour:
    """`ADDRESS MAC [permanent]`."""
    address, mac, *rest = text.split()
    return Neighbour(ipaddress.ip_address(address), mac, permanent=rest == ["permanent"])


def route(text: str) -> Route:
    """A route in the words of `ip route`, with what is not said being of ours.

    Raises:
        ValueError: `ip` would say it otherwise.
    """
    words = text.removeprefix("-6 ").split()
    given = dict(pairwise(words))
    gateway = ipaddress.ip_address(given["via"]) if "via" in given else None
    default = DEFAULT[6 if text.startswith("-6") else 4]
    made = Route(
        default if words[0] == "default" else ipaddress.ip_network(words[0]),
        gateway,
        onlink="onlink" in words,
        metric=int(given.get("metric", 0)),
        protocol=int(given["proto"]),
    )
    if " ".join(route_words(made, given["dev"])) != " ".join(words):
        raise ValueError(f"write it as {' '.join(route_words(made, given['dev']))}")
    return made


def outcome(qube: Qube, observed: dict[str, Any]) -> dict[str, bytes]:
    """Name of the file → what it is to hold. First everybody only looks, then a pass does what was planned."""
    dry = qube.run(dry_run=True)
    standing = Standing(*observed.get("agent", (True, "", "")))
    evidence = Evidence(
        dry, "", standing, tuple(observed.get("silent_servers", ())), observed.get("neighbour_limit", 32768)
    )
    texts = {
        "plan.txt": dry.plan,
        "status.txt": as_text(dry, standing),
        "check.txt": (f"{f.severity}: {f.code}: {f.problem}\n  -> {f.remedy}" for f in findings(evidence)),
    }
    result = {name: lines(qube, texts[name]) for name in texts}
    done = qube.run()
    assert lines(qube, carried_out(done)).decode() == result["plan.txt"].decode(), "done is not what was planned"
    if qube.resolv_conf.exists():
        result["resolv.conf"] = qube.resolv_conf.read_bytes()
    return result


def carried_out(report: Report) -> list[str]:
    """What a pass did, in the words of a plan."""
    done = list(map(str, report.applied))
    if report.resolver is not None and report.resolver.written:
        done.append(report._replace(interfaces=(), resolver=report.resolver._replace(current=b"before")).plan[0])
    return done


def lines(qube: Qube, texts: Any) -> bytes:
    """Text with the paths that a qube has in life."""
    text = "".join(f"{line}\n" for line in texts)
    text = text.replace(qube.paths.resolv_conf, "/etc/resolv.conf")
    return text.replace(qube.paths.config, "/etc/qubes/guestnet.toml").encode()
