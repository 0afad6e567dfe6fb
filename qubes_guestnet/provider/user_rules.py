# SPDX-License-Identifier: GPL-2.0-or-later
"""Restore users' rules, and their dependencies, together with base rules that were removed.

Theory of operation. A file has the other programs' rules beside ours, as of the last time when all rules were complete.
After a flush (behaviour B125) those in our tables are loaded in one transaction with the base rules, so they are in
force at the same moment. If nft refuses that, each part is loaded alone; while one is missing, forwarding is held until
`forwarding on`, because the missing part may be the one that restricts a qube. We do not recreate other programs'
tables: if the firewall of the qubes runs here, its service, which creates its table and runs the users' scripts, is
restarted, and nothing is forwarded until it is ready. Connections that began without translation are deleted (B126).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

from ..core.owned_state import FIREWALL, HELD
from ..core.provider import user_rules
from ..core.provider.base_rules import RULES, TABLE
from ..core.provider.rules_operations import LoadRulesInParts
from ..core.provider.user_rules import Block, Kept
from ..core.values import IPAddress
from ..errors import ConfigError, GuestnetError
from ..system import files, guestnet_toml, service_flags, systemctl
from ..system.nft import kernel as nft_kernel
from ..system.nft import program as nft
from ..system.paths import Paths
from ..system.systemd import INFO, WARNING, log
from .pass_state import PassState

_NAME, _MODE = "users-rules", 0o600


def keep(run: str, listings: Mapping[str, str], work: PassState) -> None:
    """Store the rules of other programs while all rules are complete.

    Args:
        run: /run/qubes-guestnet.
        listings: listings of our tables, by family.
        work: the pass.

    Raises:
        GuestnetError: the file cannot be written, or the names of the tables are unreadable.
    """
    kept = user_rules.found(listings, nft_kernel.table_names())
    files.publish(os.path.join(run, _NAME), user_rules.render(kept), _MODE, sync=False)
    there = {f"{TABLE}{name}" for name in kept.tables}
    there |= {f"{RULES}{user_rules.words((block,))}" for block in user_rules.holding(kept)}
    still = tuple(words for words in work.provided.lost if words not in there)
    if still != work.provided.lost:
        work.save(work.provided._replace(lost=still))
        if not still:
            log(INFO, "all rules that were lost together with ours exist again")


def lost(run: str, listings: Mapping[str, str]) -> Kept:
    """Return the rules of other programs that were lost together with ours.

    Args:
        run: /run/qubes-guestnet.
        listings: present listings of our tables, by family.

    Raises:
        GuestnetError: the stored or the present rules are unreadable.
    """
    data = files.read(os.path.join(run, _NAME))
    return user_rules.lost(user_rules.parse(data), listings, nft_kernel.table_names()) if data is not None else Kept()


def load_in_parts(run: Callable[[str], None], op: LoadRulesInParts) -> None:
    """Load the base rules, then each part of the lost rules alone; a refused part is logged.

    Args:
        run: loads one transaction, raises NftError.
        op: the rules. The record already says that forwarding is held.

    Raises:
        NftError: the base rules are not loaded, or that is unknown.
    """
    run(op.rules)
    failed = dict[Block, str]()
    for text, block in user_rules.one_by_one(op.put_back):
        try:
            run(text)
            failed.pop(block, None)
        except nft.NftError as error:
            failed[block] = error.problem
    for block, problem in failed.items():
        log(WARNING, f"{user_rules.words((block,))} is not restored: {problem}")


def remedy(hold: str) -> str:
    """Return the words for what happens to lost rules of other programs."""
    if hold == FIREWALL:
        return "qubes-firewall.service is restarted and runs the users' scripts; nothing is forwarded until then"
    if hold == HELD:
        return "nothing is forwarded: run the programs that created them again, then qubes-guestnet forwarding on"
    return "run the programs that created them again"


def wait(work: PassState) -> None:
    """Hold forwarding until the firewall of the qubes is ready.

    Args:
        work: the pass.

    Raises:
        GuestnetError: it is not ready, and is not being started.
    """
    if work.provided.hold != FIREWALL or not work.run.applies:
        return
    state = systemctl.firewall_state()
    if state == "active":
        work.save(work.provided._replace(hold=""))
        log(INFO, "qubes-firewall.service is ready again")
    elif state not in ("activating", "deactivating", "reloading", "queued"):
        problem = f"qubes-firewall.service is {state}, and nothing is forwarded without it since our rules were lost"
        raise GuestnetError(problem, "systemctl restart qubes-firewall; or, unfiltered, qubes-guestnet forwarding on")


def untranslated(work: PassState, run: str, listings: Mapping[str, str]) -> tuple[IPAddress, ...]:
    """Return the qubes' addresses if one of their connections began without translation while our rules were missing.

    Args:
        work: the pass.
        run: /run/qubes-guestnet.
        listings: listings of our tables, by family, as found.

    Raises:
        KernelError: conntrack is unreadable.
    """
    if not user_rules.passable(listings, ipv6=work.ipv6):
        return ()
    from ..core.provider.downstream import ordered  # only in a provider
    from ..system import conntrack, vif_records

    unread: list[GuestnetError] = []  # a sweep reports them; connections of all other qubes are still purged (B146)
    records = vif_records.Folder(run).all(unread)
    behind = {address for vif in records for address in vif.addresses} | set(work.settings.connected)
    return ordered(behind) if conntrack.has_untranslated(behind) else ()


def has_firewall_unit(paths: Paths) -> bool:
    """Return whether the firewall of the qubes is a service of this qube: its flag is set, and systemd runs."""
    return service_flags.filters(paths.flags) and systemctl.managed()


def is_to_hold(work: PassState, paths: Paths) -> bool:
    """Return whether the owner wants forwarding held after a loss of rules. An error is added to those of the pass."""
    try:
        return guestnet_toml.holds_after_flush(paths.config)
    except ConfigError as error:
        work.failed(error)
        return True  # the intention is unknown, and holding is the safe choice
