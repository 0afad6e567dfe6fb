# SPDX-License-Identifier: GPL-2.0-or-later
"""One pass over the kernel's model: what it makes of keys, flags, record and files."""

from __future__ import annotations

import ipaddress
from pathlib import Path

import pytest

from qubes_guestnet.core.dns.resolv_conf import HEADER
from qubes_guestnet.core.owned_state import Fallback
from qubes_guestnet.core.uplink import arp_probe
from qubes_guestnet.core.values import Owned, State
from qubes_guestnet.reconcile import record_fallback, take_down
from tests.core.model import Interface
from tests.core.qube import FOREIGN, OTHER_MAC, Qube, eth0, only, with_foreign, words
from tests.support.faults.hostile import GOOD, MAC

IPV4 = {"10.137.0.5/32", "neighbour 10.138.0.1", "0.0.0.0/0 device"}
IPV6_GATEWAY = "fe80::fcff:ffff:feff:ffff"
IPV6 = {"fd09:24ef:4179::a89:5/128", f"neighbour {IPV6_GATEWAY}", f"::/0 via {IPV6_GATEWAY} metric 1025"}
BY_GATEWAY = {"10.137.0.5/32", "neighbour 10.138.0.1", "0.0.0.0/0 via 10.138.0.1", "10.138.0.1/32 device"}
SERVERS = HEADER + b"nameserver 10.139.1.1\nnameserver 10.139.1.2\n"


@pytest.fixture
def qube(folder: Path) -> Qube:
    return Qube(folder, eth0())


def written(path: Path) -> tuple[int, int, int]:
    """Which file it is and when it was changed; to read it, which a second pass does, changes the time of access."""
    found = path.stat()
    return found.st_ino, found.st_mtime_ns, found.st_ctime_ns


def test_a_fresh_qube_gets_what_the_keys_say_and_a_second_pass_asks_for_nothing(qube: Qube) -> None:
    report = qube.run()
    assert report.errors == ()
    assert qube.shown() == IPV4 | IPV6
    assert (qube.state().up, qube.state().group) == (True, 1)
    assert qube.resolv_conf.read_bytes() == SERVERS
    assert report.settled
    assert only(report).configured
    assert [str(op) for op in report.applied] == qube.log
    files = (qube.resolv_conf, qube.folder / "run" / "owned")
    stamps = [written(path) for path in files]
    report = qube.run()
    assert qube.log == []
    assert report.applied == ()
    assert [written(path) for path in files] == stamps


def test_a_dry_run_changes_nothing_and_says_what_a_pass_would_do(qube: Qube) -> None:
    qube.run()
    qube.entries["/qubes-ip"] = b"10.137.0.6"
    qube.entries["/qubes-secondary-dns"] = b"10.139.1.3"
    qube.kernel.interfaces[2].neighbours.clear()  # so that the record names too much
    files = sorted(qube.folder.rglob("*"))
    contents = [path.read_bytes() for path in files if path.is_file()]
    before = qube.state()
    dry = qube.run(dry_run=True, revive=True, keys_written=True)
    assert (qube.log, dry.applied, qube.state()) == ([], (), before)
    assert sorted(qube.folder.rglob("*")) == files
    assert [path.read_bytes() for path in files if path.is_file()] == contents
    assert not dry.settled
    wet = qube.run()
    assert dry.plan == (*qube.log, f"publish {qube.paths.resolv_conf}: 10.139.1.1 10.139.1.3")
    assert wet.plan == ()


@pytest.mark.behaviour("B4")
def test_an_interface_that_came_after_the_keys_were_read_waits_for_newer_keys(qube: Qube) -> None:
    """On a loaded machine dom0 wrote keys and plugged eth0 in within a pass, which had read the former keys."""
    report = qube.run(present=frozenset({1}))
    assert (report.late, report.blind, report.errors, report.applied) == (True, True, (), ())
    assert (qube.shown(), qube.state().up, qube.resolv_conf.exists()) == (set(), False, False)
    report = qube.run(present=frozenset({1, 2}))
    assert (report.late, report.settled) == (False, True)
    assert qube.shown() == IPV4 | IPV6
    qube.kernel.interfaces[3] = Interface(qube.kernel.interfaces.pop(2).link._replace(ifindex=3))
    assert qube.run(present=frozenset({1, 2})).late


