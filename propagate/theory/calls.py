"""Predicted second moments of what every sublayer call gives, before the skip is added."""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from propagate.model import Model, check_model
from propagate.theory.moments import Moments
from propagate.theory.network import block_of, propagate_moments
from propagate.theory.predict import predict

if TYPE_CHECKING:
    import xarray as xr

VERBS = ("attention", "ffn", "norm")


def predict_calls(model: Model, **start: Any) -> xr.Dataset:
    """The table of `predict`, and `call_variance`, `call_covariance`, `call_deviation` over (`block`, `call`).

    A call is named by its sublayer and its number in the block, as in a `trace`: "norm2" is the second norm.

    Args:
        model: the network. Where tokens are not exchangeable, calls are left out.
        start: as for `predict`, numbers only.

    Raises:
        ModelError: as `predict`.

    Example: a norm gives variance 1, unit gains give an FFN's output the same.
        >>> found = predict_calls(Model("prenorm", depth=2))
        >>> found.call.values.tolist()
        ['norm1', 'attention1', 'norm2', 'ffn1']
        >>> found.call_variance.sel(block=1, call=["norm1", "ffn1"]).values.round(12).tolist()
        [1.0, 1.0]
    """
    check_model(model)
    found = predict(model, **start)
    if not getattr(model, "exchangeable", not model.causal):
        return found  # tokens that attention does not treat alike have no one pair of moments to write down
    heard: list[dict[str, Moments]] = []
    first = Moments(float(start.get("variance", 1.0)), float(start.get("variance", 1.0) - start.get("covariance", 0.0)))
    overheard: Any = _Overheard(model, heard)
    blocks = partial(block_of, overheard, head_size=start.get("head_size"))
    propagate_moments(overheard, first, Moments(1.0, 1.0), block_at=blocks)
    names = list(dict.fromkeys(name for block in heard for name in block))
    nothing = Moments(np.nan, np.nan)
    for moment in ("variance", "covariance", "deviation"):
        rows = [[float(getattr(block.get(name, nothing), moment)) for name in names] for block in [{}, *heard]]
        found[f"call_{moment}"] = ("block", "call"), np.array(rows)
    return found.assign_coords(call=("call", names))


class _Overheard:
    """A model, and at the same time its placement, whose blocks write down what their sublayers give."""

    def __init__(self, model: Model, heard: list[dict[str, Moments]]) -> None:
        self._model, self._heard = model, heard

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model if hasattr(self._model, name) else self._model.equations, name)

    @property
    def equations(self) -> _Overheard:
        return self

    def block(self, x: Any, block: Any) -> Any:
        self._heard.append({})
        return self._model.equations.block(x, _Listening(block, self._heard[-1]))


class _Listening:
    """A block that writes down the moments of every call."""

    def __init__(self, block: Any, heard: dict[str, Moments]) -> None:
        self._block, self._heard, self._counts = block, heard, Counter[str]()

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._block, name)
        if name not in VERBS:
            return found

        def call(*given: Any, **options: Any) -> Any:
            output = found(*given, **options)
            self._counts[name] += 1
            self._heard[f"{name}{self._counts[name]}"] = output.value.moments()
            return output

        return call
