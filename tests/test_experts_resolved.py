"""Mixtures of experts token by token: exact given the gates, and so behind norms, where the mean over tokens is not."""

import dataclasses

import numpy as np
import pytest
import xarray as xr

import propagate as pg
from propagate import Experts
from propagate.theory import walks
from propagate.theory.pairs.moments import Atom, Combination
from propagate.theory.pairs.products import Part, Products, Seen, Term, parts
from propagate.theory.reading import blocks
from propagate.theory.tokens import experts as gram_experts
from propagate.theory.tokens.gram import Entries, Gram

START = {"covariance": 0.4, "grad_covariance": 0.5}
UNEVEN = Experts(8, 1, softmax="before", gain=4.0)
KINDS = {
    "two of eight": Experts(8, 2),
    "identity, softmax before": Experts(4, 3, softmax="before", identity=2, gain=1.5),
    "shared and split": Experts(4, 2, shared=1, split=2),
}


class FeedForwardBehindSkip(pg.Placement):
    """Without a norm the mean over tokens is exact too."""

    def block(self, x, block):
        return x + block.ffn(x)


class NormBehind(pg.Placement):
    def block(self, x, block):
        return block.norm(x + block.ffn(x))


class NormBefore(pg.Placement):
    def block(self, x, block):
        return x + block.ffn(block.norm(x))


def gram(variance: float, covariance: float, tokens: int) -> np.ndarray:
    return np.full((tokens, tokens), covariance) + (variance - covariance) * np.eye(tokens)


def network(placement: pg.Placement, kind: Experts, **fields) -> pg.Model:
    size = {"depth": 1, "width": 256, "tokens": 4, "heads": 1, "ffn_ratio": 0.5}
    return pg.Model(placement, experts=kind, **size | fields)


@pytest.mark.few(1)
@pytest.mark.parametrize(
    ("kind", "activation"),
    [
        pytest.param(name, activation, marks=[pytest.mark.slow] * ((activation == "relu") != (name == "two of eight")))
        for name in KINDS
        for activation in ("relu", "swiglu")
    ],
)
@pytest.mark.filterwarnings("ignore:for an array of starts")  # arrays of starts are not resolved
def test_without_norms_both_resolutions_agree(kind: str, activation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walks, "ROUTERS", 2048)
    model = network(FeedForwardBehindSkip(), KINDS[kind], activation=activation)
    pair = pg.predict(model, covariance=xr.DataArray([0.4], dims="start"), grad_covariance=0.5).isel(start=0)
    said = pg.predict(model, gram=gram(1.0, 0.4, 4), grad_covariance=0.5)
    for name, block in (("variance", 1), ("deviation", 1), ("grad_variance", 0), ("grad_deviation", 0)):
        error = np.hypot(float(said[f"{name}_se"][block]), 1e-3 * float(pair[name][block]))  # both are sampled
        assert abs(float(said[name][block] - pair[name][block])) < 4 * error, name
        assert abs(float(said[name][block] - 1.1 * pair[name][block])) > 4 * error, name


