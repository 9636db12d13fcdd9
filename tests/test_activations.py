"""An activation of one's own, an expression in three lines, is the same in theory, simulation and torch."""

import itertools
import pickle
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest
import sympy

import propagate as pg
from propagate.activations import ACTIVATIONS, TEXTS, as_activation
from propagate.montecarlo.backend import choose_backend
from propagate.montecarlo.expressions import elementwise
from propagate.montecarlo.operators import operator_of

torch = pytest.importorskip("torch", reason="torch is absent: install the extra [torch]")

from propagate.tracing.expressions import on_tensors  # noqa: E402
from propagate.tracing.layers import function_of  # noqa: E402

z = sympy.Symbol("z", real=True)
hard_tanh = pg.Activation("hard_tanh", sympy.Min(1, sympy.Max(-1, z)))
wave_gate = pg.Activation("wave_gate", sympy.sin(z) + z / 2, gated=True)

OWN = {"a clipped line": hard_tanh, "a gated wave": wave_gate}
WRONG = {
    "a clipped line": pg.Activation("half_clipped", sympy.Max(-1, z)),
    "a gated wave": pg.Activation("other_gate", sympy.sin(z) - z / 2, gated=True),
}
SIZE = {"depth": 2, "width": 128, "tokens": 6, "heads": 2}
START = {"covariance": 0.4, "grad_covariance": 0.2}
HOST = choose_backend("numpy")
COPIES = {
    "relu": pg.Activation("my_relu", sympy.Max(z, 0)),
    "silu": pg.Activation("my_silu", z / (1 + sympy.exp(-z))),
    "geglu": pg.Activation("my_geglu", z * (1 + sympy.erf(z / sympy.sqrt(2))) / 2, gated=True),
}
"""Of activations with closed forms, which the expressions must give again."""


@pytest.mark.parametrize("name", OWN)
def test_theory_and_simulation_agree(name: str) -> None:
    model = pg.Model("prenorm", activation=OWN[name], **SIZE)
    measured = pg.simulate(model, draws=120, seed=3, backend="numpy", include={"param_grad"}, **START)
    right = pg.predict(model, include={"param_grad"}, **START)
    assert pg.compare(right, measured).attrs["verdict"] != "disagrees"
    wrong = pg.Model("prenorm", activation=WRONG[name], **SIZE)
    assert pg.compare(pg.predict(wrong, include={"param_grad"}, **START), measured).attrs["verdict"] == "disagrees"


@pytest.mark.parametrize("name", ["a clipped line", pytest.param("a gated wave", marks=pytest.mark.slow)])
def test_torch_agrees(name: str) -> None:
    model = pg.Model("postnorm", activation=OWN[name], causal=True, logit_std=0.0, **SIZE)
    networks = (pg.build(model, seed=seed) for seed in range(24))
    x = torch.randn(8, model.tokens, model.width, generator=torch.Generator().manual_seed(1))
    seen = pg.trace(networks, x)
    right = pg.predict(model, pg.start_of(seen))
    assert pg.compare(right, seen).attrs["verdict"] != "disagrees"
    wrong = pg.predict(
        pg.Model("postnorm", activation=WRONG[name], causal=True, logit_std=0.0, **SIZE), pg.start_of(seen)
    )
    assert pg.compare(wrong, seen).attrs["verdict"] == "disagrees"


@pytest.mark.parametrize("own", [*COPIES.values(), hard_tanh, *map(as_activation, TEXTS)], ids=str)
def test_simulation_and_torch_compute_the_same(own: pg.Activation) -> None:
    """In both precisions, far out too; torch's derivative is autograd's, the simulation's is the expression's."""
    core = own.core
    for dtype, tolerance in (("float64", 1e-11), ("float32", 2e-5)):
        x = np.concatenate([np.linspace(-5, 5, 40), [-300.0, -89.0, -36.5, 36.5, 89.0, 300.0]]).astype(dtype)
        tensor = torch.tensor(x, requires_grad=True)
        y, pull = elementwise(core)(HOST, x)
        slope = pull(np.ones_like(x))
        out = on_tensors(core)(tensor)
        out.sum().backward()
        assert y.dtype == slope.dtype == dtype
        np.testing.assert_allclose(out.detach(), y, rtol=tolerance, atol=tolerance)
        np.testing.assert_allclose(tensor.grad, slope, rtol=tolerance, atol=tolerance)
        stands_in, pull = operator_of(core)(HOST, x)  # for those that come with the package, often another form
        np.testing.assert_allclose(stands_in, y, rtol=tolerance, atol=tolerance)
        np.testing.assert_allclose(pull(np.ones_like(x)), slope, rtol=tolerance, atol=tolerance)
        np.testing.assert_allclose(function_of(core)(tensor).detach(), y, rtol=tolerance, atol=tolerance)
        if core.name != "linear":
            assert abs(slope / (1 + abs(slope)) - y / (1 + abs(y))).max() > 1e-3  # they are not one function


