# SPDX-License-Identifier: GPL-2.0-or-later
"""dom0 names no gateway: a device route needs none; the style `gateway` has none to use, and says so."""

from __future__ import annotations

import pytest

from tests.support.eventually import eventually
from tests.support.qubes.appvm import ENTRIES, GATEWAY_FLAG, Guest, words_of

WITHOUT = {key: value for key, value in ENTRIES.items() if key != "/qubes-gateway"}
MISSING = "no gateway (/qubes-gateway)"


@pytest.mark.behaviour("B139")
def test_the_device_route_is_there_all_the_same() -> None:
    guest = Guest(WITHOUT)
    guest.agent()
    eventually(lambda: [words_of(route) for route in guest.routes()] == ["default scope link"], trouble=guest.log)
    guest.qube.guestnet("wait-uplink", "--timeout", "5")
    eventually(lambda: guest.said(MISSING) == 1, trouble=guest.log)
    assert "gateway-missing" in guest.codes()
    assert guest.qube.guestnet("plan").stdout == ""
    guest.write("/qubes-gateway", ENTRIES["/qubes-gateway"])
    guest.soon_configured()
    assert "gateway-missing" not in guest.codes()
    assert guest.said(MISSING) == 1


@pytest.mark.behaviour("B139")
def test_the_style_gateway_has_none_to_use_and_says_so() -> None:
    guest = Guest(WITHOUT)
    guest.qube.set_flag(GATEWAY_FLAG)
    guest.agent()
    eventually(lambda: guest.said("the style `gateway` has none to use") == 1, trouble=guest.log)
    assert guest.routes() == []
    assert "no-default-route" in guest.codes()
