# SPDX-License-Identifier: GPL-2.0-or-later
"""The provider's half of a report: how it reads, and what `check` makes of it and of the ground it stands on."""

from __future__ import annotations

import ipaddress

import pytest

from qubes_guestnet.core import endpoint
from qubes_guestnet.core.check import provider_findings
from qubes_guestnet.core.check.cut_off import Drop
from qubes_guestnet.core.check.findings import Evidence, findings, servers_in_use
from qubes_guestnet.core.check.provider_findings import CHANGED, MISSING, Ground
from qubes_guestnet.core.dns.resolv_conf import Decision, Owner
from qubes_guestnet.core.dns.upstream_servers import Choice
from qubes_guestnet.core.nft.foreign_chains import Chain, shadows
from qubes_guestnet.core.plan import Op, Verb
from qubes_guestnet.core.provider.provider_report import Lines, ProviderReport
from qubes_guestnet.core.provider.settings import ProviderSettings
from qubes_guestnet.core.provider.vif import Mapping, Vif
from qubes_guestnet.core.provider.vif_order import VifReport
from qubes_guestnet.core.render import provider as render_provider
from qubes_guestnet.core.render.status import as_text
from qubes_guestnet.core.report import InterfaceReport, Report, ResolverReport, Standing
from qubes_guestnet.core.settings import DnsSettings, Family, Settings, UplinkSettings
from qubes_guestnet.core.uplink.desired import Style, StyleChoice
from qubes_guestnet.core.values import IPV4, IPV6, Link
from qubes_guestnet.core.vif_name import parse_name
from qubes_guestnet.errors import KernelError

MAC = "00:16:3e:5e:6c:05"
ADDRESS, ADDRESS6 = ipaddress.IPv4Address("10.137.0.5"), ipaddress.IPv6Address("fd09::5")
SEEN, SEEN_GATEWAY = ipaddress.IPv4Address("192.168.1.128"), ipaddress.IPv4Address("192.168.1.1")
VIRTUAL = (ipaddress.IPv4Address("10.139.1.1"), ipaddress.IPv4Address("10.139.1.2"))
VIF = Vif(parse_name("vif4.0"), MAC, "vif", (ADDRESS, ADDRESS6))
LINK = Link(7, "vif4.0", "fe:ff:ff:ff:ff:ff", up=True, group=2, driver="vif")
OP = Op(Verb.LINK_UP, 7, "vif4.0")
SETTINGS = ProviderSettings(True, virtual_dns=VIRTUAL)
WELL = ProviderReport(
    SETTINGS, True, forwarding=frozenset({4}), names=Choice(endpoint.of((SEEN_GATEWAY,)), "/etc/resolv.conf"),
    vifs=(VifReport(VIF, LINK),), ruled=True,
)  # fmt: skip
OFFLOAD = "offload: not checked yet: the resident agent decides it"
TODO = VifReport(VIF, LINK, (OP,), ("add element x",))

