"""The network's moments token by token: blocks for Gram matrices, and the table of what they give."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from propagate.model import Model
from propagate.scaling import Gains
from propagate.table import BY_MATRIX
from propagate.theory.finite.allowances import allowances, allowances_of_streams
from propagate.theory.pairs.experts import Mixture
from propagate.theory.parameter_gradients import MatrixGradients
from propagate.theory.reading.blocks import Block, Tape
from propagate.theory.reading.network import Path, propagate_moments
from propagate.theory.tokens.elementwise import tanh
from propagate.theory.tokens.experts import ROUTERS, mixture
from propagate.theory.tokens.gram import Array, Gram
from propagate.theory.tokens.softmax import REPLICAS, Attention, default_samples
from propagate.theory.tokens.sublayers import attention, ffn
from propagate.theory.validity import Watch

FEW = 16  # tokens, of which more routers are drawn: fewer choices average less, and cost less
TOKEN_COLUMNS = {"variance": "token_variance", "grad_variance": "grad_token_variance"}
TOGETHER = 2**18  # attention weights: more of them at a time take more memory, and leave the caches


def propagate_grams(
    model: Model,
    start: Gram,
    cotangent: Gram,
    *,
    through_readout: bool = False,
    head_size: float | None = None,
    samples: int | None = None,
    watch: Watch | None = None,
    gradients: MatrixGradients | None = None,
    group: Group | None = None,
) -> Path:
    """The network's Gram matrices, (replicas, tokens, tokens) each, from those at its two ends.

    Args:
        model: the network.
        start, cotangent: (tokens, tokens).
        through_readout: the cotangent enters behind the readout.
        head_size: stands in for the model's own.
        samples: draws of the attention logits a sublayer; by default about 2^13 rows.
        watch: told where attention and the FFN are used.
        gradients: told what every weight matrix sees.
        group: some of the replicas; by default all of them together.

    Example:
        >>> one = Gram.of(np.eye(4))
        >>> path = propagate_grams(Model("postnorm", depth=2, tokens=4, causal=True, logit_std=0.0), one, one)
        >>> path.forward[-1][0][0].variance.round(12).tolist()
        [[1.0, 1.0, 1.0, 1.0]]
    """
    number, replicas = group or Group(0, replicas_of(model))
    start, cotangent = (repeated(gram, replicas) for gram in (start, cotangent))
    blocks = (watch or Watch(model)).block_at(lambda index: block_of(model, index, samples, head_size, number))
    blocks = gradients.block_at(blocks) if gradients else blocks
    return propagate_moments(model, start, cotangent, through_readout=through_readout, block_at=blocks)


class Group(NamedTuple):
    """Replicas that are carried through the network together, and a number of theirs that their draws depend on."""

    number: int
    replicas: int


def groups_of(model: Model, samples: int | None) -> list[Group]:
    """So many replicas together that their weights in one sublayer are at most `TOGETHER` numbers, or one.

    Example:
        >>> groups_of(Model("prenorm", depth=1, tokens=1024, causal=True), None)[:2]
        [Group(number=0, replicas=1), Group(number=1, replicas=1)]
    """
    replicas = replicas_of(model)
    each = model.tokens**2 * (samples or _samples(model)) // REPLICAS
    size = min(max(TOGETHER // each, 1), replicas)
    return [Group(number, min(size, replicas - at)) for number, at in enumerate(range(0, replicas, size))]


def replicas_of(model: Model) -> int:
    """How many independent evaluations: one where no logits are drawn, many where every one has routers of its own.

    Example:
        >>> replicas_of(Model("prenorm", depth=1, logit_std=0.0)), replicas_of(Model("prenorm", depth=1))
        (1, 8)
    """
    exact = _attention(model, 2, (0, 0), None).exact
    if model.experts is not None:
        return 4 * ROUTERS if exact and model.tokens <= FEW else ROUTERS
    return 1 if exact else REPLICAS


def block_of(model: Model, index: int, samples: int | None, head_size: float | None = None, group: int = 0) -> Block:
    """The block a placement's equations see at `index`: 0 for the embedding, depth + 1 for the readout."""
    gains = model.gains(max(index, 1))
    calls = itertools.count()
    drawn = (samples or _samples(model)) // REPLICAS

    def attention_map(x: Gram, normed: frozenset[str]) -> tuple[Gram, Callable[[Gram], Gram]]:
        kind = _attention(model, drawn, (index, next(calls), group), head_size)
        out, scales = gains.attention_out, {"query": gains.query, "key": gains.key, "value": gains.value}
        return attention(kind, **scales, out=out, centred=model.norm == "layer")(x, normed)

    return Block(
        index=index,
        depth=model.depth,
        first=index == 1,
        last=index == model.depth,
        tape=Tape(lacking=model.experts is not None),
        attention_map=attention_map,
        ffn_map=ffn(model.activation, gains.ffn_in, gains.ffn_out, centred=model.norm == "layer"),
        inner_norms=model.inner_norms,
        dropout=model.dropout,
        tanh_map=tanh,
        experts_map=None if model.experts is None else _mixture(model, gains, index, group, calls),
    )


