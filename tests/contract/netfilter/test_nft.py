# SPDX-License-Identifier: GPL-2.0-or-later
"""nft: a transaction is in or it is not, every change is noticed, and a refusal is one line."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from qubes_guestnet.core.nft import listing_blocks, tables
from qubes_guestnet.errors import KernelError
from qubes_guestnet.system import programs
from qubes_guestnet.system.netlink import wire as netlink_wire
from qubes_guestnet.system.nft import kernel as nft_kernel
from qubes_guestnet.system.nft import program as nft
from tests.support.eventually import eventually
from tests.support.judge.oracle import Oracle

CHAINS = (("ip", "forward"), ("ip", "antispoof"), ("ip6", "forward"))
RULES = "".join(
    f"""
    add table {family} qubes
    add set {family} qubes allowed {{ type ifname . {address}; }}
    add set {family} qubes downstream {{ type {address}; }}
    add chain {family} qubes custom-forward
    add chain {family} qubes antispoof
    add chain {family} qubes forward {{ type filter hook forward priority filter; policy accept; }}
    add rule {family} qubes forward ct state invalid counter drop
    add rule {family} qubes forward jump custom-forward
    add rule {family} qubes antispoof iifname . {family} saddr @allowed accept
    add rule {family} qubes antispoof counter drop
    """
    for family, address in (("ip", "ipv4_addr"), ("ip6", "ipv6_addr"))
)


@pytest.fixture
def loaded(oracle: Oracle) -> Oracle:
    nft.run(RULES)
    return oracle


@pytest.fixture
def events(loaded: Oracle) -> Iterator[nft_kernel.Events]:
    with contextlib.closing(nft_kernel.Events()) as made:
        yield made


def elements(oracle: Oracle, name: str) -> int:
    (found,) = [entry["set"] for entry in oracle.ruleset() if entry.get("set", {}).get("name") == name]
    return len(found.get("elem", ()))


# --- loading -------------------------------------------------------------------------------------------------------


def test_a_transaction_is_in(loaded: Oracle) -> None:
    chains = {(c["chain"]["family"], c["chain"]["name"]) for c in loaded.ruleset() if "chain" in c}
    assert chains == {(family, name) for family in ("ip", "ip6") for name in ("forward", "antispoof", "custom-forward")}


def test_all_or_nothing_and_one_line_about_why(loaded: Oracle) -> None:
    before = loaded.ruleset()
    with pytest.raises(nft.NftError) as error:
        nft.run("add rule ip qubes forward accept\nadd rule ip qubes no-such-chain accept\n")
    assert loaded.ruleset() == before
    assert error.value.retryable
    assert str(error.value).startswith("nft: ")
    assert "No such file or directory" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_mistake_is_told_with_its_place(loaded: Oracle) -> None:
    with pytest.raises(nft.NftError, match=r"^nft: .*:2:.* syntax error"):
        nft.run("add table ip x\nnonsense\n")
    assert all(entry["table"]["name"] == "qubes" for entry in loaded.ruleset() if "table" in entry)


def test_a_text_longer_than_any_pipe(oracle: Oracle) -> None:
    lines = ["add table ip big", "add set ip big members { type ipv4_addr; }"]
    lines += [f"# {'-' * 500}\nadd element ip big members {{ 10.9.0.{number} }}" for number in range(250)] * 3
    text = "\n".join(lines) + "\n"
    assert len(text) > 5 * 65536
    nft.run(text)
    assert elements(oracle, "members") == 250


def test_no_nft(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(programs, "SEARCHED", ())
    for use in (lambda: nft.run("add table ip x\n"), lambda: nft.tables(tables.IP_FAMILIES)):
        with pytest.raises(nft.NftError, match=r"^nft is not installed; install nftables$"):
            use()  # type: ignore[no-untyped-call]


@pytest.mark.parametrize(
    ("script", "said"),
    [("sleep 60", "still running after 0.2 s"), ("echo bad luck; exit 1", "bad luck"), ("exit 7", "no error message")],
)
def test_an_nft_that_does_not_work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str, said: str) -> None:
    (tmp_path / "nft").write_text(f"#!/bin/sh\n{script}\n")
    (tmp_path / "nft").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(nft, "_SECONDS", 0.2 if "sleep" in script else 10)
    for use in (lambda: nft.run("add table ip x\n"), lambda: nft.tables(tables.IP_FAMILIES)):
        with pytest.raises(nft.NftError, match=said):
            use()  # type: ignore[no-untyped-call]


def test_a_transaction_too_long_for_the_socket_names_the_limit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In a user namespace nft may not exceed it: 2000 rules of a qube were said to need a correction in dom0."""
    (tmp_path / "nft").write_text(
        "#!/bin/sh\necho 'netlink: Error: Could not process rule: Message too long'; exit 1\n"
    )
    (tmp_path / "nft").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(nft.Refused, match=r"Message too long; .*raise net\.core\.wmem_max"):
        nft.run("add table ip x\n")


# --- listing -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        "add rule ip qubes forward accept",
        "add rule ip6 qubes forward accept",
        "insert rule ip qubes antispoof accept",
        "flush chain ip qubes antispoof",
        "add chain ip qubes forward { policy drop ; }",
        "add table ip qubes { flags dormant ; }",
    ],
)
def test_every_change_of_a_listed_chain_is_noticed(loaded: Oracle, change: str) -> None:
    before = nft.listing(CHAINS)
    assert all(word in before for word in ("ct state invalid", "ip saddr", "policy accept", "jump custom-forward"))
    loaded.run("nft", change)
    assert nft.listing(CHAINS) not in ("", before)