TEXTS = {
    "none in a plain qube": (None, []),
    "all is well": (
        WELL,
        [
            "provider: forwards IPv4",
            "virtual DNS: 10.139.1.1 10.139.1.2 -> 192.168.1.1 (/etc/resolv.conf)",
            OFFLOAD,
            "vif4.0: 10.137.0.5 fd09::5, configured",
        ],
    ),
    "connections are offloaded": (
        WELL._replace(offload="on (2 devices)", names=Choice((), "none known"), vifs=()),
        [
            "provider: forwards IPv4",
            "virtual DNS: 10.139.1.1 10.139.1.2 rejected: no server known (none known)",
            "offload: on (2 devices)",
        ],
    ),
    "without the flag": (
        ProviderReport(SETTINGS, ruled=True),
        ["provider: forwards nothing (service flag qubes-network is not set)"],
    ),
    "without the flag, and another program forwards": (
        ProviderReport(SETTINGS, ruled=True, forwarding=frozenset({4})),
        ["provider: forwards IPv4, because another program enabled it (service flag qubes-network is not set)"],
    ),
    "both families, and no server": (
        WELL._replace(forwarding=frozenset({6, 4}), names=Choice((), "none known"), vifs=()),
        [
            "provider: forwards IPv4 and IPv6",
            "virtual DNS: 10.139.1.1 10.139.1.2 rejected: no server known (none known)",
            OFFLOAD,
        ],
    ),
    "closed": (
        WELL._replace(forwarding=frozenset(), closed=True, vifs=()),
        [
            "provider: forwards nothing (`forwarding off` was run)",
            "virtual DNS: 10.139.1.1 10.139.1.2 -> 192.168.1.1 (/etc/resolv.conf)",
            OFFLOAD,
        ],
    ),
    "IPv6 of the qubes is refused": (
        WELL._replace(settings=SETTINGS._replace(refuse6=True), vifs=()),
        [
            "provider: forwards IPv4",
            "  IPv6 of the qubes is refused: dom0 has given this qube no /qubes-netvm-gateway6",
            "virtual DNS: 10.139.1.1 10.139.1.2 -> 192.168.1.1 (/etc/resolv.conf)",
            OFFLOAD,
        ],
    ),
    "fresh, with settings that are not valid": (
        ProviderReport(SETTINGS._replace(virtual_dns=(), held=frozenset({"gateway", "dns"})), True),
        [
            "provider: forwards nothing yet",
            "  base rules: NOT as required",
            "  dns: settings invalid, those in force stay",
            "  gateway: settings invalid, those in force stay",
            "virtual DNS: as it was",
            OFFLOAD,
        ],
    ),
    "rules that could not be read": (
        WELL._replace(ruled=False, vifs=(), errors=(KernelError("nft generation", 1),)),
        [
            "provider: forwards IPv4",
            "  base rules: run as root to see them",
            "virtual DNS: 10.139.1.1 10.139.1.2 -> 192.168.1.1 (/etc/resolv.conf)",
            OFFLOAD,
        ],
    ),
    "vifs of all kinds": (
        WELL._replace(
            vifs=(
                TODO,
                VifReport(VIF._replace(addresses=()), None),
                VifReport(VIF._replace(mappings=(Mapping(ADDRESS, SEEN, SEEN_GATEWAY),)), LINK),
                VifReport(VIF._replace(addresses=(ADDRESS,), mappings=(Mapping(ADDRESS, SEEN),)), LINK),
                VifReport(VIF, LINK, now=(Mapping(ADDRESS, SEEN, SEEN_GATEWAY),)),
                VifReport(VIF._replace(addresses=(ADDRESS,), mappings=(Mapping(ADDRESS, SEEN),)), LINK, now=()),
            )
        ),
        [
            "provider: forwards IPv4",
            "virtual DNS: 10.139.1.1 10.139.1.2 -> 192.168.1.1 (/etc/resolv.conf)",
            OFFLOAD,
            "vif4.0: 10.137.0.5 fd09::5, NOT configured, first: nft add element x",
            "vif4.0: no address, NOT configured, first: its device is gone",
            "vif4.0: 10.137.0.5 (it sees 192.168.1.128 by 192.168.1.1) fd09::5, configured",
            "vif4.0: 10.137.0.5 (it sees 192.168.1.128), configured",
            "vif4.0: 10.137.0.5 fd09::5, configured; 10.137.0.5 (it sees 192.168.1.128 by 192.168.1.1)"
            " when the qube is attached again",
            "vif4.0: 10.137.0.5 (it sees 192.168.1.128), configured; it sees its real address"
            " when the qube is attached again",
        ],
    ),
}


@pytest.mark.parametrize(("report", "lines"), TEXTS.values(), ids=TEXTS.keys())
def test_as_text(report: ProviderReport | None, lines: list[str]) -> None:
    assert list(map(str, render_provider.as_text(report))) == lines


