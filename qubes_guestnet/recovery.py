# SPDX-License-Identifier: GPL-2.0-or-later
"""What comes back together with the base rules when somebody took them away: users' rules, and what they depend on.

Theory of operation. What others have beside our rules is kept in a file, as of the last time when all was well. After a
flush (behaviour B125) what was in our tables is loaded in one transaction with the base rules, so it is in force from
their first moment on. Tables of others are not ours to make: if the firewall of the qubes runs here its service, which
made its table and ran the users' scripts, is restarted, and nothing is forwarded until it is ready. Connections that
began while nothing was translated are forgotten (B126).
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from .core import user_rules
from .core.record import FIREWALL, HELD
from .core.user_rules import Kept
from .errors import ConfigError, GuestnetError
from .paths import Paths
from .system import conntrack, files, nft, services, vifs
from .system.systemd import INFO, WARNING, log
from .work import Work

_NAME, _MODE = "users-rules", 0o600
_TABLE, _RULES = "table ", "rules of "


def keep(work: Work, run: str, listings: Mapping[str, str]) -> None:
    """Remember what others have, now that all is well.

    Args:
        work: the pass.
        run: /run/qubes-guestnet.
        listings: of our tables, by family.

    Raises:
        GuestnetError: it cannot be written, or the names of the tables cannot be had.
    """
    kept = user_rules.found(listings, nft.table_names())
    files.publish(os.path.join(run, _NAME), user_rules.render(kept), _MODE, sync=False)
    there = {f"{_TABLE}{name}" for name in kept.tables}
    there |= {f"{_RULES}{user_rules.words((block,))}" for block in kept.blocks}
    still = tuple(words for words in work.provided.lost if words not in there)
    if still != work.provided.lost:
        work.save(work.provided._replace(lost=still))
        if not still:
            log(INFO, "what others had lost together with our rules is there again")


def lost(run: str, listings: Mapping[str, str]) -> Kept:
    """What others had and have lost together with our rules.

    Args:
        run: /run/qubes-guestnet.
        listings: of our tables, by family, as they are now.

    Raises:
        GuestnetError: that is not known.
    """
    data = files.read(os.path.join(run, _NAME))
    return user_rules.lost(user_rules.parse(data), listings, nft.table_names()) if data is not None else Kept()


def follow(work: Work, paths: Paths, listings: Mapping[str, str], missing: Kept, restored: bool) -> None:
    """What has to follow once the base rules are in again, and before anything is forwarded.

    Args:
        work: the pass.
        paths: where the qube's files are.
        listings: of our tables, by family, as they were found.
        missing: what others have lost.
        restored: what was in our tables is back.
    """
    work.done += put_back(missing) if restored else ()
    if user_rules.passable(listings, ipv6=work.ipv6):
        work.attempt(lambda: _purge(work, paths.run))
    names = [f"{_TABLE}{name}" for name in missing.tables]
    names += [] if restored else [f"{_RULES}{user_rules.words((block,))}" for block in missing.blocks]
    record = work.provided
    hold = record.hold
    if user_rules.gone(listings) and work.active:
        if _is_to_hold(work, paths):
            hold = HELD
        elif names and services.has_firewall(paths.flags):
            hold = FIREWALL
    work.save(record._replace(hold=hold, lost=tuple(dict.fromkeys((*record.lost, *names)))))
    if names:
        log(WARNING, f"somebody removed our rules, and with them: {', '.join(names)}; {remedy(hold)}")
    if hold == FIREWALL and record.hold != FIREWALL:
        work.attempt(lambda: work.done.append(services.restart_firewall()))


def put_back(missing: Kept) -> tuple[str, ...]:
    """What is loaded besides the base rules, in words."""
    words = f"nft -f: put back what others had in our tables: {user_rules.words(missing.blocks)}"
    return (words,) if missing.blocks else ()


def remedy(hold: str) -> str:
    """What becomes of what others have lost."""
    if hold == FIREWALL:
        return "qubes-firewall.service is restarted and runs the users' scripts; nothing is forwarded until then"
    return "run again whatever made them"


def wait(work: Work) -> None:
    """Until the firewall of the qubes is ready, nothing is forwarded.

    Args:
        work: the pass.

    Raises:
        GuestnetError: it is not, and nobody is about to start it.
    """
    if work.provided.hold != FIREWALL or work.dry_run:
        return
    state = services.firewall_state()
    if state == "active":
        work.save(work.provided._replace(hold=""))
        log(INFO, "qubes-firewall.service is ready again")
    elif state not in ("activating", "deactivating", "reloading", "queued"):
        problem = f"qubes-firewall.service is {state}, and nothing is forwarded without it since our rules were lost"
        raise GuestnetError(problem, "systemctl restart qubes-firewall; or, unfiltered, qubes-guestnet forwarding on")


def _purge(work: Work, run: str) -> None:
    behind = {address for vif in vifs.Folder(run).all() for address in vif.addresses} | set(work.settings.connected)
    count = conntrack.purge_untranslated(behind)
    work.done += (f"conntrack: {count} untranslated entries purged",) if count else ()


def _is_to_hold(work: Work, paths: Paths) -> bool:
    try:
        return services.holds_after_flush(paths.config)
    except ConfigError as error:
        work.errors.append(error)
        return True  # what was meant is not known, and this is the safe side
