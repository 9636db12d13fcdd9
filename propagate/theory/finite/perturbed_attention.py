"""Attention of finite width and heads on perturbed streams (see `perturbation`), under any mask.

Heads are to attention what hidden units are to a feed-forward layer (see `perturbed_ffn`): given x they are
independent, y = W_out h for the heads' joint output h, and W_out^T g = r + h M, r independent of h. A few heads of the
model's own size are drawn for each pair of evaluations and run forward and backward as they are, with the same normals
in each. What they give more with the noise than without it is how attention answers to a finite width, to second
order: its choice among tokens, norms of its projections and M included. How they differ from the limit is the
fluctuation of as many heads as the model has. What returns is known along the input, through each of the three input
matrices, and fresh elsewhere.

That a few heads answer for all leaves noise in what they answer, of order (tokens^2 / coordinates)^1/2, whose square
counts as if it were the network's. Twice as many heads change the bias of gradients by less than its standard error
(heads of 4, logits of 2, 8 tokens, two blocks; heads of 64, 16 tokens, six blocks); half as many would not do.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from propagate.norms import Norm
from propagate.sublayers import Attention
from propagate.theory.finite.perturbation import Array, Frame, Noise, Returned, inner, root
from propagate.theory.finite.perturbed_heads import Heads, Normals
from propagate.theory.pairs.moments import Moments
from propagate.theory.tokens.apply import Setting, apply
from propagate.theory.tokens.gram import Gram
from propagate.theory.tokens.softmax import REPLICAS, default_samples

Pull = Callable[[Array], Returned]
ROWS = 128  # of the attention weights that make one sample, at least
SINGULAR = 1e-7  # of h's largest direction: what is smaller is none


def attention(
    kind: Attention, norm: Norm, width: int, name: tuple[int, int] | None, frame: Frame, x: Array
) -> tuple[Array, Pull]:
    """Output, as vectors, and pull.

    Args:
        kind: as in force in the block.
        norm: of its inner projections.
        width: of the stream.
        name: of this call, for its draws in the limit where tokens differ; None where they are exchangeable.
        frame: of the block.
        x: components of what enters along as many directions as there are tokens.
    """
    noise, tokens, out = frame.noise, x.shape[-2], float(kind.out_gain)
    heads_normed = "heads" in kind.normed
    limit = _limit(kind, Setting(width, tokens, norm), name, inner(x, x)[-1])
    heads = Heads.drawn(kind, tokens, noise.random, noise.pairs, ROWS, centred=norm.centred)
    up, down, here = (heads.run(at) for at in (x[: noise.pairs], x[noise.pairs : -1], x[-1:]))
    gram = _answer(noise, heads.count, limit[0], *(inner(run.output, run.output) for run in (up, down, here)))
    scale = np.ones((len(gram), tokens, 1))
    if heads_normed:
        gram = gram * (1 - noise.square * norm.centred)  # which takes one of the directions away
        scale = 1 / np.sqrt(np.diagonal(gram, axis1=1, axis2=2))[..., None]
        gram = scale * gram * scale.swapaxes(1, 2)
    root_h, image = root(gram), frame.image(tokens)
    basis = scale[-1] * np.linalg.pinv(root_h[-1].T, rcond=SINGULAR)  # of h, times the heads' outputs

    def pull(g: Array) -> Returned:
        g = out * scale * g
        arrived, met = root(inner(g, g)), inner(image, g)
        along_itself = np.eye(tokens) * (root_h @ met) if heads_normed else 0 * met
        known = basis @ met - scale[-1] * along_itself
        r = heads.cotangents(noise.random)
        lost = basis @ noise.random.standard_normal((noise.pairs, tokens, tokens)) @ arrived[-1].T
        fresh = arrived[-1] @ r
        sent = [
            run.pull(arrived[at] @ r + known[at].swapaxes(1, 2) @ run.output)
            for run, at in ((up, slice(noise.pairs)), (down, slice(noise.pairs, -1)))
        ]
        plain, less = here.pull(fresh), here.pull(lost.swapaxes(1, 2) @ here.output)
        gram = _answer(noise, heads.count, limit[1](inner(g, g)[-1]), *map(_gram, (*sent, plain)))
        gone = _gram(less) / heads.count + gram[-1] * (heads_normed and norm.centred)
        gram = gram - noise.square * np.concatenate([gone, gone, gone[:1]])
        size = noise.small / math.sqrt(heads.count)
        met_again = known[: noise.pairs] - size * basis @ basis.T @ inner(here.output, fresh)
        with_input = heads.with_input(plain) * size
        with_input += here.returned(met_again.swapaxes(1, 2)) / heads.count
        along = np.concatenate([with_input, -with_input, 0 * with_input[:1]])
        return Returned(root(gram), along.swapaxes(1, 2))

    return np.asarray(out * root_h @ image), pull


def _gram(sent: Normals) -> Array:
    """Of what comes back through three independent matrices, summed over the heads' coordinates."""
    return np.asarray(sum(inner(g, g) for g in sent.values()))


def _answer(noise: Noise, coordinates: int, limit: Array, up: Array, down: Array, here: Array) -> Array:
    """Gram matrices in all evaluations: the limit, how heads answer to the noise, and their own fluctuation."""
    answer = np.concatenate([up - here, down - here, 0 * here[:1]]) / coordinates
    return np.asarray(limit + answer + noise.odd((here - coordinates * limit) / math.sqrt(coordinates)))


def _limit(
    kind: Attention, setting: Setting, name: tuple[int, int] | None, x: Array
) -> tuple[Array, Callable[[Array], Array]]:
    """Of the heads' joint output: its Gram matrix (tokens, tokens) in the limit, and the way back, from the input's."""
    heads = kind.with_(out_gain=1.0, normed=tuple(part for part in kind.normed if part != "heads"))
    if name is None:
        tokens = setting.tokens
        output, pull = apply(heads, moments_of(x), setting)[:2]
        return matrix_of(output, tokens), lambda g: matrix_of(pull(moments_of(g)), tokens)
    drawn = replace(setting, samples=default_samples(setting.tokens) // REPLICAS, seed=name)
    gram, back = apply(heads, _repeated(x), drawn)[:2]
    return gram.matrix.mean(axis=0), lambda g: np.asarray(back(_repeated(g)).matrix.mean(axis=0))


def _repeated(x: Array) -> Gram:
    return Gram.of(np.repeat(x[None], REPLICAS, axis=0))


def moments_of(gram: Array) -> Moments:
    """Of the matrix of exchangeable tokens.

    Example:
        >>> moments_of(np.array([[1.0, 0.5], [0.5, 1.0]]))
        Moments(variance=1.0, deviation=0.5)
    """
    mean, deviation = energies_of(gram).tolist()
    return Moments((mean + (len(gram) - 1) * deviation) / len(gram), deviation)


def matrix_of(x: Moments, tokens: int) -> Array:
    """The inverse of `moments_of`."""
    return np.asarray(x.variance - x.deviation * (1 - np.eye(tokens)))


def energies_of(gram: Array) -> Array:
    """Energies of the token mean and of the deviations from it, (..., 2), of Gram matrices.

    Example:
        >>> energies_of(np.array([[1.0, 0.5], [0.5, 1.0]])).tolist()
        [1.5, 0.5]
    """
    tokens = gram.shape[-1]
    mean = gram.sum(axis=(-1, -2)) / tokens
    return np.stack([mean, (np.trace(gram, axis1=-2, axis2=-1) - mean) / max(tokens - 1, 1)], axis=-1)
