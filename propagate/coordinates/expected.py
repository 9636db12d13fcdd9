"""How large the first step of a matrix is to be, from its own rate, multiplier and sides, by the law of the optimiser.

For y = c x W the change W' of the first step gives y a change c x W'. Over the root mean square of x, and up to a
factor that is the same at every width, its root mean square is

- for SGD, c lr fan_in g, g the root mean square of the gradient's entries;
- for Sign and Adam, whose entries are lr g / (g + eps), c lr fan_in g / (g + eps): entries of x and of their signs add
  up in step;
- for Muon, c lr scale sqrt(fan_in / fan_out), whatever the gradient.

Of an embedding, whose tokens each meet one row, fan_in is 1; there Muon's orthogonal factor has entries of
1 / sqrt(fan_out). The gradient is measured; rates, multipliers and sides are those of the rule. Weight decay, which
takes the same share of every matrix, is left out.
"""

from __future__ import annotations

import math

from propagate.coordinates.curves import Matrix
from propagate.optimizers import SGD, Muon, Optimizer


def expected_response(optimizer: Optimizer, matrix: Matrix, gradient: float) -> float:
    """The size of a matrix's first response, up to a factor that no width changes.

    Example: an entry moves by the rate, and 256 of them add up.
        >>> from propagate.optimizers import Sign
        >>> expected_response(Sign(0.1), Matrix(256, 64, "hidden", lr=0.01, multiplier=1.0), gradient=1e-3)
        2.56
    """
    fan_in = 1 if matrix.kind == "embedding" else matrix.fan_in
    size = matrix.lr * matrix.multiplier
    if isinstance(optimizer, Muon):
        return size * optimizer.size(matrix.fan_in, matrix.fan_out) * math.sqrt(fan_in / matrix.fan_out)
    if isinstance(optimizer, SGD):
        return size * fan_in * gradient
    eps = 0.0 if math.isnan(matrix.eps) else matrix.eps
    return size * fan_in * (gradient / (gradient + eps) if gradient else 0.0)
