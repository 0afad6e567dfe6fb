# SPDX-License-Identifier: GPL-2.0-or-later
"""resolv.conf: its text, whose file it is and why, what it is to hold, and how often we insist."""

from __future__ import annotations

import ipaddress
import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qubes_guestnet.core.dns.resolv_conf import (
    HEADER,
    KEPT,
    Decision,
    FileFacts,
    Owner,
    RewriteBudget,
    TunnelFacts,
    Way,
    choose_owner,
    is_down,
    may_be_truncated,
    others,
    parse,
    render,
    tunnel,
    wanted,
)
from qubes_guestnet.core.owned_state import checksum

FIRST, SECOND = ipaddress.IPv4Address("10.139.1.1"), ipaddress.IPv4Address("10.139.1.2")
OURS = render([FIRST, SECOND])
VPNS = b"nameserver 10.64.0.1\n"
SERVER = ipaddress.ip_address("10.64.0.1")
FOREIGN = b"# by hand\nsearch example.test\nnameserver 192.0.2.53\n"
LIST = "/etc/qubes/protected-files.d/whonix"
STUB = "../run/systemd/resolve/stub-resolv.conf"


@pytest.mark.behaviour("B124")
@pytest.mark.parametrize(
    ("facts", "ours"),
    [
        (FileFacts("regular", OURS), True),
        (FileFacts("regular", OURS, published=checksum(OURS)), True),
        (FileFacts("regular", OURS, published=checksum(VPNS)), False),
        (FileFacts("regular", OURS, published=f"{checksum(VPNS)} {checksum(OURS)}"), True),
        (FileFacts("regular", VPNS, published=f"{checksum(VPNS)} {checksum(OURS)}"), True),
        (FileFacts("regular", HEADER + VPNS, published=checksum(HEADER + VPNS)), True),
        (FileFacts("regular", HEADER + VPNS, published=checksum(OURS)), False),
        (FileFacts("regular", OURS + VPNS, published=checksum(OURS)), False),
        (FileFacts("regular", b"", published=checksum(b"")), False),
        # of a former release, without a sum
        (FileFacts("regular", HEADER + VPNS), True),
        (FileFacts("regular", HEADER), False),
        (FileFacts("regular", HEADER + b"search example.test\n" + VPNS), False),
        (FileFacts("regular", OURS.splitlines()[0]), False),
        (FileFacts("regular", b"\n" + OURS), False),
        (FileFacts("regular", b"# a copy of:\n" + OURS), False),
        (FileFacts("regular", FOREIGN), False),
        (FileFacts("regular", b""), False),
        (FileFacts("symlink", OURS), False),
        (FileFacts(), False),
    ],
)
def test_ours(facts: FileFacts, ours: bool) -> None:
    assert facts.ours is ours


@pytest.mark.parametrize(
    ("facts", "holds"),
    [
        (FileFacts("regular", OURS, 0o644), True),
        (FileFacts("regular", OURS, 0o600), False),
        (FileFacts("regular", OURS + b"\n", 0o644), False),
        (FileFacts("symlink", OURS, 0o644), False),
        (FileFacts(), False),
    ],
)
def test_holds(facts: FileFacts, holds: bool) -> None:
    assert facts.holds(OURS) is holds


