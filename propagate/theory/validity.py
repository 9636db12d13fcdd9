"""Where the maps of the sublayers hold: their assumptions, and how far they lie from simulation, as data.

`propagate/data/validity.json` holds errors measured one sublayer at a time by `benchmarks/validity.py`. A prediction
that uses attention or an FFN beyond what was measured, or where the measured error is above 5 %, says so in a
`ValidityWarning` with the nearest measured error. Where a formula cannot be evaluated reliably `predict` raises
instead.

The backward maps are linear in the cotangent's variance and covariance, so any cotangent lies between measured ones.
"""

from __future__ import annotations

import dataclasses
import json
import math
import warnings
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from propagate.model import Model, ModelError
from propagate.theory.gaussian.functions import is_plain
from propagate.theory.reading.blocks import Block
from propagate.theory.tokens.gram import Gram

if TYPE_CHECKING:
    import xarray as xr

DATA = Path(__file__).parent.parent / "data" / "validity.json"
LARGEST_ERROR = 0.05  # a measured error above it is worth a warning
SIGNIFICANT = (
    4.0  # standard errors that a measured error must exceed to count: of 2500 measured, chance exceeds 3 in seven
)
SCALE_FREE = ("linear", "relu", "squared_relu")  # a factor on the input is one on the output
ASSUMPTIONS = {
    "attention": (
        "query, key, value and output matrices are independent, fresh and Gaussian (other laws with entries of the "
        "same variance in the limit)",
        "heads many, tokens far fewer than the width; heads of any size",
        "tokens exchangeable, or their Gram matrix given",
    ),
    "wide_attention": (
        "as attention, and heads so wide that a logit is Gaussian: the relative error grows as logit_std^4 / head size",
        "used if asked for",
    ),
    "ffn": (
        "both matrices are independent, fresh and Gaussian",
        "width and hidden width large, tokens far fewer",
        "pre-activations jointly Gaussian over tokens",
    ),
    "norm": (
        "the stream's coordinates are many and alike: its size does not vary",
        "its mean over coordinates is zero, so that LayerNorm and RMSNorm agree",
    ),
}


FEW_FREE = 4
"""Free coordinates of a head, n of RMSNorm and n - 1 of LayerNorm, with which E 1 / |q|^4 is infinite."""


class ValidityWarning(UserWarning):
    """A prediction lies outside the domain in which its maps were verified."""


def validity(operator: str) -> xr.Dataset:
    """The error map of an operator, as it was measured.

    Args:
        operator: "attention", "wide_attention" (the map that takes heads for wide), "ffn" or "norm".

    Returns:
        A Dataset over the axes of the measurement: `variance`, `covariance`, `grad_variance`, `grad_covariance`, each
        (theory - simulation) / simulation, of covariances relative to the variance, with `<name>_se` the simulation's
        standard error; in `attrs` the `assumptions` of the map, and width, head size, draws and device.

    Raises:
        ModelError: for an unknown operator.

    Example: softmax attention over 32 tokens, at logits of standard deviation 1.
        >>> errors = validity("attention").sel(tokens=32, logit_std=1.0, correlation=0.0, grad_correlation=0.0)
        >>> bool(abs(errors.grad_variance) < 0.05)
        True
    """
    import xarray as xr

    if operator not in ASSUMPTIONS:
        raise ModelError(f"operator must be one of {', '.join(ASSUMPTIONS)}, got {operator!r}")
    found = _stored()[operator]
    axes = found["axes"]
    about = {key: value for key, value in found.items() if key not in ("axes", "errors")}
    return xr.Dataset(
        {name: (tuple(axes), np.array(values)) for name, values in found["errors"].items()},
        coords=axes,
        attrs={"operator": operator, "assumptions": "; ".join(ASSUMPTIONS[operator])} | about,
    )


@lru_cache(maxsize=1)
def _stored() -> dict[str, Any]:
    """Empty only while `benchmarks/validity.py` makes the file for the first time."""
    content: dict[str, Any] = json.loads(DATA.read_bytes()) if DATA.exists() else {}
    return content


