# SPDX-License-Identifier: GPL-2.0-or-later
"""The documents say what the program does: every name in it is in them, and none that it does not have."""

from __future__ import annotations

import argparse
import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import NamedTuple

import pytest

from qubes_guestnet.cli import main as entry
from qubes_guestnet.cli import options as command_line
from qubes_guestnet.cli import verbs as commands
from qubes_guestnet.core import hooks, settings
from qubes_guestnet.core.check import provider_findings
from qubes_guestnet.core.firewall import name_settings
from qubes_guestnet.core.nft import limits
from qubes_guestnet.core.provider import settings as provider
from qubes_guestnet.core.uplink import desired as uplink
from qubes_guestnet.lab import cli as lab_cli
from qubes_guestnet.lab import demo, dom0, firewall_rules, tree
from qubes_guestnet.system import guestnet_toml, networkmanager, service_flags
from qubes_guestnet.system.qubesdb import store as qubesdb
from tests.support.needs import needs
from tests.support.qubes import lab_session

TREE = Path(__file__).resolve().parents[2]
SETTINGS = TREE / "docs" / "settings.md"
CHECK_CODES = TREE / "docs" / "check-codes.md"
DESIGN = TREE / "docs" / "design.md"
PICTURE = TREE / "docs" / "images" / "ipv6-feature.svg"
BEHAVIOURS = TREE / "docs" / "behaviours.md"
MAN_PAGE = TREE / "docs" / "man" / "qubes-guestnet.8"
TREES = TREE / "docs" / "trees.md"
SAMPLE = TREE / "docs" / "examples" / "guestnet.toml"
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
    source = (TREE / "qubes_guestnet" / "core" / "uplink" / "mtu.py").read_text(encoding="utf-8")
    found |= set(re.findall(r"PER_INTERFACE}{mac}/(\w+)", source))
    assert found == set(LEAVES)


@pytest.mark.parametrize("document", [SETTINGS, MAN_PAGE], ids=lambda path: path.name)
def test_every_flag_file_and_variable_is_documented(document: Path) -> None:
    names = [
        *service_flags._NAMES,
        service_flags.PROVIDES,
        networkmanager.FLAG,
        *hooks.HOOKS,
        hooks.NETWORK_HOOKS,
        "XENBUS_PATH",
    ]
    names += ["guestnet.toml", "default-route", "[dns]", "servers", "hold", "[provider]", *limits.KEYS]
    names += ["[firewall]", *name_settings.KEYS]
    names += [qubesdb.DIRECTORY_VARIABLE]
    assert [name for name in names if name not in text(document)] == []


def test_the_page_about_trees_has_every_key_and_release() -> None:
    rows = re.findall(r"^\| (`.*?) \| (.*?) \|", text(TREES), re.MULTILINE)
    keys = {key for names, _ in rows for key in re.findall(r"`([\w-]+)`", names) if not key.startswith("S-")}
    assert keys == {*tree._QUBE, *tree._WORLD, *tree._DOM0}
    assert [release for release in dom0.RELEASES if f'"{release}"' not in text(TREES)] == []
    assert [option for option in firewall_rules.OPTIONS if f"`{option}=`" not in text(TREES)] == []


def _keys_of(toml: str) -> set[tuple[str, str]]:
    return {(name, key) for name, table in tomllib.loads(toml).items() for key in table}


def _uncommented(toml: str) -> str:
    return re.sub(r"^# (\[[\w-]+\]|[\w-]+ = .*)$", r"\1", toml, flags=re.MULTILINE)