NO = "protected=no immutable=no disabled=no networkmanager=no"
DECISIONS = [
    pytest.param(FileFacts(), Owner.DIRECT, f"{NO} kind=missing ours=no owner=direct", id="missing"),
    pytest.param(FileFacts("regular", OURS), Owner.DIRECT, f"{NO} kind=regular ours=yes owner=direct", id="ours"),
    pytest.param(FileFacts("regular", FOREIGN), Owner.DIRECT, f"{NO} kind=regular ours=no owner=direct", id="foreign"),
    pytest.param(
        FileFacts("symlink", link_target=STUB),
        Owner.DIRECT,
        f"{NO} kind=symlink:{STUB} ours=no owner=direct",
        id="symlink",
        marks=pytest.mark.behaviour("B19"),
    ),
    pytest.param(
        FileFacts("symlink", link_target="a\nb\x1b[2Jé"),
        Owner.DIRECT,
        f"{NO} kind=symlink:a\\nb\\x1b[2J\\xe9 ours=no owner=direct",
        id="hostile link",
    ),
    pytest.param(FileFacts("other"), Owner.DIRECT, f"{NO} kind=other ours=no owner=direct", id="other"),
    pytest.param(
        FileFacts("regular", FOREIGN, protected_by=LIST),
        Owner.PROTECTED,
        f"protected={LIST} immutable=no disabled=no networkmanager=no kind=regular ours=no owner=protected",
        id="protected",
        marks=pytest.mark.behaviour("B23"),
    ),
    pytest.param(
        FileFacts("regular", FOREIGN, immutable=True),
        Owner.IMMUTABLE,
        "protected=no immutable=yes disabled=no networkmanager=no kind=regular ours=no owner=immutable",
        id="immutable",
    ),
    pytest.param(
        FileFacts("regular", OURS, disabled=True),
        Owner.DISABLED,
        "protected=no immutable=no disabled=yes networkmanager=no kind=regular ours=yes owner=disabled",
        id="disabled",
        marks=pytest.mark.behaviour("B15"),
    ),
    pytest.param(
        FileFacts("regular", OURS, networkmanager=True),
        Owner.NETWORKMANAGER,
        "protected=no immutable=no disabled=no networkmanager=yes kind=regular ours=yes owner=networkmanager",
        id="networkmanager",
    ),
    pytest.param(
        FileFacts("regular", OURS, protected_by=LIST, immutable=True, disabled=True, networkmanager=True),
        Owner.PROTECTED,
        f"protected={LIST} immutable=yes disabled=yes networkmanager=yes kind=regular ours=yes owner=protected",
        id="all of them",
    ),
]


@pytest.mark.parametrize(("facts", "owner", "reasons"), DECISIONS)
def test_the_owner_and_why(facts: FileFacts, owner: Owner, reasons: str) -> None:
    assert choose_owner(facts) == Decision(owner, reasons, LIST if owner is Owner.PROTECTED else "")


FLAGS = ("protected_by", "immutable", "disabled", "networkmanager")
OWNERS = (Owner.PROTECTED, Owner.IMMUTABLE, Owner.DISABLED, Owner.NETWORKMANAGER)


@pytest.mark.parametrize("answers", list(itertools.product([False, True], repeat=4)))
def test_the_first_true_fact_decides(answers: tuple[bool, ...]) -> None:
    facts = FileFacts(
        protected_by=LIST if answers[0] else "", immutable=answers[1], disabled=answers[2], networkmanager=answers[3]
    )
    expected = OWNERS[answers.index(True)] if any(answers) else Owner.DIRECT
    assert choose_owner(facts).owner is expected


@given(st.text(), st.text())
def test_the_reasons_are_one_safe_line(target: str, listed: str) -> None:
    reasons = choose_owner(FileFacts("symlink", link_target=target, protected_by=listed)).reasons
    assert reasons.isascii()
    assert reasons.isprintable()


REGULAR_OURS = FileFacts("regular", OURS, 0o644)
REGULAR_FOREIGN = FileFacts("regular", FOREIGN, 0o644)
LINK = FileFacts("symlink", link_target=STUB)


@pytest.mark.parametrize(
    ("facts", "servers", "expected"),
    [
        pytest.param(FileFacts(), [FIRST, SECOND], OURS, id="missing"),
        pytest.param(REGULAR_FOREIGN, [FIRST, SECOND], OURS, id="foreign"),
        pytest.param(REGULAR_OURS, [SECOND], render([SECOND]), id="ours"),
        pytest.param(LINK, [FIRST], render([FIRST]), id="link", marks=pytest.mark.behaviour("B19")),
        pytest.param(FileFacts(), [], None, id="missing, no server"),
        pytest.param(REGULAR_FOREIGN, [], None, id="foreign, no server"),
        pytest.param(LINK, [], None, id="link, no server"),
        pytest.param(REGULAR_OURS, [], b"", id="ours, no server"),
    ],
)
def test_what_it_is_to_hold(facts: FileFacts, servers: list[ipaddress.IPv4Address], expected: bytes | None) -> None:
    assert wanted(choose_owner(facts), facts, servers) == expected


@pytest.mark.behaviour("B15")
@pytest.mark.parametrize(
    ("facts", "expected"), [(REGULAR_OURS, b""), (REGULAR_FOREIGN, None), (LINK, None), (FileFacts(), None)]
)
def test_disabled_empties_ours_and_leaves_the_foreign(facts: FileFacts, expected: bytes | None) -> None:
    facts = facts._replace(disabled=True)
    assert wanted(choose_owner(facts), facts, [FIRST]) == expected
    emptied = facts._replace(kind="regular", data=b"")
    assert wanted(choose_owner(emptied), emptied, [FIRST]) is None, "and once empty, that is all"


