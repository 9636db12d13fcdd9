"""Second moments of token arrays, and their mean and standard error over draws, one draw after another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from propagate.checks import ModelError
from propagate.montecarlo.arrays import Array
from propagate.montecarlo.backend import Backend
from propagate.quantities import column_of, quantity_of

Floats = NDArray[np.float64]


def second_moments(x: Array) -> tuple[Array, Array, Array]:
    """Variance, covariance and deviation of each draw, from an array of shape (draws, tokens, width).

    Example:
        >>> variance, covariance, deviation = second_moments(np.array([[[1.0, 1.0], [1.0, -1.0]]]))
        >>> float(variance[0]), float(covariance[0]), float(deviation[0])
        (1.0, 0.0, 1.0)
    """
    tokens, width = x.shape[-2:]
    variance = (x * x).mean(axis=(-1, -2), dtype=np.float64)
    if tokens == 1:
        return variance, variance * np.nan, variance * np.nan
    mean = x.mean(axis=-2, keepdims=True)
    spread = x - mean
    deviation = (spread * spread).sum(axis=(-1, -2), dtype=np.float64) / ((tokens - 1) * width)
    # covariance from the mean mode, so that neither of the two is the difference of large numbers
    covariance = (mean * mean).mean(axis=(-1, -2), dtype=np.float64) - deviation / tokens
    return variance, covariance, deviation


def token_moments(x: Array) -> Array:
    """Variance of each token of each draw, (draws, tokens), from an array of shape (draws, tokens, width).

    Example:
        >>> token_moments(np.array([[[1.0, 1.0], [1.0, -3.0]]])).tolist()
        [[1.0, 5.0]]
    """
    return (x * x).mean(axis=-1, dtype=np.float64)


def shared_with(x: Array, embedded: Array) -> Array:
    """Share of the squared length of each token that lies along the same token of `embedded`: (draws,), the mean over
    tokens, from two arrays (draws, tokens, width).

    Example:
        >>> shared_with(np.array([[[3.0, 4.0], [0.0, 2.0]]]), np.array([[[1.0, 0.0], [0.0, 5.0]]])).round(6).tolist()
        [0.68]
    """
    inner, own, other = ((a * b).sum(axis=-1, dtype=np.float64) for a, b in ((x, embedded), (x, x), (embedded,) * 2))
    return (inner / own * (inner / other)).mean(axis=-1)


def moments_on(backend: Backend) -> Callable[[Array], tuple[Array, Array, Array]]:
    """`second_moments`, in one pass over arrays on a CUDA device."""
    if backend.name == "numpy":
        return second_moments
    from propagate.montecarlo.cuda import kernels

    def moments(x: Array) -> tuple[Array, Array, Array]:
        tokens, width = x.shape[-2:]
        if not 1 < tokens <= kernels.LARGEST_TOKENS:
            return second_moments(x)
        square, of_mean, of_deviation = (total / width for total in kernels.sums_of_squares(x))
        deviation = of_deviation / (tokens - 1)
        return square / tokens, of_mean - deviation / tokens, deviation

    return moments


@dataclass
class RunningMean:
    """Mean and sum of squared deviations over draws (Welford). One draw at a time, so batches leave no trace.

    Example:
        >>> running = RunningMean()
        >>> for draw in (1.0, 2.0, 3.0):
        ...     running.add(np.array([draw]))
        >>> float(running.mean[0]), round(float(running.standard_error()[0]), 6)
        (2.0, 0.57735)
    """

    count: int = 0
    mean: Floats = field(default_factory=lambda: np.zeros(()))
    squares: Floats = field(default_factory=lambda: np.zeros(()))

    def add(self, values: Floats) -> None:
        self.count += 1
        change = values - self.mean
        self.mean = self.mean + change / self.count
        self.squares = self.squares + change * (values - self.mean)

    def standard_error(self) -> Floats:
        """Of the mean, from the spread over draws; NaN for fewer than two draws."""
        if self.count < 2:
            return np.full_like(self.mean, np.nan)
        return np.asarray(np.sqrt(self.squares / (self.count - 1) / self.count))


@dataclass
class Summary:
    """Running means of named quantities over blocks, and of the logarithms of the positive ones.

    A name may have a part, `quantity:part`: a column of that quantity.
    """

    means: dict[str, RunningMean] = field(default_factory=dict)

    @property
    def draws(self) -> int:
        return next(iter(self.means.values())).count if self.means else 0

    def add(self, batch: dict[str, Floats]) -> None:
        """Take in a batch: for each name an array of shape (draws, blocks), or with further axes."""
        logs = {}
        for key, values in batch.items():
            name, colon, part = key.partition(":")
            if quantity_of(name).scale == "log":
                logs[f"{quantity_of(name).column('log')}{colon}{part}"] = _log(values)
        for name, values in (batch | logs).items():
            running = self.means.setdefault(name, RunningMean())
            for draw in values:
                running.add(draw)

    def variables(self) -> dict[str, Floats]:
        """`name` and `name_se` for every quantity, its parts along the last axis."""
        found: dict[str, list[Floats]] = {}
        for key, running in self.means.items():
            name, of_part, _ = key.partition(":")
            quantity, kind = column_of(name)
            error = quantity.column("log_se" if kind == "log" else "se")
            for column, values in ((name, running.mean), (error, running.standard_error())):
                found.setdefault(column, []).append(values[..., None] if of_part else values)
        return {
            name: columns[0] if len(columns) == 1 else np.concatenate(columns, -1) for name, columns in found.items()
        }

    def parts(self, quantity: str) -> list[str]:
        """Of a quantity, in order.

        Example:
            >>> Summary({"size:one": RunningMean(), "size:two": RunningMean()}).parts("size")
            ['one', 'two']
        """
        return [part for name, _, part in (key.partition(":") for key in self.means) if name == quantity and part]

    def state(self) -> dict[str, Any]:
        """Everything, as plain arrays that can be stored and given to `restored`."""
        state: dict[str, Any] = {"draws": np.array(self.draws)}
        for name, running in self.means.items():
            state[f"mean:{name}"], state[f"squares:{name}"] = running.mean, running.squares
        return state

    @classmethod
    def restored(cls, state: dict[str, Any]) -> Summary:
        names = [key.removeprefix("mean:") for key in state if key.startswith("mean:")]
        count = int(state["draws"])
        return cls({name: RunningMean(count, state[f"mean:{name}"], state[f"squares:{name}"]) for name in names})


def check_finite(batch: dict[str, Floats], draws: range) -> None:
    """ModelError where a stream or a gradient leaves the range of numbers, which no later draw can mend.

    Example:
        >>> check_finite({"variance": np.array([[1.0, np.inf]])}, range(3, 4))
        Traceback (most recent call last):
        propagate.checks.ModelError: variance must stay a finite number, got inf at block 1 of draw 3
    """
    for name in ("variance", "grad_variance"):
        values = batch[name]
        own = values if values.ndim == 2 else values[..., :-1]  # the last is what several streams are joined in
        wrong = np.argwhere(~np.isfinite(own))
        if len(wrong):
            draw, block = map(int, wrong[-1 if name.startswith("grad") else 0][:2])
            raise ModelError(
                f"{name} must stay a finite number, got {own[tuple(wrong[0])]} at block {block} of draw {draws[draw]}"
            )


def _log(values: Floats) -> Floats:
    """Natural logarithm; NaN where a quantity is exactly 0, as the deviation of equal tokens is."""
    return np.log(values, out=np.full_like(values, np.nan), where=values > 0)
