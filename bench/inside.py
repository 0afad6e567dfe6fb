# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs inside a qube of the lab and takes the time there, so that entering its namespaces is not measured.

One JSON object a line on standard input, one on standard output: `{"run": […], "environment": {…}}` runs a program to
its end, `{"ask": TEXT, "socket": PATH}` asks the resident agent.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

from qubes_guestnet.system import hotplug_socket

ANSWER_SECONDS = 15.0
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


def main() -> None:
    """Serve until the end of standard input."""
    for line in sys.stdin:
        asked = json.loads(line)
        answer = _ask(asked["ask"], asked["socket"]) if "ask" in asked else _run(asked["run"], asked["environment"])
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
