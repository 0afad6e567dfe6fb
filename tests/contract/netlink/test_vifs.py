# SPDX-License-Identifier: GPL-2.0-or-later
"""The interfaces to the qubes behind this one: one by its name, and all of them."""

from __future__ import annotations

import pytest

from qubes_guestnet.errors import KernelError
from qubes_guestnet.system.netlink import decode as netlink_looking
from qubes_guestnet.system.netlink import rtnl as netlink
from tests.support.judge.oracle import Oracle

MAC = "00:16:3e:5e:6c:05"
BACKEND_MAC = "fe:ff:ff:ff:ff:ff"


@pytest.fixture
def vif(oracle: Oracle) -> str:
    oracle.run("ip", "link", "add", "vif4.0", "address", BACKEND_MAC, "type", "veth", "peer", "name", "qube")
    oracle.run("sh", "-ec", "ip link set vif4.0 group 2 mtu 1400; ip link set vif4.0 up; ip link set qube up")
    return "vif4.0"


def test_by_name_it_is_what_the_kernel_shows(oracle: Oracle, kernel: netlink.Kernel, vif: str) -> None:
    shown = oracle.link(vif)
    found = kernel.link_named(vif)
    assert shown is not None
    assert found is not None
    assert (found.name, found.ifindex, found.mac) == (vif, shown["ifindex"], BACKEND_MAC)
    assert (found.group, found.mtu, found.driver, found.up, found.running) == (2, 1400, "veth", True, True)
    oracle.run("ip", "link", "set", vif, "down")
    found = kernel.link_named(vif)
    assert found is not None
    assert (found.up, found.running) == (False, False)


def test_by_name_and_by_address_are_the_same(kernel: netlink.Kernel) -> None:
    (by_address,) = kernel.links(frozenset({MAC}))
    assert kernel.link_named("eth0") == by_address


def test_who_is_not_there_is_none(oracle: Oracle, kernel: netlink.Kernel, vif: str) -> None:
    assert kernel.link_named("vif4.1") is None
    oracle.run("ip", "link", "delete", vif)
    assert kernel.link_named(vif) is None
    assert kernel.link_named("eth0") is not None


def test_the_alternative_name_of_another_is_not_its_name(oracle: Oracle, kernel: netlink.Kernel) -> None:
    oracle.run("ip", "link", "property", "add", "dev", "eth1", "altname", "vif9.0")
    assert kernel.link_named("vif9.0") is None
    assert kernel.vifs() == ()


def test_a_name_that_cannot_be_is_an_error(kernel: netlink.Kernel) -> None:
    with pytest.raises(KernelError, match="netlink link"):
        kernel.link_named("a-name-longer-than-fifteen")


def test_it_costs_one_question_however_many_there_are(
    kernel: netlink.Kernel, vif: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    real = kernel._request

    def request(message: object, kind: int, flags: int, *rest: object) -> list[object]:
        asked.append(flags)
        return real(message, kind, flags, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(kernel, "_request", request)
    assert kernel.link_named(vif) is not None
    assert asked == [0]  # not NLM_F_DUMP


@pytest.mark.behaviour("B8")
def test_renamed_between_its_name_and_its_driver(
    oracle: Oracle, kernel: netlink.Kernel, vif: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, renames = netlink.driver, []

    def driver(name: str) -> str:
        if not renames:
            renames.append(name)
            oracle.run("sh", "-ec", f"ip link set {vif} down; ip link set {vif} name vif5.0")
        return real(name)

    monkeypatch.setattr(netlink, "driver", driver)
    assert kernel.link_named(vif) is None
    renames.clear()
    oracle.run("sh", "-ec", f"ip link set vif5.0 name {vif}")
    assert [link.name for link in kernel.vifs()] == ["vif5.0"]


def test_an_interface_that_never_keeps_its_name_is_an_error_that_may_heal(
    kernel: netlink.Kernel, vif: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(netlink, "_index", lambda _name: 0)
    for look in (lambda: kernel.link_named(vif), kernel.vifs):
        with pytest.raises(KernelError) as error:
            look()  # type: ignore[no-untyped-call]
        assert error.value.retryable


def test_only_those_that_xen_names_so(oracle: Oracle, kernel: netlink.Kernel, vif: str) -> None:
    for number, name in enumerate(("vif", "vif4", "vif4.", "vif.0", "vif04.0", "vif40000.0", "xvif7.0", "vif7.0x")):
        oracle.run("ip", "link", "add", name, "type", "veth", "peer", "name", f"other{number}")
    oracle.run(
        "sh", "-ec", "ip link add vif8.0 type bridge; ip tuntap add vif8.1 mode tap; ip tuntap add vif8.2 mode tun"
    )
    oracle.run("ip", "link", "add", "vif32752.12", "type", "veth", "peer", "name", "high")
    oracle.run("ip", "link", "set", "other0", "alias", "vif4.0")
    assert {link.name for link in kernel.vifs()} == {vif, "vif32752.12"}


def test_250_of_them(oracle: Oracle, kernel: netlink.Kernel) -> None:
    pairs = "".join(
        f"link add vif{n}.0 address {BACKEND_MAC} group 2 type veth peer name q{n}\\n" for n in range(1, 251)
    )
    oracle.run("sh", "-ec", f"printf '{pairs}' | ip -batch -")
    found = kernel.vifs()
    assert {link.name: link.ifindex for link in found} == {
        link["ifname"]: link["ifindex"] for link in oracle.ip("link", "show", "group", "2")
    }
    assert len(found) == 250
    assert {(link.mac, link.group, link.driver) for link in found} == {(BACKEND_MAC, 2, "veth")}


def test_others_are_not_read(oracle: Oracle, kernel: netlink.Kernel, vif: str, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    real = netlink_looking.LinkReply.decode

    def decode(self: netlink_looking.LinkReply) -> None:
        real(self)
        read.append(self.get_attr("IFLA_IFNAME"))

    monkeypatch.setattr(netlink_looking.LinkReply, "decode", decode)
    assert len(kernel.vifs()) == 1
    assert read == [vif]
