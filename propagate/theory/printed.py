"""Equations as they are printed: fractions of long numbers as decimals, and in LaTeX."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

PLAIN, DIGITS = 100, 4  # largest part of a fraction that is printed as it is; digits of decimals in place of others
ROUNDED = "Decimals of four digits are rounded."


def printed(equations: Sequence[Any]) -> list[Any]:
    """With decimals of four digits where a fraction's numbers are long.

    Example:
        >>> import sympy
        >>> q, out = sympy.symbols("q out")
        >>> printed([sympy.Eq(out, sympy.Rational(130321, 130682) * q + q**2 / 3)])[0].rhs
        q**2/3 + 0.9972*q
    """
    import sympy

    return [sympy.Eq(each.lhs, each.rhs.xreplace(_decimals(each.rhs)), evaluate=False) for each in equations]


def notes(equations: Sequence[Any]) -> list[str]:
    """What is to be said of the printed ones: where a decimal is not the whole number that it stands for.

    Example:
        >>> import sympy
        >>> out = sympy.Symbol("out")
        >>> notes([sympy.Eq(out, sympy.Rational(1, 128))]), notes([sympy.Eq(out, sympy.Rational(1, 200))])
        (['Decimals of four digits are rounded.'], [])
    """
    import sympy

    found = [pair for each in equations for pair in _decimals(each.rhs).items()]
    return [ROUNDED] * any(sympy.Rational(str(value)) != number for number, value in found)


def latex(equation: Any) -> str:
    """Aligned at its sign; places of streams as subscripts, q_{12}', which SymPy does for names without a prime.

    Example:
        >>> import sympy
        >>> print(latex(sympy.Eq(sympy.Symbol("q12'"), sympy.Symbol("a_1"))))
        q_{12}' &= a_{1}
    """
    import sympy

    left, right = sympy.latex(equation.lhs), sympy.latex(equation.rhs)
    return re.sub(r"(?<=[a-z])(\d+)'$", r"_{\1}'", left) + f" &= {right}"


def _decimals(expression: Any) -> dict[Any, Any]:
    """The numbers of an expression that are long as fractions, with decimals to print in their place."""
    import sympy

    long = (number for number in expression.atoms(sympy.Rational) if max(abs(number.p), number.q) > PLAIN)
    return {number: sympy.Float(number, DIGITS) for number in long if number.q > 1 or abs(number) >= 10**DIGITS}
