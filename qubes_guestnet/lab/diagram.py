# SPDX-License-Identifier: GPL-2.0-or-later
"""A tree of qubes as SVG, coloured by health: calm what is as dom0 asked, loud what is not, grey what does not run.

Which families a qube reaches is a label in its box: in the figures of the reference document that is the colour (green
has IPv6, red has not), and so a qube without IPv6, as asked, looked broken.

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
_ACROSS = 6
_CARD, _TITLE, _LEGEND = 28.0, 56.0, 52.0
_NO_ADDRESS = "no address"
_SUBTITLE = "families that each qube reaches, measured with real packets, compared with dom0's settings"
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
.well rect { fill: #eef7f0; stroke: #7fa88a } .well .says { fill: #3d6b4a } .edge.well { stroke: #9db8a5 }
.broken rect { fill: #cf222e; stroke: #82071e; stroke-width: 3.4 } .broken text { fill: #ffffff }
.edge.broken { stroke: #cf222e; stroke-width: 3.4; stroke-dasharray: 3 4 }
.off rect { fill: #eaeef2; stroke: #8c959f; stroke-dasharray: 4 3 } .off .says { fill: #57606a }
.edge.off { stroke: #8c959f; stroke-dasharray: 4 3 }
.world rect { fill: #f6f8fa; stroke: #57606a } .world .says { fill: #57606a }
rect { stroke-width: 1.8 } .card { stroke-width: 1 }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3 } .small { fill: #9ea7b0 } .card { fill: #0d1117; stroke: #30363d }
.well rect { fill: #14241a; stroke: #4d7a5a } .well .says { fill: #9cc7a8 } .edge.well { stroke: #4d7a5a }
.broken rect { fill: #da3633; stroke: #ffb3ad } .broken text { fill: #ffffff } .edge.broken { stroke: #f85149 }
.off rect { fill: #21262d; stroke: #6e7681 } .off .says { fill: #9ea7b0 } .edge.off { stroke: #6e7681 }
.world rect { fill: #161b22; stroke: #8b949e } .world .says { fill: #9ea7b0 }
}
"""
Families = tuple[bool, bool]
_NONE: Families = (False, False)
# By (IPv4, IPv6).
_WORDS = {(True, True): "IPv4 and IPv6", (True, False): "IPv4 only", (False, True): "IPv6 only", _NONE: "nothing"}
_LEGEND_WORDS = {"well": "as dom0 asked", "broken": "not as dom0 asked", "off": "does not run, or has no provider"}


class Node(NamedTuple):
    """One qube.

    Attributes:
        name: of it.
        netvm: the name of its provider.
        addresses: what it has.
        ipv4: whether it reaches the world by IPv4; ipv6 likewise.
        state: such as running.
        world: what it has outside itself, as (IPv4, IPv6).
        asked: what it reaches if everything is as dom0 asked, as (IPv4, IPv6).
        limited: its first firewall rule is not to accept everything.
    """

    name: str
    netvm: str | None = None
    addresses: tuple[str, ...] = ()
    ipv4: bool = False
    ipv6: bool = False
    state: str = "running"
    world: Families | None = None
    asked: Families = _NONE
    limited: bool = False

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Node:
        """Return a node from a row of `lab status --json`, measured."""
        world = row["world"] and (bool(row["world"]["ipv4"]), bool(row["world"]["ipv6"]))
        return cls(
            row["name"], row["netvm"], tuple(row["addresses"]), bool(row["ipv4"]), bool(row["ipv6"]), row["state"],
            world or None, (row["asked"]["ipv4"], row["asked"]["ipv6"]), row["firewall"]["limited"],
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
    limited: bool = False

    @property
    def bottom(self) -> float:
        return self.y + self.height


class _Edge(NamedTuple):
    """A line from a qube up to what it has its network from.

    `tunnel`: sideways, to a world of its own. `around`: for a qube that stands below others of the same provider, where
    the line leaves the space above those (x of the free column beside them, y of that space).
    """

    lower: _Box
    upper: _Box
    kind: str
    tunnel: bool = False
    around: tuple[float, float] | None = None


def draw(title: str, nodes: Sequence[Node]) -> str:
    """Return the SVG of a tree.

    Args:
        title: shown on top.
        nodes: all qubes; those of one provider stay in this order.
    """
    layout = _Layout(nodes)
    legend = _LEGEND_WIDTH + _LIMITED_WIDTH * any(node.limited for node in nodes)
    width = max(layout.width, legend, len(title) * _NAME_WIDTH * 1.2) + 2 * _CARD
    height = _TITLE + layout.height + _LEGEND + _CARD
    told = ", ".join(f"{node.name}: {_kind(node)[1]}" for node in nodes)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}"'
        f' viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label={quoteattr(title)}>',
        f"<title>{escape(title)}</title>",
        f"<desc>Measured reach of each qube. {escape(told)}.</desc>",
        f"<style>{escape(_STYLE)}</style>",
        f'<rect class="card" x="0.5" y="0.5" width="{width - 1:.0f}" height="{height - 1:.0f}" rx="12"/>',
        f'<text class="title" x="{_CARD:.0f}" y="{_CARD + 6:.0f}">{escape(title)}</text>',
        f'<text class="small" x="{_CARD:.0f}" y="{_CARD + 26:.0f}">{_SUBTITLE}</text>',
        f'<g transform="translate({(width - layout.width) / 2:.1f} {_TITLE + _CARD / 2:.1f})">',
        *(line for edge in layout.edges for line in _edge(edge)),
        *(line for box in layout.boxes for line in _box(box)),
        "</g>",
        *_legend(_CARD, height - _CARD, any(node.limited for node in nodes)),
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


