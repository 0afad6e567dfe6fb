# SPDX-License-Identifier: GPL-2.0-or-later
"""The provider's half of a report as data, for `status --json`."""

from __future__ import annotations

import json
from typing import Any

from qubes_guestnet.core.provider.provider_report import Lines, ProviderReport
from qubes_guestnet.core.provider.vif import Mapping
from qubes_guestnet.core.provider.vif_order import VifReport
from qubes_guestnet.core.render.data import Beside, as_data
from qubes_guestnet.core.render.traffic import Counter, Traffic
from qubes_guestnet.core.report import Report
from qubes_guestnet.core.settings import Settings
from tests.core.test_provider_report import ADDRESS, LINK, MAC, SEEN, SEEN_GATEWAY, TODO, VIF, WELL


def data_of(report: ProviderReport) -> Any:
    data = as_data(Report(Settings(), provided=report), Beside())["provider"]
    assert json.loads(json.dumps(data)) == data
    return data


def test_as_data() -> None:
    data = data_of(WELL._replace(vifs=(), after=Lines(("x",))))
    assert data == {
        "active": True,
        "ipv6": False,
        "ipv6_refused": False,
        "forwarding": ["ipv4"],
        "not_forwarded": [],
        "closed": False,
        "stopped": [],
        "hold": "",
        "lost": [],
        "unfiltered": False,
        "firewall": "",
        "rules": True,
        "held": [],
        "dns": {
            "virtual": ["10.139.1.1", "10.139.1.2"],
            "servers": ["192.168.1.1"],
            "redirected": [
                {"virtual": "10.139.1.1", "server": "192.168.1.1"},
                {"virtual": "10.139.1.2", "server": "192.168.1.1"},
            ],
            "reason": "/etc/resolv.conf",
            "problem": "",
        },
        "offload": "not checked yet: the resident agent decides it",
        "offloading": False,
        "firewall_changed": [],
        "firewall_scripts": {"running": "", "failed": []},
        "vifs": [],
        "plan": ["x"],
    }


def test_vifs_as_data() -> None:
    mapped = VIF._replace(mappings=(Mapping(ADDRESS, SEEN, SEEN_GATEWAY), Mapping(ADDRESS, SEEN)))
    vifs = (VifReport(mapped, LINK), TODO._replace(link=None, now=(mapped.mappings[1],)))
    first, second = data_of(WELL._replace(vifs=vifs))["vifs"]
    assert first == {
        "name": "vif4.0",
        "domid": 4,
        "mac": MAC,
        "type": "vif",
        "addresses": ["10.137.0.5", "fd09::5"],
        "mappings": [
            {"real": "10.137.0.5", "visible": "192.168.1.128", "gateway": "192.168.1.1"},
            {"real": "10.137.0.5", "visible": "192.168.1.128", "gateway": None},
        ],
        "mappings_when_attached_again": None,
        "unanswered": None,
        "traffic": None,
        "present": True,
        "up": True,
        "configured": True,
        "duplicate_of": [],
        "firewall": [],
        "plan": [],
    }
    assert (second["present"], second["up"], second["configured"]) == (False, False, False)
    assert second["mappings_when_attached_again"] == first["mappings"][1:]
    assert second["plan"] == ["nft add element x", "ip link set dev vif4.0 up"]


def test_no_data_in_a_plain_qube() -> None:
    assert as_data(Report(Settings()), Beside())["provider"] is None


def test_packets_and_bytes_of_a_vif() -> None:
    traffic = {"vif4.0": Traffic(Counter(1, 2, 3, 4), Counter(5, 6, 7, 8))}
    report = Report(Settings(), provided=WELL._replace(vifs=(*WELL.vifs, TODO._replace(link=None))))
    first, gone = as_data(report, Beside(traffic=traffic))["provider"]["vifs"]
    assert first["traffic"] == {
        "received": {"packets": 1, "bytes": 2, "errors": 3, "dropped": 4},
        "sent": {"packets": 5, "bytes": 6, "errors": 7, "dropped": 8},
    }
    assert gone["traffic"] is None