def test_the_sample_of_guestnet_toml_has_every_key(tmp_path: Path) -> None:
    sample = text(SAMPLE)
    assert _keys_of(sample) == set(), "a copy of it changes nothing"
    (block,) = re.findall(r"^## /etc/qubes/guestnet.toml$.*?^```toml\n(.*?)^```", text(SETTINGS), re.M | re.S)
    assert _keys_of(_uncommented(sample)) == _keys_of(block) != set()
    source = "".join(
        text(TREE / "qubes_guestnet" / name) for name in ("system/guestnet_toml.py", "core/dns/upstream_servers.py")
    )
    assert {name for name, _ in _keys_of(block)} == set(re.findall(r'_Table\(path, "([\w-]+)"', source))
    read = re.findall(r'table\.get\("([\w-]+)"', source)
    assert {key for _, key in _keys_of(block)} == {*read, *limits.KEYS, *name_settings.KEYS}
    (tmp_path / "all.toml").write_text(_uncommented(sample), encoding="utf-8")
    assert guestnet_toml.configured_style(str(tmp_path / "all.toml")) is uplink.Style.DEVICE
    assert guestnet_toml.holds_after_flush(str(tmp_path / "all.toml")) is False
    assert guestnet_toml.configured_dns(str(tmp_path / "all.toml")).servers
    assert guestnet_toml.configured_limits(str(tmp_path / "all.toml")) == limits.Limits()
    assert guestnet_toml.configured_names(str(tmp_path / "all.toml")) == name_settings.NameSettings()


@pytest.mark.parametrize("document", [MAN_PAGE, *COMPLETIONS], ids=lambda path: path.name)
def test_every_verb_and_option_is_documented(document: Path) -> None:
    options = {option.removeprefix("--") for verb in command_line.VERBS.values() for option in verb.options}
    actions = {choice for verb in command_line.VERBS.values() for choice in verb.choices}
    missing = [word for word in {*command_line.VERBS, *options, *actions} if not has_word(text(document), word)]
    assert missing == []


class LabVerb(NamedTuple):
    """A verb of the lab: its long options, and the words there are for its arguments, verbs of its own among them."""

    options: frozenset[str]
    words: frozenset[str]


def _lab_verb(parser: argparse.ArgumentParser) -> LabVerb:
    options, words = set(), set()
    for action in parser._actions:
        options |= {option for option in action.option_strings if option.startswith("--") and option != "--help"}
        words |= {str(word) for word in action.choices or () if word}
        if isinstance(action, argparse._SubParsersAction):
            below = [_lab_verb(sub) for sub in action.choices.values()]
            options |= {option for verb in below for option in verb.options}
            words |= {word for verb in below for word in verb.words}
    return LabVerb(frozenset(options), frozenset(words))


def lab_verbs() -> dict[str, LabVerb]:
    """Every verb of the lab, as its command line has it."""
    actions = lab_cli.parser()._actions
    (subs,) = (action for action in actions if isinstance(action, argparse._SubParsersAction))
    return {name: _lab_verb(parser) for name, parser in subs.choices.items()}


def _options(text_of_verb: str) -> set[str]:
    found = set(re.findall(r"(?<![\w-])--([a-z][\w-]*)|\bFl (?:\w \| )?-([a-z][\w-]*)|-l ([a-z][\w-]*)", text_of_verb))
    return {f"--{name}" for names in found for name in names if name} - {"--help"}


def lab_parts(document: Path) -> dict[str, str]:
    """What a document says of each verb of the lab."""
    content = text(document)
    parts = dict.fromkeys(lab_verbs(), "")
    if document == MAN_PAGE:
        item = r"^\.It Cm lab ([a-z]+)\b(.*?)(?=^\.It |^\.El)"
        for name, part in re.findall(item, content, re.MULTILINE | re.DOTALL):
            parts[name] += part
    elif document.suffix == ".fish":
        for names, part in re.findall(r"-n '__qubes_guestnet_lab ([\w ]+)'(.*)$", content, re.MULTILINE):
            for name in names.split():
                parts[name] += f"{part}\n"
    else:
        content = content[re.search(r"^_qubes.guestnet.lab\(\)", content, re.MULTILINE).start() :]  # type: ignore[union-attr]
        content = content.replace("$name", "--name")  # of zsh, where it stands for all that it is
        for names, part in re.findall(r"^ +([\w |]+)\)(.*?);;", content, re.MULTILINE | re.DOTALL):
            for name in names.split(" | "):
                parts[name] += part
    return parts


