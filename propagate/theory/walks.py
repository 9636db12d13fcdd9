"""A walk through the network and back, at the resolution that the moments at its ends have."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from propagate.crossing import CrossAttention
from propagate.latent import LatentAttention
from propagate.model import Model
from propagate.outline import outline
from propagate.recurrent import LinearAttention
from propagate.sublayers import FFN, Attention, Sublayer, registered
from propagate.theory.pairs import elementwise as pairs
from propagate.theory.pairs.moments import Combination, Moments
from propagate.theory.reading.blocks import Applied, MomentAlgebra, NotExchangeable
from propagate.theory.reading.network import Path, propagate_moments
from propagate.theory.reading.reader import Block
from propagate.theory.tokens import elementwise as grams
from propagate.theory.tokens.apply import Setting, applied, attention_of, norm_scale
from propagate.theory.tokens.experts import ROUTERS
from propagate.theory.tokens.gram import Gram
from propagate.theory.tokens.softmax import REPLICAS, default_samples

FEW = 16  # tokens, of which more routers are drawn: fewer choices average less, and cost less
TOGETHER = 2**18  # attention weights: more of them at a time take more memory, and leave the caches
THREADS = 2  # that walk at a time, where no more replicas than these fit together


def walk(
    model: Model,
    start: Moments,
    cotangent: Moments,
    *,
    through_readout: bool = False,
    head_size: float | None = None,
    exact: bool = False,
) -> Path:
    """The moments of exchangeable tokens along a network, floats or arrays, from those at its two ends.

    Args:
        model: the network; its experts are taken at the means of their gates.
        start, cotangent: of the embedded tokens, and of the cotangent at the other end.
        through_readout: the cotangent enters behind the readout.
        head_size: stands in for the model's own.
        exact: whether each call's record must hold the cotangents that come to it, and attention's what it sends back
            by each of its paths.

    Example:
        >>> path = walk(Model("postnorm", depth=3), Moments(1.0, 1.0), Moments(1.0, 1.0))
        >>> len(path.forward), round(path.forward[-1][0][0].variance, 12)
        (4, 1.0)
        >>> [call.verb for call in path.calls[1]]
        ['attention', 'norm', 'ffn', 'norm']
    """
    block_at = partial(block_of, model, head_size=head_size, exact=exact)
    return propagate_moments(model, start, cotangent, block_at, through_readout=through_readout)


class Group(NamedTuple):
    """Replicas that are carried through the network together, and a number of theirs that their draws depend on."""

    number: int
    replicas: int


def walk_grams(
    model: Model,
    start: Gram,
    cotangent: Gram,
    *,
    through_readout: bool = False,
    head_size: float | None = None,
    exact: bool = False,
    samples: int | None = None,
    group: Group | None = None,
) -> Path:
    """The Gram matrices along a network, (replicas, tokens, tokens) each, from those at its two ends.

    Args:
        model: the network.
        start, cotangent: (tokens, tokens).
        through_readout: the cotangent enters behind the readout.
        head_size: stands in for the model's own.
        exact: as in `walk`.
        samples: draws of the attention logits a sublayer, by default about 2^13 rows; or as in `replicas_of`.
        group: some of the replicas; by default all of them together.

    Example:
        >>> one = Gram.of(np.eye(4))
        >>> path = walk_grams(Model("postnorm", depth=2, tokens=4, causal=True, logit_std=0.0), one, one)
        >>> path.forward[-1][0][0].variance.round(12).tolist()
        [[1.0, 1.0, 1.0, 1.0]]
    """
    number, replicas = group or Group(0, replicas_of(model, samples))
    drawn = _of_each(model, samples)
    block_at = partial(block_of, model, head_size=head_size, exact=exact, samples=drawn, group=number, resolved=True)
    return propagate_moments(
        model, repeated(start, replicas), repeated(cotangent, replicas), block_at, through_readout=through_readout
    )


def block_of(
    model: Model,
    index: int,
    *,
    head_size: float | None = None,
    exact: bool = False,
    samples: int = 0,
    group: int = 0,
    resolved: bool = False,
) -> Block[Combination]:
    """The block a placement's equations see at `index`: 0 for the embedding, depth + 1 for the readout."""
    layer, drawn = model.at(index), itertools.count()
    setting = Setting(model.width, model.tokens, layer.norm, head_size, samples)

    def apply_map(description: Sublayer, x: Any) -> Applied:
        if resolved and not isinstance(description, FFN):  # in which nothing is drawn
            return applied(description, x, replace(setting, seed=(index, next(drawn), group)))
        if not (resolved or description.exchangeable(model.tokens)):
            raise NotExchangeable
        return applied(description, x, setting)

    algebra = MomentAlgebra(
        apply_map,
        norm_scale=partial(registered(norm_scale.registry, layer.norm), layer.norm),
        tanh_map=grams.tanh if resolved else pairs.tanh,
        dropout=model.dropout,
        uneven=model.uneven,
        exact=exact,
    )
    return Block(index, model.depth, index == 1, index == model.depth, layer, algebra)


