"""How many FFN experts a token uses, the bias that moves it, and its control: theory, simulation and torch."""

import dataclasses
import math

import numpy as np
import pytest
import xarray as xr
from test_torch_autograd import both, mismatch

import propagate as pg
from propagate import Experts
from propagate.montecarlo.backend import choose_backend
from propagate.montecarlo.experts import gates

PLAIN = Experts(16, 6, identity=8, softmax="before", gain=2.0)
ROUTERS, TOKENS, WIDTH = 400, 24, 96


def measured(kind: Experts, correlation: float, seed: int = 0) -> np.ndarray:
    """Numbers of FFN experts, (routers, tokens): of tokens with a common direction, by matrices of their own."""
    draw, host = np.random.default_rng(seed), choose_backend("numpy")
    x = math.sqrt(correlation) * draw.standard_normal((ROUTERS, 1, WIDTH))
    x = x + math.sqrt(1 - correlation) * draw.standard_normal((ROUTERS, TOKENS, WIDTH))
    matrices = draw.standard_normal((ROUTERS, WIDTH, kind.candidates)) * (kind.router_std / math.sqrt(WIDTH))
    return (gates(host, kind, x @ matrices)[0] > 0)[..., : kind.routed].sum(axis=-1)


def scores(samples: np.ndarray, said: np.ndarray) -> float:
    """Largest |z| of means over routers."""
    error = samples.std(axis=0) / math.sqrt(len(samples)) + 1e-9
    return float((np.abs(samples.mean(axis=0) - said) / error).max())


def shares(counts: np.ndarray, most: int) -> np.ndarray:
    """Of tokens with 0, 1, ... active experts, (routers, most + 1)."""
    return np.stack([(counts == number).mean(axis=1) for number in range(most + 1)], axis=-1)


def test_without_a_bias_the_number_is_hypergeometric() -> None:
    found, counts = pg.active_experts(PLAIN), measured(PLAIN, 0.3)
    assert (found.mean, found.error) == (pytest.approx(4.0), 0.0)
    assert scores(shares(counts, 6), found.probability) < 4
    binomial = np.array([math.comb(6, a) * (2 / 3) ** a * (1 / 3) ** (6 - a) for a in range(7)])
    assert scores(shares(counts, 6), binomial) > 6


@pytest.mark.parametrize("bias", [0.0, -0.03])
def test_tokens_share_a_part_of_it(bias: float) -> None:
    """And a batch's mean keeps that part of the variance, however many tokens it has."""
    kind = dataclasses.replace(PLAIN, bias=(bias,) * 16 + (0.0,) * 8 if bias else None)
    found, counts = pg.active_experts(kind, correlation=0.6), measured(kind, 0.6)
    apart = counts - found.mean
    pairs = (apart.sum(axis=1) ** 2 - (apart**2).sum(axis=1)) / (TOKENS * (TOKENS - 1))
    said = found.shared * found.std**2
    assert scores(pairs[:, None], np.array([said])) < 4
    assert scores(pairs[:, None], np.array([0.6 * found.std**2])) > 4  # as if they were as correlated as tokens are
    assert scores(shares(counts, 6), found.probability) < 4
    spread = found.std_of_mean(TOKENS)
    assert counts.mean(axis=1).std() == pytest.approx(spread, rel=4 / math.sqrt(2 * ROUTERS))
    assert counts.mean(axis=1).std() != pytest.approx(found.std / math.sqrt(TOKENS), rel=4 / math.sqrt(2 * ROUTERS))


def test_the_published_layer_uses_eight_of_twelve() -> None:
    found = pg.active_experts(Experts(512, 12, identity=256, softmax="before", gain=6.0), correlation=1.0)
    assert found.mean == pytest.approx(8.0, abs=1e-12)
    assert found.std == pytest.approx(math.sqrt(12 * (2 / 9) * 756 / 767), rel=1e-12)
    assert found.std_of_mean(10**6) == pytest.approx(found.std)


def test_control_leads_where_theory_says_and_as_fast() -> None:
    run = {"rate": 0.05, "steps": 200}
    said, seen = pg.predict_balance(PLAIN, 3.0, **run), pg.simulate_balance(PLAIN, 3.0, tokens=192, seed=1, **run)
    early, late = slice(20, 60), slice(160, 201)
    for when, tolerance in ((early, 0.1), (late, 0.03)):
        assert float(seen.active[when].mean()) == pytest.approx(float(said.active[when].mean()), abs=tolerance)
    faster = pg.predict_balance(PLAIN, 3.0, rate=0.1, steps=200)
    assert float(seen.active[early].mean()) != pytest.approx(float(faster.active[early].mean()), abs=0.1)
    at_rest = pg.balanced(PLAIN, 3.0)
    assert float(said.bias[-1]) == pytest.approx(at_rest.bias[0], rel=0.15)
    assert float(seen.bias[-1, :16].mean()) == pytest.approx(at_rest.bias[0], rel=0.15)
    assert float(seen.active_std[late].mean()) == pytest.approx(pg.active_experts(at_rest).std, rel=0.05)
    share = seen["share"][late].mean("step")
    assert share[:16].values == pytest.approx(np.full(16, 3 / 16), rel=0.1)


