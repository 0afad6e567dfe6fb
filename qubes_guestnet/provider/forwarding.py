# SPDX-License-Identifier: GPL-2.0-or-later
"""The forwarding sysctls in the passes of a provider: observe them; `core.provider.forwarding` plans.

`core.provider.forwarding` is imported late, because the boot of every qube imports this module, and most qubes do not
forward.
"""

from __future__ import annotations

from ..system import procfs_sysctl
from ..system.systemd import INFO, WARNING
from .pass_state import PassState


def forwarded() -> frozenset[int]:
    """Return the families that the kernel forwards now. Raises FileError."""
    from ..core.provider.provider_operations import FORWARDING

    return frozenset(family for family, path in FORWARDING.items() if procfs_sysctl.read(path) == "1")


def opened(work: PassState) -> frozenset[int]:
    """Return the families that this qube forwards now; without the flag, another program may have enabled them.

    Args:
        work: the pass.

    Raises:
        FileError: the switches cannot be read.
    """
    return forwarded() if work.active else forwarded() & work.provided.forwarding


def apart() -> tuple[tuple[str, str], ...]:
    """Return interfaces whose own forwarding is off while that of the family is on, with the name of the setting.

    Packets that arrive on them are not forwarded; on the uplink these are the answers to all qubes. Raises FileError.
    """
    from ..core.provider.provider_operations import FORWARDING, INTERFACE_FORWARDING

    found = list[tuple[str, str]]()
    for family in sorted(forwarded()):
        for name in procfs_sysctl.interfaces(FORWARDING[family][0]):
            words = tuple(word.format(name) for word in INTERFACE_FORWARDING[family])
            if procfs_sysctl.read(words) == "0":
                found.append((name, "/".join(("net", *words))))
    return tuple(found)


def obey(work: PassState) -> PassState:
    """Detect the families that another program has switched off.

    Args:
        work: the pass.

    Returns:
        The state with `stopped`: this pass leaves those families off.

    Raises:
        FileError: the switches cannot be read.
    """
    if not work.active:
        return work
    from ..core.provider import forwarding

    before, on = work.provided, forwarded()
    stopped = forwarding.stopped(before, on)
    for family in sorted(stopped - before.stopped):
        remedy = "it stays off until `qubes-guestnet forwarding on`"
        work.run.tell(WARNING, f"another program switched IPv{family} forwarding off ({_name(family)} = 0); {remedy}")
    for family in sorted(before.stopped - stopped):
        work.run.tell(INFO, f"another program switched IPv{family} forwarding on again")
    work = work._replace(stopped=stopped)
    work.attempt(lambda _: work.save(forwarding.obeying(before, on)))
    return work


def close_unwanted(work: PassState) -> None:
    """Close the forwarding that we opened and that is no longer wanted."""
    unwanted = work.provided.forwarding - work.families
    if not unwanted:
        return
    from ..core.provider import forwarding
    from ..dispatch import OF_FORWARDING

    work.settle(lambda record, _so_far: forwarding.plan_closing(unwanted, forwarded(), record), OF_FORWARDING)


def shut(work: PassState) -> None:
    """Close all forwarding for client qubes until the rules are restored."""
    from ..core.provider import forwarding
    from ..dispatch import OF_FORWARDING

    families = opened(work)
    work.settle(lambda record, _so_far: forwarding.plan_shutting(families, forwarded(), record), OF_FORWARDING)


def open_wanted(work: PassState) -> None:
    """Open the desired forwarding."""
    from ..core.provider import forwarding
    from ..core.provider.provider_operations import CloseForwarding
    from ..dispatch import OF_FORWARDING

    # Forwarding that is only planned to be closed is still open.
    planned = frozenset(op.family for op in work.todo if isinstance(op, CloseForwarding))
    work.settle(
        lambda record, so_far: forwarding.plan_opening(work.families, forwarded() - planned, record, so_far),
        OF_FORWARDING,
    )


def _name(family: int) -> str:
    from ..core.provider.provider_operations import FORWARDING

    return ".".join(("net", *FORWARDING[family]))
