"""The language in which normalisation placements are written, and their registry.

A placement is read by every witness: the theory passes in streams of moments, the simulation streams of arrays,
SymPy streams of symbols. `x` is a stream: it can be added to a stream, taken from one, and multiplied by a number.
`block` offers sublayers and norms, and knows `index` (1 ... depth), `depth`, `first` and `last`. Every call of a
sublayer is a fresh, independent one. What passes from block to block is a stream, or a tuple of streams and numbers.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, Self, TypeVar, dataclass_transform

from propagate.checks import ModelError, shown
from propagate.scaling import Gains, Number

EQUATIONS = "propagate.placements"  # the module of the placements that come with the package
SHIPPED = (EQUATIONS, "propagate.shortcuts")  # and that of those whose layers are another kind


class Stream(Protocol):
    """What an equation may do with a stream: `x + y`, `x - y`, `-x`, `sum([x, y])`, `x * 2`, `2 * x` and `x / 2`."""

    def __add__(self, other: Self) -> Self: ...
    def __radd__(self, zero: int) -> Self: ...
    def __sub__(self, other: Self) -> Self: ...
    def __neg__(self) -> Self: ...
    def __mul__(self, factor: Number) -> Self: ...
    def __rmul__(self, factor: Number) -> Self: ...
    def __truediv__(self, divisor: Number) -> Self: ...


S = TypeVar("S", bound=Stream)


class Block(Protocol[S]):
    """What an equation may do inside a block."""

    @property
    def index(self) -> Number: ...
    @property
    def depth(self) -> Number: ...
    @property
    def first(self) -> bool: ...
    @property
    def last(self) -> bool: ...

    def attention(self, x: S, normed: Sequence[str] = ()) -> S:
        """Self-attention. `normed` names inner projections that pass the model's norm: "query", "key" and "value",
        head by head, and "heads", the heads' joint output, before the output projection."""
        ...

    def ffn(self, x: S, normed: Sequence[str] = ()) -> S:
        """The feed-forward layer. `normed=("hidden",)` puts the model's norm before its output matrix."""
        ...

    def experts(self, x: S, normed: Sequence[str] = ()) -> S:
        """The mixture of experts. A placement that calls it has the dense FFN as `ffn`; without it a model's experts
        stand in the place of every FFN."""
        ...

    def apply(self, description: Any, x: S, normed: Sequence[str] = ()) -> S:
        """Any sublayer, by its description: `FFN("swiglu", ratio=2)`, or one of your own (see `Sublayer`)."""
        ...

    def norm(self, x: S) -> S:
        """The model's norm, token by token."""
        ...

    def tanh(self, x: S) -> S:
        """Hyperbolic tangent, coordinate by coordinate. Theory needs a stream of Gaussian coordinates, as every sum of
        embeddings and sublayers' outputs is: it refuses one that a tanh has gone into but through a sublayer's
        matrices, and warns of dropout."""
        ...

    def std(self, x: S) -> Number:
        """Root mean square of a stream over tokens and coordinates, a plain number: a constant to the gradient."""
        ...


@dataclass_transform(frozen_default=True)
@dataclass(frozen=True)
class Placement:
    """Base of every placement. Subclass it and write `block`; annotated attributes become dataclass fields.

    Subclassing registers the placement under its class name, in lower case, so that `Model(placement="mynorm")` finds
    it. A second class of that name takes its place, with a warning unless it is the same text run again. `embed` and
    `readout` are the identity and `gains` are all 1 unless a subclass says otherwise. `embed` may make several streams
    of one; `block` then takes and returns the tuple, and `readout` must join them into one stream.

    Example:
        >>> class WeightedPostNorm(Placement):
        ...     skip: float = 2.0
        ...
        ...     def block(self, x, block):
        ...         y = block.norm(self.skip * x + block.attention(x))
        ...         return block.norm(self.skip * y + block.ffn(y))
        >>> placement("weighted postnorm").skip
        2.0
    """

    citation: ClassVar[str] = ""
    """The source of the equations, as an arXiv id or a key of `propagate.references`."""
    also: ClassVar[tuple[str, ...]] = ()
    """Further names it is found under."""

    def __init_subclass__(cls) -> None:
        names = (cls.__name__, *cls.__dict__.get("also", ()))
        for name in names:
            known = _REGISTRY.get(_key(name))
            if known is not None and known.__module__ in SHIPPED and known.__module__ != cls.__module__:
                raise ValueError(f"a placement called {name} comes with the package; choose another name")
        more = bool(inspect.get_annotations(cls))  # most have no fields of their own, and methods take time to write
        dataclass(frozen=True, init=more, repr=more, eq=more)(cls)
        for name in names:
            if (known := _REGISTRY.get(_key(name))) is not None:
                _warn_of_another(name, known, cls)
            _REGISTRY[_key(name)] = cls

    def embed(self, x: Any, block: Any) -> Any:
        """The stream (or streams) at block 0, from the embedded tokens. `block` offers `norm`."""
        return x

    def block(self, x: Any, block: Any) -> Any:
        """What leaves a block, from what enters it."""
        raise NotImplementedError(f"{type(self).__name__} must define block(self, x, block)")

    def readout(self, x: Any, block: Any) -> Any:
        """The stream that the output head reads, from what leaves the last block. `block` offers `norm`."""
        return x

    def gains(self, index: Number, depth: Number) -> Gains:
        """The placement's own factors on the initial weights of block `index`."""
        return Gains()


