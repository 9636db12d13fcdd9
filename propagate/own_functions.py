"""The text of the functions that a user registered for descriptions of one's own, which decide what a network does."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from propagate.identity import described
from propagate.model import Model
from propagate.outline import outline
from propagate.placement import Placement


def functions_of(model: Model) -> dict[str, Any]:
    """Of the sublayers that a network's placement applies, and of its norms; of the package's own nothing.

    Example:
        >>> functions_of(Model("spannorm", depth=4))
        {}
    """
    import propagate as pg

    norms = {type(model.at(index).norm) for index in range(1, model.depth + 1)}
    registries = {"theory": pg.theory.norm_scale, "montecarlo": pg.montecarlo.norm}
    return functions_of_placement(model.equations) | _told(norms, registries)


def functions_of_placement(placement: Placement) -> dict[str, Any]:
    """The functions for the descriptions that its blocks apply."""
    import propagate as pg

    calls = [call for index in (1, 2, 3) for call in outline(placement, 3, index)]
    kinds = {type(call.description) for call in calls if call.description is not None}
    return _told(kinds, {"theory": pg.theory.apply, "montecarlo": pg.montecarlo.apply})


def _told(kinds: Iterable[type], registries: dict[str, Any]) -> dict[str, Any]:
    return {
        f"propagate.{witness} of {kind.__qualname__}": described(function.registry.get(kind))
        for kind in sorted(kinds, key=lambda kind: kind.__qualname__)
        if kind.__module__.split(".")[0] != "propagate"
        for witness, function in registries.items()
    }
