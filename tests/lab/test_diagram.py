# SPDX-License-Identifier: GPL-2.0-or-later
"""The diagram: well-formed, the same for the same measurements, nothing on something else, colours that are true."""

from __future__ import annotations

import itertools
import re
import xml.etree.ElementTree as ElementTree
from typing import NamedTuple

import pytest

from qubes_guestnet.lab import diagram
from qubes_guestnet.lab.diagram import Node

SVG = "{http://www.w3.org/2000/svg}"
BOTH = (True, True)
FIGURE = (
    Node("sys-net", None, ("192.168.0.2", "10.137.0.1"), True, False, world=(True, False), asked=(True, False)),
    Node("sys-firewall", "sys-net", ("10.137.0.2",), True, False, asked=(True, False)),
    Node("tunnel", "sys-net", ("10.137.0.3", "fd09:24ef:4179::a89:3"), True, True, "running", (False, True), BOTH),
    Node("personal", "sys-firewall", ("10.137.0.4",), True, False, asked=(True, False)),
    Node("broken", "sys-firewall", ("10.137.0.5",), False, False, asked=(True, False)),
    Node("work", "tunnel", ("10.137.0.6", "fd09:24ef:4179::a89:6"), True, True, asked=(True, True)),
    Node("half", "tunnel", ("10.137.0.7",), True, False, asked=(True, True)),
    Node("leak", "sys-firewall", ("10.137.0.8",), True, True, asked=(True, False)),
    Node("vault"),
)


class Box(NamedTuple):
    kind: str
    texts: tuple[str, ...]
    left: float
    top: float
    width: float
    height: float


def parsed(nodes: tuple[Node, ...], title: str = "tree") -> ElementTree.Element:
    return ElementTree.fromstring(diagram.draw(title, nodes))


def boxes(root: ElementTree.Element) -> dict[str, Box]:
    """All boxes but those of the legend, by the first text in them; of two worlds the later one is `the world 2`."""
    found: dict[str, Box] = {}
    for group in root.iter(f"{SVG}g"):
        rect, texts = group.find(f"{SVG}rect"), tuple(text.text or "" for text in group.findall(f"{SVG}text"))
        if rect is not None and len(texts) > 1:
            name = texts[0] if texts[0] not in found else f"{texts[0]} 2"
            found[name] = Box(
                group.get("class", ""), texts, *(float(rect.get(key, "")) for key in ("x", "y", "width", "height"))
            )
    return found


def test_what_is_as_dom0_asked_is_calm_and_what_is_not_is_loud() -> None:
    found = boxes(parsed(FIGURE))
    assert {name: (box.kind, box.texts[-1]) for name, box in found.items()} == {
        "sys-net": ("well", "IPv4 only"),
        "the world": ("world", "offers IPv4 only"),
        "sys-firewall": ("well", "IPv4 only"),
        "personal": ("well", "IPv4 only"),
        "broken": ("broken", "nothing; asked: IPv4 only"),
        "tunnel": ("well", "IPv4 and IPv6"),
        "the world 2": ("world", "offers IPv6 only"),
        "work": ("well", "IPv4 and IPv6"),
        "half": ("broken", "no IPv6"),
        "leak": ("broken", "IPv6, which is not asked"),
        "vault": ("off", "no network, as asked"),
    }
    assert found["work"].texts[1:-1] == ("10.137.0.6", "fd09:24ef:4179::a89:6")
    assert found["vault"].texts[1:-1] == ("no address",)


def test_who_provides_is_above_and_lines_lead_there() -> None:
    root = parsed(FIGURE)
    drawn = [path.get("class") for path in root.iter(f"{SVG}path")]
    assert sorted(filter(None, drawn)) == ["edge broken"] * 3 + ["edge well"] * 5 + ["edge well tunnel"]
    check_lines(FIGURE)


def check_lines(nodes: tuple[Node, ...]) -> None:
    root = parsed(nodes)
    found = boxes(root)
    for node in nodes:
        if node.netvm is not None:
            upper, lower = found[node.netvm], found[node.name]
            assert upper.top + upper.height < lower.top
            ends = (lower.left + lower.width / 2, lower.top, upper.left + upper.width / 2, upper.top + upper.height)
            assert any(line == pytest.approx(ends, abs=0.2) for line in lines(root)), f"no line from {node.name}"


def many(number: int) -> tuple[Node, ...]:
    """A provider with so many qubes behind it, and a second one with a few."""
    return (
        Node("net", world=(True, True)),
        *(Node(f"q{each}", "net", ("10.137.0.1",)) for each in range(number)),
        Node("proxy", "net"),
        *(Node(f"p{each}", "proxy", ("10.137.0.1",)) for each in range(8)),
        Node("last", "net"),
    )


@pytest.mark.parametrize("number", [5, 12, 40, 250])
def test_many_qubes_wrap_and_no_line_crosses_a_box(number: int) -> None:
    nodes = many(number)
    root = parsed(nodes)
    assert float(root.get("width", "")) < 1600
    check_lines(nodes)
    for path in root.iter(f"{SVG}path"):
        numbers = [float(word) for word in re.findall(r"-?[0-9.]+", path.get("d", ""))]
        points = list(zip(numbers[::2], numbers[1::2], strict=True))
        if "C" in path.get("d", ""):
            continue  # from one row to the next one
        for (x1, y1), (x2, y2) in itertools.pairwise(points):
            for box in boxes(root).values():
                inside = (
                    max(x1, x2) > box.left + 1 and min(x1, x2) < box.left + box.width - 1
                    and max(y1, y2) > box.top + 1 and min(y1, y2) < box.top + box.height - 1
                )  # fmt: skip
                assert not inside, f"{box} is crossed"


