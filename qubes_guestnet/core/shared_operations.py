# SPDX-License-Identifier: GPL-2.0-or-later
"""Operations that several planners use: deleting connections, and systemd jobs."""

from __future__ import annotations

from .namedtuple import NamedTuple, distinct

TYPE_CHECKING = False  # of `typing`, which costs 5 ms and 1 MB (see system/deferred_imports)
if TYPE_CHECKING:
    from .values import IPAddress


@distinct
class PurgeConntrack(NamedTuple):
    """Delete the connections of these addresses, in either direction and translated or not (behaviours B50, B53).

    Args:
        addresses: addresses of both families.
        name: the vif that this is done for; "" for none.
    """

    addresses: tuple[IPAddress, ...]
    name: str = ""

    def __str__(self) -> str:
        return f"conntrack -D: entries of {', '.join(map(str, self.addresses))}"


@distinct
class UnitJob(NamedTuple):
    """Queue a systemd job for a unit, without waiting for its end.

    Args:
        verb: a verb of systemctl, such as `reload` or `try-restart`.
        unit: name of the unit, with its suffix.
    """

    verb: str
    unit: str

    def __str__(self) -> str:
        return f"systemctl --no-block {self.verb} {self.unit}"


if TYPE_CHECKING:
    SharedOperation = PurgeConntrack | UnitJob
