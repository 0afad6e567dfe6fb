# SPDX-License-Identifier: GPL-2.0-or-later
"""Flow offload for client qubes: a flowtable, while no rule may refuse established connections.

It is the last step of a pass, and only of the resident agent: offloaded packets bypass every rule, so a running process
must end the offload when rules change. Any transaction of another program starts a pass, which recreates the flowtable
empty, so that every connection passes all rules again. The link event of a vif that appears or disappears also starts a
pass; `vif online` itself does nothing for the offload. `core.provider.offload` decides.

In an idle provider a pass reads only the names of the interfaces and the generation of the rules.
"""

from __future__ import annotations

from ..core.nft import flowtable
from ..core.operations import Outcome, Planned
from ..core.owned_state import Record
from ..core.provider import offload
from ..core.provider.offload import Facts, OffloadMemory
from ..core.provider.provider_operations import LoadFlowtable
from ..dispatch import of_rules
from ..errors import FileError, GuestnetError
from ..system import service_flags
from ..system.devices import listed
from ..system.nft import foreign_chains
from ..system.nft import program as nft
from ..system.systemd import INFO, log
from .forwarding import forwarded
from .pass_state import PassState
from .ruleset_generation import Transactions

TYPE_CHECKING = False  # of `typing`, which costs 5 ms and 1 MB (see system/deferred_imports)
if TYPE_CHECKING:
    from ..system.paths import Paths

OFFLOAD = "offload"


class Offload:
    """The flowtable of the passes.

    Args:
        paths: locations of the qube's files.
        transactions: of this process.
    """

    def __init__(self, paths: Paths, transactions: Transactions) -> None:
        self._paths, self._nft = paths, transactions

    def apply(self, work: PassState) -> None:
        """Load or remove the flowtable. An obstacle is a reason in `status`, and not an error.

        Args:
            work: the pass; errors are added to its own.
        """
        recorded, errors = work.provided.offloading, list[GuestnetError]()

        def plan(record: Record, so_far: Outcome) -> Planned:
            errors.clear()
            facts = self._facts(work, errors)._replace(recorded=recorded, refusal=_refusal(so_far))
            return offload.plan(facts, record, so_far)

        outcome, planned, _ = work.run.settle(plan, of_rules(self._nft))
        reason, refusal = "".join(planned.waits), _refusal(outcome)
        work.failed(*(error for error in (*errors, *outcome.errors) if not refusal or error.problem != refusal))
        memory = _memory(work)
        for op in (*outcome.done, *outcome.failed):
            holds = op if isinstance(op, LoadFlowtable) and op in outcome.done else None
            memory = memory._replace(holds=holds)
        words = ""
        if reason:
            memory = memory._replace(holds=None, refused=reason if refusal and refusal in reason else memory.refused)
            words = "" if offload.is_quiet(reason) else f"flow offload off: {reason}"
        elif memory.holds is not None:
            words = "flow offload on"
        if words and words != memory.told:
            log(INFO, words)
            memory = memory._replace(told=words)
        _remember(work, memory)

    def _facts(self, work: PassState, errors: list[GuestnetError]) -> Facts:
        """Return the facts; each is read only if no earlier one prevents the offload."""
        allowed = service_flags.may_offload(self._paths.flags)
        forwarding = bool(work.ruled and work.families and work.families <= forwarded())
        reason = offload.against(allowed=allowed, forwarding=forwarding, refused=_memory(work).refused)
        if reason:
            return Facts(reason)
        try:
            reason = self._obstacle(work)
        except (nft.NftError, FileError) as error:
            errors.append(error)
            reason = "the rules of other programs cannot be read"
        # The index is included, because a device of the same name may be a different one.
        devices = tuple(device for device in listed() if device[1] != "lo")
        return Facts(reason, LoadFlowtable(devices, work.ipv6), _memory(work).holds)

    def _obstacle(self, work: PassState) -> str:
        """Return the obstacle in other programs' rules, read once per foreign transaction. Raises NftError."""
        memory, mark = _memory(work), self._nft.mark()
        if memory.judged is not None and memory.judged[0] == work.ipv6 and work.is_verified(OFFLOAD, self._nft):
            return memory.judged[1]
        _remember(work, memory._replace(judged=None, holds=None))
        reason = _looked(ipv6=work.ipv6)
        work.mark_verified(OFFLOAD, mark)
        _remember(work, memory._replace(judged=(work.ipv6, reason), holds=None))
        return reason


def _memory(work: PassState) -> OffloadMemory:
    return work.memory.offload or OffloadMemory()


def _remember(work: PassState, memory: OffloadMemory) -> None:
    work.remember(work.memory._replace(offload=memory))


def _refusal(outcome: Outcome) -> str:
    """Return nft's message if it refused to load the flowtable in this pass; else ""."""
    if not any(isinstance(op, LoadFlowtable) for op in outcome.failed):
        return ""
    return next((error.problem for error in outcome.errors if isinstance(error, nft.Refused)), "")


def _looked(*, ipv6: bool) -> str:
    """Return the obstacle. Raises NftError if nft does not run, FileError if the kernel's list is unreadable."""
    try:
        wanted = flowtable.to_look_at(foreign_chains.hooked(), ipv6=ipv6)
        legacy = foreign_chains.legacy()
    except ValueError as error:
        return str(error)
    listings = foreign_chains.rules((chain.family, chain.table, chain.name) for chain in wanted)
    listed = tuple(zip(wanted, listings, strict=True))
    regular: dict[tuple[str, str, str], str] = {}
    while missing := flowtable.jumped_to(listed, regular):
        regular.update(zip(missing, foreign_chains.rules(missing), strict=True))
    return flowtable.obstacle(listed, legacy, regular)
