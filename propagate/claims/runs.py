"""Measured training runs as evidence: losses by architecture and rate, with standard errors over seeds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import xarray as xr

TRAINS = 0.1
"""Nats below the unigram loss from which on a network is said to train."""


@dataclass(frozen=True)
class Best:
    """The best rate of an architecture.

    Attributes:
        lr: with the lowest mean last held-out loss.
        loss, error: that mean over seeds, and its standard error.
        stable: its `largest_stable` rate; 0 if none trains.
        runs: how many were made for it.
    """

    lr: float
    loss: float
    error: float
    stable: float
    runs: int


def losses(table: xr.Dataset) -> xr.DataArray:
    """Last held-out losses; of a run that diverged its first; NaN of what was not run."""
    first, last = (table.held_out_loss.sel(share=share, drop=True) for share in (0.0, 1.0))
    found: xr.DataArray = last.where(np.isfinite(last), first)
    return found


def largest_stable(loss: Any, trains: Any, rates: Any) -> float:
    """From the rate with the lowest loss upwards, the last before one that does not train; NaN where none does.

    Example:
        >>> largest_stable([5.0, 4.0, 4.5, 6.0], [True, True, True, False], [1.0, 2.0, 4.0, 8.0])
        4.0
    """
    best = int(np.nanargmin(np.where(np.isfinite(loss), loss, np.inf)))
    if not trains[best]:
        return math.nan
    while best + 1 < len(rates) and trains[best + 1]:
        best += 1
    return float(rates[best])


def optimum(loss: Any, rates: Any) -> float:
    """Where the parabola through the lowest point and its neighbours is lowest; an edge, if the lowest point is one.

    Example:
        >>> float(optimum(np.array([4.0, 1.0, 0.0, 1.0]), np.arange(4.0)))
        2.0
    """
    if not np.isfinite(loss).any():
        return math.nan
    best = int(np.nanargmin(loss))
    if not 0 < best < len(loss) - 1 or not np.isfinite(loss[best - 1 : best + 2]).all():
        return float(rates[best])
    a, b, _ = np.polyfit(rates[best - 1 : best + 2] - rates[best], loss[best - 1 : best + 2], 2)
    return float(rates[best] - b / (2 * a)) if a > 0 else float(rates[best])


def cells(sweeps: xr.Dataset, **wanted: object) -> xr.Dataset:
    """Those whose coordinates are as wanted."""
    keep = np.ones(sweeps.sizes["cell"], dtype=bool)
    for name, value in wanted.items():
        keep &= sweeps[name].values == value
    return sweeps.isel(cell=np.flatnonzero(keep))


def one(sweeps: xr.Dataset, architecture: str, depth: int = 24, **wanted: object) -> xr.Dataset:
    """The cell of an architecture: trained on text, with warm-up, dense, unless something else is wanted.

    Raises:
        KeyError: if there is none, or more than one.
    """
    asked = {"architecture": architecture, "depth": depth, "warmup": 0.1, "text": "text", "experts": 0} | wanted
    found = cells(sweeps, **asked)
    if found.sizes["cell"] != 1:
        raise KeyError(f"{found.sizes['cell']} cells of {asked}")
    return found.isel(cell=0)


def best(cell: xr.Dataset) -> Best:
    """See `Best`."""
    found = losses(cell).dropna("lr", how="all").dropna("seed", how="all")
    mean, seeds = found.mean("seed"), found.sizes["seed"]
    lr = float(mean.idxmin("lr"))
    at = found.sel(lr=lr).values
    error = float(np.std(at, ddof=1) / np.sqrt(seeds))
    trains = (mean < float(cell.unigram_loss) - TRAINS).values
    stable = largest_stable(mean.values, trains, mean.lr.values)
    return Best(lr, float(mean.min()), error, stable if stable > 0 else 0.0, int(np.isfinite(found).sum()))