def test_a_dry_run_makes_no_folder(qube: Qube) -> None:
    assert qube.run(dry_run=True).errors == ()
    assert not Path(qube.paths.run).exists()


@pytest.mark.behaviour("B5")
@pytest.mark.behaviour("B7")
def test_another_provider_without_ipv6_and_with_stale_keys_of_it(folder: Path) -> None:
    """dom0 writes the new IPv4 keys and leaves the old IPv6 ones: IPv4 is right, and nothing is left of the old."""
    qube = Qube(folder, with_foreign())
    qube.flag("guestnet-gateway-route")
    qube.run()
    qube.entries |= {"/qubes-gateway": b"10.138.9.9", "/qubes-ip": b"10.137.0.6"}
    assert qube.run().errors == ()
    ours = qube.shown() - foreign_words()
    assert ours == IPV6 | {
        "10.137.0.6/32",
        "neighbour 10.138.9.9",
        "0.0.0.0/0 via 10.138.9.9",
        "10.138.9.9/32 device",
    }
    qube.entries = {key: value for key, value in qube.entries.items() if "6" not in key}
    qube.run()
    assert qube.shown() - foreign_words() == ours - IPV6
    assert FOREIGN.addresses <= qube.state().addresses
    assert FOREIGN.routes <= qube.state().routes


def foreign_words() -> set[str]:
    return {
        *map(str, FOREIGN.addresses),
        "10.8.0.0/16 via 192.168.7.1",
        "0.0.0.0/0 via 192.168.7.1 metric 50",
        "::/0 via fd77::1 metric 50",
    }


@pytest.mark.behaviour("B15")
def test_the_flags_of_a_qube_without_default_route_and_dns(qube: Qube) -> None:
    qube.run()
    qube.flag("disable-default-route")
    qube.flag("disable-dns-server")
    qube.run()
    kept = {"10.137.0.5/32", "neighbour 10.138.0.1", "10.138.0.1/32 device"}
    assert qube.shown() == kept | {"fd09:24ef:4179::a89:5/128", f"neighbour {IPV6_GATEWAY}"}
    assert qube.resolv_conf.read_bytes() == b""


@pytest.mark.behaviour("B15")
def test_a_foreign_resolv_conf_stays_where_dns_is_disabled(qube: Qube) -> None:
    qube.resolv_conf.write_bytes(b"nameserver 1.2.3.4\n")
    qube.flag("disable-dns-server")
    report = qube.run()
    assert qube.resolv_conf.read_bytes() == b"nameserver 1.2.3.4\n"
    assert report.resolver is not None
    assert not report.resolver.pending


@pytest.mark.behaviour("B13")
def test_ipv6_without_a_gateway(qube: Qube) -> None:
    del qube.entries["/qubes-gateway6"]
    assert qube.run().errors == ()
    assert qube.shown() == IPV4 | {"fd09:24ef:4179::a89:5/128"}


@pytest.mark.behaviour("B22")
def test_the_gateway_is_the_server_only_where_dom0_names_none(qube: Qube) -> None:
    qube.entries["/qubes-secondary-dns"] = b""
    qube.run()
    assert qube.resolv_conf.read_bytes() == HEADER + b"nameserver 10.139.1.1\n"
    del qube.entries["/qubes-primary-dns"]
    qube.run()
    assert qube.resolv_conf.read_bytes() == HEADER + b"nameserver 10.138.0.1\n"


def test_a_bad_value_holds_its_family_until_a_good_one_heals_it(qube: Qube) -> None:
    qube.run()
    qube.entries["/qubes-gateway"] = b"nonsense"
    qube.entries["/qubes-ip6"] = b"fd09::7"
    report = qube.run()
    assert len(report.errors) == 1
    assert qube.shown() >= IPV4 | {"fd09::7/128"}
    assert "fd09:24ef:4179::a89:5/128" not in qube.shown()
    assert only(report).configured
    qube.entries["/qubes-gateway"] = b"10.138.0.2"
    assert qube.run().errors == ()
    assert "neighbour 10.138.0.2" in qube.shown()
    assert "neighbour 10.138.0.1" not in qube.shown()


