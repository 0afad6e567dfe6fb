# SPDX-License-Identifier: GPL-2.0-or-later
"""Two qubes with one address (behaviour B144): which they are, and what `status` says. Pure."""

from __future__ import annotations

import ipaddress

import pytest

from qubes_guestnet.core import endpoint
from qubes_guestnet.core.dns.upstream_servers import Choice
from qubes_guestnet.core.provider.provider_report import ProviderReport
from qubes_guestnet.core.provider.settings import ProviderSettings
from qubes_guestnet.core.provider.vif import Vif, duplicates
from qubes_guestnet.core.provider.vif_order import VifReport
from qubes_guestnet.core.render import provider as render_provider
from qubes_guestnet.core.render.data import Beside, as_data
from qubes_guestnet.core.report import Report
from qubes_guestnet.core.settings import Settings
from qubes_guestnet.core.values import Link
from qubes_guestnet.core.vif_name import parse_name

MAC = "00:16:3e:5e:6c:05"
LINK = Link(7, "vif4.0", "fe:ff:ff:ff:ff:ff", up=True, group=2, driver="vif")


def one(name: str, *addresses: str, mac: str = MAC, kind: str = "vif") -> Vif:
    return Vif(parse_name(name), mac, kind, tuple(map(ipaddress.ip_address, addresses)))


A, B = "10.137.0.4", "fd09::4"
SHARED: dict[str, tuple[tuple[Vif, ...], dict[tuple[str, ...], set[str]]]] = {
    "each its own": ((one("vif4.0", A), one("vif5.0", "10.137.0.5"), one("vif6.0")), {}),
    "two qubes": ((one("vif4.0", A, B), one("vif9.0", A, B)), {("vif4.0", "vif9.0"): {A, B}}),
    "two qubes, started one after the other": ((one("vif4.0", A), one("vif5.0", A)), {("vif4.0", "vif5.0"): {A}}),
    "three, and an address of two": (
        (one("vif4.0", A), one("vif9.0", B, A), one("vif12.1", A, B)),
        {("vif4.0", "vif9.0", "vif12.1"): {A}, ("vif9.0", "vif12.1"): {B}},
    ),
    "two interfaces of one domain": ((one("vif4.0", A), one("vif4.1", A)), {}),
    "an HVM and its stub domain": ((one("vif4.0", A, kind="vif_ioemu"), one("vif5.0", A)), {}),
    "the stub domain comes first": ((one("vif5.0", A, kind="vif_ioemu"), one("vif4.0", A, kind="vif_ioemu")), {}),
    "another MAC": (
        (one("vif4.0", A, kind="vif_ioemu"), one("vif5.0", A, mac="00:16:3e:5e:6c:99")),
        {("vif4.0", "vif5.0"): {A}},
    ),
    "another domain": ((one("vif4.0", A, kind="vif_ioemu"), one("vif6.0", A)), {("vif4.0", "vif6.0"): {A}}),
    "an HVM and another qube": (
        (one("vif4.0", A, kind="vif_ioemu"), one("vif5.0", A), one("vif9.0", A)),
        {("vif4.0", "vif5.0", "vif9.0"): {A}},
    ),
}


@pytest.mark.behaviour("B144")
@pytest.mark.behaviour("B58")
@pytest.mark.parametrize(("vifs", "wanted"), SHARED.values(), ids=SHARED.keys())
def test_addresses_of_more_than_one_qube(vifs: tuple[Vif, ...], wanted: dict[tuple[str, ...], set[str]]) -> None:
    found = {names: set(map(str, addresses)) for names, addresses in duplicates(vifs).items()}
    assert found == wanted


@pytest.mark.behaviour("B144")
def test_whose_address_it_is_besides() -> None:
    vifs = (one("vif4.0", A, B), one("vif9.0", A), one("vif12.0", B, A))
    report = ProviderReport(
        ProviderSettings(), True, ruled=True, names=Choice(endpoint.of((ipaddress.IPv4Address("192.168.1.1"),)), "x"),
        vifs=tuple(VifReport(vif, LINK) for vif in vifs[:2]), duplicates=duplicates(vifs),
    )  # fmt: skip
    data = as_data(Report(Settings(), provided=report), Beside())["provider"]["vifs"]
    assert [vif["duplicate_of"] for vif in data] == [["vif9.0", "vif12.0"], ["vif4.0", "vif12.0"]]
    assert list(map(str, render_provider.as_text(report)))[-2:] == [
        "vif4.0: 10.137.0.4 fd09::4, configured; DUPLICATE ADDRESS, same as vif9.0 vif12.0",
        "vif9.0: 10.137.0.4, configured; DUPLICATE ADDRESS, same as vif4.0 vif12.0",
    ]