@pytest.mark.behaviour("B23")
@pytest.mark.parametrize("flag", [{"protected_by": LIST}, {"immutable": True}])
@pytest.mark.parametrize("facts", [REGULAR_OURS, REGULAR_FOREIGN, LINK, FileFacts()])
def test_hands_off(flag: dict[str, Any], facts: FileFacts) -> None:
    facts = facts._replace(**flag)
    for servers in ([], [FIRST, SECOND]):
        assert wanted(choose_owner(facts), facts, servers) is None


@pytest.mark.behaviour("B20")
@pytest.mark.parametrize(
    ("facts", "written"), [(REGULAR_OURS, True), (REGULAR_FOREIGN, False), (LINK, True), (FileFacts(), True)]
)
def test_networkmanager_finds_a_plain_file_and_keeps_it(facts: FileFacts, written: bool) -> None:
    facts = facts._replace(networkmanager=True)
    assert wanted(choose_owner(facts), facts, [FIRST]) == (render([FIRST]) if written else None)


# --- B124: a VPN's, and a hook's -----------------------------------------------------------------------------------

SHOWN = {"hook": "/rw/config/qubes-ip-change-hook", "tunnel": "wg0"}


@pytest.mark.behaviour("B124")
@pytest.mark.parametrize("shown", SHOWN)
@pytest.mark.parametrize(
    ("flags", "kept"),
    [({}, True), ({"protected_by": LIST}, False), ({"immutable": True}, False), ({"disabled": True}, False),
     ({"networkmanager": True}, False)],
)  # fmt: skip
def test_what_a_vpn_or_a_hook_wrote_is_kept_unless_somebody_else_has_a_word(
    shown: str, flags: dict[str, Any], *, kept: bool
) -> None:
    decision = choose_owner(FileFacts("regular", VPNS, **{shown: SHOWN[shown]}, **flags))
    assert (decision.owner in KEPT) is kept
    assert f"{shown}={SHOWN[shown]}" in decision.reasons
    if kept:
        assert decision.reasons.endswith(f" owner={shown}")
        assert wanted(decision, FileFacts("regular", VPNS), [FIRST, SECOND]) is None


@pytest.mark.behaviour("B124")
@pytest.mark.parametrize(
    ("facts", "others_servers"),
    [
        pytest.param(FileFacts("regular", VPNS), [SERVER], id="a VPN's"),
        pytest.param(FileFacts("regular", VPNS + OURS.replace(HEADER, b"")), [SERVER], id="beside dom0's"),
        pytest.param(FileFacts("regular", b"nameserver 127.0.0.1\n"), [ipaddress.ip_address("127.0.0.1")],
                     id="a resolver in the qube"),
        pytest.param(FileFacts("regular", OURS), [], id="ours"),
        pytest.param(FileFacts("regular", HEADER + VPNS), [], id="ours of a former release and provider"),
        pytest.param(FileFacts("regular", HEADER + VPNS, published=checksum(HEADER + VPNS)), [],
                     id="ours of a former provider"),
        pytest.param(FileFacts("regular", HEADER + VPNS, published=checksum(OURS)), [SERVER],
                     id="by sed, which leaves our first lines"),
        pytest.param(FileFacts("regular", OURS + VPNS, published=checksum(OURS)), [SERVER], id="by echo >>"),
        pytest.param(FileFacts("regular", OURS.replace(HEADER, b"")), [], id="dom0's servers by another"),
        pytest.param(FileFacts("regular", b""), [], id="empty"),
        pytest.param(FileFacts("symlink", linked=VPNS, link_target="/run/vpn/resolv.conf"), [SERVER], id="a link"),
        pytest.param(FileFacts("symlink", linked=b"nameserver 127.0.0.53\n", link_target=STUB), [], id="a stub (B19)"),
        *(pytest.param(facts, [], id=facts.kind) for facts in (LINK, FileFacts("other"), FileFacts())),
    ],
)  # fmt: skip
def test_servers_of_others(facts: FileFacts, others_servers: list[object]) -> None:
    assert list(others(facts, [FIRST, SECOND])) == others_servers