# --- where everything is ---------------------------------------------------------------------------------------------


class _Layout:
    """Worlds on top, what is connected below. Every subtree has a rectangle of its own, so that no lines cross.

    The qubes of one provider stand side by side as long as they fit into `_ACROSS` columns, and go on below.
    """

    def __init__(self, nodes: Sequence[Node]) -> None:
        self._behind: dict[str | None, list[Node]] = {}
        names = {node.name for node in nodes}
        for node in nodes:
            self._behind.setdefault(node.netvm if node.netvm in names else None, []).append(node)
        self._column = max([_NARROWEST, *map(_width, nodes)])
        self._world = _height(0) + _ROW_GAP
        self.boxes: list[_Box] = []
        self.edges: list[_Edge] = []
        top = self.width = 0.0
        for line in self._lines_of(self._behind.get(None, [])):
            left = 0.0
            for root in line:
                self._place(root, left, top)
                left += self._size(root)[0] + _GAP
            self.width = max(self.width, left - _GAP)
            top += max(self._size(root)[1] for root in line) + _ROW_GAP
        self.height = max(top - _ROW_GAP, 0.0)

    def _lines_of(self, nodes: Sequence[Node]) -> list[list[Node]]:
        """Return the qubes line by line; one whose subtree is wider than a line has one for itself."""
        limit = _ACROSS * (self._column + _GAP)
        lines: list[list[Node]] = []
        used = limit
        for node in nodes:
            width = self._size(node)[0] + _GAP
            if used + width > limit:
                lines.append([])
                used = 0.0
            lines[-1].append(node)
            used += width
        return lines

    def _size(self, node: Node) -> tuple[float, float]:
        """Return the width and height of a qube with all behind it, and with its world above it."""
        width, height = self._column, _height(len(_lines(node)))
        if _has_tunnel(node):  # the world at its other end is beside it, and it stays in the middle
            width += 2 * (self._column + _TUNNEL)
        lines = self._lines_of(self._behind.get(node.name, ()))
        for line in lines:
            sizes = [self._size(child) for child in line]
            below = sum(size[0] for size in sizes) + _GAP * (len(line) - 1) + 2 * _GAP * (len(lines) > 1)
            width = max(width, below)
            height += _ROW_GAP + max(size[1] for size in sizes)
        return width, height + (self._world if node.netvm is None or node.netvm not in self._behind_names else 0.0)

    @property
    def _behind_names(self) -> set[str]:
        return {node.name for nodes in self._behind.values() for node in nodes}

    def _place(self, node: Node, left: float, top: float) -> _Box:
        """Place a qube with all behind it, its rectangle's upper left corner given; its box."""
        width = self._size(node)[0]
        middle = left + width / 2
        lines = _lines(node)
        is_root = node.netvm is None or node.netvm not in self._behind_names
        y = top + (self._world if is_root else 0.0)
        kind, says = _kind(node)
        box = _Box(middle, y, self._column, _height(len(lines)), kind, node.name, lines, says, node.limited)
        self.boxes.append(box)
        if node.world is not None:
            self._place_world(node, node.world, box, top)
        below = self._lines_of(self._behind.get(node.name, ()))
        y = first = box.bottom + _ROW_GAP
        for number, line in enumerate(below):
            sizes = [self._size(child) for child in line]
            x = left + (width - sum(size[0] for size in sizes) - _GAP * (len(line) - 1)) / 2
            for child, size in zip(line, sizes, strict=True):
                lower = self._place(child, x, y)
                around = (left + _GAP / 2, first - _ROW_GAP / 2) if number else None
                self.edges.append(_Edge(lower, box, lower.kind, around=around))
                x += size[0] + _GAP
            y += max(size[1] for size in sizes) + _ROW_GAP
        return box

    def _place_world(self, node: Node, offers: Families, box: _Box, top: float) -> None:
        tunnel = _has_tunnel(node)
        height = _height(0)
        x, y = (box.x + self._column + _TUNNEL, box.y + (box.height - height) / 2) if tunnel else (box.x, top)
        world = _Box(x, y, self._column, height, "world", "the world", (), f"offers {_WORDS[offers]}")
        self.boxes.append(world)
        self.edges.append(_Edge(box, world, box.kind, tunnel))


