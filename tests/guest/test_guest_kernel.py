# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest itself: its kernel has what the tests beside this one are here for."""

from __future__ import annotations

import os

from tests.support.judge.oracle import Oracle


def test_its_kernel_has_flowtables() -> None:
    assert os.uname().release.endswith("-cloud-amd64")
    oracle = Oracle()
    oracle.run("nft", "add table inet probe; add flowtable inet probe q { hook ingress priority 0; devices = { lo }; }")
    assert [entry["flowtable"]["name"] for entry in oracle.ruleset() if "flowtable" in entry] == ["q"]
    oracle.run("nft", "delete table inet probe")
