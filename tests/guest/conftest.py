# SPDX-License-Identifier: GPL-2.0-or-later
"""Every test here runs in one emulated guest, whose kernel has flowtables; they share one provider.

It is what costs most here, so a test leaves it as it was.
"""

from __future__ import annotations

import pytest

from tests.support.eventually import eventually
from tests.support.machines.in_emulated import pytest_configure, pytest_runtest_protocol
from tests.support.packets.flows import Offload
from tests.support.qubes.provider import ENTRIES6, Client, Provider

__all__ = ["behind", "host", "offload", "pytest_configure", "pytest_runtest_protocol"]


@pytest.fixture(scope="session")
def host() -> Provider:
    """A provider with IPv6."""
    return Provider(ENTRIES6)


@pytest.fixture(scope="session")
def behind(host: Provider) -> Client:
    """A qube behind it."""
    return host.attach(4)


@pytest.fixture
def offload(host: Provider, behind: Client) -> Offload:
    """What there is of offload in it; it is on for all there is when a test begins."""
    offload = Offload(host.qube)
    eventually(offload.complete, 20, "offload is on", lambda: f"{offload.devices()}\n{host.trouble()}")
    return offload
