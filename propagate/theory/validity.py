"""Where the maps of the sublayers hold: their assumptions, and how far they lie from simulation, as data.

`propagate/data/validity.json` holds errors measured one sublayer at a time by `benchmarks/validity.py`. A prediction
that uses attention or an FFN beyond what was measured, or where the measured error is above 5 %, says so in a
`ValidityWarning` with the nearest measured error. Where a formula cannot be evaluated reliably `predict` raises
instead.

The backward maps are linear in the cotangent's variance and covariance, so any cotangent lies between measured ones.
"""

from __future__ import annotations

import json
import warnings
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from propagate.activations import Activation
from propagate.checks import shown
from propagate.crossing import CrossAttention
from propagate.experts import Experts
from propagate.latent import LatentAttention
from propagate.layers import Layer
from propagate.model import Model, ModelError
from propagate.norms import Norm
from propagate.quantities import QUANTITIES
from propagate.sublayers import FFN, Attention
from propagate.theory.finite.allowances import scarcity
from propagate.theory.gaussian.functions import is_plain
from propagate.theory.pairs.gates import unevenness
from propagate.theory.reading.blocks import Call
from propagate.theory.tokens.gram import Gram

if TYPE_CHECKING:
    import xarray as xr

DATA = Path(__file__).parent.parent / "data" / "validity.json"
LARGEST_EPS = 1e-3  # a share of eps above it is worth a warning
LARGEST_SCARCITY = 0.04  # of 64 hidden units of squared ReLU, whose predicted bias could not be told from a wrong one
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

    if not isinstance(operator, str) or operator not in ASSUMPTIONS:
        raise ModelError(f"operator must be one of {', '.join(ASSUMPTIONS)}, got {shown(operator)}")
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


@dataclass
class Uses:
    """Where a prediction uses its maps, gathered from the records of its calls.

    Attributes:
        attention: (variance of a row's logits, 1 - correlation of the tokens) at each use.
        ffn: variances of pre-activations, by activation.
        free: names of inner projections that are normed head by head, and the fewest coordinates this leaves free.
        eps: the largest share of what an inner norm divides by that is its eps.
        tanh: whether there is a tanh of a stream.
    """

    attention: list[tuple[float, float]] = field(default_factory=list)
    ffn: dict[Activation, list[float]] = field(default_factory=lambda: defaultdict(list))
    free: dict[str, int] = field(default_factory=dict)
    eps: float = 0.0
    tanh: bool = False

    def add(self, layer: Layer, calls: Iterable[Call]) -> None:
        """The uses of one block."""
        for call in calls:
            kind = call.description
            if isinstance(kind, Attention):
                self._add_attention(kind, call.entered, layer.norm)
            elif isinstance(kind, FFN):
                self._add_ffn(kind, call.entered)
            elif isinstance(kind, LatentAttention):
                self._add_latent(kind, call.entered, layer)
            elif isinstance(kind, CrossAttention):
                self._add_cross(kind, call.entered)
            elif isinstance(kind, Experts):
                self._add_ffn(kind.expert, call.entered)
            elif call.verb == "tanh":
                self.tanh = True

    def _add_attention(self, attention: Attention, x: Any, norm: Norm) -> None:
        variance, deviation = _averages(x)
        power = attention.logit_std**2
        for name in ("query", "key"):
            square = getattr(attention, f"{name}_gain") ** 2
            power = power if name in attention.normed else power * square * variance
        for name in {"query", "key", "value"}.intersection(attention.normed):
            self.free[name] = min(attention.size - norm.centred, self.free.get(name, attention.size))
            size = np.min(variance) * getattr(attention, f"{name}_gain") ** 2
            self.eps = max(self.eps, float(norm.eps / (size + norm.eps)) if norm.eps else 0.0)
        self.attention += _farthest(power * deviation / variance, deviation / variance)

    def _add_latent(self, attention: LatentAttention, x: Any, layer: Layer) -> None:
        variance, deviation = _averages(x)
        of_queries = 1.0 if attention.query_rank else variance
        power = attention.logit_power(layer.width, of_queries, variance)
        for name in ("query_down", "key_value_down") if attention.query_rank else ("key_value_down",):
            size = float(np.min(variance)) * getattr(attention, f"{name}_gain") ** 2
            self.eps = max(self.eps, layer.norm.eps / (size + layer.norm.eps) if layer.norm.eps else 0.0)
        self.attention += _farthest(power * deviation / variance, deviation / variance)

    def _add_cross(self, attention: CrossAttention, x: Any) -> None:
        """A row's logits differ as the memory's tokens do."""
        gram = attention.memory.gram
        tokens, (variance, _) = len(gram), _averages(x)
        own = gram.trace() / tokens
        apart = own - (gram.sum() / tokens - own) / max(tokens - 1, 1)
        power = attention.logit_std**2
        for name, size in (("query", variance), ("key", own)):
            power = power if name in attention.normed else power * getattr(attention, f"{name}_gain") ** 2 * size
        self.attention.append((max(float(power * apart / own), 0.0), float(apart / own)))

    def _add_ffn(self, ffn: FFN, x: Any) -> None:
        variance = ffn.in_gain * ffn.in_gain * _averages(x)[0]
        ends = [variance] if isinstance(variance, float) else [float(variance.min()), float(variance.max())]
        gains = (1.0,) if ffn.gate_gain == 1 else (1.0, ffn.gate_gain)
        self.ffn[ffn.activation] += [end * gain * gain for end in ends for gain in gains]


