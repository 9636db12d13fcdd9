"""A placement's block as a picture: its own equations, run with streams that remember what they are made of.

Columns: the skips in column 0 (a second stream's on the far right), branches between. Rows: the order of computation,
upwards. The path that meets no sublayer, from what enters to what leaves, is thick.
"""

from __future__ import annotations

import html
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import sympy

from propagate.model import as_placement
from propagate.placement import Placement, join, split
from propagate.text import DEPTH

WIDTH, HEIGHT = 150, 46  # of a column and of a row, in pixels
HALF = {"box": (56, 15), "sum": (10, 10), "end": (14, 12)}  # half width and half height of what stands in a cell
SUBLAYERS = ("Attention", "FFN")
Point = tuple[float, float]


@dataclass(eq=False)
class Node:
    """A stream. `parts` are the streams it is made of, each with its factor; `kind` is "+", "x" (a factor), the name
    of a stream that enters or leaves, or a function."""

    kind: str
    parts: list[tuple[Any, Node]]
    note: str = ""
    column: int = 0
    row: int = 0

    def __add__(self, other: Node) -> Node:
        return Node("+", [(1, self), (1, other)])

    def __radd__(self, zero: int) -> Node:
        """`sum` of streams begins with 0."""
        return self if zero == 0 else NotImplemented

    def __neg__(self) -> Node:
        return self * -1

    def __sub__(self, other: Node) -> Node:
        return self + -other

    def __mul__(self, factor: Any) -> Node:
        return Node("x", [(factor, self)])

    __rmul__ = __mul__

    def __truediv__(self, divisor: Any) -> Node:
        return self * (1 / divisor)

    @property
    def shape(self) -> str:
        return "sum" if self.kind == "+" else "end" if self.kind[0] in "xyz" else "box"


@dataclass(frozen=True)
class Block:
    """What the equations see."""

    index: Any
    depth: Any
    first: bool = False
    last: bool = False
    sizes: list[Node] = field(default_factory=list)

    def attention(self, x: Node, normed: Sequence[str] = ()) -> Node:
        return Node("Attention", [(1, x)], f"{', '.join(normed)} normed" if normed else "")

    def ffn(self, x: Node, normed: Sequence[str] = ()) -> Node:
        return Node("FFN", [(1, x)], f"{', '.join(normed)} normed" if normed else "")

    def norm(self, x: Node) -> Node:
        return Node("Norm", [(1, x)])

    def tanh(self, x: Node) -> Node:
        return Node("tanh", [(1, x)])

    def std(self, x: Node) -> Any:
        self.sizes.append(x)
        symbol = sympy.Symbol(f"σ{'₁₂₃₄₅₆₇₈'[len(self.sizes) - 1]}", positive=True)
        x.note = f"std: {symbol}"
        return symbol


@dataclass(frozen=True)
class Flow:
    """One block: the streams that enter, those that leave, and what becomes of plain numbers that pass through."""

    sources: tuple[Node, ...]
    outputs: tuple[Node, ...]
    numbers: tuple[str, ...]


def flows(placement: str | Placement) -> list[Flow]:
    """The flow of an interior block; where it depends on which one it is, of the first and of the last of 24."""
    chosen = as_placement(placement)
    try:
        return [_flow(chosen, Block(sympy.Symbol("l", positive=True), sympy.Symbol("L", positive=True)))]
    except TypeError as error:  # SymPy's, when an equation asks whether a symbol is less than another
        if "truth value of Relational" not in str(error):
            raise
    return [_flow(chosen, Block(index, DEPTH)) for index in (1, DEPTH)]


def _flow(placement: Placement, block: Block) -> Flow:
    streams, layout = split(placement.embed(Node("x", []), block), Node)
    sources = [Node(name, []) for name in "xyz"[: len(streams)]]
    entering = layout and tuple(None if leaf is None else sympy.Symbol("w", positive=True) for leaf in layout)
    left, after = split(placement.block(join(sources, entering), block), Node)
    outputs = tuple(
        _tidy(Node(f"{s.kind}′", [(1, node)]), len(left) == 1) for s, node in zip(sources, left, strict=True)
    )
    numbers = [(a, b) for a, b in zip(entering or (), after or (), strict=True) if a is not None]
    return Flow(tuple(sources), outputs, tuple(f"{old}′ = {factor_text(new)}" for old, new in numbers))


def _tidy(output: Node, alone: bool) -> Node:
    """Factors become labels of arrows; in a stream alone, a sum that only another sum reads becomes part of it."""
    readers: dict[int, int] = {}
    for node in in_order([output]):
        for _, part in node.parts:
            readers[id(part)] = readers.get(id(part), 0) + 1

    def terms(factor: Any, part: Node) -> Iterator[tuple[Any, Node]]:
        if part.kind == "x" and part.parts:
            yield from terms(factor * part.parts[0][0], part.parts[0][1])
        else:
            yield factor, part

    for node in in_order([output]):
        node.parts = [term for part in node.parts for term in terms(*part)]
        if node.kind == "+":
            merged: list[tuple[Any, Node]] = []
            for factor, part in node.parts:
                absorbed = alone and part.kind == "+" and factor == 1 and readers[id(part)] == 1
                merged += part.parts if absorbed else [(factor, part)]
            node.parts = merged
    return output


