# SPDX-License-Identifier: GPL-2.0-or-later
"""What is encoded as netlink messages is what nft would have loaded: nft lists the same after the one and the other."""

from __future__ import annotations

import ipaddress
import os
import subprocess

import pytest

from qubes_guestnet.core.firewall import ruleset
from qubes_guestnet.core.nft import limits, rules_text
from qubes_guestnet.core.nft.limits import Kept, Limits
from qubes_guestnet.core.nft.tables import IP_FAMILIES
from qubes_guestnet.provider.ruleset_generation import Transactions
from qubes_guestnet.system import programs
from qubes_guestnet.system.nft import encode
from qubes_guestnet.system.nft import program as nft
from tests.support.judge.oracle import Oracle

MAC = "00:16:3e:5e:6c:05"
BASE = rules_text.base(ipv6=True) + "".join(ruleset.tables(version, ()) for version in (4, 6))
SERVER = (ipaddress.IPv4Address("192.0.2.1"),)
LIMITED = (Limits(), Limits(50, 500), Limits(60000, 1000000))
KEPT = (Kept(), Kept(30, 30, 30), Kept(1, 7, 900, 8, 86400))


def addresses(number: int) -> tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, ...]:
    return ipaddress.IPv4Address(f"10.137.0.{number}"), ipaddress.IPv6Address(f"fd09:24ef:4179::a89:{number:x}")


def attach(number: int, few: Limits | None = None, kept: Kept | None = None) -> str:
    name = f"vif{number}.0"
    limited = limits.attach(name, (4, 6), few or Limits(), kept or Kept())
    return limited + rules_text.attach(name, addresses(number), MAC)


def detach(number: int) -> str:
    name = f"vif{number}.0"
    return rules_text.detach(name, addresses(number), addresses(number)[:1], MAC) + limits.detach(name)


TEXTS: dict[str, tuple[str, ...]] = {
    "a vif comes": (attach(4),),
    "another one": (attach(4), attach(5)),
    "IPv4 alone, without ARP": (limits.attach("vif4.0", (4,), Limits()), rules_text.attach("vif4.0", addresses(4), "")),
    "it comes again": (attach(4), attach(4, Limits(60, 600))),
    "it comes again the same": (attach(4), attach(4)),
    "it goes": (attach(4), attach(5), detach(4)),
    "one goes that was not there": (attach(4), detach(5)),
    "the longest name": (limits.attach("vif32751.65535", (4,), Limits()),),
    "addresses come and go": (
        rules_text.downstream(addresses(4) + addresses(5), ()),
        rules_text.downstream(addresses(6), addresses(4) + addresses(7)),
    ),
    "many at once": (rules_text.downstream(map(ipaddress.IPv4Address, range(0x0A090000, 0x0A090384)), ()),),
    "name servers": (
        rules_text.firewall_servers(SERVER),
        rules_text.firewall_servers(map(ipaddress.IPv4Address, ("192.0.2.3", "192.0.2.2"))),
        rules_text.firewall_servers(()),
    ),
    "names in rules": (
        ruleset.name(4, "example.org", SERVER, make=True)
        + ruleset.name(6, "x" * 63, addresses(4)[1:], make=True),
        ruleset.name(4, "example.org", addresses(5)[:1], SERVER) + ruleset.without_name(6, "x" * 63),
        ruleset.dns_servers(6, addresses(6)[1:]) + ruleset.name(4, "empty.example.org", (), make=True),
    ),
    **{f"{few}; {kept}": (attach(4, few, kept),) for few in LIMITED for kept in KEPT},
}  # fmt: skip


def listed() -> str:
    """All there is, as nft says it and without counters."""
    return subprocess.run(["nft", "-s", "list", "ruleset"], check=True, capture_output=True, text=True).stdout


def encoded(text: str) -> encode.Transaction:
    found = encode.transaction(text)
    assert found is not None, [line for line in text.splitlines() if encode.transaction(f"{line}\n") is None]
    return found


@pytest.mark.behaviour("B48")
@pytest.mark.parametrize("name", TEXTS)
def test_messages_load_what_nft_loads(oracle: Oracle, name: str) -> None:
    seen = []
    for load in (nft.run, lambda text: encoded(text).commit()):
        nft.run(f"flush ruleset\n{BASE}")
        stages = []
        for text in TEXTS[name]:
            load(text)
            stages.append(listed())
        seen.append(stages)
    assert seen[0] == seen[1]
    assert seen[0][-1] != BASE


