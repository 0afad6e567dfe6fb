# SPDX-License-Identifier: GPL-2.0-or-later
"""What a report says about itself, how it reads, and what `check` makes of it. The texts are in `tests/golden`."""

from __future__ import annotations

import ipaddress
import json

import pytest

from qubes_guestnet.core.check.findings import Evidence, Finding, findings
from qubes_guestnet.core.dns.resolv_conf import Decision, FileFacts, Owner, choose_owner, render
from qubes_guestnet.core.plan import Op, Verb
from qubes_guestnet.core.render.data import Beside, as_data
from qubes_guestnet.core.render.status import as_text
from qubes_guestnet.core.report import InterfaceReport, Report, ResolverReport, Standing
from qubes_guestnet.core.settings import Family, Settings, UplinkSettings, parse
from qubes_guestnet.core.uplink.desired import Flags, Style, StyleChoice, desired
from qubes_guestnet.core.uplink.networkmanager import Manager, ManagerChoice
from qubes_guestnet.core.values import Link, Route, State
from qubes_guestnet.errors import ConfigError, GuestnetError, KernelError
from tests.support.faults.hostile import GOOD, MAC

SETTINGS = parse(GOOD)
UPLINK = SETTINGS.uplinks[0]
LINK = Link(2, "eth0", MAC, up=True, running=True, group=1, driver="vif")
CHOICE = StyleChoice(Style.DEVICE, "default")
STATE = desired(UPLINK, Style.DEVICE, Flags())
OP = Op(Verb.LINK_UP, 2, "eth0")
SERVERS = render(SETTINGS.dns.servers)
DIRECT = choose_owner(FileFacts("regular", SERVERS))
RESOLVER = ResolverReport("/etc/resolv.conf", DIRECT, SERVERS, SERVERS, written=False)
DONE = InterfaceReport(UPLINK, LINK, CHOICE, STATE, STATE)
MISSING = InterfaceReport(UPLINK, None, CHOICE)
WELL = Report(SETTINGS, (DONE,), RESOLVER)
AGENT = Standing(True, "2026-01-01T00:00:00Z")
ONLY6 = InterfaceReport(UplinkSettings(MAC, None, UPLINK.ipv6), LINK, CHOICE)
HELD = UplinkSettings(MAC, held=frozenset({4}))

INTERFACES = {
    "configured": (DONE, True, True),
    "not there yet": (MISSING, True, False),
    "went and is not announced anew": (MISSING._replace(detached=True), False, False),
    "taken down": (DONE._replace(removed=True), False, False),
    "something to do": (DONE._replace(plan=(OP,)), True, False),
    "down": (DONE._replace(observed=STATE._replace(up=False)), True, False),
    "asked for nothing": (DONE._replace(settings=UplinkSettings(MAC), desired=State()), False, False),
    "nothing but IPv6, and that is off": (ONLY6._replace(no_ipv6="sysctl disable_ipv6"), False, False),
    "held": (DONE._replace(settings=HELD, desired=State()), True, False),
}


@pytest.mark.parametrize(("interface", "expected", "configured"), INTERFACES.values(), ids=INTERFACES.keys())
def test_whether_an_interface_is_expected_and_configured(
    interface: InterfaceReport, expected: bool, configured: bool
) -> None:
    assert interface.expected is expected
    assert interface.configured is configured
    assert Report(SETTINGS, (interface,)).settled is (configured or not expected)
    assert Report(SETTINGS, (DONE, interface)).settled is (configured or not expected)


BY_NM = DONE._replace(manager=ManagerChoice(Manager.NETWORKMANAGER), waiting="link is down")


@pytest.mark.behaviour("B151")
@pytest.mark.behaviour("B156")
@pytest.mark.parametrize(
    ("interface", "ready"),
    [
        (DONE, True),
        (MISSING, True),
        (DONE._replace(plan=(OP,)), False),
        (DONE._replace(removed=True, plan=(OP,)), True),
        (DONE._replace(settings=HELD, desired=State()), True),
        # What is to do is NetworkManager's, or ours after all.
        (BY_NM, True),
        (BY_NM._replace(plan=(OP,)), False),
    ],
)
def test_what_the_boot_has_to_wait_for(interface: InterfaceReport, ready: bool) -> None:
    assert Report(SETTINGS, (interface,)).unready == (() if ready else (interface,))
    assert Report(SETTINGS, (DONE, interface)).unready == (() if ready else (interface,))


