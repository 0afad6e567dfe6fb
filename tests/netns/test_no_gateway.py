# SPDX-License-Identifier: GPL-2.0-or-later
"""dom0 names no gateway: a device route needs none; the style `gateway` requires one, and an error says so."""

from __future__ import annotations

import pytest

from tests.support.eventually import eventually
from tests.support.qubes.appvm import ENTRIES, GATEWAY_FLAG, AppVm, words_of

WITHOUT = {key: value for key, value in ENTRIES.items() if key != "/qubes-gateway"}
MISSING = "no gateway (/qubes-gateway)"


@pytest.mark.behaviour("B139")
def test_the_device_route_is_there_all_the_same() -> None:
    appvm = AppVm(WITHOUT)
    appvm.agent()
    eventually(lambda: [words_of(route) for route in appvm.routes()] == ["default scope link"], trouble=appvm.log)
    appvm.qube.guestnet("wait-uplink", "--timeout", "5")
    eventually(lambda: appvm.said(MISSING) == 1, trouble=appvm.log)
    assert "gateway-missing" in appvm.codes()
    assert appvm.qube.guestnet("plan").stdout == ""
    appvm.write("/qubes-gateway", ENTRIES["/qubes-gateway"])
    appvm.soon_configured()
    assert "gateway-missing" not in appvm.codes()
    assert appvm.said(MISSING) == 1


@pytest.mark.behaviour("B139")
def test_the_style_gateway_has_none_to_use_and_says_so() -> None:
    appvm = AppVm(WITHOUT)
    appvm.qube.set_flag(GATEWAY_FLAG)
    appvm.agent()
    eventually(lambda: appvm.said("which the style `gateway` requires: no default route") == 1, trouble=appvm.log)
    assert appvm.routes() == []
    assert "no-default-route" in appvm.codes()
