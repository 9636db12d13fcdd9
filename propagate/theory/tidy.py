"""The form in which an expression is printed: exact numbers, and the shortest of a few cheap rewritings."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from functools import lru_cache
from typing import Any

LONG = 20  # operations above which SymPy's general simplification takes seconds
LONGER = 100  # and the search for common factors
DENOMINATOR, ROUNDING = 100_000, 2e-15  # of a fraction that a float stands for, and how near it is, relative to it


@lru_cache(maxsize=1024)
def tidy(expression: Any) -> Any:
    """Exact numbers for the floats of the equations, and the shortest form that is found without long searches.

    Example:
        >>> import sympy
        >>> a, b, c = sympy.symbols("a b c", positive=True)
        >>> tidy(a / (a + b) + b / (a + b) - (b - c) / sympy.sqrt(a + 0.5) + b / sympy.sqrt(a + 0.5))
        c/sqrt(a + 1/2) + 1
    """
    import sympy
    from sympy.core.function import AppliedUndef

    expression = sympy.sympify(expression)
    exact = expression.xreplace({f: _exact(f) for f in expression.atoms(sympy.Float)})
    if exact.is_Atom:
        return exact
    summed = _summed(exact)
    forms = [exact, summed]
    if sympy.count_ops(summed) <= LONGER:
        forms.append(sympy.factor_terms(summed))
    if exact.is_rational_function(*exact.free_symbols):
        cancelled = sympy.cancel(exact)
        forms += [cancelled, sympy.factor_terms(cancelled)]
    elif sympy.count_ops(summed) <= LONG:
        forms += [sympy.simplify(exact) if exact.has(sympy.Function) else _cancelled(exact), sympy.expand(exact)]
    if any(function.func.__name__.startswith("gate_") for function in exact.atoms(AppliedUndef)):
        forms.append(_by_averages(exact))
    return min(forms, key=sympy.count_ops)


def _exact(number: Any) -> Any:
    """The fraction that a float stands for, also where products of floats were rounded on the way to it."""
    import sympy

    near = Fraction(float(number)).limit_denominator(DENOMINATOR)
    if abs(float(near) - float(number)) <= ROUNDING * abs(float(number)):
        return sympy.Rational(near.numerator, near.denominator)
    return sympy.nsimplify(number, rational=True)


def unnamed(variance: Any, definitions: Iterable[Any]) -> Any:
    """1 where a variance is that of a stream over the very one that a definition names; otherwise as it is.

    Example:
        >>> import sympy
        >>> a, b, n = sympy.symbols("a b n", positive=True)
        >>> unnamed(a / n + b / n, [sympy.Eq(n, a + b)]), unnamed(a / n, [sympy.Eq(n, a + b)])
        (1, a/n)
    """
    import sympy

    names = {each.lhs: each.rhs for each in definitions if each.lhs in variance.free_symbols}
    return sympy.S.One if names and _cancelled(variance.xreplace(names)) == 1 else variance


def _summed(expression: Any) -> Any:
    """As a sum of products, in which like terms have met; what stands below a fraction line or a root stays whole."""
    import sympy

    sums = (power for power in expression.atoms(sympy.Pow) if power.base.is_Add)
    below = (power for power in sums if not (power.exp.is_Integer and power.exp > 0))
    stand_ins = {power: sympy.Dummy(positive=True) for power in below}
    total = sympy.expand(expression.xreplace(stand_ins))
    return total.xreplace({stand_in: power for power, stand_in in stand_ins.items()})


def _cancelled(expression: Any) -> Any:
    """As a fraction, in which roots are taken for symbols."""
    import sympy

    roots = {power for power in expression.atoms(sympy.Pow) if not power.exp.is_Integer}
    stand_ins = {root: sympy.Dummy() for root in roots}
    fraction = sympy.cancel(expression.xreplace(stand_ins))
    return fraction.xreplace({stand_in: root for root, stand_in in stand_ins.items()})


def _by_averages(expression: Any) -> Any:
    """As a sum over the averages over gates that it is linear in, each with a factored coefficient."""
    import sympy
    from sympy.core.function import AppliedUndef

    roots = {power for power in expression.atoms(sympy.Pow) if not power.exp.is_Integer}
    stand_ins = {part: sympy.Dummy() for part in expression.atoms(sympy.Function) | roots}
    averages = [stand_in for part, stand_in in stand_ins.items() if isinstance(part, AppliedUndef)]
    above, below = sympy.fraction(sympy.cancel(expression.xreplace(stand_ins)))
    coefficients = sympy.collect(sympy.expand(above), averages, evaluate=False)
    total = sum(average * sympy.factor(coefficient / below) for average, coefficient in coefficients.items())
    return sympy.sympify(total).xreplace({stand_in: part for part, stand_in in stand_ins.items()})
