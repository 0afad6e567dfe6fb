# SPDX-License-Identifier: GPL-2.0-or-later
"""IPv6 switched off by the owner of a qube that dom0 gives IPv6: IPv4 and names as ever, and all is configured."""

from __future__ import annotations

import pytest

from qubes_guestnet.lab.qube import Qube
from tests.support.eventually import eventually
from tests.support.qubes.appvm import ENTRIES6, GATEWAY6, IP6, AppVm
from tests.support.qubes.provider import ENTRIES6 as PROVIDER6
from tests.support.qubes.provider import Provider

WITH6 = {"ip6": f"{IP6}/128", "gateway6": GATEWAY6}
OFF = "IPv6 is off on eth0"
EVERYWHERE = """
    echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6
    echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6
"""


def switch_off(qube: Qube) -> None:
    """As sysctl.d and `ipv6.disable_ipv6=1` on the kernel's command line do."""
    qube.wire(EVERYWHERE)


def configured(appvm: AppVm) -> None:
    """Every verb that waits, or says whether it is so, finds that all is done."""
    for words in (["apply"], ["uplink", "add", "eth0"], ["wait-uplink", "--timeout", "5"]):
        done = appvm.qube.guestnet(*words, check=False)
        assert (done.returncode, done.stderr) == (0, ""), words
    assert appvm.qube.guestnet("plan").stdout == ""


@pytest.mark.behaviour("B129")
@pytest.mark.parametrize("resident", [True, False])
def test_switched_off_everywhere(resident: bool) -> None:
    appvm = AppVm(ENTRIES6)
    switch_off(appvm.qube)
    if resident:
        appvm.agent()
        appvm.soon_configured()
        assert appvm.said(OFF) == 1
    configured(appvm)
    appvm.check()
    codes = appvm.codes()
    assert "ipv6-off" in codes
    assert not {"pass-failed", "agent-error", "plan-not-empty"} & set(codes)


@pytest.mark.behaviour("B129")
def test_a_kernel_without_it() -> None:
    appvm = AppVm(ENTRIES6)
    appvm.qube.run("mount", "-t", "tmpfs", "none", "/proc/sys/net/ipv6")
    appvm.agent()
    appvm.soon_configured()
    configured(appvm)
    assert appvm.said("the kernel does not support it") == 1


@pytest.mark.behaviour("B129")
def test_switched_off_and_on_under_the_agent() -> None:
    appvm = AppVm(ENTRIES6)
    appvm.agent()
    appvm.soon_configured(**WITH6)
    appvm.disable_ipv6(True)
    eventually(lambda: appvm.said(OFF) == 1, trouble=appvm.log)
    appvm.soon_configured()
    configured(appvm)
    appvm.disable_ipv6(False)
    appvm.soon_configured(**WITH6)
    appvm.disable_ipv6(True)
    eventually(lambda: appvm.said(OFF) == 2, trouble=appvm.log)


@pytest.mark.behaviour("B129")
def test_an_mtu_that_is_too_small_for_it() -> None:
    appvm = AppVm(ENTRIES6)
    appvm.ip("link", "set", "eth0", "mtu", "1200")
    appvm.agent()
    appvm.soon_configured()
    configured(appvm)
    assert appvm.said("MTU") == 1


@pytest.mark.behaviour("B129")
def test_a_provider_without_it_gives_its_qubes_ipv4() -> None:
    host = Provider(PROVIDER6, agent=False)
    switch_off(host.qube)
    host.qube.start_agent()
    behind = host.attach(4, "10.137.0.4", "fd09:24ef:4179::a89:4")
    assert host.works(behind)
    assert host.forwards()
    assert host.qube.guestnet("apply", check=False).returncode == 0, host.trouble()
