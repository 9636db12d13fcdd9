"""Propositions 7-11 against random networks: each formula, evaluated as it was proved, is judged by `compare`.

At finite width the mean logarithm of a moment drifts; the predictions carry the package's stated allowance of
O(depth/width). Every test also hands a wrong formula to the same check, which must reject it.
"""

from __future__ import annotations

from functools import cache

import confront
import mpmath
import numpy as np
import pytest
import sympy as sp
import xarray as xr
from confront import TOKENS, Floats, agrees, arithmetic, formula, network, said, seen

import propagate as pg
from proofs import blocks, gaussian, maps, notation
from proofs.propositions import (
    p07_prenorm,
    p08_postnorm,
    p09_spannorm,
    p10_scale_init,
    p10a_companions,
    p10b_duality,
    p10c_causal,
    p11_swiglu,
)
from proofs.vocabulary import step_of

IDENTICAL = {"covariance": 1.0, "grad_covariance": 1.0}
HALF = pg.ScaleInit(0.5)
DEPTH = 6
SLOW = pytest.mark.slow
widths = pytest.mark.parametrize("width", [pytest.param(64, marks=SLOW), 128, pytest.param(256, marks=SLOW)])


@cache
def swiglu_ratio() -> float:
    """chi of SwiGLU at unit variance: proposition 11's chi = 1 + q dK/K, its two integrals by quadrature."""
    kernel = gaussian.univariate(lambda u: gaussian.silu(u) ** 2, mpmath.mpf(1))
    slope = gaussian.univariate(lambda u: gaussian.silu_derivative(u) ** 2, mpmath.mpf(1))
    backward = formula(p11_swiglu.PROPOSITION, "backward")
    return float(backward(K=float(kernel), dotK=float(slope), gamma=1.0, q=1.0, s_f=1.0))


def mean_share(correlation: float) -> float:
    """m = c + (1-c)/T."""
    return correlation + (1 - correlation) / TOKENS


def deviation(share: Floats) -> Floats:
    """1 - c from m."""
    return np.asarray((1 - share) * TOKENS / (TOKENS - 1))


@widths
def test_prenorm(width: int) -> None:
    """Proposition 7, identical tokens: variance q_0 + ls exactly; the gradient's product of b over q_0 + sl, SwiGLU."""
    table = network("prenorm", DEPTH, width, 20, IDENTICAL, activation="swiglu")
    p, steps = p07_prenorm.PROPOSITION, np.arange(DEPTH + 1)
    growth, product = formula(p, "growth", "closed_form"), formula(p, "product", "closed_form")
    variance = np.array([growth(q_0=1.0, s=2.0, l=n) for n in steps])
    assert agrees(said(variance=variance), arithmetic(table))
    assert not agrees(said(variance=variance + 0.25 * steps), arithmetic(table))
    gains = {b: np.array([product(q_0=1.0, s=2.0, b=b, l=n) for n in steps]) for b in (2.0, 1 + swiglu_ratio())}
    skip = np.ones(DEPTH)
    right, wrong = (
        said(width, skip, variance=variance, grad_variance=g[-1] / g) for g in (gains[1 + swiglu_ratio()], gains[2.0])
    )
    assert agrees(right, table)
    assert not agrees(wrong.drop_vars("variance"), table)


@widths
def test_prenorm_modes(width: int) -> None:
    """Proposition 7, linear FFN, any tokens: variance and deviation by the proved block, composed with depth."""
    depth = 12
    stream = maps.Moments(notation.q, notation.c * notation.q)
    one = sp.Integer(1)
    heard = maps.normed(stream + maps.uniform_attention(maps.normed(stream), one, one * TOKENS)).covariance
    out = blocks.prenorm(stream, one, one * TOKENS, one, heard)
    step = sp.lambdify([notation.q, notation.c], [out.variance, out.variance - out.covariance])
    block = formula(p07_prenorm.PROPOSITION, "block")
    variance, rest = [1.0], [0.6]
    for _ in range(depth):
        before, c = variance[-1], 1 - rest[-1] / variance[-1]
        after, apart = step(before, c)
        assert np.isclose(after, block(q=before, c=c, sigma=1.0, s_f=1.0, T=TOKENS))
        variance.append(float(after))
        rest.append(float(apart))
    table = network("prenorm", depth, width, 21, {"covariance": 0.4}, activation="linear")
    claim = said(width, np.ones(depth), variance=variance, deviation=rest)
    assert agrees(claim, table)
    assert not agrees(claim.assign(deviation=("block", 0.6 * np.array(variance))), table)  # no collapse
    assert not agrees(claim.assign(variance=("block", 1.0 + 2 * np.arange(depth + 1))), table)  # identical tokens'