def groups_of(model: Model, samples: int | None) -> list[Group]:
    """So many replicas together that their weights in one sublayer are at most `TOGETHER` numbers, or one.

    Two that fit together are two groups: their arrays are large enough for each to keep a thread busy.

    Example:
        >>> causal = Model("prenorm", depth=1, causal=True)
        >>> [[group.replicas for group in groups_of(replace(causal, tokens=tokens), None)] for tokens in (64, 128)]
        [[4, 4], [1, 1, 1, 1, 1, 1, 1, 1]]
    """
    replicas, fit = replicas_of(model, samples), _fitting(model, samples)
    size = 1 if fit <= THREADS else min(fit, replicas)
    return [Group(number, min(size, replicas - at)) for number, at in enumerate(range(0, replicas, size))]


def at_once(model: Model, samples: int | None) -> int:
    """How many groups may walk at a time, none of which then has a reason to wait for memory.

    Example:
        >>> causal = Model("prenorm", depth=1, causal=True)
        >>> [at_once(replace(causal, tokens=tokens), None) for tokens in (64, 128, 256)]
        [1, 2, 1]
    """
    fit = _fitting(model, samples)
    return fit if fit <= THREADS else 1


def _fitting(model: Model, samples: int | None) -> int:
    """How many replicas' weights in one sublayer are at most `TOGETHER` numbers; at least one."""
    return max(TOGETHER // (model.tokens**2 * _of_each(model, samples)), 1)


def replicas_of(model: Model, samples: int | None = None) -> int:
    """How many independent evaluations: one where no logits are drawn, many where every one has routers of its own, and
    then as many as samples are asked for, if that is more.

    Example:
        >>> replicas_of(Model("prenorm", depth=1, logit_std=0.0)), replicas_of(Model("prenorm", depth=1))
        (1, 8)
        >>> from propagate.experts import Experts
        >>> mixed = Model("prenorm", depth=1, experts=Experts(8))
        >>> [replicas_of(mixed, samples) for samples in (None, 16, 512)]
        [64, 64, 512]
    """
    exact = not any(_drawn(one, model) for one in dict.fromkeys(mixers_of(model)))
    if model.uneven:
        return max(4 * ROUTERS if exact and model.tokens <= FEW else ROUTERS, samples or 0)
    return 1 if exact else REPLICAS


def mixers_of(model: Model) -> Iterator[Sublayer]:
    """Every block's attention, and what its equations describe themselves, in force."""
    for index in range(1, model.depth + 1):
        layer = model.at(index)
        yield layer.attention
        for call in outline(model.equations, model.depth, index):
            if call.description is not None:
                yield layer.in_force(call.description)


def _drawn(one: Sublayer, model: Model) -> bool:
    """Whether averages over it are taken over something that is drawn."""
    if isinstance(one, LinearAttention):
        return one.gate is not None
    if isinstance(one, CrossAttention):
        return one.logit_std != 0 and one.memory.tokens > 1
    if not isinstance(one, Attention | LatentAttention):
        return False
    return not attention_of(one, Setting(model.width, model.tokens, model.at(1).norm)).exact


def _of_each(model: Model, samples: int | None) -> int:
    """Draws of the logits in each replica. Beside what routers of their own make of networks attention's sampling error
    is lost: few are enough.
    """
    plain = default_samples(model.tokens)
    if model.uneven:
        return max(plain // 128, 1) * 16 // REPLICAS
    return (samples or plain) // REPLICAS


def repeated(gram: Gram, replicas: int) -> Gram:
    """A Gram matrix for each replica, all alike."""
    return Gram(*(np.repeat(part[None], replicas, axis=0) for part in gram))
