# SPDX-License-Identifier: GPL-2.0-or-later
"""The limits of many vifs are restored together: by netlink messages, or in a few pieces short enough for nft."""

from __future__ import annotations

import pytest

from qubes_guestnet.core.nft import limits, tables
from tests.support.eventually import eventually
from tests.support.qubes.provider import ENTRIES6, REAL_NFT, Provider

COUNTER, COUNTED = "/run/lab/counting-nft", "/run/lab/counted"
VIFS = 12  # more than one transaction can be about in a user namespace


@pytest.mark.behaviour("B112")
@pytest.mark.behaviour("B125")
def test_limits_of_many_come_back_in_few_transactions() -> None:
    host = Provider(ENTRIES6)
    behinds = [host.plug_bare(10 + number) for number in range(VIFS)]
    for behind in behinds:
        host.online(behind)

    def limited() -> int:
        """How many vifs have their limits in both families."""
        listed = [
            host.oracle.run("nft", "list", "table", word, "qubes-limits", check=False) for word in tables.IP_FAMILIES
        ]
        found = limits.in_force("".join(done.stdout for done in listed))
        return sum(len(words) == len(tables.IP_FAMILIES) for words in found.values())

    assert limited() == VIFS
    host.qube.write(COUNTER, f'#!/bin/sh\necho "$*" >> {COUNTED}\nexec {REAL_NFT} "$@"\n')
    host.qube.run("chmod", "+x", COUNTER)
    host.replace_nft(COUNTER)
    host.real_nft("delete table ip qubes-limits; delete table ip6 qubes-limits")
    eventually(lambda: limited() == VIFS, 20.0, trouble=host.trouble)
    loads = host.qube.read(COUNTED).splitlines().count("-f -")
    assert loads <= VIFS // 4, host.trouble()
    assert "Message too long" not in host.trouble()
    assert host.qube.guestnet("plan").stdout == ""