def test_in_the_whole_text_it_is_before_what_is_to_do() -> None:
    assert list(map(str, as_text(Report(Settings(), provided=WELL), Standing()))) == [
        "no uplink of Qubes: dom0 has set no provider for this qube",
        *TEXTS["all is well"][1],
        "to do: nothing",
        "agent: not running",
    ]
    idle = Report(Settings(), provided=ProviderReport(SETTINGS, ruled=True))
    assert str(next(as_text(idle, Standing()))).startswith("no interface is expected")


SHADOW = shadows([Chain("inet", "t", "f", "filter", "forward", 0, "drop")])
FOUND = {
    "all is well": (WELL, Ground(), []),
    "without the flag": (
        ProviderReport(SETTINGS),
        Ground(),
        [("provider-flag-missing", "warning"), ("no-provider", "note")],
    ),
    "no rules in a plain qube": (None, Ground(MISSING), [("rules-missing", "error"), ("no-provider", "note")]),
    "no rules, which is told once": (
        WELL._replace(vifs=(TODO._replace(ops=()),)),
        Ground(MISSING),
        [("rules-missing", "error")],
    ),
    "no rules, and other trouble": (
        WELL._replace(vifs=(TODO,)),
        Ground(MISSING),
        [("rules-missing", "error"), ("vif-not-configured", "error")],
    ),
    "changed rules": (WELL, Ground(CHANGED), [("rules-changed", "warning")]),
    "a chain before ours": (WELL, Ground(shadows=SHADOW), [("foreign-chain", "note")]),
    "nothing is forwarded": (WELL._replace(forwarding=frozenset()), Ground(), [("forwarding-off", "error")]),
    "not all is forwarded": (WELL._replace(ipv6=True), Ground(), [("forwarding-off", "error")]),
    "closed": (WELL._replace(forwarding=frozenset(), closed=True), Ground(), [("forwarding-off", "error")]),
    "one interface does not forward": (
        WELL._replace(apart=(("vif4.0", "net.ipv4.conf.vif4/0.forwarding"),)),
        Ground(),
        [("forwarding-off", "error")],
    ),
    "IPv6 is refused": (
        WELL._replace(settings=SETTINGS._replace(refuse6=True)),
        Ground(),
        [("ipv6-refused", "warning")],
    ),
    "a kernel without nftables for ARP": (WELL, Ground(arp=False), [("arp-unfiltered", "note")]),
    "no server": (WELL._replace(names=Choice((), "")), Ground(), [("dns-unknown", "warning")]),
    "unknown": (
        WELL._replace(names=Choice((), ""), settings=SETTINGS._replace(held=frozenset({"dns"}))),
        Ground(),
        [],
    ),
    "a vif that lacks something": (WELL._replace(vifs=(TODO,)), Ground(), [("vif-not-configured", "error")]),
    "a fake address that was changed": (
        WELL._replace(vifs=(VifReport(VIF, LINK, now=()),)),
        Ground(),
        [("mapping-changed", "warning")],
    ),
    "two qubes with one address": (
        WELL._replace(duplicates={("vif4.0", "vif5.0"): (ADDRESS,), ("vif4.0", "vif6.0"): (ADDRESS6,)}),
        Ground(),
        [("duplicate-address", "error"), ("duplicate-address", "error")],
    ),
    "vifs that hotplug did not announce": (
        WELL,
        Ground(unknown=("vif5.0",), gone=("vif4.0",)),
        [("vif-unknown", "error"), ("vif-gone", "warning")],
    ),
}


@pytest.mark.parametrize(("report", "ground", "expected"), FOUND.values(), ids=FOUND.keys())
def test_what_check_finds(report: ProviderReport | None, ground: Ground, expected: list[tuple[str, str]]) -> None:
    evidence = Evidence(Report(Settings(), provided=report), standing=Standing(True), ground=ground)
    found = findings(evidence)
    assert [(finding.code, finding.severity) for finding in found] == expected
    for finding in found:
        assert finding.problem
        assert finding.remedy
        assert "\n" not in finding.problem + finding.remedy


