# SPDX-License-Identifier: GPL-2.0-or-later
"""Count the packets that get lost while something happens."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from tests.support.needs import needs

EVERY_S = "0.02"


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
        ping.send_signal(signal.SIGINT)
        told = ping.communicate(timeout=20)[0]
    sent, received = (int(part.split()[0]) for part in told.split("---\n")[1].split(",")[:2])
    assert received >= sent - 1, f"{what}: {sent - received} of {sent} lost\n{told}"  # the last may be on its way
    assert sent > 1, told
