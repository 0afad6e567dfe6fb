# SPDX-License-Identifier: GPL-2.0-or-later
"""Count the packets that get lost, or that arrive though they must not, while something happens."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from tests.support.eventually import eventually
from tests.support.needs import needs

EVERY_S = "0.02"
FOLLOWING_S = 0.2  # pings go on for so long behind what happens, which may take less time than one of them


@contextmanager
def every_packet_returns(prefix: Sequence[str], address: str, what: str = "") -> Iterator[None]:
    """Fail if one ping of 50 a second is lost meanwhile.

    Args:
        prefix: what to put before a command that is to run where the packets come from.
        address: where they go to.
        what: what happens meanwhile, for the message.
    """
    needs("ping")
    command = [*prefix, "ping", "-n", "-q", "-i", EVERY_S, address]
    ping = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield
    finally:
        with suppress(subprocess.TimeoutExpired):
            ping.wait(FOLLOWING_S)
        ping.send_signal(signal.SIGINT)
        told = ping.communicate(timeout=20)[0]
    sent, received = (int(part.split()[0]) for part in told.split("---\n")[1].split(",")[:2])
    assert received >= sent - 1, f"{what}: {sent - received} of {sent} lost\n{told}"  # the last may be on its way
    assert sent > 1, told


@contextmanager
def at_most_arrive(most: int, prefix: Sequence[str], address: str, there: Sequence[str]) -> Iterator[None]:
    """Fail if more packets than that arrive of 500 a second which something on the way is to refuse.

    A loaded machine sends fewer of them: they go on until more than a hundred were sent.

    Args:
        most: how many.
        prefix: what to put before a command that is to run where they come from.
        address: where they are sent to.
        there: the same where they would arrive.
    """
    needs("ping", "nft")
    for where, hook in ((there, "prerouting"), (prefix, "output")):
        chain = f"add table ip counted; add chain ip counted {hook} {{ type filter hook {hook} priority -400; }}"
        _run(*where, "nft", f"{chain}; add rule ip counted {hook} ip daddr {address} counter")
    ping = subprocess.Popen([*prefix, "ping", "-n", "-q", "-i", "0.002", address], stdout=subprocess.PIPE, text=True)
    try:
        yield
        eventually(lambda: _counted(prefix) > 100, 30, "more than a hundred packets")
    finally:
        ping.send_signal(signal.SIGINT)
        told = ping.communicate(timeout=20)[0]
        arrived = _counted(there)
        for where in (there, prefix):
            _run(*where, "nft", "delete", "table", "ip", "counted")
    assert arrived <= most, f"{arrived} arrived\n{told}"


def _counted(where: Sequence[str]) -> int:
    """How many packets the table `counted` there has seen."""
    return int(_run(*where, "nft", "list", "table", "ip", "counted").partition("packets ")[2].split()[0])


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=20).stdout
