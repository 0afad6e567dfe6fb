# SPDX-License-Identifier: GPL-2.0-or-later
"""Flow offload for the qubes behind this one: a flowtable, as long as nobody judges established connections.

The last step of a pass, and of the resident agent's alone: what is offloaded passes by every rule, so somebody has to
be there who ends it when rules change. Any transaction of somebody else's brings a pass, in which the flowtable is made
anew and so empty: every connection goes the whole way again, and is judged once more. A vif that comes or goes is an
event of its link, which brings a pass as well; `vif online` itself knows nothing of this.

In an idle provider a pass asks for the names of the interfaces and for the generation of the rules, and no more.
"""

from __future__ import annotations

from .core import flowtable
from .core.record import OFFLOADED
from .errors import FileError
from .forwarding import forwarded
from .rules import Rules
from .system import chains, nft, services
from .system.devices import listed
from .system.systemd import INFO, log
from .transactions import Transactions
from .work import Work

TYPE_CHECKING = False  # of `typing`, which costs 5 ms and 1 MB (see system/lean)
if TYPE_CHECKING:
    from .paths import Paths

OFFLOAD = "offload"
# Reasons that nobody needs to be told of: another pass comes soon.
_NOT_YET, _WENT, _NONE = "nothing is forwarded yet", "an interface went", "there is no interface"
_Devices = tuple[tuple[int, str, int], ...]


class Offload:
    """The flowtable; remembers what it holds, what was against it, and whether the kernel has any.

    Args:
        paths: where the qube's files are.
        transactions: of this process.
        rules: which end it too.
    """

    def __init__(self, paths: Paths, transactions: Transactions, rules: Rules) -> None:
        self._paths, self._nft, self._rules = paths, transactions, rules
        self._refused = ""  # why the kernel takes none; asked once in the life of an agent
        self._judged: tuple[bool, str] | None = None  # for IPv6 or not: what is against it
        self._holds: tuple[_Devices, bool] | None = None
        self._told = ""

    def bring(self, work: Work) -> None:
        """Have it as it should be, or not at all.

        Raises:
            GuestnetError: that is not known, or cannot be done. What is against it is no error.
        """
        if work.dry_run:
            return
        reason = self._against(work)
        if not reason:
            devices = _devices()
            if self._holds == (devices, work.ipv6) and work.provided.offloading:
                return
            reason = self._load(work, devices)
        if reason:
            self._end(work, reason)

    def _against(self, work: Work) -> str:
        if not services.may_offload(self._paths.flags):
            return f"service flag {services.NO_OFFLOAD} is set"
        if not work.ruled or not work.families or not work.families <= forwarded():
            return _NOT_YET
        return self._refused or self._obstacle(work)

    def _obstacle(self, work: Work) -> str:
        """What the rules of others have against it; looked at once for each transaction of theirs."""
        settled = self._nft.settled(OFFLOAD)
        if self._judged is not None and self._judged[0] == work.ipv6 and settled:
            return self._judged[1]
        generation = nft.generation()
        self._judged = self._holds = None
        try:
            reason = _looked(ipv6=work.ipv6)
        except nft.NftError:
            self._end(work, "the rules of others cannot be read")
            raise
        self._nft.found_right(OFFLOAD, generation)
        self._judged = (work.ipv6, reason)
        return reason

    def _load(self, work: Work, devices: _Devices) -> str:
        """Load it for these devices; why that did not succeed."""
        names = [name for _, name, _ in devices if flowtable.usable(name)]
        if not names:
            return _NONE
        before = work.provided.offload
        # The record is ahead of the kernel, as everywhere.
        work.save(work.provided._replace(offload=f"{OFFLOADED}({len(names)} devices)"))
        self._holds = None
        try:
            self._nft.run(flowtable.load(names, ipv6=work.ipv6))
        except nft.Refused as error:
            work.save(work.provided._replace(offload=before))  # nothing of it is in force
            if _devices() != devices:
                return _WENT  # while we loaded it, and that brings the next pass
            self._refused = f"the kernel takes no flowtable ({error.problem})"
            return self._refused
        self._holds = (devices, work.ipv6)
        self._tell("flow offload on")
        return ""

    def _end(self, work: Work, reason: str) -> None:
        self._holds = None
        self._rules.end_offload(work, f"off: {reason}")
        if reason not in (_NOT_YET, _WENT, _NONE):
            self._tell(f"no flow offload: {reason}; packets take the whole way")

    def _tell(self, words: str) -> None:
        if words != self._told:
            self._told = words
            log(INFO, words)


def _devices() -> _Devices:
    """Every interface but lo; by index as well, because one of the same name may be another one.

    By MTU too: the kernel keeps that of the way in an offloaded connection, and does not look at it again in IPv6, so
    what does not fit any more would be lost without a word.
    """
    return tuple(device for device in listed() if device[1] != "lo")


def _looked(*, ipv6: bool) -> str:
    """What is against it. Raises NftError when nft does not run."""
    try:
        wanted = flowtable.to_look_at(chains.hooked(), ipv6=ipv6)
        legacy = chains.legacy()
    except (ValueError, FileError) as error:
        return str(error)
    listings = chains.rules((chain.family, chain.table, chain.name) for chain in wanted)
    return flowtable.obstacle(zip(wanted, listings, strict=True), legacy)
