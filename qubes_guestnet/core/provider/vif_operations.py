# SPDX-License-Identifier: GPL-2.0-or-later
"""The operations on one vif.

The field `name` is that of the vif which an operation is about; what fails stops what comes later of the same vif.
"""

from __future__ import annotations

from ..namedtuple import NamedTuple, distinct
from .vif import Vif

TYPE_CHECKING = False  # of `typing`, which costs 5 ms and 1 MB (see system/deferred_imports)
if TYPE_CHECKING:
    from ..plan import Op
    from ..values import Tunable


@distinct
class CloseVif(NamedTuple):
    """Let nothing pass by a vif any more: its link goes down, and then what it had is removed."""

    op: Op

    @property
    def name(self) -> str:
        """Return the name of the vif."""
        return self.op.name

    def __str__(self) -> str:
        return str(self.op)


@distinct
class RemoveElements(NamedTuple):
    """Let a vif send nothing any more: its elements go, with its limits. Missing elements are ignored."""

    name: str
    text: str

    def __str__(self) -> str:
        return f"nft -f: elements and limits of {self.name} removed"


@distinct
class RemoveVifRecord(NamedTuple):
    """Forget a vif, once all that was made for it is gone."""

    name: str

    def __str__(self) -> str:
        return f"{self.name}: out of service"


@distinct
class MarkVifClosed(NamedTuple):
    """Record that the device of a vif is gone, once it may send nothing; hotplug will ask what it had."""

    vif: Vif

    @property
    def name(self) -> str:
        """Return the name of the vif."""
        return self.vif.name.text

    def __str__(self) -> str:
        return f"{self.name}: closed, its device is gone"


@distinct
class KeepVifRecord(NamedTuple):
    """Keep the record of a vif whose end failed, as that of no device: the next pass ends it."""

    vif: Vif

    @property
    def name(self) -> str:
        """Return the name of the vif."""
        return self.vif.name.text

    def __str__(self) -> str:
        return f"{self.name}: taking it out of service is tried again"


@distinct
class WriteVifRecord(NamedTuple):
    """Record a vif ahead of what is made for it."""

    vif: Vif

    @property
    def name(self) -> str:
        """Return the name of the vif."""
        return self.vif.name.text

    def __str__(self) -> str:
        return f"{self.name}: recorded"


@distinct
class SetLimits(NamedTuple):
    """Limit what a qube may have without an answer."""

    name: str
    text: str

    def __str__(self) -> str:
        return f"nft -f: limits of {self.name}"


@distinct
class SetElement(NamedTuple):
    """Let a vif send from an address, or no longer."""

    name: str
    line: str

    @property
    def text(self) -> str:
        """Return the text for nft."""
        return f"{self.line}\n"

    def __str__(self) -> str:
        return f"nft {self.line}"


@distinct
class WriteTunable(NamedTuple):
    """Write a setting of the kernel for a vif."""

    name: str
    tunable: Tunable

    def __str__(self) -> str:
        return str(self.tunable)


@distinct
class PrepareVif(NamedTuple):
    """Give a vif what lets nothing pass yet: its group, MTU, addresses, and neighbours."""

    op: Op

    @property
    def name(self) -> str:
        """Return the name of the vif."""
        return self.op.name

    def __str__(self) -> str:
        return str(self.op)


@distinct
class OpenVif(NamedTuple):
    """Let packets pass by a vif: link up, routes, and what is removed once these are there."""

    op: Op

    @property
    def name(self) -> str:
        """Return the name of the vif."""
        return self.op.name

    def __str__(self) -> str:
        return str(self.op)


VifOperation = (
    CloseVif
    | RemoveElements
    | RemoveVifRecord
    | MarkVifClosed
    | KeepVifRecord
    | WriteVifRecord
    | SetLimits
    | SetElement
    | WriteTunable
    | PrepareVif
    | OpenVif
)
