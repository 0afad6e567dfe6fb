# SPDX-License-Identifier: GPL-2.0-or-later
"""`[dns]` of guestnet.toml: servers of the owner's, and how they are written."""

from __future__ import annotations

import ipaddress

import pytest

from qubes_guestnet.core.dns import upstream_servers
from qubes_guestnet.core.dns.upstream_servers import Choice, DnsSettings, Heard, NameFacts, choose
from qubes_guestnet.core.endpoint import Endpoint
from tests.core.test_upstream_servers import OURS, OWN, OWN_ENDPOINTS, STUB, UPLINK, VPN, at, link


@pytest.mark.behaviour("B123")
def test_servers_of_the_owner_count_before_all_others() -> None:
    facts = NameFacts(OWN, configured=at("10.8.0.1", "10.8.0.2:5353"), heard=Heard((UPLINK, VPN)), resolv_conf=STUB)
    assert choose(facts) == Choice(at("10.8.0.1", "10.8.0.2:5353"), "guestnet.toml, [dns] servers")
    own = facts._replace(configured=at("10.139.1.1"))
    assert choose(own).servers == at("10.139.1.1")
    choice = choose(own._replace(uplink=False))
    assert choice.servers == ()
    assert "there is no uplink" in choice.reason


@pytest.mark.behaviour("B123")
def test_no_virtual_address_leads_to_itself() -> None:
    card = NameFacts(virtual=OWN, configured=at("10.139.1.1", "10.8.0.1", "10.139.1.2:5353"))
    assert choose(card).servers == at("10.8.0.1")
    only = card._replace(configured=at("10.139.1.1", "10.139.1.2"))
    assert (choose(only).servers, upstream_servers.leads_nowhere(only)) == ((), True)
    assert "only the virtual DNS addresses" in choose(only).reason
    proxy = only._replace(own=OWN)
    assert (choose(proxy).servers, upstream_servers.leads_nowhere(proxy)) == (OWN_ENDPOINTS, False)
    none = card._replace(configured=None)
    assert not upstream_servers.leads_nowhere(none)
    assert choose(none._replace(resolv_conf=OURS)).servers == ()
    assert choose(none._replace(resolv_conf=OURS + b"nameserver 9.9.9.9\n")).servers == at("9.9.9.9")
    assert choose(none._replace(heard=Heard((link(0, "10.139.1.1", "9.9.9.9"),)))).servers == at("9.9.9.9")


@pytest.mark.parametrize(
    ("table", "settings"),
    [
        ({}, DnsSettings()),
        ({"servers": ["10.8.0.1", "10.8.0.2", "10.8.0.1:53"]}, DnsSettings(at("10.8.0.1", "10.8.0.2"))),
        ({"servers": ["10.8.0.1"]}, DnsSettings(at("10.8.0.1"))),
        ({"servers": ["10.8.0.1:5353", "9.9.9.9"], "hold": 0}, DnsSettings(at("10.8.0.1:5353", "9.9.9.9"), 0)),
        ({"hold": 3600}, DnsSettings(hold=3600)),
    ],
)
def test_the_table_of_names(table: dict[str, object], settings: DnsSettings) -> None:
    assert upstream_servers.parse_settings(table) == settings


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"servers": "10.8.0.1"}, "is a list"),
        ({"servers": []}, "is a list"),
        *(
            ({"servers": [bad]}, "is a list of IPv4 addresses")
            for bad in (
                7, None, "", "name.example", "10.8.0.1:", "10.8.0.1:0", "10.8.0.1:65536", "10.8.0.1:+53",
                "10.8.0.1:5 3",
                "010.8.0.1", "10.8.0", "fd00::1", "[fd00::1]:53", "127.0.0.1", "0.0.0.0", "224.0.0.1", "10.8.0.1/24",
                "10.8.0.1\n", "10.8.0.1 ", "10.8.0.1;drop", "10.8.0.1:53:53", ["10.8.0.1"],
            )
        ),
        *(({"hold": bad}, "number of seconds") for bad in (-1, 3601, 1.5, "60", True)),
    ],
)  # fmt: skip
def test_what_is_not_valid_in_it_is_named_with_what_would_be_right(table: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        upstream_servers.parse_settings(table)


def test_how_a_server_is_written() -> None:
    assert [str(server) for server in at("10.8.0.1", "10.8.0.1:5353", "fd00::1")] == [
        "10.8.0.1", "10.8.0.1:5353", "fd00::1",
    ]  # fmt: skip
    assert str(Endpoint(ipaddress.ip_address("fd00::1"), 853)) == "[fd00::1]:853"
