# SPDX-License-Identifier: GPL-2.0-or-later
"""One version in all places, what Qubes' builder reads, and the way of a release, step by step."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from qubes_guestnet import __version__
from tools import spec

TREE = Path(__file__).resolve().parents[2]
DEBIAN = """\
qubes-guestnet (0.2.0-1) unstable; urgency=medium

  [ One Author ]
  * A change that goes on
    in the next line.
  * Another one, for 100 % of the qubes.

 -- One Author <one@guestnet.example>  Tue, 05 Jan 2027 23:30:00 +0100

qubes-guestnet (0.1.0-2) unstable; urgency=medium

  * Built anew.

 -- Another Author <another@guestnet.example>  Mon, 23 Nov 2026 12:00:00 +0000
"""
OF_RPM = """\
* Tue Jan 05 2027 One Author <one@guestnet.example> - 0.2.0-1
- A change that goes on in the next line.
- Another one, for 100 %% of the qubes.

* Mon Nov 23 2026 Another Author <another@guestnet.example> - 0.1.0-2
- Built anew."""


def text(name: str) -> str:
    """A file of the tree."""
    return (TREE / name).read_text(encoding="utf-8")


def test_one_version_everywhere() -> None:
    version, rel = text("version"), text("rel")
    assert re.fullmatch(r"\d+\.\d+\.\d+\n", version), "Qubes' builder reads the first line"
    assert re.fullmatch(r"[1-9]\d*\n", rel)
    version, rel = version.strip(), rel.strip()
    assert __version__ == version
    newest = re.match(r"qubes-guestnet \((.*?)\)", text("debian/changelog"))
    assert newest is not None
    assert newest[1] == f"{version}-{rel}", "what Qubes' builder compares before it builds the Debian package"
    made = spec.spec()
    assert re.findall(r"^Version: +(.*)$", made, re.MULTILINE) == [version]
    assert re.findall(r"^Release: +(.*)$", made, re.MULTILINE) == [f"{rel}%{{?dist}}"]
    assert re.findall(r"^\* .* - (.*)$", made, re.MULTILINE)[0] == f"{version}-{rel}"


def test_the_changelog_of_the_rpm_is_that_of_the_debian_package() -> None:
    assert spec.changelog(DEBIAN) == OF_RPM


def test_the_builder_of_qubes_finds_what_it_is_told_to_build() -> None:
    told = yaml.safe_load(text(".qubesbuilder"))
    assert told == {"vm": {"rpm": {"build": ["rpm/qubes-guestnet.spec"]}, "deb": {"build": ["debian"]}}}
    for name in told["vm"]["rpm"]["build"]:
        assert not (TREE / name).exists() or f"/{name}\n" in text(".gitignore"), "made of the template, and not kept"
        template = text(f"{name}.in")
        assert set(re.findall(r"@[A-Z_]+@", template)) == {"@VERSION@", "@REL@", "@CHANGELOG@"}
        assert "\nSource0:        %{name}-%{version}.tar.gz\n" in template, "the name of the archive it makes"
    for name in told["vm"]["deb"]["build"]:
        assert text(f"{name}/source/format") == "3.0 (quilt)\n"
        assert {path.name for path in (TREE / name).iterdir()} >= {"changelog", "control", "copyright", "rules"}