@widths
def test_postnorm(width: int) -> None:
    """Proposition 8, linear FFN: collapse and total gradient in closed form at every block; the skip alone is wrong."""
    start = {"covariance": 0.3, "grad_covariance": 0.0}
    table = network("postnorm", DEPTH, width, 22, start, activation="linear")
    p, steps = p08_postnorm.PROPOSITION, np.arange(DEPTH + 1)
    share_at, total = formula(p, "mean_share", "closed_form"), formula(p, "total")
    share = np.array([share_at(m_0=mean_share(0.3), sigma=1.0, l=n) for n in steps])
    gain = np.array([total(m_0=m, sigma=1.0, L=DEPTH - n, T=TOKENS) for n, m in enumerate(share)])
    skip = np.array([formula(p, "skip")(s_a=m, s_f=1.0) for m in share[:-1]])
    columns = {"variance": np.ones(DEPTH + 1), "deviation": deviation(share), "grad_variance": gain}
    assert agrees(said(width, skip, **columns), table)
    path = np.append(np.cumprod(skip[::-1])[::-1], 1.0)
    assert not agrees(said(width, skip, grad_variance=path), table)
    slower = np.array([share_at(m_0=mean_share(0.3), sigma=0.7, l=n) for n in steps])
    assert not agrees(said(width, skip, variance=np.ones(DEPTH + 1), deviation=deviation(slower)), table)


@widths
def test_spannorm(width: int) -> None:
    """Proposition 9, linear FFN: collapse, and both gradient modes, block by block."""
    start = {"covariance": 0.3, "grad_covariance": 0.2}
    table = network("spannorm", DEPTH, width, 23, start, activation="linear")
    p = p09_spannorm.PROPOSITION
    share = [mean_share(0.3)]
    for _ in range(DEPTH):
        share.append(share[-1] * formula(p, "mean")(m=share[-1], sigma=1.0, s_f=1.0))
    shares = np.array(share)
    means, deviations = [1 + (TOKENS - 1) * 0.2], [0.8]
    for m in shares[-2::-1]:
        means.append(means[-1] * formula(p, "mean_gradient")(m=m, sigma=1.0, s_f=1.0))
        deviations.append(deviations[-1] * formula(p, "deviation_gradient")(m=m, sigma=1.0, s_f=1.0))
    grad_deviation = np.array(deviations[::-1])
    grad_variance = (np.array(means[::-1]) + (TOKENS - 1) * grad_deviation) / TOKENS
    columns = {
        "variance": np.ones(DEPTH + 1),
        "deviation": deviation(shares),
        "grad_variance": grad_variance,
        "grad_deviation": grad_deviation,
    }
    skip = formula(p, "skip")(s_f=1.0)
    assert agrees(said(width, skip, **columns), table)
    post = formula(p08_postnorm.PROPOSITION, "mean_share", "closed_form")
    faster = np.array([post(m_0=mean_share(0.3), sigma=1.0, l=n) for n in range(DEPTH + 1)])
    assert not agrees(
        said(width, skip, variance=np.ones(DEPTH + 1), deviation=deviation(faster)), table
    )  # PostNorm's rate


@pytest.mark.slow
@pytest.mark.parametrize("exponent", [0.25, 0.5])
@widths
def test_scale_init(width: int, exponent: float) -> None:
    """Proposition 10: inside the two-sided bound for ReLU; a quarter of its exponent is the allowance, so |z| < 4."""
    depth = 8
    bound = formula(p10_scale_init.PROPOSITION, "exponent")(L=float(depth), k=exponent, a_a=1.0, a_f=1.0)
    start = {"covariance": 0.5, "grad_covariance": 0.0}
    skip = formula(p09_spannorm.PROPOSITION, "skip")(s_f=depth ** (-2 * exponent))
    claim = said(width, skip, grad_variance=np.ones(depth + 1))
    total = np.hypot(claim.grad_variance_allowance, bound / 4)
    claim = claim.assign(grad_variance_allowance=total)
    table = network("spannorm", depth, width, 24, start, scaling=pg.ScaleInit(exponent))
    assert agrees(claim, table)
    ends = float(table.log_grad_variance[0])
    assert -bound - 4 * float(claim.grad_variance_allowance[0]) < ends < bound + 4 * float(total[0])
    if width > 128:
        return
    if exponent == 0.5:  # at k = 1/4 the bound is wide (a factor e), and only growth leaves it
        assert not agrees(claim, network("spannorm", depth, width, 24, start))
    assert not agrees(claim, network("prenorm", depth, width, 24, start))


