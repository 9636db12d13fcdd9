"""Gradients of the weight matrices: what is measured is |x^T g|^2, what is predicted is its expectation."""

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import xarray as xr

import propagate as pg
from propagate.montecarlo.backend import choose_backend
from propagate.montecarlo.blocks import block_of, read
from propagate.montecarlo.memory import plan
from propagate.montecarlo.normals import Normals
from propagate.montecarlo.parameter_gradients import Norms, Part, noting
from propagate.montecarlo.samplers import Pull, dense
from propagate.scaling import Gains
from propagate.theory import uses as theory
from propagate.theory.reading.blocks import Call
from propagate.theory.tokens.apply import Setting, apply

HOST = choose_backend("numpy")


class Uneven:
    """A scaling with a gain of its own for every matrix."""

    def gains(self, index: int, depth: int) -> Gains:
        return Gains(query=1.5, key=0.7, value=1.2, attention_out=0.8, ffn_in=0.5, ffn_out=0.9)


CASES: dict[str, tuple[pg.Model, dict[str, Any]]] = {
    "prenorm": (pg.Model("prenorm", depth=3, width=96, tokens=8, heads=4), {"through_readout": True}),
    "postnorm": (pg.Model("postnorm", depth=3, width=96, tokens=8, heads=4, activation="gelu"), {}),
    "spannorm": (pg.Model("spannorm", depth=3, width=96, tokens=8, heads=4, activation="swiglu", logit_std=0.6), {}),
    "deepnorm": (pg.Model("deepnorm", depth=3, width=96, tokens=4, heads=4, activation="swiglu", value_gain=1.2), {}),
    "periln": (pg.Model("periln", depth=3, width=96, tokens=6, activation="tanh", logit_std=0.0), {}),
    "uneven gains": (pg.Model("prenorm", depth=3, width=96, tokens=6, heads=4, scaling=Uneven()), {}),
    "queries, keys and values normed": (
        pg.Model("hybridnorm", depth=3, width=96, tokens=6, heads=4, activation="swiglu", scaling=Uneven()),
        {"variance": 0.5},
    ),
    "heads and hidden units normed": (
        pg.Model("subln", depth=3, width=96, tokens=6, heads=4, norm="layer", scaling=Uneven()),
        {},
    ),
    "two streams": (pg.Model("residual", depth=3, width=96, tokens=6, heads=4), {}),
    "streams and numbers": (pg.Model("admin", depth=3, width=96, tokens=6, heads=4), {}),
    "one token": (pg.Model("layernormscaling", depth=3, width=96, tokens=1, activation="silu"), {}),
}


def start_of(model: pg.Model) -> dict[str, float]:
    return {"covariance": 0.2, "grad_covariance": 0.3} if model.tokens > 1 else {}


def both(name: str) -> tuple[xr.Dataset, xr.Dataset]:
    model, options = CASES[name]
    arguments: dict[str, Any] = options | start_of(model)
    said = pg.predict(model, include={"param_grad"}, **arguments)
    return said, pg.simulate(model, draws=100, seed=5, backend="numpy", include={"param_grad"}, **arguments)


def of_matrices(judged: xr.Dataset) -> xr.Dataset:
    return judged.sel(quantity=[q for q in judged.quantity.to_numpy() if q.startswith("param_grad")])


@pytest.mark.few(3)
@pytest.mark.parametrize("name", CASES)
def test_theory_and_simulation_agree(name: str) -> None:
    said, seen = both(name)
    judged = of_matrices(pg.compare(said, seen))
    assert bool((judged.verdict != "disagrees").all()), judged.worst_z.to_series().to_dict()
    assert judged.sizes["quantity"] == said.sizes["matrix"] == seen.sizes["matrix"]
    assert np.isnan(said.param_grad[0]).all()
    assert np.isnan(seen.param_grad[0]).all()


def test_a_gradient_that_forgets_an_inner_norm_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a normed projection's matrix sees is another cotangent and, for what reads it, another input."""
    right = theory.uses_of

    def forgetful(call: Call, g: Any, seen: Any, layer: Any) -> Any:
        plain = call.description.with_(normed=())
        pull = apply(plain, call.entered, Setting(layer.width, layer.tokens, layer.norm)).pull
        found = pull.paths(g) if isinstance(plain, pg.Attention) else seen
        return right(dataclasses.replace(call, description=plain, pull=pull), g, found, layer)

    for case, known in (
        ("queries, keys and values normed", ["query", "key", "value", "attention_out"]),
        ("heads and hidden units normed", ["value", "ffn_in", "ffn_out"]),
    ):
        said, seen = both(case)
        with monkeypatch.context() as patched:
            model, options = CASES[case]
            patched.setattr(theory, "uses_of", forgetful)
            wrong = pg.predict(model, include={"param_grad"}, **options, **start_of(model))
        quantities = [f"param_grad[{name}]" for name in known]
        judged = pg.compare(said.assign(param_grad=wrong.param_grad), seen).verdict.sel(quantity=quantities)
        assert (judged == "disagrees").all(), (case, judged.to_series().to_dict())