def _has_tunnel(node: Node) -> bool:
    return node.netvm is not None and node.world is not None


def _lines(node: Node) -> tuple[str, ...]:
    return node.addresses or (_NO_ADDRESS,)


def _height(lines: int) -> float:
    return 2 * _PADDING + _NAME_LINE + _LINE * lines


def _width(node: Node) -> float:
    says = _kind(node)[1]
    texts = [len(node.name) * _NAME_WIDTH, *(len(line) * _MONO_WIDTH for line in (*_lines(node), says))]
    return max(texts) + 2 * _PADDING


def _kind(node: Node) -> tuple[str, str]:
    """Return the class of a qube, and what is said of it: whether its firewall rules limit it too."""
    if node.limited and node.state == "running" and (node.ipv4, node.ipv6) == node.asked == _NONE and node.netvm:
        return "well", "limited: no ping, as asked"
    kind, says = _health(node)
    return kind, f"{says}, limited" if node.limited else says


def _health(node: Node) -> tuple[str, str]:
    reached = (node.ipv4, node.ipv6)
    if node.state != "running":
        return "off", node.state
    if reached == node.asked:
        return ("well", _WORDS[reached]) if reached != _NONE else ("off", "no network, as asked")
    families = list(zip(("IPv4", "IPv6"), node.asked, reached, strict=True))
    lacks = [f"no {name}" for name, asked, is_there in families if asked and not is_there]
    extra = [f"{name}, which is not asked" for name, asked, is_there in families if is_there and not asked]
    return "broken", ", ".join(extra + lacks) if reached != _NONE else f"nothing; asked: {_WORDS[node.asked]}"


# --- what it looks like ----------------------------------------------------------------------------------------------


def _edge(edge: _Edge) -> Iterator[str]:
    """Yield the line of an edge."""
    lower, upper = edge.lower, edge.upper
    if edge.tunnel:
        x, y = lower.x + lower.width / 2, lower.y + lower.height / 2
        path = f"M{x:.1f} {y:.1f}H{x + _TUNNEL:.1f}"
        yield f'<text class="small middle" x="{x + _TUNNEL / 2:.1f}" y="{y - 7:.1f}">tunnel</text>'
    elif edge.around is not None:
        (x, y), above = edge.around, lower.y - _ROW_GAP / 2
        path = f"M{lower.x:.1f} {lower.y:.1f}L{lower.x:.1f} {above:.1f}L{x:.1f} {above:.1f}L{x:.1f} {y:.1f}"
        path += f"L{upper.x:.1f} {y:.1f}L{upper.x:.1f} {upper.bottom:.1f}"
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
    if box.limited:
        yield _fence(left, box.y, box.width, box.height)
    yield f'<text class="name" x="{box.x:.1f}" y="{y:.1f}">{escape(box.name)}</text>'
    for line in box.lines:
        y += _LINE
        yield f'<text class="address" x="{box.x:.1f}" y="{y + 2:.1f}">{escape(line)}</text>'
    yield f'<text class="says" x="{box.x:.1f}" y="{box.bottom - 9:.1f}">{escape(box.says)}</text>'
    yield "</g>"


def _fence(left: float, top: float, width: float, height: float) -> str:
    """Return the second, inner border of a qube that is limited."""
    return (
        f'<rect style="fill: none" x="{left + _FENCE:.1f}" y="{top + _FENCE:.1f}"'
        f' width="{width - 2 * _FENCE:.1f}" height="{height - 2 * _FENCE:.1f}" rx="6"/>'
    )


_FENCE = 4.0
_LEGEND_STEP = 26.0
_LEGEND_WIDTH, _LIMITED_WIDTH = 500.0, 230.0


def _legend(x: float, y: float, limited: bool) -> Iterator[str]:
    words = {**_LEGEND_WORDS, **({"well limited": "limited by its rules"} if limited else {})}
    for kind, text in words.items():
        inner = _fence(x, y - 11, 16, 13) if kind.endswith("limited") else ""
        yield f'<g class="{kind}"><rect x="{x:.0f}" y="{y - 11:.0f}" width="16" height="13" rx="3"/>{inner}</g>'
        yield f'<text class="key" x="{x + 23:.0f}" y="{y:.0f}">{escape(text)}</text>'
        x += 23 + _LEGEND_STEP + len(text) * _MONO_WIDTH
