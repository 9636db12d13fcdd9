"""For the tests of your own architectures: fail if signal or gradient does not get through at initialisation, or if the
reverse pass that you wrote for a sublayer is none.
"""

from __future__ import annotations

import math
from typing import Any

from propagate.model import Model, ModelError
from propagate.quantities import quantity_of
from propagate.sublayers import Sublayer
from propagate.table import JOINED, STREAM

THRESHOLD = 4.0


def assert_propagates(
    network: Any,
    inputs: Any = None,
    *,
    growth: float = 10.0,
    distinct: float = 0.01,
    like: Model | None = None,
    tolerance: float = 0.1,
    **options: Any,
) -> None:
    """AssertionError, with the block and the numbers, unless signal and gradient get through a network.

    Between the embedding and the last block, at every block: the variance stays within a factor `growth` of its value
    at the embedding, the gradient variance within the same factor of its value at the last block, and tokens keep at
    least `distinct` of their 1 - correlation. With several draws a bound counts as broken only where it lies outside 4
    standard errors.

    Args:
        network: a `Model`, whose moments are predicted; or a torch module, or an iterable of independent ones, whose
            moments are traced.
        inputs: for torch modules, what they are called with.
        growth: largest factor, up or down.
        distinct: smallest share of 1 - correlation that must be left.
        like: a `Model` whose theory the moments must follow as well, sublayer by sublayer, from where they start.
        tolerance: relative difference from `like` that is allowed, beside 4 standard errors.
        options: passed on to `predict` or `trace`.

    Raises:
        AssertionError: names the block, the quantity and the bound.
        ModelError: for a torch module without inputs, or one of which nothing that `like` predicts was measured.

    Example: PreNorm is sound at 24 blocks, PostNorm's tokens collapse.
        >>> assert_propagates(Model("prenorm", depth=24), covariance=0.3, growth=50)
        >>> assert_propagates(Model("postnorm", depth=24), covariance=0.3, growth=50)
        Traceback (most recent call last):
        AssertionError: block 8: 1 - correlation is 0.004927, 0.007038 of the embedding's (at least 0.01 allowed)

    Example: a torch model of your own; with `like`, deviations from a theory are found.
        >>> import torch
        >>> import propagate as pg
        >>> model = Model("prenorm", depth=3, width=64, tokens=4, heads=2)
        >>> x = torch.randn(8, 4, 64)
        >>> assert_propagates((pg.build(model, seed=seed) for seed in range(8)), x, like=model)
        >>> other = Model("prenorm", depth=3, width=64, tokens=4, heads=2, ffn_gain=0.5)
        >>> assert_propagates((pg.build(model, seed=seed) for seed in range(8)), x, like=other)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        AssertionError: block 1, ffn1: variance is ..., predicted 0.25 (allowed: ... %)
    """
    import propagate as pg

    if isinstance(network, Model):
        table = pg.predict(network, **options)
    elif inputs is None:
        raise ModelError("inputs must be given for a torch module")
    else:
        table = pg.trace(network, inputs, **options)
    for one in _streams(table):
        _check(one, growth, distinct)
    if like is not None:
        found = pg.first_divergence(pg.predict_calls(like, **pg.start_of(table)), table, tolerance=tolerance)
        if found is not None:
            raise AssertionError(str(found))