@pytest.mark.parametrize("softmax", ["before", "sigmoid", "sigmoid_after"])
@pytest.mark.parametrize("wrong", [None, "kept", "odds", "slopes"])
def test_the_sums_over_gates_are_those_written_out(wrong: str | None, softmax: str) -> None:
    """J_t, U and their contraction entry by entry, for gates and coefficients of unlike tokens."""
    draw = np.random.default_rng(0)
    kind = Experts(4, 3, softmax=softmax, identity=2)
    x, k = (Gram.of((lambda a: a @ a.T)(draw.standard_normal((3, 9)))[None]) for _ in range(2))
    drawn = gram_experts.routing(kind, x, [1])
    w, v, q = (part[0] for part in drawn)
    j = v[:, :, None] * np.eye(6) - w[:, :, None] * q[:, None, :]  # (tokens, candidates, logits)
    kept, odds = w[:, 4:].sum(axis=-1), 0.4
    parts = [Part(draw.standard_normal(3), Entries(draw.standard_normal((1, 3, 3)))) for _ in range(2)]

    def met(part: Part, at: int, token: int) -> np.ndarray:
        """z_at . f_j of the token: through the output, its dropped noise, and the input."""
        masked = odds * (at == token)
        of_routed = part.coefficient[at] * w[at, :4] * k.matrix[0, at, token] * (1 + masked)
        of_input = part.with_input.matrix[0, at, token]
        of_input = of_input + masked * part.coefficient[at] * kept[at] * x.matrix[0, at, at]
        return np.array([*of_routed, of_input, of_input])

    weights = [Entries(draw.standard_normal((1, 3, 3))) for _ in range(4)]
    terms = [(Term(*parts[::sign], weight),) for sign, weight in zip((1, -1, 1, -1), weights, strict=True)]
    beyond = np.zeros((3, 3))
    for t in range(3):
        for s in range(3):
            places = ((t, t), (s, s), (t, s), (s, t))
            u = sum(
                weight.matrix[0, t, s] * np.outer(met(term[0].left, at, t), met(term[0].right, to, s))
                for term, weight, (at, to) in zip(terms, weights, places, strict=True)
            )
            beyond[t, s] = np.einsum("je,ie,ji", j[t], j[s], u)
    of_kept = -kept[:, None] * q
    of_kept[:, 4:] += v[:, 4:]
    own = (w[None, :, :4], v[None, :, :4], q[None])
    found = gram_experts._Gates(*own, of_kept[None], k, x.variance * kept, odds)
    if wrong:
        found = dataclasses.replace(found, **{wrong: getattr(found, wrong) * 1.1})
    same = found.beyond(Seen(*terms, odds), (1, 3, 3))[0] == pytest.approx(beyond, rel=1e-12, abs=1e-12)
    assert same == (wrong is None)
    slopes = gram_experts._slopes(drawn, 4)[0]
    assert slopes == pytest.approx(np.einsum("tje,sje->ts", j[:, :4], j[:, :4]), rel=1e-12, abs=1e-15)


def test_a_norm_behind_uneven_gates() -> None:
    """Tokens differ in variance, and the norm divides each by its own; the mean over tokens is rejected."""
    model = network(NormBehind(), UNEVEN, depth=4, width=512, heads=8, ffn_ratio=0.25)
    seen = pg.simulate(model, draws=200, seed=5, backend="numpy", **START)
    said = pg.predict(model, **START)
    found = pg.compare(said, seen)
    assert found.attrs["verdict"] != "disagrees", found.worst_z.to_series().to_dict()
    with pytest.warns(UserWarning, match="squared gates"):
        means = pg.predict(model, covariance=xr.DataArray([0.4], dims="start"), grad_covariance=0.5)
    wrong = pg.compare(means.isel(start=0), seen)
    assert wrong.verdict.sel(quantity="grad_variance") == "disagrees"


@pytest.mark.slow
def test_a_later_norm_quenches_the_router_s_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """PreNorm: cotangents from later branches are orthogonal to a stream that holds the experts' outputs."""
    monkeypatch.setattr(walks, "ROUTERS", 512)
    model = network(NormBefore(), UNEVEN, depth=4, heads=8)
    seen = pg.simulate(model, draws=400, seed=6, backend="numpy", **START)
    right = pg.compare(pg.predict(model, **START), seen)
    assert right.attrs["verdict"] != "disagrees", right.worst_z.to_series().to_dict()
    monkeypatch.setattr(blocks, "entering", lambda found, entered: Products())
    wrong = pg.compare(pg.predict(model, **START), seen)
    assert wrong.verdict.sel(quantity="grad_variance") == "disagrees"


