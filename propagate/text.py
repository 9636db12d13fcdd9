"""A placement's equations as text, read off its Python code as every number is: streams that write themselves down.

    a = N(x + Attn(x)); x' = N(a + FFN(a))

A stream that is used more than once gets a name of its own. `l` is the block's index, `L` the depth.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from propagate.model import ModelError, as_placement
from propagate.placement import Placement, check_factor, check_term, join, split
from propagate.sublayers import Sublayer

DEPTH = 24  # of the example, where equations must know which block they are in


@dataclass(eq=False)
class Stream:
    """What a stream is made of: terms of a sum with their factors, or a function of other streams.

    Attributes:
        parts: (factor, stream) of a sum; one part with factor 1 for a function.
        function: "" for a sum, else "N", "Attn", ...
        name: of a stream that enters, or that needed one.
    """

    parts: list[tuple[Any, Stream]] = field(default_factory=list)
    function: str = ""
    name: str = ""

    def __add__(self, other: Stream) -> Stream:
        check_term(self, other)
        return Stream([*self._terms(), *other._terms()])

    def __radd__(self, zero: int) -> Stream:
        """`sum` of streams begins with 0."""
        return self if zero == 0 else self + zero  # type: ignore[operator]  # which is refused

    def __neg__(self) -> Stream:
        return self * -1

    def __sub__(self, other: Stream) -> Stream:
        return self + -other

    def __mul__(self, factor: Any) -> Stream:
        check_factor(self, factor)
        return Stream([(factor * own, stream) for own, stream in self._terms()])

    __rmul__ = __mul__

    def __truediv__(self, divisor: Any) -> Stream:
        check_factor(self, divisor)
        return self.__mul__(1 / divisor)

    def _terms(self) -> list[tuple[Any, Stream]]:
        return [(1, self)] if self.function or self.name else self.parts


@dataclass(frozen=True)
class Block:
    """What a placement's equations see."""

    index: Any
    depth: Any
    first: bool
    last: bool
    numbers: dict[Any, Stream] = field(default_factory=dict)

    def attention(self, x: Stream, normed: Sequence[str] = ()) -> Stream:
        return _apply(_labelled("Attn", normed), x)

    def ffn(self, x: Stream, normed: Sequence[str] = ()) -> Stream:
        return _apply(_labelled("FFN", normed), x)

    def experts(self, x: Stream, normed: Sequence[str] = ()) -> Stream:
        return _apply(_labelled("Experts", normed), x)

    def apply(self, description: Sublayer, x: Stream, normed: Sequence[str] = ()) -> Stream:
        kind = type(description).__name__
        names = sorted({*getattr(description, "normed", ()), *normed})
        return _apply(_labelled({"Attention": "Attn"}.get(kind, kind), names), x)

    def norm(self, x: Stream) -> Stream:
        return _apply("N", x)

    def tanh(self, x: Stream) -> Stream:
        return _apply("tanh", x)

    def std(self, x: Stream) -> Any:
        import sympy

        symbol = sympy.Symbol(f"std_{len(self.numbers)}", positive=True)
        self.numbers[symbol] = x
        return symbol


def _apply(function: str, x: Stream) -> Stream:
    return Stream([(1, x)], function)


def _labelled(function: str, normed: Sequence[str]) -> str:
    return f"{function}[{', '.join(normed)} normed]" if normed else function


class Equations(NamedTuple):
    """A placement as text.

    Attributes:
        text: its equations, separated by "; ".
        norms: for each stream that leaves the block, the least and the most norms on a path of skips from what
            enters; empty where no skip leads there.
    """

    text: str
    norms: tuple[tuple[int, int] | tuple[()], ...]


def equations(placement: str | Placement) -> str:
    """The equations of one interior block, as text.

    Raises:
        ModelError: for an unknown name.

    Example:
        >>> print(equations("spannorm"))
        x' = N(x + FFN(N(x + Attn(x))))
        >>> print(equations("residual"))
        a = Attn(x); b = N(x + a); c = FFN(b); x' = N(b + c); y' = y + a + c
    """
    return "; or: ".join(dict.fromkeys(found.text for found in readings(placement)))


def norms_on_skip(placement: str | Placement) -> str:
    """How many norms a path of skips through one block meets, stream by stream.

    Example:
        >>> [norms_on_skip(name) for name in ("prenorm", "postnorm", "spannorm", "b2t", "residual", "mixln")]
        ['0', '2', '1', '1-2', '2, 0', '2 or 0']
    """

    def words(norms: tuple[int, int] | tuple[()]) -> str:
        return "-".join(map(str, dict.fromkeys(norms))) or "no skip"

    return " or ".join(dict.fromkeys(", ".join(map(words, found.norms)) for found in readings(placement)))