@pytest.mark.behaviour("B124")
@pytest.mark.parametrize(
    ("facts", "device"),
    [
        (TunnelFacts(), ""),
        (TunnelFacts((Way(SERVER, ""),)), ""),
        (TunnelFacts((Way(SERVER, ""), Way(SERVER, "wg0"))), "wg0"),
        (TunnelFacts((Way(SERVER, ""),), ("tun0",)), "tun0"),
        (TunnelFacts((Way(SERVER, ""),), (), ("tun1",)), "tun1"),
        (TunnelFacts((Way(SERVER, "wg0"),), ("tun0",), ("tun1",)), "wg0"),
        (TunnelFacts((Way(SERVER, "wg0"),), (), (), ("tun0",)), "wg0"),
        (TunnelFacts((Way(SERVER, ""),), (), ("tun1",), ("tun0",)), "tun1"),
    ],
)
def test_what_shows_that_a_vpn_is_there(facts: TunnelFacts, device: str) -> None:
    assert tunnel(facts) == device
    assert not is_down(facts)


@pytest.mark.behaviour("B124", "B127")
def test_a_vpn_whose_device_is_set_down_is_there_and_carries_nothing() -> None:
    facts = TunnelFacts((Way(SERVER, ""),), down=("wg0",))
    assert tunnel(facts) == "wg0"
    assert is_down(facts)


@pytest.mark.behaviour("B130")
def test_all_servers_of_a_file_for_who_cannot_use_each() -> None:
    data = b"".join(b"nameserver fd00::%d\n" % number for number in range(1, 5)) + VPNS
    assert len(parse(data).servers) == 3
    assert parse(data, every=True).servers[-1] == SERVER


class TestRewriteBudget:
    def test_news_that_is_planned_again_before_it_is_written_is_no_write_back(self) -> None:
        budget = RewriteBudget()
        for _ in range(2):
            assert budget.allow(OURS, 0.0)
            budget.failed()
        assert budget.allow(OURS, 0.0)
        assert [budget.allow(OURS, 1.0) for _ in range(6)] == [True] * 5 + [False]

    def test_five_write_backs_in_a_minute_and_no_more(self) -> None:
        budget = RewriteBudget()
        assert budget.allow(OURS, 0.0)
        assert [budget.allow(OURS, now) for now in (1.0, 2.0, 3.0, 4.0, 5.0)] == [True] * 5
        assert budget.next_try(6.0) == 55.0
        assert [budget.allow(OURS, now) for now in (6.0, 30.0, 60.9)] == [False] * 3
        assert budget.next_try(61.0) is None
        assert budget.allow(OURS, 61.0), "the first of them is a minute ago"
        assert not budget.allow(OURS, 61.5)
        assert budget.next_try(61.5) == 0.5

    def test_what_could_not_be_written_does_not_count(self) -> None:
        budget = RewriteBudget()
        assert budget.allow(OURS, 0.0), "news, and written"
        for now in range(20):
            assert budget.allow(OURS, float(now))
            budget.failed()
        assert [budget.allow(OURS, 20.0) for _ in range(6)] == [True] * 5 + [False]

    def test_other_content_is_news(self) -> None:
        budget = RewriteBudget()
        for now in range(10):
            budget.allow(OURS, float(now))
        assert not budget.allow(OURS, 10.0)
        assert budget.allow(render([SECOND]), 10.0)
        assert budget.next_try(10.0) is None
        assert all(budget.allow(render([SECOND]), 11.0) for _ in range(5))
        assert not budget.allow(render([SECOND]), 12.0)

    def test_now_and_then_is_always_fine(self) -> None:
        budget = RewriteBudget()
        assert all(budget.allow(OURS, now * 13.0) for now in range(100))

    @given(st.lists(st.floats(0, 30), max_size=200))
    def test_never_more_than_the_limit_in_any_window(self, pauses: list[float]) -> None:
        budget = RewriteBudget()
        now, written = 0.0, []
        budget.allow(OURS, now)
        for pause in pauses:
            now += pause
            if budget.allow(OURS, now):
                written.append(now)
            else:
                left = budget.next_try(now)
                assert left is not None
                assert 0 < left <= RewriteBudget.WINDOW
        for start in written:
            assert sum(start <= then < start + RewriteBudget.WINDOW for then in written) <= RewriteBudget.LIMIT


@pytest.mark.behaviour("B124")
@pytest.mark.parametrize(
    ("facts", "data", "expected"),
    [
        (FileFacts("regular"), OURS, True),
        (FileFacts("regular"), b"", False),
        (FileFacts("regular", VPNS), OURS, False),
        (FileFacts("missing"), OURS, False),
        (FileFacts("symlink", link_target=STUB), OURS, False),
    ],
)
def test_a_file_that_may_be_truncated_is_empty_and_is_to_hold_something(
    facts: FileFacts, data: bytes, expected: bool
) -> None:
    assert may_be_truncated(facts, data) is expected
