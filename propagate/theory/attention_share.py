"""Attention's share: of the gradient of one token's output, the part that reaches the inputs of other tokens.

Let a cotangent enter at one token alone. In every row of attention weights the tokens are exchangeable, also its own,
so what returns through values and keys is the same for all tokens and depends on the trace and the sum of the
cotangent's Gram matrix alone. What tells the token apart is left over from that mean over tokens; it returns along
skips, norms and FFNs, and through the queries, token by token. So with G the gain of a cotangent that is independent
over T tokens, and R the gain of what stays with its token, the token's own part is (G + (T - 1) R) / (T G), and the
share (1 - 1/T) (1 - R / G). Where tokens are not exchangeable the Gram matrices are followed instead.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from propagate.model import Model, ModelError
from propagate.start import Start
from propagate.sublayers import FFN, Attention, Sublayer
from propagate.table import JOINED, STREAM
from propagate.theory.pairs.moments import Moments
from propagate.theory.pairs.sublayers import AttentionPull
from propagate.theory.predict import MOMENTS, predict
from propagate.theory.reading.blocks import Applied
from propagate.theory.reading.network import propagate_moments
from propagate.theory.starts import moments_of
from propagate.theory.walks import block_of

SAMPLES = 16  # of attention's logits in a sublayer, in each of the replicas; the share is then good to a few percent
ONE = Moments(1.0, 1.0)


def attention_share(model: Model, start: Start | None = None) -> float:
    """The share of the gradient of the last token's output that reaches the inputs of other tokens.

    The cotangent enters at that token alone, at the stream that leaves the last block (of several streams, behind the
    readout). Among exchangeable tokens any other would do as well.

    Args:
        model: the network.
        start: what enters; its cotangent has no part in this.

    Raises:
        ModelError: as `predict`, or where no gradient reaches the embedding.

    Example: one layer of uniform attention of gain 1 on a skip, over two tokens that are independent; FFNs are off.
        >>> round(attention_share(Model("prenorm", depth=1, tokens=2, logit_std=0.0, ffn_gain=0.0)), 12)
        0.166666666667
    """
    given = Start.of(start, **{name: getattr(Start(), name) for name in (*MOMENTS, "gram", "grad_gram")})
    if model.tokens == 1:
        return 0.0
    if given.gram is None and model.exchangeable and not model.uneven and not hasattr(given.variance, "dims"):
        enters = moments_of("variance", "covariance", float(given.variance), float(given.covariance), model.tokens)
        try:
            whole, own = _gains(model, enters)
        except _Mixing:
            pass
        else:
            _check_gain(model, whole)
            return (1 - 1 / model.tokens) * (1 - own / whole)
    return _resolved(model, given)


class _Mixing(Exception):
    """A sublayer of which it is not known what it sends to other tokens."""


def _gains(model: Model, start: Moments) -> tuple[float, float]:
    """Of the variance of an independent cotangent, from the last block to the embedding: along all paths, and without
    what attention sends to all tokens alike."""
    made: list[Applied] = []

    def first(algebra: Any, description: Sublayer, x: Any) -> Applied:
        if not isinstance(description, FFN | Attention):
            raise _Mixing
        made.append(algebra.apply_map(description, x))
        return made[-1]

    whole = _gain(model, start, first)
    again = iter(made)  # on the same way forward, which is not computed anew
    return whole, _gain(model, start, lambda *_: _own_path(next(again)))


def _own_path(applied: Applied) -> Applied:
    """Of attention to several tokens the queries' path alone."""
    pull = applied.pull
    if not isinstance(pull, AttentionPull):
        return applied
    return applied._replace(pull=lambda g: pull.paths(g)["query"])


def _gain(model: Model, start: Moments, applied: Callable[[Any, Sublayer, Any], Applied]) -> float:
    """With a block's algebra, what is applied in it."""

    def block_at(index: int) -> Any:
        block = block_of(model, index)
        algebra: Any = block.algebra
        return replace(block, algebra=replace(algebra, apply_map=partial(applied, algebra)))

    return float(propagate_moments(model, start, ONE, block_at).embedding.variance)


def _resolved(model: Model, given: Start) -> float:
    """Token by token."""
    grad_gram = np.zeros((model.tokens, model.tokens))
    grad_gram[-1, -1] = 1.0
    ends = {name: given[name] for name in ("variance", "covariance", "gram") if name in given}
    found = predict(model, Start(grad_gram=grad_gram, **ends), samples=SAMPLES)
    found = found.sel({STREAM: JOINED}) if STREAM in found.dims else found
    arrived = found.grad_token_variance.isel(block=0).to_numpy()
    _check_gain(model, float(arrived.sum()))
    return float(arrived[:-1].sum() / arrived.sum())


def _check_gain(model: Model, gain: float) -> None:
    if not 0 < gain < np.inf:
        raise ModelError(f"the gradient that reaches the embedding must be a positive number, got {gain} in {model!r}")
