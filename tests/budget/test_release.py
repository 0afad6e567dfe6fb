# SPDX-License-Identifier: GPL-2.0-or-later
"""One version in all places, what Qubes' builder reads, and the way of a release, step by step."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml

from qubes_guestnet import __version__
from tools import new_version, spec

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


NOW = datetime(2027, 1, 5, 12, 0, tzinfo=UTC)
AUTHOR = "One Author <one@guestnet.example>"


def test_a_new_version_gets_an_entry_on_top() -> None:
    made = new_version.with_entry(DEBIAN, "0.3.0", "1", AUTHOR, NOW)
    assert made == (
        "qubes-guestnet (0.3.0-1) unstable; urgency=medium\n\n  * Release 0.3.0: CHANGELOG.md has what changed.\n\n"
        f" -- {AUTHOR}  Tue, 05 Jan 2027 12:00:00 +0000\n\n{DEBIAN}"
    )
    again = new_version.with_entry(DEBIAN, "0.2.0", "2", AUTHOR, NOW)
    assert again.startswith("qubes-guestnet (0.2.0-2) ")
    assert "  * Built anew from the same sources.\n" in again


def test_the_newest_entry_is_dated_anew_when_it_is_of_this_release() -> None:
    made = new_version.with_entry(DEBIAN, "0.2.0", "1", AUTHOR, NOW)
    changed = [(old, new) for old, new in zip(DEBIAN.splitlines(), made.splitlines(), strict=True) if old != new]
    date = "Tue, 05 Jan 2027"
    assert changed == [(f" -- {AUTHOR}  {date} 23:30:00 +0100", f" -- {AUTHOR}  {date} 12:00:00 +0000")]


@pytest.mark.parametrize(("version", "rel"), [("0.1.9", "1"), ("0.1.0", "3")])
def test_an_older_version_is_refused(version: str, rel: str) -> None:
    with pytest.raises(ValueError, match=f"{version}-{rel} is older than 0.2.0-1"):
        new_version.with_entry(DEBIAN, version, rel, AUTHOR, NOW)


@pytest.mark.parametrize("typed", ["", "1.0", "v1.0.0", "1.0.0-0", "1.0.0-rc1", "1.0.0 "])
def test_what_is_no_version_is_refused(typed: str) -> None:
    done = subprocess.run([sys.executable, "-m", "tools.new_version", typed], cwd=TREE, capture_output=True, text=True)
    assert done.returncode == 2
    assert "is no version such as 0.2.0" in done.stderr


# What takes long or needs root is looked for only; the rest is done. A key for signatures is not asked of a tester.
STAND_INS = """\
make() {
    case $1 in
    changelog|release) command make VENV="$VENV" "$@" ;;
    *) command make --dry-run "$@" >/dev/null ;;
    esac
}
"""
NEXT = f"{int(__version__.partition('.')[0]) + 1}.0.0"
SIGNER = "#!/bin/sh\ncat >/dev/null\necho '[GNUPG:] SIG_CREATED ' >&2\necho '-----BEGIN PGP SIGNATURE-----'\n"


def commands() -> list[str]:
    """Every command of the page about releases, in its order."""
    blocks = re.findall(r"^```\n(.*?)^```$", text("docs/release.md"), re.MULTILINE | re.DOTALL)
    return [line.replace("0.2.0", NEXT) for block in blocks for line in block.splitlines()]


def copied(folder: Path) -> Path:
    """A repository with the files of this tree, a repository to push to, and no settings of a user's git."""
    tree, signer = folder / "tree", folder / "signer"
    subprocess.run([str(TREE / "tools/export-tree"), str(tree)], check=True)
    (tree / "tools/setup").write_text("#!/bin/sh\n")  # the environment is the one that runs this test
    signer.write_text(SIGNER)
    signer.chmod(0o755)
    for settled in (
        ("init", "--quiet", "--bare", str(folder / "origin")),
        ("init", "--quiet", "--initial-branch=main"),
        ("config", "user.name", "One Author"),
        ("config", "user.email", "one@guestnet.example"),
        ("config", "gpg.program", str(signer)),
        ("remote", "add", "origin", str(folder / "origin")),
        ("add", "--all"),
        ("commit", "--quiet", "--message", "all"),
        ("switch", "--quiet", "--create", "work"),
    ):
        subprocess.run(["git", *settled], cwd=tree, env=environment(), check=True)
    return tree


def environment() -> dict[str, str]:
    """Without the settings of this user's git and of a make around us."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("GIT_", "MAKE", "MFLAGS"))}
    return {**kept, "VENV": str(Path(sys.executable).parent), "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_PAGER": "cat"}


def test_every_step_of_a_release_works(tmp_path: Path) -> None:
    tree = copied(tmp_path)
    script = "\n".join([STAND_INS, *commands()])
    done = subprocess.run(["sh", "-eu", "-c", script], cwd=tree, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    asked = ["git", "log", "--max-count=1", "--format=%s %D", "main"]
    said = subprocess.run(asked, cwd=tree, env=environment(), capture_output=True, text=True, check=True).stdout
    assert said.startswith(f"release: {NEXT} ")
    assert {f"tag: v{NEXT}", "origin/main"} <= {
        name.strip() for name in said.removeprefix(f"release: {NEXT} ").split(",")
    }
    assert ((tree / "version").read_text(), (tree / "rel").read_text()) == (f"{NEXT}\n", "1\n")
    assert f'__version__ = "{NEXT}"' in (tree / "qubes_guestnet/__init__.py").read_text()
    made = spec.spec(tree)
    assert f"\nVersion:        {NEXT}\n" in made
    assert re.search(rf"^%changelog\n\* .* - {NEXT}-1\n- Release {NEXT}: ", made, re.MULTILINE)
    news = (tree / "CHANGELOG.md").read_text()
    assert re.search(rf"^<!-- towncrier release notes start -->\n\n## {NEXT} \(", news, re.MULTILINE)
    assert [path.name for path in (tree / "newsfragments").iterdir()] == ["README.md"]
