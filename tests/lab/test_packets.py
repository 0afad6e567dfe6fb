# SPDX-License-Identifier: GPL-2.0-or-later
"""The agent behind a real provider, judged by packets that arrive: routes, neighbours, fall-back, waiting, crashes."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable

import pytest

from qubes_guestnet.lab import probes, world
from qubes_guestnet.lab.dom0 import Vm
from qubes_guestnet.lab.qube import Service
from qubes_guestnet.lab.stage import GATEWAY_FLAG, Stage, routes
from tests.support.eventually import eventually
from tests.support.needs import needs

FELL_BACK = "falling back to the gateway route"
# In hundredths of a second; the kernel answers at a random moment within it, so hardly ever within 0.1 s.
SLOW = 6000


@pytest.fixture(autouse=True)
def _tools() -> None:
    needs("ip", "nsenter", "nft", "dnsmasq")


def start(stage: Stage, *, proxy_arp: bool = True, proxy_delay: int = 0, flags: tuple[str, ...] = ()) -> Vm:
    vm = stage.dom0.create("vm1", stage.netvm1)
    vm.proxy_arp, vm.proxy_delay = proxy_arp, proxy_delay
    qube = stage.dom0.start(vm)
    for flag in flags:
        qube.set_flag(flag)
    qube.start_agent()
    return vm


def log(vm: Vm) -> str:
    assert vm.running.agent is not None
    return vm.running.agent.output()


# --- the default route and its fall-back -----------------------------------------------------------------------------


def test_a_prompt_provider_keeps_the_device_route() -> None:
    stage = Stage()
    vm = start(stage)
    # The agent has the kernel ask for the first virtual DNS address; once that is known the decision is taken.
    eventually(lambda: {"10.139.1.1"} & {entry["dst"] for entry in vm.running.ip("neighbour") if "lladdr" in entry})
    stage.configured(vm)
    stage.reaches(vm)
    assert FELL_BACK not in log(vm)


@pytest.mark.parametrize(("proxy_arp", "proxy_delay"), [(False, 0), (True, SLOW)], ids=["no-answer", "late-answer"])
def test_a_provider_without_prompt_proxy_arp_means_the_gateway_route(proxy_arp: bool, proxy_delay: int) -> None:
    stage = Stage(plain=True)
    vm = start(stage, proxy_arp=proxy_arp, proxy_delay=proxy_delay)
    stage.gateway = True
    stage.configured(vm)
    stage.reaches(vm)
    assert log(vm).count(FELL_BACK) == 1
    assert "gateway" in vm.running.guestnet("status", check=False).stdout
    json.loads(vm.running.guestnet("status", "--json", check=False).stdout)
    assert "fallback" in vm.running.guestnet("check", "--json", check=False).stdout


def test_the_fall_back_ends_with_the_interface() -> None:
    stage = Stage(plain=True)
    vm = start(stage, proxy_arp=False)
    stage.gateway = True
    stage.configured(vm)
    vm.proxy_arp, stage.gateway = True, False
    stage.dom0.set_netvm(vm, stage.provider("netvm2"))
    stage.configured(vm)
    stage.reaches(vm)


@pytest.mark.behaviour("B10")
def test_behind_a_provider_without_proxy_arp_a_vpns_own_route_works() -> None:
    stage = Stage(gateway=True, plain=True)
    vm = start(stage, proxy_arp=False, flags=(GATEWAY_FLAG,))
    stage.configured(vm)  # the gateway's route is `scope link`, the default route `onlink`
    gateway = stage.netvm1.address
    vm.running.run("ip", "route", "add", f"{world.HOST}/32", "via", gateway, "dev", "eth0")
    vm.running.run("ip", "route", "del", "default")
    assert eventually(lambda: probes.ping(vm.running, world.HOST))
    stage.reaches(vm)


@pytest.mark.behaviour("B11")
@pytest.mark.parametrize("gateway", [False, True], ids=["device", "gateway"])
def test_with_arp_and_ndp_dropped_traffic_to_the_gateway_flows(gateway: bool) -> None:
    stage = Stage(ipv6=True, gateway=gateway)
    vm = stage.dom0.create("vm1", stage.netvm1)
    qube = stage.dom0.start(vm)
    qube.set_flag(GATEWAY_FLAG, gateway)
    stage.netvm1.running.wire(
        f"""
        ip neighbour replace {vm.address} lladdr {vm.mac} nud permanent dev {vm.vif}
        ip neighbour replace {vm.address6} lladdr {vm.mac} nud permanent dev {vm.vif}
        nft -f - <<'RULES'
        table netdev quiet {{
          chain in {{
            type filter hook ingress device "{vm.vif}" priority 0;
            ether type arp drop
            icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert, nd-router-solicit }} drop
          }}
        }}
        RULES
    """.replace("\n        ", "\n")
    )
    qube.start_agent()
    stage.gateway = True  # the device route cannot work here: the agent has to find out
    stage.configured(vm)
    stage.reaches(vm)


# --- providers that change, crash, come back -------------------------------------------------------------------------


@pytest.mark.behaviour("B5")
@pytest.mark.parametrize("gateway", [False, True], ids=["device", "gateway"])
def test_after_a_change_nothing_of_the_former_provider_is_left(gateway: bool) -> None:
    stage = Stage(gateway=gateway)
    vm = stage.start("vm1", stage.netvm1)
    stage.reaches(vm)
    other = stage.provider("netvm2")
    stage.dom0.set_netvm(vm, other)
    stage.configured(vm)
    stage.reaches(vm)
    assert stage.netvm1.address not in str(routes(vm.running, 4)) + str(vm.running.ip("neighbour"))
    sent = other.running.ip("-s", "link", "show", "dev", str(vm.vif))[0]["stats64"]["rx"]["packets"]
    assert sent > 0


@pytest.mark.behaviour("B6")
def test_a_provider_that_crashed_and_came_back_is_used_again() -> None:
    stage = Stage(ipv6=True)
    vm = stage.start("vm1", stage.netvm1)
    stage.reaches(vm)
    stage.dom0.crash(stage.netvm1)
    stage.reaches_nothing(vm)
    stage.dom0.start(stage.netvm1)
    stage.configured(vm)
    stage.reaches(vm)


@pytest.mark.behaviour("B7")
def test_a_provider_without_ipv6_after_one_with_it() -> None:
    stage = Stage(ipv6=True)
    vm = stage.start("vm1", stage.netvm1)
    stage.reaches(vm)
    stage.dom0.set_netvm(vm, stage.provider("netvm2", ipv6=False))
    assert "/qubes-ip6" in stage.dom0.read_all(vm)
    stage.configured(vm)
    stage.reaches(vm)


@pytest.mark.behaviour("B8")
@pytest.mark.parametrize("gateway", [False, True], ids=["device", "gateway"])
def test_a_kernel_that_names_it_otherwise(gateway: bool) -> None:
    stage = Stage(gateway=gateway)
    vm = stage.start("vm1", None)
    vm.netvm = stage.netvm1
    stage.dom0.write_entries(vm)
    stage.dom0.attach(vm, interface="enX0")
    stage.configured(vm)
    stage.reaches(vm)
    assert [link["ifname"] for link in vm.running.ip("link")] == ["lo", "enX0"]


# --- wait-uplink -----------------------------------------------------------------------------------------------------


def waiting(vm: Vm, seconds: int = 10) -> Service:
    return vm.running.spawn("wait", sys.executable, "-m", "qubes_guestnet", "wait-uplink", "--timeout", str(seconds))


@pytest.mark.behaviour("B4")
def test_waiting_for_no_interface_ends_at_once() -> None:
    stage = Stage()
    vm = stage.start("vm1", None)
    assert waiting(vm, seconds=1000).wait() == 0


@pytest.mark.behaviour("B4")
@pytest.mark.behaviour("B7")
def test_waiting_with_the_keys_of_a_provider_that_was_taken_away_ends_at_once() -> None:
    stage = Stage()
    vm = stage.start("vm1", stage.netvm1)
    stage.configured(vm)
    stage.dom0.set_netvm(vm, None)
    eventually(lambda: "not there" in str(vm.running.notifications()))
    assert waiting(vm, seconds=1000).wait() == 0


@pytest.mark.behaviour("B3")
@pytest.mark.behaviour("B4")
@pytest.mark.parametrize(
    "meanwhile",
    [
        lambda stage, vm: stage.dom0.attach(vm),
        # The interface that was there when the waiting began goes for good, another comes.
        lambda stage, vm: (stage.dom0.attach(vm), stage.dom0.detach(vm), stage.dom0.attach(vm)),
    ],
    ids=["comes", "comes-goes-comes"],
)
def test_waiting_lasts_until_the_present_interface_is_configured(meanwhile: Callable[[Stage, Vm], object]) -> None:
    stage = Stage()
    vm = stage.start("vm1", stage.netvm1, agent=False)
    stage.dom0.detach(vm)
    wait = waiting(vm)
    assert wait.pid
    assert wait.running
    meanwhile(stage, vm)
    assert wait.running
    vm.running.start_agent()
    assert wait.wait(10.0) == 0
    stage.configured(vm)


@pytest.mark.behaviour("B3")
def test_waiting_in_vain_fails_and_says_for_what() -> None:
    stage = Stage()
    vm = stage.start("vm1", stage.netvm1)
    stage.configured(vm)
    stage.dom0.detach(vm)
    stage.reaches_nothing(vm)
    stage.dom0.write_entries(vm)  # as dom0 does before it attaches: an interface is to be expected
    wait = waiting(vm, seconds=1)
    assert wait.wait() == 1
    assert "not configured after 1 s" in wait.output()
