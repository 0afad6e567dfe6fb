# SPDX-License-Identifier: GPL-2.0-or-later
"""A real provider in `status`, `plan` and `check`: what they say is so, and what is planned is what is then done."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest

from qubes_guestnet.core.nft.foreign_chains import PLACES
from qubes_guestnet.lab.qube import QUBESDB_FOLDER, Qube
from tests.support.eventually import eventually
from tests.support.needs import needs

ENTRIES = {
    "/qubes-netvm-network": "10.137.0.1",
    "/qubes-netvm-gateway": "10.138.0.1",
    "/qubes-netvm-primary-dns": "10.139.1.1",
    "/qubes-netvm-secondary-dns": "10.139.1.2",
    "/connected-ips": "10.137.0.5",
}
MAC = "00:16:3e:5e:6c:05"
# What Xen's hotplug command asks of the agent; the command itself needs a xenstore.
ASK = f"""
import sys
from qubes_guestnet.core.provider import vif
from qubes_guestnet.system import hotplug_socket
one = vif.described(sys.argv[2], b"{MAC}", b"vif", sys.argv[3].encode())
answer = hotplug_socket.request("/run/qubes-guestnet/vif.sock", vif.ask(sys.argv[1], one), 10)
problem, _ = vif.answered(answer)
sys.exit(problem or 0)
"""


class Provider:
    """A provider that has no provider itself, as one with the network card (behaviour B108)."""

    def __init__(self, *, flag: bool = True, server: str = "192.168.0.1", agent: bool = True) -> None:
        needs("ip", "nft", "nsenter")
        self.qube = Qube("netvm")
        self.qube.start_store(ENTRIES)
        self.qube.set_flag("qubes-network", flag)
        self.qube.write("/etc/resolv.conf", f"nameserver {server}\n" if server else "")
        if agent:
            self.qube.guestnet("rules", "load")
            self.qube.start_agent()

    def dom0_writes(self, path: str, value: str) -> None:
        words = (sys.executable, "-m", "qubes_guestnet", "lab", "store", "write", "--dir", QUBESDB_FOLDER)
        self.qube.run(*words, path, value)

    def plug(self, name: str = "vif4.0") -> None:
        """The device comes without a call of hotplug."""
        peer = name.replace("vif", "far")
        self.qube.wire(
            f"ip link add {name} address fe:ff:ff:ff:ff:ff type veth peer name {peer}; ip link set {peer} up"
        )

    def attach(self, name: str = "vif4.0", addresses: str = "10.137.0.5") -> None:
        self.plug(name)
        self.qube.run(sys.executable, "-c", ASK, "online", name, addresses)

    def stop_agent(self) -> None:
        assert self.qube.agent is not None
        self.qube.agent.stop()

    def nft(self, text: str) -> None:
        self.qube.run("nft", text)

    def lines(self, *verb: str) -> list[str]:
        return self.qube.guestnet(*verb, check=False).stdout.splitlines()

    def codes(self) -> dict[str, str]:
        found = json.loads(self.qube.guestnet("check", "--json", check=False).stdout)
        return {finding["code"]: finding["problem"] for finding in found}

    def data(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.qube.guestnet("status", "--json", check=False).stdout)["provider"]
        return found

    def log(self) -> str:
        return self.qube.agent.output() if self.qube.agent is not None else "no agent"


# --- status ----------------------------------------------------------------------------------------------------------


@pytest.mark.behaviour("B108")
def test_a_provider_without_an_uplink_is_well() -> None:
    provider = Provider()
    provider.attach()
    # The record says that offload may be on before the pass asks the kernel, which has no flowtables.
    eventually(lambda: "offload: off: " in provider.lines("status")[3], what="a refusal", trouble=provider.log)
    lines = provider.lines("status")
    assert lines[:3] == [
        "no uplink of Qubes: dom0 has set no provider for this qube",
        "provider: forwards IPv4",
        "virtual DNS: 10.139.1.1 10.139.1.2 -> 192.168.0.1 (/etc/resolv.conf)",
    ]
    assert lines[4] == "vif4.0: 10.137.0.5, configured"
    assert provider.lines("check") == ["all is well"]
    data = provider.data()
    assert (data["active"], data["forwarding"], data["rules"], data["plan"]) == (True, ["ipv4"], True, [])
    (vif,) = data["vifs"]
    assert (vif["name"], vif["mac"], vif["addresses"], vif["up"]) == ("vif4.0", MAC, ["10.137.0.5"], True)
    assert provider.qube.run("cat", "/proc/sys/net/ipv4/ip_forward").stdout == "1\n"


def test_a_plain_qube_has_no_provider_in_its_status() -> None:
    qube = Qube("plain")
    qube.start_store({})
    assert json.loads(qube.guestnet("status", "--json", check=False).stdout)["provider"] is None
    assert "provider:" not in qube.guestnet("status", check=False).stdout


def test_what_keeps_it_from_forwarding_is_said() -> None:
    provider = Provider(flag=False, agent=False)
    assert provider.lines("status")[1] == "provider: forwards nothing (service flag qubes-network is not set)"
    provider.qube.set_flag("qubes-network")
    assert provider.lines("status")[1:3] == ["provider: forwards nothing yet", "  base rules: NOT as required"]
    provider.qube.guestnet("apply")
    assert provider.lines("status")[1] == "provider: forwards IPv4"
    provider.qube.guestnet("forwarding", "off")
    assert provider.lines("status")[1] == "provider: forwards nothing (`forwarding off` was run)"


# --- plan ------------------------------------------------------------------------------------------------------------


def switch_ipv6_on(provider: Provider) -> None:
    provider.dom0_writes("/qubes-netvm-gateway6", "fe80::1")


def switch_ipv6_off(provider: Provider) -> None:
    switch_ipv6_on(provider)
    provider.qube.guestnet("apply")
    provider.dom0_writes("/qubes-netvm-gateway6", "")


def fresh(provider: Provider) -> None:
    provider.qube.guestnet("rules", "unload")
    provider.qube.run("rm", "/run/qubes-guestnet/owned")


def stop_forwarding(provider: Provider) -> None:
    provider.qube.run("sh", "-c", "echo 0 > /proc/sys/net/ipv4/ip_forward")


STATES = {
    "fresh": fresh,
    "rules that another program changed": lambda provider: provider.nft("insert rule ip qubes forward accept"),
    "rules that another program removed": lambda provider: provider.nft("flush ruleset"),
    "virtual DNS that another program changed": lambda provider: provider.nft("flush chain ip qubes dnat-dns"),
    "a vif that went": lambda provider: provider.qube.run("ip", "link", "delete", "vif4.0"),
    "IPv6 comes": switch_ipv6_on,
    "IPv6 goes": switch_ipv6_off,
    "two qubes may come": lambda provider: provider.dom0_writes("/connected-ips", "10.137.0.9 10.137.0.5 10.137.0.6"),
    "all done": lambda _: None,
    "no name server": lambda provider: provider.qube.write("/etc/resolv.conf", ""),
    "another gateway": lambda provider: provider.dom0_writes("/qubes-netvm-gateway", "10.138.0.9"),
    "another qube may come": lambda provider: provider.dom0_writes("/connected-ips", "10.137.0.5 10.137.0.6"),
    "a link is down": lambda provider: provider.qube.run("ip", "link", "set", "vif4.0", "down"),
    "an element is gone": lambda provider: provider.nft("delete element ip qubes allowed { vif4.0 . 10.137.0.5 }"),
    "its owner switched forwarding off": stop_forwarding,
    "forwarding is to stay off": lambda provider: provider.qube.guestnet("forwarding", "off"),
}
# With nothing to do. What the owner switched off is not switched on again (B133).
WELL = ("all done", "its owner switched forwarding off", "forwarding is to stay off")


@pytest.mark.parametrize("state", STATES)
def test_what_is_planned_is_done(state: str) -> None:
    provider = Provider()
    provider.attach()
    provider.stop_agent()
    STATES[state](provider)
    planned = [line.partition("  # ")[0] for line in provider.lines("plan")]
    assert bool(planned) is (state not in WELL)
    assert provider.lines("apply") == planned
    assert provider.lines("plan") == []


# --- check -----------------------------------------------------------------------------------------------------------


def stranger(provider: Provider) -> None:
    provider.plug("vif9.0")


def vif_down(provider: Provider) -> None:
    provider.stop_agent()
    provider.qube.run("ip", "link", "set", "vif4.0", "down")


def vif_gone(provider: Provider) -> None:
    provider.stop_agent()
    provider.qube.run("ip", "link", "delete", "vif4.0")


def change_rules(provider: Provider) -> None:
    provider.stop_agent()
    provider.nft("insert rule ip qubes forward accept")


def take_rules_away(provider: Provider) -> None:
    provider.stop_agent()
    provider.nft("flush ruleset")


FOREIGN = "add table inet mine; add chain inet mine f { type filter hook forward priority 0; policy drop; }"
WITHOUT_AGENT = {"agent-not-running"}
CODES = {
    "provider-flag-missing": (lambda provider: provider.qube.set_flag("qubes-network", False), {"no-provider"}),
    "forwarding-off": (lambda provider: provider.qube.guestnet("forwarding", "off"), set()),
    "dns-unknown": (lambda provider: provider.qube.write("/etc/resolv.conf", ""), set()),
    "vif-unknown": (stranger, set()),
    "vif-not-configured": (vif_down, WITHOUT_AGENT),
    "vif-gone": (vif_gone, WITHOUT_AGENT),
    "rules-changed": (change_rules, WITHOUT_AGENT),
    "rules-missing": (take_rules_away, WITHOUT_AGENT),
    "foreign-chain": (lambda provider: provider.nft(FOREIGN), set()),
}


@pytest.mark.parametrize("code", CODES)
def test_every_code_for_real(code: str) -> None:
    cause, besides = CODES[code]
    provider = Provider()
    provider.attach()
    assert provider.lines("check") == ["all is well"]
    cause(provider)
    eventually(lambda: set(provider.codes()) == {code} | besides, what=f"{code} alone", trouble=provider.log)


def test_a_plain_qube_without_rules_is_told() -> None:
    qube = Qube("plain")
    qube.start_store({})
    found = {finding["code"] for finding in json.loads(qube.guestnet("check", "--json", check=False).stdout)}
    assert "rules-missing" in found
    qube.guestnet("rules", "load")
    qube.run("nft", FOREIGN)  # a plain qube is not asked about chains
    found = {finding["code"] for finding in json.loads(qube.guestnet("check", "--json", check=False).stdout)}
    assert found == {"agent-not-running", "no-provider"}
    qube.run("nft", "delete table ip6 qubes")
    found = {finding["code"] for finding in json.loads(qube.guestnet("check", "--json", check=False).stdout)}
    assert "rules-missing" in found


@pytest.mark.behaviour("B90")
def test_chains_of_others_are_named_with_the_one_of_ours_that_they_precede() -> None:
    provider = Provider()
    provider.nft(
        "add table ip nat; add chain ip nat PREROUTING { type nat hook prerouting priority dstnat; };"
        "add table bridge b; add chain bridge b f { type filter hook forward priority -200; };"
        "add table inet late; add chain inet late f { type filter hook forward priority 10; policy drop; };"
        "add chain inet late regular"
    )
    found = provider.codes()
    assert found == {
        "foreign-chain": "nat chain ip nat PREROUTING (hook prerouting, priority -100) is at the same priority as our"
        " dnat-dns, in undefined order"
    }


def test_the_table_of_our_places_is_what_the_kernel_has() -> None:
    provider = Provider(agent=False)
    provider.qube.guestnet("rules", "load")
    listed = json.loads(provider.qube.run("nft", "-j", "list", "chains").stdout)["nftables"]
    chains = [entry["chain"] for entry in listed if "hook" in entry.get("chain", {})]
    for family in ("ip", "ip6"):
        places = {(c["name"], c["hook"], c["prio"], c["type"]) for c in chains if c["family"] == family}
        assert places == set(map(tuple, PLACES))


# --- what the pass has to keep in such states ------------------------------------------------------------------------


def elements(provider: Provider, name: str) -> str:
    return provider.qube.run("nft", "list", "set", "ip", "qubes", name).stdout


@pytest.mark.behaviour("B51")
def test_a_vif_that_comes_again_with_another_address_has_not_the_former_one() -> None:
    provider = Provider()
    provider.attach()
    provider.qube.run(sys.executable, "-c", ASK, "online", "vif4.0", "10.137.0.7")
    assert "10.137.0.5" not in elements(provider, "allowed")
    assert '"vif4.0" . 10.137.0.7' in elements(provider, "allowed")
    assert "10.137.0.5" in elements(provider, "downstream"), "it may come back"
    assert [entry["dst"] for entry in provider.qube.ip("neighbour", "show", "dev", "vif4.0")] == ["10.137.0.7"]
    assert provider.lines("plan") == []


@pytest.mark.behaviour("B95")
def test_a_gateway_that_is_not_valid_leaves_ipv6_as_it_is() -> None:
    provider = Provider()
    provider.dom0_writes("/qubes-netvm-gateway6", "fe80::1")
    provider.attach(addresses="10.137.0.5 fd09::5")
    eventually(lambda: provider.lines("plan") == [], trouble=provider.log)
    provider.dom0_writes("/qubes-netvm-gateway6", "rubbish")
    eventually(lambda: "settings-invalid" in provider.codes())
    assert provider.lines("plan") == []
    assert provider.qube.ip("-6", "route", "show", "fd09::5")


def test_an_ipv6_address_where_ipv6_is_off_leaves_nothing_to_do() -> None:
    provider = Provider()
    provider.attach(addresses="10.137.0.5 fd09::5")
    assert provider.lines("plan") == []


def test_without_nft_the_uplink_is_configured_all_the_same() -> None:
    provider = Provider()
    provider.stop_agent()
    for path, value in (("/qubes-mac", MAC), ("/qubes-ip", "10.137.0.99"), ("/qubes-gateway", "10.138.0.9")):
        provider.dom0_writes(path, value)
    provider.qube.wire(f"ip link add eth0 address {MAC} type veth peer name far0")
    provider.qube.run("sh", "-ec", "mount --bind /dev/null $(readlink -f $(command -v nft))")
    assert provider.qube.guestnet("apply", check=False).returncode == 1
    found = provider.qube.ip("address", "show", "dev", "eth0")
    assert [entry["local"] for entry in found[0]["addr_info"] if entry["family"] == "inet"] == ["10.137.0.99"]


def test_rules_come_before_the_uplink_and_forwarding_last() -> None:
    provider = Provider(agent=False)
    for path, value in (("/qubes-mac", MAC), ("/qubes-ip", "10.137.0.99"), ("/qubes-gateway", "10.138.0.9")):
        provider.dom0_writes(path, value)
    provider.qube.wire(f"ip link add eth0 address {MAC} type veth peer name far0")
    for verb in ("plan", "apply"):
        lines = [line.partition("  # ")[0] for line in provider.lines(verb)]
        assert lines[0] == "nft -f: base rules of the tables ip qubes, ip6 qubes and arp qubes"
        up = lines.index("ip link set dev eth0 up")
        assert 0 < up < lines.index("sysctl net/ipv4/ip_forward=1")