class Watch:
    """Sees where one prediction uses attention and the FFN, and warns if that is beyond what was verified.

    Example: logits of standard deviation 9 were never measured.
        >>> import warnings
        >>> from propagate.theory.predict import predict
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     table = predict(Model("postnorm", depth=1, tokens=4, logit_std=9.0), head_size=math.inf)
        >>> [warning.category.__name__ for warning in caught]
        ['ValidityWarning']
    """

    def __init__(self, model: Model, head_size: float | None = None) -> None:
        self.model = model
        self.wide = head_size == math.inf
        self.attention: dict[str, list[tuple[float, float]]] = {"attention": [], "wide_attention": []}
        self.ffn: list[float] = []
        self.tanh_of_dropped = False
        self.inner_norms: set[str] = set()

    def block_at(self, make: Callable[[int], Block]) -> Callable[[int], Block]:
        """Blocks whose attention and FFN tell this where they are used."""

        def watched(index: int) -> Block:
            block, gains = make(index), self.model.gains(max(index, 1))
            logits, scale_in = self.model.logit_std**2, gains.ffn_in * gains.ffn_in
            squares = {"query": gains.query * gains.query, "key": gains.key * gains.key}

            def attention(x: Any, normed: frozenset[str]) -> tuple[Any, Callable[[Any], Any]]:
                variance, deviation = _averages(x)
                power = logits
                for name, square in squares.items():
                    power = power if name in normed else power * square * variance
                self.inner_norms |= normed & {"query", "key", "value"}
                kind = "wide_attention" if self.wide else "attention"
                self.attention[kind] += _farthest(power * deviation / variance, deviation / variance)
                return block.attention_map(x, normed)

            def ffn(x: Any, normed: frozenset[str]) -> tuple[Any, Callable[[Any], Any]]:
                variance = scale_in * _averages(x)[0]
                self.ffn += (
                    [variance] if isinstance(variance, float) else [float(variance.min()), float(variance.max())]
                )
                return block.ffn_map(x, normed)

            def tanh(x: Any) -> Any:
                self.tanh_of_dropped = self.model.dropout > 0
                return block.tanh_map(x)

            return dataclasses.replace(block, attention_map=attention, ffn_map=ffn, tanh_map=tanh)

        return watched

    def warn(self) -> None:
        """A `ValidityWarning` for each operator that was used outside its verified domain."""
        of_attention = [*map(self._of_attention, self.attention), self._of_inner_norms()]
        for concern in (*of_attention, self._of_ffn(), self._of_tanh()):
            if concern:
                warnings.warn(concern, ValidityWarning, stacklevel=3)

    def _of_tanh(self) -> str:
        if not self.tanh_of_dropped:
            return ""
        return (
            f"dropout={self.model.dropout:g} makes a stream's coordinates mixtures of Gaussians, which tanh takes for"
            " Gaussian: at dropout .8 the gradient variance of two blocks of DyT(alpha=2) was off by -24 to +41 %, the"
            " deviation by 6 %"
        )

    def _of_inner_norms(self) -> str:
        free = self.model.head_size - (self.model.norm == "layer")
        if self.wide or not self.inner_norms or free > FEW_FREE:
            return ""
        return (
            f"norms of {', '.join(sorted(self.inner_norms))} leave {free} free coordinates to a head: the square of"
            f" their gradient has an infinite variance with {FEW_FREE} or fewer, so that means over few networks or"
            " heads lie below what is predicted (by 13 to 25 % in networks of 64 heads) and their standard errors are"
            " too small"
        )

    def _of_attention(self, kind: str) -> str:
        uses = self.attention[kind]
        if not uses or self.model.tokens == 1 or kind not in _stored():
            return ""
        found = _stored()[kind]
        axes, error = found["axes"], _certain_errors(kind).max(axis=-1)  # (tokens, logit_std, correlation)
        stds, correlations, most = np.array(axes["logit_std"]), np.array(axes["correlation"]), max(axes["tokens"])
        spread, lost = np.sqrt(np.array(uses).T[0]), np.array(uses).T[1]
        t = int(np.argmin(np.abs(np.log(np.array(axes["tokens"]) / self.model.tokens))))
        c = np.argmin(np.abs((1 - lost)[:, None] - correlations), axis=1)
        s = np.argmin(np.abs(spread[:, None] - stds * np.sqrt(1 - correlations[c])[:, None]), axis=1)
        errors = error[t, s, c]
        worst = int(np.argmax(np.maximum(errors, spread)) if spread.max() > stds.max() else np.argmax(errors))
        place = f"at width {found['width']} in heads of {found['head_size']} with {axes['tokens'][t]} tokens, logit_std"
        place += f" {stds[s[worst]]:g} and correlation {correlations[c[worst]]:.2g}"
        if spread.max() > stds.max():
            reached = f"attention's logits reach a standard deviation of {spread.max():.3g}"
            return f"{reached}, verified up to {stds.max():g}; {_beyond(errors[worst], place)}"
        if self.model.tokens > most:
            return f"attention over {self.model.tokens} tokens, verified up to {most}; {_beyond(errors[worst], place)}"
        if errors[worst] > LARGEST_ERROR:
            reached = f"attention at logits of standard deviation {spread[worst]:.3g}"
            return f"{reached}: the nearest measured error is {_percent(errors[worst])}, {place}"
        return ""

    def _of_ffn(self) -> str:
        if not self.ffn or "ffn" not in _stored():
            return ""
        found, kind = _stored()["ffn"], self.model.activation
        axes = found["axes"]
        if kind not in axes["activation"]:
            return f"the FFN with activation {kind} has no measured errors"
        error = _certain_errors("ffn").max(axis=(-1, -2))[axes["activation"].index(kind)]
        smallest, largest = min(axes["input_variance"]), max(axes["input_variance"])
        if kind in SCALE_FREE or (min(self.ffn) >= smallest and max(self.ffn) <= largest):
            return ""
        place = f"at width {found['width']}"
        end, used = (-1, max(self.ffn)) if max(self.ffn) > largest else (0, min(self.ffn))
        return (
            f"the FFN's pre-activations reach a variance of {used:.3g}, verified from {smallest:g} to {largest:g};"
            f" {_beyond(error[end], place)}"
        )