def test_wrong_formulas_are_rejected() -> None:
    """A gain left outside of the matrix; tokens taken for independent."""
    model, _ = CASES["deepnorm"]
    said, seen = both("deepnorm")
    layer = model.at(1)
    gains = {"value": layer.attention.value_gain, "attention_out": layer.attention.out_gain}
    gains |= {"ffn_in": layer.ffn.in_gain, "ffn_gate": layer.ffn.in_gain, "ffn_out": layer.ffn.out_gain}
    names = ["value", "attention_out", "ffn_in", "ffn_gate", "ffn_out"]
    outside = said.assign(param_grad=said.param_grad.copy())
    for name in names:
        outside.param_grad.loc[{"matrix": name}] = outside.param_grad.sel(matrix=name) * gains[name] ** 2
    judged = pg.compare(outside, seen).verdict == "disagrees"
    assert judged.sel(quantity=[f"param_grad[{name}]" for name in names]).all()

    model, options = CASES["prenorm"]
    said, seen = both("prenorm")
    independent = pg.predict(model, include={"param_grad"}, **options)
    judged = pg.compare(said.assign(param_grad=independent.param_grad), seen).verdict == "disagrees"
    names.remove("ffn_gate")
    assert judged.sel(quantity=[f"param_grad[{name}]" for name in names]).all()


class Dense:
    """The dense sampler with its matrices on record, and one entry of one of them shifted."""

    def __init__(self, site: int = -1, entry: tuple[int, int] = (0, 0), shift: float = 0.0) -> None:
        self.normals, self.site, self.entry, self.shift = Normals(HOST, 3, range(1)), site, entry, shift
        self.shapes: dict[int, tuple[int, int]] = {}

    def __call__(self, x: Any, site: int, fan_out: int, gain: float = 1.0) -> tuple[Any, Pull]:
        weight = self.normals(site, (x.shape[-1], fan_out)) * x.shape[-1] ** -0.5
        self.shapes[site] = weight.shape[1:]
        if site == self.site:
            weight[(0, *self.entry)] += self.shift
        weight = gain * weight
        return x @ weight, lambda g: g @ weight.swapaxes(-1, -2)


