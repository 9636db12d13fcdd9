"""Names on paper: a piece of LaTeX bound to the expression, or the expectation, that it stands for."""

from __future__ import annotations

from typing import Any

import sympy as sp
from sympy.core.symbol import Str


class Named(sp.Expr):
    """An expression under its name: prints as the name, computes as the expression.

    Being part of a claim, a name cannot be exchanged without changing what is claimed. `shown` is how the definition
    prints where that is not the expression itself (an expectation, before it was computed).
    """

    is_commutative = True

    def __new__(cls, name: str | Str, value: sp.Expr, shown: str | Str = "") -> Named:
        return sp.Expr.__new__(cls, Str(str(name)), sp.sympify(value), Str(str(shown)))

    @property
    def name(self) -> str:
        """The LaTeX."""
        return str(self.args[0])

    @property
    def value(self) -> sp.Expr:
        """What the name stands for."""
        return self.args[1]

    @property
    def definition(self) -> str:
        """The right side of the name's definition, in LaTeX."""
        return str(self.args[2]) or sp.latex(self.value)

    @property
    def free_symbols(self) -> set[sp.Symbol]:
        """The symbols of what it stands for."""
        return self.value.free_symbols

    def doit(self, **hints: Any) -> sp.Expr:
        """What it stands for."""
        return self.value.doit(**hints)

    def _latex(self, printer: Any) -> str:
        return self.name

    def _sympystr(self, printer: Any) -> str:
        return self.name


def unfold(expression: Any) -> sp.Basic:
    """The expression with every name replaced by what it stands for."""
    expression = sp.sympify(expression)
    if not expression.has(Named):
        return expression
    return expression.replace(lambda e: isinstance(e, Named), lambda e: unfold(e.value))


def names_in(*expressions: sp.Basic) -> tuple[Named, ...]:
    """Every name that occurs, those inside definitions included, in order of appearance."""
    found: dict[Named, None] = {}
    for expression in expressions:
        for part in sp.preorder_traversal(sp.sympify(expression)):
            if isinstance(part, Named):
                found.setdefault(part)
    return tuple(found)