def test_settled_where_nothing_is_expected() -> None:
    assert Report(Settings()).settled


@pytest.mark.parametrize(
    ("wanted", "current", "pending"),
    [(SERVERS, SERVERS, False), (SERVERS, b"", True), (None, b"x", False), (b"", b"x", True)],
)
def test_whether_resolv_conf_is_pending(wanted: bytes | None, current: bytes, pending: bool) -> None:
    resolver = RESOLVER._replace(wanted=wanted, current=current)
    assert resolver.pending is pending
    assert bool(WELL._replace(resolver=resolver).plan) is pending


def test_the_plan_is_the_operations_and_the_file() -> None:
    report = WELL._replace(interfaces=(DONE._replace(plan=(OP,)),), resolver=RESOLVER._replace(current=b""))
    assert report.plan == ("ip link set dev eth0 up", "publish /etc/resolv.conf: 10.139.1.1 10.139.1.2")


def beside(*routes: Route) -> InterfaceReport:
    return DONE._replace(observed=STATE._replace(routes=STATE.routes | set(routes)))


ANY, ANY6 = ipaddress.ip_network("0.0.0.0/0"), ipaddress.ip_network("::/0")
GATEWAY, GATEWAY6 = ipaddress.ip_address("10.138.1.2"), ipaddress.ip_address("fe80::1")
LEFT = Route(ANY, GATEWAY, onlink=True, protocol=3)  # as `ip route` of a script makes it
SECOND = {
    "before ours": (beside(LEFT), ["ip route delete default via 10.138.1.2 dev eth0 proto 3"]),
    "without a gateway": (beside(Route(ANY, protocol=3)), ["ip route delete default dev eth0 proto 3"]),
    "of IPv6": (
        beside(Route(ANY6, GATEWAY6, metric=1024, protocol=3)),
        ["ip -6 route delete default via fe80::1 dev eth0 proto 3"],
    ),
    "behind ours": (beside(LEFT._replace(metric=100)), []),
    "to somewhere": (beside(Route(ipaddress.ip_network("10.0.0.0/8"), GATEWAY, protocol=3)), []),
    "another one of ours": (beside(Route(ANY, GATEWAY, onlink=True)), []),
    "where none is asked for": (beside(LEFT)._replace(desired=STATE._replace(routes=frozenset())), []),
    "where NetworkManager makes them": (beside(LEFT)._replace(manager=ManagerChoice(Manager.NETWORKMANAGER)), []),
}


@pytest.mark.behaviour("B157")
@pytest.mark.parametrize(("interface", "remedies"), SECOND.values(), ids=SECOND.keys())
def test_a_default_route_that_others_left_is_told(interface: InterfaceReport, remedies: list[str]) -> None:
    found = findings(Evidence(WELL._replace(interfaces=(interface,)), standing=AGENT))
    told = [finding for finding in found if finding.code == "second-default-route"]
    assert [finding.remedy.partition(": ")[2] for finding in told] == remedies
    assert {finding.severity for finding in told} <= {"note"}


FOREIGN = Decision(Owner.PROTECTED, "protected=/rw/list owner=protected")


def no_gateway(style: Style, *flags: bool) -> Report:
    uplink = UplinkSettings(MAC, Family(ipaddress.ip_interface("10.137.0.5/32")))
    state = desired(uplink, style, Flags(*flags))
    done = InterfaceReport(uplink, LINK, StyleChoice(style, "default"), state, state)
    return WELL._replace(interfaces=(done,))


