"""The equations of a block as a tree: which call reads which sum of streams. Read off torch, or off a placement.

Two blocks are the same placement if their trees are equal. A tree that no placement has is one itself, `AsRead`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from propagate.placement import SHIPPED, Placement, placements

FIRST = ("prenorm", "parallelprenorm", "postnorm", "sandwichnorm", "olmo2")
"""Of several placements whose blocks are alike, the one that is meant; others in alphabetical order."""


@dataclass(frozen=True)
class Sum:
    """A sum of streams, each times a number: `terms` pairs of a `Node`, or None for the block's input, and its factor.

    Example:
        >>> x = Sum.of({None: 1.0})
        >>> (x + 2 * x).terms
        ((None, 3.0),)
    """

    terms: tuple[tuple[Node | None, float], ...]
    __array_ufunc__: ClassVar[None] = None

    @classmethod
    def of(cls, factors: dict[Node | None, float]) -> Sum:
        """In an order that depends on the terms alone."""
        kept = [(node, float(f"{factor:.5g}")) for node, factor in factors.items() if factor != 0]
        return cls(tuple(sorted(kept, key=repr)))

    def __add__(self, other: Any) -> Sum:
        if not isinstance(other, Sum):
            return self
        factors = dict(self.terms)
        for node, factor in other.terms:
            factors[node] = factors.get(node, 0.0) + factor
        return Sum.of(factors)

    __radd__ = __add__

    def __neg__(self) -> Sum:
        return self * -1.0

    def __sub__(self, other: Sum) -> Sum:
        return self + -other

    def __mul__(self, factor: Any) -> Sum:
        return Sum.of({node: own * float(factor) for node, own in self.terms})

    __rmul__ = __mul__

    def __truediv__(self, divisor: Any) -> Sum:
        return self * (1 / float(divisor))


@dataclass(frozen=True)
class Node:
    """A call: its verb, what it reads, and the inner projections that it norms.

    `number` tells sublayers of one verb apart; a norm of the same stream is the same norm.
    """

    verb: str
    reads: Sum
    number: int = 0
    normed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Reader:
    """What a placement's equations see when their tree is read."""

    index: int
    depth: int
    counts: Counter[str] = field(default_factory=Counter)

    @property
    def first(self) -> bool:
        return self.index == 1

    @property
    def last(self) -> bool:
        return self.index == self.depth

    def attention(self, x: Sum, normed: Sequence[str] = ()) -> Sum:
        return self._call("attention", x, normed)

    def ffn(self, x: Sum, normed: Sequence[str] = ()) -> Sum:
        return self._call("ffn", x, normed)

    def experts(self, x: Sum, normed: Sequence[str] = ()) -> Sum:
        return self._call("experts", x, normed)

    def norm(self, x: Sum) -> Sum:
        return Sum.of({Node("norm", x): 1.0})

    def _call(self, verb: str, x: Sum, normed: Sequence[str]) -> Sum:
        self.counts[verb] += 1
        return Sum.of({Node(verb, x, self.counts[verb], tuple(sorted(normed))): 1.0})


class AsRead(Placement):
    """Equations as they were read off a torch model, block by block."""

    blocks: tuple[Sum, ...]

    def block(self, x: Any, block: Any) -> Any:
        tree = self.blocks[0] if len(set(self.blocks)) == 1 else self.blocks[int(block.index) - 1]
        return _evaluated(tree, x, block, {})

    def __repr__(self) -> str:
        return f"AsRead({words(self.blocks[0])}{', ...' if len(set(self.blocks)) > 1 else ''})"


def placement_of(blocks: Sequence[Sum], normed: Sequence[str] = ()) -> Placement:
    """The placement that comes with the package whose blocks have these trees; `AsRead` if there is none.

    `normed` are inner norms that every attention has, which a placement may name too.

    Example:
        >>> block = Reader(1, 2)
        >>> x = Sum.of({None: 1.0})
        >>> y = block.norm(x + block.attention(x))
        >>> placement_of([block.norm(y + block.ffn(y))] * 2)
        PostNorm()
    """
    kinds = {name: kind for name, kind in placements().items() if kind.__module__ in SHIPPED}
    kinds = {name: kind for name, kind in kinds.items() if kind.gains is Placement.gains}  # all are read
    for name in (*FIRST, *(name for name in kinds if name not in FIRST)):
        found = kinds[name]()
        for said in ((), tuple(sorted(normed))):
            if all(tree(found, at + 1, len(blocks)) == _with(block, said) for at, block in enumerate(blocks)):
                return found
    return AsRead(tuple(blocks))


def tree(placement: Placement, index: int, depth: int) -> Sum | None:
    """Of a placement's block; None for those with several streams, or verbs that a torch model is not read for.

    Example:
        >>> from propagate.placement import placement
        >>> words(tree(placement("postnorm"), 1, 1))
        'norm(ffn1(norm(x + attention1(x))) + norm(x + attention1(x)))'
    """
    try:
        found = placement.block(Sum.of({None: 1.0}), Reader(index, depth))
    except (AttributeError, TypeError, ValueError):  # block.std and block.tanh, or a tuple of streams
        return None
    return found if isinstance(found, Sum) else None


def words(tree: Sum | None) -> str:
    """A tree as an equation.

    Example:
        >>> words(Sum.of({None: 1.0, Node("norm", Sum.of({None: 2.0})): 0.5}))
        'x + 0.5 norm(2 x)'
    """
    if tree is None:
        return "?"
    said = []
    for node, factor in sorted(tree.terms, key=lambda term: term[0] is not None):
        name = "x" if node is None else f"{node.verb}{node.number or ''}({words(node.reads)})"
        said.append(name if factor == 1 else f"{factor:g} {name}")
    return " + ".join(said)


def _with(tree: Sum, normed: tuple[str, ...]) -> Sum:
    """The tree with every attention norming these."""
    if not normed:
        return tree
    return Sum.of({node and _normed(node, normed): factor for node, factor in tree.terms})


def _normed(node: Node, normed: tuple[str, ...]) -> Node:
    own = normed if node.verb == "attention" else node.normed
    return Node(node.verb, _with(node.reads, normed), node.number, own)


def _evaluated(tree: Sum, x: Any, block: Any, known: dict[Node, Any]) -> Any:
    """The stream of a tree, every call made once."""
    parts = []
    for node, factor in tree.terms:
        if node is not None and node not in known:
            call = getattr(block, node.verb)
            known[node] = call(
                _evaluated(node.reads, x, block, known), **({"normed": node.normed} if node.normed else {})
            )
        stream = x if node is None else known[node]
        parts.append(stream if factor == 1 else factor * stream)
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total