def warn_of_uses(model: Model, uses: Uses, *, wide: bool = False) -> None:
    """A `ValidityWarning` for each operator that was used outside its verified domain.

    Example: logits of standard deviation 9 were never measured.
        >>> import warnings
        >>> from propagate.theory.predict import predict
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     table = predict(Model("postnorm", depth=1, tokens=4, logit_std=9.0), head_size=float("inf"))
        >>> [warning.category.__name__ for warning in caught]
        ['ValidityWarning']
    """
    for concern in (
        _of_attention(model.tokens, uses.attention, "wide_attention" if wide else "attention"),
        "" if wide else _of_inner_norms(uses.free),
        _of_eps(uses.eps),
        *(_of_ffn(activation, variances) for activation, variances in uses.ffn.items()),
        _of_tanh(model.dropout) if uses.tanh else "",
    ):
        if concern:
            warnings.warn(concern, ValidityWarning, stacklevel=4)


def _of_eps(share: float) -> str:
    if share < LARGEST_EPS:
        return ""
    return (
        f"eps is up to {_percent(share)} of what a norm inside attention divides by: theory takes it beside the mean"
        " square of a head or latent, from which single ones differ"
    )


def _of_tanh(dropout: float) -> str:
    if not dropout:
        return ""
    return (
        f"dropout={dropout:g} makes a stream's coordinates mixtures of Gaussians, which tanh takes for"
        " Gaussian: at dropout .8 the gradient variance of two blocks of DyT(alpha=2) was off by -24 to +41 %, the"
        " deviation by 6 %"
    )


def _of_inner_norms(by_name: dict[str, int]) -> str:
    free = min(by_name.values(), default=FEW_FREE + 1)
    if free > FEW_FREE:
        return ""
    return (
        f"norms of {', '.join(sorted(by_name))} leave {free} free coordinates to a head: the square of"
        f" their gradient has an infinite variance with {FEW_FREE} or fewer, so that means over few networks or"
        " heads lie below what is predicted (by 13 to 25 % in networks of 64 heads) and their standard errors are"
        " too small"
    )


