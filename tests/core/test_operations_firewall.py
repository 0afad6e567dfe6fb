# SPDX-License-Identifier: GPL-2.0-or-later
"""Operations for the firewall of single qubes: what is one transaction with another, and how QubesDB is written."""

from __future__ import annotations

import ipaddress
from types import SimpleNamespace

import pytest

from qubes_guestnet import flow
from qubes_guestnet.core.dns.redirection_operations import LoadRedirection
from qubes_guestnet.core.endpoint import Endpoint
from qubes_guestnet.core.firewall import consequences
from qubes_guestnet.core.firewall.name_export import export
from qubes_guestnet.dispatch import of_firewall
from qubes_guestnet.errors import GuestnetError

VIRTUAL = (ipaddress.IPv4Address("10.139.1.1"),)
SERVERS = (Endpoint(ipaddress.ip_address("192.0.2.1")),)


@pytest.mark.behaviour("B45")
def test_a_redirection_takes_the_rules_for_dns_along_and_works_alone_where_both_are_refused() -> None:
    op = LoadRedirection(VIRTUAL, (*SERVERS, Endpoint(ipaddress.ip_address("2001:db8::53"))), allows=True)
    alone, both = op._replace(allows=False).text, op.text
    assert both.removeprefix(alone).splitlines() == [
        "flush set ip qubes-firewall dns-addr",
        f"add element ip qubes-firewall dns-addr {{ {SERVERS[0].address} }}",
    ]
    loaded: list[LoadRedirection] = []

    def load(op: LoadRedirection) -> None:
        if op.allows:
            raise GuestnetError("refused")
        loaded.append(op)

    outcome = flow.carry_out((op,), {"LoadRedirection": load})
    assert (loaded, outcome.failed) == ([op._replace(allows=False)], ())
    assert op._replace(allows=False).instead is None


@pytest.mark.behaviour("B78")
def test_names_of_all_qubes_are_written_by_one_connection() -> None:
    said: list[tuple[object, ...]] = []

    class Store:
        def __init__(self) -> None:
            said.append(("connected",))

        def rm(self, *words: object) -> None:
            said.append(("rm", *words))

        def write(self, *words: object) -> None:
            said.append(("write", *words))

        def close(self) -> None:
            said.append(("closed",))

    addresses = [ipaddress.ip_address(f"10.137.0.{number}") for number in range(4, 54)]
    op = consequences.ExportNames(tuple(export(each, {"a.org": addresses[:1]}) for each in addresses))
    of_firewall(SimpleNamespace(), Store)["ExportNames"](op)  # type: ignore[arg-type]
    assert (said[0], said[-1], said.count(("connected",))) == (("connected",), ("closed",), 1)
    assert said[1:3] == [("rm", "/dns/10.137.0.4/"), ("write", "/dns/10.137.0.4/a.org", b"{'10.137.0.4/32'}")]
    assert len(said) == 2 + 2 * 50