@widths
def test_scale_init_other_activations(width: int) -> None:
    """Proposition 10: the block's factor for SwiGLU, and its limit exp((chi-1) a_f) at k = 1/2; chi = 1 misses."""
    depth = 8
    p = p10_scale_init.PROPOSITION
    factor, limit = formula(p, "factor"), formula(p, "limit", "value")
    gain = 1 / depth
    at = {"s_f": gain, "B": gain, "c": 1.0, "rho": 1.0, "r_c": 1.0, "T": TOKENS, "chi": swiglu_ratio()}
    back = factor(**at) ** np.arange(depth, -1, -1)
    skip = 1 / (1 + gain)
    table = network("spannorm", depth, width, 25, IDENTICAL, activation="swiglu", scaling=HALF)
    claim = said(width, skip, grad_variance=back)
    assert agrees(claim, table)
    assert not agrees(
        claim.assign(grad_variance=("block", factor(**(at | {"chi": 1.0})) ** np.zeros(depth + 1))), table
    )
    assert abs(np.log(back[0] / limit(chi=swiglu_ratio(), a_f=1.0))) < swiglu_ratio() ** 2 / depth  # tends to it


@pytest.mark.slow
@widths
def test_companions(width: int) -> None:
    """Proposition 10a at k = 1/2: PostNorm's limiting token-mean share, PreNorm's limiting gains; O(1/L) away."""
    depth = 12
    p = p10a_companions.PROPOSITION
    post = network("postnorm", depth, width, 26, {"covariance": 0.3}, activation="linear", scaling=HALF)
    post = post.isel(block=[0, -1])  # the limit speaks of the ends
    limit = formula(p, "post_limit", "value")

    def ends(m_0: float, a_a: float) -> xr.Dataset:
        share = np.array([m_0, limit(m_0=m_0, a_a=a_a)])
        finite = np.full(2, np.hypot(1 / (2 * depth), 4 / width))  # Euler's error a_a^2/2L, and the width's
        return said(variance=np.ones(2), deviation=deviation(share)).assign(deviation_allowance=("block", finite))

    assert agrees(ends(mean_share(0.3), 1.0), post)
    assert not agrees(ends(mean_share(0.3), 0.0), post)
    assert not agrees(ends(mean_share(0.3), 2.0), post)

    pre = network("prenorm", depth, width, 27, IDENTICAL, activation="swiglu", scaling=HALF)
    power = sp.lambdify(
        [p10a_companions.q_0, p10a_companions.s, p10a_companions.b, p10a_companions.t],
        step_of(p, "pre_gain").left.value.expr,
    )
    # G counts from the top: the gain over the whole depth is the power at t = 1 over that at t = 0
    times = np.linspace(0, 1, depth + 1)
    for b, right in ((1 + swiglu_ratio(), True), (2.0, False)):
        values = power(1.0, 2.0, b, 1.0) / np.array([power(1.0, 2.0, b, t) for t in times])
        claim = said(width, np.ones(depth), variance=1 + 2 * times, grad_variance=values)
        euler = np.hypot(claim.grad_variance_allowance, b * (1 - times) / (2 * depth))
        claim = claim.assign(grad_variance_allowance=euler)
        assert agrees(claim[["grad_variance", "grad_variance_allowance"]], pre) is right


