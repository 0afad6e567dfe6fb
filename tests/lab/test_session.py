# SPDX-License-Identifier: GPL-2.0-or-later
"""The interactive lab as a person uses it: up, down, what is told of it, and what can be changed in it."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from qubes_guestnet.errors import UsageError
from qubes_guestnet.lab import session_client, tree
from qubes_guestnet.lab.dom0 import Dom0
from qubes_guestnet.lab.namespaces import LabError
from qubes_guestnet.lab.place import Place, base
from tests.support.eventually import eventually
from tests.support.qubes import lab_session
from tests.support.qubes.lab_session import COMMAND, LONGEST, background, done, lab, processes, refused, rows

# How the tests call it, and so what its hints say.
HERE = shlex.join([os.path.relpath(sys.executable), "-m", "qubes_guestnet", "lab"])


@pytest.fixture(autouse=True)
def ground(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A folder for the labs, and nothing left behind."""
    yield from lab_session.ground(tmp_path, monkeypatch)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """The file of a small tree."""
    return lab_session.small(tmp_path)


# --- up, status, down ------------------------------------------------------------------------------------------------


def test_a_tree_stands_and_is_gone_again(small: Path) -> None:
    said = done("up", str(small))
    assert [line.split("s  ")[-1] for line in said.splitlines()[:3]] == [
        "net starts", "other starts", "vm1 starts, behind net",
    ]  # fmt: skip
    assert "vm1    running  net        yes   no    running  10.137.0.3\n" in said
    found = rows()
    assert list(found) == ["net", "other", "vm1"]
    assert {**found["vm1"], "vif": ""} == {
        "name": "vm1", "state": "running", "netvm": "net", "provides_network": False, "vif": "", "features": {},
        "addresses": ["10.137.0.3"], "agent": "running", "ipv4": True, "ipv6": False, "world": None,
        "asked": {"ipv4": True, "ipv6": False}, "firewall": {"limited": False, "rules": ["action=accept"]},
    }  # fmt: skip
    assert found["net"]["world"] == {"ipv4": True, "ipv6": True}
    assert found["net"]["ipv6"] is True
    assert rows("--no-measure")["vm1"]["ipv4"] is None
    assert (base().stat().st_mode & 0o777, (base() / "lab").stat().st_mode & 0o777) == (0o700, 0o700)
    assert done("down") == ""
    assert refused(1, "status") == f"no lab is up; {HERE} up TREE"


@pytest.mark.parametrize(
    "words", ["status", "exec vm1 true", "set vm1 netvm none", "feature vm1 ipv6 1", "firewall vm1", "diagram", "down"]
)
def test_without_a_lab_the_remedy_is_told(words: str) -> None:
    assert refused(1, *words.split()) == f"no lab is up; {HERE} up TREE"
    head, *rest = words.split()
    assert refused(1, head, "--name", "x", *rest) == f"no lab named x is up; {HERE} up TREE --name x"


def test_a_hint_works_from_where_the_caller_is(tmp_path: Path) -> None:
    """Of `up`, run in the source tree, elsewhere, and by an installed command on the search path."""
    script = tmp_path / "bin" / "qubes-guestnet"
    script.parent.mkdir()
    script.write_text(f"#!{sys.executable}\nimport sys\nfrom qubes_guestnet.cli.main import main\nsys.exit(main())\n")
    script.chmod(0o755)
    searched = {**os.environ, "PATH": f"{script.parent}:{os.environ['PATH']}"}
    for command, folder, env, words in (
        (COMMAND[:-1], Path.cwd(), None, HERE),
        (COMMAND[:-1], tmp_path, None, f"{sys.executable} -m qubes_guestnet lab"),
        ((str(script),), tmp_path, None, "bin/qubes-guestnet lab"),
        (("qubes-guestnet",), tmp_path, searched, "qubes-guestnet lab"),
    ):
        failed = subprocess.run([*command, "lab", "status"], capture_output=True, text=True, cwd=folder, env=env)
        assert failed.stderr == f"qubes-guestnet lab: no lab is up; {words} up TREE\n"
        hint = failed.stderr.partition("; ")[2].replace("TREE", "--list")
        assert subprocess.run(["sh", "-ec", hint], cwd=folder, env=env, stdout=subprocess.DEVNULL).returncode == 0


