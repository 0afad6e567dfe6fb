# SPDX-License-Identifier: GPL-2.0-or-later
"""Resident memory (PSS) of a provider's idle agent, with 1 and with 250 vifs, against a bare interpreter beside it.

Measured as bench/memory does: from copies of the interpreter's files that no other process maps. Each vif has IPv4 and
IPv6 and was set up by the agent; before it is weighed the agent looks at everything once more, as after SIGHUP.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from bench import hosting
from bench.figures import Result
from bench.memory import Sizes, idle_descriptors, mib, weigh
from bench.resident import OwnCopy, agent, modules
from bench.stage import IPV4_ENTRIES, IPV6_ENTRIES, Failed, Stage, enter, namespace
from qubes_guestnet.core.provider import vif as vif_rules
from qubes_guestnet.lab.namespaces import CLONE_NEWNET, unshare
from qubes_guestnet.system import hotplug_socket
from tests.support.eventually import eventually

BUDGET = 3.0
NUMBER = 250
ENTRIES = {**hosting.ENTRIES, **IPV4_ENTRIES, **IPV6_ENTRIES}
FLAG = Path("/run/qubes-service/qubes-network")
_ANSWER_SECONDS = 15.0
_IDLE_SECONDS = 2.0


def far_end() -> int:
    """A network namespace for the other ends of the vifs, kept by its descriptor."""
    home = namespace()
    unshare(CLONE_NEWNET)
    far = namespace()
    enter(home)
    os.close(home)
    return far


def plug(far: int, numbers: range) -> None:
    """The devices of vifs come.

    Args:
        far: the namespace of their other ends.
        numbers: of the qubes, from 1.
    """
    lines = "".join(
        f"link add {hosting.name(number)} address {hosting.VIF_MAC} type veth "
        f"peer name x{number} address {hosting.QUBE_MAC} netns /proc/self/fd/{far}\n"
        for number in numbers
    )
    subprocess.run(["ip", "-batch", "-"], input=lines.encode(), check=True, pass_fds=(far,))


def online(numbers: range) -> None:
    """Have the agent set vifs up. Raises Failed."""
    for number in numbers:
        text = " ".join(hosting.addresses(number)).encode()
        vif = vif_rules.described(hosting.name(number), hosting.QUBE_MAC.encode(), b"vif", text)
        answer = hotplug_socket.request(hosting.SOCKET, vif_rules.ask(vif_rules.ONLINE, vif), _ANSWER_SECONDS)
        problem, _ = vif_rules.answered(answer or b"")
        if problem:
            raise Failed(f"{hosting.name(number)}: {problem}")


def come_to_rest(process: subprocess.Popen[bytes]) -> None:
    """Have it look at everything, and wait until it has used no processor time for a while."""
    process.send_signal(signal.SIGHUP)
    last, since = "", time.monotonic()

    def rests() -> bool:
        nonlocal last, since
        used = Path(f"/proc/{process.pid}/schedstat").read_text().split()[0]
        if used != last:
            last, since = used, time.monotonic()
        return time.monotonic() - since >= _IDLE_SECONDS

    eventually(rests, 60.0, what="an idle agent")


def _in_service() -> int:
    """How many vifs the anti-spoofing rules let send."""
    done = subprocess.run(
        ["nft", "-j", "list", "set", "ip", "qubes", "allowed"], check=True, capture_output=True, text=True
    )
    return sum(len(entry["set"].get("elem", ())) for entry in json.loads(done.stdout)["nftables"] if "set" in entry)


class _Weighed:
    """An agent that was weighed with 1 and with NUMBER vifs."""

    def __init__(self, python: str, *, reporting: bool = False) -> None:
        stage = Stage(ENTRIES, python)
        self.modules: list[str] = []
        try:
            stage.fresh()
            FLAG.touch()
            far = far_end()
            own, other = OwnCopy(), OwnCopy()
            own.use()
            with agent(stage, reporting=reporting) as process:
                stage.check_configured("the agent")
                self.one = self._with(stage, process, far, range(1, 2), (own, other))
                before = idle_descriptors(process.pid)
                self.many = self._with(stage, process, far, range(2, NUMBER + 1), (own, other))
                self.descriptors = before, idle_descriptors(process.pid)
                if reporting:
                    self.modules = modules(process)
        finally:
            FLAG.unlink(missing_ok=True)
            stage.close()

    @staticmethod
    def _with(
        stage: Stage, process: subprocess.Popen[bytes], far: int, numbers: range, copies: tuple[OwnCopy, OwnCopy]
    ) -> Sizes:
        plug(far, numbers)
        online(numbers)
        come_to_rest(process)
        if _in_service() != numbers[-1]:
            raise Failed(f"{_in_service()} vifs are in service and should be {numbers[-1]}")
        return weigh(stage, process, *copies)


def measure(python: str = sys.executable) -> Result:
    """Run inside `isolate()`."""
    found = _Weighed(python)
    ratios = {number: sizes.agent / sizes.bare for number, sizes in ((1, found.one), (NUMBER, found.many))}
    return Result(
        f"memory (PSS) of a provider's idle agent with {NUMBER} vifs, against a bare interpreter",
        ratios[NUMBER],
        f"{BUDGET:g}, with 1 vif too",
        max(ratios.values()) <= BUDGET,
        (
            f"agent with 1 vif: {mib(found.one.agent)}, ratio {ratios[1]:.2f}; "
            f"with {NUMBER}: {mib(found.many.agent)}, ratio {ratios[NUMBER]:.2f}",
            f"bare interpreter beside it: {mib(found.many.bare)}",
            f"sharing the interpreter's files: {mib(found.many.agent_sharing)} and {mib(found.many.bare_sharing)}, "
            f"ratio {found.many.agent_sharing / found.many.bare_sharing:.2f}",
        ),
    )


def facts(python: str = sys.executable) -> str:
    """For tests/budget, as `memory.facts`: what a provider's agent has loaded, its memory, and its descriptors.

    Run inside `isolate()`. Returns JSON.
    """
    found = _Weighed(python, reporting=True)
    return json.dumps(
        {
            "modules": found.modules,
            "descriptors": found.descriptors,
            "pss_kib": {
                number: {"agent": sizes.agent, "bare": sizes.bare}
                for number, sizes in (("1", found.one), (str(NUMBER), found.many))
            },
        }
    )
