"""What is seen of one arm: numbers by step and, at probes, numbers or arrays; NaN where nothing was seen."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from propagate.tracing.training.plan import Plan

Columns = dict[str, NDArray[np.float64]]
BY_STEP = ("loss", "grad_norm")


def nothing_yet(plan: Plan) -> Columns:
    """Before the first step."""
    by_step = {name: np.full(plan.steps, np.nan) for name in BY_STEP}
    return by_step | {name: np.full((), np.nan) for name in ("diverged_at", "diverged_value")}


def add(columns: Columns, plan: Plan, step: int, seen: Columns) -> None:
    """What one probe has seen, at its place; other places stay NaN until they are seen."""
    for name, values in seen.items():
        if name not in columns:
            columns[name] = np.full((len(plan.probes), *values.shape), np.nan)
        columns[name][plan.probes.index(step)] = values


def alike(seen: list[Columns]) -> list[Columns]:
    """The same columns for all arms: NaN where one diverged before its first trace.

    Example:
        >>> first, second = alike([{"a": np.ones(2)}, {"b": np.zeros(3)}])
        >>> first["b"], list(second) == list(first)
        (array([nan, nan, nan]), True)
    """
    shapes = {name: values.shape for columns in seen for name, values in columns.items()}
    return [{name: one[name] if name in one else np.full(shapes[name], np.nan) for name in shapes} for one in seen]
