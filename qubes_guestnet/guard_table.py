# SPDX-License-Identifier: GPL-2.0-or-later
"""The guard of a provider: nothing passes from or to a qube while the base rules are away, not even one packet.

It is the resident agent's alone: the table goes with its process, and that process loads the rules again.
"""

from __future__ import annotations

from .errors import KernelError
from .provider.pass_state import Work
from .system import nft_guard
from .system.systemd import INFO, log
from .transactions import Transactions


class Guarding:
    """Has the guard's table there while this qube gives network to others.

    Args:
        transactions: of this process.
    """

    def __init__(self, transactions: Transactions) -> None:
        self._nft = transactions
        self._guard: nft_guard.Guard | None = nft_guard.Guard()

    def bring(self, work: Work) -> None:
        """After the base rules, without which it lets nothing pass; rules that went meanwhile are what it is for.

        Args:
            work: the pass.

        Raises:
            KernelError: what the kernel has of nftables cannot be asked for.
        """
        if self._guard is None:
            return
        if not work.active:
            self._nft.do(self._guard.leave)
        elif work.ruled:
            self._stand(self._guard)

    def _stand(self, guard: nft_guard.Guard) -> None:
        try:
            self._nft.do(guard.stand)
        except KernelError as error:
            # An older kernel. Forwarding is closed as soon as the agent hears that the rules are gone, and no sooner.
            log(INFO, f"no guard for moments without rules: {error}")
            self._guard = None
