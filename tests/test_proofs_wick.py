"""The contraction engine against Gaussian moments that are known exactly, and against enumeration."""

from __future__ import annotations

import dataclasses
import random

import mpmath
import pytest
import sympy as sp

from proofs import tensors, wick
from proofs.vocabulary import Domain, Quantity, check, value_at

n, m, q, c, sigma = sp.symbols("n m q c sigma", positive=True)
W, U, x = map(sp.IndexedBase, ("W", "U", "x"))
i, j, k, a, b, e, f = wick.indices("i j k a b e f")
WEIGHTS = (wick.Weights(W, sigma**2), wick.Weights(U, 1 / n))
ROWS = (wick.Rows(x, n, wick.exchangeable(q, c * q)),)
POINT = {n: 3, m: 2, q: mpmath.mpf(3) / 2, c: mpmath.mpf(1) / 3, sigma: mpmath.mpf(5) / 7}


def moment(summand: sp.Expr, *sums: tuple[sp.Symbol, sp.Expr]) -> wick.Moment:
    return wick.Moment(summand, sums, WEIGHTS, ROWS)


@pytest.mark.parametrize(("count", "expected"), [(0, 1), (2, 1), (4, 3), (6, 15), (8, 105), (3, 0), (5, 0)])
def test_number_of_pairings_is_the_double_factorial(count: int, expected: int) -> None:
    assert len(list(wick.pairings([sp.Integer(v) for v in range(count)]))) == expected


@pytest.mark.parametrize("power", range(9))
def test_moments_of_one_gaussian(power: int) -> None:
    expected = 0 if power % 2 else sp.factorial2(power - 1) * sigma**power
    assert sp.simplify(wick.expectation(moment(W[1, 1] ** power)) - expected) == 0


def test_trace_of_a_wishart_matrix_squared() -> None:
    """E tr (W W')^2 = sigma^4 n m (n + m + 1) for an m x n Gaussian matrix."""
    product = W[a, i] * W[b, i] * W[b, j] * W[a, j]
    found = wick.expectation(moment(product, (a, m), (b, m), (i, n), (j, n)))
    assert sp.simplify(found - sigma**4 * n * m * (n + m + 1)) == 0


def test_sixth_moment_of_a_chi_squared_sum() -> None:
    """E (sum_i W_i^2)^3 = sigma^6 n (n + 2)(n + 4)."""
    found = wick.expectation(moment(W[1, i] ** 2 * W[1, j] ** 2 * W[1, k] ** 2, (i, n), (j, n), (k, n)))
    assert sp.simplify(found - sigma**6 * n * (n + 2) * (n + 4)) == 0


def test_odd_moments_vanish() -> None:
    assert wick.expectation(moment(W[1, j] * x[1, j] * W[1, k] * x[1, k] * W[2, 1], (j, n), (k, n))) == 0


CASES = {
    "linear layer, two tokens": moment(W[1, j] * x[1, j] * W[1, k] * x[2, k], (j, n), (k, n)),
    "fourth moment, two tokens": moment(
        W[i, j] * x[1, j] * W[i, k] * x[2, k] * W[a, e] * x[1, e] * W[a, f] * x[2, f],
        (j, n),
        (k, n),
        (e, n),
        (f, n),
        (i, m),
        (a, m),
    ),
    "two layers": moment(
        U[i, a] * W[a, j] * x[1, j] * U[i, b] * W[b, k] * x[2, k], (j, n), (k, n), (a, m), (b, m), (i, n)
    ),
    "a delta in the summand": moment(
        (sp.KroneckerDelta(i, j) + W[i, j]) * x[1, j] * (sp.KroneckerDelta(i, k) + W[i, k]) * x[1, k],
        (j, n),
        (k, n),
        (i, n),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_contraction_agrees_with_enumeration(name: str) -> None:
    with mpmath.workdps(40):
        symbolic = value_at(wick.expectation(CASES[name]), POINT)
        assert mpmath.almosteq(symbolic, wick.brute_force(CASES[name], POINT), rel_eps=mpmath.mpf(10) ** -35)


def test_a_wrong_claim_is_rejected() -> None:
    """Negative control: the variance of a linear layer's output with n in place of n + 1 fails symbolically."""
    domain = Domain(
        (Quantity(n, "", 2, sp.oo, integer=True), Quantity(q, ""), Quantity(c, "", 0, 1), Quantity(sigma, ""))
    )
    right = tensors.step(CASES["linear layer, two tokens"], n * sigma**2 * c * q, "right", "", {n: 3})
    wrong = tensors.step(CASES["linear layer, two tokens"], (n + 1) * sigma**2 * c * q, "wrong", "", {n: 3})
    assert check(right, domain, random.Random(0)) is None
    assert check(wrong, domain, random.Random(0))


def test_a_wrong_contraction_is_caught_by_the_enumeration(monkeypatch: pytest.MonkeyPatch) -> None:
    """Were the engine to forget a pairing, the enumeration would disagree with the claim built from it."""
    monkeypatch.setattr(wick, "pairings", lambda items: list(_all(items))[:1])
    broken = wick.expectation(moment(W[1, 1] ** 4))
    domain = Domain((Quantity(sigma, ""),))
    refusal = check(
        tensors.step(moment(W[1, 1] ** 4), broken, "one pairing of three", "", {}), domain, random.Random(0)
    )
    assert broken == sigma**4
    assert "numeric" in (refusal or "")


_all = wick.pairings


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("size", [3, 5])
def test_contraction_agrees_with_concrete_vectors(name: str, size: int) -> None:
    """The third route, at sizes too many to enumerate; with one dimension changed it disagrees."""
    point = {**POINT, n: size, m: 4}
    symbolic = float(value_at(wick.expectation(CASES[name]), point))
    assert tensors.contracted(CASES[name], point) == pytest.approx(symbolic, rel=1e-12)
    assert tensors.contracted(CASES[name], {**point, n: size + 1}) != pytest.approx(symbolic, rel=1e-3)


def test_a_wrong_number_of_tokens_is_caught() -> None:
    """A claim that holds for two tokens alone passes the enumeration at two, and fails at three and five."""
    t, s = wick.indices("t s")
    T = sp.Symbol("T", positive=True)
    rows = (wick.Rows(x, n, wick.exchangeable(q, c * q), T),)
    total = wick.Moment(x[t, j] * x[s, j] / n, ((j, n), (t, T), (s, T)), (), rows)
    domain = Domain(
        (
            Quantity(n, "", 2, sp.oo, integer=True),
            Quantity(T, "", 2, sp.oo, integer=True),
            Quantity(q, ""),
            Quantity(c, "", 0, 1),
        )
    )
    right = tensors.step(total, T * q * (1 + (T - 1) * c), "right", "S", {n: 2, T: 2})
    wrong = dataclasses.replace(right, left=2 * q * (1 + c), right=2 * q * (1 + c))
    assert check(right, domain, random.Random(0)) is None
    assert "another route" in (check(wrong, domain, random.Random(0)) or "")
    alone = dataclasses.replace(wrong, witnesses=wrong.witnesses[:2])
    assert check(alone, domain, random.Random(0)) is None