@pytest.mark.behaviour("B143")
def test_a_hint_from_a_folder_that_is_gone_names_the_whole_path(tmp_path: Path) -> None:
    script = f'cd "{tmp_path}" && mkdir gone && cd gone && rmdir ../gone && exec "$@"'
    env = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    command = ["sh", "-c", script, "sh", *COMMAND, "status"]
    failed = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    hint = f"{sys.executable} -m qubes_guestnet lab up TREE"
    assert (failed.returncode, failed.stderr) == (1, f"qubes-guestnet lab: no lab is up; {hint}\n")


def test_without_a_verb_it_shows_its_help() -> None:
    assert done().startswith("usage: qubes-guestnet lab")
    assert done() == done("--help")


@pytest.mark.parametrize("columns", [80, 60])
def test_the_table_keeps_each_address_on_a_line(small: Path, columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    said = done("up", str(small))
    lines = said[said.index(" qube ") :].splitlines()
    for address in ("192.168.0.2", "10.137.0.1", "2000:abcd:0:1::2", "10.137.0.3"):
        assert sum(line.split()[-1:] == [address] for line in lines) >= 1, said
    assert max(map(len, lines[: lines.index("")])) <= columns


def test_the_trees_that_come_along_are_listed() -> None:
    assert "ipv6-feature  sys-net sys-firewall personal" in done("up", "--list")
    assert list(json.loads(done("up", "--list", "--json"))) == list(tree.names())


def test_a_tree_that_is_none_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text("[qube.a]\nnetwm = 'x'")
    assert refused(2, "up", str(tmp_path / "bad.toml")).startswith(f"{tmp_path}/bad.toml: [qube.a]: unknown key netwm")
    assert "give a file, or one of default," in refused(2, "up", "nowhere")
    assert "give a file, or one of default," in refused(2, "up")
    assert refused(2, "up", "default", "--name", "../x").startswith("'../x' is not a valid name of a lab")


def test_two_labs_side_by_side(small: Path) -> None:
    up = json.loads(lab("up", str(small), "--name", "a", "--json").stdout)
    assert [row["name"] for row in up["qubes"]] == ["net", "other", "vm1"]
    done("up", str(small), "--name", "b")
    assert refused(1, "up", str(small), "--name", "b").startswith("a lab named b is up already; end it by")
    assert refused(1, "status") == "no lab named lab is up, but a, b; give --name a"
    done("set", "--name", "a", "vm1", "netvm", "none")
    assert (rows("--name", "a")["vm1"]["ipv4"], rows("--name", "b")["vm1"]["ipv4"]) == (False, True)
    done("down", "--name", "a")
    assert rows("--name", "b")["vm1"]["ipv4"] is True


@pytest.mark.parametrize("again", ["up", "down"])
def test_what_an_end_by_force_left_is_no_lab(small: Path, again: str) -> None:
    before = processes()
    done("up", str(small))
    os.kill(background(), signal.SIGKILL)
    eventually(lambda: processes() <= before, what="all have died with it")
    assert refused(1, "status") == f"no lab is up; {HERE} up TREE"
    assert (base() / "lab" / "socket").exists()
    if again == "up":
        done("up", str(small))
        assert rows()["vm1"]["ipv4"] is True
    else:
        assert lab("down").stderr == "lab lab had ended already; removed its leftovers\n"


def test_a_lab_that_hears_nothing_any_more_is_ended_by_force(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done("up", str(small))
    inside = [pid for pid in processes() if Path(f"/proc/{pid}/stat").read_text().split()[3] == str(background())]
    for pid in inside:
        os.kill(pid, signal.SIGSTOP)
    monkeypatch.setattr(session_client, "_PATIENCE", 1.0)
    assert session_client.down(Place())


def test_ctrl_c_while_it_comes_up_leaves_nothing(small: Path) -> None:
    running = subprocess.Popen([*COMMAND, "up", str(small)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert running.stdout is not None
    assert running.stdout.readline().endswith("net starts\n")
    running.send_signal(signal.SIGINT)
    running.communicate(timeout=LONGEST)
    assert running.returncode == 130
    assert not base().exists()


def test_why_it_did_not_come_up_is_told(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The background process is a fork of this one, and so is what is wrong with it."""

    def fail(_dom0: Dom0, vm: object) -> None:
        raise LabError(f"{vm!r} does not start", "do this")

    monkeypatch.setattr(Dom0, "start", fail)
    steps: list[str] = []
    with pytest.raises(LabError, match=r"^<net> does not start; do this$"):
        session_client.up(tree.load(str(small)), Place(), steps.append, lambda: None)
    assert steps == ["net starts"]

    def stumble(_dom0: Dom0, _vm: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(Dom0, "start", stumble)
    monkeypatch.setattr(sys, "stderr", sys.__stderr__)  # pytest's is no descriptor, and nothing of it gets into a log
    with pytest.raises(LabError, match=r"did not start: (?s:.*)ZeroDivisionError: a bug$"):
        session_client.up(tree.load(str(small)), Place(), steps.append, lambda: None)
    assert not base().exists()


def test_a_folder_others_may_enter_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base().mkdir(mode=0o755)
    assert "qubes-guestnet-lab is not owned by you with mode 700" in refused(1, "up", "default")
    base().rmdir()
    base().symlink_to(tmp_path)
    with pytest.raises(LabError, match="not owned by you"):
        Place().claim()
    base().unlink()
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert base() == Path(f"/tmp/qubes-guestnet-lab-{os.geteuid()}")
    with pytest.raises(UsageError):
        Place("")


def test_strangers_at_its_socket_do_no_harm(small: Path) -> None:
    done("up", str(small))
    silent = Place().connect()
    for garbage in (b"", b"no json\n", b"[]\n", b"{}\n", b'{"verb": "nix"}\n', b'{"verb": "exec", "qube": "vm1"}\n',
                    b'{"verb": "signal", "number": 9}\n', b'{"verb": "status"'):  # fmt: skip
        with Place().connect() as stranger:
            stranger.sendall(garbage)
            stranger.shutdown(socket.SHUT_WR)
            stranger.recv(1000)
    assert rows()["vm1"]["ipv4"] is True
    silent.close()


# --- changes ---------------------------------------------------------------------------------------------------------


def test_a_qube_gets_another_provider_and_none(small: Path) -> None:
    done("up", str(small))
    assert "vm1 gets its network from other" in done("set", "vm1", "netvm", "other")
    row = rows()["vm1"]
    assert (row["netvm"], row["ipv4"], row["addresses"]) == ("other", True, ["10.137.0.3"])
    assert "vm1 loses its network" in done("set", "vm1", "netvm", "none")
    row = rows()["vm1"]
    assert (row["netvm"], row["vif"], row["ipv4"], row["addresses"]) == (None, None, False, [])
    assert refused(2, "set", "nix", "netvm", "net") == "there is no qube nix; the qubes are net, other, vm1"
    assert refused(2, "set", "net", "netvm", "vm1") == "vm1 provides no network; these do: net, other"
    assert refused(2, "set", "net", "netvm", "net") == "net gets its network from net; a qube cannot provide for itself"
    assert lab("set", "vm1", "label", "red").returncode == 2
    assert rows()["vm1"]["netvm"] is None


def test_the_feature_comes_down_the_tree_when_qubes_restart(small: Path) -> None:
    done("up", str(small))
    assert done("feature", "net", "ipv6", "1") == (
        "As in Qubes, the change takes effect at a restart of net, vm1: see --restart\n"
    )
    assert rows()["vm1"]["ipv6"] is False
    told = done("feature", "net", "ipv6", "1", "--restart")
    assert told.index("net restarts") < told.index("vm1 restarts")
    row = rows()["vm1"]
    assert (row["ipv6"], row["addresses"]) == (True, ["10.137.0.3", "fd09:24ef:4179::a89:3"])
    done("feature", "vm1", "ipv6", "", "--restart")
    row = rows()["vm1"]
    assert (row["ipv4"], row["ipv6"], row["addresses"], row["features"]) == (True, False, ["10.137.0.3"], {"ipv6": ""})
    done("feature", "vm1", "ipv6", "--unset", "--restart")
    assert rows()["vm1"]["ipv6"] is True
    assert refused(2, "feature", "vm1", "ipv6").startswith("give exactly one of 1, '' and --unset")
    assert refused(2, "feature", "vm1", "ipv6", "1", "--unset").startswith("give exactly one of 1, '' and --unset")


def test_firewall_rules_are_changed_as_by_qvm_firewall(small: Path) -> None:
    done("up", str(small))
    head = " no  action  host  protocol  port(s)  special target  icmp type  expire  comment\n"
    row = " 0   accept  -     -         -        -               -          -       -\n"
    assert done("firewall", "vm1") == head + row
    base = "/qubes-firewall/10.137.0.3"
    read = ("exec", "net", "--", *COMMAND, "store", "--dir", "/run/qubes", "multiread", f"{base}/")
    for words in (
        ("add", "drop", "comment=the rest"), ("add", "--before", "0", "accept", "test.example.com", "tcp", "1234"),
        ("del", "--rule-no", "1"), ("add", "--before", "1", "specialtarget=dns", "action=accept"),
    ):  # fmt: skip
        assert done("firewall", "vm1", *words) == ""
    assert done("firewall", "vm1", "list", "--raw").splitlines() == [
        "action=accept proto=tcp dsthost=test.example.com dstports=1234-1234",
        "action=accept specialtarget=dns",
        "action=drop comment=the rest",
    ]
    for words in (("--raw", "vm1"), ("vm1", "--raw")):
        assert done("firewall", *words) == done("firewall", "vm1", "list", "--raw")
    assert done(*read).splitlines() == [
        f"{base}/0000 = action=accept dsthost=test.example.com proto=tcp dstports=1234-1234",
        f"{base}/0001 = action=accept specialtarget=dns",
        f"{base}/0002 = action=drop",
        f"{base}/policy = drop",
    ]
    assert rows("--no-measure")["vm1"]["firewall"]["limited"] is True
    assert done("firewall", "vm1", "del", "drop", "comment=the rest") == ""
    assert done("firewall", "--reload", "vm1") == done("firewall", "vm1")
    assert "limited: no ping, as asked<" in done("diagram")
    assert done("firewall", "vm1", "reset") == ""
    assert done("firewall", "vm1", "--raw") == "action=accept\n"
    assert done(*read).splitlines() == [f"{base}/0000 = action=accept", f"{base}/policy = drop"]
    for words, told in (
        (("nix",), "there is no qube nix; the qubes are net, other, vm1"),
        (("vm1", "add", "allow"), "action=allow is not valid; give accept or drop"),
        (("vm1", "add", "--before", "-1", "drop"), "--before -1 is not valid; rules are numbered from 0"),
        (("vm1", "del"), "give exactly one of a rule and --rule-no; `list` prints the numbers, `list --raw` the rules"),
        (("vm1", "del", "--rule-no", "1"), "--rule-no 1: no such rule; the numbers are 0 to 0"),
        (("vm1", "del", "drop"), "action=drop: no such rule; give a rule as `list --raw` prints it, or --rule-no"),
    ):
        assert refused(2, "firewall", *words) == told
    assert lab("firewall", "vm1", "add").returncode == 2
    assert done("firewall", "vm1", "--raw") == "action=accept\n"


def test_a_rule_expires_while_the_lab_is_up(small: Path) -> None:
    done("up", str(small))
    done("firewall", "vm1", "add", "--before", "0", "drop", "expire=+6")  # a command takes a second under load
    assert done("firewall", "vm1", "--raw").startswith("action=drop expire=")
    read = ("exec", "net", "--", *COMMAND, "store", "--dir", "/run/qubes", "multiread", "/qubes-firewall/10.137.0.3/")
    expected = "/qubes-firewall/10.137.0.3/0001 = action=accept\n/qubes-firewall/10.137.0.3/policy = drop\n"
    eventually(lambda: done(*read) == expected, 30.0, "dom0 has written the list without the expired rule")
    assert done("firewall", "vm1", "--raw") == "action=accept\n"


def test_the_diagram_shows_what_was_measured(tmp_path: Path) -> None:
    file = tmp_path / "tree.svg"
    done("up", "ipv6-tunnel")
    assert done("diagram", "-o", str(file)) == ""
    assert colours(file.read_text()) == {
        "sys-net": "well", "sys-firewall": "well", "personal": "well", "untrusted": "well", "ipv6-tunnel": "well",
        "work": "well", "research": "well", "the world": "world",
    }  # fmt: skip
    assert done("diagram") == file.read_text()
    # No entry and no route says so: only packets do.
    done("exec", "sys-firewall", "nft", "insert", "rule", "ip", "qubes", "custom-forward", "counter", "drop")
    done("set", "work", "netvm", "sys-firewall")
    text = done("diagram")
    found = colours(text)
    assert [found[name] for name in ("work", "personal", "sys-firewall", "research")] == [
        "broken", "broken", "well", "well",
    ]  # fmt: skip
    assert refused(1, "diagram", "-o", "/nowhere/x.svg").startswith("/nowhere/x.svg: No such file")


def colours(svg: str) -> dict[str, str]:
    """Name of each box and its class, as drawn."""
    space = "{http://www.w3.org/2000/svg}"
    groups = ElementTree.fromstring(svg).iter(f"{space}g")
    named = ((group.find(f"{space}text[@class='name']"), group.get("class", "")) for group in groups)
    return {name.text or "": kind for name, kind in named if name is not None}


# --- folders that cannot be used -------------------------------------------------------------------------------------

VERBS = (
    "status", "exec vm1 true", "set vm1 netvm none", "feature vm1 ipv6 1", "firewall vm1 reset", "diagram", "down",
    "up default",
)  # fmt: skip


@pytest.mark.behaviour("B143")
@pytest.mark.parametrize(
    "spoil",
    [
        lambda folder: folder.chmod(0o755),
        lambda folder: folder.rmdir() or folder.touch(),
        lambda folder: folder.rmdir() or folder.symlink_to(folder),
        lambda folder: folder.rmdir() or folder.symlink_to("/"),
        lambda folder: (folder / "lab").touch(),
        lambda folder: (folder / "lab").mkdir(0o755),
    ],
    ids=["open to others", "a file", "a loop", "a link", "a file inside", "open to others inside"],
)
def test_a_folder_that_cannot_be_used_is_one_line(spoil: Callable[[Path], object]) -> None:
    base().mkdir(mode=0o700)
    spoil(base())
    for words in VERBS:
        told = refused(1, *words.split())
        assert told.startswith(str(base())), told
        assert told.endswith(("set XDG_RUNTIME_DIR", "set XDG_RUNTIME_DIR to a folder of your own")), told
    subprocess.run(["rm", "-rf", str(base())], check=True)


@pytest.mark.behaviour("B143")
def test_a_folder_of_another_user_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    (base() / "lab").mkdir(mode=0o700, parents=True)
    base().chmod(0o700)
    if Path("/proc/self/uid_map").read_text().split()[2] != "1":  # as root: there are other users to be
        monkeypatch.setenv("PYTHONPATH", os.getcwd())
        theirs = Path("/tmp/qubes-guestnet-lab-12345")
        theirs.mkdir(mode=0o700)
        try:
            for words in VERBS:
                command = ["setpriv", "--reuid=12345", "--clear-groups", *COMMAND, *words.split()]
                failed = subprocess.run(command, text=True, capture_output=True, check=False)
                (line,) = failed.stderr.splitlines()
                assert failed.returncode == 1, failed
                assert line.startswith(f"qubes-guestnet lab: {theirs} is not owned by you"), line
        finally:
            theirs.rmdir()
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    for call in (Place().connect, Place().claim, Place().clear):
        with pytest.raises(LabError, match="is not owned by you"):
            call()