@pytest.mark.parametrize("document", [MAN_PAGE, *COMPLETIONS], ids=lambda path: path.name)
def test_every_verb_of_the_lab_is_documented_with_just_its_options(document: Path) -> None:
    verbs = lab_verbs()
    assert {"demo", "up", "diagram", "store"} <= set(verbs)
    assert [name for name in verbs if not has_word(text(document), name)] == []
    parts = lab_parts(document)
    assert {name: _options(part) for name, part in parts.items()} == {
        name: set(verb.options) for name, verb in verbs.items()
    }
    missing = [(name, word) for name, verb in verbs.items() for word in verb.words if not has_word(parts[name], word)]
    assert missing == []


@pytest.mark.parametrize("document", COMPLETIONS, ids=lambda path: path.name)
def test_every_tree_of_the_lab_is_completed(document: Path) -> None:
    assert [name for name in tree.names() if not has_word(lab_parts(document)["up"] + text(document), name)] == []


def test_the_man_page_has_every_exit_status() -> None:
    documented = {int(number) for number in re.findall(r"^\.It (\d+)$", text(MAN_PAGE), re.MULTILINE)}
    assert documented == {
        command_line.EXIT_DONE,
        command_line.EXIT_FAILED,
        entry._USAGE,
        command_line.EXIT_REFUSED,
        command_line.EXIT_UNCLEAR,
        commands.UNCHANGED,
    }
    in_settings = {int(number) for number in re.findall(r"^\| (\d+) \|", text(SETTINGS), re.MULTILINE)}
    assert in_settings == documented


def check_codes() -> dict[str, str]:
    """Code → severity, as the source makes findings. The codes of errors come from a table, all as one severity."""
    codes = {}
    source = "\n".join(
        path.read_text(encoding="utf-8") for path in sorted((TREE / "qubes_guestnet").glob("core/**/*.py"))
    )
    tree = ast.parse(re.sub(r"^from __future__ .*$", "", source, flags=re.MULTILINE))
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("Finding", "Note", "Remark")):
            continue
        code, severity = node.args[:2]
        if not isinstance(severity, ast.Constant):
            continue  # of the table that is added below
        if isinstance(code, ast.Constant):
            codes[str(code.value)] = str(severity.value)
        else:
            table = re.search(r'\{SettingsError: "([\w-]+)", ConfigError: "([\w-]+)"\}.*?"([\w-]+)"\)', source)
            assert table is not None, "where do the codes of errors come from now?"
            codes.update(dict.fromkeys(table.groups(), str(severity.value)))
    codes.update({code: severity for code, (severity, _) in provider_findings.NAMES.items()})
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


def completed(*words: str, program: str = "qubes-guestnet") -> set[str]:
    """What bash is offered for the last of these words."""
    needs("bash")
    typed = " ".join(f"'{word}'" for word in (program, *words))
    script = (
        f"source {TREE / 'completions' / 'qubes-guestnet.bash'}\n"
        f"COMP_WORDS=({typed}) COMP_CWORD={len(words)} && _qubes_guestnet && printf '%s\\n' \"${{COMPREPLY[@]}}\"\n"
    )
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_the_bash_completion_completes() -> None:
    assert completed("wait-uplink", "--t") == {"--timeout"}
    assert completed("a") == {"agent", "apply"}
    assert completed("") == {*command_line.VERBS, "--help", "--version"}
    assert completed("lab", "") == {*lab_verbs(), "--help"}


@pytest.mark.parametrize("name", [name for name in command_line.VERBS if name != "lab"])
def test_bash_is_offered_what_a_verb_takes(name: str) -> None:
    verb = command_line.VERBS[name]
    assert completed(name, "-") == {*verb.options, "--help"}
    if verb.choices:
        assert completed(name, "") == {*verb.choices, "--help"}


@pytest.mark.parametrize("name", lab_verbs())
def test_bash_is_offered_what_a_verb_of_the_lab_takes(name: str) -> None:
    verb = lab_verbs()[name]
    assert completed("lab", name, "--") == {*verb.options, "--help"}
    assert verb.words <= completed("lab", name, "")


