"""Token-resolved theory against itself: the exchangeable pair, explicit sums, brute-force integrals, symmetries."""

import dataclasses
import gc
from typing import Any

import numpy as np
import pytest

import propagate as pg
from propagate.cells import ACTIVATIONS
from propagate.theory.gaussian import quadrature
from propagate.theory.pairs.moments import Atom
from propagate.theory.reading.blocks import BlockMap
from propagate.theory.tokens import averages as gram_averages
from propagate.theory.tokens.gram import Gram, distances
from propagate.theory.tokens.kernels import gelu_pair, gelu_slope_pair, kernel_of
from propagate.theory.tokens.softmax import Attention, Heads, heads, rotary_profiles
from propagate.theory.walks import walk_grams

TOKENS = 6
QUANTITIES = ("variance", "covariance", "deviation", "grad_variance", "grad_covariance", "grad_deviation")
PLACEMENTS = ("prenorm", "postnorm", "spannorm", "periln", "layernormscaling")
START, COTANGENT = (1.5, 0.3), (1.0, 0.2)


def matrix(variance: float, covariance: float, tokens: int) -> np.ndarray:
    return covariance + (variance - covariance) * np.eye(tokens)


def random_gram(seed: int, tokens: int = TOKENS) -> np.ndarray:
    """Unequal variances, correlations of both signs, most of them positive."""
    draw = np.random.default_rng(seed)
    z = draw.standard_normal((tokens, 2 * tokens)) + 0.7 * draw.standard_normal((1, 2 * tokens))
    size = draw.uniform(0.6, 1.4, tokens)
    return np.asarray((z @ z.T / (2 * tokens)) * size[:, None] * size)


def both(model: pg.Model, **options: Any) -> tuple[Any, Any]:
    names = ("variance", "covariance", "grad_variance", "grad_covariance")
    pair = pg.predict(model, **dict(zip(names, (*START, *COTANGENT), strict=True)))
    grams = {"gram": matrix(*START, model.tokens), "grad_gram": matrix(*COTANGENT, model.tokens)}
    return pair, pg.predict(model, **grams, **options)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_uniform_attention_is_the_pair_exactly(placement: str, activation: str) -> None:
    model = pg.Model(placement, depth=8, tokens=TOKENS, activation=activation, logit_std=0.0)
    pair, full = both(model)
    for name in QUANTITIES:
        np.testing.assert_allclose(full[name], pair[name], rtol=1e-9)
    assert "variance_se" not in full
    np.testing.assert_allclose(full.grad_token_variance, full.grad_variance.expand_dims(token=TOKENS).T, rtol=1e-9)


OWN = [name for name, kind in pg.placements().items() if kind.__module__ == "propagate.placements"]
INNER = ("query", "key", "value", "heads", "hidden")


@pytest.mark.parametrize("normed", [(), INNER], ids=["plain", "normed"])
@pytest.mark.parametrize("placement", OWN)
def test_every_placement_is_the_pair_exactly(placement: str, normed: tuple[str, ...]) -> None:
    """With inner norms, LayerNorm of activations that have a mean, and several streams where there are."""
    fields: dict[str, Any] = {"activation": "gelu", "norm": "layer", "normed": normed, "logit_std": 0.0}
    pair, full = both(pg.Model(placement, depth=5, tokens=TOKENS, **fields))
    for name in (*QUANTITIES, "skip_gain"):
        np.testing.assert_allclose(full[name], pair[name], rtol=1e-9, err_msg=name)
    for name in QUANTITIES:
        np.testing.assert_allclose(full[f"{name}_allowance"], pair[f"{name}_allowance"], rtol=1e-7, err_msg=name)


@pytest.mark.few(2)
@pytest.mark.parametrize("placement", ["hybridnorm", "siamesenorm", "dyt"])
def test_normed_queries_and_several_streams_within_their_own_error(placement: str) -> None:
    normed = ("query", "key") if placement == "siamesenorm" else ()
    assert off_by(pg.Model(placement, depth=3, tokens=TOKENS, logit_std=1.5, normed=normed)) < 6


def off_by(model: pg.Model) -> float:
    """The largest difference of the two resolutions, in standard errors of the token-resolved one."""
    pair, full = both(model, samples=2048)
    worst = 0.0
    for name in QUANTITIES:
        error = np.hypot(full[f"{name}_se"], 1e-6 * np.abs(pair[name]))  # stated accuracy of the pair's averages
        assert not (error > 0.01 * np.abs(full[name.replace("covariance", "variance")])).any()
        worst = max(worst, float((np.abs(full[name] - pair[name]) / error).max()))  # NaN, of no stream, counts as none
    return worst