def _of_attention(tokens: int, uses: list[tuple[float, float]], kind: str) -> str:
    if not uses or tokens == 1 or kind not in _stored():
        return ""
    found = _stored()[kind]
    axes, error = found["axes"], _certain_errors(kind).max(axis=-1)  # (tokens, logit_std, correlation)
    stds, correlations, most = np.array(axes["logit_std"]), np.array(axes["correlation"]), max(axes["tokens"])
    spread, lost = np.sqrt(np.array(uses).T[0]), np.array(uses).T[1]
    t = int(np.argmin(np.abs(np.log(np.array(axes["tokens"]) / tokens))))
    c = np.argmin(np.abs((1 - lost)[:, None] - correlations), axis=1)
    s = np.argmin(np.abs(spread[:, None] - stds * np.sqrt(1 - correlations[c])[:, None]), axis=1)
    errors = error[t, s, c]
    worst = int(np.argmax(np.maximum(errors, spread)) if spread.max() > stds.max() else np.argmax(errors))
    place = f"at width {found['width']} in heads of {found['head_size']} with {axes['tokens'][t]} tokens, logit_std"
    place += f" {stds[s[worst]]:g} and correlation {correlations[c[worst]]:.2g}"
    if spread.max() > stds.max():
        reached = f"attention's logits reach a standard deviation of {spread.max():.3g}"
        return f"{reached}, verified up to {stds.max():g}; {_beyond(errors[worst], place)}"
    if tokens > most:
        return f"attention over {tokens} tokens, verified up to {most}; {_beyond(errors[worst], place)}"
    if errors[worst] > LARGEST_ERROR:
        reached = f"attention at logits of standard deviation {spread[worst]:.3g}"
        return f"{reached}: the nearest measured error is {_percent(errors[worst])}, {place}"
    return ""


def _of_ffn(kind: Activation, variances: list[float]) -> str:
    if "ffn" not in _stored():
        return ""
    found = _stored()["ffn"]
    axes = found["axes"]
    error = _certain_errors("ffn").max(axis=(-1, -2))
    measured = kind in axes["activation"]
    error = error[axes["activation"].index(kind)] if measured else error.max(axis=0)
    smallest, largest = min(axes["input_variance"]), max(axes["input_variance"])
    if kind in SCALE_FREE or (min(variances) >= smallest and max(variances) <= largest):
        return ""
    place = f"at width {found['width']}{'' if measured else ' with other activations'}"
    end, used = (-1, max(variances)) if max(variances) > largest else (0, min(variances))
    return (
        f"the FFN's pre-activations reach a variance of {used:.3g}, verified from {smallest:g} to {largest:g};"
        f" {_beyond(error[end], place)}"
    )


def warn_of_scarce(model: Model) -> None:
    """A ValidityWarning where heads or hidden units are so few that a bias of first order is not to be relied on."""
    found = scarcity(model)
    if found > LARGEST_SCARCITY:
        warnings.warn(
            "bias is of first order, and hidden units or heads are so few that what a block adds has a relative"
            f" variance of {_percent(found)}: with 8 hidden units of squared ReLU, 37 %, it was +0.30 for a"
            " measured -0.11",
            ValidityWarning,
            stacklevel=3,
        )


def warn_of_means(model: Model) -> None:
    """A UserWarning that experts are taken at the means of their gates.

    How far off that is, at width 256 with ReLU: behind norms 3 to 6 % in the gradient variance after one block, and a
    factor of 1.4 to 1.8 after six, for top-1 and top-2 of 8 with softmax before the choice (gain 4; unevenness 0.7 and
    0.5); 6 % in the deviation after six blocks of PostNorm for top-1 of 8, whose gates are even but whose tokens, of
    one router, choose together.
    """
    layers = map(model.at, range(1, model.depth + 1))
    experts = next((layer.experts for layer in layers if layer.experts is not None), None)
    if experts is not None:
        spread = unevenness(experts, experts.router_std**2)
        warnings.warn(
            "for an array of starts predict takes experts at the means over routers and tokens: routers do not average"
            f" out, the sum of a token's squared gates varies by {spread:.0%} between tokens, and identity experts and"
            " tanh do more to gradients behind norms; take plain numbers, where all that is followed",
            UserWarning,
            stacklevel=4,
        )


@lru_cache(maxsize=4)
def _certain_errors(operator: str) -> NDArray[np.float64]:
    """Over the operator's axes: the largest measured error of any quantity, 0 where it may be chance."""
    errors = _stored()[operator]["errors"]
    found = []
    for quantity in (quantity for name, quantity in QUANTITIES.items() if name in errors):
        size, error = np.abs(errors[quantity.name]), np.array(errors[quantity.column("se")])
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
