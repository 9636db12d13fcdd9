"""Bias of networks with tanh of a stream: by hand, by simulation, and with terms left out."""

import math
from typing import Any

import numpy as np
import pytest

import propagate as pg
from propagate.placements import DyT
from propagate.theory.finite import bias, perturbed_network, tanh_expansion
from propagate.theory.finite.perturbation import Frame, Noise, Returned
from propagate.theory.tokens.gram import Gram

ONE = Gram.of(np.eye(1))
START = {"covariance": 0.3, "grad_covariance": 0.2}
ALPHA = 1.0


class Bent(pg.Placement):
    """A branch alone."""

    def block(self, x: Any, block: Any) -> Any:
        return block.attention(block.tanh(ALPHA * x))


BY_HAND = pg.Model(Bent(), depth=1, tokens=1, heads=1)
NEAR = pg.Model(DyT(alpha=3.0), depth=2, width=64, tokens=1, heads=1, attention_gain=0.3, ffn_gain=0.3)


def off_by(function: Any) -> float:
    """Of a mean over the coordinates of a vector of exactly this length, times the width, relative.

    Means over Gaussian coordinates of variance q give E f, and the square of their length fluctuates by 2 q^2 / width.
    """
    nodes, weights = np.polynomial.hermite_e.hermegauss(120)
    down, here, up = (weights @ function(math.sqrt(q) * nodes) for q in ALPHA**2 * np.array([0.99, 1.0, 1.01]))
    return float(-(up - 2 * here + down) / 0.01**2 / here)


def measured_by_hand() -> list[float]:
    """Scores of tanh^2 forward and, of a matrix that knows nothing of the cotangent, of tanh'^2 back."""
    found = bias.sampled(BY_HAND, ONE, ONE, pairs=5000)
    forward, back = found["variance"][1][0], found["grad_variance"][0][0]
    exact = off_by(lambda u: np.tanh(u) ** 2), off_by(lambda u: (1 - np.tanh(u) ** 2) ** 2)
    return [(of.mean - by) / of.mean_error for of, by in zip((forward, back), exact, strict=True)]


def test_one_token_as_worked_out_by_hand() -> None:
    assert max(map(abs, measured_by_hand())) < 4