@pytest.mark.few(1)
@pytest.mark.parametrize(
    ("placement", "activation"),
    [("prenorm", "relu"), ("postnorm", "gelu"), ("spannorm", "swiglu"), ("periln", "tanh")],
)
def test_softmax_attention_is_the_pair_within_its_own_error(placement: str, activation: str) -> None:
    model = pg.Model(placement, depth=4, tokens=TOKENS, activation=activation, logit_std=1.5)
    assert off_by(model) < 6  # of Student's t with 7 degrees of freedom: 1 in 2000, in some 30 numbers


@pytest.mark.few(1)
@pytest.mark.parametrize("heads", [2, 4, 16], ids=["larger", "smaller", "single"])
def test_heads_of_any_size_are_the_pair_and_wide_ones_are_not(heads: int) -> None:
    """Heads of more coordinates than tokens, of fewer, and of one: drawn here, integrated there."""
    model = pg.Model("prenorm", depth=2, width=16, heads=heads, tokens=TOKENS, logit_std=1.5)
    _, full = both(model, samples=2048)
    wide = pg.predict(model, variance=START[0], covariance=START[1], head_size=np.inf)
    assert off_by(model) < 6
    assert float(abs(full.deviation[-1] - wide.deviation[-1]) / full.deviation_se[-1]) > 6


@pytest.mark.parametrize("part", ["query_average", "key_average"])
def test_a_path_left_out_is_noticed(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gram_averages, part, lambda j, *others: np.zeros_like(j.v))
    assert off_by(pg.Model("prenorm", depth=4, tokens=TOKENS, logit_std=1.5)) > 20


@pytest.mark.parametrize("logit_std", [0.0, 1.0])
def test_collapse_is_followed_far_below_rounding(logit_std: float) -> None:
    model = pg.Model("postnorm", depth=64, tokens=TOKENS, logit_std=logit_std, activation="gelu", ffn_gain=2.0)
    pair, full = both(model)
    assert float(pair.deviation[-1]) < 1e-15
    tolerance = 1e-6 if logit_std == 0 else 0.01
    np.testing.assert_allclose(full.deviation, pair.deviation, rtol=tolerance)
    np.testing.assert_allclose(full.grad_deviation, pair.grad_deviation, rtol=10 * tolerance)


def test_a_vanishing_gradient_is_followed_far_below_rounding() -> None:
    """Causal, identical tokens, linear FFN: the last token's gradient falls by (1 + 1/T^2) / 2 a block, exactly."""
    model = pg.Model("postnorm", depth=100, tokens=4, causal=True, logit_std=0.0, activation="linear")
    found = pg.predict(model, covariance=1.0).grad_token_variance
    expected = ((1 + 1 / 16) / 2) ** np.arange(100, -1, -1)
    assert expected[0] < 1e-27
    np.testing.assert_allclose(found[:, -1], expected, rtol=1e-9)
    np.testing.assert_allclose(float(found[0, 0]), 4.0, rtol=1e-5)  # the first gathers all of it


DENSE = {name: kernel_of(name) for name in ("linear", "relu", "squared_relu", "gelu", "silu", "tanh")}
PHI = {
    "linear": lambda u: u,
    "relu": lambda u: np.maximum(u, 0.0),
    "squared_relu": lambda u: np.maximum(u, 0.0) ** 2,
    "gelu": lambda u: u * _cumulative(u),
    "silu": lambda u: u / (1 + np.exp(-u)),
    "tanh": np.tanh,
}


def _cumulative(u: np.ndarray) -> np.ndarray:
    from scipy.special import ndtr

    return np.asarray(ndtr(u))


def brute(f: Any, s: float, t: float, a: float) -> float:
    """E f(u) f(v) by a dense rule over two independent normals."""
    z = np.arange(-9, 9.001, 0.02)
    weight = np.exp(-z * z / 2) / np.sqrt(2 * np.pi) * 0.02
    u = np.sqrt(s) * z
    v = a / np.sqrt(s) * z[:, None] + np.sqrt(t - a * a / s) * z
    return float(weight * f(u) @ (f(v) @ weight))


