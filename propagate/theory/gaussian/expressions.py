"""An activation as functions of arrays, made from its expression: value, slope, and how to average them."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from propagate.activations import Activation
from propagate.expressions import form, symbol
from propagate.model import ModelError
from propagate.theory.gaussian import quadrature
from propagate.theory.gaussian.panels import Kinked, mean_square
from propagate.theory.gaussian.quadrature import Array, Elementwise

PANELS = (1.6, 0.8, 0.4, 0.2, 0.1)
RESOLVED = 1e-10  # relative change of a mean square, when panels are halved
DIED_OUT = 1e-12  # of the squares of Hermite coefficients, where a series ends; a tanh's are 4e-13


class Functions(NamedTuple):
    """Of an activation, or of what a gated one does to its gate.

    Attributes:
        value, slope: functions of arrays.
        kinked: both with their derivatives, kinks and the panels that resolve them.
        smooth: whether Hermite series of both end as early as that of a tanh.
    """

    value: Elementwise
    slope: Elementwise
    kinked: tuple[Kinked, Kinked]
    smooth: bool


@lru_cache(maxsize=256)
def functions(activation: Activation) -> Functions:
    """What theory evaluates of an activation.

    Raises:
        ModelError: for one that changes too fast for the quadrature.

    Example:
        >>> from propagate.activations import as_activation
        >>> softplus = functions(as_activation("softplus"))
        >>> softplus.slope(np.array([-1000.0, 0.0, 1000.0])).round(9).tolist(), softplus.smooth
        ([0.0, 0.5, 1.0], True)
    """
    parts = form(activation)
    value, slope, curvature = (_function(e, parts.straight) for e in (parts.value, parts.slope, parts.curvature))
    if parts.straight is not None:
        value = _straightened(value, slope, parts.straight)
    value.__name__, slope.__name__ = activation.name, f"{activation.name}_slope"
    panel = _panel(activation, value, slope, parts.kinks)
    kinked = Kinked(value, slope, parts.kinks, panel), Kinked(slope, curvature, parts.kinks, panel)
    return Functions(value, slope, kinked, not parts.kinks and all(_ends(f) for f in (value, slope)))


def _function(expression: Any, straight: float | None) -> Elementwise:
    import sympy

    raw = sympy.lambdify(symbol(), expression, ["scipy", "numpy"])

    def at(z: Array) -> Array:
        z = np.asarray(z, dtype=float)
        with np.errstate(all="ignore"):  # of cases that do not hold
            found = raw(z if straight is None else z.clip(-straight, straight))
        return np.asarray(found * np.ones_like(z))

    return at


def _straightened(value: Elementwise, slope: Elementwise, straight: float) -> Elementwise:
    """A straight line beyond its end."""

    def at(z: Array) -> Array:
        beyond = np.asarray(z) - np.clip(z, -straight, straight)
        found = value(z)
        return np.asarray(found + beyond * slope(z)) if np.any(beyond) else found

    return at


def _panel(activation: Activation, value: Elementwise, slope: Elementwise, kinks: tuple[float, ...]) -> float:
    """The longest panels that resolve the activation and its slope."""
    for panel in PANELS:
        pairs = [
            [mean_square(Kinked(f, f, kinks, length), variance) for length in (panel, panel / 2)]
            for f in (value, slope)
            for variance in (1.0, 64.0)
        ]
        if all(abs(whole - half) <= RESOLVED * half for whole, half in pairs):
            return panel
    raise ModelError(
        f"activation {activation.name!r} must change slowly enough for theory's quadrature, whose panels are no shorter"
        f" than {PANELS[-1]:g}, got {activation.expression}"
    )


def _ends(f: Elementwise) -> bool:
    """Whether the coefficients that a series allows for at variance 1 have died out at its end, as then at others."""
    found = quadrature.coefficients(f, np.ones(1), ending=False)[0]
    return bool((found[-8:] ** 2).max() <= DIED_OUT * math.fsum(found**2))
