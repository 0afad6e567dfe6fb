# SPDX-License-Identifier: GPL-2.0-or-later
"""A vif: its name, its metric, its file, and the messages about it."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qubes_guestnet.core.provider.vif import (
    GONE,
    OFFLINE,
    ONLINE,
    Device,
    Mapping,
    Vif,
    answer,
    answered,
    ask,
    asked,
    described,
    metric,
    parse,
    render,
    unhooked,
)
from qubes_guestnet.core.vif_name import HIGHEST_DOMID, VifName, parse_name

MAC = "00:16:3e:5e:6c:00"
NAME = VifName("vif4.0", 4, 0)
OWN, OWN6 = ipaddress.ip_address("10.137.0.5"), ipaddress.ip_address("fd09:24ef:4179::a89:5")
FAKE = ipaddress.IPv4Address("192.168.1.5")
FULL = Vif(
    NAME,
    MAC,
    "vif_ioemu",
    (OWN, OWN6),
    (Mapping(ipaddress.IPv4Address("10.137.0.5"), FAKE, ipaddress.IPv4Address("192.168.1.1")),),
    frozenset({ipaddress.ip_interface("10.138.0.1/32"), ipaddress.ip_interface("fd09::1/128")}),
    True,
)

addresses4 = st.integers(0x0A000001, 0x0AFFFFFE).map(ipaddress.IPv4Address)
addresses6 = st.integers(0xFD << 120, (0xFE << 120) - 1).map(ipaddress.IPv6Address)
names = st.builds(
    lambda domid, devid: parse_name(f"vif{domid}.{devid}"), st.integers(0, HIGHEST_DOMID), st.integers(0, 9)
)


@st.composite
def vifs(draw: st.DrawFn) -> Vif:
    own = tuple(draw(st.lists(st.one_of(addresses4, addresses6), max_size=4, unique=True)))
    mapped = [address for address in own if isinstance(address, ipaddress.IPv4Address) and draw(st.booleans())]
    mappings = tuple(Mapping(real, draw(addresses4), draw(st.none() | addresses4)) for real in mapped)
    gateways = frozenset(map(ipaddress.ip_interface, draw(st.lists(st.one_of(addresses4, addresses6), max_size=2))))
    kind = draw(st.sampled_from(["", "vif", "vif_ioemu"]))
    hooked = draw(st.none() | st.just(own[:1]) | st.just(own))
    return Vif(draw(names), MAC, kind, own, mappings, gateways, draw(st.booleans()), hooked=hooked)


@pytest.mark.behaviour("B58")
@pytest.mark.parametrize(
    ("text", "domid", "devid"),
    [("vif4.0", 4, 0), ("vif0.0", 0, 0), ("vif32752.0", 32752, 0), ("vif32752.123456", 32752, 123456)],
)
def test_a_name_says_whose_vif_it_is(text: str, domid: int, devid: int) -> None:
    assert parse_name(text) == (text, domid, devid)


@pytest.mark.behaviour("B58")
@pytest.mark.parametrize(
    "text",
    [
        "", "vif", "vif4", "vif4.", "vif.0", "vif04.0", "vif4.00", "vif-4.0", "vif4.-0", "vif32753.0", "vif99999.0",
        "vif32752.1234567", "vif4.0\n", " vif4.0", "vif4.0.0", "vif4.x", "vif4.0x10", "vif٤.0", "vif4.²", "eth0",
        "4.0", "vifvif4.0", "VIF4.0", 'vif4.0" . 10.0.0.1', "vif4.*", "vif4.0-nat", "vif1e3.0",
        "vif" + "1" * 5000 + ".0",
    ],
)  # fmt: skip
def test_what_is_no_name_of_a_vif(text: str) -> None:
    with pytest.raises(ValueError, match="not the name of a vif") as caught:
        parse_name(text)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300


@given(st.text(alphabet="vif0123456789.", max_size=16) | st.text())
def test_a_name_is_refused_or_is_exactly_what_its_numbers_say(text: str) -> None:
    try:
        name = parse_name(text)
    except ValueError:
        return
    assert text == name.text == f"vif{name.domid}.{name.devid}"
    assert 0 <= name.domid <= 32752


@pytest.mark.parametrize(("text", "domid", "devid"), [("vif4.0", 5, 0), ("vif4.0", 4, 1), ("vif-1.0", -1, 0)])
def test_a_name_cannot_contradict_itself(text: str, domid: int, devid: int) -> None:
    with pytest.raises(ValueError, match="not the name"):
        VifName(text, domid, devid)


@pytest.mark.behaviour("B58")
def test_the_later_domain_is_preferred_and_dom0_is_legal() -> None:
    assert [metric(domid) for domid in (0, 4, 32752)] == [32752, 32748, 0]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"mac": MAC.upper()}, "MAC"),
        ({"mac": "fe:ff:ff:ff:ff:ff"}, "of a single interface"),
        ({"kind": "a b"}, "disallowed bytes"),
        ({"kind": "--help"}, "option"),
        ({"addresses": (ipaddress.ip_address("127.0.0.1"),)}, "127.0.0.1"),
        ({"addresses": (ipaddress.ip_address("fe80::1"),)}, "fe80::1"),
        ({"addresses": (OWN,), "mappings": (Mapping(FAKE, FAKE),)}, "192.168.1.5"),
    ],
)
def test_a_vif_that_cannot_be_cannot_be_made(changes: dict[str, object], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        Vif(**({"name": NAME, "mac": MAC} | changes))  # type: ignore[arg-type]


def test_an_address_counts_once() -> None:
    assert Vif(NAME, MAC, "", (OWN, OWN6, OWN)).addresses == (OWN, OWN6)


def test_there_is_a_limit_to_how_many_addresses_one_has() -> None:
    words = b" ".join(b"10.137.0.%d" % number for number in range(1, 66))
    assert len(described("vif4.0", MAC.encode(), b"", words.rpartition(b" ")[0]).addresses) == 64
    with pytest.raises(ValueError, match="65 addresses are not valid, at most 64"):
        described("vif4.0", MAC.encode(), b"", words)


@pytest.mark.parametrize(
    ("words", "found"),
    [(b"", ()), (b"10.137.0.5", (OWN,)), (b" 10.137.0.5  fd09:24ef:4179::a89:5\n", (OWN, OWN6))],
)
def test_as_the_toolstack_tells_of_it(words: bytes, found: tuple[object, ...]) -> None:
    assert described("vif4.0", b"00:16:3E:5E:6C:00", b"vif", words) == Vif(NAME, MAC, "vif", found)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "mac", "kind", "words", "named"),
    [
        ("eth0", MAC.encode(), b"vif", b"", "eth0"),
        ("vif4.0", b"", b"vif", b"", "MAC address"),
        ("vif4.0", MAC.encode(), b"vif;reboot", b"", "vif;reboot.*type"),
        ("vif4.0", MAC.encode(), b"v" * 33, b"", "type"),
        ("vif4.0", MAC.encode(), b"vif", b"10.137.0.5 10.137.0.256", "10.137.0.256.*address"),
        ("vif4.0", MAC.encode(), b"vif", b"10.137.0.5/24", "address"),
        ("vif4.0", MAC.encode(), b"vif", b"fe80::1", "address"),
        ("vif4.0", MAC.encode(), b"vif", b"\xff\x1b[2J", "address"),
    ],
)
def test_what_the_toolstack_cannot_mean(name: str, mac: bytes, kind: bytes, words: bytes, named: str) -> None:
    with pytest.raises(ValueError, match=named) as caught:
        described(name, mac, kind, words)
    assert str(caught.value).isprintable()


def test_the_file_is_for_people_too() -> None:
    assert render(FULL).decode().splitlines() == [
        f"vif vif4.0 {MAC} vif_ioemu",
        "address 10.137.0.5",
        "address fd09:24ef:4179::a89:5",
        "mapping 10.137.0.5 192.168.1.5 192.168.1.1",
        "gateway 10.138.0.1/32",
        "gateway fd09::1/128",
        "told",
        "end",
    ]


@given(vifs())
def test_what_was_written_is_read(vif: Vif) -> None:
    assert parse(render(vif)) == vif
    for action in (ONLINE, OFFLINE):
        assert asked(ask(action, vif)) == (action, vif)


@given(vifs(), st.data())
def test_what_was_cut_off_is_never_taken_for_a_whole(vif: Vif, data: st.DataObject) -> None:
    message = ask(ONLINE, vif)
    part = message[: data.draw(st.integers(0, len(message) - 1))]
    with pytest.raises(ValueError, match="not a request"):
        asked(part)
    assert parse(part.partition(b"\n")[2]) is None


@pytest.mark.parametrize(
    "data",
    [
        b"", b"end\n", b"\nend\n", b"\xff\nend\n", b"vif vif4.0\nend\n", b"vif eth0 00:16:3e:5e:6c:00\nend\n",
        b"wif vif4.0 00:16:3e:5e:6c:00 vif\nend\n", b"vif vif4.0 00:16:3e:5e:6c:00 vif more\nend\n",
        b"vif vif4.0 00:16:3e:5e:6c:00\naddress\nend\n", b"vif vif4.0 00:16:3e:5e:6c:00\naddress x\nend\n",
        b"vif vif4.0 00:16:3e:5e:6c:00\naddress 10.137.0.5 10.137.0.6\nend\n",
        b"vif vif4.0 00:16:3e:5e:6c:00\nmapping 10.137.0.5\nend\n",
        b"vif vif4.0 00:16:3e:5e:6c:00\nmapping 10.137.0.5 10.0.0.5\nend\n",
        b"vif vif4.0 00:16:3e:5e:6c:00\naddress 10.0.0.5\nmapping 10.0.0.5 fd09::1\nend\n",
        b"vif vif4.0 00:16:3e:5e:6c:00\ngateway\nend\n", b"vif vif4.0 00:16:3e:5e:6c:00\ngateway 10.0.0.1/33\nend\n",
        b"vif vif4.0 00:16:3e:5e:6c:00\nunknown\nend\n", b"vif vif4.0 00:16:3e:5e:6c:00\nend\nend\n",
        b"vif vif4.0 00:16:3e:5e:6c:00\naddress 10.0.0.5\nend", b"vif vif4.0 00:16:3e:5e:6c:00\nend\n\n",
    ],
)  # fmt: skip
def test_a_damaged_file_is_worth_nothing(data: bytes) -> None:
    assert parse(data) is None


@given(st.binary())
def test_no_bytes_whatever_do_harm(data: bytes) -> None:
    assert parse(data) is None
    for read in (asked, answered):
        with pytest.raises(ValueError, match=r"not a request|truncated|decode|not an answer"):
            read(data)


@pytest.mark.parametrize("action", [b"reboot", b"", b"ONLINE", b"online "])
def test_only_two_things_can_be_asked(action: bytes) -> None:
    with pytest.raises(ValueError, match="not a request"):
        asked(action + b"\n" + render(FULL))


@pytest.mark.parametrize(
    ("problem", "done", "read"),
    [
        ("", [], ("", ())),
        ("", ["ip link set vif4.0 up", "conntrack"], ("", ("ip link set vif4.0 up", "conntrack"))),
        ("'…' is no address; set it", ["x"], ("'…' is no address; set it", ("x",))),
        ("two\nlines", ["three\ndone more\nlines"], ("two lines", ("three done more lines",))),
    ],
)
def test_an_answer_comes_over(problem: str, done: list[str], read: tuple[str, tuple[str, ...]]) -> None:
    assert answered(answer(problem, done)) == read
    for end in range(len(answer(problem, done))):
        with pytest.raises(ValueError, match=r"truncated|decode"):
            answered(answer(problem, done)[:end])


@pytest.mark.parametrize("data", [b"done x\nend\n", b"problem\nproblem\nend\n", b"\nend\n"])
def test_what_is_no_answer(data: bytes) -> None:
    with pytest.raises(ValueError, match="not an answer"):
        answered(data)


@pytest.mark.behaviour("B117")
def test_the_device_is_a_part_of_the_record() -> None:
    known = described("vif4.0", b"00:16:3e:5e:6c:04", b"vif", b"10.137.0.4")
    for device in (Device(17, "fe:ff:ff:ff:ff:ff"), Device(17, ""), GONE):
        mine = known._replace(device=device)
        assert parse(render(mine)) == mine
    assert parse(render(known)) == known, "as former releases wrote it"


@pytest.mark.behaviour("B117")
@pytest.mark.parametrize(
    "line", ["device", "device x", "device -1", "device 1 zz", "device 1 fe:ff 2", "device 1\ndevice 2"]
)
def test_a_device_that_is_none_is_damage(line: str) -> None:
    text = f"vif vif4.0 00:16:3e:5e:6c:04 vif\naddress 10.137.0.4\n{line}\nend\n"
    assert parse(text.encode()) is None
    with pytest.raises(ValueError, match="no interface has index"):
        Device(-1, "")


@pytest.mark.behaviour("B122")
@pytest.mark.parametrize("line", ["address fd09::5%eth0", "address fd09::5%1", "gateway fd09::1%eth0/128"])
def test_an_address_with_a_scope_never_reaches_the_rules(line: str) -> None:
    text = f"vif vif4.0 00:16:3e:5e:6c:04 vif\naddress 10.137.0.4\n{line}\nend\n"
    assert parse(text.encode()) is None


@pytest.mark.behaviour("B148")
@pytest.mark.parametrize(
    ("own", "hooked", "due"),
    [
        (("10.137.0.4", "fd09::4"), None, ("10.137.0.4", "fd09::4")),
        (("10.137.0.4", "fd09::4"), ("10.137.0.4",), ("fd09::4",)),
        (("10.137.0.4", "fd09::4"), ("10.137.0.4", "fd09::4"), ()),
        ((), None, ("",)),
        ((), (), ()),
        (("10.137.0.4",), (), ("10.137.0.4",)),
    ],
)
def test_hooks_run_once_an_address(own: tuple[str, ...], hooked: tuple[str, ...] | None, due: tuple[str, ...]) -> None:
    vif = Vif(parse_name("vif4.0"), MAC, "vif", tuple(map(ipaddress.ip_address, own)))
    told = None if hooked is None else tuple(map(ipaddress.ip_address, hooked))
    known = vif._replace(addresses=tuple(map(ipaddress.ip_address, hooked or ())), hooked=told)
    assert unhooked(vif, known) == due


@pytest.mark.behaviour("B148")
def test_hooks_of_a_vif_without_a_record_are_due() -> None:
    assert unhooked(Vif(parse_name("vif4.0"), MAC), None) == ("",)


@pytest.mark.behaviour("B122")
@pytest.mark.parametrize("line", ["hooked 10.137.0.9", "hooked x", "hooked 10.137.0.4\nhooked"])
def test_what_cannot_have_been_told_to_hooks_is_damage(line: str) -> None:
    assert parse(f"vif vif4.0 {MAC}\naddress 10.137.0.4\n{line}\nend\n".encode()) is None