def test_a_bad_dns_value_leaves_file_and_routes_alone(qube: Qube) -> None:
    qube.run()
    index = qube.record.interfaces[0].ifindex
    record_fallback(qube.paths, index, MAC, Fallback(ipaddress.ip_address("10.138.0.1"), "slow"))
    qube.run()
    assert qube.shown() == BY_GATEWAY | IPV6
    qube.entries["/qubes-primary-dns"] = b"nonsense"
    report = qube.run()
    assert qube.log == []
    assert qube.resolv_conf.read_bytes() == SERVERS
    assert only(report).choice.reason == "fall-back: slow"


def test_without_a_valid_mac_nobody_loses_anything(folder: Path) -> None:
    qube = Qube(folder, eth0(), eth0(index=3, name="eth1", mac=OTHER_MAC))
    own = f"/net-config/{OTHER_MAC}/"
    qube.entries |= {own + "ip": b"10.5.0.1", own + "gateway": b"10.5.0.9", own + "custom": b""}
    qube.run()
    assert qube.shown(3) == {"10.5.0.1/32", "0.0.0.0/0 device metric 100"}
    qube.entries["/qubes-mac"] = b"nonsense"
    report = qube.run()
    assert qube.log == []
    assert len(report.errors) == 1
    qube.entries["/qubes-mac"] = MAC.encode()
    assert qube.run().errors == ()
    assert qube.log == []


def test_an_interface_that_is_named_no_longer_loses_what_we_made(folder: Path) -> None:
    qube = Qube(folder, with_foreign())
    qube.run()
    del qube.entries["/qubes-mac"]
    report = qube.run()
    assert report.errors == ()
    assert qube.shown() == foreign_words()
    assert not only(report).expected
    assert report.settled


def test_nothing_is_asked_of_the_kernel_where_no_interface_is_named(qube: Qube) -> None:
    qube.entries = {}
    report = qube.run()
    assert (report.interfaces, report.resolver, report.settled) == ((), None, True)
    assert not qube.resolv_conf.exists()


def test_only_the_named_interface(folder: Path) -> None:
    qube = Qube(folder, eth0(), eth0(index=3, name="eth1", mac=OTHER_MAC))
    qube.entries[f"/net-config/{OTHER_MAC}/ip"] = b"10.5.0.1"
    report = qube.run(only="eth1")
    assert qube.shown(2) == set()
    assert qube.shown(3) == {"10.5.0.1/32"}
    assert [interface.settings.mac for interface in report.interfaces] == [OTHER_MAC]
    report = qube.run(only="wlan0")
    assert (report.interfaces, report.resolver, qube.log) == ((), None, [])


@pytest.mark.behaviour("B18")
def test_taken_down_it_stays_down_until_somebody_asks_for_it(qube: Qube) -> None:
    qube.run()
    assert [str(op) for op in take_down(2, qube.kernel, qube.paths)] == ["ip link set dev eth0 down"]
    report = qube.run()
    assert qube.log == []
    assert not qube.state().up
    assert only(report).removed
    assert not only(report).expected
    assert report.settled
    qube.run(revive=True, only="eth1")
    qube.run()
    assert not qube.state().up
    qube.run(revive=True, only="eth0")
    assert qube.shown() == IPV4 | IPV6


@pytest.mark.behaviour("B18")
def test_taking_down_what_is_not_there_or_not_ours(qube: Qube) -> None:
    assert take_down(2, qube.kernel, qube.paths) == ()
    qube.run()
    assert take_down(3, qube.kernel, qube.paths) == ()
    del qube.kernel.interfaces[2]
    assert take_down(2, qube.kernel, qube.paths) == ()
    assert qube.log[-1] != "ip link set dev eth0 down"


@pytest.mark.behaviour("B7")
def test_keys_without_an_interface_are_no_interface(qube: Qube) -> None:
    """Before its first interface a qube waits for it; after one went, only dom0's next keys announce another."""
    interface = qube.kernel.interfaces.pop(2)
    report = qube.run(keys_written=True)
    assert only(report).expected
    assert not report.settled
    assert report.resolver is None
    qube.kernel.interfaces[2] = interface
    assert qube.run().settled
    del qube.kernel.interfaces[2]
    report = qube.run()
    assert (only(report).detached, only(report).expected, report.settled) == (True, False, True)
    assert qube.run().settled
    report = qube.run(keys_written=True)
    assert (only(report).detached, only(report).expected, report.settled) == (False, True, False)