def readings(placement: str | Placement) -> list[Equations]:
    """The equations of an interior block; where they depend on which one it is, of the first and of the last of 24."""
    import sympy

    chosen = as_placement(placement)
    index, depth = sympy.Symbol("l", positive=True), sympy.Symbol("L", positive=True)
    try:
        return [_read(chosen, Block(index, depth, first=False, last=False))]
    except TypeError as error:  # SymPy's, when an equation asks whether a symbol is less than another
        if "truth value of Relational" not in str(error):
            raise
    return [_read(chosen, Block(at, DEPTH, first=False, last=False)) for at in (1, DEPTH)]


def _read(placement: Placement, block: Block) -> Equations:
    import sympy

    streams, layout = split(placement.embed(Stream(name="x"), block), Stream)
    labels = "xyzuvw"[: len(streams)]
    if len(streams) > len(labels):
        raise ModelError(f"at most {len('xyzuvw')} streams can be written down, got {len(streams)}")
    omegas = (sympy.Symbol(f"w{k}" if k else "w", positive=True) for k in itertools.count())
    sources = [Stream(name=label) for label in labels]
    entering = layout and tuple(None if leaf is None else next(omegas) for leaf in layout)
    left = placement.block(join(sources, entering), block)
    outputs, after = split(left, Stream)
    numbers = [(old, new) for old, new in zip(entering or (), after or (), strict=True) if old is not None]
    lines = _lines(outputs, labels, numbers, block.numbers)
    norms = tuple(_norms(output, set(map(id, sources))) for output in outputs)
    return Equations("; ".join(lines), norms)


def _lines(
    outputs: Sequence[Stream], labels: str, numbers: Sequence[tuple[Any, Any]], stds: dict[Any, Stream]
) -> Iterator[str]:
    """Definitions of the streams that need a name, then what leaves."""
    made = list(_in_order([*outputs, *stds.values()]))
    used: dict[int, int] = {}
    for stream in made:
        for _, part in stream.parts:
            used[id(part)] = used.get(id(part), 0) + 1
    for stream in (*outputs, *stds.values()):
        used[id(stream)] = used.get(id(stream), 0) + 1
    names = iter("abcdefghijk")
    for stream in made:
        repeated = used[id(stream)] > 1 and not (stream in outputs and used[id(stream)] == 1)
        if not stream.name and repeated:
            text = _text(stream, stds)
            stream.name = next(names)
            yield f"{stream.name} = {text}"
    for label, output in zip(labels, outputs, strict=True):
        yield f"{label}' = {_text(output, stds)}"
    for old, new in numbers:
        yield f"{old}' = {_factor(new, stds)}"


def _in_order(streams: Sequence[Stream]) -> Iterator[Stream]:
    """Every stream once, after those it is made of."""
    seen: set[int] = set()

    def visit(stream: Stream) -> Iterator[Stream]:
        if id(stream) in seen:
            return
        seen.add(id(stream))
        for _, part in stream.parts:
            yield from visit(part)
        yield stream

    for stream in streams:
        yield from visit(stream)


def _text(stream: Stream, stds: dict[Any, Stream]) -> str:
    if stream.name:
        return stream.name
    if stream.function:
        return f"{stream.function}({_text(stream.parts[0][1], stds)})"
    return " + ".join(_term(factor, part, stds) for factor, part in stream.parts).replace("+ -", "- ")


def _term(factor: Any, stream: Stream, stds: dict[Any, Stream]) -> str:
    text = _text(stream, stds)
    if stream.parts and not stream.name and not stream.function and factor != 1:
        text = f"({text})"
    return text if factor == 1 else f"-{text}" if factor == -1 else f"{_factor(factor, stds)} {text}"


def _factor(factor: Any, stds: dict[Any, Stream]) -> str:
    """A number as text, in brackets where it is a sum, with std(...) written out."""
    import sympy

    exact = sympy.nsimplify(factor, rational=True)
    if exact.is_number and not exact.is_Integer:
        return f"{float(exact):.4g}"
    text = f"({exact})" if exact.is_Add else str(exact)
    for symbol in sorted(exact.free_symbols & stds.keys(), key=str, reverse=True):  # std_10 before std_1
        text = text.replace(str(symbol), f"std({_text(stds[symbol], stds)})")
    return text


def _norms(output: Stream, sources: set[int]) -> tuple[int, int] | tuple[()]:
    """Least and most norms on a way back to a source that passes no sublayer."""
    if id(output) in sources:
        return (0, 0)
    if output.function not in ("", "N", "tanh"):
        return ()
    found = [norms for _, part in output.parts if (norms := _norms(part, sources))]
    if not found:
        return ()
    here = 1 if output.function == "N" else 0
    return (min(low for low, _ in found) + here, max(high for _, high in found) + here)