@pytest.mark.parametrize(
    ("report", "words", "remedy"),
    [
        (WELL._replace(forwarding=frozenset(), ipv6=True), "IPv4 and IPv6 is not", "apply"),
        (WELL._replace(ipv6=True), "IPv6 is not", "apply"),
        (WELL._replace(forwarding=frozenset(), closed=True), "`forwarding off` was run", "forwarding on"),
    ],
)
def test_what_is_not_forwarded_is_named(report: ProviderReport, words: str, remedy: str) -> None:
    (finding,) = findings(Evidence(Report(Settings(), provided=report), standing=Standing(True)))
    assert words in finding.problem
    assert remedy in finding.remedy


def test_an_error_that_failed_several_steps_is_told_once() -> None:
    errors = (KernelError("nft generation", 1), KernelError("nft generation", 1))
    report = Report(Settings(), provided=WELL, errors=errors)
    assert [finding.code for finding in findings(Evidence(report, standing=Standing(True)))] == ["pass-failed"]
    assert sum(str(line).startswith("error: ") for line in as_text(report, Standing())) == 1


def test_the_plan_of_a_report_has_what_the_provider_has_to_do() -> None:
    provided = WELL._replace(before=Lines(("b",), ("d",)), after=Lines(("c",), ("e",)))
    assert Report(Settings(), todo=("a",), provided=provided).plan == ("b", "a", "c")
    assert (provided.todo, provided.done) == (("b", "c"), ("d", "e"))


KILL_SWITCH = Drop("ip", "oifgroup 1 counter drop", uplink=True)
LAN_BLOCK = Drop("ip", "ip daddr 10.0.0.0/8 reject")


@pytest.mark.behaviour("B142")
@pytest.mark.parametrize(
    ("ground", "codes"),
    [
        (Ground(drops=(KILL_SWITCH,)), ["kill-switch-closed"]),
        (Ground(drops=(KILL_SWITCH, KILL_SWITCH._replace(family="ip6"))), ["kill-switch-closed"]),
        (Ground(drops=(KILL_SWITCH,), tunnel="wg0"), ["custom-forward-drops"]),
        (Ground(drops=(LAN_BLOCK, KILL_SWITCH)), ["kill-switch-closed", "custom-forward-drops"]),
        (Ground(drops=(LAN_BLOCK,) * 7), ["custom-forward-drops"] * 6),
    ],
)
def test_what_custom_forward_cuts_off_is_told(ground: Ground, codes: list[str]) -> None:
    found = list(provider_findings.remarks(WELL._replace(vifs=()), ground))
    assert [remark.code for remark in found] == codes
    shut = [remark.problem for remark in found if remark.code == "kill-switch-closed"]
    assert all("there is no tunnel" in problem for problem in shut)
    assert len(ground.drops) != 7 or "2 more" in found[-1].problem


KILL_SWITCH6 = KILL_SWITCH._replace(family="ip6")


@pytest.mark.behaviour("B142")
@pytest.mark.parametrize(
    ("ipv6", "drops", "cut"),
    [
        (True, (KILL_SWITCH, KILL_SWITCH6), "over IPv4 and IPv6:"),
        (True, (KILL_SWITCH6,), "over IPv6:"),
        (False, (KILL_SWITCH, KILL_SWITCH6), "over IPv4:"),
        (False, (KILL_SWITCH6, LAN_BLOCK._replace(family="ip6")), ""),
    ],
)
def test_a_family_that_client_qubes_do_not_have_is_not_cut_off(ipv6: bool, drops: tuple[Drop, ...], cut: str) -> None:
    report = WELL._replace(vifs=(), ipv6=ipv6, forwarding=frozenset({IPV4, IPV6}))
    found = list(provider_findings.remarks(report, Ground(drops=drops)))
    assert [cut in remark.problem for remark in found] == [True] * bool(cut)


