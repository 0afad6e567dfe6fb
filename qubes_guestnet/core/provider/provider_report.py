# SPDX-License-Identifier: GPL-2.0-or-later
"""The report of a pass about client qubes."""

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
    """One end of a pass: pending operations, and operations carried out, in words."""

    todo: tuple[object, ...] = ()
    done: tuple[str, ...] = ()


class ProviderReport(NamedTuple):
    """The report of the provider's half of a pass.

    Args:
        settings: validated settings.
        active: this qube provides network to others: its key and its service flag exist.
        ipv6: it also provides IPv6.
        forwarding: families (4, 6) that the kernel forwards at the end of the pass.
        names: the DNS redirection, and the reason.
        vifs: the checked vifs; a pass of the agent checks all of them only if they may have changed.
        before: operations before the uplink: rules first.
        after: operations after the uplink.
        errors: all errors, those of settings first.
        ruled: the base rules are in force as they were loaded.
        closed: `forwarding off` was run, and `forwarding on` was not run since.
        offload: whether connections are offloaded, in words; "" if not checked yet.
        stopped: families whose forwarding another program switched off.
        hold: why nothing is forwarded since the rules were lost, see `owned_state.Provided`.
        lost: rules of other programs that were lost together with ours, in words.
        unfiltered: qubes-firewall.service is not ready, and so nothing is forwarded.
        firewall: its problem, as `foreign_chains.firewall` describes it; "" for none, or if not checked.
        apart: interfaces whose own forwarding is off, and the name of that setting; only for `status` and `check`.
        look_again: when to read the firewall's entries again, in seconds of a monotonic clock; None for never.
        wanted: desired rules of the client qubes' firewall; None if this process does not enforce it.
        conditions: the firewall of each client address, if this program enforces it, for `status` and `check`.
        firewall_changed: chains of the firewall from which another program has removed rules of ours.
        scripts: results of the users' firewall scripts; None as for `conditions`.
        duplicates: addresses that several client qubes have, by the names of their vifs.
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
        """Return whether the pass waits for the qubes' firewall, whose readiness causes no event."""
        return self.hold == FIREWALL

    @property
    def followed(self) -> tuple[object, ...]:
        """Return the variable inputs of the pass: name servers, offloaded devices, and the client qubes' firewall."""
        return self.names.servers, self.offload, self.wanted

    @property
    def todo(self) -> tuple[str, ...]:
        """Return the pending operations of both ends, one line each."""
        return tuple(map(str, self.before.todo + self.after.todo))

    @property
    def done(self) -> tuple[str, ...]:
        """Return the operations carried out at both ends, in words."""
        return self.before.done + self.after.done
