# SPDX-License-Identifier: GPL-2.0-or-later
"""The name look-up as systemd starts it: with a listening socket, and little memory."""

from __future__ import annotations

import select
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from qubes_guestnet.core.endpoint import Endpoint
from qubes_guestnet.core.firewall.name_messages import Answer, Question, Request
from qubes_guestnet.lab.name_socket import PROGRAM
from qubes_guestnet.system.names_client import LookUp
from tests.support.eventually import eventually
from tests.support.needs import needs

ADDRESS_SPACE_KIB = 256 * 1024
# Of the unit it is 64 MiB.
MOST_MEMORY_KIB = 48 * 1024
LIMIT_S = 60.0


class Program:
    """One life of it.

    Args:
        folder: for its socket and what it logs.
        idle: seconds without a client until it ends.
        arguments: of Python, in place of its module.
    """

    def __init__(self, folder: Path, idle: float = 600, arguments: Sequence[str] = PROGRAM) -> None:
        self.path = str(folder / "names.sock")
        self._log = folder / "names.log"
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening, self._log.open("w") as log:
            listening.bind(self.path)
            listening.listen(16)
            script = f"LISTEN_PID=$$ LISTEN_FDS=1 && export LISTEN_PID LISTEN_FDS && ulimit -v {ADDRESS_SPACE_KIB} && "
            script += f'exec "$@" --idle {idle} 3<&{listening.fileno()}'
            needs("bash")  # dash knows descriptors of one digit only
            command = ["bash", "-euc", script, "names", sys.executable, *arguments]
            self._process = subprocess.Popen(command, pass_fds=(listening.fileno(),), stderr=log)

    def start(self, servers: Sequence[Endpoint], *questions: Question) -> LookUp:
        """Send a request."""
        return LookUp(self.path, Request(tuple(servers), questions))

    def ask(self, servers: Sequence[Endpoint], *questions: Question) -> dict[str, Answer]:
        """Send a request, and return the answers by name."""
        look_up = self.start(servers, *questions)
        try:
            return answers(look_up)
        finally:
            look_up.close()

    def memory(self) -> int:
        """The most that it ever had in memory, in KiB."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0])

    def log(self) -> list[str]:
        """The lines that it wrote."""
        return self._log.read_text().splitlines()

    def ended(self) -> int:
        """Wait for its end; the exit status."""
        return self._process.wait(LIMIT_S)

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()


def answers(look_up: LookUp) -> dict[str, Answer]:
    """All answers of a request, by name, as the agent's loop gets them."""
    found: dict[str, Answer] = {}
    poll = select.poll()
    poll.register(look_up.fileno(), select.POLLIN)
    end = time.monotonic() + LIMIT_S
    while not look_up.ended:
        assert time.monotonic() < end, f"answers so far: {found}"
        poll.poll(1000)
        found.update({answer.question.name: answer for answer in look_up.read()})
    return found


def ready(server: Endpoint, program: Program, name: str) -> None:
    """Wait until a name server answers."""
    eventually(lambda: program.ask((server,), Question(4, name))[name].addresses, 20, "the name server")