@pytest.mark.parametrize(
    "change",
    ["delete chain ip6 qubes forward", "delete table ip qubes", "delete table ip qubes; delete table ip6 qubes"],
)
def test_what_is_missing_makes_it_empty(loaded: Oracle, change: str) -> None:
    loaded.run("nft", change)
    assert nft.listing(CHAINS) == ""


def test_a_chain_that_never_was(loaded: Oracle) -> None:
    assert nft.listing((*CHAINS, ("ip", "forwar"))) == ""
    assert nft.listing(()) == ""


def test_what_is_not_listed_is_not_noticed(loaded: Oracle) -> None:
    """Users' chains, elements, tables of others, and what was counted."""
    loaded.run("sh", "-ec", "ip address add 10.9.0.1/32 dev lo; ip route add 192.0.2.0/24 dev lo")
    loaded.run("nft", "add chain ip qubes out { type filter hook output priority 0 ; }; add rule ip qubes out counter")
    before = nft.listing((*CHAINS, ("ip", "out")))
    loaded.run("ping", "-n", "-c", "1", "10.9.0.1")
    assert '"packets": 0' not in str(loaded.run("nft", "-j", "list", "chain", "ip", "qubes", "out").stdout)
    loaded.run("nft", "add rule ip qubes custom-forward accept; add table ip other; add chain ip qubes new")
    nft.run('add element ip qubes allowed { "vif4.0" . 10.137.0.4 }\n')
    assert nft.listing((*CHAINS, ("ip", "out"))) == before != ""


def test_a_comment_with_braces_ends_no_chain(loaded: Oracle) -> None:
    loaded.run("nft", 'add rule ip qubes forward counter comment "a } b {"; add rule ip qubes forward udp dport 5 drop')
    assert "udp dport 5 drop" in nft.listing(CHAINS)


def test_the_listing_is_in_the_order_asked_for(loaded: Oracle) -> None:
    text = nft.listing(CHAINS)
    assert text.index("chain forward") < text.index("chain antispoof") < text.index("table ip6")
    assert nft.listing((("ip", "antispoof"),)).startswith("table ip qubes {\n\tchain antispoof {\n")


def sets(families: Iterable[str]) -> str:
    """Both sets of some families."""
    wanted = tuple((family, name) for family in families for name in tables.SETS[family])
    return listing_blocks.chosen(nft.tables(tuple(families)), "set", wanted)


def test_sets(loaded: Oracle) -> None:
    assert sets(tables.IP_FAMILIES).count("set allowed") == sets(tables.IP_FAMILIES).count("set downstream") == 2
    assert "chain" not in sets(tables.IP_FAMILIES)
    many = ", ".join(f"fd09:24ef:4179::a89:{number:x}" for number in range(4000))
    nft.run(
        f'add element ip qubes allowed {{ "vif4.0" . 10.137.0.4 }}\nadd element ip6 qubes downstream {{ {many} }}\n'
    )
    found = sets(tables.IP_FAMILIES)
    assert '"vif4.0" . 10.137.0.4' in found
    assert len(found) > 65536
    assert sum(f"fd09:24ef:4179::a89:{number:x}" in found for number in (1, 0x800, 3999)) == 3
    loaded.run("nft", "delete table ip6 qubes")
    assert sets(tables.IP_FAMILIES) == ""
    assert "10.137.0.4" in sets(["ip"])


# --- noticing ------------------------------------------------------------------------------------------------------


def test_the_generation_is_another_one_after_each_change(loaded: Oracle) -> None:
    seen = [nft_kernel.generation()]
    for change in ("add rule ip qubes forward accept", "add table ip other", "flush chain ip other none"):
        loaded.run("nft", change, check=False)
        seen.append(nft_kernel.generation())
    assert seen[0] < seen[1] < seen[2] == seen[3]  # the last one was refused
    loaded.run("nft", "list", "ruleset")
    nft.listing(CHAINS)
    assert nft_kernel.generation() == seen[3]
    nft.run('add element ip qubes allowed { "vif4.0" . 10.137.0.4 }\n')
    assert nft_kernel.generation() == seen[3] + 1


def test_a_kernel_that_does_not_tell_its_generation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nft_kernel, "NFT_MSG_GETGEN", 99)
    with pytest.raises(KernelError, match="nft generation"):
        nft_kernel.generation()
    monkeypatch.setattr(netlink_wire.Netfilter, "request", lambda *_: iter([bytes(20) + struct.pack("=HH", 4, 9)]))
    with pytest.raises(KernelError, match="EPROTO"):
        nft_kernel.generation()


def test_a_change_of_anybody_wakes(loaded: Oracle, events: nft_kernel.Events) -> None:
    assert not events.drain()
    for change in ("add table inet other", "add element ip qubes downstream { 10.137.0.4 }", "flush ruleset"):
        loaded.run("nft", change)
        assert eventually(events.drain)
        assert not events.drain()
    loaded.run("nft", "list", "ruleset")
    nft_kernel.generation()
    assert not events.drain()


def test_more_changes_than_the_socket_holds_are_one_more_reason_to_look(
    loaded: Oracle, events: nft_kernel.Events
) -> None:
    members = ", ".join(f"10.{n >> 8}.{n & 255}.1" for n in range(10_000))
    nft.run(f"add element ip qubes downstream {{ {members} }}\n")
    drops = [int(line.split()[8]) for line in Path("/proc/net/netlink").read_text().splitlines()[1:]]
    assert max(drops) > 0
    assert events.drain()
    assert not events.drain()