@pytest.mark.few(2)
@pytest.mark.parametrize("placement", ["prenorm", "postnorm", "spannorm", "periln", "deepnorm", "layernormscaling"])
@widths
def test_duality(placement: str, width: int) -> None:
    """Proposition 10b, every placement: the measured forward pass alone predicts the gradient, block by block."""
    start = {"covariance": 0.3, "grad_covariance": 0.0}
    ahead = network(placement, DEPTH, width, 28, start, activation="linear")
    table = network(placement, DEPTH, width, 29, start, activation="linear")
    variance, rest = np.exp(ahead.log_variance.to_numpy()), np.exp(ahead.log_deviation.to_numpy())
    correlation = 1 - rest / variance
    total = formula(p10b_duality.PROPOSITION, "total")

    def predicted(tokens: int) -> Floats:
        ends = {"q_L": variance[-1], "c_L": correlation[-1], "T": tokens}
        return np.array([total(q_0=v, c_0=c, **ends) for v, c in zip(variance, correlation, strict=True)])

    skip = 0.25 if placement in ("postnorm", "spannorm") else 1.0
    claim = said(width, skip, variance=variance, grad_variance=predicted(TOKENS)).drop_vars("variance")
    assert agrees(claim, table)
    mean = variance[-1] * (1 + (TOKENS - 1) * correlation[-1]) / (variance * (1 + (TOKENS - 1) * correlation))
    assert not agrees(claim.assign(grad_variance=("block", mean / TOKENS)), table)  # the deviation modes forgotten


@widths
def test_causal(width: int) -> None:
    """Proposition 10c: single tokens' gradients under a causal mask; closed form of the last, limit of the first."""
    depth, tokens = 6, max(p10c_causal.SIZES)
    model = pg.Model("postnorm", depth, width, tokens, 1, "linear", ffn_ratio=2.0, causal=True, logit_std=0.0)
    _, gradients = confront.token_gradients(model, confront.DRAWS[width], 30, 1.0)
    p, back = p10c_causal.PROPOSITION, np.arange(depth, -1, -1)
    last = formula(p, "last", "closed_form")
    symbols = sorted(p10c_causal.gram(tokens).free_symbols, key=str)
    step = sp.lambdify([symbols, p10c_causal.sigma], p10c_causal.backward(p10c_causal.gram(tokens)))
    at = {s: i for i, s in enumerate(p10c_causal.gram(tokens))}
    gram = [np.eye(tokens)]
    for _ in range(depth):
        gram.append(np.asarray(step([gram[-1].ravel()[at[s]] for s in symbols], 1.0), dtype=float))
    every = np.array([np.diag(g) for g in gram[::-1]]).T
    finite = np.where(back > 0, 1 / width + 2 / width * np.log(4) * back, 0.0)

    def table(token: int) -> xr.Dataset:
        found = seen({"grad_variance": gradients[:, token]})
        logs = seen({"log_grad_variance": np.log(gradients[:, token])})
        return found.merge(logs).assign_attrs(draws=len(gradients))

    def claim(values: Floats, others: float = 1.0) -> xr.Dataset:
        # what the first token carries leaks at 1/width into the others, as in the package's allowance
        leak = others * 2 / width * tokens / values * (back > 0)
        return said(grad_variance=values).assign(grad_variance_allowance=("block", np.hypot(finite, leak)))

    closed = np.array([last(x=1.0, sigma=1.0, T=tokens, l=n) for n in back])
    assert np.allclose(closed, every[-1])
    for token in range(tokens):
        assert agrees(claim(every[token], float(token > 0)), table(token))
    assert not agrees(claim(np.ones(depth + 1)), table(tokens - 1))  # nothing lost
    if width > 64:  # the allowance of the narrowest network would let it pass
        assert not agrees(claim(np.ones(depth + 1), 0.0), table(0))  # nothing gathered
    total = float(formula(p, "first", "value")(x=float(tokens)))
    assert abs(every[0][0] / total - 1) < 2 * float(np.sqrt(every[1:, 0].sum() * tokens))  # by Cauchy-Schwarz


@pytest.mark.parametrize("placement", ["postnorm", "spannorm"])
@widths
def test_swiglu(width: int, placement: str) -> None:
    """Proposition 11: growth by (1 + chi s_f)/(1 + s_f) a block, identical tokens; chi = 1 is rejected."""
    table = network(placement, DEPTH, width, 31, IDENTICAL, activation="swiglu")
    factor = formula(p11_swiglu.PROPOSITION, "post" if placement == "postnorm" else "span")
    skip = 0.25 if placement == "postnorm" else 0.5
    back = np.arange(DEPTH, -1, -1)
    for chi, right in ((swiglu_ratio(), True), (1.0, False), (1.5, False)):
        claim = said(width, skip, variance=np.ones(DEPTH + 1), grad_variance=factor(chi=chi, s_f=1.0) ** back)
        if right or width > 64 or chi == 1.0:
            assert agrees(claim, table) is right
