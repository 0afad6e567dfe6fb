# SPDX-License-Identifier: GPL-2.0-or-later
"""resolv.conf in one pass: whose file it is, and published if it is ours and differs. `core.resolver` decides.

Whether a VPN or a hook has to do with the file is looked at only where it names servers other than dom0's.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable

from .core import hooks as hook_rules
from .core import resolver
from .core.namedtuple import NamedTuple
from .core.networkmanager import ManagerChoice
from .core.record import Record
from .core.report import ResolverReport
from .core.resolver import FileFacts, Owner
from .core.settings import Settings
from .core.uplink import Flags
from .core.values import IPAddress
from .errors import FileError, GuestnetError
from .paths import Paths
from .system import files

TYPE_CHECKING = False  # of `typing`, which costs 5 ms and 1 MB (see system/lean)
if TYPE_CHECKING:
    from .reconcile import Kernel


_LOOKS = 3


class Ground(NamedTuple):
    """Facts of the pass so far: settings, flags, the uplink's manager, kernel, record, and indexes of uplinks."""

    settings: Settings
    flags: Flags
    manager: ManagerChoice
    kernel: Kernel
    record: Record
    uplinks: frozenset[int]


def resolve(
    ground: Ground, paths: Paths, may_rewrite: Callable[[bytes], bool] | None
) -> tuple[ResolverReport | None, GuestnetError | None]:
    """The file as it is after this pass, and what went wrong.

    Args:
        ground: of the pass.
        paths: where the qube's files are.
        may_rewrite: asked with the content before another program's overwriting is undone; None: only look.
    """
    for left in range(_LOOKS - 1, -1, -1):
        report, error = _once(ground, paths, may_rewrite)
        # Between the look and the writing the client of a VPN wrote its names: they are judged like any others (B124).
        if not left or not isinstance(error, FileError) or error.errno != errno.ESTALE:
            break
    return report, error


def _once(
    ground: Ground, paths: Paths, may_rewrite: Callable[[bytes], bool] | None
) -> tuple[ResolverReport | None, GuestnetError | None]:
    """As `resolve`, with one look at the file."""
    path, servers = paths.resolv_conf, ground.settings.dns.servers
    try:
        facts = files.facts(
            path, disabled=ground.flags.disable_dns_server, networkmanager=ground.manager.networkmanager
        )._replace(published=ground.record.published)
        others = resolver.others(facts, servers)
        if others and resolver.choose_owner(facts).owner is Owner.DIRECT:
            facts = _whose(facts, path, paths.run, others, ground)
    except GuestnetError as error:
        return None, error
    decision = resolver.choose_owner(facts)
    wanted = None if ground.settings.dns.held else resolver.wanted(decision, facts, servers)
    report = ResolverReport(path, decision, wanted, facts.content if decision.owner in resolver.KEPT else facts.data,
                            written=False,
                            down=facts.tunnel if facts.down and decision.owner is Owner.TUNNEL else "")  # fmt: skip
    if wanted is None or may_rewrite is None or not (report.pending or facts.mode != files.PUBLIC):
        return report, None
    if not may_rewrite(wanted):
        limit = f"{resolver.RewriteBudget.LIMIT} times in {resolver.RewriteBudget.WINDOW:.0f} s"
        problem = f"another program overwrote {path} {limit}"
        return report, GuestnetError(problem, "find that program, or list the file in /rw/config/protected-files.d")
    try:
        files.publish(path, wanted, over=facts)
    except GuestnetError as error:
        return report, error
    return report._replace(current=wanted, written=True, replaced=" ".join(map(str, others))), None


def _whose(facts: FileFacts, path: str, run: str, others: Iterable[IPAddress], ground: Ground) -> FileFacts:
    """With what shows that a hook or a VPN wrote it."""
    shown = ground.kernel.tunnels(others, sorted(ground.uplinks))
    hook = _hook(path, ground.record.provided.hooks, run)
    return facts._replace(hook=hook, tunnel=resolver.tunnel(shown), down=resolver.is_down(shown))


def _hook(path: str, began: int, run: str) -> str:
    """The hooks that may have written the file, which are still there to do it again."""
    if not began:
        return ""
    from .system import hooks  # only in a provider whose file names servers of others

    there = hook_rules.runnable(hooks.facts())
    try:
        modified = os.stat(path).st_mtime
    except OSError:
        return ""
    ended = [hooks.ended(hook, run) for hook in there]
    return " ".join(there) if resolver.hook_wrote(modified, began, ended, hook_rules.LIMIT_SECONDS) else ""
