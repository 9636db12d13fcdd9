"""Measured training runs as evidence: losses by architecture and rate, with standard errors over seeds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

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
        stable: the largest rate up to which every rate trains, from the smallest that does; 0 if none trains.
        runs: how many were made for it.
    """

    lr: float
    loss: float
    error: float
    stable: float
    runs: int


def losses(cell: xr.Dataset) -> xr.DataArray:
    """The last held-out loss over (lr, seed) of the rates that were run; of a run that diverged the first."""
    first, last = cell.held_out_loss.sel(share=0.0), cell.held_out_loss.sel(share=1.0)
    found: xr.DataArray = last.where(np.isfinite(last), first).dropna("lr", how="all").dropna("seed", how="all")
    return found


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
    found = losses(cell)
    mean, seeds = found.mean("seed"), found.sizes["seed"]
    lr = float(mean.idxmin("lr"))
    at = found.sel(lr=lr).values
    error = float(np.std(at, ddof=1) / np.sqrt(seeds))
    trains = (mean < float(cell.unigram_loss) - TRAINS).values
    rates = mean.lr.values
    stable, begun = 0.0, False
    for rate, does in zip(rates, trains, strict=True):
        if begun and not does:
            break
        begun, stable = begun or does, rate if does else stable
    return Best(lr, float(mean.min()), error, float(stable), int(np.isfinite(found).sum()))
