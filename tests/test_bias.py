"""The mean of networks of finite width lies beside the limit by the predicted amount, with the predicted sign."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import xarray as xr

import propagate as pg
from propagate.cells import AS_VERIFIED
from propagate.theory.finite import bias, perturbed_dropout, perturbed_heads, perturbed_network
from propagate.theory.finite.perturbation import Frame, Noise, Returned
from propagate.theory.finite.perturbed_heads import Heads
from propagate.theory.tokens.drawn_heads import turned
from propagate.theory.tokens.gram import Gram
from tests.own_placements import OWN

WIDTHS, DRAWS = (16, 32, 64), 400
NAMES = ("deviation", "grad_variance", "grad_deviation")
UNIFORM: dict[str, Any] = {"tokens": 4, "heads": 1, "logit_std": 0.0}
START = {"covariance": 0.3, "grad_covariance": 0.2}
ENDS = Gram.exchangeable(1.0, 0.7, 4), Gram.exchangeable(1.0, 0.8, 4)
ONE = Gram.of(np.eye(1))
END = {"deviation": -1, "variance": -1, "grad_variance": 0, "grad_deviation": 0}


def measured_less_limit(model: pg.Model, draws: int) -> tuple[dict[str, float], dict[str, float]]:
    """Mean logarithms of a simulation less those of the limit, and standard errors, at the far ends."""
    said = pg.predict(model, **START)
    seen = pg.simulate(model, draws=draws, seed=model.width, backend="numpy", **START)
    values = {n: float(seen[f"log_{n}"][END[n]] - np.log(said[n][END[n]])) for n in NAMES}
    return values, {n: float(seen[f"log_{n}_se"][END[n]]) for n in NAMES}


@pytest.fixture(scope="module")
def slopes() -> dict[str, tuple[float, float, float, float]]:
    """Of each quantity of linear PostNorm: measured slope against 1 / width and error, predicted slope and error."""
    models = [pg.Model("postnorm", depth=4, width=width, activation="linear", **UNIFORM) for width in WIDTHS]
    said = bias.sampled(models[0], *ENDS, pairs=800)
    values, errors = zip(*(measured_less_limit(model, DRAWS) for model in models), strict=True)
    found = {}
    for name in NAMES:
        slope, error = slope_at_origin([row[name] for row in values], [row[name] for row in errors])
        predicted = said[name][END[name]][0]
        found[name] = slope, error, predicted.log, predicted.log_error
    return found


def slope_at_origin(values: list[float], errors: list[float]) -> tuple[float, float]:
    """Of a parabola through 0 in 1 / width, by least squares: second order is left free, not allowed for."""
    x, weight = 1 / np.array(WIDTHS), 1 / np.array(errors)
    design = np.stack([x, x * x], axis=1) * weight[:, None]
    covariance = np.linalg.inv(design.T @ design)
    return float((covariance @ design.T @ (np.array(values) * weight))[0]), float(covariance[0, 0] ** 0.5)


@pytest.mark.slow
def test_the_slope_against_one_over_the_width_is_the_predicted_bias(slopes: Any) -> None:
    for measured, error, said, own in slopes.values():
        assert abs(measured - said) < 3.5 * math.hypot(error, own)


@pytest.mark.slow
def test_no_bias_and_the_opposite_bias_are_rejected(slopes: Any) -> None:
    measured, error, said, own = slopes["grad_deviation"]
    assert abs(measured) > 4 * error
    assert abs(measured + said) > 4 * math.hypot(error, own)


def by_hand(ffns: int, attentions: int, ratio: float) -> float:
    """Bias times width of the mean log gradient of PostNorm, one token, unit gains, homogeneous activation.

    Forward and backward the sums |x + f|^2 and |g + J^T g|^2 have one law, but that g is orthogonal to x + f. The first
    norm makes it so, and takes 1 of the energy. In the plane of x and f, g then lies along x - f alone, with half the
    energy of two free directions: <g, x> = -<g, f> = a, a^2 = 1/2. Of |J^T g|^2 is missing 1/2 along x, and 1/2 over
    the ratio of hidden width to width along the hidden units; and 2 <g, J^T g> = -2 a^2 where it was 0 in the mean. Of
    the sum's energy, 2, that is (3/2 + 1 / (2 ratio)) / 2.
    """
    return -1 - ffns * (3 / 4 + 1 / (4 * ratio)) - attentions


@pytest.mark.few(1)
@pytest.mark.parametrize(("activation", "ratio", "pairs"), [("linear", 4.0, 1000), ("relu", 0.5, 3000)])
def test_one_token_as_worked_out_by_hand(activation: str, ratio: float, pairs: int) -> None:
    model = pg.Model("postnorm", depth=3, tokens=1, heads=1, activation=activation, ffn_ratio=ratio)
    found = bias.sampled(model, ONE, ONE, pairs=pairs)["grad_variance"]
    for count, [block] in zip((3, 2, 1), found, strict=False):
        assert abs(block.log - by_hand(count, count, ratio)) < 4 * block.log_error
    assert ratio == 4.0 or abs(found[0][0].log + 6) > 4 * found[0][0].log_error  # 6 norms, but not 1 for each


def test_prenorm_of_one_token_keeps_its_mean_exactly() -> None:
    """E |x|^2 of a sum of fresh branches has no bias at any width; its logarithm has half the spread's square."""
    model = pg.Model("prenorm", depth=3, tokens=1, heads=1, activation="gelu")
    found = bias.sampled(model, ONE, ONE, pairs=1000)["variance"][-1][0]
    assert abs(found.mean) < 4 * found.mean_error
    assert abs(found.log + found.square / 2) < 4 * found.log_error
    assert abs(found.log) > 4 * found.log_error


