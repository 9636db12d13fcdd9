"""Gaussian expectations from concrete vectors: a third route, at dimensions and token numbers too many to enumerate.

The weights are paired as in `proofs.wick`; then every sum is done with numbers, the vectors being arrays with the
prescribed Gram matrix. So the contraction with symbolic dimensions, and with it the dependence on the number of tokens,
is checked at 2, 3 and 5 tokens.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import sympy as sp
from numpy.typing import NDArray

from proofs import axioms
from proofs.domain import Point, value_at
from proofs.names import Named
from proofs.steps import Equality, Witness
from proofs.vocabulary import Use
from proofs.wick import (
    Delta,
    Moment,
    brute_force,
    expectation,
    factors_of,
    latex,
    needed,
    occurs,
    pair_weights,
    with_gram,
)

TOKENS = (2, 3, 5)
WIDTHS = (5, 6, 7)
Array = NDArray[np.float64]


def contracted(moment: Moment, point: Point) -> float:
    """The moment at concrete dimensions."""
    sizes = {index: int(value_at(size, point)) for index, size in moment.sums}
    vectors: dict[sp.IndexedBase, Array] = {}
    for rows in (r for r in moment.rows if occurs(r.base, moment.summand)):
        entries = with_gram(rows, point)
        vectors[rows.base] = np.zeros([max(position) for position in zip(*entries, strict=True)])
        for (row, column), entry in entries.items():
            vectors[rows.base][row - 1, column - 1] = float(entry)
    paired = (pair_weights(term, moment.weights) for term in sp.Add.make_args(sp.expand(moment.summand)))
    terms = (term for expression in paired for term in sp.Add.make_args(sp.expand(expression)))
    return float(sum(_term(term, sizes, vectors, point) for term in terms))


def _term(
    term: sp.Expr, sizes: Mapping[sp.Symbol, int], vectors: Mapping[sp.IndexedBase, Array], point: Point
) -> float:
    """One product of deltas and vector entries, summed over its indices: a delta makes two indices one."""
    factors = list(factors_of(term))
    scale = value_at(sp.prod(f for f in factors if not isinstance(f, sp.Indexed | Delta)), point)
    same: dict[sp.Basic, sp.Basic] = {index: index for index in sizes}

    def root(index: sp.Basic) -> sp.Basic:
        while same.get(index, index) != index:
            index = same[index]
        return index

    for delta in (f for f in factors if isinstance(f, Delta)):
        first, second = map(root, delta.args)
        if first == second:
            continue
        if first in sizes:
            same[first] = second
        elif second in sizes:
            same[second] = first
        else:
            return 0.0
    letters: dict[sp.Basic, int] = {}
    operands: list[object] = []
    for entry in (f for f in factors if isinstance(f, sp.Indexed)):
        array, axes = vectors[entry.base], []
        for axis, index in reversed(list(enumerate(map(root, entry.indices)))):
            if index in sizes:
                axes.insert(0, letters.setdefault(index, len(letters)))
            else:
                array = array.take(int(index) - 1, axis=axis)
        operands += [array, axes]
    free = {root(index) for index in sizes} & set(sizes) - set(letters)
    counted = np.prod([sizes[index] for index in free], dtype=float)
    summed = np.einsum(*operands, [], optimize="greedy") if operands else 1.0
    return float(scale) * float(counted) * float(summed)


def step(
    moment: Moment,
    claimed: sp.Expr,
    reason: str,
    label: str,
    sizes: Mapping[sp.Symbol, int],
    name: str = "",
    points: int = 1,
    uses: tuple[Use, ...] = (),
) -> Equality:
    """The claim that the moment, called `label`, equals `claimed`.

    Contracted symbolically, enumerated at small `sizes`, summed with concrete vectors at several dimensions.
    """
    return Equality(
        left=Named(label, expectation(moment), latex(moment)),
        right=claimed,
        reason=reason,
        name=name,
        uses=((axioms.WICK,) if moment.weights else ()) + uses,
        witnesses=witnesses(moment, sizes, points),
    )


def witnesses(moment: Moment, sizes: Mapping[sp.Symbol, int], points: int = 1) -> tuple[Witness, ...]:
    """The enumeration at `sizes`, and the sums at several dimensions and numbers of tokens."""
    tokens = {s for rows in moment.rows for s in sp.sympify(rows.count).free_symbols}
    symbols = {s for _, size in moment.sums for s in sp.sympify(size).free_symbols}
    several = [{s: t if s in tokens else w for s in symbols} for t, w in zip(TOKENS, WIDTHS, strict=True)]
    return (
        Witness(lambda at: brute_force(moment, at), needed(moment), sizes, points=points),
        *(Witness(lambda at: contracted(moment, at), needed(moment), size, digits=10) for size in several if symbols),
    )
