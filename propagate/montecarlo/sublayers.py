"""The simulation's door for sublayers: one registered function for each kind of description.

`apply` finds the function; a `Call` is what it sees of the block it works for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import singledispatch
from typing import Any

from propagate.checks import ModelError
from propagate.layers import Layer
from propagate.montecarlo.arrays import Array
from propagate.montecarlo.backend import Backend
from propagate.montecarlo.normals import Normals
from propagate.montecarlo.norms import norm, refuse
from propagate.montecarlo.parameter_gradients import Norms, Part, noting
from propagate.montecarlo.pulls import Pull
from propagate.montecarlo.samplers import Sampler
from propagate.montecarlo.steps.trained import Trained
from propagate.sublayers import registered

MATRICES = 4  # sites in a range; a call begins one, and takes another when it has used it up
CALLS = 16  # ranges that a block may use: one a sublayer call, one more for shared experts, one more for dropout


@dataclass(frozen=True, eq=False, slots=True)
class Call:
    """One call of a sublayer, as the function registered for its description sees it.

    Attributes:
        name: what matrices without a name of their own are called.
        index: the block's, 1 ... depth.
        backend: `backend.xp` is NumPy or CuPy, `backend.dtype` the type of token arrays.
        layer: what the block is made of, in force.
        sampler: applies a random matrix to tokens.
        ranges: beginnings of ranges of sites that nothing else has used.
        norms: where the gradients of matrices are noted, if they are.
        normals: of the network's draws, for what is no matrix.
    """

    name: str
    index: int
    backend: Backend
    layer: Layer
    sampler: Sampler
    ranges: Iterator[int]
    norms: Norms | None = None
    normals: Normals | None = None
    sites: Iterator[int] = field(init=False)

    def __post_init__(self) -> None:
        sites = (site for first in self.ranges for site in range(first, first + MATRICES))
        object.__setattr__(self, "sites", sites)

    @property
    def xp(self) -> Any:
        """The array functions, NumPy's or CuPy's."""
        return self.backend.xp

    @property
    def width(self) -> int:
        """Coordinates of the stream."""
        return self.layer.width

    @property
    def tokens(self) -> int:
        """Tokens in the sequence."""
        return self.layer.tokens

    def matrix(
        self, x: Array, fan_out: int, gain: float = 1.0, parts: Sequence[Part] | None = None
    ) -> tuple[Array, Pull]:
        """x times a fresh random matrix, and the pull from the cotangent of that to the one of x.

        Every call is another matrix: tokens that meet the same one go through it together. A pull is called once.

        Args:
            x: (draws, tokens, fan_in).
            fan_out: columns of the matrix.
            gain: standard deviation of its entries times sqrt(fan_in).
            parts: matrices that stand side by side in it, for parameter gradients; by default it is one, of the
                sublayer's name.

        Raises:
            ModelError: where the block has no further site, or a gain is 0 and its gradient is asked for.
        """
        parts = parts or [Part(self.name, fan_out, gain)]
        if isinstance(self.sampler, Trained):
            return self.sampler.matrix(x, self.site(), gain, parts)
        y, pull = self.sampler(x, self.site(), fan_out, gain)
        return y, pull if self.norms is None else noting(self.xp, x, pull, gain, parts, self.norms, self.index)

    def norm(self, x: Array) -> tuple[Array, Pull]:
        """The block's norm along the last axis, and its pull."""
        found: tuple[Array, Pull] = registered(norm.registry, self.layer.norm)(self.layer.norm, x, self.backend)
        return found

    def inner_norm(self, description: Any, name: str, x: Array) -> tuple[Array, Pull]:
        """The same, if the description norms the inner projection of this name."""
        return self.norm(x) if name in description.normed else (x, lambda g: g)

    def apart(self) -> Call:
        """A call of the same block with sites of its own, as a sublayer inside a sublayer has."""
        return replace(self)

    def site(self) -> int:
        """The next site of this call, which nothing else has."""
        return site_of(self.sites)


def site_of(sites: Iterator[int]) -> int:
    """The next one; ModelError where a block has no more."""
    site = next(sites, None)
    if site is None:
        raise ModelError(f"a block may use at most {CALLS} sublayers, shared experts and dropouts together")
    return site


@singledispatch
def apply(description: Any, x: Array, block: Call) -> tuple[Array, Pull]:
    """What a sublayer makes of an array, and its pull, from the cotangent of that to the cotangent of x.

    Register a function of one's own for a description of one's own, a dataclass on `propagate.Sublayer`.

    Args:
        description: in force: its sizes filled in, times the block's gains.
        x: (draws, tokens, width).
        block: `block.matrix(y, fan_out, gain)` applies a fresh random matrix, `block.norm(y)` the block's norm, both
            with their pulls; `block.xp`, `block.width`, `block.tokens`.

    Returns:
        An array of the shape of x, and the pull.

    Raises:
        ModelError: for a kind of description for which nothing is registered.

    Example: every token reads the one before it.
        >>> from propagate import Model, Placement, Sublayer, simulate
        >>> @dataclass(frozen=True)
        ... class Before(Sublayer):
        ...     gain: float = 1.0
        >>> @apply.register(Before)
        ... def before(description, x, block):
        ...     y, pull = block.matrix(x, block.width, description.gain)
        ...     zero = 0 * y[:, :1]
        ...     shifted = block.xp.concatenate([zero, y[:, :-1]], axis=1)
        ...     return shifted, lambda g: pull(block.xp.concatenate([g[:, 1:], zero], axis=1))
        >>> class Reads(Placement):
        ...     def block(self, x, block):
        ...         return block.apply(Before(gain=3.0), x)
        >>> seen = simulate(Model(Reads(), depth=1, width=64, tokens=2, heads=1), draws=8, backend="numpy")
        >>> bool(3 < seen.variance[1] < 6)  # 9 for one token and 0 for the other
        True
    """
    refuse(description)


def applied(description: Any, x: Array, block: Call) -> tuple[Array, Pull]:
    """`apply`, by the function of this very kind; ModelError where it gives no array of the shape of x."""
    y, pull = registered(apply.registry, description)(description, x, block)
    if y.shape != x.shape:
        raise ModelError(f"{type(description).__name__} must give an array of shape {x.shape}, got {y.shape}")
    return y, pull
