# SPDX-License-Identifier: GPL-2.0-or-later
"""What comes back together with the base rules that were removed: users' rules, and what they depend on.

Theory of operation. What others have beside our rules is kept in a file, as of the last time when all was well. After a
flush (behaviour B125) what was in our tables is loaded in one transaction with the base rules, so it is in force from
their first moment on. If nft refuses it, each part is loaded alone, and while one is missing forwarding is held until
`forwarding on`: it may be the part that closes a qube. Tables of others are not ours to make: if the firewall of the
qubes runs here its service, which made its table and ran the users' scripts, is restarted, and nothing is forwarded
until it is ready. Connections that began while nothing was translated are forgotten (B126).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping

from .core import user_rules
from .core.record import FIREWALL, HELD, Provided
from .core.user_rules import Kept
from .errors import ConfigError, GuestnetError
from .paths import Paths
from .system import conntrack, files, nft, nft_kernel, services, vifs
from .system.systemd import INFO, WARNING, log
from .work import Work

_NAME, _MODE = "users-rules", 0o600
_TABLE, _RULES = "table ", "rules of "
Block = tuple[str, str, str]  # family, first line, text; see `Kept`


def keep(work: Work, run: str, listings: Mapping[str, str]) -> None:
    """Remember what others have, now that all is well.

    Args:
        work: the pass.
        run: /run/qubes-guestnet.
        listings: of our tables, by family.

    Raises:
        GuestnetError: it cannot be written, or the names of the tables cannot be had.
    """
    kept = user_rules.found(listings, nft_kernel.table_names())
    files.publish(os.path.join(run, _NAME), user_rules.render(kept), _MODE, sync=False)
    there = {f"{_TABLE}{name}" for name in kept.tables}
    there |= set(_named(user_rules.holding(kept)))
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
    return user_rules.lost(user_rules.parse(data), listings, nft_kernel.table_names()) if data is not None else Kept()


def load(work: Work, run: Callable[[str], None], base: str, missing: Kept) -> tuple[Block, ...]:
    """Load the base rules and what others have lost in our tables, and hold forwarding before some of it is left out.

    Args:
        work: the pass.
        run: loads one transaction, raises NftError.
        base: the base rules.
        missing: what others have lost.

    Returns:
        What is not back as it was. The record says that forwarding is held for it.

    Raises:
        NftError: the base rules are not in, or it is not known whether they are.
    """
    before = work.provided
    failed = tuple(block for block in missing.blocks if block[:2] in missing.emptied)
    try:
        _hold(work, before, failed)
        try:
            run(base + user_rules.text(missing.blocks))
            return failed
        except nft.Refused as error:
            if not missing.blocks:
                raise
            # Before the base rules are in: once they are, a pass after a crash finds nothing missing, and would open.
            _hold(work, before, missing.blocks)
            run(base)
            log(WARNING, f"nft refuses what others had in our tables, so each part is loaded alone: {error.problem}")
    except nft.Refused:
        work.save(work.provided._replace(hold=before.hold, lost=before.lost))  # nothing is in: the next pass tries it
        raise
    failed = tuple(dict.fromkeys((*failed, *_one_by_one(work, run, missing.blocks))))
    _hold(work, before, failed)
    return failed


def _one_by_one(work: Work, run: Callable[[str], None], blocks: Iterable[Block]) -> Iterable[Block]:
    failed = dict[Block, str]()
    for text, block in user_rules.one_by_one(blocks):
        try:
            run(text)
            failed.pop(block, None)
        except nft.NftError as error:
            failed[block] = error.problem
    for block, problem in failed.items():
        log(WARNING, f"{user_rules.words((block,))} is not restored: {problem}")
    return failed


def _hold(work: Work, before: Provided, failed: Iterable[Block]) -> None:
    """Record what is not back, and that forwarding is held for it; if nothing is, as it was before."""
    names = _named(failed)
    hold = HELD if names and work.active else before.hold
    if names or work.provided.lost != before.lost or work.provided.hold != hold:
        work.save(work.provided._replace(hold=hold, lost=tuple(dict.fromkeys((*before.lost, *names)))))


def _named(blocks: Iterable[Block]) -> list[str]:
    return [f"{_RULES}{user_rules.words((block,))}" for block in blocks]


def follow(work: Work, paths: Paths, listings: Mapping[str, str], missing: Kept, failed: tuple[Block, ...]) -> None:
    """What has to follow once the base rules are in again, and before anything is forwarded.

    Args:
        work: the pass.
        paths: where the qube's files are.
        listings: of our tables, by family, as they were found.
        missing: what others have lost.
        failed: what was in our tables and is not back, by `load`.
    """
    work.done += put_back(missing._replace(blocks=tuple(block for block in missing.blocks if block not in failed)))
    if user_rules.passable(listings, ipv6=work.ipv6):
        work.attempt(lambda: _purge(work, paths.run))
    names = [f"{_TABLE}{name}" for name in missing.tables]
    names += _named(failed)
    record = work.provided
    hold, restart = record.hold, False
    if user_rules.gone(listings) and work.active:
        if _is_to_hold(work, paths):
            hold = HELD
        elif names and services.has_firewall(paths.flags):
            # The owner's word is waited for all the same, if it was before; its scripts may bring the rest back.
            hold, restart = hold or FIREWALL, hold != FIREWALL
    work.save(record._replace(hold=hold, lost=tuple(dict.fromkeys((*record.lost, *names)))))
    if names:
        log(WARNING, f"another program removed our rules, and with them: {', '.join(names)}; {remedy(hold)}")
    if restart:
        work.attempt(lambda: work.done.append(services.restart_firewall()))


def put_back(missing: Kept) -> tuple[str, ...]:
    """What is loaded besides the base rules, in words."""
    words = f"nft -f: put back what others had in our tables: {user_rules.words(missing.blocks)}"
    return (words,) if missing.blocks else ()


def remedy(hold: str) -> str:
    """What becomes of what others have lost."""
    if hold == FIREWALL:
        return "qubes-firewall.service is restarted and runs the users' scripts; nothing is forwarded until then"
    if hold == HELD:
        return "nothing is forwarded: run again whatever made them, then qubes-guestnet forwarding on"
    return "run again whatever made them"


def wait(work: Work) -> None:
    """Until the firewall of the qubes is ready, nothing is forwarded.

    Args:
        work: the pass.

    Raises:
        GuestnetError: it is not, and no start of it is under way.
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
    unread: list[GuestnetError] = []  # a sweep tells of them; the qubes of all others are purged all the same (B146)
    records = vifs.Folder(run).all(unread)
    behind = {address for vif in records for address in vif.addresses} | set(work.settings.connected)
    count = conntrack.purge_untranslated(behind)
    work.done += (f"conntrack: {count} untranslated entries purged",) if count else ()


def _is_to_hold(work: Work, paths: Paths) -> bool:
    try:
        return services.holds_after_flush(paths.config)
    except ConfigError as error:
        work.errors.append(error)
        return True  # what was meant is not known, and this is the safe side