def in_order(outputs: Sequence[Node]) -> list[Node]:
    """Every node once, after those it is made of."""
    seen: dict[int, Node] = {}

    def visit(node: Node) -> None:
        if id(node) not in seen:
            for _, part in node.parts:
                visit(part)
            seen[id(node)] = node

    for output in outputs:
        visit(output)
    return list(seen.values())


def skips(flow: Flow) -> list[set[Node]]:
    """For each stream, the nodes on a path from its source to its output that meets no sublayer."""
    found = []
    for source, output in zip(flow.sources, flow.outputs, strict=True):
        after = {source}
        for node in in_order([output]):
            if node.kind not in SUBLAYERS and any(part in after for _, part in node.parts):
                after.add(node)
        before, waiting = {output} & after, [output]
        while waiting:
            node = waiting.pop()
            for _, part in node.parts:
                if part in after and part not in before:
                    before.add(part)
                    waiting.append(part)
        found.append(before)
    return found


def place(flow: Flow) -> list[Node]:
    """All nodes, with their columns and rows."""
    nodes, trunks = in_order(flow.outputs), skips(flow)
    taken: set[tuple[int, int]] = set()
    on_skip = set().union(*trunks)
    for node in nodes:
        node.row = 1 + max((part.row for _, part in node.parts), default=-1)
        if node not in on_skip and node not in flow.sources:
            node.column = max((part.column for _, part in node.parts if part not in on_skip), default=1)
            while (node.column, node.row) in taken:
                node.column += 1
            taken.add((node.column, node.row))
    last = max((node.column for node in nodes), default=0) + 1
    for k, (source, trunk) in enumerate(zip(flow.sources, trunks, strict=True)):
        for node in {source} | trunk:
            node.column = 0 if k == 0 else last + k - 1
    top = max(output.row for output in flow.outputs)
    for output in flow.outputs:
        output.row = top
    return nodes


def route(nodes: Sequence[Node], start: Node, end: Node) -> list[Point]:
    """Corners of the arrow, in units of columns and rows: the first way that crosses no other node."""
    (a, r), (b, s) = (start.column, start.row), (end.column, end.row)
    side = -0.55 if a == 0 else 0.55
    ways: list[list[Point]]
    if a == b:
        ways = [[(a, r), (b, s)], [(a, r), (a, r + 0.5), (a + side, r + 0.5), (a + side, s), (b, s)]]
    elif end.kind == "+":
        ways = [[(a, r), (a, s), (b, s)], [(a, r), (a, s - 0.5), (b, s - 0.5), (b, s)]]
    else:
        ways = [[(a, r), (a, s - 0.5), (b, s - 0.5), (b, s)], [(a, r), (a, r + 0.5), (b, r + 0.5), (b, s)]]
    others = [(n.column, n.row) for n in nodes if n is not start and n is not end]

    def free(way: Sequence[Point]) -> bool:
        return not any(_between(node, p, q) for node in others for p, q in itertools.pairwise(way))

    return next((way for way in ways if free(way)), ways[-1])


def _between(node: Point, p: Point, q: Point) -> bool:
    return all(min(i, j) - 1e-9 <= k <= max(i, j) + 1e-9 for k, i, j in zip(node, p, q, strict=True))


def svg(placement: str | Placement, flow: Flow) -> str:
    """The picture as SVG text, in the colours of the page around it."""
    nodes, trunks = place(flow), skips(flow)
    left = 0.62 if any(len(route(nodes, p, n)) == 5 for n in nodes for _, p in n.parts) else 0.42
    columns, rows = max(n.column for n in nodes), max(n.row for n in nodes)
    width, height = (columns + 0.62 + left) * WIDTH, (rows + 1) * HEIGHT

    def at(point: Point) -> Point:
        return (point[0] + left) * WIDTH, height - (point[1] + 0.5) * HEIGHT

    thin: list[str] = []
    thick: list[str] = []
    boxes: list[str] = []
    for node in nodes:
        boxes.append(_shape(node, *at((node.column, node.row))))
        for factor, part in node.parts:
            skip = any(node in trunk and part in trunk for trunk in trunks)
            arrow = _arrow([at(p) for p in route(nodes, part, node)], part, node, factor, "skip" if skip else "branch")
            (thick if skip else thin).append(arrow)
    name = html.escape(type(as_placement(placement)).__name__)
    return (
        f'<svg class="dataflow" role="img" aria-label="Dataflow of one block of {name}" viewBox="0 0 {width:.0f}'
        f' {height:.0f}" width="{width:.0f}" xmlns="http://www.w3.org/2000/svg">\n'
        + "\n".join([*thin, *thick, *boxes])
        + "\n</svg>\n"
    )


