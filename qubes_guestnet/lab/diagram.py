# SPDX-License-Identifier: GPL-2.0-or-later
"""A tree of qubes as SVG, coloured by what each of them reaches: green IPv4 and IPv6, red IPv4 only, grey nothing.

Pure: what was measured goes in, text comes out, and the same text for the same measurements. Colours are never alone: a
word in each box says the same. No fonts or files from elsewhere; a reader's dark mode is respected where there is one,
and elsewhere the card brings its own background.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple
from xml.sax.saxutils import escape, quoteattr

_GAP, _ROW_GAP = 22.0, 46.0
_PADDING, _LINE, _NAME_LINE = 14.0, 16.0, 22.0
_NAME_WIDTH, _MONO_WIDTH, _NARROWEST = 8.6, 7.25, 160.0
_TUNNEL = 44.0
_CARD, _TITLE, _LEGEND = 28.0, 56.0, 52.0
_NO_ADDRESS = "no address"
_SUBTITLE = "who reaches the world, measured with real packets"
_STYLE = """
text { font: 12px ui-sans-serif, system-ui, "DejaVu Sans", Arial, sans-serif; fill: #24292f }
.title { font-size: 17px; font-weight: 600 }
.name { font-size: 14px; font-weight: 600; text-anchor: middle }
.address { font-family: ui-monospace, "DejaVu Sans Mono", monospace; text-anchor: middle }
.says { font-size: 11px; text-anchor: middle; font-weight: 600 }
.small { font-size: 11px; fill: #57606a } .middle { text-anchor: middle }
.card { fill: #ffffff; stroke: #d0d7de }
.edge { fill: none; stroke-width: 2.2 }
.tunnel { stroke-dasharray: 7 5 }
.both rect { fill: #d3f5d9; stroke: #1a7f37 } .both .says { fill: #116329 } .edge.both { stroke: #1a7f37 }
.ipv4 rect { fill: #ffdfdc; stroke: #cf222e } .ipv4 .says { fill: #a40e26 } .edge.ipv4 { stroke: #cf222e }
.ipv6 rect { fill: #ddeaff; stroke: #0969da } .ipv6 .says { fill: #0550ae } .edge.ipv6 { stroke: #0969da }
.nothing rect { fill: #eaeef2; stroke: #8c959f; stroke-dasharray: 4 3 } .nothing .says { fill: #57606a }
.edge.nothing { stroke: #8c959f; stroke-dasharray: 4 3 }
.world rect { fill: #f6f8fa; stroke: #57606a } .world .says { fill: #57606a }
rect { stroke-width: 1.8 } .card { stroke-width: 1 }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3 } .small { fill: #9ea7b0 } .card { fill: #0d1117; stroke: #30363d }
.both rect { fill: #12361f; stroke: #3fb950 } .both .says { fill: #56d364 } .edge.both { stroke: #3fb950 }
.ipv4 rect { fill: #431a1d; stroke: #f85149 } .ipv4 .says { fill: #ff8f88 } .edge.ipv4 { stroke: #f85149 }
.ipv6 rect { fill: #122c50; stroke: #58a6ff } .ipv6 .says { fill: #79c0ff } .edge.ipv6 { stroke: #58a6ff }
.nothing rect { fill: #21262d; stroke: #6e7681 } .nothing .says { fill: #9ea7b0 } .edge.nothing { stroke: #6e7681 }
.world rect { fill: #161b22; stroke: #8b949e } .world .says { fill: #9ea7b0 }
}
"""
# By (IPv4, IPv6): the class, and what is said.
_KINDS = {
    (True, True): ("both", "IPv4 and IPv6"),
    (True, False): ("ipv4", "IPv4 only"),
    (False, True): ("ipv6", "IPv6 only"),
    (False, False): ("nothing", "nothing"),
}


class Node(NamedTuple):
    """One qube.

    Attributes:
        name: of it.
        netvm: the name of its provider.
        addresses: what it has.
        ipv4: whether it reaches the world by IPv4; ipv6 likewise.
        state: such as running.
        world: what it has outside itself, as (IPv4, IPv6).
    """

    name: str
    netvm: str | None = None
    addresses: tuple[str, ...] = ()
    ipv4: bool = False
    ipv6: bool = False
    state: str = "running"
    world: tuple[bool, bool] | None = None

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Node:
        """A node from a row of `lab status --json`, measured."""
        world = row["world"] and (bool(row["world"]["ipv4"]), bool(row["world"]["ipv6"]))
        return cls(
            row["name"], row["netvm"], tuple(row["addresses"]), bool(row["ipv4"]), bool(row["ipv6"]), row["state"],
            world or None,
        )  # fmt: skip


class _Box(NamedTuple):
    """A placed box: x of its middle, y of its upper edge; `kind` is its class in the style."""

    x: float
    y: float
    width: float
    height: float
    kind: str
    name: str
    lines: tuple[str, ...]
    says: str

    @property
    def bottom(self) -> float:
        return self.y + self.height


class _Edge(NamedTuple):
    """A line from a qube up to what it has its network from; `tunnel`: sideways, to a world of its own."""

    lower: _Box
    upper: _Box
    kind: str
    tunnel: bool = False


def draw(title: str, nodes: Sequence[Node]) -> str:
    """The SVG of a tree.

    Args:
        title: shown on top.
        nodes: all qubes; those of one provider stay in this order.
    """
    layout = _Layout(nodes)
    width = max(layout.width, _LEGEND_WIDTH, len(title) * _NAME_WIDTH * 1.2) + 2 * _CARD
    height = _TITLE + layout.height + _LEGEND + _CARD
    told = ", ".join(f"{node.name}: {_kind(node)[1]}" for node in nodes)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}"'
        f' viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label={quoteattr(title)}>',
        f"<title>{escape(title)}</title>",
        f"<desc>Who reaches the world, measured. {escape(told)}.</desc>",
        f"<style>{escape(_STYLE)}</style>",
        f'<rect class="card" x="0.5" y="0.5" width="{width - 1:.0f}" height="{height - 1:.0f}" rx="12"/>',
        f'<text class="title" x="{_CARD:.0f}" y="{_CARD + 6:.0f}">{escape(title)}</text>',
        f'<text class="small" x="{_CARD:.0f}" y="{_CARD + 26:.0f}">{_SUBTITLE}</text>',
        f'<g transform="translate({(width - layout.width) / 2:.1f} {_TITLE + _CARD / 2:.1f})">',
        *(line for edge in layout.edges for line in _edge(edge)),
        *(line for box in layout.boxes for line in _box(box)),
        "</g>",
        *_legend(_CARD, height - _CARD, frozenset(edge.kind for edge in layout.edges)),
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


# --- where everything is ---------------------------------------------------------------------------------------------


class _Layout:
    """A row for each depth, worlds on top; every subtree has columns of its own, so that no lines cross."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        self._behind: dict[str | None, list[Node]] = {}
        names = {node.name for node in nodes}
        for node in nodes:
            self._behind.setdefault(node.netvm if node.netvm in names else None, []).append(node)
        roots = self._behind.get(None, [])
        self._column = max([_NARROWEST, *map(_width, nodes)])
        depth = max((self._depth(root) for root in roots), default=0)
        texts = [max((len(_lines(node)) for node in level), default=1) for level in self._levels(roots)]
        self._heights = [_height(0), *map(_height, texts)]
        self._tops = [sum(self._heights[:row]) + _ROW_GAP * row for row in range(depth + 1)]
        self.boxes: list[_Box] = []
        self.edges: list[_Edge] = []
        left = 0.0
        for root in roots:
            left += self._place(root, left, 1) + _GAP
        self.width = max(left - _GAP, 0.0)
        self.height = self._tops[-1] + self._heights[-1]

    def _depth(self, node: Node) -> int:
        return 1 + max((self._depth(child) for child in self._behind.get(node.name, ())), default=0)

    def _levels(self, level: Sequence[Node]) -> Iterator[Sequence[Node]]:
        while level:
            yield level
            level = [child for node in level for child in self._behind.get(node.name, ())]

    def _span(self, node: Node) -> float:
        """Width of a qube with all behind it."""
        children = self._behind.get(node.name, ())
        below = sum(map(self._span, children)) + _GAP * max(len(children) - 1, 0)
        own = self._column
        if _has_tunnel(node):  # the world at its other end is beside it, and it stays in the middle
            own += 2 * (self._column + _TUNNEL)
        return max(own, below)

    def _place(self, node: Node, left: float, row: int) -> float:
        """Place a qube with all behind it, from `left` on; the width that took."""
        span = self._span(node)
        kind, says = _kind(node)
        middle = left + span / 2
        lines = _lines(node)
        box = _Box(middle, self._tops[row], self._column, _height(len(lines)), kind, node.name, lines, says)
        self.boxes.append(box)
        if node.world is not None:
            tunnel = _has_tunnel(node)
            height = _height(0)
            x, y = (middle + self._column + _TUNNEL, box.y + (box.height - height) / 2) if tunnel else (middle, 0.0)
            says = f"offers {_KINDS[node.world][1]}"
            self.boxes.append(_Box(x, y, self._column, height, "world", "the world", (), says))
            self.edges.append(_Edge(box, self.boxes[-1], _between(node, node.world), tunnel))
        children = self._behind.get(node.name, ())
        below = sum(map(self._span, children)) + _GAP * max(len(children) - 1, 0)
        left += (span - below) / 2
        for child in children:
            index = len(self.boxes)
            left += self._place(child, left, row + 1) + _GAP
            self.edges.append(_Edge(self.boxes[index], box, _between(child, (node.ipv4, node.ipv6))))
        return span


def _has_tunnel(node: Node) -> bool:
    return node.netvm is not None and node.world is not None


def _lines(node: Node) -> tuple[str, ...]:
    return node.addresses or (_NO_ADDRESS,)


def _height(lines: int) -> float:
    return 2 * _PADDING + _NAME_LINE + _LINE * lines


def _width(node: Node) -> float:
    texts = [len(node.name) * _NAME_WIDTH, *(len(line) * _MONO_WIDTH for line in _lines(node))]
    return max(texts) + 2 * _PADDING


def _kind(node: Node) -> tuple[str, str]:
    kind, says = _KINDS[node.ipv4, node.ipv6]
    return kind, says if node.state == "running" else node.state


def _between(node: Node, upper: tuple[bool, bool]) -> str:
    """The class of the line to what it has its network from: what can have come by it, not by a tunnel in it."""
    return _KINDS[node.ipv4 and upper[0], node.ipv6 and upper[1]][0]


# --- what it looks like ----------------------------------------------------------------------------------------------


def _edge(edge: _Edge) -> Iterator[str]:
    """The line of an edge."""
    lower, upper = edge.lower, edge.upper
    if edge.tunnel:
        x, y = lower.x + lower.width / 2, lower.y + lower.height / 2
        path = f"M{x:.1f} {y:.1f}H{x + _TUNNEL:.1f}"
        yield f'<text class="small middle" x="{x + _TUNNEL / 2:.1f}" y="{y - 7:.1f}">tunnel</text>'
    else:
        middle = lower.y - _ROW_GAP / 2
        path = f"M{lower.x:.1f} {lower.y:.1f}"
        path += f"C{lower.x:.1f} {middle:.1f} {upper.x:.1f} {middle:.1f} {upper.x:.1f} {upper.bottom:.1f}"
    yield f'<path class="edge {edge.kind}{" tunnel" if edge.tunnel else ""}" d="{path}"/>'


def _box(box: _Box) -> Iterator[str]:
    left, y = box.x - box.width / 2, box.y + _PADDING + 9
    yield f'<g class="{box.kind}">'
    yield (
        f'<rect x="{left:.1f}" y="{box.y:.1f}" width="{box.width:.1f}" height="{box.height:.1f}"'
        f' rx="{box.height / 2 if box.kind == "world" else 9:.0f}"/>'
    )
    yield f'<text class="name" x="{box.x:.1f}" y="{y:.1f}">{escape(box.name)}</text>'
    for line in box.lines:
        y += _LINE
        yield f'<text class="address" x="{box.x:.1f}" y="{y + 2:.1f}">{escape(line)}</text>'
    yield f'<text class="says" x="{box.x:.1f}" y="{box.bottom - 9:.1f}">{escape(box.says)}</text>'
    yield "</g>"


_LEGEND_STEP = 26.0
_LEGEND_WIDTH = 340.0


def _legend(x: float, y: float, kinds: frozenset[str]) -> Iterator[str]:
    for kind, text in _KINDS.values():
        if kind == "ipv6" and kind not in kinds:  # only a tunnel is of that kind
            continue
        yield f'<g class="{kind}"><rect x="{x:.0f}" y="{y - 11:.0f}" width="16" height="13" rx="3"/>'
        yield f'<text x="{x + 23:.0f}" y="{y:.0f}">{escape(text)}</text></g>'
        x += 23 + _LEGEND_STEP + len(text) * _MONO_WIDTH