@pytest.mark.parametrize(
    "model",
    [
        pg.Model("spannorm", depth=2, activation="gelu", tokens=4, heads=2),
        pg.Model("prenorm", depth=2, activation="swiglu", tokens=4, heads=2, norm="layer"),
        pg.Model("olmo2", depth=2, activation="tanh", tokens=3, heads=2, logit_std=0.0),
        pg.Model("hybridnorm", depth=2, tokens=3, heads=2, logit_std=0.0),
        pg.Model("subln", depth=2, tokens=3, heads=2),
        pg.Model("rezero", depth=2, tokens=3, heads=2, causal=True, activation="gelu", logit_std=0.0),
        pg.Model("layerscale", depth=2, tokens=4, heads=4, causal=True, logit_std=0.0, key_value_heads=2),
        pg.Model("prenorm", depth=2, tokens=3, heads=2, dropout=0.6),
        pg.Model("siamesenorm", depth=2, tokens=3, heads=2),
        pg.Model("admin", depth=2, tokens=3, heads=2),
        pg.Model("deepscalelm", depth=2, tokens=3, heads=2),
    ],
    ids=lambda model: type(model.placement).__name__ if not isinstance(model.placement, str) else model.placement,
)
def test_without_noise_it_is_the_limit(model: pg.Model) -> None:
    """Both ways of reading the equations give the same moments, forward and backward."""
    said = pg.predict(model, **START)
    own = np.eye(model.tokens, dtype=bool)
    grams = [np.full(own.shape, c) + (1 - c) * own for c in (0.3, 0.2)]
    noise = Noise(1, np.random.default_rng(0))
    found = perturbed_network.evaluated(model, noise, *grams, through_readout=False)
    for prefix, blocks in (("", found.forward), ("grad_", found.backward)):
        for block, streams in enumerate(blocks):
            for i, gram in enumerate(streams):
                for name, where in (("variance", own), ("covariance", ~own)):
                    value = gram[-1][where].mean()
                    column = said[prefix + name].isel(block=block)
                    expected = float(column if column.ndim == 0 else column[i])
                    assert value == pytest.approx(expected, rel=1e-9, abs=1e-12)


