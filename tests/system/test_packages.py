# SPDX-License-Identifier: GPL-2.0-or-later
"""The packages as files: clean, the same bytes each time, the same contents in both, and installable."""

from __future__ import annotations

import ast
import hashlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from qubes_guestnet import __version__
from tests.support.machines import packages
from tests.support.machines.packages import TREE
from tests.support.needs import needs

BUILD_LIMIT_S = 300
# Differences that are meant: where each distribution has its things.
MOVED = (
    (r"^/lib/", "/usr/lib/"),
    (r"^/usr/lib/python3[.0-9]*/(?:dist|site)-packages/", "/PYTHON/"),
    (r"^/usr/share/zsh/vendor-completions/", "/usr/share/zsh/site-functions/"),
    (r"^/etc/iproute2/", "/usr/share/iproute2/"),
    (r"\.gz$", ""),
)
PAPERS = re.compile(r"^/usr/share/(doc|licenses|lintian)/|\.dist-info/")
# In the rpm a scriptlet makes these links, because rpm has no diversions.
LAUNCHERS = {
    "/usr/lib/qubes/setup-ip",
    "/usr/lib/qubes/qubes-setup-dnat-to-ns",
    "/etc/xen/scripts/vif-route-qubes",
}
IMPORT_TO_PACKAGE = {
    "dns": "python3-dnspython",
    "pyroute2": "python3-pyroute2",
    "qubesdb": "python3-qubesdb",
    "tenacity": "python3-tenacity",
}
# What is run, and no system of Debian or Fedora is without systemd's own.
PROGRAM_TO_PACKAGE = {
    "ip": "iproute2",
    "nft": "nftables",
    "xenstore-read": "xenstore-utils",
    "xenstore-write": "xenstore-utils",
}
IN_FEDORA = {
    "iproute": "iproute2",
    "conntrack-tools": "conntrack",
    "python3-dns": "python3-dnspython",
    "/usr/bin/xenstore-read": "xenstore-utils",
    "/usr/bin/xenstore-write": "xenstore-utils",
}
# Of each unit's sandbox, what systemd-analyze makes of it at most, in tenths.
SANDBOXED = {
    "qubes-guestnet.service": 15,
    "qubes-guestnet-rules.service": 15,
    "qubes-guestnet-hold.service": 15,
    "qubes-guestnet-names.service": 12,
}


def run(*command: str, cwd: Path = TREE) -> str:
    path = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=BUILD_LIMIT_S, cwd=cwd, env=path)
    assert done.returncode == 0, f"{' '.join(command)}: {done.returncode}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def deb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packages.ours(tmp_path_factory.mktemp("deb"), build_type="--build=full")


@pytest.fixture(scope="module")
def rpm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    needs("rpmbuild")
    folder = tmp_path_factory.mktemp("rpm")
    run("tools/build-rpm", str(folder))
    (package,) = folder.glob("*.rpm")
    return package


def contents(names: list[str]) -> set[str]:
    found = set()
    for name in names:
        if not PAPERS.search(name):
            for pattern, replacement in MOVED:
                name = re.sub(pattern, replacement, name)
            found.add(name)
    return found


def deb_files(package: Path) -> list[str]:
    lines = run("dpkg-deb", "--contents", str(package)).splitlines()
    return [line.split()[5].removeprefix(".") for line in lines if not line.startswith("d")]


def test_lintian_is_quiet(deb: Path) -> None:
    needs("lintian")
    (changes,) = deb.parent.glob("*.changes")
    assert run("lintian", "--allow-root", "--info", "--display-info", "--pedantic", str(changes)) == ""


def test_each_override_has_its_reason() -> None:
    lines = (TREE / "debian/qubes-guestnet.lintian-overrides").read_text().splitlines()
    for number, line in enumerate(lines):
        assert line.startswith("#") or lines[number - 1].startswith("#"), line


def test_two_builds_have_the_same_bytes(deb: Path, built: Path) -> None:
    digests = {hashlib.sha256(package.read_bytes()).hexdigest() for package in (deb, built)}
    assert len(digests) == 1


def test_rpmlint_is_quiet(rpm: Path) -> None:
    needs("rpmlint")
    spec = rpm.with_name("qubes-guestnet.spec")
    run("rpmlint", "--config", "rpm/rpmlint.toml", str(spec), str(rpm))