@pytest.mark.few(1)
@pytest.mark.parametrize("forgotten", ["the length is exact", "what comes back along the values"])
def test_a_forgotten_term_is_found_out(forgotten: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if forgotten == "the length is exact":
        monkeypatch.setattr(tanh_expansion.Expansion, "of_sample", lambda self, gram: 0 * gram)
    else:
        tanh = perturbed_network.tanh

        def whole(frame: Frame, x: Any) -> Any:
            y, pull = tanh(frame, x)
            return y, lambda g: pull(Returned(g.fresh, 0 * g.known))

        monkeypatch.setattr(perturbed_network, "tanh", whole)
    assert max(map(abs, measured_by_hand())) > 6


def test_tanhs_of_one_stream_are_correlated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where little is added between them the spread is far larger than with coordinates of its own for each."""
    seen = pg.simulate(NEAR, draws=400, seed=2, backend="numpy")
    measured = float(seen.log_grad_variance_se[0]) * math.sqrt(400 * NEAR.width)
    errors = []
    for _ in ("correlated", "each by itself"):
        said = math.sqrt(bias.sampled(NEAR, ONE, ONE, pairs=800)["grad_variance"][0][0].square)
        errors.append(math.log(measured / said))
        monkeypatch.setattr(Frame, "seen", lambda self, x: self.fresh(x.shape[1]) if x.shape[0] > 1 else None)
    assert abs(errors[0]) < 0.16
    assert abs(errors[1]) > 0.3


@pytest.mark.parametrize(
    "model",
    [
        pg.Model("dyt", depth=2, tokens=4, heads=2, activation="gelu"),
        pg.Model(DyT(alpha=2.0), depth=2, tokens=3, heads=1, causal=True, logit_std=0.0),
    ],
)
def test_without_noise_it_is_the_limit(model: pg.Model) -> None:
    said, own = pg.predict(model, **START), np.eye(model.tokens, dtype=bool)
    grams = [np.full(own.shape, c) + (1 - c) * own for c in (0.3, 0.2)]
    found = perturbed_network.evaluated(model, Noise(1, np.random.default_rng(0)), *grams, through_readout=True)
    for prefix, blocks in (("", found.forward), ("grad_", found.backward)):
        for block, [gram] in enumerate(blocks):
            for name, where in (("variance", own), ("covariance", ~own)):
                value = said if prefix == "" else pg.predict(model, **START, through_readout=True)
                expected = float(value[prefix + name][block])
                assert gram[-1][where].mean() == pytest.approx(expected, rel=1e-8)


class Parallel(pg.Placement):
    """Both sublayers read one tanh."""

    def block(self, x: Any, block: Any) -> Any:
        read = block.tanh(2.0 * x)
        return 0.5 * x + block.attention(read) + 1.5 * block.ffn(read)


class Alone(pg.Placement):
    """An FFN alone."""

    def block(self, x: Any, block: Any) -> Any:
        return x + block.ffn(block.tanh(0.5 * x))


CAUSAL: dict[str, Any] = {"tokens": 3, "heads": 2, "activation": "gelu", "causal": True}
SIMULATED = {
    "one token": (NEAR, 4000),
    "causal": (pg.Model(DyT(alpha=1.5), depth=2, width=64, **CAUSAL), 3000),
    "two FFNs": (pg.Model(Alone(), depth=2, width=24, activation="gelu", ffn_gain=2.0, tokens=3, heads=1), 8000),
    "parallel": (pg.Model(Parallel(), depth=2, width=64, tokens=2, heads=1, ffn_ratio=1.0, logit_std=0.0), 3000),
}


def scores_of(model: pg.Model, draws: int, *, pairs: int = 1500, through_readout: bool = False) -> Any:
    """Scores of every mean logarithm with the predicted bias, with none, and with twice as much."""
    start = START if model.tokens > 1 else {}
    both = (Gram.exchangeable(1.0, 1 - c, model.tokens) for c in START.values())
    said = bias.sampled(model, *both, pairs=pairs, through_readout=through_readout)
    seen = pg.simulate(model, draws=draws, backend="numpy", through_readout=through_readout, **start)
    limit = pg.predict(model, through_readout=through_readout, **start)
    scores = []
    for name in ("variance", "deviation", "grad_variance", "grad_deviation")[:: 1 if model.tokens > 1 else 2]:
        for block, ((of, *_), value) in enumerate(zip(said[name], limit[name].to_numpy(), strict=True)):
            if of.log_error < 1e-6:
                continue
            size = max(abs(of.mean), abs(of.log)) / model.width
            second = bias.SECOND * size * (model.tokens + of.square) / model.width
            error = np.sqrt(float(seen[f"log_{name}_se"][block]) ** 2 + (of.log_error / model.width) ** 2 + second**2)
            measured = float(seen[f"log_{name}"][block] - np.log(value))
            scores.append([(measured - factor * of.log / model.width) / error for factor in (1, 0, 2)])
    return np.array(scores)


@pytest.mark.slow
@pytest.mark.parametrize("case", SIMULATED)
@pytest.mark.parametrize("through_readout", [False, True])
def test_simulation_is_met_and_neither_without_nor_with_twice_the_bias(case: str, through_readout: bool) -> None:
    model, draws = SIMULATED[case]
    scores = scores_of(model, draws, through_readout=through_readout)
    assert abs(scores[:, 0]).max() < 4
    right, none, twice = np.square(scores).sum(axis=0)
    assert none > 2 * right + 16
    assert twice > 2 * right + 16


def test_tokens_that_are_nearly_alike_are_refused() -> None:
    """As long as they are not, the bias hardly depends on how alike they are."""
    model = pg.Model("dyt", depth=2, width=64, tokens=3, heads=4)
    alike, same = "tanh of tokens whose combinations all have 1e-05", "tokens that differ by 1e-10"
    for covariance, said in ((1 - 1e-6, alike), (1.0, same)):
        with pytest.raises(pg.ModelError, match=f"bias covers {said}"):
            pg.predict(model, include=["bias"], covariance=covariance, grad_covariance=0.3)
    apart, nearly = (
        float(pg.predict(model, include=["bias"], covariance=c, grad_covariance=0.3).log_grad_variance_bias[0])
        for c in (0.999, 1 - 1e-4)
    )
    assert abs(apart - nearly) < 0.1 / model.width


def test_what_is_made_of_a_tanh_beside_sublayers_is_refused() -> None:
    class Added(pg.Placement):
        def block(self, x: Any, block: Any) -> Any:
            return x + block.tanh(x)

    class Normed(pg.Placement):
        def block(self, x: Any, block: Any) -> Any:
            return x + block.ffn(block.tanh(block.norm(x)))

    for model, what in (
        (pg.Model(Added(), depth=1), "tanh of a stream, unless a sublayer or the output head reads it"),
        (pg.Model("dyt", depth=1, dropout=0.1), "tanh of a stream with dropout"),
        (pg.Model(Normed(), depth=1, norm="layer"), "tanh of a stream beside norm='layer'"),
    ):
        for asked in ("bias", "fluctuations"):
            with pytest.raises(pg.ModelError, match=f"{asked} does not cover {what}"):
                pg.predict(model, include=[asked])
