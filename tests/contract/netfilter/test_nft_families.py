# SPDX-License-Identifier: GPL-2.0-or-later
"""Which families of tables a kernel has: asked of one that has them, about one that no kernel has any more, too."""

from __future__ import annotations

import errno

import pytest

from qubes_guestnet.core.nft.tables import FAMILIES, QUBES
from qubes_guestnet.errors import KernelError
from qubes_guestnet.system.nft import families as nft_families
from qubes_guestnet.system.nft import kernel as nft_kernel
from tests.support.judge.oracle import Oracle

pytestmark = pytest.mark.behaviour("B114")

DECNET = 12  # taken out in Linux 6.1; the number is not used again


def test_a_probe_tells_what_is_there_and_leaves_nothing(oracle: Oracle) -> None:
    before = nft_kernel.generation()
    assert nft_families.has(nft_families.NFPROTO_ARP)
    assert not nft_families.has(DECNET)
    assert (nft_kernel.table_names(), nft_kernel.generation()) == ((), before)


def test_the_table_itself_is_proof_enough(oracle: Oracle, monkeypatch: pytest.MonkeyPatch) -> None:
    assert nft_families.there() == FAMILIES
    monkeypatch.setattr(nft_families, "has", lambda _: False)
    assert nft_families.there() == ("ip", "ip6")
    oracle.run("nft", f"add table ip {QUBES}")
    assert nft_families.there() == ("ip", "ip6")
    oracle.run("nft", f"add table arp {QUBES}")
    assert nft_families.there() == FAMILIES


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOMEM])
def test_another_trouble_is_no_answer(oracle: Oracle, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, "refused")

    monkeypatch.setattr(nft_families.batch, "attempt", refuse)
    with pytest.raises(KernelError) as caught:
        nft_families.has(nft_families.NFPROTO_ARP)
    assert caught.value.errno == number
    assert caught.value.needs_root == (number == errno.EPERM)
