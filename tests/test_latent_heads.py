"""Heads of latent attention in few coordinates have the law of those in all: moments of all that enters and returns."""

import numpy as np
import pytest

from propagate.theory.gaussian.roots import symmetric_root
from propagate.theory.tokens import averages
from propagate.theory.tokens.drawn_heads import turned
from propagate.theory.tokens.gram import Gram
from propagate.theory.tokens.latent_heads import Keys, LatentHeads, draw_latent_heads, to_latent_logits
from propagate.theory.tokens.softmax import Attention

TOKENS, REPLICAS, SAMPLES, PLAIN, TURNED = 4, 500, 16, 7, 4
NAMES = ("output", "values", "query", "own", "shared")


def tokens_of(seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    x = random.normal(size=(TOKENS, 5)) * np.exp(random.normal(size=(TOKENS, 1)) / 3) + random.normal(size=5)
    return x @ x.T / 5


QUERY, OWN, SHARED, VALUE, COTANGENT = (tokens_of(seed) for seed in range(5))


def kind(frequencies: tuple[float, ...]) -> Attention:
    seen = tuple(tuple(s <= t for s in range(TOKENS)) for t in range(TOKENS))
    return Attention(seen, 1.5, frequencies, SAMPLES, (1, 0), PLAIN + TURNED)


def by_coordinates(attention: Attention) -> list[np.ndarray]:
    """All coordinates drawn, and the expectation over cotangents written out: (draws, tokens, tokens) each."""
    draw = np.random.default_rng(7).standard_normal

    def coordinates(gram: np.ndarray, count: int) -> np.ndarray:
        return symmetric_root(gram) @ draw((REPLICAS * SAMPLES, TOKENS, count))

    def turn(x: np.ndarray, direction: int) -> np.ndarray:
        return np.concatenate([x[..., :PLAIN], turned(x[..., PLAIN:], attention.frequencies, direction)], axis=-1)

    query = turn(coordinates(QUERY, PLAIN + TURNED), 1)
    key = turn(np.concatenate([coordinates(OWN, PLAIN), coordinates(SHARED, TURNED)], axis=-1), 1)
    size = PLAIN + TURNED
    logits = (attention.logit_variance / size) ** 0.5 * query @ key.swapaxes(-1, -2)
    weights = np.exp(np.where(attention.mask, logits, -np.inf))
    weights /= weights.sum(axis=-1, keepdims=True)
    met = symmetric_root(COTANGENT) @ draw(weights.shape) @ symmetric_root(VALUE)
    sent = weights * (met - (weights * met).sum(axis=-1, keepdims=True)) / size**0.5
    queries, keys = turn(sent @ key, -1), turn(sent.swapaxes(-1, -2) @ query, -1)
    parts = (queries, keys[..., :PLAIN], keys[..., PLAIN:])
    across = weights.swapaxes(-1, -2)
    return [weights @ VALUE @ across, across @ COTANGENT @ weights, *(x @ x.swapaxes(-1, -2) for x in parts)]


def by_heads(attention: Attention, change: slice = slice(None), cotangent: np.ndarray = COTANGENT) -> list[np.ndarray]:
    query, own, shared, value, g = (
        Gram.of(np.repeat(gram[None], REPLICAS, axis=0)) for gram in (QUERY, OWN, SHARED, VALUE, cotangent)
    )
    drawn = draw_latent_heads(query, Keys(own, shared, PLAIN), attention)
    drawn = LatentHeads(drawn.heads, drawn.query, drawn.key[..., change], drawn.plain)
    sent = to_latent_logits(drawn, value, g, attention)
    return [x.matrix for x in (averages.output(drawn.heads, value), averages.values(drawn.heads, g), *sent)]


def worst(one: list[np.ndarray], other: list[np.ndarray]) -> dict[str, float]:
    """The largest z of each quantity's entries."""

    def z(a: np.ndarray, b: np.ndarray) -> float:
        error = np.sqrt(a.var(axis=0) / len(a) + b.var(axis=0) / len(b))
        return float((abs(a.mean(axis=0) - b.mean(axis=0)) / np.where(error > 1e-9, error, np.inf)).max())

    return {name: z(a, b) for name, a, b in zip(NAMES, one, other, strict=True)}


@pytest.mark.parametrize("frequencies", [(), (1.0, 0.3)], ids=["plain", "turned"])
def test_few_coordinates_have_the_law_of_all(frequencies: tuple[float, ...]) -> None:
    attention = kind(frequencies)
    expected = by_coordinates(attention)
    assert max(worst(expected, by_heads(attention)).values()) < 4.5
    lacking = worst(expected, by_heads(attention, slice(TOKENS + TURNED)))  # without what no logit sees
    assert lacking["query"] > 6
    unturned = by_coordinates(kind(()))
    assert (max(worst(unturned, by_heads(attention)).values()) > 6) is bool(frequencies)


def test_cotangents_of_very_different_sizes_keep_their_precision() -> None:
    attention, small = kind((1.0, 0.3)), np.array([1.0, 1e-20, 1e-30, 1e-35])
    sizes = small * small[:, None]
    less, plain = by_heads(attention, cotangent=COTANGENT * sizes), by_heads(attention)
    np.testing.assert_allclose(less[2], plain[2] * sizes, rtol=1e-5)
    np.testing.assert_allclose(less[3][:, 3, 3], plain[3][:, 3, 3] * sizes[3, 3], rtol=1e-5)  # the last alone
