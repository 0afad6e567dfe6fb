# SPDX-License-Identifier: GPL-2.0-or-later
"""Running other programs: found where they are, told what they need, ended when they are too slow."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from qubes_guestnet.system import programs
from qubes_guestnet.system.programs import ProgramError, find, run, run_together
from tests.support.eventually import eventually

SH = "/bin/sh"


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def children() -> str:
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text()


# --- where they are ------------------------------------------------------------------------------------------------


@pytest.mark.behaviour("B102")
def test_what_is_on_our_path_is_found_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = script(tmp_path / "xen/xenstore-read", ""), script(tmp_path / "usual/xenstore-read", "")
    monkeypatch.setattr(programs, "SEARCHED", (str(theirs.parent),))
    monkeypatch.setenv("PATH", f"/none:{ours.parent}")
    assert find("xenstore-read") == str(ours)
    monkeypatch.setenv("PATH", "/none")
    assert find("xenstore-read") == str(theirs)
    monkeypatch.delenv("PATH")
    assert find("xenstore-read") == str(theirs)
    monkeypatch.setattr(programs, "SEARCHED", ())
    assert find("xenstore-read") == ""


@pytest.mark.behaviour("B102")
def test_a_user_whose_path_lacks_the_sbin_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    assert os.path.basename(os.path.dirname(find("nft"))) == "sbin"
    assert {"/usr/sbin", "/sbin"} <= set(run((SH, "-c", "echo $PATH"), 10).output.split(":"))


@pytest.mark.parametrize("word", ["", ".", "here", "here/../here"])
def test_the_folder_we_happen_to_be_in_is_not_searched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, word: str
) -> None:
    for place in (tmp_path / "planted", tmp_path / "here/planted"):
        script(place, "")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"/usr/bin:{word}")
    assert find("planted") == ""
    assert word not in run((SH, "-c", "echo $PATH"), 10).output.split(":")


def test_what_cannot_be_run_is_not_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "text").write_text("")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find("folder") == find("text") == ""


def test_the_environment_is_clean_but_for_what_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_PRELOAD_NOT", "1")
    monkeypatch.setenv("PATH", "/opt/xen/bin:/usr/bin")
    found = run((find("env"),), 10, environment={"vif": "vif4.0", "HOME": "/rw"}).output
    words = dict(line.split("=", 1) for line in found.splitlines())
    assert words.pop("QUBES_GUESTNET_RUN").startswith(f"{os.getpid()}-")  # by which its children are found
    assert words == {
        "PATH": "/opt/xen/bin:/usr/bin:/usr/sbin:/sbin:/bin", "LC_ALL": "C.UTF-8", "HOME": "/rw", "vif": "vif4.0",
    }  # fmt: skip


# --- what they are told, and say -----------------------------------------------------------------------------------


def test_status_and_output_in_the_order_written() -> None:
    done = run((SH, "-c", "echo one; echo two >&2; echo three; exit 3"), 10)
    assert done == (3, "one\ntwo\nthree")
    assert run((SH, "-c", "kill -TERM $$"), 10).status == -15


@pytest.mark.parametrize("size", [1, 1000, 65536, 1_000_000])
def test_input_of_any_length(size: int) -> None:
    assert run((find("wc"), "-c"), 10, input=b"x" * size).output == str(size)


def test_one_that_answers_while_it_reads() -> None:
    """It would wait for us to read, and we for it, if we wrote everything first."""
    done = programs.finish(programs.start((find("cat"),), input=b"x" * 1_000_000), 10, longest=1 << 21)
    assert done == (0, "x" * 1_000_000)
    assert len(run((find("cat"),), 10, input=b"x" * 1_000_000).output) == programs.LONGEST_OUTPUT


@pytest.mark.parametrize("text", ["exit 4", "exec <&-; echo said; exit 4", "head -c 1 >/dev/null; exit 4"])
def test_one_that_does_not_read_its_input(text: str) -> None:
    done = run((SH, "-c", text), 10, input=b"x" * 1_000_000)
    assert done.status == 4


def test_without_input_there_is_none() -> None:
    assert run((find("wc"), "-c"), 10).output == "0"


# --- ends ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [b"", b"x" * 1_000_000])
def test_one_that_does_not_end_is_killed_with_its_children(tmp_path: Path, given: bytes) -> None:
    note = tmp_path / "pid"
    text = f"sleep 600 & echo $! > {note}; wait"
    before = time.monotonic()
    with pytest.raises(ProgramError, match=r"still running after 0.3 s"):
        run((SH, "-c", text), 0.3, input=given)
    assert time.monotonic() - before < 10
    child = note.read_text().strip()
    gone = eventually(lambda: not os.path.exists(f"/proc/{child}") or "State:\tZ" in _status(child))
    assert gone
    assert children() == ""


def _status(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return "State:\tZ"


def test_one_that_cannot_be_started() -> None:
    with pytest.raises(ProgramError, match=r"^/none/such: No such file or directory$"):
        run(("/none/such",), 10, input=b"x")


def test_at_the_same_time(tmp_path: Path) -> None:
    """Each waits for the other: one after the other they would never end."""
    one, two = tmp_path / "one", tmp_path / "two"
    for fifo in (one, two):
        os.mkfifo(fifo)
    done = run_together([(SH, "-c", f"echo a > {one}; cat {two}"), (SH, "-c", f"cat {one}; echo b > {two}")], 20)
    assert [each.output for each in done] == ["b", "a"]
    assert run_together([], 10) == ()


@pytest.mark.parametrize("bad", [("/none/such",), (SH, "-c", "exec sleep 600")])
def test_of_several_none_is_left_when_one_fails(bad: tuple[str, ...], tmp_path: Path) -> None:
    note = tmp_path / "ran"
    with pytest.raises(ProgramError):
        run_together([bad, (SH, "-c", f"echo > {note}")], 0.5)
    assert note.exists()
    assert children() == ""


def test_no_descriptor_is_left() -> None:
    def use() -> None:
        run((SH, "-c", ":"), 10, input=b"x")
        run((SH, "-c", ":"), 10)
        for bad in (("/none/such",), (SH, "-c", "sleep 600")):
            with pytest.raises(ProgramError):
                run(bad, 0.05, input=b"x" * 100_000)

    use()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        use()
    assert len(os.listdir("/proc/self/fd")) == before