def _samples(model: Model) -> int:
    """Beside what routers of their own make of networks attention's sampling error is lost: few heads are enough."""
    plain = default_samples(model.tokens)
    return plain if model.experts is None else max(plain // 128, 1) * 16


def _mixture(model: Model, gains: Gains, index: int, group: int, calls: Iterator[int]) -> Mixture:
    def apply(x: Gram, normed: frozenset[str]) -> Any:
        assert model.experts is not None
        kind, seed = (model.activation, gains.ffn_in, gains.ffn_out, model.experts), (index, next(calls), group)
        return mixture(*kind, seed, centred=model.norm == "layer")(x, normed)

    return apply


def _attention(model: Model, samples: int, seed: tuple[int, ...], head_size: float | None) -> Attention:
    return Attention(model.visible, model.logit_std**2, model.frequencies, samples, seed, head_size or model.head_size)


def repeated(gram: Gram, replicas: int) -> Gram:
    return Gram(*(np.repeat(part[None], replicas, axis=0) for part in gram))


def columns(
    model: Model,
    start: Gram,
    cotangent: Gram,
    *,
    through_readout: bool,
    head_size: float,
    samples: int | None,
    watch: Watch,
    gradients: MatrixGradients | None = None,
) -> tuple[dict[str, Array], bool]:
    """The table's columns, and whether they have an axis of streams.

    Means over tokens and over pairs of tokens, and each token's own variance; each the mean over replicas, and
    `<name>_se` its standard error where there are several: the theory's own, of the attention logits it drew. Routers
    do not average out in a network: where they are drawn, the means of logarithms differ from the logarithms of means
    at any width, and stand beside them.
    """

    def of_group(group: Group) -> dict[str, Array]:
        path = propagate_grams(
            model,
            start,
            cotangent,
            through_readout=through_readout,
            head_size=head_size,
            samples=samples,
            watch=watch,
            gradients=gradients,
            group=group,
        )
        return _of_replicas(path, *(repeated(gram, group.replicas) for gram in (start, cotangent)))

    groups = [Group(0, replicas_of(model))] if gradients else groups_of(model, samples)
    parts = [of_group(group) for group in groups]
    several = "kept" in parts[0]
    of_replicas = {name: np.concatenate([part[name] for part in parts], axis=1) for name in parts[0]}
    skip, kept = of_replicas.pop("skip_gain").mean(axis=1), of_replicas.pop("kept", np.ones((1, 1))).mean(axis=1)
    replicas = replicas_of(model)
    found: dict[str, Array] = {}
    for name, values in of_replicas.items():
        found[name] = values.mean(axis=1)
        if replicas > 1:
            found[f"{name}_se"] = values.std(axis=1, ddof=1) / np.sqrt(replicas)
        if model.experts is not None and "covariance" not in name:
            bias = _log(values).mean(axis=1) - _log(found[name])
            found[f"log_{name}_bias"] = np.where(found[name] <= 0, 0.0, bias)  # of what is 0, no router is off
    found["skip_gain"] = skip.mean(axis=-1)
    of_tokens = {name: found[token] for name, token in TOKEN_COLUMNS.items()}
    of_tokens |= {"skip_gain": skip, "grad_deviation": found["grad_token_variance"]}
    of_tokens["deviation"] = of_tokens["variance"] * (found["deviation"] / found["variance"])[..., None]
    if several:
        found |= allowances_of_streams(found, kept.mean(axis=-1), model)
        stated = allowances_of_streams(of_tokens, kept, model, single_tokens=True)
    else:
        found |= allowances(found, model, through_readout=through_readout)
        stated = allowances(of_tokens, model, through_readout=through_readout, single_tokens=True)
    found |= {f"{token}_allowance": stated[f"{name}_allowance"] for name, token in TOKEN_COLUMNS.items()}
    found = {name: values if several else values[:, 0] for name, values in found.items()}
    if gradients:
        of_matrices = gradients.columns(found, (replicas,), several=several)
        norms = of_matrices[BY_MATRIX]
        found |= of_matrices | {BY_MATRIX: norms.mean(axis=1)}
        if replicas > 1:
            found[f"{BY_MATRIX}_se"] = norms.std(axis=1, ddof=1) / np.sqrt(replicas)
    return found, several


def _of_replicas(path: Path, start: Gram, cotangent: Gram) -> dict[str, Array]:
    """Arrays of shape (blocks, replicas, streams), with a last axis of tokens for the tokens' own; and, of shape
    (blocks, replicas, tokens), the share `kept` where there are several streams.
    """
    found: dict[str, Array] = {}
    for prefix, ends, joints in (
        ("", (start, path.readout), path.forward),
        ("grad_", (path.embedding, cotangent), path.backward),
    ):
        streams = [statistics([joint[i][i] for joint in joints], start) for i in range(len(joints[0]))]
        for name in streams[0]:
            found[prefix + name] = np.stack([stream[name] for stream in streams], axis=2)
            if path.several:
                joined = np.full_like(streams[0][name], np.nan)
                joined[0], joined[-1] = (statistics([end], start)[name][0] for end in ends)
                found[prefix + name] = np.insert(found[prefix + name], len(streams), joined, axis=2)
    found["skip_gain"] = _skip_powers(path, start.variance.shape)
    return found | {"kept": _kept(path)} if path.several else found


def statistics(grams: list[Any], like: Gram) -> dict[str, Array]:
    """Arrays of shape (blocks, replicas), and with a last axis of tokens for the tokens' own."""
    known = [gram if isinstance(gram, Gram) else like.weighted(0.0) for gram in grams]
    of_tokens = np.stack([gram.variance for gram in known])
    tokens = of_tokens.shape[-1]
    pairs = max(tokens * (tokens - 1), 1)
    none = np.nan if tokens == 1 else 0.0
    apart = np.stack([gram.deviation.sum(axis=(-1, -2)) for gram in known]) / pairs + none
    mean_mode = np.stack([gram.matrix.sum(axis=(-1, -2)) for gram in known]) / tokens**2
    return {
        "variance": of_tokens.mean(axis=-1),
        # from the mean mode, so that it is not the difference of large numbers
        "covariance": mean_mode - apart / tokens,
        "deviation": apart,
        "token_variance": of_tokens,
    }


def _log(values: Array) -> Array:
    """Natural logarithm; NaN where a quantity is 0."""
    return np.log(values, out=np.full_like(values, np.nan), where=values > 0)


def _skip_powers(path: Path, shape: tuple[int, ...]) -> Array:
    """(blocks, replicas, streams, tokens): square of the factor that a cotangent returns with along the skips alone."""
    factors = list(path.readout_skips) if path.several else [1.0]
    found = [factors]
    for skips in reversed(path.skips):
        factors = [sum(f * row[j] for f, row in zip(factors, skips, strict=True)) for j in range(len(factors))]
        found.append(factors)
    powers = np.array([[np.broadcast_to(np.square(f), shape) for f in block] for block in found[::-1]]).swapaxes(1, 2)
    return np.insert(powers, powers.shape[2], np.nan, axis=2) if path.several else powers


def _kept(path: Path) -> Array:
    """(blocks, replicas, tokens): of what leaves a block, the share that its skips kept, the least of all streams."""
    shares = []
    for entering, leaving, skips in zip(path.forward[:-1], path.forward[1:], path.skips, strict=True):
        streams = range(len(skips))
        powers = [sum(row[i] * row[j] * entering[i][j].variance for i in streams for j in streams) for row in skips]
        ratios = [power / leaving[i][i].variance for i, power in enumerate(powers)]
        shares.append(np.min(ratios, axis=0))
    return np.array(shares)
