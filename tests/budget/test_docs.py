# SPDX-License-Identifier: GPL-2.0-or-later
"""The documents say what the program does: every name in it is in them, and none that it does not have."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from qubes_guestnet import cli, commands
from qubes_guestnet.core import hooks, provider, settings
from qubes_guestnet.lab import cli as lab_cli
from qubes_guestnet.system import networkmanager, qubesdb, services
from tests.support.needs import needs

TREE = Path(__file__).resolve().parents[2]
SETTINGS = TREE / "docs" / "settings.md"
CHECK_CODES = TREE / "docs" / "check-codes.md"
BEHAVIOURS = TREE / "docs" / "behaviours.md"
MAN_PAGE = TREE / "docs" / "man" / "qubes-guestnet.8"
COMPLETIONS = sorted((TREE / "completions").iterdir())
LEAVES = ("ip", "netmask", "gateway", "ip6", "netmask6", "gateway6", "custom", "mtu")


def text(path: Path) -> str:
    """A document; of the man page without the escapes of roff."""
    return path.read_text(encoding="utf-8").replace("\\-", "-")


def has_word(document: str, word: str) -> bool:
    """As a word of its own or an option; `uplink` is not in `wait-uplink`."""
    return re.search(rf"(?<!\w)(?<!\w-){re.escape(word)}(?![\w-])", document) is not None


@pytest.mark.parametrize("document", [SETTINGS, MAN_PAGE], ids=lambda path: path.name)
def test_every_key_is_documented(document: Path) -> None:
    keys = [key for key in (*settings.WATCHED, *provider.PROVIDER_WATCHED) if not key.endswith("/")]
    assert [key for key in keys if not has_word(text(document), key)] == []
    leaves = (*LEAVES, "visible-ip", "visible-gateway")
    assert [leaf for leaf in leaves if not has_word(text(document), leaf)] == []


def test_no_key_of_the_program_is_missing_from_the_list_here() -> None:
    source = (TREE / "qubes_guestnet" / "core" / "settings.py").read_text(encoding="utf-8")
    found = set(re.findall(r'_Key\("/[^"]+", "(\w+)"', source)) | set(re.findall(r'_CUSTOM = "(\w+)"', source))
    source = (TREE / "qubes_guestnet" / "core" / "mtu.py").read_text(encoding="utf-8")
    found |= set(re.findall(r"PER_INTERFACE}{mac}/(\w+)", source))
    assert found == set(LEAVES)


@pytest.mark.parametrize("document", [SETTINGS, MAN_PAGE], ids=lambda path: path.name)
def test_every_flag_file_and_variable_is_documented(document: Path) -> None:
    names = [*services._NAMES, services.PROVIDES, networkmanager.FLAG, *hooks.HOOKS, hooks.NETWORK_HOOKS, "XENBUS_PATH"]
    names += ["guestnet.toml", "default-route", qubesdb.DIRECTORY_VARIABLE]
    assert [name for name in names if name not in text(document)] == []


@pytest.mark.parametrize("document", [MAN_PAGE, *COMPLETIONS], ids=lambda path: path.name)
def test_every_verb_and_option_is_documented(document: Path) -> None:
    options = {option.removeprefix("--") for verb in cli.VERBS.values() for option in verb.options}
    actions = {choice for verb in cli.VERBS.values() for choice in verb.choices}
    missing = [word for word in {*cli.VERBS, *options, *actions} if not has_word(text(document), word)]
    assert missing == []


@pytest.mark.parametrize("document", COMPLETIONS, ids=lambda path: path.name)
def test_every_verb_of_the_lab_is_completed(document: Path) -> None:
    names = set(re.findall(r"^    (\w+) ", lab_cli.parser().format_help(), re.MULTILINE))
    assert {"demo", "store"} <= names
    assert [name for name in names if not has_word(text(document), name)] == []


def test_the_man_page_has_every_exit_status() -> None:
    documented = {int(number) for number in re.findall(r"^\.It (\d+)$", text(MAN_PAGE), re.MULTILINE)}
    assert documented == {cli.EXIT_DONE, cli.EXIT_FAILED, cli.EXIT_USAGE, commands.UNCHANGED}
    in_settings = {int(number) for number in re.findall(r"^\| (\d+) \|", text(SETTINGS), re.MULTILINE)}
    assert in_settings == documented


def check_codes() -> dict[str, str]:
    """Code → severity, as the source makes findings. The codes of errors come from a table, all as one severity."""
    codes = {}
    source = "\n".join(path.read_text(encoding="utf-8") for path in sorted((TREE / "qubes_guestnet").glob("core/*.py")))
    tree = ast.parse(re.sub(r"^from __future__ .*$", "", source, flags=re.MULTILINE))
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("Finding", "Remark")):
            continue
        code, severity = node.args[:2]
        assert isinstance(severity, ast.Constant)
        if isinstance(code, ast.Constant):
            codes[str(code.value)] = str(severity.value)
        else:
            table = re.search(r'\{SettingsError: "([\w-]+)", ConfigError: "([\w-]+)"\}.*?"([\w-]+)"\)', source)
            assert table is not None, "where do the codes of errors come from now?"
            codes.update(dict.fromkeys(table.groups(), str(severity.value)))
    assert len(codes) > 10
    return codes


def test_the_check_codes_are_documented_with_their_severity() -> None:
    in_table = dict(re.findall(r"^\| `([\w-]+)` \| (\w+) \|", text(CHECK_CODES), re.MULTILINE))
    in_man_page = dict(re.findall(r"^\.It Sy ([\w-]+) Pq (\w+)$", text(MAN_PAGE), re.MULTILINE))
    assert in_table == check_codes()
    assert in_man_page == check_codes()


def test_the_man_page_is_clean() -> None:
    needs("mandoc")
    done = subprocess.run(["mandoc", "-T", "lint", "-W", "warning", str(MAN_PAGE)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_bash_completion_completes() -> None:
    needs("bash")
    script = (
        f"source {TREE / 'completions' / 'qubes-guestnet.bash'}\n"
        "COMP_WORDS=(qubes-guestnet wait-uplink --t) COMP_CWORD=2 && _qubes_guestnet && echo ${COMPREPLY[@]}\n"
        "COMP_WORDS=(qubes-guestnet a) COMP_CWORD=1 && _qubes_guestnet && echo ${COMPREPLY[@]}\n"
    )
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
    assert done.stdout.splitlines() == ["--timeout", "agent apply"], done.stderr


def test_the_table_of_behaviours_is_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tools.behaviours"], cwd=TREE, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.rstrip() == text(BEHAVIOURS).rstrip(), (
        "run `make coverage-of-behaviours`, and read the difference"
    )


# What "one qube online" promises.
PROMISED = (
    *(f"B{number}" for number in (*range(1, 16), 18, 19, 22, 23, 105, 106)),
    *("S-000", "S-001a", "S-001b", "S-110", "S-111", "S-400", "S-401", "S-402", "S-403", "S-404"),
)


def test_every_promised_row_has_a_test() -> None:
    assert [row for row in PROMISED if f"\n| {row} | `tests/" not in text(BEHAVIOURS)] == []


def test_links_between_documents_lead_somewhere() -> None:
    dead = [
        f"{document.name}: {target}"
        for document in [*TREE.glob("*.md"), *TREE.glob("docs/*.md")]
        for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text(encoding="utf-8"))
        if not (document.parent / target).exists()
    ]
    assert dead == []
