# SPDX-License-Identifier: GPL-2.0-or-later
"""Start, stop and reload of qubes-firewall.service. `core.provider.firewall_unit` decides the steps and their order.

The unit runs these as commands, outside of the agent's sandbox.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping

from ..core.firewall import ruleset
from ..core.firewall.lines import FAMILIES
from ..core.provider import firewall_unit, vif
from ..core.provider.firewall_unit import Scripts
from ..errors import GuestnetError, as_error
from ..system import hotplug_socket, service_flags, user_scripts
from ..system.nft import kernel as nft_kernel
from ..system.nft import program as nft
from ..system.owned_state import Ledger
from ..system.paths import Paths
from ..system.systemd import WARNING, log, notify
from .rules import Rules

ANSWER_SECONDS = 60.0  # the agent may still have to start, and QubesDB to answer
_PAUSE_SECONDS = 0.2
# Completed steps, in words.
_REFUSING = "nft -f: tables ip qubes-firewall and ip6 qubes-firewall, which refuse everything"
_IN_FORCE = "the rules of all qubes are in force"


def start(paths: Paths, *, provides: bool) -> Iterator[str]:
    """Make the agent enforce the lists, and run the users' scripts.

    Args:
        paths: locations of the qube's files.
        provides: this qube is a provider, so its agent has lists to load.

    Yields:
        Each completed step, in words.

    Raises:
        GuestnetError: a step was refused, or the agent does not answer. Forwarding then stays closed, unless the rules
            were already in force.
    """
    rules = Rules(paths)
    enforced = service_flags.enforces(paths.flags, paths.run)
    if firewall_unit.begins(enforced=enforced, filtered=nft_kernel.filtering()):
        yield from rules.close(unfiltered=True)
        with Ledger(paths.run):
            _refuse_everything()
            service_flags.set_enforced(paths.run)
        yield _REFUSING
    yield from _run_scripts(paths)
    if provides:
        _have_loaded(paths)
    rules.release()
    if provides:
        _have_loaded(paths)  # the agent opens forwarding in a pass
        yield _IN_FORCE


def stop(paths: Paths, jobs: Mapping[str, str]) -> Iterator[str]:
    """Close forwarding, end the enforcement, and leave tables that refuse everything; do nothing in a restart.

    Args:
        paths: locations of the qube's files.
        jobs: systemd's jobs.

    Yields:
        Each completed step, in words.

    Raises:
        GuestnetError: a step was refused; forwarding is closed first.
    """
    if service_flags.enforces(paths.flags, paths.run) and not firewall_unit.ends(jobs):
        yield "the unit is restarted: rules and forwarding stay as they are"
        return
    yield from Rules(paths).close(unfiltered=True)
    with Ledger(paths.run):
        service_flags.set_enforced(paths.run, on=False)
        _refuse_everything()
    yield _REFUSING


def reload(paths: Paths) -> Iterator[str]:
    """Make the agent read everything again, and wait until the result is in force.

    Raises:
        GuestnetError: the firewall is not enforced, or the agent does not answer.
    """
    if not service_flags.enforces(paths.flags, paths.run):
        raise GuestnetError("the firewall of the qubes is not started", "systemctl start qubes-firewall")
    _have_loaded(paths)
    yield _IN_FORCE


def _refuse_everything() -> None:
    nft.run("".join(ruleset.anew(version) for version in FAMILIES))


def _run_scripts(paths: Paths) -> Iterator[str]:
    folders, single = firewall_unit.places(persists=user_scripts.persists(paths.flags))
    failed = list[tuple[str, str]]()
    for path in user_scripts.runnable(folders, single):
        _note(paths, Scripts(path, tuple(failed)))
        notify(f"STATUS=running {path}")
        reason = user_scripts.run(path)
        if reason:
            failed.append((path, reason))
            log(WARNING, f"{path}: {reason}; its rules may be missing")
        else:
            yield f"{path} has run"
    _note(paths, Scripts("", tuple(failed)))
    notify("STATUS=")


def _note(paths: Paths, scripts: Scripts) -> None:
    """Publish the state of the scripts for `status` and `check`; a failure to publish does not stop the scripts."""
    try:
        user_scripts.publish(paths.run, scripts)
    except GuestnetError as error:
        log(WARNING, str(as_error(error)))


def _have_loaded(paths: Paths) -> None:
    """Wait until the agent has loaded the lists of all qubes. Raises GuestnetError."""
    deadline, socket = time.monotonic() + ANSWER_SECONDS, os.path.join(paths.run, hotplug_socket.NAME)
    while (left := deadline - time.monotonic()) > 0:
        answer = hotplug_socket.request(socket, firewall_unit.REQUEST, left)
        if answer is not None:
            try:
                problem, _ = vif.answered(answer)
            except ValueError as error:
                problem = str(error)
            if problem:
                raise GuestnetError(problem, "journalctl -u qubes-guestnet")
            return
        time.sleep(_PAUSE_SECONDS)
    problem = f"the agent has not loaded the rules of the qubes within {ANSWER_SECONDS:g} s"
    raise GuestnetError(problem, "systemctl status qubes-guestnet; forwarding stays as it was")
