# SPDX-License-Identifier: GPL-2.0-or-later
"""What `check` says of the rules, which every qube has, and of the provider's half. Pure: facts in, findings out."""

from __future__ import annotations

from collections.abc import Iterator

from .namedtuple import NamedTuple
from .presence import Remark
from .values import IPV4, IPV6

TYPE_CHECKING = False  # a qube that gives network to nobody loads nothing of a provider
if TYPE_CHECKING:
    from .provided import ProviderReport
    from .shadows import Shadow

GOOD, MISSING, CHANGED = "good", "missing", "changed"
_APPLY = "qubes-guestnet apply, and see what it says"


class Ground(NamedTuple):
    """What was looked at besides the report.

    Args:
        rules: GOOD, MISSING or CHANGED; in a qube that is no provider only whether they are missing is looked at.
        unknown: names of vifs without a record.
        gone: names of vifs with a record and without a device.
        shadows: chains of others that come before ours.
    """

    rules: str = GOOD
    unknown: tuple[str, ...] = ()
    gone: tuple[str, ...] = ()
    shadows: tuple[Shadow, ...] = ()


def remarks(report: ProviderReport | None, ground: Ground) -> Iterator[Remark]:
    """What there is to say.

    Args:
        report: of a dry pass; None in a qube that gives network to nobody.
        ground: the rest.
    """
    if ground.rules == MISSING:
        problem = "the tables ip qubes and ip6 qubes are not there, or not as a whole: nothing filters what comes in"
        yield Remark("rules-missing", "error", problem, "qubes-guestnet rules load")
    if report is None:
        return
    if ground.rules == CHANGED:
        problem = "somebody changed our chains in the tables ip qubes and ip6 qubes"
        remedy = "a running agent puts them back; own rules go to custom-input and custom-forward, see docs/provider.md"
        yield Remark("rules-changed", "warning", problem, remedy)
    for shadow in ground.shadows:
        remedy = "nothing to do if that is meant; a priority above ours puts it behind, see docs/provider.md"
        yield Remark("foreign-chain", "note", shadow.words, remedy)
    if not report.active:
        problem = "dom0 makes this qube a provider, and the service flag qubes-network is not set: it forwards nothing"
        yield Remark("provider-flag-missing", "warning", problem, "qvm-service QUBE qubes-network on, and restart it")
        return
    yield from _forwarding(report)
    yield from _ipv6(report)
    yield from _names(report)
    yield from _vifs(report, ground)


def _forwarding(report: ProviderReport) -> Iterator[Remark]:
    wanted = ((IPV4, True), (IPV6, report.ipv6))
    missing = " and ".join(f"IPv{family}" for family, on in wanted if on and family not in report.forwarding)
    if missing and report.closed:
        problem = f"{missing} is not forwarded: `forwarding off` was said"
        yield Remark("forwarding-off", "error", problem, "qubes-guestnet forwarding on")
    elif missing:
        yield Remark("forwarding-off", "error", f"{missing} is not forwarded by the kernel", _APPLY)


def _ipv6(report: ProviderReport) -> Iterator[Remark]:
    if report.settings.refuse6:
        problem = "qubes behind this one have IPv6, which is refused: dom0 has given no /qubes-netvm-gateway6"
        remedy = "restart this qube, dom0 writes it only then; or qvm-features QUBE ipv6 '', and attach them again"
        yield Remark("ipv6-refused", "warning", problem, remedy)


def _names(report: ProviderReport) -> Iterator[Remark]:
    if not report.servers and "dns" not in report.settings.held:
        problem = f"no name server is known that other qubes can ask: their queries are rejected ({reason(report)})"
        remedy = "is this qube online? It takes them from systemd-resolved, else from /etc/resolv.conf"
        yield Remark("dns-unknown", "warning", problem, remedy)


def reason(report: ProviderReport) -> str:
    """Where the servers come from, or why there is none."""
    return report.servers_reason or "nobody looked"


def _vifs(report: ProviderReport, ground: Ground) -> Iterator[Remark]:
    for vif in report.vifs:
        # Elements that went with the rules are one trouble, and told above.
        todo = vif._replace(elements=()).todo if ground.rules == MISSING else vif.todo
        if todo:
            problem = f"{vif.vif.name.text} is not as it has to be, first: {todo[0]}"
            yield Remark("vif-not-configured", "error", problem, _APPLY)
        if vif.now is not None:
            problem = f"dom0 has changed the fake address of {vif.vif.name.text} since the qube was attached"
            remedy = "attach the qube again: qvm-prefs QUBE netvm '', and then its provider; see qubes-guestnet status"
            yield Remark("mapping-changed", "warning", problem, remedy)
    for name in ground.unknown:
        problem = f"{name} is there, and nobody has told of it: the qube behind it has no network"
        remedy = "systemctl reload qubes-guestnet has it looked up in xenstore; or attach the qube again"
        yield Remark("vif-unknown", "error", problem, remedy)
    for name in ground.gone:
        problem = f"{name} is on record, and its device is gone: nobody told of it"
        yield Remark("vif-gone", "warning", problem, f"{_APPLY}; it takes the rest of it away")
