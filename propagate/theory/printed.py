"""Equations as they are printed: fractions of long numbers as decimals, and in LaTeX."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

PLAIN, DIGITS = 100, 4  # largest part of a fraction that is printed as it is; digits of decimals in place of others
FULL, EXACT = 30, 1e-12  # digits of decimals before they are rounded, and how near a whole number is taken for it
ROUNDED = "Decimals of four digits are rounded."


def printed(equations: Sequence[Any]) -> list[Any]:
    """With decimals of four digits where a fraction's numbers are long.

    Example:
        >>> import sympy
        >>> q, out = sympy.symbols("q out")
        >>> printed([sympy.Eq(out, sympy.Rational(130321, 130682) * q + q**2 / 3)])[0].rhs
        q**2/3 + 0.9972*q

    Numbers that stand together are one number, also with pi or a root between them.
        >>> printed([sympy.Eq(out, (sympy.Rational(2617, 10_000) / sympy.pi + sympy.Rational(1, 4)) * q)])[0].rhs
        0.3333*q
    """
    import sympy

    return [sympy.Eq(each.lhs, _rounded(_decimal(each.rhs)), evaluate=False) for each in equations]


def notes(equations: Sequence[Any]) -> list[str]:
    """What is to be said of the printed ones: where a decimal is not the whole number that it stands for.

    Example:
        >>> import sympy
        >>> out = sympy.Symbol("out")
        >>> notes([sympy.Eq(out, sympy.Rational(1, 128))]), notes([sympy.Eq(out, sympy.Rational(1, 200))])
        (['Decimals of four digits are rounded.'], [])
    """
    import sympy

    numbers = [number for each in equations for number in _decimal(each.rhs).atoms(sympy.Float)]
    shown = [sympy.Float(str(sympy.Float(number, DIGITS)), FULL) for number in numbers]
    return [ROUNDED] * any(abs(seen / number - 1) > EXACT for seen, number in zip(shown, numbers, strict=True))


def latex(equation: Any) -> str:
    r"""Aligned at its sign; Greek letters and places of streams as SymPy has them for names without a prime.

    Example:
        >>> import sympy
        >>> print(latex(sympy.Eq(sympy.Symbol("gamma12'"), sympy.Symbol("gamma12"))))
        \gamma_{12}' &= \gamma_{12}
    """
    import sympy

    name = str(equation.lhs)
    prime = "'" * name.endswith("'")
    return f"{sympy.latex(sympy.Symbol(name.removesuffix(prime)))}{prime} &= {sympy.latex(equation.rhs)}"


def _decimal(expression: Any) -> Any:
    """With decimals in place of numbers that are long as fractions, and of what these make with numbers beside them."""
    import sympy
    from sympy.core.function import AppliedUndef

    if expression.is_Rational:
        size = max(abs(expression.p), expression.q)
        long = size > PLAIN and (expression.q > 1 or abs(expression) >= 10**DIGITS)
        return sympy.Float(expression, FULL) if long else expression
    if not expression.args:
        return expression
    parts = [_decimal(part) for part in expression.args]
    if not (expression.is_Add or expression.is_Mul):
        return expression.func(*parts)
    fixed = [part for part in parts if not part.free_symbols and not part.has(AppliedUndef)]
    if any(part.has(sympy.Float) for part in fixed):
        together = sympy.Float(expression.func(*fixed).evalf(FULL), FULL)
        near = sympy.Integer(round(together))
        whole = near if near and abs(together / near - 1) < EXACT else together
        return expression.func(whole, *(part for part in parts if part not in fixed))
    return expression.func(*parts)


def _rounded(expression: Any) -> Any:
    import sympy

    return expression.xreplace({number: sympy.Float(number, DIGITS) for number in expression.atoms(sympy.Float)})