@pytest.mark.parametrize("placement", ["postnorm", "prenorm"])
def test_whole_causal_networks_agree(placement: str) -> None:
    size = {"depth": 3, "width": 192, "tokens": 6, "heads": 3, "causal": True, "dropout": 0.1}
    model = network(placement, Experts(6, 2, softmax="before", gain=2.0), **size)
    seen = pg.simulate(model, draws=100, seed=9, backend="numpy", **START)
    found = pg.compare(pg.predict(model, **START), seen)
    assert found.attrs["verdict"] != "disagrees", found.worst_z.to_series().to_dict()
    assert "token_variance" in found.quantity


IDENTITY = {
    "postnorm": (Experts(1, 2, identity=7, softmax="before", gain=4.0, router_std=2.0), {}),
    "siamesenorm": (Experts(2, 2, identity=3, softmax="before", gain=4.0, router_std=2.0), {"depth": 2}),
    "spannorm": (Experts(2, 2, identity=3, softmax="before", gain=6.0, router_std=2.0), {"dropout": 0.4}),
}


@pytest.mark.few(1)
@pytest.mark.parametrize("placement", IDENTITY)
def test_identity_experts_behind_norms(placement: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """g . x of identity experts lacks what norms take away; without that the gradient is far too large."""
    kind, further = IDENTITY[placement]
    size = {"depth": 4, "width": 256, "tokens": 6, "heads": 1, "ffn_ratio": 0.5, "logit_std": 0.0}
    model = network(pg.placement(placement), kind, **size | further)
    seen = pg.simulate(model, draws=200, seed=12, backend="numpy", progress=False, **START)
    right = pg.compare(pg.predict(model, **START), seen)
    assert float(right.worst_z.max()) < 4, right.worst_z.to_series().to_dict()

    def without_input(found: Products, output: Atom, x: Combination, odds: float) -> Seen:
        return parts(found, output, Combination({}), odds)

    monkeypatch.setattr(blocks, "parts", without_input)
    wrong = pg.compare(pg.predict(model, **START), seen)
    assert float(wrong.worst_z.sel(quantity="grad_variance").max()) > 4


def test_routers_do_not_average_out() -> None:
    """The mean logarithm over drawn routers is compared with the mean logarithm over networks, at any width."""
    model = network(pg.placement("postnorm"), Experts(8, 1), depth=6, tokens=2, logit_std=0.0)
    seen = pg.simulate(model, draws=300, seed=3, backend="numpy", progress=False, **START)
    said = pg.predict(model, **START)
    assert float(said.log_deviation_bias[-1]) < -0.4
    right = pg.compare(said, seen)
    assert float(right.worst_z.max()) < 4, right.worst_z.to_series().to_dict()
    of_means = said.drop_vars([name for name in said if str(name).endswith("_bias")])
    assert float(pg.compare(of_means, seen).worst_z.sel(quantity="deviation")) > 4


def test_means_are_for_arrays_of_starts(recwarn: pytest.WarningsRecorder) -> None:
    found = pg.predict(network(NormBehind(), KINDS["two of eight"]), **START)
    assert "token_variance" in found
    assert bool((found.grad_variance_se > 0).any())
    assert not recwarn.list
    with pytest.warns(UserWarning, match="routers do not average"):
        means = pg.predict(network(NormBehind(), UNEVEN), covariance=xr.DataArray([0.4], dims="start"))
    assert "token_variance" not in means


def test_more_routers_are_asked_for_by_samples() -> None:
    """What 64 routers are off by is in the stated error, and the same of two networks whose FFNs differ: their scores
    are not independent. Eight times as many have an error of a third."""
    mixture, off = Experts(16, top_k=6, softmax="before", identity=8, gain=3.0), []
    for activation in ("linear", "gelu"):
        model = pg.Model("prenorm", depth=1, tokens=4, activation=activation, experts=mixture)
        few, many = pg.predict(model, **START), pg.predict(model, **START, samples=512)
        ratio = (many.variance_se / few.variance_se).values[1:]
        assert (ratio > 0.2).all()
        assert (ratio < 0.55).all()
        off.append(((few.variance - many.variance) / few.variance_se).values[1:])
    assert np.abs(off).max() < 4
    assert np.abs(off[0] - off[1]).max() < 0.5 < np.abs(off).max()