def _shape(node: Node, x: float, y: float) -> str:
    w, h = HALF[node.shape]
    lower = -8 if node.shape == "sum" else 14
    note = f'<text class="note" x="{x + w + 2}" y="{y + lower}">{html.escape(node.note)}</text>' if node.note else ""
    if node.shape == "sum":
        return f'<circle cx="{x}" cy="{y}" r="{w}"/><path d="M{x - 5} {y}H{x + 5}M{x} {y - 5}V{y + 5}"/>{note}'
    if node.shape == "end":
        return f'<text class="end" x="{x}" y="{y + 5}">{html.escape(node.kind)}</text>'
    kind, lift = node.kind.lower(), 0
    label, small = node.kind, ""
    if node.note.endswith("normed"):
        lift, note = 4, ""
        small = f'<text class="small" x="{x}" y="{y + 11}">{html.escape(node.note)}</text>'
    return (
        f'<rect class="{kind}" x="{x - w}" y="{y - h}" width="{2 * w}" height="{2 * h}" rx="5"/>'
        f'<text x="{x}" y="{y + 4 - lift}">{label}</text>{small}{note}'
    )


def _arrow(corners: list[Point], start: Node, end: Node, factor: Any, kind: str) -> str:
    """A line with round corners from edge to edge, its factor beside where it ends, and an arrowhead."""
    points = list(corners)
    points[0], points[-1] = _clip(points[0], points[1], start), _clip(points[-1], points[-2], end)
    (x, y), (px, py) = points[-1], points[-2]
    path = f"M{points[0][0]:.1f} {points[0][1]:.1f}"
    for before, corner, after in zip(points, points[1:], points[2:], strict=False):
        into, out = _towards(corner, before, 8), _towards(corner, after, 8)
        path += f"L{into[0]:.1f} {into[1]:.1f}Q{corner[0]:.1f} {corner[1]:.1f} {out[0]:.1f} {out[1]:.1f}"
    path += f"L{x:.1f} {y:.1f}"
    dx, dy = (0, 1) if abs(y - py) > abs(x - px) else (1 if x < px else -1, 0)
    dy = dy if y < py or not dy else -1
    head = f"M{x:.1f} {y:.1f}L{x + 7 * dx - 4 * dy:.1f} {y + 7 * dy - 4 * dx:.1f}"
    head += f"L{x + 7 * dx + 4 * dy:.1f} {y + 7 * dy + 4 * dx:.1f}Z"
    label = ""
    if sympy.nsimplify(factor, rational=True) != 1:
        text = html.escape(factor_text(factor))
        if dy:
            label = f'<text class="factor" x="{x + 8}" y="{y + 12.5}">{text}</text>'
        else:
            label = f'<text class="factor{" right" if dx < 0 else ""}" x="{x + 10 * dx:.1f}" y="{y - 5}">{text}</text>'
    return f'<path class="{kind}" d="{path}"/><path class="head {kind}" d="{head}"/>{label}'


def _clip(point: Point, other: Point, node: Node) -> Point:
    """Where the line towards `other` leaves the node."""
    w, h = HALF[node.shape]
    if abs(point[0] - other[0]) > abs(point[1] - other[1]):
        return point[0] + (w if other[0] > point[0] else -w), point[1]
    return point[0], point[1] + (h if other[1] > point[1] else -h)


def _towards(point: Point, other: Point, length: float) -> Point:
    dx, dy = other[0] - point[0], other[1] - point[1]
    far = max(abs(dx), abs(dy), 1e-9)
    share = min(length / far, 0.5)
    return point[0] + share * dx, point[1] + share * dy


def factor_text(factor: Any) -> str:
    """A factor as short text.

    Example:
        >>> factor_text((2 * sympy.Symbol("L", positive=True)) ** sympy.Rational(1, 4)), factor_text(0.05)
        ('(2L)^(1/4)', '0.05')
    """
    exact = sympy.nsimplify(factor, rational=True)
    if exact.is_number and not exact.is_Integer:
        return f"{float(exact):.3g}"
    roots = ((exact**n, n) for n in (2, 4) if not _rational_numbers(exact))
    power, n = next(((p, n) for p, n in roots if p.is_rational_function()), (exact, 1))
    over, under = sympy.fraction(power)
    if n == 1:
        text = str(exact).replace("sqrt", "√")
    else:
        sides = [str(side) if side.is_Atom else f"({side})" for side in (over, under)]
        sides = [f"√{side}" if n == 2 and side != "1" else f"{side}^(1/{n})" if side != "1" else side for side in sides]
        text = sides[0] if sides[1] == "1" else "/".join(sides)
    text = text.replace("**", "^").replace("√(l)", "√l").replace("√(L)", "√L")
    return re.sub(r"(?<=\d)\*", "", text).replace("*", "·")


def _rational_numbers(expression: Any) -> bool:
    """Whether no root of a number is a factor."""
    return all(not arg.is_number or arg.is_Rational for arg in sympy.Mul.make_args(expression))