_REGISTRY: dict[str, type[Placement]] = {}


def _warn_of_another(name: str, known: type[Placement], new: type[Placement]) -> None:
    """UserWarning unless both are the same text, run twice (a cell of a notebook, a module that is loaded again)."""
    from propagate.identity import same_code

    if (known.__module__, known.__qualname__) == (new.__module__, new.__qualname__) and same_code(known, new):
        return
    warnings.warn(
        f"the name {_key(name)!r} meant the placement {known.__qualname__} of {known.__module__}; from now on it means"
        f" {new.__qualname__} of {new.__module__}, which is another: pass instances, or choose another name",
        UserWarning,
        stacklevel=3,
    )


def _key(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum())


def placements() -> dict[str, type[Placement]]:
    """Every registered placement by name, in alphabetical order. Further names (`Placement.also`) are left out.

    Example:
        >>> "spannorm" in placements()
        True
    """
    return {name: kind for name, kind in sorted(_REGISTRY.items()) if name == _key(kind.__name__)}


def placement(name: str) -> Placement:
    """The placement registered under `name`, with its default fields; case, spaces and hyphens are ignored.

    Raises:
        ModelError: for an unknown name, with the nearest names, or a placement whose fields have no defaults; pass an
            instance instead.

    Example:
        >>> placement("Peri-LN"), placement("sandwich")
        (PeriLN(), SandwichNorm())
    """
    if not isinstance(name, str):
        raise ModelError(f"placement must be a name, got {shown(name)}")
    key = _key(name)
    if key not in _REGISTRY:
        near = difflib.get_close_matches(key, _REGISTRY, n=3, cutoff=0.4)
        ours = sorted(name for name, kind in _REGISTRY.items() if kind.__module__ in SHIPPED)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(ours)}"
        raise ModelError(f"unknown placement {name!r}; {hint}")
    kind = _REGISTRY[key]
    fields = dataclasses.fields(kind)
    required = [f.name for f in fields if f.default is f.default_factory is dataclasses.MISSING]
    if required:
        raise ModelError(f"placement {name!r} needs {', '.join(required)}; pass an instance, {kind.__name__}(...)")
    return kind()


Layout = tuple[Any, ...] | None
"""Where the streams of a state stand: None for one stream alone, else the tuple with None in each stream's place."""


def split(state: Any, kind: type) -> tuple[tuple[Any, ...], Layout]:
    """The streams of a state, instances of `kind`, in order, and the layout they stand in.

    Raises:
        ModelError: for what is neither a stream nor a tuple of streams and numbers.

    Example: strings for streams.
        >>> split("x", str), split(("x", 2.0, "y"), str)
        ((('x',), None), (('x', 'y'), (None, 2.0, None)))
    """
    if isinstance(state, kind):
        return (state,), None
    leaves = state if isinstance(state, tuple) else ()
    streams = tuple(leaf for leaf in leaves if isinstance(leaf, kind))
    if not streams or any(leaf is None or isinstance(leaf, tuple | list) for leaf in leaves):
        raise ModelError(f"a placement must return one stream, or a tuple of streams and numbers, got {shown(state)}")
    return streams, tuple(None if isinstance(leaf, kind) else leaf for leaf in leaves)


def check_streams(placement: Placement, part: str, *, found: int, expected: int) -> None:
    """ModelError unless a part of a placement returned as many streams as it must."""
    if found != expected:
        rule = "join them into one stream" if part == "readout" else f"return as many as embed, {expected}"
        raise ModelError(f"{type(placement).__name__}.{part} returned {found} streams and must {rule}")


def check_term(stream: Any, other: Any) -> None:
    """ModelError where something else than a stream is added to a stream."""
    if not isinstance(other, type(stream)):
        raise ModelError(f"to a stream a placement must add a stream, got {shown(other)}")


_NO_FACTORS = (type(None), str, bytes, bool, complex, tuple, list, dict)  # a union would take longer to look through


def check_factor(stream: Any, factor: Any) -> None:
    """ModelError where a stream is multiplied by a stream: no witness has a law of products coordinate by coordinate.

    Example: strings for streams.
        >>> check_factor("x", 2.0)
        >>> check_factor("x", "y")
        Traceback (most recent call last):
        propagate.checks.ModelError: a placement must multiply a stream by a number, got a stream: sublayers do more
    """
    if isinstance(factor, type(stream)):
        raise ModelError("a placement must multiply a stream by a number, got a stream: sublayers do more")
    if isinstance(factor, _NO_FACTORS):
        raise ModelError(f"a placement must multiply a stream by a number, got {shown(factor)}")


def join(streams: Sequence[Any], layout: Layout) -> Any:
    """The state with these streams in this layout, the inverse of `split`.

    Example:
        >>> join(["x", "y"], (None, 2.0, None))
        ('x', 2.0, 'y')
    """
    if layout is None:
        (stream,) = streams
        return stream
    following = iter(streams)
    return tuple(next(following) if leaf is None else leaf for leaf in layout)