@pytest.mark.few(5)
@pytest.mark.parametrize("scale", [1.0, 25.0])
@pytest.mark.parametrize("name", sorted(DENSE))
def test_kernels_at_unequal_variances(name: str, scale: float) -> None:
    """Two settings: the series, and beyond a variance of 32 what takes over from it."""
    u = Gram.of(scale * np.array([[0.7, 0.4, -0.3], [0.4, 2.0, 0.9], [-0.3, 0.9, 1.1]]))
    found = DENSE[name].value(u)
    h = 1e-4 * scale
    exact, rough = (2e-4, 3e-3) if "relu" in name else (1e-8, 1e-5)  # the dense rule does not see where a kink is
    for t, s in ((0, 1), (0, 2), (1, 2)):
        args = (u.matrix[t, t], u.matrix[s, s])
        assert found.matrix[t, s] == pytest.approx(brute(PHI[name], *args, u.matrix[t, s]), rel=exact)
        rise = brute(PHI[name], *args, u.matrix[t, s] + h) - brute(PHI[name], *args, u.matrix[t, s] - h)
        assert DENSE[name].slope(u).matrix[t, s] == pytest.approx(rise / (2 * h), rel=rough)  # Price's theorem
    np.testing.assert_allclose(found.deviation, distances(found.matrix), atol=1e-12 * scale**2)


def test_gates_at_unequal_variances() -> None:
    """phi(u) w with w independent and distributed as u: G K forward, K + G S backward, entry by entry."""
    u = Gram.of(random_gram(1))
    for name, core in (("swiglu", "silu"), ("geglu", "gelu")):
        value, slope = kernel_of(core).value(u), kernel_of(core).slope(u)
        for found, expected in (
            (kernel_of(name).value(u), u.matrix * value.matrix),
            (kernel_of(name).slope(u), value.matrix + u.matrix * slope.matrix),
        ):
            np.testing.assert_allclose(found.matrix, expected, rtol=1e-12)
            np.testing.assert_allclose(found.deviation, distances(expected), atol=1e-12)


def test_gelu_in_closed_form_is_its_series() -> None:
    u = Gram.of(random_gram(1))
    v, w = u.variance[:, None], u.variance[None, :]
    np.testing.assert_allclose(kernel_of("gelu").value(u).matrix, gelu_pair(v, w, u.matrix), rtol=1e-12)
    np.testing.assert_allclose(kernel_of("gelu").slope(u).matrix, gelu_slope_pair(v, w, u.matrix), rtol=1e-12)


def test_distances_of_nearly_equal_tokens_of_unequal_variance() -> None:
    """phi(u) - phi(v) for u - v of 1e-10: against a first-order expansion, E phi'(u)^2 (u - v)^2 / 2 and its like."""
    size = 1 + np.array([0.0, 1e-10])
    u = Gram(np.outer(size, size), np.array([[0.0, 0.5e-20], [0.5e-20, 0.0]]))  # u_2 = (1 + 1e-10) u_1
    z, weight = quadrature._gaussian(1.0)
    for name in ("relu", "squared_relu", "gelu", "silu", "tanh"):
        step = (PHI[name](1.0001 * z) - PHI[name](0.9999 * z)) / 2e-4
        expected = 0.5e-20 * float(weight @ step**2)
        assert kernel_of(name).value(u).deviation[0, 1] == pytest.approx(expected, rel=1e-4)


MASK = np.array([[1, 0, 0, 1], [1, 1, 0, 0], [0, 1, 1, 1], [0, 0, 0, 1]], dtype=bool)
THETA = (1.0, 0.3, 0.05)


def cos_of(tokens: int) -> np.ndarray:
    """mean_i cos(((t - t') - (s - s')) theta_i), indices t, t', s, s'."""
    lag = np.arange(tokens)[:, None] - np.arange(tokens)[None, :]
    return np.asarray(np.cos((lag[:, :, None, None] - lag)[..., None] * np.array(THETA)).mean(axis=-1))


