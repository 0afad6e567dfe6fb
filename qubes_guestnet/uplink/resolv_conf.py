# SPDX-License-Identifier: GPL-2.0-or-later
"""resolv.conf in one pass: determine its owner, and publish it if it is ours and differs.

`core.dns.resolv_conf` decides.

VPNs and hooks are checked only if the file names servers other than dom0's.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable

from ..core import hooks as hook_rules
from ..core.dns import resolv_conf
from ..core.dns.resolv_conf import FileFacts, Owner
from ..core.namedtuple import NamedTuple
from ..core.operations import Outcome, Planned
from ..core.owned_state import Record
from ..core.report import ResolverReport
from ..core.settings import Settings
from ..core.uplink.desired import Flags
from ..core.uplink.networkmanager import ManagerChoice
from ..core.uplink.service_operations import PublishFile
from ..core.values import IPAddress
from ..errors import GuestnetError
from ..system import files
from ..system.paths import Paths

TYPE_CHECKING = False  # of `typing`, which costs 5 ms and 1 MB (see system/deferred_imports)
if TYPE_CHECKING:
    from ..reconcile import Kernel


_PROTECT = "find that program, or list the file in /rw/config/protected-files.d"


class Ground(NamedTuple):
    """Facts of the pass so far: settings, flags, the uplink's manager, kernel, and indexes of uplinks."""

    settings: Settings
    flags: Flags
    manager: ManagerChoice
    kernel: Kernel
    uplinks: frozenset[int]


class ResolvConf:
    """The file in one pass.

    Args:
        ground: of the pass.
        paths: locations of the qube's files.
        may_rewrite: asked with the content before another program's overwriting is undone.

    Attributes:
        report: the file as it is now; None where it could not be looked at.
    """

    def __init__(self, ground: Ground, paths: Paths, may_rewrite: Callable[[bytes], bool]) -> None:
        self._ground, self._paths, self._may_rewrite = ground, paths, may_rewrite
        self._replaced = ""  # servers of another program that it named before it was written
        self.report: ResolverReport | None = None

    def plan(self, record: Record, so_far: Outcome) -> Planned:
        """Look at it, and plan. What another program makes of what we have written is for the next pass.

        Args:
            record: the owned record.
            so_far: result of the operations of this pass so far.

        Raises:
            GuestnetError: it cannot be looked at.
        """
        ground, path, servers = self._ground, self._paths.resolv_conf, self._ground.settings.dns.servers
        before, self.report = self.report, None
        found = files.facts(
            path, disabled=ground.flags.disable_dns_server, networkmanager=ground.manager.networkmanager
        )
        facts = found._replace(published=record.published)
        others = resolv_conf.others(facts, servers)
        if others and resolv_conf.choose_owner(facts).owner is Owner.DIRECT:
            facts = _whose(facts, self._paths, others, ground, record)
        decision = resolv_conf.choose_owner(facts)
        wanted = None if ground.settings.dns.held else resolv_conf.wanted(decision, facts, servers)
        current = facts.content if decision.owner in resolv_conf.KEPT else facts.data
        down = facts.tunnel if facts.down and decision.owner is Owner.TUNNEL else ""
        report = ResolverReport(path, decision, wanted, current, written=False, down=down)
        if before is not None and any(isinstance(op, PublishFile) for op in so_far.done):
            report = before._replace(current=current, written=True, replaced=self._replaced)
        self.report = report
        if wanted is None or report.written or not (report.pending or facts.mode != files.PUBLIC):
            return Planned((), resolv_conf.noted(record, current) if report.in_force else record)
        op = PublishFile(path, wanted, found)
        if op not in so_far.failed and not self._may_rewrite(wanted):
            limit = f"{resolv_conf.RewriteBudget.LIMIT} times in {resolv_conf.RewriteBudget.WINDOW:.0f} s"
            error = GuestnetError(f"another program overwrote {path} {limit}", _PROTECT)
            return Planned((), record, errors=(error,))
        self._replaced = " ".join(map(str, others))
        return Planned((op,), resolv_conf.announced(record, wanted))


def _whose(facts: FileFacts, paths: Paths, others: Iterable[IPAddress], ground: Ground, record: Record) -> FileFacts:
    """Add the facts that show whether a hook or a VPN wrote the file."""
    shown = ground.kernel.tunnels(others, sorted(ground.uplinks))
    hook = _hook(paths.resolv_conf, record.provided.hooks, paths.run)
    return facts._replace(hook=hook, tunnel=resolv_conf.tunnel(shown), down=resolv_conf.is_down(shown))


def _hook(path: str, began: int, run: str) -> str:
    """Return the installed hooks that may have written the file; "" for none."""
    if not began:
        return ""
    from ..system import hooks  # only in a provider whose file names servers of others

    there = hook_rules.runnable(hooks.facts())
    try:
        modified = os.stat(path).st_mtime
    except OSError:
        return ""
    ended = [hooks.ended(hook, run) for hook in there]
    return " ".join(there) if resolv_conf.hook_wrote(modified, began, ended, hook_rules.LIMIT_SECONDS) else ""
