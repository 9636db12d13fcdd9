"""What every arm of a run has in common: how long, how much a step, how the rate goes, and when it is probed."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from propagate.checks import ModelError, choice, integer, number, shown

SCHEDULES = ("constant", "linear", "cosine")
MOST_STEPS, MOST_SEQUENCES = 10**7, 10**6


@dataclass(frozen=True)
class Plan:
    """The course of training.

    Attributes:
        steps: how many updates.
        batch: sequences a step.
        warmup: share of the steps over which the rate rises linearly to its peak, from 0 to below 1.
        schedule: what it does from there to the end: "constant", or "linear" or "cosine" down to 0.
        clip: the largest norm of the gradient of all parameters together; None does not clip.
        probes: updates made before a probe, in order, the first 0 and the last `steps` among them.
        traces: those of the probes at which the network is traced too; by default all.

    Raises:
        ModelError: for a value out of its range.

    Example:
        >>> plan = Plan(steps=100, batch=8, warmup=0.1, schedule="linear")
        >>> [round(plan.share(step), 6) for step in (0, 9, 10, 55, 99)], plan.probes
        ([0.1, 1.0, 1.0, 0.5, 0.011111], (0, 100))
    """

    steps: int
    batch: int
    warmup: float = 0.0
    schedule: str = "cosine"
    clip: float | None = 1.0
    probes: Any = ()
    traces: Any = None

    def __post_init__(self) -> None:
        integer("steps", self.steps, at_most=MOST_STEPS)
        integer("batch", self.batch, at_most=MOST_SEQUENCES)
        if number("warmup", self.warmup, positive=False) >= 1:
            raise ModelError(f"warmup must be a share of the steps below 1, got {shown(self.warmup)}")
        choice("schedule", self.schedule, SCHEDULES)
        if self.clip is not None:
            number("clip", self.clip, positive=True)
        traces = set() if self.traces is None else self._moments("traces")
        probes = tuple(sorted(self._moments("probes") | traces | {0, self.steps}))
        object.__setattr__(self, "probes", probes)
        object.__setattr__(self, "traces", probes if self.traces is None else tuple(sorted(traces)))

    def _moments(self, name: str) -> set[int]:
        given = getattr(self, name)
        if not isinstance(given, Collection) or isinstance(given, str):
            raise ModelError(f"{name} must be whole numbers of steps, got {shown(given)}")
        return {integer(name, step, at_least=0, at_most=self.steps) for step in given}

    def share(self, step: int) -> float:
        """Of the peak rate, in the update that step number `step` (from 0) makes."""
        rising = round(self.warmup * self.steps)
        if step < rising:
            return (step + 1) / rising
        gone = (step - rising) / (self.steps - rising)
        if self.schedule == "cosine":
            return 0.5 + 0.5 * math.cos(math.pi * gone)
        return 1 - gone if self.schedule == "linear" else 1.0
