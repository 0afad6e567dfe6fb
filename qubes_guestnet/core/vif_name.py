# SPDX-License-Identifier: GPL-2.0-or-later
"""The name of a vif, which contains the number of the domain at its other end (behaviour B58)."""

from __future__ import annotations

from . import checks
from .namedtuple import NamedTuple

# Xen's highest domain number is one less than DOMID_FIRST_RESERVED (0x7ff0).
HIGHEST_DOMID = 0x7FF0
# IFNAMSIZ without the terminating zero.
_LONGEST_NAME = 15


class _VifNameFields(NamedTuple):
    text: str
    domid: int
    devid: int


class VifName(_VifNameFields):
    """The name of a vif.

    Args:
        text: `vifDOMID.DEVID`.
        domid: number of the domain at the other end, 0 to 32752; dom0 (0) is valid.
        devid: number of the interface there.
    """

    __slots__ = ()

    def __new__(cls, text: str, domid: int, devid: int) -> VifName:
        """Raise ValueError if the name does not match the numbers."""
        if text != f"vif{domid}.{devid}" or not 0 <= domid <= HIGHEST_DOMID or devid < 0 or len(text) > _LONGEST_NAME:
            raise ValueError(f"{text!r} is not the name of a vif")
        return super().__new__(cls, text, domid, devid)


def parse_name(text: str) -> VifName:
    """Parse the name of a vif such as `vif4.0`.

    Raises:
        ValueError: it is not the name of a vif (behaviour B58).
    """
    domid, dot, devid = text.removeprefix("vif").partition(".")
    numbers = (domid, devid) if dot and len(text) <= _LONGEST_NAME else ()
    if not numbers or not all(checks.is_decimal(number, _LONGEST_NAME) for number in numbers):
        raise ValueError(f"{text[:60]!r} is not the name of a vif: vifDOMID.DEVID, at most {_LONGEST_NAME} characters")
    return VifName(text, int(domid), int(devid))