def lines(root: ElementTree.Element) -> list[tuple[float, ...]]:
    """Both ends of each line."""
    numbers = [[float(word) for word in re.findall(r"[0-9.]+", path.get("d", ""))] for path in root.iter(f"{SVG}path")]
    return [(*found[:2], *found[-2:]) for found in numbers]


@pytest.mark.parametrize(
    "nodes",
    [
        FIGURE,
        (Node("alone", None, ("10.137.0.1",)),),
        tuple(Node(f"n{number}", f"n{number - 1}" if number else None, world=(True, True)) for number in range(6)),
        (Node("net", world=(True, True)), *(Node(f"q{number}", "net", ("10.137.0.1",)) for number in range(40))),
        (Node("a" * 31, None, ("fd09:24ef:4179:ffff:ffff:ffff:ffff:ffff",)), Node("b"), Node("c", "b")),
    ],
    ids=["figure", "alone", "chain of tunnels", "wide", "long"],
)
def test_nothing_lies_on_something_else(nodes: tuple[Node, ...]) -> None:
    root = parsed(nodes)
    drawn = boxes(root).values()
    for one, other in itertools.combinations(drawn, 2):
        apart = (
            one.left + one.width < other.left or other.left + other.width < one.left
            or one.top + one.height < other.top or other.top + other.height < one.top
        )  # fmt: skip
        assert apart, f"{one} and {other}"
    width, height = float(root.get("width", "")), float(root.get("height", ""))
    for box in drawn:
        assert 0 <= box.left < width - box.width
        assert box.top + box.height < height
        for text in box.texts:
            assert len(text) * 7.2 < box.width, f"{text} does not fit"


def test_the_same_measurements_give_the_same_text() -> None:
    assert diagram.draw("t", FIGURE) == diagram.draw("t", list(FIGURE))
    assert diagram.draw("t", FIGURE) != diagram.draw("t", (*FIGURE[:-1], FIGURE[-1]._replace(ipv4=True)))


def test_names_are_text_and_never_markup() -> None:
    root = parsed((Node('<b>&"', None, ("<i/>",)),), title="a<b&c\"'")
    assert boxes(root)['<b>&"'].texts[1] == "<i/>"
    assert root.get("aria-label") == "a<b&c\"'"


def test_it_needs_nothing_from_elsewhere_and_knows_dark() -> None:
    text = diagram.draw("t", FIGURE)
    assert text.count("http") == 1  # its own name space
    assert "@import" not in text
    assert "url(" not in text
    assert "prefers-color-scheme: dark" in text
    for word in ("as dom0 asked", "not as dom0 asked"):
        assert f">{word}</text>" in text, f"{word} is not in the legend"


def test_a_qube_that_does_not_run_says_so() -> None:
    found = boxes(parsed((Node("off", state="halted"), Node("still", state="paused"))))
    assert [(box.kind, box.texts[-1]) for box in found.values()] == [("off", "halted"), ("off", "paused")]


def test_a_limited_qube_has_a_second_border_and_a_word() -> None:
    plain = diagram.draw("t", FIGURE)
    limited = tuple(node._replace(limited=node.name in ("personal", "half", "vault")) for node in FIGURE)
    found = boxes(parsed(limited))
    assert {name: box.texts[-1] for name, box in found.items() if "limited" in box.texts[-1]} == {
        "personal": "IPv4 only, limited", "half": "no IPv6, limited", "vault": "no network, as asked, limited",
    }  # fmt: skip
    inner = [
        group for group in parsed(limited).iter(f"{SVG}g") if len(group.findall(f"{SVG}rect")) == 2
    ]  # fmt: skip
    assert [group.get("class") for group in inner] == ["well", "broken", "off", "well limited"]  # of the legend: last
    for group in inner:
        outer, border = ({key: float(rect.get(key, "")) for key in ("x", "y", "width", "height")}
                         for rect in group.findall(f"{SVG}rect"))  # fmt: skip
        assert outer["x"] < border["x"] < border["x"] + border["width"] < outer["x"] + outer["width"]
        assert outer["y"] < border["y"] < border["y"] + border["height"] < outer["y"] + outer["height"]
    assert ">limited by its rules</text>" in diagram.draw("t", limited)
    assert "limited" not in plain
    test_nothing_lies_on_something_else(limited)


def test_a_qube_whose_rules_refuse_a_ping_is_calm_when_none_passes() -> None:
    silent = Node("q", "net", ("10.137.0.2",), limited=True)
    found = boxes(parsed((Node("net"), silent)))
    assert (found["q"].kind, found["q"].texts[-1]) == ("well", "limited: no ping, as asked")
    found = boxes(parsed((Node("net"), silent._replace(ipv4=True))))
    assert (found["q"].kind, found["q"].texts[-1]) == ("broken", "IPv4, which is not asked, limited")


def test_a_node_from_a_row_of_the_status() -> None:
    row = {
        "name": "n", "state": "running", "netvm": None, "addresses": ["192.168.0.2"], "ipv4": True, "ipv6": None,
        "world": {"ipv4": True, "ipv6": False}, "agent": "running", "asked": {"ipv4": True, "ipv6": True},
        "firewall": {"limited": True, "rules": ["action=drop"]},
    }  # fmt: skip
    assert Node.of(row) == Node("n", None, ("192.168.0.2",), True, False, "running", (True, False), (True, True), True)
    assert Node.of({**row, "world": None, "netvm": "m"}).world is None