def test_control_evens_out_ffn_experts_and_leaves_identity_experts_uneven() -> None:
    seen = pg.simulate_balance(PLAIN, 4.0, rate=0.1, steps=250, tokens=128, correlation=0.5, seed=2)
    before, after = seen["share"][:3].mean("step"), seen["share"][-40:].mean("step")
    ffn, identity = (
        [float(share[part].std() / share[part].mean()) for share in (before, after)]
        for part in (np.s_[:16], np.s_[16:])
    )
    assert ffn[1] < 0.1 < 0.3 < ffn[0]
    assert identity[1] > 0.3


BIASED = Experts(8, 3, identity=4, softmax="before", gain=3.0, bias=(0.05,) * 4 + (0.0,) * 4 + (-0.1,) * 4)


class NormBefore(pg.Placement):
    def block(self, x, block):
        return x + block.ffn(block.norm(x))


def test_a_bias_is_followed_by_theory_and_simulation() -> None:
    size = {"depth": 1, "width": 256, "tokens": 4, "heads": 1, "ffn_ratio": 0.5}
    start = {"covariance": 0.4, "grad_covariance": 0.5}
    model = pg.Model(NormBefore(), experts=BIASED, **size)
    seen = pg.simulate(model, draws=150, seed=5, backend="numpy", **start)
    right = pg.compare(pg.predict(model, **start), seen)
    assert right.attrs["verdict"] != "disagrees", right.worst_z.to_series().to_dict()
    other = pg.Model(NormBefore(), experts=dataclasses.replace(BIASED, bias=None), **size)
    assert pg.compare(pg.predict(other, **start), seen).attrs["verdict"] == "disagrees"


@pytest.mark.gpu
def test_a_bias_chooses_the_same_on_a_device() -> None:
    host, device = choose_backend("numpy"), choose_backend("cupy")
    logits = np.random.default_rng(0).standard_normal((3, 5, 12))
    g = np.random.default_rng(1).standard_normal((3, 5, 12))
    (weights, pull), (there, pull_there) = (gates(b, BIASED, b.xp.asarray(logits)) for b in (host, device))
    assert device.to_host(there) == pytest.approx(weights, rel=1e-12)
    assert device.to_host(pull_there(device.xp.asarray(g))) == pytest.approx(pull(g), rel=1e-9, abs=1e-12)


def test_the_reverse_pass_is_that_of_torch_with_a_bias() -> None:
    model = pg.Model("prenorm", depth=2, width=18, tokens=5, heads=3, ffn_ratio=1.5, experts=BIASED)
    (y, back), (output, grad) = both(model)
    assert mismatch(output, y) < 1e-12
    assert mismatch(grad, back) < 1e-10
    plain = pg.Model("prenorm", depth=2, width=18, tokens=5, heads=3, ffn_ratio=1.5, experts=BIASED.with_(bias=None))
    assert mismatch(both(plain)[1][0], y) > 1e-3


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: Experts(4, 2, bias=(0.0,) * 4), 'experts.bias must be None with softmax="after"'),
        (lambda: Experts(4, 2, softmax="before", bias=(0.0,) * 3), "experts.bias must be 4 numbers"),
        (
            lambda: Experts(4, 2, softmax="before", bias=(0.0, 0.0, 0.0, 2)),
            "bias must be numbers between -1 and 1",
        ),
        (lambda: pg.active_experts("mixture"), "experts must be propagate.Experts"),
        (lambda: pg.active_experts(PLAIN, correlation=1.5), "correlation must lie between -1 and 1"),
        (lambda: pg.balanced(PLAIN, 6.0), "expected must lie between 0 and 6"),
        (lambda: pg.balanced(Experts(4, 2, identity=2), 1.0), 'with another softmax than "after"'),
        (lambda: pg.predict_balance(PLAIN, 3.0, rate=0.0), "rate must be positive"),
        (lambda: pg.simulate_balance(Experts(4, 2), 1.0), 'with another softmax than "after"'),
        (lambda: pg.predict_balance(PLAIN, 3.0, rate=17.0), "rate must be at most 16"),
        (lambda: pg.simulate_balance(PLAIN, 3.0, tokens=2**40), "needs .* GiB of memory"),
        (lambda: pg.simulate_balance(PLAIN, 3.0, correlation=1.1), "correlation must lie between 0 and 1"),
        (lambda: pg.simulate_balance(PLAIN, 7.0), "expected must lie between 0 and 6"),
    ],
)
def test_what_is_refused(call, words: str) -> None:
    with pytest.raises(pg.ModelError, match=words):
        call()


@pytest.mark.filterwarnings("ignore:for an array of starts")
def test_averages_over_routers_do_not_know_a_bias() -> None:
    model = pg.Model("prenorm", depth=1, experts=BIASED)
    with pytest.raises(pg.ModelError, match="must be None for averages over routers"):
        pg.predict(model, covariance=xr.DataArray([0.4], dims="start"))
    with pytest.raises(pg.ModelError, match="must be None for averages over routers"):
        pg.recursion("prenorm", experts=BIASED)