def test_bash_is_offered_the_qubes_and_scenarios_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs("ip", "nsenter", "nft", "dnsmasq")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    program = tmp_path / "qubes-guestnet"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m qubes_guestnet "$@"\n')
    program.chmod(0o755)
    assert {"S-000", "S-000-6g", "S-404-6"} <= completed("lab", "run", "S-", program=str(program))
    for name in ("lab", "other"):
        lab_session.done("up", str(lab_session.small(tmp_path)), "--name", name)
    try:
        for verb in ("exec", "set", "feature", "firewall"):
            assert {"net", "other", "vm1"} <= completed("lab", verb, "", program=str(program))
            assert completed("lab", verb, "--name", "other", "v", program=str(program)) == {"vm1"}
            assert completed("lab", verb, "--name", "nix", "v", program=str(program)) == set()
    finally:
        for name in ("lab", "other"):
            lab_session.done("down", "--name", name)


def test_every_room_of_the_house_is_in_the_table() -> None:
    table = "\n".join(line for line in text(DESIGN).splitlines() if line.startswith("| `"))
    package = TREE / "qubes_guestnet"
    rooms = [path.name for path in package.glob("*.py") if not path.name.startswith("__")]
    rooms += [f"{path.parent.relative_to(package)}/" for path in package.glob("*/__init__.py")]
    rooms += [f"{path.parent.relative_to(package)}/" for path in package.glob("core/*/__init__.py")]
    assert [name for name in sorted(rooms) if f"`{name}`" not in table] == []


def test_the_table_of_behaviours_is_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tools.behaviours"], cwd=TREE, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.rstrip() == text(BEHAVIOURS).rstrip(), (
        "run `make coverage-of-behaviours`, and read the difference"
    )


# What "one qube online" and "a qube that gives network" promise.
PROMISED = (
    *(f"B{number}" for number in (*range(33, 63), 65, 86, 90, *range(92, 96), 101)),
    *(f"B{number}" for number in (*range(1, 16), 18, 19, 22, 23, 105, 106)),
    *(f"S-001{letter}" for letter in "abcdef"),
    *(f"S-{number}" for number in ("010", "020", "040", "050", "100", "112", "113", "114", "200", "201", "203", "204")),
    *(f"S-{number}" for number in (210, 211, 300, 301, 302, 310, 311, 312, 320)),
    *("S-000", "S-110", "S-111", "S-400", "S-401", "S-402", "S-403", "S-404", "S-410"),
    *("B123", "B124", "B127", "B128", "B130", "B131", "B142"),
)


def test_every_promised_row_has_a_test() -> None:
    assert [row for row in PROMISED if f"\n| {row} | `tests/" not in text(BEHAVIOURS)] == []


def test_the_picture_in_the_readme_is_what_the_lab_measures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs("ip", "nsenter", "nft", "dnsmasq")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    lab_session.done("up", PICTURE.stem)
    try:
        assert lab_session.done("diagram") == text(PICTURE), f"lab diagram -o {PICTURE}, and look at it"
    finally:
        lab_session.done("down")


def test_the_steps_in_the_readme_are_those_of_the_demo() -> None:
    code = (TREE / "qubes_guestnet/lab/demo.py").read_text(encoding="utf-8").replace("{_CHANGES}", str(demo._CHANGES))
    steps = re.findall(r'\.step\(f?"(.+)"\)', code)
    assert len(steps) > 10
    assert re.findall(r"(?m)^ ✓  (.+)$", text(TREE / "README.md")) == steps


def headings(document: Path) -> set[str]:
    """What links to a document can name, as the forge makes it of its headings."""
    named = re.findall(r"(?m)^#+ (.+)$", document.read_text(encoding="utf-8"))
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in named}


def test_links_between_documents_lead_somewhere() -> None:
    links = [
        (document, target, heading)
        for document in [*TREE.glob("*.md"), *TREE.glob("docs/*.md")]
        for target, heading in re.findall(r"\]\(([^)#:]*)#?([^):]*)\)", document.read_text(encoding="utf-8"))
    ]
    ends = [
        (document, document.parent / target if target else document, heading) for document, target, heading in links
    ]
    assert any(heading for _, _, heading in ends)
    assert [
        f"{document.name}: {end.name}#{heading}"
        for document, end, heading in ends
        if not end.exists() or (heading and heading not in headings(end))
    ] == []
