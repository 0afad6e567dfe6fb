# SPDX-License-Identifier: GPL-2.0-or-later
"""The socket that stays open between transactions: one, of this namespace, and a fresh one after an error."""

from __future__ import annotations

import os

import pytest

from qubes_guestnet.core.nft import rules_text
from qubes_guestnet.errors import KernelError
from qubes_guestnet.lab.namespaces import CLONE_NEWNET, unshare
from qubes_guestnet.system.netlink import wire
from qubes_guestnet.system.nft import encode, kept, kernel
from qubes_guestnet.system.nft import program as nft
from tests.support.judge.oracle import Oracle

SUBSYSTEM = kernel.NFNL_SUBSYS_NFTABLES
ADDRESS = "add element ip qubes downstream { 10.137.0.8 }\n"


def commit(text: str) -> None:
    found = encode.transaction(text)
    assert found is not None
    found.commit()


@pytest.mark.behaviour("B48")
def test_transactions_and_questions_between_them_take_one_socket(oracle: Oracle) -> None:
    nft.run(rules_text.base(ipv6=True))
    kernel.generation()
    before = os.listdir("/proc/self/fd")
    with kept.Asking(SUBSYSTEM) as socket:
        pass
    for number in range(20):
        generation = kernel.generation()
        commit(ADDRESS if number % 2 == 0 else ADDRESS.replace("add", "delete"))
        assert kernel.generation() == generation + 1
    with kept.Asking(SUBSYSTEM) as now:
        assert now is socket
    assert os.listdir("/proc/self/fd") == before


def test_in_another_namespace_it_is_another_one(oracle: Oracle) -> None:
    nft.run(rules_text.base(ipv6=True))
    there = kernel.generation()
    unshare(CLONE_NEWNET)
    assert kernel.generation() < there
    with pytest.raises(nft.Refused, match="No such file or directory"):
        commit(ADDRESS)


def test_after_a_refusal_nothing_of_it_is_taken_for_the_next_answer(oracle: Oracle) -> None:
    """Each message at fault is answered, and the first answer is the error that is told."""
    nft.run(rules_text.base(ipv6=True))
    for _ in range(3):
        generation = kernel.generation()
        with pytest.raises(nft.Refused, match=r"No such file or directory: delete element ip qubes downstream"):
            commit("delete element ip qubes downstream { 10.137.0.9 }\n" * 3)
        assert kernel.generation() == generation
        commit(ADDRESS)
        commit(ADDRESS.replace("add", "delete"))
        assert kernel.generation() == generation + 2


def test_a_socket_that_fails_is_replaced(oracle: Oracle, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel.generation()
    with monkeypatch.context() as patched:
        patched.setattr(wire.Netfilter, "request", _fails)
        with pytest.raises(KernelError):
            kernel.generation()
    former = kept._KEPT.get(SUBSYSTEM)
    assert former is None
    assert kernel.generation() > 0


def _fails(*_arguments: object) -> object:
    raise OSError(5, "thrown")