def test_both_packages_are_the_release_that_the_tree_is(deb: Path, rpm: Path) -> None:
    release = "-".join((TREE / name).read_text().strip() for name in ("version", "rel"))
    assert run("dpkg-deb", "--field", str(deb), "Version") == f"{release}\n"
    assert run("rpm", "-qp", "--queryformat", "%{VERSION}-%{RELEASE}", str(rpm)) == release
    newest = run("rpm", "-qp", "--changelog", str(rpm)).splitlines()[0]
    assert newest.endswith(f" - {release}")
    # What Qubes' builder asks of the spec before it has any of Fedora's macros.
    asked = ("rpm", "-q", "--define", "dist .fc42", "--queryformat", "%{NAME}-%{VERSION}-%{RELEASE}", "--specfile")
    assert run(*asked, str(rpm.with_name("qubes-guestnet.spec"))) == f"qubes-guestnet-{release}.fc42"


def test_the_modules_are_compiled_when_they_are_installed(deb: Path) -> None:
    """Else each command compiles them anew. An rpm has the compiled files in it: Fedora's rpmbuild makes them."""
    assert "\n\tpy3compile -p qubes-guestnet" in run("dpkg-deb", "--info", str(deb), "postinst")


def test_both_packages_have_the_same_contents(deb: Path, rpm: Path) -> None:
    needs("rpm")
    directories = {line.split()[-1] for line in run("rpm", "-qlvp", str(rpm)).splitlines() if line.startswith("d")}
    rpm_files = [name for name in run("rpm", "-qlp", str(rpm)).splitlines() if name not in directories]
    assert contents(deb_files(deb)) - LAUNCHERS == contents(rpm_files)


def test_the_rpm_installs_into_a_scratch_root(rpm: Path, tmp_path: Path) -> None:
    options = ["--root", str(tmp_path), "--dbpath", "/var/lib/rpm", "--nodeps", "--noscripts"]
    run("rpm", "--install", *options, str(rpm))
    assert (tmp_path / "usr/bin/qubes-guestnet").read_text().startswith("#!/usr/bin/python3 -IS\n")
    run("rpm", "--verify", *options[:5], "qubes-guestnet")
    run("rpm", "--erase", *options, "qubes-guestnet")
    assert not (tmp_path / "usr/bin/qubes-guestnet").exists()


def test_both_carry_the_documents_and_a_sample_of_the_configuration(deb: Path, rpm: Path) -> None:
    wanted = {
        "settings.md",
        "provider.md",
        "check-codes.md",
        "firewall.md",
        "firewall.schema.json",
        "status.schema.json",
        "trees.md",
        "README.md",
        "guestnet.toml",
    }
    for names in (deb_files(deb), run("rpm", "-qlp", str(rpm)).splitlines()):
        papers = {Path(name.removesuffix(".gz")).name for name in names if name.startswith("/usr/share/doc/")}
        assert wanted <= papers
        (sample,) = (name for name in names if name.endswith("/guestnet.toml"))
        assert sample.endswith("/examples/guestnet.toml")


@pytest.mark.behaviour("B103")
def test_both_depend_on_exactly_what_is_imported(deb: Path, rpm: Path) -> None:
    imported = {
        name.partition(".")[0]
        for path in (TREE / "qubes_guestnet").rglob("*.py")
        if "lab" not in path.parts
        for node in ast.walk(ast.parse(path.read_text()))
        for name in _names(node)
    }
    wanted = {IMPORT_TO_PACKAGE.get(name, name) for name in imported - set(sys.stdlib_module_names)}
    # Only where SELinux is, and only then there: the system brings it. jeepney has resolvectl to stand in for it.
    wanted -= {"qubes_guestnet", "selinux", "jeepney"}
    wanted |= set(PROGRAM_TO_PACKAGE.values())
    fields = run("dpkg-deb", "--field", str(deb), "Depends")
    assert {entry.split()[0] for entry in fields.split(",")} - {"python3:any"} == wanted
    required = {line.split()[0] for line in run("rpm", "-qpR", str(rpm)).splitlines()}
    made = ("rpmlib(", "python(", "python3.", "/bin/", "/usr/bin/python3")  # by rpm, of what it finds in the files
    required = {name for name in required if not name.startswith(made)} - {"systemd"}
    assert {IN_FEDORA.get(name, name) for name in required} == wanted


