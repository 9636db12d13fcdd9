"""Predicted second moments of what every sublayer call gives, before the skip is added."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from propagate.model import Model, check_model
from propagate.table import of_tokens
from propagate.theory import token_resolved
from propagate.theory.finite.allowances import call_allowances
from propagate.theory.pairs.moments import Moments
from propagate.theory.predict import predict, rounded_samples
from propagate.theory.reading import network
from propagate.theory.reading.blocks import Block, alone, read
from propagate.theory.starts import gram_of

if TYPE_CHECKING:
    import xarray as xr

VERBS = ("attention", "ffn", "norm")
MOMENTS = ("variance", "covariance", "deviation")


def predict_calls(model: Model, **start: Any) -> xr.Dataset:
    """The table of `predict`, and `call_variance`, `call_covariance`, `call_deviation` over (`block`, `call`).

    A call is named by its sublayer and its number in the block, as in a `trace`: "norm2" is the second norm. Where
    tokens are not exchangeable (a Gram matrix, a mask, rotary positions) these are means over tokens and over pairs of
    tokens, and where logits are drawn `<name>_se` is the theory's own standard error, as in `predict`.

    Args:
        model: the network.
        start: as for `predict`, numbers only.

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
    check_model(model)
    found = predict(model, **start)
    variance, size = float(start.get("variance", 1.0)), start.get("head_size")
    first = Moments(variance, variance - float(start.get("covariance", 0.0)))
    if model.exchangeable and start.get("gram") is None and start.get("grad_gram") is None:
        heard = _heard(model, first, partial(network.block_of, model, head_size=size))
        columns = _columns(heard, lambda x: {name: np.array([getattr(x, name)]) for name in MOMENTS})
    else:
        samples, replicas = rounded_samples(start.get("samples")), token_resolved.replicas_of(model)
        gram = token_resolved.repeated(gram_of("gram", start.get("gram"), first, model.tokens), replicas)
        heard = _heard(model, gram, lambda index: token_resolved.block_of(model, index, samples, size))
        columns = _columns(heard, lambda x: token_resolved.statistics([x], gram))
    names = list(dict.fromkeys(itertools.chain.from_iterable(heard)))
    allowed = call_allowances(found.variance_allowance.to_numpy(), model.width)[:, None]
    columns |= {f"call_{moment}_allowance": np.repeat(allowed, len(names), axis=1) for moment in MOMENTS}
    columns = of_tokens(columns, model.tokens)
    found = found.assign({name: (("block", "call"), values) for name, values in columns.items()})
    return found.assign_coords(call=("call", names))


def _heard(model: Model, start: Any, block_at: Callable[[int], Block]) -> list[dict[str, Any]]:
    """Moments of every call in blocks 0 ... depth, by name; those of the embedding are left out."""
    placement, state, heard = model.equations, alone(start), list[dict[str, Any]]()
    for index in range(model.depth + 1):
        block, equations = block_at(index), placement.block if index else placement.embed
        listening = _Listening(block, {})
        state = read(partial(_swapped, equations, listening), block.tape, state).output
        heard.append(listening.heard if index else {})
    return heard


def _swapped(equations: Callable[[Any, Any], Any], block: Any, streams: Any) -> Any:
    return equations(streams, block)


def _columns(heard: list[dict[str, Any]], statistics: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
    """Arrays of shape (blocks, calls): means over replicas and, where there are several, their standard errors."""
    names = list(dict.fromkeys(itertools.chain.from_iterable(heard)))
    known = {(i, j): statistics(block[n]) for i, block in enumerate(heard) for j, n in enumerate(names) if n in block}
    columns: dict[str, Any] = {}
    for moment in MOMENTS:
        mean, error = np.full((2, len(heard), len(names)), np.nan)
        for place, found in known.items():
            replicas = np.ravel(found[moment])
            mean[place] = replicas.mean()
            error[place] = replicas.std(ddof=1) / np.sqrt(len(replicas)) if len(replicas) > 1 else 0.0
        columns |= {f"call_{moment}": mean, f"call_{moment}_se": error}
    return columns


class _Listening:
    """A block that writes down the moments of every call."""

    def __init__(self, block: Any, heard: dict[str, Any]) -> None:
        self._block, self.heard, self._counts = block, heard, Counter[str]()

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._block, name)
        if name not in VERBS:
            return found

        def call(*given: Any, **options: Any) -> Any:
            output = found(*given, **options)
            self._counts[name] += 1
            self.heard[f"{name}{self._counts[name]}"] = output.value.moments()
            return output

        return call
