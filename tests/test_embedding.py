"""Embeddings and the cross-entropy's cotangent: the stated moments are those of samples, at both ends of a network."""

import math

import numpy as np
import pytest

import propagate as pg
from propagate.montecarlo.backend import choose_backend
from propagate.montecarlo.embedding import cross_entropy, embedded
from propagate.montecarlo.normals import Normals
from propagate.montecarlo.starts import exchangeable_root, with_gram
from propagate.montecarlo.statistics import second_moments
from propagate.theory.embedding import (
    cross_entropy_moments,
    embedding_moments,
    own_logit,
    repeat_rate,
    tied_gradient,
)

ZIPF = [1 / rank for rank in range(1, 41)]


def judge(samples: np.ndarray, said: float, wrong: float) -> None:
    error = samples.std(ddof=1) / math.sqrt(len(samples))
    assert abs(samples.mean() - said) < 4 * error, (samples.mean(), said, error)
    assert abs(samples.mean() - wrong) > 4 * error, (samples.mean(), wrong, error)


def test_embedded_text() -> None:
    given = {"scale": 8.0, "position_std": 0.1}
    found = embedded(ZIPF, 0.02, width=64, tokens=24, draws=400, seed=1, **given)
    said = embedding_moments(ZIPF, 0.02, **given)
    without_position = embedding_moments(ZIPF, 0.02, scale=8.0)
    judge(found["variance"], said["variance"], without_position["variance"])
    judge(found["covariance"], said["covariance"], said["variance"] * repeat_rate(ZIPF))


def test_the_start_feeds_predict() -> None:
    said = embedding_moments(ZIPF, 0.02, position_std=0.02)
    found = pg.predict(pg.Model("prenorm", depth=2), **said)
    assert float(found.variance[0]) == said["variance"]
    assert float(found.covariance[0]) == pytest.approx(said["covariance"], rel=1e-12)


def ends(correlation: float, std: float, seed: int, draws: int = 120, width: int = 256, vocabulary: int = 50):
    """Draws of a normed stream, an unembedding, targets; and the two cotangents."""
    tokens, random = 6, np.random.default_rng(seed)
    normals = Normals(choose_backend("numpy"), seed, range(draws))
    x = with_gram(exchangeable_root(1.0, correlation, tokens), normals, 0, width)
    rows = std * random.standard_normal((draws, vocabulary, width))
    targets = random.choice(vocabulary, size=(draws, tokens), p=TARGETS / TARGETS.sum())
    return *cross_entropy(x, rows, targets), {"width": width, "correlation": correlation}


TARGETS = np.array([1 / rank for rank in range(1, 51)])


@pytest.mark.parametrize(("correlation", "std"), [(0.0, 0.02), (0.5, 0.06), (0.9, 0.1)])
def test_cotangent_of_a_cross_entropy(correlation: float, std: float) -> None:
    back, _, given = ends(correlation, std, seed=2)
    rate = repeat_rate(TARGETS)
    said = cross_entropy_moments(50, std, same_target=rate, **given)
    variance, covariance, _ = second_moments(back)
    judge(variance, said["grad_variance"], 1.1 * said["grad_variance"])
    apart = cross_entropy_moments(50, std, same_target=0.0, **given)
    judge(covariance, said["grad_covariance"], apart["grad_covariance"])


def test_predictions_that_are_not_uniform_matter() -> None:
    """At a logit standard deviation of 1.6 the softmax's own second moment shows."""
    back, _, given = ends(0.5, 0.1, seed=3)
    said = cross_entropy_moments(50, 0.1, same_target=repeat_rate(TARGETS), **given)
    judge(second_moments(back)[0], said["grad_variance"], 0.1**2 * (1 - 1 / 50))


def test_gradient_of_a_tied_matrix() -> None:
    _, unembedding_part, given = ends(0.5, 0.06, seed=4)
    rate = repeat_rate(TARGETS)
    tokens, width, draws = 6, given["width"], len(unembedding_part)
    gamma, kappa = 0.7, 0.4
    said = tied_gradient(
        50, 0.06, tokens=tokens, grad_variance=gamma, grad_covariance=kappa, same_token=rate, scale=2.0, **given
    )
    squares = (unembedding_part**2).sum(axis=(1, 2))
    alone = tied_gradient(50, 0.06, tokens=tokens, grad_variance=gamma, grad_covariance=kappa, **given)
    judge(squares, said.unembedding, alone.unembedding)
    normals = Normals(choose_backend("numpy"), 5, range(draws))
    cotangent = with_gram(exchangeable_root(gamma, kappa, tokens), normals, 0, width)
    text = np.random.default_rng(6).choice(50, size=(draws, tokens), p=TARGETS / TARGETS.sum())
    looked_up = np.zeros((draws, 50, width))
    for t in range(tokens):
        looked_up[np.arange(draws), text[:, t]] += 2.0 * cotangent[:, t]
    judge((looked_up**2).sum(axis=(1, 2)), said.embedding, 4 * alone.embedding)


def test_a_tied_unembedding_knows_its_own_token() -> None:
    """A stream of which a quarter is still the embedding: its own logit is far from the others, which are as said."""
    width, vocabulary, std, share = 256, 50, 0.05, 0.25
    random = np.random.default_rng(7)
    table = std * random.standard_normal((300, vocabulary, width))
    x = math.sqrt(share) * table[:, 0] / std + math.sqrt(1 - share) * random.standard_normal((300, width))
    logits = np.einsum("nvd,nd->nv", table, x)
    judge(logits[:, 0], own_logit(std, width=width, skip_share=share), 0.0)
    judge(logits[:, 1] ** 2, std**2 * width, 1.5 * std**2 * width)


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda: repeat_rate([]), "frequencies"),
        (lambda: repeat_rate([1.0, -1.0]), "frequencies"),
        (lambda: embedding_moments([1], 0.0), "std"),
        (lambda: embedding_moments([1], 1.0, scale=math.nan), "scale"),
        (lambda: cross_entropy_moments(1, 0.1, width=8, correlation=0.0), "vocabulary"),
        (lambda: cross_entropy_moments(9, 0.1, width=8, correlation=1.5), "correlation"),
        (lambda: cross_entropy_moments(9, 0.1, width=8, correlation=0.5, same_target=2.0), "same_target"),
    ],
)
def test_bad_arguments_are_named(call, word: str) -> None:
    with pytest.raises(pg.ModelError, match=word):
        call()
