"""Norms of queries, keys and values in heads of a few coordinates, and rotary positions there, against drawn heads.

Heads are drawn here with their norms, and cotangents sent back by matrices written out. The maps that take such heads
for wide, which stood before, are rejected by the same scores, and so is a norm's Jacobian without its projection.
"""

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import pytest

import propagate as pg
from propagate.scaling import Gains
from propagate.theory.gaussian.normed_heads import NormedHeads, normed_averages
from propagate.theory.gaussian.normed_values import similarity_loss, similarity_slope
from propagate.theory.pairs.moments import Moments
from propagate.theory.pairs.sublayers import attention
from propagate.theory.tokens.gram import Gram
from propagate.theory.tokens.softmax import Attention
from propagate.theory.tokens.sublayers import attention as resolved

HEADS = 10_000


def rms(x: np.ndarray) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]:
    root = np.sqrt(np.mean(x * x, axis=-1, keepdims=True))
    return x / root, lambda g: (g - x * np.mean(x * g, axis=-1, keepdims=True) / root**2) / root


def layer(x: np.ndarray) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]:
    y, pull = rms(x - x.mean(axis=-1, keepdims=True))

    def both(g: np.ndarray) -> np.ndarray:
        sent = pull(g)
        return sent - sent.mean(axis=-1, keepdims=True)

    return y, both


def plain(x: np.ndarray) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]:
    return x, lambda g: g


def tokens_of(gram: np.ndarray, size: int, draw: np.random.Generator) -> np.ndarray:
    values, vectors = np.linalg.eigh(gram)
    return (vectors * np.sqrt(np.maximum(values, 0))) @ draw.standard_normal((HEADS, len(gram), size))