def test_a_new_interface_of_the_same_mac_starts_empty(qube: Qube) -> None:
    qube.run()
    qube.kernel.interfaces = {5: eth0(index=5, name="enX0")}
    assert qube.run().settled
    assert qube.shown(5) == IPV4 | IPV6
    assert [entry.ifindex for entry in qube.record.interfaces] == [5]


def test_an_interface_of_another_driver_is_left_alone(folder: Path) -> None:
    """#1882: a passed-through card with the qube's MAC."""
    card = Interface(eth0().link.__class__(2, "ens5", MAC, driver="e1000e"))
    qube = Qube(folder, card)
    assert only(qube.run()).link is None
    assert card.state() == State()


def test_the_style_of_the_file(qube: Qube) -> None:
    Path(qube.paths.config).write_text('[uplink]\ndefault-route = "gateway"\n')
    assert only(qube.run()).choice.reason == "guestnet.toml"
    assert qube.shown() == BY_GATEWAY | IPV6
    Path(qube.paths.config).write_text("[uplink\n")
    report = qube.run()
    assert qube.shown() == IPV4 | IPV6
    assert "guestnet.toml" in words(report)[0]


def test_a_fallback_holds_for_its_gateway(qube: Qube) -> None:
    report = qube.run()
    question = arp_probe.question(report.settings, only(report).settings, only(report).link, only(report).choice.style)
    assert question is not None
    record_fallback(qube.paths, 99, MAC, arp_probe.fallback(question))
    qube.run()
    assert qube.shown() == IPV4 | IPV6
    record_fallback(qube.paths, question.ifindex, question.mac, arp_probe.fallback(question))
    report = qube.run()
    assert qube.shown() == BY_GATEWAY | IPV6
    assert only(report).choice.reason.startswith("fall-back: no ARP answer for 10.139.1.1 and 10.139.1.2 within 100 ms")
    qube.run()
    assert qube.log == []
    qube.entries["/qubes-gateway"] = b"10.138.0.2"
    qube.run()
    assert "0.0.0.0/0 device" in qube.shown()
    qube.entries["/qubes-gateway"] = GOOD["/qubes-gateway"]
    qube.run()
    assert qube.shown() == BY_GATEWAY | IPV6


def test_the_record_says_what_we_made_and_nothing_else(folder: Path) -> None:
    qube = Qube(folder, with_foreign())
    qube.entries["/qubes-ip"] = b"192.168.7.7"
    qube.entries["/qubes-netmask"] = b"24"
    qube.run()
    addresses = frozenset({ipaddress.ip_interface("fd09:24ef:4179::a89:5/128")})
    gateways = frozenset(map(ipaddress.ip_address, ("10.138.0.1", IPV6_GATEWAY)))
    assert qube.record.interfaces[0].owned == Owned(addresses, gateways)


def test_what_the_user_took_over_is_his(qube: Qube) -> None:
    """He takes our IPv6 address away while dom0 asks for another, and sets the same by hand later."""
    qube.run()
    address = ipaddress.ip_interface("fd09:24ef:4179::a89:5/128")
    qube.kernel.interfaces[2].addresses.remove(address)
    qube.entries["/qubes-ip6"] = b"fd09::7"
    qube.run()
    qube.kernel.interfaces[2].addresses.append(address)
    qube.entries["/qubes-ip6"] = b"fd09::8"
    qube.run()
    assert address in qube.state().addresses
    assert ipaddress.ip_interface("fd09::7/128") not in qube.state().addresses


def test_of_two_interfaces_one_changes(folder: Path) -> None:
    qube = Qube(folder, eth0(), eth0(index=3, name="eth1", mac=OTHER_MAC))
    qube.entries[f"/net-config/{OTHER_MAC}/ip"] = b"10.5.0.1"
    assert qube.run().settled
    qube.entries[f"/net-config/{OTHER_MAC}/ip"] = b"10.5.0.2"
    assert qube.run().settled
    assert qube.log == ["ip address add 10.5.0.2/32 dev eth1", "ip address del 10.5.0.1/32 dev eth1"]


def test_of_two_interfaces_one_is_not_there(folder: Path) -> None:
    qube = Qube(folder, eth0(index=3, name="eth1", mac=OTHER_MAC))
    qube.entries[f"/net-config/{OTHER_MAC}/ip"] = b"10.5.0.1"
    report = qube.run()
    assert [interface.configured for interface in report.interfaces] == [False, True]
    assert not report.settled