@pytest.mark.parametrize("frequencies", [(), THETA], ids=["plain", "rotary"])
def test_paths_are_the_sums_of_the_derivation(frequencies: tuple[float, ...]) -> None:
    """Given one set of weights, against J_t G J_t' and A^T Gamma A written out, in double precision."""
    x, g = Gram.of(random_gram(2, 4)[None]), Gram.of(random_gram(3, 4)[None])
    rows = tuple(map(tuple, MASK.tolist()))
    query, key, value = x, Gram.of(random_gram(8, 4)[None]), Gram.of(random_gram(9, 4)[None])
    kind = Attention(rows, 1.7, frequencies, 2, (1, 0))
    drawn = heads(query, key, kind)
    excess = np.repeat(drawn.excess[:, :1], 6, axis=1).astype(float)  # the same weights for each frequency
    excess -= excess.sum(axis=-1, keepdims=True) * drawn.uniform
    one = drawn.uniform + excess[0, 0]
    same = Heads(drawn.uniform, excess, drawn.moments)
    queries, keys = gram_averages.logits(same, gram_averages.Projected(query, key, value), g, kind)
    jacobian = np.array([np.diag(row) - np.outer(row, row) for row in one])
    inner = np.einsum("tsu,uv,pvr->tpsr", jacobian, value.matrix[0], jacobian)
    turn = cos_of(4) if frequencies else np.ones((4, 4, 4, 4))
    expected = g.matrix[0] * np.einsum("tpsr,sr,tpsr->tp", inner, key.matrix[0], turn)
    np.testing.assert_allclose(queries.matrix[0], expected, rtol=1e-10, atol=1e-14)
    expected = np.einsum("tp,tp,tpsr,tpsr->sr", g.matrix[0], x.matrix[0], inner, turn)
    np.testing.assert_allclose(keys.matrix[0], expected, rtol=1e-10, atol=1e-14)
    if not frequencies:
        np.testing.assert_allclose(keys.matrix[0].sum(axis=0), 0, atol=1e-14)
    for found, written in (
        (gram_averages.output(same, value), one @ value.matrix[0] @ one.T),
        (gram_averages.values(same, g), one.T @ g.matrix[0] @ one),
    ):
        np.testing.assert_allclose(found.matrix[0], written, rtol=1e-7, atol=1e-14)
        np.testing.assert_allclose(found.deviation[0], distances(written), rtol=1e-6, atol=1e-14)


def test_logits_have_the_covariance_of_the_derivation() -> None:
    """tau G_tt' G_ss' times the rotary kernel, from draws; without the kernel it is found out."""
    from propagate.theory.tokens.softmax import _wide

    x, other = (Gram.of(np.repeat(random_gram(seed, 3)[None], 8, axis=0)) for seed in (4, 5))
    kind = Attention(((True,) * 3,) * 3, 2.0, THETA, 20000, (1, 0))
    half, _ = _wide(x.matrix, other.matrix, kind)
    flat = np.concatenate([half, -half], axis=1).reshape(-1, 9)
    seen = (flat.T @ flat / len(flat)).reshape(3, 3, 3, 3).transpose(0, 2, 1, 3)
    plain = 2.0 * np.einsum("tp,sr->tpsr", x.matrix[0], other.matrix[0])
    error = np.abs(plain).max() * np.sqrt(2 / (len(flat) / 2))
    assert np.abs(seen - plain * cos_of(3)).max() < 5 * error
    assert np.abs(seen - plain).max() > 10 * error


def test_rotary_profiles_make_their_kernel() -> None:
    profiles = rotary_profiles(THETA, 4)
    found = np.einsum("xts,xpr->tpsr", profiles, profiles)
    np.testing.assert_allclose(found, cos_of(4), atol=1e-6)


def test_what_rotary_positions_change_at_initialisation() -> None:
    """Identical tokens attend uniformly without positions. With them keys differ by where they stand: the weights'
    second moment exceeds 1/T, forward nothing changes (all values are the same), backward gradients are averaged less.
    """
    plain = pg.Model("postnorm", depth=3, tokens=8, width=64, heads=2, logit_std=2.0)
    rotary = dataclasses.replace(plain, rope=100.0)
    same = {"covariance": 1.0}
    without, found = pg.predict(plain, gram=np.ones((8, 8))), pg.predict(rotary, **same)
    assert float(np.abs(found.deviation).max()) < 1e-12
    np.testing.assert_allclose(without.grad_variance, pg.predict(plain, **same).grad_variance, rtol=1e-9)
    more = found.grad_variance[0] / without.grad_variance[0] - 1
    assert float(more) > 0.05
    assert float(more) > 10 * float(found.grad_variance_se[0])


