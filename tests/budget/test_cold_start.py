# SPDX-License-Identifier: GPL-2.0-or-later
"""What a cold start loads, which is the most of its time: lists of modules, because times scatter (`make bench`)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from qubes_guestnet import __version__
from qubes_guestnet.cli import parser

TREE = Path(__file__).resolve().parents[2]
LAUNCHER = TREE / "bin" / "qubes-guestnet"

# What the launcher needs in any case, and all that `--version` and `--help` may load beside it.
FIRST = {"os", "posixpath", "genericpath", "stat", "_stat", "_collections_abc", "errno", "gc", "__future__"}
FIRST |= {"qubes_guestnet", "qubes_guestnet.cli", "qubes_guestnet.cli.main", "qubes_guestnet.errors"}
NOT_FOR_APPLY = {
    "argparse": "10 ms; for options, and errors of usage",
    "asyncio": "24 ms",
    "dataclasses": "15 ms: it imports inspect",
    "enum": "1 ms, see core/enumeration",
    "inspect": "of dataclasses",
    "json": "only `--json` needs it",
    "logging": "5 ms",
    "qubes_guestnet.agent.loop": "of the resident agent",
    "qubes_guestnet.lab": "for no production",
    "qubes_guestnet.provider": "in a provider",
    "re": "5 ms",
    "selectors": "of socket",
    "signal": "enum, see system/plain_signal",
    "site": "3 to 10 ms, see the launcher",
    "socket": "11 ms of processor time, see system/plain_socket",
    "subprocess": "8 ms",
    "tenacity": "24 ms, when QubesDB does not answer",
    "tomllib": "5 ms, where there is a guestnet.toml",
    "typing": "5 ms; it is for the type checker",
}


def launcher(folder: Path, *folders: str) -> str:
    """A copy as tools/packaging.mk makes it."""
    made = folder / "qubes-guestnet"
    text = LAUNCHER.read_text()
    assert "\nFOLDERS = ()" in text
    made.write_text(text.replace("\nFOLDERS = ()", f"\nFOLDERS = {folders!r}"))
    return str(made)


def imported(*words: str) -> set[str]:
    done = subprocess.run([sys.executable, "-IS", "-X", "importtime", *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = [line.split("|") for line in done.stderr.splitlines() if line.startswith("import time:")]
    return {line[2].strip() for line in lines}


def packages() -> str:
    """The folder of the dependencies in this environment."""
    import pyroute2

    return str(Path(pyroute2.__path__[0]).parent)


@pytest.mark.parametrize("option", ["--version", "-V", "--help", "-h"])
def test_what_the_least_call_may_import(option: str, tmp_path: Path) -> None:
    found = imported(launcher(tmp_path, str(TREE)), option) - imported("-c", "")
    assert found <= FIRST | {"qubes_guestnet.cli.help_text"}


def test_apply_has_not_loaded_what_it_seldom_needs() -> None:
    """Up to its first question to QubesDB, and with all that it then calls loaded."""
    ask = f"import sys; sys.path += [{str(TREE)!r}, {packages()!r}]\nfrom qubes_guestnet.cli import main, verbs\n"
    done = subprocess.run(
        [sys.executable, "-IS", "-c", f"{ask}print(*sys.modules)"], capture_output=True, text=True, check=True
    )
    loaded = set(done.stdout.split())
    assert {"qubes_guestnet.reconcile", "pyroute2.netlink.rtnl.rtmsg"} <= loaded
    assert {module: why for module, why in NOT_FOR_APPLY.items() if module in loaded} == {}


@pytest.mark.parametrize("module", ["cli.vif", "provider.provider_pass"])
def test_a_provider_has_not_loaded_enumerations(module: str) -> None:
    """`vif` runs while a qube starts, and a provider's pass at boot."""
    ask = f"import sys; sys.path += [{str(TREE)!r}, {packages()!r}]\nfrom qubes_guestnet.cli import main\n"
    words = [sys.executable, "-IS", "-c", f"{ask}import qubes_guestnet.{module}\nprint(*sys.modules)"]
    loaded = set(subprocess.run(words, capture_output=True, text=True, check=True).stdout.split())
    assert f"qubes_guestnet.{module}" in loaded
    assert loaded & {"enum", "signal", "socket", "selectors", "typing", "re"} == set()


def test_the_help_is_that_of_the_parser(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    done = subprocess.run([sys.executable, str(LAUNCHER), "--help"], capture_output=True, text=True, check=True)
    assert done.stdout == parser.parser().format_help()


def test_what_the_folders_lack_is_found_by_site(tmp_path: Path) -> None:
    """As a package that pip put below /usr/local."""
    everything = launcher(tmp_path)
    done = subprocess.run([sys.executable, "-IS", everything, "--version"], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == (f"qubes-guestnet {__version__}\n", "")
    ours_alone = launcher(tmp_path, str(TREE))
    done = subprocess.run([sys.executable, "-IS", ours_alone, "apply"], capture_output=True, text=True)
    assert "QubesDB" in done.stderr


def test_an_optional_package_may_be_elsewhere_too(tmp_path: Path) -> None:
    """As jeepney by pip, all else by the distribution: without it resolved would be asked by program."""
    for name in ("pyroute2", "tenacity"):
        (tmp_path / name).symlink_to(f"{packages()}/{name}")
    script = launcher(tmp_path, str(TREE), str(tmp_path))
    ask = "import sys; sys.argv = ['x', '--version']\nimport os; os._exit = lambda status: None\n"
    ask += f"exec(open({script!r}).read())\nfrom qubes_guestnet.system.dbus import bus\nprint(bus._library())"
    done = subprocess.run([sys.executable, "-IS", "-c", ask], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "jeepney" in done.stdout


def test_what_is_nowhere_is_named_with_its_package(tmp_path: Path) -> None:
    script = launcher(tmp_path, str(TREE))
    gone = "import sys; sys.argv = ['x', 'apply']; sys.prefix = sys.exec_prefix = '/nowhere'; sys.executable = '/x'\n"
    words = [sys.executable, "-IS", "-c", f"{gone}exec(open({script!r}).read())"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.endswith("; install python3-pyroute2\n")
    assert len(done.stderr.splitlines()) == 1
