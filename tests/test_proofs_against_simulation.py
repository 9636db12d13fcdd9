"""Propositions 1-6 against random layers: each formula, evaluated as it was proved, is judged by `compare`.

Rows of a table are widths, or the two ends of one block (see the file on depth for networks). Every test also hands a
wrong formula to the same check, which must reject it.
"""

from __future__ import annotations

import confront
import numpy as np
import pytest
import xarray as xr
from confront import TOKENS, WIDTHS, agrees, arithmetic, formula, network, said, seen, slope
from numpy.typing import NDArray

import propagate as pg
from proofs.propositions import (
    p01_linear_layer,
    p02_norms,
    p03a_relu,
    p03b_gelu,
    p03c_ffn,
    p04_uniform_attention,
    p05_small_logits,
    p06_residual,
)
from propagate.montecarlo.operators import NORMS
from propagate.montecarlo.run import run
from propagate.montecarlo.starts import Ends, exchangeable_root
from propagate.montecarlo.statistics import second_moments

C, RHO = 0.4, 0.3
START = {"covariance": C, "grad_covariance": RHO}
SLOW = pytest.mark.slow
widths = pytest.mark.parametrize("width", [pytest.param(64, marks=SLOW), 128, pytest.param(256, marks=SLOW)])


@pytest.mark.slow
def test_linear_layer() -> None:
    """Proposition 1: second moments both ways, exact at every width; fluctuation 2/n."""
    columns, squares = {}, {}
    for width in WIDTHS:
        sampler, x, g = confront.arrays(1500 if width < 256 else 500, width, 1, 1.5, 0.6)
        y, _ = sampler(x, 100, width // 2)
        _, pull = sampler(g[..., : width // 2], 101, width)
        _, pull = sampler(x, 102, width)
        columns[width] = (*second_moments(y)[:2], *second_moments(pull(g))[:2])
        squares[width] = (y[:, 0] ** 2).mean(axis=-1)
    names = ("variance", "covariance", "grad_variance", "grad_covariance")
    draws = min(map(len, squares.values()))
    table = {n: np.stack([columns[w][i][:draws] for w in WIDTHS], axis=1) for i, n in enumerate(names)}
    at = {"q": 1.5, "c": 0.4, "gamma": 1.5, "rho": 0.4, "sigma": 1.0, "n": 1.0, "d": 1.0}
    claims = {n: [formula(p01_linear_layer.PROPOSITION, n)(**at)] * 3 for n in names}
    assert agrees(said(**claims), seen(table))
    assert not agrees(said(**{**claims, "covariance": [0.5 * 1.5] * 3}), seen(table))

    exact = formula(p01_linear_layer.PROPOSITION, "fluctuation")
    claimed = [exact(n=w // 2) for w in WIDTHS]
    spread = np.stack([(squares[w][:draws] / 1.5 - 1) ** 2 for w in WIDTHS], axis=1)
    assert agrees(said(variance=claimed), seen({"variance": spread}))
    assert not agrees(said(variance=np.multiply(claimed, 0.5)), seen({"variance": spread}))
    assert -1.2 < slope(WIDTHS, [((squares[w] / 1.5 - 1) ** 2).mean() for w in WIDTHS]) < -0.8


@pytest.mark.slow
def test_norms() -> None:
    """Proposition 2: (d-1)/d and the two-token term at fixed inputs; averages over Gaussian inputs, both norms."""
    widths, draws = (8, 32, 128), 3000
    fixed: dict[str, list[NDArray[np.float64]]] = {"grad_variance": [], "grad_covariance": []}
    averaged: dict[str, list[NDArray[np.float64]]] = {"rms": [], "layer": []}
    for width in widths:
        _, x, g = confront.arrays(draws, width, 2, 2.0, 1.2)
        moments = second_moments(NORMS["rms"](confront.HOST, x)[1](g))
        for name, values in zip(fixed, moments, strict=False):
            fixed[name].append(values)
        free = np.sqrt(2.5) * np.random.default_rng(3).standard_normal(x.shape)
        for norm, found in averaged.items():
            found.append(second_moments(NORMS[norm](confront.HOST, free)[1](g))[0])
    at = [{"q": 2.0, "c": 0.6, "gamma": 2.0, "rho": 0.6, "v": 2.5, "d": float(w)} for w in widths]
    claims = {
        "grad_variance": [formula(p02_norms.PROPOSITION, "rms")(**a) for a in at],
        "grad_covariance": [formula(p02_norms.PROPOSITION, "cross")(**a) for a in at],
    }
    table = seen({name: np.stack(values, axis=1) for name, values in fixed.items()})
    assert agrees(said(**claims), table)
    wide = said(grad_variance=[formula(p02_norms.PROPOSITION, "wide", "value")(**a) for a in at])
    assert not agrees(wide, table)  # the wide limit forgets the lost direction
    biases = (wide.grad_variance - table.grad_variance) / wide.grad_variance
    assert -1.1 < slope(widths, list(biases.values)) < -0.9
    for norm, found in averaged.items():
        claim = [formula(p02_norms.PROPOSITION, f"{norm}_average")(**a) for a in at]
        assert agrees(said(grad_variance=claim), seen({"grad_variance": np.stack(found, axis=1)}))
        other = [formula(p02_norms.PROPOSITION, f"{norm}_average")(**(a | {"d": a["d"] + 4})) for a in at]
        assert not agrees(said(grad_variance=other), seen({"grad_variance": np.stack(found, axis=1)}))


def ffn_claims(width: int, kernel: float, ratio: float, chi: float, gain: float = 0.64) -> xr.Dataset:
    """Proposition 3c's four formulas for one FFN; backward the same matrix is met twice, which costs O(1/width)."""
    at = {"s_f": gain, "k_c": kernel, "r_c": ratio, "chi": chi, "gamma": 1.0, "rho": RHO}
    names = ("variance", "covariance", "grad_variance", "grad_covariance")
    v, p, g, k = (float(formula(p03c_ffn.PROPOSITION, name)(**at)) for name in names)
    table = said(variance=[1, v], covariance=[C, p], grad_variance=[g, 1], grad_covariance=[k, RHO])
    return table.assign({f"grad_{n}_allowance": ("block", [1 / width, 0.0]) for n in ("variance", "covariance")})


@widths
def test_relu(width: int) -> None:
    """Proposition 3a's kernels, through an FFN."""
    table = arithmetic(network(confront.BareFFN(), 1, width, 4, START, activation="relu", ffn_gain=0.8))
    p = p03a_relu.PROPOSITION
    kernel = formula(p, "K")(q=1.0, c=C) / formula(p, "K")(q=1.0, c=1.0)
    ratio = formula(p, "dK")(c=C) / formula(p, "dK")(c=1.0)
    assert agrees(ffn_claims(width, kernel, ratio, 1.0), table)
    assert not agrees(ffn_claims(width, C, ratio, 1.0), table)
    assert not agrees(ffn_claims(width, kernel, C, 1.0), table)


@widths
def test_gelu(width: int) -> None:
    """Proposition 3b's kernels and chi, through an FFN."""
    table = arithmetic(network(confront.BareFFN(), 1, width, 5, START, activation="gelu", ffn_gain=0.8))
    p = p03b_gelu.PROPOSITION
    kernel, slope_kernel = formula(p, "K"), formula(p, "dK")
    kernel_c, ratio = (f(s=1.0, r=C) / f(s=1.0, r=1.0) for f in (kernel, slope_kernel))
    chi = float(formula(p, "chi")())
    assert agrees(ffn_claims(width, kernel_c, ratio, chi), table)
    assert not agrees(ffn_claims(width, C, ratio, chi), table)
    assert not agrees(ffn_claims(width, kernel_c, ratio, chi**6), table)


def relative_fluctuation(placement: pg.Placement, width: int, draws: int, mean: float, **fields: object) -> xr.Dataset:
    """(mean square / its mean - 1)^2 of the stream that leaves one block, one token, as a measured `variance`."""
    model = pg.Model(placement, depth=1, width=width, tokens=1, heads=1, logit_std=0.0, **fields)  # type: ignore[arg-type]
    one = exchangeable_root(1.0, 1.0, 1)
    out = run(model, confront.HOST, "dense", 6, range(draws), Ends(one, one), through_readout=False)["variance"]
    return seen({"variance": (out[:, 1:] / mean - 1) ** 2})


def test_ffn() -> None:
    """Proposition 3c: fluctuation at finite width of x + FFN(x), and its slope -1 in the width."""
    measured = []
    for width in (16, 32, 64):
        at = {"s_f": 0.64, "kappa_phi": 5.0, "d": float(width), "n": 2.0 * width}
        claim = formula(p03c_ffn.PROPOSITION, "fluctuation")(**at)
        table = relative_fluctuation(
            confront.BareSum(alpha=1.0), width, 1500, 1.64, activation="relu", ffn_gain=0.8, ffn_ratio=2.0
        )
        assert agrees(said(variance=[claim]), table)
        without = formula(p03c_ffn.PROPOSITION, "fluctuation")(**(at | {"s_f": 0.2}))
        assert not agrees(said(variance=[without]), table)
        measured.append(float(table.variance[0]))
    assert -1.2 < slope((16, 32, 64), measured) < -0.8


@widths
def test_uniform_attention(width: int) -> None:
    """Proposition 4: both ways, exact at every width; the fluctuation of two maps in a row."""
    table = arithmetic(network(confront.BareAttention(), 1, width, 7, START, value_gain=0.9))
    at = {"sigma_v": 0.9, "sigma_o": 1.0, "q": 1.0, "c": C, "gamma": 1.0, "rho": RHO, "T": TOKENS}
    out, back = (formula(p04_uniform_attention.PROPOSITION, name)(**at) for name in ("forward", "backward"))
    claim = said(variance=[1, out], covariance=[C, out], grad_variance=[back, 1], grad_covariance=[back, RHO])
    assert agrees(claim, table)
    assert not agrees(claim.assign(grad_variance=("block", [0.81, 1.0])), table)  # a gradient that is not averaged
    if width == 128:
        claim = said(variance=[formula(p04_uniform_attention.PROPOSITION, "fluctuation")(h=64.0, d=64.0)])
        spread = relative_fluctuation(confront.BareAttention(), 64, 1500, 1.0)
        assert agrees(claim, spread)
        assert not agrees(claim / 2, spread)


@pytest.mark.slow
@widths
def test_small_logits(width: int) -> None:
    """Proposition 5: first derivative in tau, extrapolated from two small tau with the same weights."""
    tau, draws = 0.02, 4 * confront.DRAWS[width]
    start = Ends(exchangeable_root(1.0, RHO, TOKENS), exchangeable_root(1.0, C, TOKENS))
    found = []
    for value in (1e-18, tau, 2 * tau):
        model = pg.Model(
            confront.BareAttention(), depth=1, width=width, tokens=TOKENS, heads=1, logit_std=float(np.sqrt(value))
        )
        found.append(run(model, confront.HOST, "dense", 8, range(draws), start, through_readout=False))
    zero, once, twice = found
    rate = {name: (4 * (once[name] - zero[name]) - (twice[name] - zero[name])) / (2 * tau) for name in zero}
    p = p05_small_logits
    at = {"sigma_v": 1.0, "sigma_o": 1.0, "sigma_q": 1.0, "q": 1.0, "c": C, "gamma": 1.0, "rho": RHO, "T": TOKENS}

    def claimed(*names: str) -> float:
        """Less the zeroth order, divided by tau."""
        parts = [formula(p.PROPOSITION, name) for name in names]
        return float(sum(f(**at, sigma_k=1.0) - f(**at, sigma_k=0.0) for f in parts))

    backward = ("value", "query", "key"), ("kappa_value", "kappa_query", "kappa_key")
    columns = {
        "variance": claimed("forward"),
        "covariance": claimed("forward_cov"),
        "grad_variance": claimed(*backward[0]),
        "grad_covariance": claimed(*backward[1]),
    }
    ends = {name: slice(0, 1) if name.startswith("grad") else slice(1, 2) for name in columns}
    table = seen({name: rate[name][:, ends[name]] for name in columns})
    finite = {f"{name}_allowance": ("block", [2 / width]) for name in columns}
    claim = said(**{name: [value] for name, value in columns.items()}).assign(finite)
    assert agrees(claim, table)
    for lacking in (("value", "query"), ("value", "key")):
        assert not agrees(claim.assign(grad_variance=("block", [claimed(*lacking)])), table)


@widths
def test_residual(width: int) -> None:
    """Proposition 6: sums of uncorrelated streams both ways, and a norm after one, with GELU's unequal gains."""
    p, kernels = p06_residual.PROPOSITION, p03b_gelu.PROPOSITION
    kernel, slopes = formula(kernels, "K"), formula(kernels, "dK")
    r_f, r_b = (f(s=1.0, r=C) / f(s=1.0, r=1.0) for f in (kernel, slopes))
    s_b = float(formula(kernels, "chi")())
    at = {
        "alpha": 1.5,
        "q": 1.0,
        "c": C,
        "gamma": 1.0,
        "rho": RHO,
        "s_f": 1.0,
        "r_f": r_f,
        "s_b": s_b,
        "r_b": RHO * r_b,
    }
    names = ("variance", "covariance", "grad_variance", "grad_covariance")
    v, c, g, k = (formula(p, name)(**at) for name in names)
    finite = {f"grad_{n}_allowance": ("block", [1 / width, 0.0]) for n in ("variance", "covariance")}
    claim = said(variance=[1, v], covariance=[C, c], grad_variance=[g, 1], grad_covariance=[k, RHO]).assign(finite)
    table = arithmetic(network(confront.BareSum(), 1, width, 9, START, activation="gelu"))
    assert agrees(claim, table)
    assert not agrees(claim.assign(variance=("block", [1.0, (1.5 + 1) ** 2])), table)  # fully correlated
    through = formula(p, "norm_after_sum")(**at)
    normed = arithmetic(network(confront.BareSum(normed=True), 1, width, 10, START, activation="gelu"))
    after = said(grad_variance=[through, 1.0]).assign(grad_variance_allowance=("block", [1 / width, 0.0]))
    assert agrees(after, normed)
    assert not agrees(after * xr.Dataset({"grad_variance": ("block", [v, 1.0])}), normed)  # the norm left out
