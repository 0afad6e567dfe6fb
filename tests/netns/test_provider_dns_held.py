# SPDX-License-Identifier: GPL-2.0-or-later
"""Names of the qubes behind while systemd-resolved is away, and servers that are to be asked in another way.

With the real systemd-resolved. How long the last answer holds is set to seconds here; the time itself is tested in
tests/core/test_upstream_servers.py.
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable

import pytest

from qubes_guestnet.core import owned_state
from qubes_guestnet.lab.daemons import Daemons
from tests.netns.test_provider_resolved import PROXY, VPN, leads, start
from tests.support.eventually import eventually
from tests.support.needs import needs
from tests.support.qubes.provider import DNS, DNS2, ENTRIES, ROUTER, UPLINK, WORLD, Provider

OWNED = "/run/qubes-guestnet/owned"
TUNNEL = """
    ip link add wg0 type veth peer name far; ip link set wg0 up; ip link set far up; ip address add 10.64.9.2/24 dev wg0
"""


@pytest.fixture(autouse=True)
def _tools() -> None:
    needs("dbus-daemon", "/lib/systemd/systemd-resolved")


def with_tunnel(hold: int) -> tuple[Provider, Daemons]:
    """A VPN qube whose names go into the tunnel."""
    host, daemons = start(PROXY)
    host.qube.write("/etc/qubes/guestnet.toml", f"[dns]\nhold = {hold}\n")
    host.qube.start_agent()
    leads(host, DNS, DNS2)
    host.qube.wire(TUNNEL)
    daemons.resolvectl("dns", "wg0", VPN)
    daemons.resolvectl("domain", "wg0", "~.")
    leads(host, VPN)
    return host, daemons


def codes(host: Provider) -> set[str]:
    return {finding["code"] for finding in json.loads(host.qube.guestnet("check", "--json", check=False).stdout)}


def lost(host: Provider) -> int:
    """Since when the agent has not heard systemd-resolved, by its record, in seconds of the monotonic clock."""
    last = owned_state.parse(host.qube.path(OWNED).read_bytes()).provided.last
    assert last is not None
    return last.lost


def stopped(daemons: Daemons) -> None:
    daemons.stop("resolved")


def killed(daemons: Daemons) -> None:
    daemons.running["resolved"].kill()


def hanging(daemons: Daemons) -> None:
    daemons.running["resolved"].signal(signal.SIGSTOP)
    daemons.qube.wire("ip link set far down; ip link set far up")  # something that makes a pass


def without_bus(daemons: Daemons) -> None:
    daemons.running["dbus"].kill()


@pytest.mark.behaviour("B128")
@pytest.mark.parametrize("goes", [stopped, killed, hanging, without_bus])
def test_the_last_answer_holds_then_questions_are_refused_and_none_moves_to_the_uplink(
    goes: Callable[[Daemons], None],
) -> None:
    hold = 3
    begin = int(time.monotonic())
    host, daemons = with_tunnel(hold)
    goes(daemons)
    seen: list[set[str]] = []

    def refused() -> bool:
        seen.append({rule.split()[-1] for rule in host.rules("ip", "dnat-dns")})
        return not seen[-1]

    eventually(refused, 25.0, trouble=host.trouble)
    end = time.monotonic()
    assert all(found <= {VPN} for found in seen), "led away from the tunnel's server"
    # It holds from the first pass that heard nothing; on a loaded machine that may be one before `goes`.
    assert begin <= lost(host) <= end - hold, "the last answer did not hold"
    log = host.trouble()
    # Once for each state: resolved can be silent before it is known to be gone.
    told = [line for line in log.splitlines() if "its last answer stays valid for 3 s" in line]
    assert 1 <= len(told) == len(set(told)) <= 2, log
    assert "dns-refused" in codes(host)
    assert host.trouble().count("might be outside of the tunnel") == 1
    # The file of this qube names its provider's servers all the time, and a question goes nowhere.
    assert DNS in host.qube.read("/etc/resolv.conf")
    host.qube.wire("ip link delete wg0")  # with the device the tunnel is over
    leads(host, DNS, DNS2)


@pytest.mark.behaviour("B128")
@pytest.mark.parametrize("goes", [stopped, hanging])
def test_when_it_is_back_names_go_on_where_they_went(goes: Callable[[Daemons], None]) -> None:
    host, daemons = with_tunnel(hold=2)
    goes(daemons)
    eventually(lambda: not host.rules("ip", "dnat-dns"), 20.0, trouble=host.trouble)
    if goes is hanging:
        daemons.running["resolved"].signal(signal.SIGCONT)
    else:
        daemons.resolved()  # it finds in /run what was set for links
    eventually(lambda: host.rules("ip", "dnat-dns"), 30.0, trouble=host.trouble)
    leads(host, VPN)


@pytest.mark.behaviour("B128")
def test_a_restart_of_the_agent_meanwhile_forgets_nothing() -> None:
    host, daemons = with_tunnel(hold=3600)
    host.agent.kill()
    stopped(daemons)
    host.qube.start_agent()
    eventually(lambda: "its last answer stays valid for 3600 s" in host.trouble(), trouble=host.trouble)
    leads(host, VPN)
    assert host.qube.guestnet("dns", "sync", check=False).returncode in (0, 100)
    assert host.qube.guestnet("dns", "sync", check=False).returncode == 100
    leads(host, VPN)


@pytest.mark.behaviour("B127")
@pytest.mark.behaviour("B128")
def test_a_tunnel_that_is_down_is_not_asked_around() -> None:
    host, _daemons = with_tunnel(hold=60)
    host.qube.wire("ip link set wg0 down")
    leads(host)
    assert "dns-link-down" in codes(host)
    host.qube.wire("ip link set wg0 up")
    leads(host, VPN)


@pytest.mark.behaviour("B127")
def test_a_link_for_some_domains_is_not_asked_for_everything_also_when_that_changes() -> None:
    host, daemons = start()
    daemons.resolvectl("dns", UPLINK, ROUTER)
    host.qube.start_agent()
    leads(host, ROUTER)
    host.qube.wire(TUNNEL)
    daemons.resolvectl("dns", "wg0", VPN)
    daemons.resolvectl("domain", "wg0", "~corp.example")
    leads(host, ROUTER)
    daemons.resolvectl("default-route", "wg0", "yes")  # told by no signal of the bus
    leads(host, ROUTER, VPN)
    daemons.resolvectl("default-route", "wg0", "no")
    leads(host, ROUTER)


@pytest.mark.behaviour("B124")
def test_dns_sync_leads_by_a_vpns_file_as_the_agent_does() -> None:
    host, daemons = with_tunnel(3600)
    host.qube.wire("ip tuntap add tun5 mode tun; ip link set tun5 up")
    host.resolv_conf(WORLD)
    daemons.stop("resolved")
    leads(host, WORLD)
    recorded = f"\nservers {WORLD}\n"
    eventually(lambda: recorded in host.qube.read("/run/qubes-guestnet/owned"), trouble=host.trouble)
    host.agent.kill()  # which would put it right at once
    assert host.qube.guestnet("dns", "sync", check=False).returncode in (0, 100)
    leads(host, WORLD)


@pytest.mark.behaviour("B127")
def test_a_port_is_kept_and_what_is_for_tls_only_is_not_asked_in_clear() -> None:
    host, daemons = start()
    daemons.resolvectl("dns", UPLINK, f"{ROUTER}:5353")
    host.qube.start_agent()
    behind, outside = host.attach(), host.outside()
    leads(host, f"{ROUTER}:5353")
    behind.port.send(behind.ip, DNS, "question", dport=53)
    assert outside.hears(lambda packet: (packet.word, packet.target) == ("question", ROUTER))
    daemons.resolvectl("dnsovertls", UPLINK, "yes")
    leads(host)
    # Told when all is done, the entry of conntrack that the first question left behind too.
    eventually(lambda: "requires TLS" in host.trouble(), trouble=host.trouble)
    behind.port.send(behind.ip, DNS, "in clear", dport=53)
    behind.port.send(behind.ip, WORLD, "last")
    assert outside.hears(lambda packet: packet.word == "last")
    assert "in clear" not in outside.words()
    assert "dns-tls-only" in codes(host)
    status = json.loads(host.qube.guestnet("status", "--json", check=False).stdout)["provider"]["dns"]
    assert (status["servers"], status["problem"]) == ([], "dns-tls-only")
    daemons.resolvectl("dnsovertls", UPLINK, "opportunistic")
    leads(host, f"{ROUTER}:5353")


@pytest.mark.behaviour("B123")
@pytest.mark.behaviour("B127")
def test_the_owners_servers_count_and_a_bad_file_changes_nothing() -> None:
    host = Provider(ENTRIES, agent=False)
    host.qube.write("/etc/qubes/guestnet.toml", '[dns]\nservers = ["10.0.0.9:5353", "10.0.0.10"]\n')
    host.qube.start_agent()
    leads(host, "10.0.0.9:5353", "10.0.0.10")
    host.qube.write("/etc/qubes/guestnet.toml", '[dns]\nservers = ["name.example"]\n')
    host.resolv_conf(ROUTER, WORLD)  # makes a pass
    eventually(lambda: "'name.example' is not valid" in host.trouble(), trouble=host.trouble)
    leads(host, "10.0.0.9:5353", "10.0.0.10")
    assert "config-invalid" in codes(host)
    host.qube.write("/etc/qubes/guestnet.toml", "")
    host.agent.signal(signal.SIGHUP)
    leads(host, ROUTER, WORLD)
