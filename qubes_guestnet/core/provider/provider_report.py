# SPDX-License-Identifier: GPL-2.0-or-later
"""What a pass found and did for the qubes behind this one."""

from __future__ import annotations

from collections.abc import Mapping

from ...errors import GuestnetError
from ..dns.upstream_servers import Choice
from ..namedtuple import NamedTuple
from ..owned_state import FIREWALL
from ..values import IPAddress
from .settings import ProviderSettings
from .vif_order import VifReport

TYPE_CHECKING = False  # of `typing`, which costs 5 ms and 1 MB (see system/deferred_imports)
if TYPE_CHECKING:
    from ..firewall.condition import Condition
    from .firewall_unit import Scripts


class Lines(NamedTuple):
    """One end of a pass: operations that are still to do, and what was done, in words."""

    todo: tuple[object, ...] = ()
    done: tuple[str, ...] = ()


class ProviderReport(NamedTuple):
    """The provider's half of one pass.

    Args:
        settings: validated.
        active: this qube gives network to others: its key and its service flag are there.
        ipv6: to them IPv6 as well.
        forwarding: families (4, 6) that the kernel forwards at the end of the pass.
        names: where the virtual DNS addresses lead to, and why.
        vifs: those that were looked at; a resident pass looks at all of them only when it has a reason to.
        before: what comes before the uplink: rules first.
        after: what comes after it.
        errors: everything that went wrong, settings first.
        ruled: the base rules are in force as they were loaded.
        closed: `forwarding off` was run, and `forwarding on` was not run since.
        offload: whether connections are offloaded, in words; "" if not checked yet.
        stopped: families whose forwarding another program switched off.
        hold: why nothing is forwarded since the rules were lost, see `owned_state.Provided`.
        lost: what others lost together with our rules, in words.
        unfiltered: qubes-firewall.service is not ready, and so nothing is forwarded.
        firewall: what is wrong with it, as `foreign_chains.firewall` says; "" also where nothing has looked.
        apart: interfaces whose own forwarding is off, and the name of that setting; only looked at for a person.
        look_again: when entries of the firewall are to be read again, in seconds of a monotonic clock; None: no need.
        wanted: what the firewall of single qubes is to hold; None where this process does not enforce it.
        conditions: the firewall of each address behind this qube, where this program enforces it and a person asks.
        firewall_changed: chains of the firewall that another program has taken rules of ours from.
        scripts: what came of the users' scripts of the firewall; None as for `conditions`.
        duplicates: addresses that more than one of the qubes has, by the names of their vifs.
    """

    settings: ProviderSettings
    active: bool = False
    ipv6: bool = False
    forwarding: frozenset[int] = frozenset()
    names: Choice = Choice((), "")
    vifs: tuple[VifReport, ...] = ()
    before: Lines = Lines()
    after: Lines = Lines()
    errors: tuple[GuestnetError, ...] = ()
    ruled: bool = False
    closed: bool = False
    offload: str = ""
    stopped: frozenset[int] = frozenset()
    hold: str = ""
    lost: tuple[str, ...] = ()
    unfiltered: bool = False
    firewall: str = ""
    apart: tuple[tuple[str, str], ...] = ()
    duplicates: Mapping[tuple[str, ...], tuple[IPAddress, ...]] = {}
    look_again: float | None = None
    wanted: object = None
    conditions: Mapping[IPAddress, Condition] = {}
    firewall_changed: tuple[str, ...] = ()
    scripts: Scripts | None = None

    @property
    def waits(self) -> bool:
        """Whether the firewall of the qubes is waited for, of whose readiness no event tells."""
        return self.hold == FIREWALL

    @property
    def followed(self) -> tuple[object, ...]:
        """What the pass had to follow: name servers, offloaded devices, and the firewall of single qubes."""
        return self.names.servers, self.offload, self.wanted

    @property
    def todo(self) -> tuple[str, ...]:
        """What is still to do, one line each, at both ends."""
        return tuple(map(str, self.before.todo + self.after.todo))

    @property
    def done(self) -> tuple[str, ...]:
        """What was done, in words, at both ends."""
        return self.before.done + self.after.done
