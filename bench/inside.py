# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs inside a qube of the lab and takes the time there, so that entering its namespaces is not measured.

One JSON object a line on standard input, one on standard output: `{"run": […], "environment": {…}}` runs a program to
its end, `{"ask": TEXT, "socket": PATH}` asks the resident agent, `{"start": […], "lists": N, …}` starts a program that
stays and waits until the firewall has N lists in force, and `{"stop": true}` ends that program.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from typing import Any

from qubes_guestnet.system import hotplug_socket
from qubes_guestnet.system.nft import kernel

ANSWER_SECONDS = 15.0
_STARTED = list[int]()  # that stay
_OUTPUT = "/run/lab/bench-output"
_WRITE = os.O_WRONLY | os.O_CREAT | os.O_APPEND


def _run(words: list[str], environment: dict[str, str]) -> dict[str, Any]:
    with open(_OUTPUT, "w", encoding="utf-8"):
        pass  # what the former one said
    actions = [(os.POSIX_SPAWN_OPEN, fd, _OUTPUT, _WRITE, 0o600) for fd in (1, 2)]
    start = time.perf_counter()
    pid = os.posix_spawnp(words[0], words, environment, file_actions=actions)
    _, status, used = os.wait4(pid, 0)
    wall = time.perf_counter() - start
    with open(_OUTPUT, encoding="utf-8", errors="replace") as file:
        said = file.read()
    problem = f"exit status {os.waitstatus_to_exitcode(status)}: {said[-600:]}" if status else ""
    return {"wall": wall, "cpu": used.ru_utime + used.ru_stime, "problem": problem}


def _ask(question: str, path: str) -> dict[str, Any]:
    start = time.perf_counter()
    answer = hotplug_socket.request(path, question.encode(), ANSWER_SECONDS)
    wall = time.perf_counter() - start
    first = (answer or b"problem no answer").decode().partition("\n")[0]
    return {"wall": wall, "cpu": 0.0, "problem": first.removeprefix("problem").strip()}


def _start(words: list[str], lists: int, environment: dict[str, str]) -> dict[str, Any]:
    actions = [(os.POSIX_SPAWN_OPEN, fd, _OUTPUT, _WRITE, 0o600) for fd in (1, 2)]
    start = time.perf_counter()
    _STARTED.append(os.posix_spawnp(words[0], words, environment, file_actions=actions))
    seen, problem = -1, ""
    while lists and not problem:
        # nft is asked only after a change, for it takes its time from what is measured.
        generation = kernel.generation()
        if generation != seen:
            seen = generation
            if _in_force() >= lists:
                break
        else:
            time.sleep(0.001)
        if time.perf_counter() - start > ANSWER_SECONDS:
            problem = f"{_in_force()} lists are in force and should be {lists}"
    return {"wall": time.perf_counter() - start, "cpu": 0.0, "problem": problem}


def _in_force() -> int:
    words = ["nft", "-j", "list", "map", "ip", "qubes-firewall", "qubes"]
    done = subprocess.run(words, capture_output=True, text=True)
    found = json.loads(done.stdout)["nftables"] if not done.returncode else []
    return sum(len(entry["map"].get("elem", ())) for entry in found if "map" in entry)


def _stop() -> dict[str, Any]:
    for pid in _STARTED:
        os.kill(pid, signal.SIGTERM)
        os.waitpid(pid, 0)
    _STARTED.clear()
    return {"wall": 0.0, "cpu": 0.0, "problem": ""}


def _answer(asked: dict[str, Any]) -> dict[str, Any]:
    if "ask" in asked:
        return _ask(asked["ask"], asked["socket"])
    if "start" in asked:
        return _start(asked["start"], asked["lists"], asked["environment"])
    return _stop() if "stop" in asked else _run(asked["run"], asked["environment"])


def main() -> None:
    """Serve until the end of standard input."""
    for line in sys.stdin:
        asked = json.loads(line)
        print(json.dumps(_answer(asked)), flush=True)


if __name__ == "__main__":
    main()