EVIDENCE: dict[str, tuple[Evidence, list[tuple[str, str]]]] = {
    "all is well": (Evidence(WELL, standing=AGENT, neighbour_limit=32768), []),
    "limits that cannot be read": (Evidence(WELL, standing=AGENT, neighbour_limit=0), []),
    "no QubesDB": (Evidence(None, "does not answer"), [("no-qubesdb", "error")]),
    "no agent": (Evidence(WELL), [("agent-not-running", "warning")]),
    "an agent in trouble": (Evidence(WELL, standing=AGENT._replace(error="oh")), [("agent-error", "error")]),
    "few neighbours": (Evidence(WELL, standing=AGENT, neighbour_limit=1024), [("neighbour-limit-low", "warning")]),
    "few neighbours by the gateway": (
        Evidence(
            WELL._replace(interfaces=(DONE._replace(choice=StyleChoice(Style.GATEWAY, "guestnet.toml")),)),
            standing=AGENT,
            neighbour_limit=1024,
        ),
        [],
    ),
    "nothing expected": (Evidence(Report(Settings()), standing=AGENT), [("no-provider", "note")]),
    "a provider that went": (
        Evidence(Report(SETTINGS, (MISSING._replace(detached=True),)), standing=AGENT),
        [("no-provider", "note")],
    ),
    "not even looked": (
        Evidence(Report(SETTINGS, errors=(KernelError("netlink dump 18", 1),)), standing=AGENT),
        [("pass-failed", "error")],
    ),
    "not known which": (Evidence(Report(Settings(held=True)), standing=AGENT), []),
    "missing": (Evidence(Report(SETTINGS, (MISSING,)), standing=AGENT), [("interface-missing", "error")]),
    "taken down": (
        Evidence(WELL._replace(interfaces=(DONE._replace(removed=True),)), standing=AGENT),
        [("taken-down", "note")],
    ),
    "something to do": (
        Evidence(WELL._replace(interfaces=(DONE._replace(plan=(OP,)),)), standing=AGENT),
        [("plan-not-empty", "error")],
    ),
    "fallen back": (
        Evidence(
            WELL._replace(interfaces=(DONE._replace(choice=StyleChoice(Style.GATEWAY, "fall-back: slow")),)),
            standing=AGENT,
        ),
        [("fallback-in-use", "warning")],
    ),
    "no IPv6 here": (
        Evidence(WELL._replace(interfaces=(DONE._replace(no_ipv6="sysctl disable_ipv6"),)), standing=AGENT),
        [("ipv6-off", "note")],
    ),
    "nothing but IPv6, and that is off": (
        Evidence(Report(SETTINGS, (ONLY6._replace(no_ipv6="the kernel does not support it"),)), standing=AGENT),
        [("ipv6-off", "note")],
    ),
    "no gateway": (Evidence(no_gateway(Style.DEVICE), standing=AGENT), [("gateway-missing", "warning")]),
    "no gateway for the style": (Evidence(no_gateway(Style.GATEWAY), standing=AGENT), [("no-default-route", "error")]),
    "no gateway, and no default route wanted": (
        Evidence(no_gateway(Style.DEVICE, True), standing=AGENT),
        [],
    ),
    "refused by the provider": (
        Evidence(WELL, standing=AGENT, refusing6=("fd09::1",)),
        [("ipv6-refused-by-provider", "warning")],
    ),
    "another's file": (
        Evidence(WELL._replace(resolver=RESOLVER._replace(decision=FOREIGN, wanted=None)), standing=AGENT),
        [("resolv-conf-foreign", "warning")],
    ),
    "an overwritten file": (
        Evidence(WELL._replace(resolver=RESOLVER._replace(current=b"")), standing=AGENT),
        [("resolv-conf-differs", "error")],
    ),
    "silence": (
        Evidence(WELL, standing=AGENT, silent_servers=("10.139.1.1", "10.139.1.2")),
        [("dns-unreachable", "error"), ("dns-unreachable", "error")],
    ),
    "errors": (
        Evidence(
            WELL._replace(
                errors=(
                    *parse({**GOOD, "/qubes-ip": b"x"}).errors,
                    ConfigError("bad file", "mend it"),
                    KernelError("ip link", 1),
                )
            ),
            standing=AGENT,
        ),
        [("settings-invalid", "error"), ("config-invalid", "error"), ("pass-failed", "error")],
    ),
}