def test_what_was_loaded_can_be_loaded_again_from_the_listing(oracle: Oracle) -> None:
    nft.run(BASE)
    encoded(attach(4)).commit()
    before = listed()
    nft.run(f"flush ruleset\n{before}")
    assert listed() == before


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n",
        "add element ip qubes allowed { }\n",
        "add element ip qubes allowed { 10.0.0.1 }\n",
        'add element ip qubes allowed { "vif4.0" . 10.0.0.256 }\n',
        'add element ip qubes allowed { "vif4.0" }\n',
        'add element ip qubes allowed { "a-name-of-sixteen" . 10.0.0.1 }\n',
        'add element arp qubes allowed { "vif4.0" . 10.0.0.1 . 00:16:3e }\n',
        'add element ip qubes-limits qubes { "vif4.0" }\n',
        "add element ip qubes mine { 10.0.0.1 }\n",
        "add element ip mine downstream { 10.0.0.1 }\n",
        "add element ip6 qubes downstream { 10.0.0.1 }\n",
        "add element ip qubes downstream { 10.0.0.0/8 }\n",
        "add element ip qubes downstream { 10.0.0.1 }\nnonsense\n",
        "add element ip qubes downstream { 10.0.0.1 }\n" * 90000,
        "add rule ip qubes-limits vif4.0 ip daddr 10.0.0.1 accept\n",
        "add rule ip qubes-limits vif4.0 accept nonsense\n",
        "add chain ip qubes-limits x { type nat hook input priority 0; }\n",
        "add set ip qubes-firewall n-x { type ipv6_addr; }\n",
        "add set arp qubes x { type ipv4_addr; }\n",
        "add element ip qubes-firewall n- { 10.0.0.1 }\n",
        "add table inet qubes-limits\n",
        "add table ip qubes-limits; flush ruleset\n",
        "flush ruleset\n",
    ],
)
def test_anything_else_is_nfts(text: str) -> None:
    """Of what it does not know, or not as a whole, it makes nothing."""
    assert encode.transaction(text) is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("delete element ip qubes downstream { 10.137.0.9 }\n", "No such file or directory"),
        ("flush set ip qubes-firewall no-such-set\n", "No such file or directory"),
        ("add rule ip qubes-limits no-such-chain accept\n", "No such file or directory"),
        ("delete chain ip qubes-limits vif4.0\n", "Device or resource busy"),
        ("delete set ip qubes-limits vif4.0-names\n", "Device or resource busy"),
        ('add element ip qubes-limits qubes { "vif4.0" : goto vif4.0-names }\n', "File exists"),
    ],
)
def test_a_refusal_is_the_same_error_and_nothing_is_in_force(oracle: Oracle, text: str, words: str) -> None:
    nft.run(BASE)
    encoded(attach(4)).commit()
    before = listed()
    whole = "add element ip qubes downstream { 10.137.0.8 }\n" + text
    for load in (nft.run, lambda text: encoded(text).commit()):
        with pytest.raises(nft.Refused, match=words) as refused:
            load(whole)
        assert refused.value.refused
        assert str(refused.value).startswith("nft: ")
        assert "\n" not in str(refused.value)
        assert listed() == before
    with pytest.raises(nft.Refused, match=f"nft: {words}: {text.split()[0]} "):
        encoded(whole).commit()


def test_without_the_right_to_it_nothing_is_loaded(oracle: Oracle) -> None:
    nft.run(BASE)
    child = os.fork()
    if not child:
        status = 1
        try:
            os.setgroups([]) if os.getuid() == 0 and os.access("/proc/self/setgroups", os.W_OK) else None
            subprocess.run(["true"], check=True)
            _without_privilege()
            encoded(rules_text.downstream(addresses(4), ())).commit()
        except nft.Refused as refused:
            status = 0 if str(refused) == "nft: Operation not permitted" else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def _without_privilege() -> None:
    """Give up all capabilities."""
    import ctypes

    header, data = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    if ctypes.CDLL(None, use_errno=True).capset(header, data) != 0:
        raise OSError(ctypes.get_errno(), "capset")


def test_a_vif_takes_no_process_of_nft(oracle: Oracle, monkeypatch: pytest.MonkeyPatch) -> None:
    nft.run(BASE)
    transactions = Transactions()
    monkeypatch.setattr(programs, "SEARCHED", ())
    monkeypatch.setenv("PATH", "")
    for text in (attach(4), detach(4), rules_text.downstream(addresses(4), ()), rules_text.firewall_servers(SERVER)):
        before = transactions.mark()
        transactions.run(text)
        assert transactions.undisturbed(before), "it is counted as a transaction of ours"
    with pytest.raises(nft.NftError, match="nft is not installed"):
        transactions.run(rules_text.base(ipv6=True))


def test_a_text_for_both_families_and_arp_leaves_other_tables_alone(oracle: Oracle) -> None:
    nft.run(BASE)
    nft.run("add table ip mine\nadd set ip mine qubes { type ipv4_addr; elements = { 192.0.2.1 } }\n")
    mine = [entry for entry in oracle.ruleset() if "mine" in str(entry)]
    encoded(attach(4)).commit()
    assert [entry for entry in oracle.ruleset() if "mine" in str(entry)] == mine
    for family in IP_FAMILIES:
        assert '"vif4.0"' in subprocess.run(
            ["nft", "list", "set", family, "qubes", "allowed"], check=True, capture_output=True, text=True
        ).stdout  # fmt: skip
