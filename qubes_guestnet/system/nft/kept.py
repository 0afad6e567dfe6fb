# SPDX-License-Identifier: GPL-2.0-or-later
"""One netfilter socket of this process that stays open, for what is asked around each transaction.

The kernel frees what a transaction has deleted some 15 ms later, after a grace period (RCU), and whichever socket of
netfilter is closed meanwhile waits for that (nft_rcv_nl_event()): the messages of a vif are carried out in 1 ms, and
closing their socket took 14.
"""

from __future__ import annotations

import os

from ..netlink import wire

_NAMESPACE = "/proc/self/ns/net"
_KEPT: dict[int, tuple[tuple[int, int], wire.Netfilter]] = {}


class Asking:
    """To be used in `with`: the socket for a subsystem of netfilter, of the network namespace of this process.

    After an error it is closed: what is still to be read from it is of a question that was given up.

    Args:
        subsystem: its number.

    Raises:
        OSError: it cannot be opened.
    """

    def __init__(self, subsystem: int) -> None:
        self._subsystem = subsystem

    def __enter__(self) -> wire.Netfilter:
        return _there(self._subsystem)

    def __exit__(self, kind: object, *_error: object) -> None:
        if kind is not None:
            forget(self._subsystem)


def _there(subsystem: int) -> wire.Netfilter:
    place = os.getpid(), os.stat(_NAMESPACE).st_ino
    there = _KEPT.get(subsystem)
    if there is not None and there[0] == place:
        return there[1]
    forget(subsystem)
    made = wire.Netfilter(subsystem)
    _KEPT[subsystem] = place, made
    return made


def forget(subsystem: int) -> None:
    """Close the socket, if there is one."""
    there = _KEPT.pop(subsystem, None)
    if there is not None:
        there[1].close()
