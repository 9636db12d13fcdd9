"""What SymPy can tell: that an expression vanishes, that it is not negative, that it grows, that it is smooth."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import sympy as sp

from proofs.domain import Quantity

ENTIRE = (sp.exp, sp.sin, sp.cos, sp.sinh, sp.cosh, sp.tanh, sp.atan, sp.erf)


def vanishes(expression: sp.Expr) -> bool:
    """Whether SymPy reduces the expression to zero, cheapest rewriting first; none of them is forced.

    Logarithms and powers come apart only where the symbols' declared signs, which agree with their ranges, allow it.
    """
    rewritings: tuple[Callable[[sp.Expr], sp.Expr], ...] = (
        sp.expand,
        lambda e: sp.cancel(sp.together(e)),
        lambda e: sp.simplify(e.rewrite(sp.asin)) if e.has(sp.acos) else e,
        sp.simplify,
        lambda e: sp.simplify(sp.gammasimp(sp.expand_func(e))),
        lambda e: sp.simplify(sp.expand_log(sp.powdenest(e))),
    )
    return any(rewrite(expression) == 0 for rewrite in rewritings)


def reduced(expression: sp.Expr) -> sp.Expr:
    """The expression in one piece: cancelled if it is rational, else simplified."""
    return sp.cancel(sp.together(expression)) if expression.is_rational_function() else sp.simplify(expression)


def nonnegative(expression: sp.Expr, quantities: tuple[Quantity, ...], strict: bool) -> bool:
    """The sign inside the domain: in the charts' positive variables, numerator and denominator show their signs."""
    # An integer's range includes its ends even in a strict claim: its chart's variable may be zero.
    signs = [{"nonnegative": True} if q.integer else {"positive": True} for q in quantities]
    charts = {q.symbol: q.chart(sp.Symbol(f"u_{i}", **signs[i])) for i, q in enumerate(quantities)}
    inside = sp.sympify(expression).subs(charts, simultaneous=True)
    return any(bool(e.is_positive if strict else e.is_nonnegative) for e in _rewritten(inside))


def _rewritten(inside: sp.Expr) -> Iterator[sp.Expr]:
    """Forms whose sign is the expression's, the cheapest first."""
    yield inside
    rational = inside.is_rational_function()
    together = sp.together(inside)
    numerator, denominator = sp.fraction(sp.cancel(together) if rational else together)
    if denominator.is_negative:
        numerator, denominator = -numerator, -denominator
    if denominator.is_positive:
        yield sp.expand(numerator)
        yield sp.factor(numerator)
    if not rational:
        yield together
        yield sp.factor(together)
        squares = {u: u**2 for u in inside.free_symbols if u.is_nonnegative}  # every sign is kept, and roots go
        yield sp.factor(sp.together(inside.subs(squares, simultaneous=True)))


def definite(expression: sp.Expr, quantities: tuple[Quantity, ...]) -> bool:
    """Whether the expression has one sign, and no zero, inside the domain."""
    return nonnegative(expression, quantities, True) or nonnegative(-expression, quantities, True)


def smooth(expression: sp.Expr, quantities: tuple[Quantity, ...]) -> bool:
    """Whether the expression is built so that it has neither a pole nor a branch point inside the domain.

    A derivative's sign says nothing across a pole: atan(1/(10-x)) grows wherever it is smooth, and is negative past 10.
    """
    for part in sp.preorder_traversal(expression):
        if part.is_Atom or part.is_Add or part.is_Mul or isinstance(part, ENTIRE):
            continue
        if isinstance(part, sp.asin | sp.acos):
            if not nonnegative(1 - part.args[0] ** 2, quantities, True):
                return False
        elif isinstance(part, sp.log | sp.gamma):
            if not nonnegative(part.args[0], quantities, True):
                return False
        elif part.is_Pow:
            base, exponent = part.as_base_exp()
            if exponent.is_Integer:
                fine = exponent > 0 or definite(base, quantities)
            else:
                fine = nonnegative(base, quantities, True)
            if not fine:
                return False
        else:
            return False
    return True


def regular(expression: sp.Expr, quantities: tuple[Quantity, ...]) -> bool:
    """Whether no integrand has a pole or a branch point between its limits, wherever in their ranges the others are.

    SymPy integrates across poles without a word: 1/(t - x) from 7 to 8 has a logarithm for every x but those between.
    """
    for integral in expression.atoms(sp.Integral):
        inside, inner = integral.function, list(quantities)
        inside = inside.xreplace({other: sp.Dummy() for other in inside.atoms(sp.Integral)})  # each is looked at alone
        for variable, *ends in integral.limits:
            if len(ends) != 2:
                return False
            between = Quantity(sp.Dummy(positive=True), "between the limits")
            inside = inside.subs(variable, Quantity(variable, "", *ends).chart(between.symbol))
            inner.append(between)
        if not smooth(inside, tuple(inner)):
            return False
    return True


def grows_from_nonnegative(
    f: sp.Expr, along: sp.Symbol, quantities: tuple[Quantity, ...], strict: bool, depth: int = 4
) -> bool:
    """f >= 0 because f is so at the low end of `along` and its derivative is so everywhere, the same way if need be.

    Only for an f that is smooth on the way, from a low end that is a number.
    """
    if nonnegative(f, quantities, strict):
        return True
    quantity = next(q for q in quantities if q.symbol == along)
    if depth == 0 or quantity.low == -sp.oo or not smooth(f, quantities):
        return False
    rest = tuple(q for q in quantities if q.symbol != along)
    numerator, denominator = sp.fraction(sp.together(f))
    if denominator != 1 and nonnegative(denominator, quantities, True):  # only the numerator's sign matters
        return grows_from_nonnegative(sp.expand(numerator), along, quantities, strict, depth - 1)
    start = sp.simplify(f.subs(along, quantity.low))
    return nonnegative(start, rest, strict and quantity.integer) and grows_from_nonnegative(
        sp.simplify(sp.diff(f, along)), along, quantities, strict, depth - 1
    )
