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
FIGURE = (
    Node("sys-net", None, ("192.168.0.2", "10.137.0.1"), True, False, world=(True, False)),
    Node("sys-firewall", "sys-net", ("10.137.0.2",), True, False),
    Node("tunnel", "sys-net", ("10.137.0.3", "fd09:24ef:4179::a89:3"), True, True, world=(False, True)),
    Node("personal", "sys-firewall", ("10.137.0.4",), True, False),
    Node("broken", "sys-firewall", ("10.137.0.5",), False, False),
    Node("work", "tunnel", ("10.137.0.6", "fd09:24ef:4179::a89:6"), True, True),
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


def test_every_qube_has_its_colour_and_a_word_for_it() -> None:
    found = boxes(parsed(FIGURE))
    assert {name: (box.kind, box.texts[-1]) for name, box in found.items()} == {
        "sys-net": ("ipv4", "IPv4 only"),
        "the world": ("world", "offers IPv4 only"),
        "sys-firewall": ("ipv4", "IPv4 only"),
        "personal": ("ipv4", "IPv4 only"),
        "broken": ("nothing", "nothing"),
        "tunnel": ("both", "IPv4 and IPv6"),
        "the world 2": ("world", "offers IPv6 only"),
        "work": ("both", "IPv4 and IPv6"),
        "vault": ("nothing", "nothing"),
    }
    assert found["work"].texts[1:-1] == ("10.137.0.6", "fd09:24ef:4179::a89:6")
    assert found["vault"].texts[1:-1] == ("no address",)


def test_who_provides_is_above_and_lines_lead_there() -> None:
    root = parsed(FIGURE)
    found = boxes(root)
    drawn = [path.get("class") for path in root.iter(f"{SVG}path")]
    assert sorted(filter(None, drawn)) == [
        "edge both", "edge ipv4", "edge ipv4", "edge ipv4", "edge ipv4", "edge ipv6 tunnel", "edge nothing",
    ]  # fmt: skip
    for node in FIGURE:
        if node.netvm is not None:
            upper, lower = found[node.netvm], found[node.name]
            assert upper.top + upper.height < lower.top
            ends = (lower.left + lower.width / 2, lower.top, upper.left + upper.width / 2, upper.top + upper.height)
            assert any(line == pytest.approx(ends, abs=0.2) for line in lines(root)), f"no line from {node.name}"


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
    root = parsed((Node('<b>&"', None, ("<i/>",)),), title='a<b&c"\'')
    assert boxes(root)['<b>&"'].texts[1] == "<i/>"
    assert root.get("aria-label") == 'a<b&c"\''


def test_it_needs_nothing_from_elsewhere_and_knows_dark() -> None:
    text = diagram.draw("t", FIGURE)
    assert text.count("http") == 1  # its own name space
    assert "@import" not in text
    assert "url(" not in text
    assert "prefers-color-scheme: dark" in text
    for word in ("IPv4 and IPv6", "IPv4 only", "nothing"):
        assert f">{word}</text></g>" in text, f"{word} is not in the legend"


def test_a_qube_that_does_not_run_says_so() -> None:
    found = boxes(parsed((Node("off", state="halted"), Node("still", state="paused"))))
    assert [(box.kind, box.texts[-1]) for box in found.values()] == [("nothing", "halted"), ("nothing", "paused")]


def test_a_node_from_a_row_of_the_status() -> None:
    row = {
        "name": "n", "state": "running", "netvm": None, "addresses": ["192.168.0.2"], "ipv4": True, "ipv6": None,
        "world": {"ipv4": True, "ipv6": False}, "agent": "running",
    }  # fmt: skip
    assert Node.of(row) == Node("n", None, ("192.168.0.2",), True, False, "running", (True, False))
    assert Node.of({**row, "world": None, "netvm": "m"}).world is None