@pytest.mark.parametrize(
    ("problem", "severity"), [(code, severity) for code, (severity, _) in provider_findings.NAMES.items()]
)
def test_where_names_go_otherwise_is_told_with_what_to_do(problem: str, severity: str) -> None:
    report = WELL._replace(vifs=(), names=Choice((), "systemd-resolved is not running", problem))
    (remark,) = provider_findings.remarks(report, Ground())
    assert (remark.code, remark.severity) == (problem, severity)
    assert "systemd-resolved is not running" in remark.problem
    assert remark.remedy


UPLINK = InterfaceReport(
    UplinkSettings(MAC, Family(ipaddress.ip_interface("10.137.0.9/32"))),
    Link(2, "eth0", MAC),
    StyleChoice(Style.DEVICE, ""),
)
KEPT_FILE = ResolverReport(
    "/etc/resolv.conf", Decision(Owner.TUNNEL, "tunnel=wg0 owner=tunnel", "wg0"), None,
    b"nameserver 127.0.0.1\nnameserver fd00::1\nnameserver 10.64.0.1\n", written=False,
)  # fmt: skip
OWN_FILE = KEPT_FILE._replace(decision=Decision(Owner.DIRECT, ""))


@pytest.mark.behaviour("B142")
@pytest.mark.parametrize(
    ("report", "asked"),
    [
        pytest.param({}, ["10.139.1.1", "10.139.1.2"], id="a qube"),
        pytest.param({"interfaces": ()}, [], id="without an uplink"),
        pytest.param({"interfaces": (UPLINK._replace(link=None),)}, [], id="whose uplink is not there yet"),
        pytest.param({"resolver": KEPT_FILE}, ["10.64.0.1"], id="with a VPN's file"),
        pytest.param({"resolver": OWN_FILE}, ["10.139.1.1", "10.139.1.2"],
                     id="with its own"),
        pytest.param({"provided": WELL}, ["192.168.1.1"], id="a VPN qube: where its qubes' names go"),
        pytest.param({"provided": WELL._replace(names=Choice((), ""))}, [], id="one that refuses them"),
        pytest.param({"provided": WELL._replace(active=False)}, ["10.139.1.1", "10.139.1.2"], id="a template"),
    ],
)  # fmt: skip
def test_only_servers_in_use_are_judged(report: dict[str, object], asked: list[str]) -> None:
    settings = Settings(MAC, (UPLINK.settings,), dns=DnsSettings(VIRTUAL))
    whole = Report(settings, (UPLINK,))._replace(**report)  # type: ignore[arg-type]
    assert list(servers_in_use(whole)) == asked


@pytest.mark.behaviour("B124")
def test_a_file_that_is_kept_is_named_with_whose_it_is() -> None:
    report = Report(Settings(), (UPLINK,), KEPT_FILE)
    found = [finding for finding in findings(Evidence(report)) if finding.code.startswith("resolv-conf")]
    assert [(finding.code, finding.severity) for finding in found] == [("resolv-conf-kept", "note")]
    assert found[0].problem.endswith("kept as another program wrote it (a VPN is up: wg0)")
    written = KEPT_FILE._replace(replaced="10.64.0.1")
    assert "protected-files.d" in written.written_back


@pytest.mark.behaviour("B123")
@pytest.mark.parametrize(
    ("names", "line"),
    [
        (Choice((), "rules of another program: 10.139.1.1 -> this qube", "dns-foreign"),
         "virtual DNS: rules of another program: 10.139.1.1 -> this qube"),
        (Choice((), "it is down", "dns-link-down"), "virtual DNS: 10.139.1.1 10.139.1.2 refused (it is down)"),
    ],
)  # fmt: skip
def test_status_says_where_names_go_otherwise(names: Choice, line: str) -> None:
    assert line in list(map(str, render_provider.as_text(WELL._replace(names=names))))


def test_a_pass_had_to_follow_the_name_servers_and_the_offloaded_devices() -> None:
    assert WELL.followed == (WELL.names.servers, WELL.offload, WELL.wanted)
    assert WELL._replace(names=Choice((), "")).followed != WELL.followed