@lru_cache(maxsize=4)
def _certain_errors(operator: str) -> NDArray[np.float64]:
    """Over the operator's axes: the largest measured error of any quantity, 0 where it may be chance."""
    errors = _stored()[operator]["errors"]
    found = []
    for name in (name for name in errors if not name.endswith("_se")):
        size, error = np.abs(errors[name]), np.array(errors[f"{name}_se"])
        found.append(np.where(size > SIGNIFICANT * error, size, 0.0))
    return np.asarray(np.max(found, axis=0))


def _averages(x: Any) -> tuple[Any, Any]:
    """Variance and deviation; of a Gram matrix, their means over tokens and pairs."""
    if not isinstance(x, Gram):
        return x.variance, x.deviation
    tokens = x.variance.shape[-1]
    return float(x.variance.mean()), float(x.deviation.mean()) * tokens / max(tokens - 1, 1)


def _farthest(spread_squared: Any, lost: Any) -> list[tuple[float, float]]:
    """The pair with the largest spread."""
    if is_plain(spread_squared, lost):
        return [(max(spread_squared, 0.0), lost)]
    spreads, lost = np.broadcast_arrays(spread_squared, lost)
    at = np.argmax(spreads)
    return [(float(spreads.flat[at]), float(lost.flat[at]))]


def _beyond(share: float, place: str) -> str:
    """What is known outside the verified domain: the error at its edge, and never that there is none."""
    nearest = f"error is {_percent(share)}, {place}" if share else f"point is {place}"
    return f"the error there is not known; the nearest measured {nearest}"


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %"