MASKED = {"activation": "gelu", "causal": True}
CASES = {
    "causal": pg.Model("prenorm", depth=2, width=32, tokens=4, heads=2, **MASKED),
    "dropout": pg.Model("prenorm", depth=2, width=32, tokens=4, heads=2, dropout=0.5),
    "shared keys": pg.Model("spannorm", depth=2, width=64, tokens=4, heads=8, key_value_heads=1, logit_std=2, **MASKED),
    "rotary": pg.Model("prenorm", depth=2, width=32, tokens=4, heads=2, logit_std=2.0, rope=10.0, **MASKED),
    "norms of heads and hidden units": pg.Model("subln", depth=2, width=32, tokens=4, heads=2),
    "norms of queries, keys and values": pg.Model("hybridnorm", depth=2, width=32, tokens=4, heads=4),
    "both": pg.Model("postnorm", depth=1, width=64, tokens=4, heads=2, dropout=0.85, logit_std=0.0, causal=True),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_other_operators_are_met_and_neither_none_nor_the_opposite_is(case: str) -> None:
    """Scores of all means together, at widths where first order is most of it: right ones are as many as there are."""
    model, both = CASES[case], (Gram.exchangeable(1.0, 1 - c, 4) for c in START.values())
    draws = 3000
    said, seen = bias.sampled(model, *both, pairs=draws // 2), pg.simulate(model, draws=draws, backend="numpy", **START)
    limit, names = pg.predict(model, **START), ("variance", *NAMES)
    right, none, opposite = 0.0, 0.0, 0.0
    for name in names:
        for block, ((of, *_), value) in enumerate(zip(said[name], limit[name].to_numpy(), strict=True)):
            if of.log_error < 1e-6:
                continue
            size = max(abs(of.mean), abs(of.log)) / model.width
            second = bias.SECOND * size * (model.tokens + of.square) / model.width
            error = np.sqrt(float(seen[f"log_{name}_se"][block]) ** 2 + (of.log_error / model.width) ** 2 + second**2)
            measured = float(seen[f"log_{name}"][block] - np.log(value))
            z, at_zero, turned = ((measured - sign * of.log / model.width) / error for sign in (1, 0, -1))
            assert abs(z) < 4
            spread = float(seen[f"log_{name}_se"][block]) * math.sqrt(draws)
            assert abs(math.log(spread / math.sqrt(of.square / model.width))) < 0.25
            right, none, opposite = right + z**2, none + at_zero**2, opposite + turned**2
    assert none > 2 * right + 16
    assert opposite > 2 * none


@pytest.mark.slow
def test_a_mask_is_the_same_forward_and_backward(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of few kept coordinates. With another mask's mean for the cotangent the bias is far off."""
    model = pg.Model("postnorm", depth=1, width=64, tokens=4, heads=2, dropout=0.85, logit_std=0.0)
    seen, limit = pg.simulate(model, draws=1000, backend="numpy", **START), pg.predict(model, **START)
    apart = perturbed_dropout.masked

    def forgotten(v: float, k: float, mean: Any, frame: Frame, x: Any, without: Any = None) -> Any:
        return apart(v, k, math.sqrt(v) * frame.noise.normals(x.shape[1], 1), frame, x, without)

    for law, right in ((apart, True), (forgotten, False)):
        monkeypatch.setattr(perturbed_dropout, "masked", law)
        said = bias.sampled(model, *ENDS, pairs=800)
        for name in ("grad_variance", "grad_deviation"):
            of = said[name][0][0]
            measured = float(seen[f"log_{name}"][0] - np.log(limit[name][0])) * model.width
            z = (measured - of.log) / math.hypot(float(seen[f"log_{name}_se"][0]) * model.width, of.log_error)
            assert (abs(z) < 3.5) == right


@pytest.mark.parametrize("positions", ["rotary", "the same way again", "not turned back"])
def test_heads_with_rotary_positions_return_the_derivative(positions: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the queries', keys' and values' matrices, against differences; and not with another turn on the way back."""
    kind = pg.Attention(heads=4, key_value_heads=2, logit_std=2.0, causal=True, rope=10.0, normed=("key",))
    random = np.random.default_rng(0)
    heads = Heads.drawn(kind.fitted(width=32, tokens=3), 3, random, 2, 6, centred=False)
    x = np.linalg.cholesky(np.full((3, 3), 0.3) + 0.7 * np.eye(3))[None]
    g = random.standard_normal((2, 3, heads.count))
    steps = {name: random.standard_normal(value.shape) for name, value in heads.normals.items()}

    def loss(size: float) -> float:
        moved = {name: value + size * steps[name] for name, value in heads.normals.items()}
        return float((g * replace(heads, normals=moved).run(x).output).sum())

    measured, run = (loss(1e-5) - loss(-1e-5)) / 2e-5, heads.run(x)
    if positions != "rotary":
        again = positions == "the same way again"
        monkeypatch.setattr(perturbed_heads, "turned", lambda x, angles, _: turned(x, angles, 1) if again else x)
    said = sum(float((sent * (x @ steps[name])).sum()) for name, sent in run.pull(g).items())
    assert (abs(said - measured) < 1e-6 * abs(measured)) == (positions == "rotary")


@pytest.mark.parametrize("inside", [(), ("value",)])
def test_what_returns_along_the_input_is_the_mean_over_values(inside: tuple[str, ...]) -> None:
    """Of heads that share keys, under a mask; with less noise. Heads of another size are rejected."""
    kind = pg.Attention(heads=4, key_value_heads=2, logit_std=2.0, causal=True, value_gain=1.3, normed=inside)
    random = np.random.default_rng(0)
    heads = Heads.drawn(kind.fitted(width=32, tokens=3), 3, random, 20000, 6, centred=False)
    run = heads.run(np.linalg.cholesky(np.full((3, 3), 0.3) + 0.7 * np.eye(3))[None])
    mixing = np.broadcast_to(random.standard_normal((3, 3)), (20000, 3, 3))
    seen, said = heads.with_input(run.pull(mixing @ run.output)), run.returned(mixing)
    error = (seen - 0.8 * said).std(axis=0) / math.sqrt(20000)
    assert (abs((seen - said).mean(axis=0)) < 4 * error).all()
    assert (abs((seen - 0.8 * said).mean(axis=0)) > 4 * error).any()
    assert inside or (said.std(axis=0) < 0.9 * seen.std(axis=0)).all()


def test_compare_takes_the_bias_off() -> None:
    """A prediction wrong by a factor of two is rejected, of which the stated allowance cannot tell."""
    model = pg.Model("postnorm", depth=4, width=48, activation="linear", **UNIFORM)
    seen = pg.simulate(model, draws=200, seed=3, backend="numpy", **START)
    said, stated = (pg.predict(model, **START, include=given) for given in (["bias"], []))
    assert pg.compare(said, seen).attrs["verdict"] != "disagrees"
    for factor in (0.5, 1.8):
        weight = xr.where(said.block == 0, factor, 1.0)
        right, rough = (
            pg.compare(table.assign(grad_deviation=table.grad_deviation * weight), seen).verdict
            for table in (said, stated)
        )
        assert right.sel(quantity="grad_deviation") == "disagrees"
        assert rough.sel(quantity="grad_deviation") == "cannot tell"


FORGOTTEN = (
    "the norm's projection",
    "what a branch sends back along its input",
    "what a fresh row has along older ones",
)


@pytest.mark.few(1)
@pytest.mark.parametrize("forgotten", FORGOTTEN)
def test_a_forgotten_term_is_found_out(forgotten: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bias worked out by hand, or the exact mean, rejects each wrong derivation."""
    name = "postnorm"
    if forgotten == FORGOTTEN[0]:

        def norm(self: Any, x: Any) -> Any:
            scale = 1 / np.sqrt((x.x**2).sum(axis=-1, keepdims=True))
            return x * scale, lambda g: g * scale

        monkeypatch.setattr(perturbed_network.VectorAlgebra, "norm", norm)
    elif forgotten == FORGOTTEN[1]:
        image = Frame.image
        vectors = Returned.vectors
        monkeypatch.setattr(Returned, "vectors", lambda self, frame, span: vectors(self, frame, 0 * span))
        monkeypatch.setattr(Frame, "image", lambda self, rows, without=None: image(self, rows))
    else:
        name = "prenorm"
        monkeypatch.setattr(
            Frame,
            "image",
            lambda self, rows, without=None: self.grown(
                self._along(rows, None, without), np.eye(rows) + self.noise.symmetric(rows) / 2
            ),
        )
    model = pg.Model(name, depth=3, tokens=1, heads=1, activation="linear")
    found = bias.sampled(model, ONE, ONE, pairs=1500)
    if name == "postnorm":
        block = found["grad_variance"][0][0]
        assert abs(block.log - by_hand(3, 3, 4.0)) > 4 * block.log_error
    else:
        block = found["variance"][-1][0]
        assert abs(block.mean) > 4 * block.mean_error


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "depth"),
    [("prenorm", 12), *(pytest.param(n, 24, marks=pytest.mark.slow) for n in ("prenorm", "periln", "olmo2"))],
)
def test_what_is_left_out_stays_small_at_depth(name: str, depth: int) -> None:
    """Behind a norm it does not matter how large the stream has grown."""
    said = pg.predict(pg.Model(name, depth=depth, tokens=4), **START, include={"bias"})
    for quantity in (*NAMES, "variance", "grad_covariance"):
        assert float(said[f"{quantity}_allowance"].max()) < 0.2
        error = said[f"{quantity}_se"] / said[quantity.replace("covariance", "variance")]
        assert float(error.max()) < 0.2


@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n != "prenorm")) for n in OWN])
def test_a_gain_twice_as_large_is_rejected_with_and_without_bias(name: str) -> None:
    """Of every placement. PostNorm's norms leave a fifth of it, which is told with bias and cannot be told without;
    where the FFN's output is normed, the gain changes nothing."""
    model = pg.Model(AS_VERIFIED.get(name, name), depth=8, width=256, tokens=4, heads=4)
    seen = pg.simulate(model, draws=100, seed=1, backend="numpy", **START)
    for bias_too in (False, True):
        right, wrong = (
            pg.predict(replace(model, ffn_gain=gain), **START, include=["bias"] if bias_too else [])
            for gain in (1.0, 2.0)
        )
        assert pg.compare(right, seen).attrs["verdict"] != "disagrees"
        apart = max(float(abs(wrong[quantity] / right[quantity] - 1).max()) for quantity in NAMES)
        judged = pg.compare(wrong, seen).attrs["verdict"]
        if apart > (0.02 if bias_too else 0.25):
            assert judged == "disagrees"
        elif apart > 0.02:
            assert judged != "agrees"


@pytest.mark.slow
@pytest.mark.parametrize("activation", ["relu", "swiglu"])
def test_with_a_choice_among_tokens_it_is_met_too(activation: str) -> None:
    """Softmax attention: over all, the opposite bias is farther off."""
    right, wrong = 0.0, 0.0
    for name in ("postnorm", "prenorm", "periln", "olmo2", "residual", "admin"):
        model = pg.Model(name, depth=4, width=64, tokens=8, heads=2, activation=activation)
        seen = pg.simulate(model, draws=600, seed=11, backend="numpy", **START)
        said = pg.predict(model, **START, include={"bias"})
        judged = pg.compare(said, seen)
        assert bool((judged.verdict != "disagrees").all()), judged.worst_z.to_series().to_dict()
        turned = said.assign({n: -said[n] for n in said if str(n).endswith("_bias")})
        right += float((judged.z**2).sum())
        wrong += float((pg.compare(turned, seen).z ** 2).sum())
    assert wrong > 2 * right


@pytest.mark.slow
def test_several_streams_have_a_spread_too() -> None:
    model = pg.Model("residual", depth=2, width=96, tokens=4, heads=4)
    said = pg.predict(model, **START, include={"fluctuations", "bias"})
    seen = pg.simulate(model, draws=300, seed=5, backend="numpy", **START)
    judged = pg.compare(said, seen)
    spreads = judged.sel(quantity=[q for q in judged.quantity.to_numpy() if q.endswith("_spread")])
    assert bool((judged.verdict != "disagrees").all()), judged.worst_z.to_series().to_dict()
    assert int(np.isfinite(spreads.z).sum()) >= 12
    for factor in (0.6, 1.7):
        wrong = said.assign({n: said[n] * factor for n in said if str(n).endswith("_spread")})
        assert (pg.compare(wrong, seen).verdict.sel(quantity=spreads.quantity) == "disagrees").any()


@pytest.mark.slow
def test_samples_agree_with_the_closed_form_of_the_spread() -> None:
    """Two derivations of one number: of one stream the spread has a closed form."""
    model = pg.Model("spannorm", depth=2, width=64, activation="gelu", tokens=4, heads=4)
    closed = pg.predict(model, **START, include={"fluctuations"})
    found = bias.sampled(model, *ENDS, pairs=1000)
    for name in NAMES:
        expected = float(closed[f"{name}_spread"][END[name]]) ** 2 * model.width
        assert found[name][END[name]][0].square == pytest.approx(expected, rel=0.15)


def test_what_is_not_covered_is_refused() -> None:
    for model, what in (
        (pg.Model("subln", depth=2, norm="layer"), "bias does not cover LayerNorm of hidden units"),
        (pg.Model("prenorm", depth=2, weights="orthogonal"), "bias needs weights='normal'"),
        (
            pg.Model("prenorm", depth=2, rope=1e4, norm="layer", normed=("query",)),
            "bias does not cover LayerNorm of queries or keys with rotary positions",
        ),
        (pg.Model("prenorm", depth=2, experts=pg.Experts(4)), "bias needs experts=None"),
    ):
        with pytest.raises(pg.ModelError, match=what):
            pg.predict(model, include={"bias"})
    with pytest.raises(pg.ModelError, match="bias needs a start of plain numbers"):
        pg.predict(pg.Model("prenorm", depth=2), covariance=xr.DataArray([0.1, 0.2], dims="start"), include={"bias"})


def test_the_same_in_every_run() -> None:
    model = pg.Model("prenorm", depth=2, width=64, tokens=3, heads=1)
    one, other = (pg.predict(model, include={"bias"}) for _ in range(2))
    xr.testing.assert_equal(one, other)


def test_one_token_behind_layer_norm_has_a_bias_too() -> None:
    """The vector that a LayerNorm removes is no token: at width w it is one direction more."""
    model = pg.Model("prenorm", depth=2, width=64, tokens=1, heads=1, norm="layer")
    found = bias.sampled(model, ONE, ONE, pairs=500)["variance"][-1][0]
    assert abs(found.mean) < 4 * found.mean_error