def test_both_recommend_what_published_scripts_call(deb: Path, rpm: Path) -> None:
    """Users' firewall scripts call these programs, and a template has them only if a package brings them."""
    wanted = {"conntrack", "socat"}
    assert set(run("dpkg-deb", "--field", str(deb), "Recommends").strip().split(", ")) == wanted
    recommended = run("rpm", "-qp", "--recommends", str(rpm)).splitlines()
    assert {IN_FEDORA.get(name, name) for name in recommended} == wanted


@pytest.mark.behaviour("B103")
def test_each_program_that_is_run_has_its_package() -> None:
    """Those of systemd and of what is optional apart, which are looked for and done without."""
    optional = {"nmcli", "notify-send", "resolvectl", "systemctl", "systemd-run", "qubes-guestnet"}
    essential = {"cat", "runuser", "touch"}  # coreutils and util-linux: no Debian or Fedora is without
    found = {
        name
        for path in (TREE / "qubes_guestnet").rglob("*.py")
        if "lab" not in path.parts
        for name in re.findall(r"""\b(?:find|_program)\("([\w-]+)"\)""", path.read_text())
    }
    assert found - optional - essential == set(PROGRAM_TO_PACKAGE)


def _names(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.level == 0:
        return [node.module or ""]
    loaders = ("submodule", "import_module", "deferred_imports.load")
    is_lean = isinstance(node, ast.Call) and ast.unparse(node.func).endswith(loaders)
    first = node.args[0] if isinstance(node, ast.Call) and is_lean and node.args else None
    return [first.value] if isinstance(first, ast.Constant) and isinstance(first.value, str) else []


def test_make_install_alone_is_a_working_program(tmp_path: Path) -> None:
    run("make", "install", f"DESTDIR={tmp_path}", "SYSTEM_PYTHON=/usr/bin/python3")
    (package,) = tmp_path.glob("usr/lib/python3*/*-packages/qubes_guestnet")
    assert (package / "core/__pycache__").is_dir()
    launcher = (tmp_path / "usr/bin/qubes-guestnet").read_text()
    assert launcher.splitlines()[0] == "#!/usr/bin/python3 -IS"
    assert f'FOLDERS = ("/{package.parent.relative_to(tmp_path)}",' in launcher
    said = run("/usr/bin/python3", "-c", launcher.replace("sys.argv[1:2]", "[]"), "--version", cwd=package.parent)
    assert said == f"qubes-guestnet {__version__}\n"


@pytest.mark.parametrize("unit", SANDBOXED)
def test_the_sandbox_is_within_its_limit(unit: str) -> None:
    """The number of the file itself; test_boot has it of the running service."""
    needs("systemd-analyze")
    run("systemd-analyze", "security", "--offline=true", f"--threshold={SANDBOXED[unit]}", f"systemd/{unit}")


@pytest.mark.behaviour("B102")
def test_no_tool_has_a_path_that_a_distribution_could_change() -> None:
    """What units and scripts run is ourselves, the system's Python and the shell."""
    programs = {
        word
        for path in [*(TREE / "systemd").rglob("*"), TREE / "bin/qubes-guestnet"]
        if path.is_file()
        for line in path.read_text().splitlines()
        if line.startswith("#!") or not line.startswith("#")
        for word in re.findall(r"(?:/usr)?/s?bin/[\w.-]+", line)
    }
    assert programs == {"/usr/bin/qubes-guestnet", "/usr/bin/python3", "/bin/sh"}


def test_shell_scripts_parse() -> None:
    scripts = [*(TREE / "debian").glob("*.p*"), *(TREE / "tools").glob("build-*"), TREE / "tools/export-tree"]
    scripts += [TREE / "systemd" / Path(launcher).name for launcher in LAUNCHERS]
    scripts += [TREE / "config/NetworkManager/dispatcher.d/30-qubes-guestnet", TREE / "debian/tests/namespaces"]
    scripts += [TREE / "systemd/qubes-guestnet-generator", TREE / "systemd/qubes-firewall"]
    assert len(scripts) == 14
    for script in scripts:
        run("sh", "-n", str(script))