def test_tokens_may_be_renamed() -> None:
    draw = np.random.default_rng(5)
    mask = draw.random((TOKENS, TOKENS)) < 0.5
    mask |= np.eye(TOKENS, dtype=bool)
    order = draw.permutation(TOKENS)
    model = pg.Model("spannorm", depth=3, tokens=TOKENS, activation="gelu", logit_std=0.0, mask=mask)
    moved = dataclasses.replace(model, mask=mask[np.ix_(order, order)])
    start, cotangent = random_gram(6), random_gram(7)
    path = walk_grams(model, Gram.of(start), Gram.of(cotangent))
    turned = (Gram.of(g[np.ix_(order, order)]) for g in (start, cotangent))
    other = walk_grams(moved, *turned)
    ends = [(path.forward[-1], other.forward[-1]), (path.backward[0], other.backward[0])]
    for one, two in ((left[0][0], right[0][0]) for left, right in ends):
        np.testing.assert_allclose(one.matrix[0][np.ix_(order, order)], two.matrix[0], rtol=1e-10)
        np.testing.assert_allclose(one.deviation[0][np.ix_(order, order)], two.deviation[0], rtol=1e-9, atol=1e-14)


def test_causal_numbers_of_the_notes() -> None:
    """Uniform causal attention, 24 blocks, 32 tokens, ReLU (sections B.3 and B.7 of the notes, to their digits)."""
    size: dict[str, Any] = {"depth": 24, "tokens": 32, "causal": True, "logit_std": 0.0}
    found = pg.predict(pg.Model("postnorm", **size), covariance=0.3)
    assert float(found.grad_token_variance[0, 0]) == pytest.approx(29.7, abs=0.05)
    assert float(found.grad_token_variance[0, -1]) == pytest.approx(1.8e-7, rel=0.03)
    assert float(found.grad_variance[0]) == pytest.approx(0.93, abs=0.005)
    half = pg.ScaleInit(0.5)
    for placement, scaling, expected in (
        ("spannorm", half, 0.9956),
        ("postnorm", half, 0.8869),
        ("prenorm", None, 26.75),
        ("spannorm", None, 0.496),
    ):
        there = pg.predict(pg.Model(placement, scaling=scaling, **size)).grad_variance[0]
        assert float(there) == pytest.approx(expected, abs=0.005 if expected > 1 else 0.0005)


def test_proposition_22() -> None:
    """Causal, linear, orthogonal tokens: the trace of the gradients is T q_L / q_0, and token 1's share tends to 1."""
    for placement in ("postnorm", "spannorm"):
        model = pg.Model(placement, depth=40, tokens=5, causal=True, logit_std=0.0, activation="linear")
        found = pg.predict(model).grad_token_variance[0]
        share = float(found[0] / found.sum())
        assert float(found.sum()) == pytest.approx(5.0, rel=1e-9)
        assert share > (0.999 if placement == "postnorm" else 0.98)


def test_a_window_of_all_tokens_is_no_window() -> None:
    model = pg.Model("prenorm", depth=2, tokens=5, causal=True)
    wide = dataclasses.replace(model, window=5)
    assert pg.predict(model).drop_attrs().identical(pg.predict(wide).drop_attrs())
    narrow = pg.predict(dataclasses.replace(model, window=1))  # each token alone: a linear layer
    assert "variance_se" not in narrow
    assert not np.allclose(narrow.grad_variance, pg.predict(model).grad_variance)


def test_dropout_is_not_forgotten_where_tokens_are_resolved() -> None:
    """The same exchangeable start, as a pair and as a Gram matrix; without dropout the numbers are others."""
    fields = {"depth": 4, "width": 64, "tokens": 5, "heads": 2, "logit_std": 0.0}
    model, gram = pg.Model("prenorm", dropout=0.3, **fields), 0.4 + 0.6 * np.eye(5)
    pair, resolved = pg.predict(model, covariance=0.4), pg.predict(model, gram=gram)
    without = pg.predict(pg.Model("prenorm", **fields), gram=gram)
    for name in ("variance", "deviation", "grad_variance", "grad_deviation"):
        assert np.allclose(pair[name], resolved[name], rtol=1e-9)
        assert not np.allclose(pair[name], without[name], rtol=1e-2)


def test_a_walk_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its Gram matrices go with its path, without the collector of cycles; kept by a tape, they would stay."""

    def alive() -> int:
        before = sum(isinstance(kept, Atom) for kept in gc.get_objects())
        model = pg.Model("prenorm", depth=2, tokens=4, causal=True, activation="swiglu")
        walk_grams(model, *[Gram.of(np.eye(4))] * 2)
        return sum(isinstance(kept, Atom) for kept in gc.get_objects()) - before

    gc.collect()
    gc.disable()
    try:
        assert alive() == 0
        monkeypatch.setattr(BlockMap, "forget", lambda done: None)
        assert alive() >= 2  # at least one of each block
    finally:
        gc.enable()
