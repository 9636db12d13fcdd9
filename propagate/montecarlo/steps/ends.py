"""The two ends of a network that is trained: what enters it, and how a loss sends a cotangent back."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import singledispatch
from typing import Any, NamedTuple

from propagate.checks import ModelError
from propagate.losses import CrossEntropy, Linear
from propagate.model import Model
from propagate.montecarlo.arrays import Array
from propagate.montecarlo.normals import Normals
from propagate.montecarlo.operators import softmax
from propagate.montecarlo.parameter_gradients import Part
from propagate.montecarlo.pulls import Pull
from propagate.montecarlo.run import COTANGENT_SITE, INPUT_SITE
from propagate.montecarlo.starts import Ends, tokens_of, with_gram
from propagate.montecarlo.steps.trained import Trained
from propagate.montecarlo.sublayers import CALLS, MATRICES

BLOCK = CALLS * MATRICES  # sites of a block
EMBEDDING_SITE = BLOCK - 1  # beside the embedding's own, which begin at 0


class End(NamedTuple):
    """What comes of the stream at a network's end.

    Attributes:
        loss: (draws,).
        pull: to the cotangent of that stream.
        logits: where there are any.
    """

    loss: Array
    pull: Callable[[], Array]
    logits: Array | None = None


class Entrance(NamedTuple):
    """What enters, and what its cotangent does."""

    x: Array
    pull: Pull


class Bounds(NamedTuple):
    """A loss on one batch of draws.

    Attributes:
        enter: makes the tokens that enter.
        leave: takes what leaves, at every step.
        through_readout: it reads what the readout gives, whatever the streams.
    """

    enter: Callable[[], Entrance]
    leave: Callable[[Array], End]
    through_readout: bool


@singledispatch
def bounds(loss: Any, model: Model, normals: Normals, ends: Ends, trained: Trained) -> Bounds:
    """What a loss is on one batch of draws."""
    raise ModelError(f"simulation does not cover the loss {type(loss).__name__}")


@bounds.register(Linear)
def linear(loss: Linear, model: Model, normals: Normals, ends: Ends, trained: Trained) -> Bounds:
    """Tokens and cotangents of `simulate`, the same at every step."""
    x = tokens_of(ends, normals, INPUT_SITE, model.width)
    cotangent = with_gram(ends.cotangent_root, normals, COTANGENT_SITE, model.width)

    def leave(y: Array) -> End:
        return End((cotangent * y).sum(axis=(-1, -2), dtype=float), lambda: cotangent)

    return Bounds(lambda: Entrance(x, lambda g: g), leave, through_readout=False)


@bounds.register(CrossEntropy)
def cross_entropy(loss: CrossEntropy, model: Model, normals: Normals, ends: Ends, trained: Trained) -> Bounds:
    """Ids and targets at random, a table and an unembedding that are trained."""
    backend, size, tokens = normals.backend, loss.vocabulary, model.tokens
    xp, dtype = backend.xp, backend.dtype
    ids, targets = (_uniform(normals, site, tokens, size) for site in (INPUT_SITE, COTANGENT_SITE))
    entering, wanted = ((ids[..., None] == xp.arange(size)).astype(dtype), targets[..., None] == xp.arange(size))
    root = float(ends.input_root[0, 0])
    table = Part("embedding", model.width, math.sqrt(size) * root)  # rows of variance root^2: its fan-in is `size`
    head, head_site = Part("unembedding", size, loss.gain), (model.depth + 2) * BLOCK - 1

    def leave(y: Array) -> End:
        logits, pull = trained.matrix(y, head_site, loss.gain, [head])
        shares, _ = softmax(backend, logits)
        top = logits.max(axis=-1, keepdims=True)
        total = xp.log(xp.exp(logits - top).sum(axis=-1, dtype=float)) + top[..., 0]
        value = (total - xp.where(wanted, logits, 0).sum(axis=-1)).mean(axis=-1)
        return End(value, lambda: pull((shares - wanted) / tokens), logits)

    return Bounds(lambda: Entrance(*trained.matrix(entering, EMBEDDING_SITE, table.gain, [table])), leave, True)


def _uniform(normals: Normals, site: int, tokens: int, size: int) -> Array:
    """Whole numbers below `size`, each as likely: the normals' distribution function takes them there."""
    xp = normals.backend.xp
    share = (1 + normals.backend.erf(normals(site, (tokens,)) * math.sqrt(0.5))) / 2
    return xp.minimum(xp.floor(size * share), size - 1).astype(int)