def assert_adjoint(description: Sublayer, like: Model | None = None, *, tolerance: float = 1e-6) -> None:
    """AssertionError unless the simulation's reverse pass of a sublayer is the adjoint of its forward pass.

    <v, J u> and <J^T v, u> are compared at a random input, J u by central differences, J^T v by the pull.

    Args:
        description: what `block.apply` takes; its function is the one registered with `propagate.montecarlo.apply`.
        like: the network whose width, tokens and norm it meets; small if left out.
        tolerance: largest difference over the product of the norms of v and J u. Rounding leaves about 1e-9.

    Raises:
        AssertionError: tells the difference.
        ModelError: for a description that the simulation does not cover.

    Example: a pull that forgets the residual.
        >>> from dataclasses import dataclass
        >>> from propagate import FFN, montecarlo
        >>> @dataclass(frozen=True)
        ... class Residual(Sublayer): ...
        >>> @montecarlo.apply.register(Residual)
        ... def residual(description, x, block):
        ...     y, pull = block.matrix(x, block.width)
        ...     return x + y, pull
        >>> assert_adjoint(FFN("gelu"))
        >>> assert_adjoint(Residual())  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        AssertionError: Residual: the pull is not the adjoint: <v, J u> and <J^T v, u> differ by ... of |v| |J u|
    """
    import numpy as np

    from propagate.montecarlo.backend import choose_backend
    from propagate.montecarlo.blocks import block_of, read
    from propagate.montecarlo.normals import Normals
    from propagate.montecarlo.samplers import dense

    model = like or Model("prenorm", depth=1, width=12, tokens=5, heads=3)
    host, random, step = choose_backend("numpy"), np.random.default_rng(0), 1e-6
    normals = Normals(host, 0, range(2))

    def applied(x: Any) -> Any:
        block = block_of(model, host, dense(normals), 1, normals)
        return read(lambda x, block: block.apply(description, x), block, x)

    x, u, v = random.standard_normal((3, 2, model.tokens, model.width))
    pull = applied(x)[1]
    pushed = (applied(x + step * u)[0] - applied(x - step * u)[0]) / (2 * step)
    v += pushed / np.sqrt((pushed * pushed).mean())  # half along J u, so that the product is no chance zero
    apart = abs((v * pushed).sum() - (pull(v) * u).sum()) / np.sqrt((v * v).sum() * (pushed * pushed).sum())
    if not apart <= tolerance:
        name = type(description).__name__
        raise AssertionError(
            f"{name}: the pull is not the adjoint: <v, J u> and <J^T v, u> differ by {apart:.2g} of |v| |J u|"
        )


def _streams(table: Any) -> list[Any]:
    """The table of each stream: what joins several is known at the two ends only."""
    if STREAM not in table.dims:
        return [table]
    return [table.sel({STREAM: label}) for label in table[STREAM].values if label != JOINED]


def _check(table: Any, growth: float, distinct: float) -> None:
    for block in range(table.sizes["block"]):
        _within(table, "variance", block, 0, growth)
    for block in reversed(range(table.sizes["block"])):
        _within(table, "grad_variance", block, -1, growth)
    start = _distinctness(table, 0)
    for block in range(table.sizes["block"]) if start > 0 else ():
        left, error = _distinctness(table, block) / start, _relative_error(table, "deviation", block)
        if left * (1 + THRESHOLD * error) < distinct:
            raise AssertionError(
                f"block {block}: 1 - correlation is {left * start:.4g}, {left:.4g} of the embedding's"
                f" (at least {distinct:g} allowed)"
            )


def _within(table: Any, name: str, block: int, end: int, growth: float) -> None:
    value, reference = float(table[name][block]), float(table[name][end])
    ratio = value / reference
    margin = 1 + THRESHOLD * _relative_error(table, name, block)
    if not 1 / (growth * margin) <= ratio <= growth * margin:
        place = "the embedding's" if end == 0 else "the last block's"
        raise AssertionError(
            f"block {block}: {name} is {value:.4g}, {ratio:.4g} times {place}"
            f" (between 1/{growth:g} and {growth:g} allowed)"
        )


def _distinctness(table: Any, block: int) -> float:
    found = float(table.deviation[block]) / float(table.variance[block])
    return 0.0 if math.isnan(found) else found


def _relative_error(table: Any, name: str, block: int) -> float:
    error = quantity_of(name).column("se")
    return float(table[error][block]) / abs(float(table[name][block])) if error in table else 0.0