@pytest.mark.gpu
@pytest.mark.parametrize("own", [*COPIES.values(), hard_tanh, wave_gate, *map(as_activation, TEXTS)], ids=str)
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_the_device_computes_the_same(own: pg.Activation, precision: str) -> None:
    device, tolerance = choose_backend("cupy", precision), {"float32": 2e-5, "float64": 1e-11}[precision]
    x = np.concatenate([np.linspace(-5, 5, 40), [-300.0, -89.0, -36.5, 36.5, 89.0, 300.0]]).astype(precision)
    for make in (elementwise, operator_of):
        expected, pull = elementwise(own.core)(HOST, x)
        found, pull_there = make(own.core)(device, device.xp.asarray(x))
        np.testing.assert_allclose(device.to_host(found), expected, rtol=tolerance, atol=tolerance)
        g = np.linspace(0.5, 2, len(x)).astype(precision)
        back = device.to_host(pull_there(device.xp.asarray(g)))
        np.testing.assert_allclose(back, pull(g), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", COPIES)
def test_an_expression_gives_what_closed_forms_give(name: str) -> None:
    """Everything the theory says of a network: pairs, tokens that differ, gradients of matrices, bias, fluctuations."""
    places = (
        ("prenorm", {"logit_std": 0.7}, {"param_grad", "fluctuations"}),
        ("postnorm", {"causal": True, "logit_std": 0.0, "norm": "layer", "normed": ("hidden",)}, {"param_grad"}),
        ("rezero", {"causal": True, "logit_std": 0.0, "ffn_gain": 1.3}, set()),
        ("spannorm", {"experts": pg.Experts(4), "logit_std": 0.0}, set()),
    )
    for placement, fields, include in places:
        size = {"depth": 2, "width": 48, "tokens": 3, "heads": 2} | fields
        mine, closed, other = (
            pg.predict(pg.Model(placement, activation=kind, **size), include=include, **START)
            for kind in (COPIES[name], name, "tanh")
        )
        for column in (c for c in closed.data_vars if "allowance" not in c):
            np.testing.assert_allclose(
                mine[column], closed[column], rtol=1e-6, atol=1e-9, err_msg=f"{placement} {column}"
            )
        assert (
            not np.allclose(other.variance, closed.variance, rtol=1e-6)
            or not np.allclose(other.grad_variance, closed.grad_variance, rtol=1e-6)
            or placement == "rezero"
        )


def test_bias_is_that_of_closed_forms() -> None:
    for name, copy in COPIES.items():
        size = {"depth": 1, "width": 48, "tokens": 3, "heads": 2, "causal": True, "logit_std": 0.0}
        mine, closed = (
            pg.predict(pg.Model("prenorm", activation=kind, **size), include={"bias"}, **START) for kind in (copy, name)
        )
        columns = [column for column in closed.data_vars if "bias" in column]
        assert columns
        for column in columns:
            np.testing.assert_allclose(mine[column], closed[column], rtol=1e-3, atol=1e-6)


def test_recursion_prints_it_by_name_and_evaluates() -> None:
    printed = pg.recursion("prenorm", activation=hard_tanh)
    assert "hard_tanh_slope(1, p_2)" in str(printed)
    q, p, gamma, kappa = printed.lambdify(T=6, g_a=1.0, g_f=1.0)(1.0, 0.4, 1.0, 0.2)
    model = pg.Model("prenorm", 1, activation=hard_tanh, logit_std=0.0, width=64, tokens=6)
    table = pg.predict(model, head_size=float("inf"), **START)
    expected = [float(table[name][i]) for i, name in ((1, "variance"), (1, "covariance"), (0, "grad_variance"))]
    assert [q, p, gamma] == pytest.approx(expected, rel=1e-9)
    assert kappa == pytest.approx(float(table.grad_covariance[0]), rel=1e-9)
    assert q != pytest.approx(float(pg.predict(pg.Model("prenorm", 1, activation="erf"))["variance"][1]), rel=1e-9)


def test_names_stand_for_those_that_come_with_the_package() -> None:
    for name in ACTIVATIONS:
        model = pg.Model("prenorm", depth=1, activation=name)
        assert model.activation == name
        assert repr(model.activation) == repr(name)
        assert model == pg.Model("prenorm", depth=1, activation=as_activation(name))
    assert "activation='relu'" in repr(pg.Model("prenorm", depth=1))
    assert repr(hard_tanh) == "Activation('hard_tanh', Min(1, Max(-1, z)))"
    assert hard_tanh == pg.Activation("hard_tanh", sympy.Min(1, sympy.Max(-1, sympy.Symbol("z"))))
    assert hard_tanh != pg.Activation("hard_tanh", sympy.Min(2, sympy.Max(-1, z)))
    assert len({hard_tanh, wave_gate, pickle.loads(pickle.dumps(hard_tanh))}) == 2


def _grad_variance(model: pg.Model) -> float:
    return float(pg.predict(model).grad_variance[0])


def test_it_goes_to_other_processes() -> None:
    models = [pg.Model("prenorm", activation=own, **SIZE) for own in (hard_tanh, wave_gate)]
    with ProcessPoolExecutor(1) as pool:
        assert list(pool.map(_grad_variance, models)) == [_grad_variance(model) for model in models]


w = sympy.Symbol("w")
REFUSED = {
    "two symbols": (z + w, "z for its only free symbol, got w, z"),
    "a constant": (sympy.Integer(2), "z for its only free symbol, got none"),
    "no expression": ("z**2", "must be a SymPy expression in z, got 'z"),
    "too large": (sympy.exp(z**2), "mean square over Gaussians of every variance up to 1000"),
    "exponential": (sympy.exp(z), "mean square over Gaussians"),
    "a jump": (sympy.Heaviside(z), "must be continuous, .* jumps at z = 0"),
    "a steep root": (sympy.sqrt(abs(z)), "must have a bounded slope"),
    "imaginary": (sympy.sqrt(z), "real and finite"),
    "a pole": (1 / z, "real and finite .* not at z = 0"),
    "many poles": (sympy.tan(z), "no poles"),
    "not everywhere": (sympy.Piecewise((z, z > 1)), "real and finite"),
    "nothing": (sympy.sin(z) ** 2 + sympy.cos(z) ** 2 - 1, "differ from 0 somewhere"),
    "many kinks": (sympy.Max(sympy.sin(z), 0), "at most 32 kinks"),
    "steps": (sympy.floor(z), "smooth functions and cases"),
    "a function nobody knows": (sympy.Function("h")(z), "smooth functions and cases, .* has .*h"),
    "overflow": (sympy.log(1 + sympy.exp(z)) ** 2, "not overflow in single precision"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_activation_is_refused_in_words(name: str) -> None:
    expression, words = REFUSED[name]
    with pytest.raises(pg.ModelError, match=words):
        pg.Activation("mine", expression)


def test_names_and_gates_are_checked() -> None:
    with pytest.raises(pg.ModelError, match="name must be one of your own, got 'relu'"):
        pg.Activation("relu", sympy.tanh(z))
    with pytest.raises(pg.ModelError, match="name must be an identifier"):
        pg.Activation("my relu", sympy.tanh(z))
    with pytest.raises(pg.ModelError, match="gate_gain must be 1 for 'relu', which has no gate, got 2"):
        pg.FFN("relu", gate_gain=2.0)
    with pytest.raises(pg.ModelError, match="must change slowly enough for theory's quadrature"):
        pg.predict(pg.Model("prenorm", depth=1, activation=pg.Activation("sharp", sympy.tanh(50 * z))))


@pytest.mark.parametrize("activation", ["swiglu", wave_gate], ids=str)
def test_a_gates_own_gain_agrees_with_simulation(activation: str | pg.Activation) -> None:
    ffn = pg.FFN(activation, in_gain=0.8, gate_gain=2.5)
    size = {"depth": 2, "width": 128, "tokens": 4, "attention": pg.Attention(heads=2, logit_std=0.0)}
    model = pg.Model("prenorm", ffn=ffn, **size)
    measured = pg.simulate(model, draws=120, seed=3, backend="numpy", include={"param_grad"}, **START)
    assert pg.compare(pg.predict(model, include={"param_grad"}, **START), measured).attrs["verdict"] != "disagrees"
    wrong = pg.Model("prenorm", ffn=pg.FFN(activation, in_gain=0.8), **size)
    assert pg.compare(pg.predict(wrong, include={"param_grad"}, **START), measured).attrs["verdict"] == "disagrees"


def test_a_gates_own_gain_is_that_of_its_argument() -> None:
    """phi(gain u) written out as another expression, in everything the theory says but the size at gain 1."""
    gain = sympy.Rational(5, 2)
    inside = pg.Activation("inside", sympy.sin(gain * z) + gain * z / 2, gated=True)
    for causal, include in itertools.product((False, True), (set(), {"fluctuations"})):
        size = {"depth": 1, "width": 48, "tokens": 3, "attention": pg.Attention(heads=2, causal=causal, logit_std=0.0)}
        ffns = (pg.FFN(wave_gate, gate_gain=2.5, normed=("hidden",)), pg.FFN(inside, normed=("hidden",)))
        if include and causal:
            continue
        by_gain, written = (pg.predict(pg.Model("prenorm", ffn=ffn, **size), include=include, **START) for ffn in ffns)
        for column in (c for c in written.data_vars if "allowance" not in c):
            np.testing.assert_allclose(by_gain[column], written[column], rtol=1e-8, atol=1e-12)