def layer_of_heads(
    x: Gram, g: Gram, size: int, std: float, norms: dict[str, Callable], *, causal: bool = False, rope: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Means and standard errors of mean token variance and mean covariance: of outputs, and of what returns to x."""
    draw, count = np.random.default_rng(5), len(x.matrix)
    raw = [tokens_of(x.matrix, size, draw) for _ in range(3)]
    (query, pull_query), (key, pull_key), (value, pull_value) = (
        norms.get(name, plain)(one) for name, one in zip(("query", "key", "value"), raw, strict=True)
    )
    angle = np.arange(count)[:, None] * (rope ** (-2 * np.arange(size // 2) / size) if rope else np.zeros(size // 2))

    def turned(y: np.ndarray, sign: int) -> np.ndarray:
        if not rope:
            return y
        z = (y[..., ::2] + 1j * y[..., 1::2]) * np.exp(1j * sign * angle)
        return np.stack([z.real, z.imag], axis=-1).reshape(y.shape)

    query, key = turned(query, 1), turned(key, 1)
    logits = std / math.sqrt(size) * query @ key.swapaxes(1, 2)
    if causal:
        logits = np.where(np.tri(count, dtype=bool), logits, -np.inf)
    a = np.exp(logits - logits.max(axis=-1, keepdims=True))
    a /= a.sum(axis=-1, keepdims=True)
    out, arrived = a @ value, tokens_of(g.matrix, size, draw)
    slope = arrived @ value.swapaxes(1, 2)
    slope = std / math.sqrt(size) * a * (slope - (a * slope).sum(axis=-1, keepdims=True))
    sent = [pull_value(a.swapaxes(1, 2) @ arrived)]
    sent.append(pull_query(turned(slope @ key, -1)))
    sent.append(pull_key(turned(slope.swapaxes(1, 2) @ query, -1)))
    columns = []
    for one in ([out], sent):
        own = sum((y * y).sum(axis=-1).mean(axis=-1) for y in one) / size
        total = sum((y.sum(axis=1) ** 2).sum(axis=-1) for y in one) / size
        columns += [own, (total - count * own) / (count * (count - 1))]
    table = np.array(columns)
    return table.mean(axis=1), table.std(axis=1, ddof=1) / math.sqrt(HEADS)


NORMS = {"rms": rms, "layer": layer}


def scores(said: tuple[Moments, Moments], seen: np.ndarray, error: np.ndarray) -> np.ndarray:
    ours = np.array([m for x in said for m in (x.variance, x.covariance)])
    return (ours - seen) / np.hypot(error, 0.004 * np.abs(seen[[0, 0, 2, 2]]))  # the sampling error that is stated


@pytest.mark.few(2)
@pytest.mark.parametrize(
    ("names", "norm", "tokens", "size", "std", "c", "d"),
    [
        pytest.param(("query", "key"), "rms", 8, 5, 2.0, 0.3, 0.2, marks=pytest.mark.slow),
        (("query", "key"), "layer", 8, 6, 1.0, 0.0, 1.0),
        pytest.param(("query", "key", "value"), "rms", 4, 8, 3.0, 0.6, 0.5, marks=pytest.mark.slow),
        (("query", "key"), "layer", 3, 7, 2.5, -0.4, 0.8),
        (("query", "key"), "rms", 2, 5, 2.0, -0.9, -0.5),
        (("value",), "layer", 6, 6, 2.0, 0.5, 0.9),
    ],
)
def test_exchangeable_tokens(
    names: tuple[str, ...], norm: str, tokens: int, size: int, std: float, c: float, d: float
) -> None:
    x, g = Moments(1.0, 1 - c), Moments(1.0, 1 - d)
    grams = (Gram.exchangeable(*m, tokens) for m in (x, g))
    seen, error = layer_of_heads(*grams, size, std, dict.fromkeys(names, NORMS[norm]))

    def said(heads: float, *, centred: bool) -> tuple[Moments, Moments]:
        output, pull = attention(tokens, std**2, Gains(), heads, centred=centred)(x, frozenset(names))
        return output, pull(g)

    assert np.abs(scores(said(size, centred=norm == "layer"), seen, error)).max() < 4
    assert np.abs(scores(said(math.inf, centred=False), seen, error)).max() > 6  # heads taken for wide


@pytest.mark.few(2)
@pytest.mark.parametrize(
    ("names", "norm", "size", "causal", "rope"),
    [
        (("query", "key"), "layer", 6, True, 0.0),
        (("query", "key", "value"), "rms", 6, True, 30.0),
        ((), "rms", 2, False, 30.0),
        (("query", "key"), "rms", 4, False, 30.0),
    ],
)
def test_tokens_that_differ(names: tuple[str, ...], norm: str, size: int, causal: bool, rope: float) -> None:
    """Means over tokens and pairs, of a Gram matrix with four tokens of different variances."""
    count, std, draw = 4, 3.0, np.random.default_rng(3)
    x, g = (Gram.of(y @ y.T / 6 + 0.3) for y in draw.standard_normal((2, count, 6)))
    seen, error = layer_of_heads(x, g, size, std, dict.fromkeys(names, NORMS[norm]), causal=causal, rope=rope)

    def scored(heads: float) -> float:
        visible = tuple(tuple(row) for row in (np.tri(count) if causal else np.ones((count, count))).astype(bool))
        frequencies = tuple(rope ** (-2 * pair / size) for pair in range(size // 2)) if rope else ()
        kind = Attention(visible, std**2, frequencies, 2**13, (1, 0), heads)
        one, other = (Gram(*(np.repeat(part[None], 8, axis=0) for part in gram)) for gram in (x, g))
        output, pull = resolved(kind, centred=norm == "layer")(one, frozenset(names))
        columns = []
        for gram in (output, pull(other)):
            own = gram.variance.mean(axis=-1)
            columns += [own, (gram.matrix.sum(axis=(-1, -2)) - count * own) / (count * (count - 1))]
        ours = np.array(columns)
        of_theory = ours.std(axis=1, ddof=1) / math.sqrt(8)
        return float(np.abs((ours.mean(axis=1) - seen) / np.hypot(error, of_theory)).max())

    assert scored(size) < 5  # of 16 scores, with standard errors of eight evaluations
    assert scored(math.inf) > 6


@pytest.mark.slow
def test_both_resolutions_agree() -> None:
    """Of exchangeable tokens, the closed form with its averages over pairs and drawn heads, token by token."""
    model = pg.Model("hybridnorm", depth=2, width=64, tokens=6, heads=8, logit_std=2.0, ffn_ratio=1.0)
    start = {"covariance": 0.4, "grad_covariance": 0.3}
    pair = pg.predict(model, **start)
    every = pg.predict(model, gram=Gram.exchangeable(1.0, 0.6, 6).matrix, grad_covariance=0.3, samples=2**12)
    for name in ("variance", "deviation", "grad_variance", "grad_deviation"):
        error = np.hypot(every[f"{name}_se"], 0.004 * pair[name])
        assert float((abs(every[name] - pair[name]) / error).max()) < 5, name


@pytest.mark.slow
def test_series_are_what_they_are_fitted_to() -> None:
    """The averages of both normed, read off, against one set of independent draws at a place of its own."""
    from propagate.theory.gaussian import normed_heads

    heads, variance, loss = NormedHeads(8, 8, query=True, key=True, centred=False), 4.0, 0.63
    found = np.array(normed_averages(heads, variance, loss))
    direct = normed_heads.excess_of_draws(heads, variance, loss, 10_000) * normed_heads._units(loss)
    wide = np.array(normed_averages(heads, variance, loss)) - normed_heads._read(
        normed_heads._series(heads, variance), loss
    ) * normed_heads._units(loss)
    uniform = 7 / 64
    assert np.abs(found - wide - direct).max() < 0.01 * uniform
    assert np.abs(direct[[2, 4]]).min() > 0.1 * uniform  # what is fitted is much larger


@pytest.mark.parametrize("free", [3, 4, 7])
def test_normed_vectors_are_as_alike_as_is_said(free: int) -> None:
    draw = np.random.default_rng(free)
    for c in (-0.8, 0.0, 0.5, 0.95):
        x, y = draw.standard_normal((2, 100_000, free))
        x, y = rms(x)[0], rms(c * x + math.sqrt(1 - c * c) * y)[0]
        seen = (x * y).mean(axis=-1)
        error = seen.std() / math.sqrt(len(seen))
        assert abs(1 - similarity_loss(free, 1 - c) - seen.mean()) < 4 * error
        if c:
            assert abs(c - seen.mean()) > 4 * error  # wide heads keep the correlation
        step = 1e-5
        by_difference = (similarity_loss(free, 1 - c + step) - similarity_loss(free, 1 - c - step)) / (2 * step)
        assert similarity_slope(free, 1 - c) == pytest.approx(float(by_difference), rel=1e-5)


@pytest.mark.parametrize("changes", [{"norm": "layer", "heads": 16}, {"heads": 24}])
def test_heads_whose_gradient_has_no_mean_are_refused(changes: dict) -> None:
    model = {"depth": 1, "width": 48, "tokens": 4, "logit_std": 1.0} | changes
    for more in ({"normed": ("query", "key")}, {"normed": ("value",)}, {"normed": ("key",), "causal": True}):
        with pytest.raises(pg.ModelError, match="mean square of its gradient is infinite"):
            pg.predict(pg.Model("prenorm", **model, **more))
    pg.predict(pg.Model("prenorm", **model, normed=("query", "key")), head_size=math.inf)


def test_networks_with_normed_small_heads_agree_and_wide_ones_are_rejected() -> None:
    model = pg.Model("prenorm", depth=2, width=128, tokens=8, heads=16, ffn_ratio=1.0, logit_std=2.0, norm="layer")
    model = dataclasses.replace(model, normed=("query", "key"))
    start = {"covariance": 0.3, "grad_covariance": 0.2}
    seen = pg.simulate(model, draws=96, seed=2, backend="numpy", progress=False, **start)
    own, wide = (pg.compare(pg.predict(model, **start, head_size=size), seen) for size in (None, math.inf))
    assert (own.attrs["verdict"] != "disagrees", wide.attrs["verdict"]) == (True, "disagrees")
    assert float(abs(own.worst_z).max()) < 1
