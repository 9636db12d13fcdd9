"""Predicted second moments of what every sublayer call gives, before the skip is added."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from propagate.model import Model
from propagate.start import included
from propagate.theory.predict import INCLUDE, predict

if TYPE_CHECKING:
    import xarray as xr


def predict_calls(model: Model, start: Any = None, **options: Any) -> xr.Dataset:
    """The table of `predict` that includes "calls".

    Args:
        model, start, options: as for `predict`.

    Raises:
        ModelError: as `predict`.

    Example: a norm gives variance 1, unit gains give an FFN's output the same.
        >>> found = predict_calls(Model("prenorm", depth=2))
        >>> found.call.values.tolist()
        ['norm1', 'attention1', 'norm2', 'ffn1']
        >>> found.call_variance.sel(block=1, call=["norm1", "ffn1"]).values.round(12).tolist()
        [1.0, 1.0]

    Example: under a causal mask the first token has nothing to average with, and attention gives more.
        >>> causal = predict_calls(Model("prenorm", depth=1, tokens=4, causal=True, logit_std=0.0))
        >>> causal.call_variance.sel(block=1, call="attention1").item()  # the mean of 1, 1/2, 1/3, 1/4
        0.5208333333333333
    """
    also = included(options.pop("include", ()), INCLUDE)
    return predict(model, start, include={"calls", *also}, **options)
