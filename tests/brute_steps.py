"""First steps of small dense networks, matrix by matrix, by NumPy alone: what `predict_step` is judged by.

The simulation's own forward and backward passes are run; wherever a matrix meets tokens and a cotangent, its gradient
is written out entry by entry, the optimiser's step taken, and what it does measured.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import propagate as pg
from propagate.montecarlo import parameter_gradients, sublayers

COLUMNS = ("own_change", "own_covariance", "update_ratio", "first_order_fall")


def direction(optimizer: Any, gradient: Any) -> Any:
    """S, for the step -lr S."""
    if isinstance(optimizer, pg.SGD):
        return gradient
    if isinstance(optimizer, pg.Sign):
        return np.sign(gradient)
    if isinstance(optimizer, pg.Adam):
        return gradient / (np.abs(gradient) + optimizer.eps)
    left, values, right = np.linalg.svd(gradient, full_matrices=False)
    there = values > 1e-6 * values[:1]  # others are rounding
    return left[:, there] @ right[there]


def of_matrix(optimizer: Any, x: Any, g: Any, gain: float) -> dict[str, float]:
    """Of one matrix of one network, from the tokens x that it reads and the cotangent g of what it gives."""
    (rows, columns), scale = (x.shape[1], g.shape[1]), 1.0
    if isinstance(optimizer, pg.SGD | pg.Muon):  # whose steps lie where the gradient does: in orthonormal bases of it
        x, g = np.linalg.qr(x.T)[1].T, np.linalg.qr(g.T)[1].T
    if isinstance(optimizer, pg.Muon):
        original = max(1.0, columns / rows) ** 0.5
        scale = {"none": 1.0, "original": original, "rms": 0.2 * max(rows, columns) ** 0.5}[optimizer.scale]
    gradient = x.T @ g
    step = optimizer.lr * scale * direction(optimizer, gradient)
    made, tokens = x @ step, len(x)
    products = made @ made.T
    return {
        "own_change": np.trace(products) / tokens / columns,
        "own_covariance": (products.sum() - np.trace(products)) / tokens / max(tokens - 1, 1) / columns,
        "update_ratio": np.sqrt((step**2).sum() / columns) / gain,
        "first_order_fall": (gradient * step).sum(),
    }


def brute(model: pg.Model, optimizers: dict[str, Any], start: Any, draws: int, seed: int = 0) -> dict[str, Any]:
    """By the optimiser's name a table of means over networks and standard errors, as `simulate_steps` has them."""
    found: dict[tuple[str, str, int, str], list[float]] = {}

    def noting(xp: Any, x: Any, pull: Any, gain: float, parts: Any, norms: Any, index: int) -> Any:
        for part in parts:
            norms.setdefault(part.name, np.zeros(len(x)))

        def noting_pull(g: Any) -> Any:
            first = 0
            for part in parts:
                before = getattr(part, "before", 1.0)  # what the network's own tokens are larger by
                own = g[..., first : first + part.width] * (gain / part.gain / before)
                for name, optimizer in optimizers.items():
                    for tokens, cotangent in zip(before * x, own, strict=True):
                        for column, value in of_matrix(optimizer, tokens, cotangent, part.gain).items():
                            found.setdefault((name, column, index, part.name), []).append(value)
                first += part.width
            return pull(g)

        return noting_pull

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sublayers, "noting", noting)
        options = {"backend": "numpy", "sampler": "dense", "progress": False}
        seen = pg.simulate(model, start, draws=draws, seed=seed, include={"param_grad"}, **options)
    names = [name for name in parameter_gradients.ORDER if name in seen.matrix.to_numpy()]
    tables = {}
    for name in optimizers:
        columns = {}
        for column in COLUMNS:
            shape = (model.depth + 1, len(names))
            mean, error = np.full(shape, np.nan), np.full(shape, np.nan)
            for (kind, quantity, index, matrix), values in found.items():
                if (kind, quantity) == (name, column):
                    at = index, names.index(matrix)
                    if column == "update_ratio":
                        squares = np.square(values)
                        mean[at] = np.sqrt(squares.mean())
                        error[at] = squares.std(ddof=1) / 2 / mean[at] / np.sqrt(len(values))
                    else:
                        mean[at], error[at] = np.mean(values), np.std(values, ddof=1) / np.sqrt(len(values))
            columns |= {column: (("block", "matrix"), mean), f"{column}_se": (("block", "matrix"), error)}
        tables[name] = (
            seen.drop_vars(list(seen.data_vars)).assign(columns).assign_coords(matrix=names).assign_attrs(seen.attrs)
        )
    return tables