@pytest.mark.parametrize(("evidence", "expected"), EVIDENCE.values(), ids=EVIDENCE.keys())
def test_what_check_finds(evidence: Evidence, expected: list[tuple[str, str]]) -> None:
    found = findings(evidence)
    assert [(finding.code, finding.severity) for finding in found] == expected
    for finding in found:
        assert finding.problem
        assert finding.remedy
        assert "\n" not in finding.problem + finding.remedy


def test_a_note_is_one_line() -> None:
    (note,) = no_gateway(Style.DEVICE).notes
    assert str(note).startswith("dom0 gives eth0 an IPv4 address but no gateway (/qubes-gateway): ")
    assert str(note).endswith("; set the provider again: qvm-prefs QUBE netvm PROVIDER")


def test_the_gravest_comes_first() -> None:
    report = Report(SETTINGS, (DONE._replace(removed=True), DONE._replace(plan=(OP,))), None)
    codes = [finding.code for finding in findings(Evidence(report))]
    assert codes == ["plan-not-empty", "agent-not-running", "taken-down"]


def test_a_finding_is_plain_data() -> None:
    assert Finding("code", "note", "this", "that")._asdict() == {
        "code": "code",
        "severity": "note",
        "problem": "this",
        "remedy": "that",
    }


def test_the_data_of_a_report() -> None:
    data = as_data(WELL, Beside(AGENT))
    assert json.loads(json.dumps(data)) == data
    (interface,) = data["interfaces"]
    assert (interface["mac"], interface["name"], interface["index"], interface["driver"]) == (MAC, "eth0", 2, "vif")
    assert interface["present"] is interface["expected"] is interface["configured"] is True
    assert interface["style"] == "device"
    assert interface["observed"] == interface["desired"]
    assert interface["observed"]["addresses"] == ["10.137.0.5/32", "fd09:24ef:4179::a89:5/128"]
    assert interface["observed"]["neighbours"][0] == "10.138.0.1 fe:ff:ff:ff:ff:ff permanent"
    assert data["resolver"]["owner"] == "direct"
    assert data["resolver"]["servers"] == data["dns"] == ["10.139.1.1", "10.139.1.2"]
    assert data["agent"] == {"running": True, "since": "2026-01-01T00:00:00Z", "error": ""}
    assert (data["settled"], data["plan"], data["errors"]) == (True, [], [])


def test_the_data_of_what_is_not_there() -> None:
    report = Report(SETTINGS, (MISSING._replace(settings=HELD),), None, errors=(GuestnetError("oh", "well"),))
    data = as_data(report, Beside())
    assert json.loads(json.dumps(data)) == data
    (interface,) = data["interfaces"]
    assert (interface["name"], interface["index"], interface["driver"], interface["present"]) == (None,) * 3 + (False,)
    assert interface["held"] == ["ipv4"]
    assert data["resolver"] is None
    assert data["errors"] == ["oh; well"]


def test_text_and_data_tell_of_the_same_routes() -> None:
    state = STATE._replace(routes=STATE.routes | desired(UPLINK, Style.GATEWAY, Flags()).routes)
    report = WELL._replace(interfaces=(DONE._replace(observed=state),))
    text = "\n".join(map(str, as_text(report, AGENT)))
    (interface,) = as_data(report, Beside(AGENT))["interfaces"]
    assert len(interface["observed"]["routes"]) == 4
    for words in interface["observed"]["routes"]:
        assert f"    {words}\n" in text


def test_no_carrier_and_no_server_are_said() -> None:
    link = Link(2, "eth0", MAC, driver="vif")
    resolver = RESOLVER._replace(current=b"")
    text = "\n".join(
        map(str, as_text(Report(SETTINGS, (InterfaceReport(UPLINK, link, CHOICE),), resolver), Standing()))
    )
    assert "down, no carrier" in text
    assert "addresses: none" in text
    assert "/etc/resolv.conf: no nameserver" in text
    assert "agent: not running" in text
