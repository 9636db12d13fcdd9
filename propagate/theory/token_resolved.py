"""The network's moments token by token: the recursion of Gram matrices, and its table."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from propagate.model import Model
from propagate.theory.blocks import Block, Stream, Tape
from propagate.theory.finite_width import allowances
from propagate.theory.gram import Array, Gram
from propagate.theory.gram_softmax import REPLICAS, Attention, default_samples
from propagate.theory.gram_sublayers import attention, ffn
from propagate.theory.moments import Atom, Combination


class Path(NamedTuple):
    """Gram matrices along a network, (replicas, tokens, tokens) each.

    Attributes:
        forward, backward: of the stream and of its cotangent, at blocks 0 ... depth.
        skips: gain of each block's skip path for each token, blocks 1 ... depth.
    """

    forward: list[Gram]
    backward: list[Gram]
    skips: list[Array]


def propagate_grams(
    model: Model, start: Gram, cotangent: Gram, *, through_readout: bool = False, samples: int | None = None
) -> Path:
    """The network's Gram matrices from those at its two ends.

    Args:
        model: the network.
        start, cotangent: (tokens, tokens).
        through_readout: the cotangent enters behind the readout.
        samples: draws of the attention logits a sublayer; by default about 2^13 rows.

    Example:
        >>> one = Gram.of(np.eye(4))
        >>> path = propagate_grams(Model("postnorm", depth=2, tokens=4, causal=True, logit_std=0.0), one, one)
        >>> path.forward[-1].variance.round(12).tolist()
        [[1.0, 1.0, 1.0, 1.0]]
    """
    placement, replicas = model.equations, replicas_of(model)
    forward = [_repeated(start, replicas)]
    pulls: list[Callable[[Gram], Gram]] = []
    skips: list[Array] = []

    def run(equations: Callable[[Any, Any], Any], index: int) -> tuple[Gram, Callable[[Gram], Gram], Any]:
        block = block_of(model, index, samples)
        entered = Atom(forward[-1])
        source = Stream(Combination.of(entered), block.tape)
        output = equations(source, block)
        if not isinstance(output, Stream):
            raise TypeError(f"a placement must return one stream, got {output!r}")

        def pull(g: Gram) -> Gram:
            found = block.tape.pull(output, Combination.of(Atom(g)), source)
            return found.moments() if found.terms else g.weighted(0.0)

        return output.value.moments(), pull, output.value.terms.get(entered, 0.0)

    forward[0] = run(placement.embed, 0)[0]
    for index in range(1, model.depth + 1):
        output, pull, skip = run(placement.block, index)
        forward.append(output)
        pulls.append(pull)
        skips.append(np.broadcast_to(np.square(skip), output.variance.shape))
    cotangent = _repeated(cotangent, replicas)
    if through_readout:
        cotangent = run(placement.readout, model.depth + 1)[1](cotangent)
    backward = [cotangent]
    while pulls:
        backward.append(pulls.pop()(backward[-1]))
    return Path(forward, backward[::-1], skips)


def replicas_of(model: Model) -> int:
    """How many independent evaluations: one where no logits are drawn.

    Example:
        >>> replicas_of(Model("prenorm", depth=1, logit_std=0.0)), replicas_of(Model("prenorm", depth=1))
        (1, 8)
    """
    return 1 if _attention(model, 16, (0, 0)).exact else REPLICAS


def block_of(model: Model, index: int, samples: int | None) -> Block:
    """The block a placement's equations see at `index`: 0 for the embedding, depth + 1 for the readout."""
    gains = model.gains(max(index, 1))
    calls = itertools.count()
    drawn = samples or default_samples(model.tokens)

    def attention_map(x: Gram) -> Any:
        kind = _attention(model, drawn, (index, next(calls)))
        return attention(kind, value=gains.value, out=gains.attention_out)(x)

    return Block(
        index=index,
        depth=model.depth,
        first=index == 1,
        last=index == model.depth,
        tape=Tape(),
        attention_map=attention_map,
        ffn_map=ffn(model.activation, gains.ffn_in, gains.ffn_out, centred=model.norm == "layer"),
    )


def _attention(model: Model, samples: int, seed: tuple[int, int]) -> Attention:
    visible = tuple(tuple(row) for row in model.visible.tolist())
    return Attention(visible, model.logit_std**2, model.frequencies, samples, seed)


def _repeated(gram: Gram, replicas: int) -> Gram:
    return Gram(*(np.repeat(part[None], replicas, axis=0) for part in gram))


def columns(path: Path, width: int, *, through_readout: bool = False) -> dict[str, Array]:
    """The table's columns: means over tokens and over pairs of tokens, and each token's own variance.

    Each is the mean over replicas, and `<name>_se` its standard error where there are several: the theory's own, of the
    attention logits it drew.
    """
    of_replicas: dict[str, Array] = {}
    for prefix, grams in (("", path.forward), ("grad_", path.backward)):
        for name, values in _statistics(grams).items():
            of_replicas[prefix + name] = values
    found: dict[str, Array] = {}
    for name, values in of_replicas.items():
        found[name] = values.mean(axis=1)
        if values.shape[1] > 1:
            found[f"{name}_se"] = values.std(axis=1, ddof=1) / np.sqrt(values.shape[1])
    gains = np.stack([*path.skips, np.ones_like(path.skips[0])]).mean(axis=1)
    skip = np.cumprod(gains[::-1], axis=0)[::-1]
    tokens = skip.shape[1]
    found["skip_gain"] = skip.mean(axis=1)
    found |= allowances(found, width, tokens, through_readout=through_readout)
    of_tokens = {name: found[token] for name, token in TOKEN_COLUMNS.items()}
    of_tokens |= {"skip_gain": skip, "grad_deviation": found["grad_token_variance"]}
    stated = allowances(of_tokens, width, tokens, through_readout=through_readout)
    return found | {f"{token}_allowance": stated[f"{name}_allowance"] for name, token in TOKEN_COLUMNS.items()}


TOKEN_COLUMNS = {"variance": "token_variance", "grad_variance": "grad_token_variance"}


def _statistics(grams: list[Gram]) -> dict[str, Array]:
    """Arrays of shape (blocks, replicas), and with a last axis of tokens for the tokens' own."""
    of_tokens = np.stack([gram.variance for gram in grams])
    tokens = of_tokens.shape[-1]
    pairs = max(tokens * (tokens - 1), 1)
    none = np.nan if tokens == 1 else 0.0
    apart = np.stack([gram.deviation.sum(axis=(-1, -2)) for gram in grams]) / pairs + none
    mean_mode = np.stack([gram.matrix.sum(axis=(-1, -2)) for gram in grams]) / tokens**2
    return {
        "variance": of_tokens.mean(axis=-1),
        # from the mean mode, so that it is not the difference of large numbers
        "covariance": mean_mode - apart / tokens,
        "deviation": apart,
        "token_variance": of_tokens,
    }
