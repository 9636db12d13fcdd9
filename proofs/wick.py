"""Expectations over Gaussian weights by Wick's (Isserlis') theorem, with symbolic dimensions.

A moment is a product of indexed symbols summed over indices: weights W[i, j] (independent centred Gaussians), and
deterministic rows x[t, j] known only through their Gram matrix, sum_j x[t, j] x[s, j] = size * gram(t, s). The
expectation of the weights is the sum over all pairings of E[W_ij W_kl] = variance * delta_ik delta_jl; the sums are
then contracted against the Kronecker deltas by SymPy. Nothing is assumed about the dimensions, so finite-width terms
come out exactly.

`brute_force` computes the same number without pairings or deltas: it enumerates every index at small dimensions and
uses the moments of one Gaussian variable. `proofs.tensors` computes it from concrete vectors at several dimensions and
numbers of tokens, too many to enumerate. Each step built here is checked against both.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import mpmath
import sympy as sp
from sympy.concrete.delta import deltasummation

from proofs.domain import Point, value_at

Index: TypeAlias = sp.Symbol | int
Delta = sp.KroneckerDelta


@dataclass(frozen=True)
class Weights:
    """A matrix of independent centred Gaussians, written `base[i, j]`."""

    base: sp.IndexedBase
    variance: sp.Expr


@dataclass(frozen=True)
class Rows:
    """Deterministic vectors `base[t, j]` of length `size`; sum_j base[t, j] base[s, j] = size * gram(t, s)."""

    base: sp.IndexedBase
    size: sp.Expr
    gram: Callable[[Index, Index], sp.Expr]
    count: sp.Expr | int = 2


@dataclass(frozen=True)
class Moment:
    """E[ sum over `sums` of `summand` ]; features are summed before tokens."""

    summand: sp.Expr
    sums: tuple[tuple[sp.Symbol, sp.Expr], ...]
    weights: tuple[Weights, ...] = ()
    rows: tuple[Rows, ...] = ()


def indices(names: str) -> tuple[sp.Symbol, ...]:
    """Integer index symbols."""
    return sp.symbols(names, integer=True, seq=True)


def exchangeable(variance: sp.Expr, covariance: sp.Expr) -> Callable[[Index, Index], sp.Expr]:
    """The Gram matrix of exchangeable tokens: `variance` on the diagonal, `covariance` off it."""
    return lambda t, s: covariance + (variance - covariance) * Delta(t, s)


def pairings(items: list[sp.Expr]) -> Iterator[tuple[tuple[sp.Expr, sp.Expr], ...]]:
    """All ways to split the items into pairs; none when their number is odd."""
    if not items:
        yield ()
        return
    first, rest = items[0], items[1:]
    for k, partner in enumerate(rest):
        for others in pairings(rest[:k] + rest[k + 1 :]):
            yield ((first, partner), *others)


def factors_of(term: sp.Expr) -> Iterator[sp.Expr]:
    """The factors of a product, integer powers of an indexed symbol or a delta written out."""
    for factor in sp.Mul.make_args(term):
        base, exponent = factor.as_base_exp()
        if isinstance(base, sp.Indexed | Delta) and exponent.is_Integer and exponent > 0:
            yield from [base] * int(exponent)
        else:
            yield factor


def pair_weights(term: sp.Expr, weights: tuple[Weights, ...]) -> sp.Expr:
    """Isserlis: the expectation of one product over every family of weights, the sums left in place."""
    factors = list(factors_of(term))
    result = sp.Integer(1)
    for family in weights:
        mine = [f for f in factors if isinstance(f, sp.Indexed) and f.base == family.base]
        factors = [f for f in factors if f not in mine]
        result *= sum(
            (
                sp.prod(family.variance * sp.prod(map(Delta, a.indices, b.indices)) for a, b in pairs)
                for pairs in pairings(mine)
            ),
            sp.Integer(0),
        )
    return result * sp.prod(factors)


def _gram(pair: list[sp.Expr], rows: tuple[Rows, ...]) -> sp.Expr:
    """sum_j x[t, j] x[s, j], once the two factors are known to share j."""
    for family in rows:
        if all(isinstance(f, sp.Indexed) and f.base == family.base for f in pair):
            return family.size * family.gram(pair[0].indices[0], pair[1].indices[0])
    raise ValueError(f"no Gram matrix for {pair}")


def _sum_over(term: sp.Expr, index: sp.Symbol, size: sp.Expr, rows: tuple[Rows, ...]) -> sp.Expr:
    """One sum of one product: against a delta if there is one, else through a Gram matrix, else a count."""
    factors = list(factors_of(term))
    bound = [f for f in factors if f.has(index)]
    free = sp.prod(f for f in factors if not f.has(index))
    if not bound:
        return free * size
    if any(isinstance(f, Delta) for f in bound):
        return free * deltasummation(sp.prod(bound), (index, 1, size), no_piecewise=True)
    if len(bound) == 2:
        return free * _gram(bound, rows)
    raise ValueError(f"cannot sum {sp.prod(bound)} over {index}")


def expectation(moment: Moment) -> sp.Expr:
    """The moment as an expression in the dimensions, variances and Gram entries."""
    expression = sp.Add(*(pair_weights(t, moment.weights) for t in sp.Add.make_args(sp.expand(moment.summand))))
    for index, size in moment.sums:
        terms = sp.Add.make_args(sp.expand(expression))
        expression = sp.Add(*(_sum_over(t, index, size, moment.rows) for t in terms))
    return sp.factor(sp.expand(expression))


def _gaussian_moment(power: int, variance: mpmath.mpf) -> mpmath.mpf:
    """E[w^power] for a centred Gaussian: (power - 1)!! variance^(power/2), zero for odd powers."""
    return mpmath.mpf(0) if power % 2 else mpmath.fac2(power - 1) * variance ** (power // 2)


def with_gram(rows: Rows, point: Point) -> Mapping[tuple[int, int], mpmath.mpf]:
    """Concrete vectors with the prescribed Gram matrix, by Cholesky; their length must be at least their number."""
    size, count = int(value_at(rows.size, point)), int(value_at(sp.sympify(rows.count), point))
    gram = mpmath.matrix(count, count)
    for t, s in itertools.product(range(count), repeat=2):
        gram[t, s] = size * value_at(sp.sympify(rows.gram(t + 1, s + 1)), point)
    lower = mpmath.cholesky(gram)
    return {(t + 1, j + 1): lower[t, j] if j < count else mpmath.mpf(0) for t in range(count) for j in range(size)}


def occurs(base: sp.IndexedBase, expression: sp.Expr) -> bool:
    return any(indexed.base == base for indexed in expression.atoms(sp.Indexed))


def brute_force(moment: Moment, point: Point) -> mpmath.mpf:
    """The same number at concrete dimensions, by enumerating every index."""
    variances = {w.base: value_at(w.variance, point) for w in moment.weights if occurs(w.base, moment.summand)}
    entries = {r.base: with_gram(r, point) for r in moment.rows if occurs(r.base, moment.summand)}
    ranges = [range(1, int(value_at(size, point)) + 1) for _, size in moment.sums]
    names = [index for index, _ in moment.sums]
    total = mpmath.mpf(0)
    for term in sp.Add.make_args(sp.expand(moment.summand)):
        factors = list(factors_of(term))
        symbols = sorted(
            (f for f in factors if isinstance(f, sp.Indexed | Delta)), key=lambda f: isinstance(f, sp.Indexed)
        )
        scale = value_at(sp.prod(f for f in factors if not isinstance(f, sp.Indexed | Delta)), point)
        for values in itertools.product(*ranges):
            at = dict(zip(names, values, strict=True))
            total += scale * _expected_product(symbols, at, variances, entries)
    return total


def _expected_product(
    symbols: list[sp.Expr],
    at: Mapping[sp.Symbol, int],
    variances: Mapping[sp.IndexedBase, mpmath.mpf],
    entries: Mapping[sp.IndexedBase, Mapping[tuple[int, int], mpmath.mpf]],
) -> mpmath.mpf:
    """The expectation of one product of entries whose indices are all numbers."""
    powers: Counter[tuple[sp.IndexedBase, int, int]] = Counter()
    value = mpmath.mpf(1)
    for symbol in symbols:
        where = [at[i] if i in at else int(i) for i in (symbol.args if isinstance(symbol, Delta) else symbol.indices)]
        if isinstance(symbol, Delta):
            if where[0] != where[1]:
                return mpmath.mpf(0)
        elif symbol.base in entries:
            value *= entries[symbol.base][where[0], where[1]]
        else:
            powers[symbol.base, where[0], where[1]] += 1
    if any(power % 2 for power in powers.values()):
        return mpmath.mpf(0)
    for (base, _, _), power in powers.items():
        value *= _gaussian_moment(power, variances[base])
    return value


def latex(moment: Moment) -> str:
    """The expectation as it is written before it is computed."""
    sums = ",".join(sp.latex(index) for index, _ in moment.sums)
    return rf"\mathbb E\Bigl[\textstyle\sum_{{{sums}}} {sp.latex(moment.summand)}\Bigr]"


def needed(moment: Moment) -> tuple[sp.Symbol, ...]:
    """Every declared quantity that the enumeration reads: dimensions, variances, Gram entries, scalar factors."""
    used = [w for w in moment.weights if occurs(w.base, moment.summand)]
    parts: list[sp.Expr] = [size for _, size in moment.sums] + [w.variance for w in used]
    for rows in (r for r in moment.rows if occurs(r.base, moment.summand)):
        parts += [rows.size, sp.sympify(rows.count), sp.sympify(rows.gram(1, 1)), sp.sympify(rows.gram(1, 2))]
    parts += [
        f for t in sp.Add.make_args(sp.expand(moment.summand)) for f in factors_of(t) if not isinstance(f, sp.Indexed)
    ]
    bound = {index for index, _ in moment.sums}
    found = set().union(*(sp.sympify(p).free_symbols for p in parts)) - bound
    return tuple(sorted(found, key=str))