@pytest.mark.parametrize(
    ("activation", "further"),
    [
        ("gelu", {}),
        ("swiglu", {}),
        ("gelu", {"scaling": Uneven(), "causal": True, "rope": 100.0}),
        ("swiglu", {"scaling": Uneven(), "normed": ("query", "value", "hidden")}),
        ("gelu", {"scaling": Uneven(), "normed": ("key", "heads", "hidden")}),
    ],
)
def test_it_is_the_derivative_by_every_entry_of_every_matrix(activation: str, further: dict[str, Any]) -> None:
    """Central differences of a linear loss by all entries of a small block's matrices, as the network stores them."""
    gains: dict[str, Any] = {"value_gain": 1.3, "attention_gain": 0.7, "ffn_gain": 0.6, "logit_std": 0.8}
    model = pg.Model("postnorm", 1, width=4, tokens=3, heads=2, activation=activation, ffn_ratio=1, **gains, **further)
    random = np.random.default_rng(0)
    x, g = random.standard_normal((1, 3, 4)), random.standard_normal((1, 3, 4))

    def loss(sampler: Any) -> float:
        return float((read(model.equations.block, block_of(model, HOST, sampler, 1), x)[0] * g).sum())

    sampler = Dense()
    norms: Norms = {}
    read(model.equations.block, block_of(model, HOST, sampler, 1, norms=norms), x)[1](g)
    squares: dict[str, float] = {}
    step = 1e-5
    for site, (rows, columns) in sampler.shapes.items():
        names = {16: ("query", "key", "value"), 17: ("attention_out",), 21: ("ffn_out",)}
        names[20] = ("ffn_gate", "ffn_in") if activation == "swiglu" else ("ffn_in",)
        of_site = names[site % 64 % 24 if site % 64 >= 16 else 16 + site % 64]
        for row in range(rows):
            for column in range(columns):
                ends = [loss(Dense(site, (row, column), sign * step)) for sign in (1, -1)]
                name = of_site[column * len(of_site) // columns]
                squares[name] = squares.get(name, 0.0) + ((ends[0] - ends[1]) / (2 * step)) ** 2
    rms = {"gelu": math.sqrt(0.425219), "swiglu": math.sqrt(0.355775)}[activation]
    if "hidden" in model.normed:
        rms = 1.0  # the norm makes the constant that gives the FFN's output its size needless
    stored = {"query": 1.0, "key": 1.0, "value": 1.3, "attention_out": 0.7, "ffn_out": 0.6 / rms}
    if "scaling" in further:
        factors = {"query": 1.5, "key": 0.7, "value": 1.2, "attention_out": 0.8, "ffn_out": 0.9}
        stored = {name: gain * factors[name] for name, gain in stored.items()} | {"ffn_in": 0.5, "ffn_gate": 0.5}
    for name, square in squares.items():
        assert float(norms[name][0]) == pytest.approx(square / stored.get(name, 1.0) ** 2, rel=1e-5), name
    assert set(squares) == set(norms)


def test_collapsed_tokens_lose_no_digits() -> None:
    """x^T g where tokens differ by 1e-9 and cotangents sum to zero, as those of the keys do; x x^T has lost it."""
    random = np.random.default_rng(1)
    x = 1.0 + 1e-9 * random.standard_normal((2, 5, 16))
    g = random.standard_normal((2, 5, 8))
    g -= g.mean(axis=1, keepdims=True)
    found: Norms = {}
    _, pull = dense(Normals(HOST, 0, range(2)))(x, 64, 8)
    noting(np, x, pull, 1.0, [Part("w", 8)], found, index=1)(g)
    exact = (np.einsum("dti,dto->dio", x - 1.0, g) ** 2).sum(axis=(1, 2))
    naive = ((x @ x.swapaxes(1, 2)) * (g @ g.swapaxes(1, 2))).sum(axis=(1, 2))
    assert found["w"] == pytest.approx(exact, rel=1e-5, abs=0)
    assert naive != pytest.approx(exact, rel=1e-1, abs=0)


@pytest.mark.slow
def test_the_last_layer_of_prenorm_learns_slower_with_depth_and_that_of_postnorm_does_not() -> None:
    """arXiv:2002.04745, Theorem 1: |dLoss/dW_out| of the last FFN is O(1 / sqrt(depth)) in Pre-LN, O(1) in Post-LN."""
    depths = (64, 128, 256, 512)
    slopes, widths = {}, (256, 512)
    for name in ("prenorm", "postnorm"):
        norms = []
        for depth in depths:
            model = pg.Model(name, depth=depth, logit_std=0.0, tokens=8)
            said = pg.predict(model, through_readout=True, include={"param_grad"})
            norms.append(math.sqrt(float(said.param_grad.sel(matrix="ffn_out")[-1])))
        slopes[name] = np.polyfit(np.log(depths), np.log(norms), 1)[0]
        ends = [
            pg.predict(
                pg.Model(name, depth=4, width=width),
                through_readout=True,
                include={"param_grad"},
                head_size=math.inf,  # else the heads grow too
            )
            for width in widths
        ]
        ratio = float((ends[1].param_grad.sel(matrix="ffn_out") / ends[0].param_grad.sel(matrix="ffn_out"))[-1])
        assert math.sqrt(ratio) == pytest.approx(2.0)  # linear in the width
    assert slopes["prenorm"] == pytest.approx(-0.5, abs=0.02)
    assert slopes["postnorm"] == pytest.approx(0.0, abs=1e-3)


@pytest.mark.slow
def test_simulation_shows_the_same_contrast() -> None:
    """Pre-LN at depth 24 against depth 2: the ratio is the square root of the ratio of variances, not 1."""
    last = {}
    for name in ("prenorm", "postnorm"):
        for depth in (2, 24):
            model = pg.Model(name, depth=depth, width=64, tokens=4, heads=2)
            seen = pg.simulate(
                model, draws=40, seed=depth, through_readout=True, include={"param_grad"}, backend="numpy"
            )
            column = seen.log_param_grad.sel(matrix="ffn_out")[-1], seen.log_param_grad_se.sel(matrix="ffn_out")[-1]
            last[name, depth] = tuple(map(float, column))
    for name, expected in (("prenorm", math.log(38 / 3.6)), ("postnorm", 0.0)):
        (early, early_se), (late, late_se) = last[name, 2], last[name, 24]
        error = math.hypot(early_se, late_se)
        assert abs(early - late - expected) < 4 * error + 0.2 * expected, name
        if name == "prenorm":
            assert early - late > 10 * error


def test_asking_changes_nothing_else_and_a_checkpoint_goes_on(tmp_path: Any) -> None:
    model = pg.Model("spannorm", depth=2, width=32, tokens=4, heads=2)
    plain = pg.simulate(model, draws=6, seed=1, backend="numpy")
    asked = pg.simulate(model, draws=6, seed=1, backend="numpy", include={"param_grad"})
    assert all((plain[name] == asked[name]).all() or name.startswith("log_dev") for name in plain)
    assert "param_grad" not in plain
    file = tmp_path / "half.npz"
    pg.simulate(model, draws=3, seed=1, backend="numpy", include={"param_grad"}, checkpoint=file)
    on = pg.simulate(model, draws=6, seed=1, backend="numpy", include={"param_grad"}, checkpoint=file)
    xr.testing.assert_equal(on.param_grad, asked.param_grad)
    with pytest.raises(pg.ModelError):
        pg.simulate(model, draws=6, seed=1, backend="numpy", checkpoint=file)


def test_blocks_that_are_run_twice_are_recorded_once() -> None:
    model = pg.Model("residual", depth=7, width=32, tokens=4, heads=2)
    whole = pg.simulate(model, draws=3, seed=1, backend="numpy", include={"param_grad"})
    segments = plan(model, "numpy", "float64", whole.attrs["sampler"], batch=1, one_draw=1)
    assert segments.segment < model.depth
    twice = pg.simulate(model, draws=3, seed=1, backend="numpy", include={"param_grad"}, memory=1)
    xr.testing.assert_equal(twice.param_grad, whole.param_grad)
    assert whole.param_grad.dims == ("block", "matrix")
    assert whole.variance.dims == ("block", "stream")


def test_starts_over_an_array() -> None:
    model = pg.Model("prenorm", depth=2, tokens=4, logit_std=0.0)
    said = pg.predict(model, covariance=xr.DataArray([0.0, 0.5], dims="start"), include={"param_grad"})
    assert said.param_grad.dims == ("block", "start", "matrix")
    alone = pg.predict(model, covariance=0.5, include={"param_grad"})
    np.testing.assert_allclose(said.param_grad.isel(start=1), alone.param_grad, rtol=1e-12)


def test_a_gain_of_zero_is_refused() -> None:
    model = dataclasses.replace(CASES["prenorm"][0], value_gain=0.0)
    with pytest.raises(pg.ModelError, match="parameter_gradients needs gains that are not 0, got 0 for value of block"):
        pg.simulate(model, draws=2, include={"param_grad"})
    with pytest.raises(pg.ModelError, match="parameter_gradients must be True or False"):
        pg.predict(model, parameter_gradients=1)  # type: ignore[arg-type]


def test_as_many_key_value_heads_as_heads_are_plain() -> None:
    model = pg.Model("prenorm", depth=1, width=64, tokens=4, heads=4)
    alike = dataclasses.replace(model, key_value_heads=4)
    for name in ("param_grad", "fluctuations"):
        xr.testing.assert_equal(pg.predict(alike, include={name}), pg.predict(model, include={name}))
    assert bool((pg.simulate(alike, draws=2, include={"param_grad"}).param_grad[1:] > 0).all())


def test_the_old_name_still_works_and_says_so() -> None:
    model = pg.Model("prenorm", depth=1, width=32, tokens=4, heads=2)
    for verb, options in ((pg.predict, {}), (pg.simulate, {"draws": 2, "backend": "numpy"})):
        with pytest.warns(DeprecationWarning, match=r'parameter_gradients= is deprecated: include=\{"param_grad"\}'):
            old = verb(model, parameter_gradients=True, **options)
        xr.testing.assert_equal(old, verb(model, include=["param_grad"], **options))
    with pytest.raises(pg.ModelError, match=r"include must be one of calls, .*, got 'grads'"):
        pg.predict(model, include={"grads"})
    with pytest.raises(pg.ModelError, match="include must be a set of names, got 'bias'"):
        pg.predict(model, include="bias")


def test_every_verb_takes_a_start() -> None:
    model = pg.Model("prenorm", depth=1, width=32, tokens=4, heads=2)
    start = pg.Start(variance=2.0, covariance=0.5, grad_gram=np.eye(4))
    for verb, options in ((pg.predict, {}), (pg.predict_calls, {}), (pg.simulate, {"draws": 2, "backend": "numpy"})):
        xr.testing.assert_equal(verb(model, start, **options), verb(model, **start, **options))
        with pytest.raises(pg.ModelError, match="variance must be given in start or beside it, not in both"):
            verb(model, start, variance=3.0, **options)
    with pytest.raises(pg.ModelError, match=r"start must hold variance, .*, got 'inputs'"):
        pg.predict(model, pg.Start(inputs=np.ones((4, 32))))
