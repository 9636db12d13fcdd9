"""What the stored measurements of training say: losses, which arms train, stable rates, words for captions."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from figures.training_record import read
from figures.training_rule import MARGIN
from propagate import plots
from propagate.claims.runs import largest_stable as stable_rate
from propagate.claims.runs import losses as losses

MEASURED = Path(__file__).resolve().parent / "measured"
STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}
"""97.5 % quantiles of Student's distribution, by the number of draws."""
DASHES: dict[float, Any] = {0.0: "-", 0.25: (0, (1, 1)), 0.5: (0, (4, 2)), 1.0: (0, (4, 1, 1, 1))}
"""Line styles by ScaleInit's exponent: without is solid, 1/2 dashed, as in every picture."""
NAMES = {
    "prenorm": "PreNorm",
    "postnorm": "PostNorm",
    "spannorm": "SpanNorm",
    "periln": "Peri-LN",
    "deepnorm": "DeepNorm",
    "layernormscaling": "LN-Scaling",
    "keel": "KEEL",
    "b2t": "B2T",
    "olmo2": "OLMo2",
    "residual": "ResiDual",
}
EXPONENTS = {0.0: "", 0.25: " + 1/4", 0.5: " + 1/2", 1.0: " + 1"}
LIMITS = """\
Small networks, a small vocabulary, few steps and old, religious English: what holds here need not hold of a model large
enough to be of use. To know more takes other text, ten times the width and a hundred times the steps."""


def stored(kind: str, folder: Path = MEASURED) -> xr.Dataset:
    """A file of `measure_training.py`, its numbers in double precision."""
    table = read(folder / f"training_{kind}.nc")
    return table.astype({name: float for name, held in table.data_vars.items() if held.dtype.kind == "f"})


def chosen(table: xr.Dataset, **fields: Any) -> xr.Dataset:
    """Those cells whose coordinates have these values."""
    keep = np.ones(table.sizes["cell"], bool)
    for name, value in fields.items():
        keep &= np.isclose(table[name], value) if isinstance(value, float) else (table[name] == value).to_numpy()
    return table.isel(cell=np.flatnonzero(keep))


def main_depth(table: xr.Dataset) -> int:
    """The depth at which there are most cells."""
    depths, counts = np.unique(table.depth, return_counts=True)
    return int(depths[counts.argmax()])


def label(cell: xr.Dataset) -> str:
    """Placement and exponent, in print."""
    return NAMES[str(cell.placement.item())] + EXPONENTS[round(float(cell.exponent), 4)]


def trains(table: xr.Dataset) -> xr.DataArray:
    """Whether the mean over seeds is below the plateau, by the rule's margin: 1 or 0, NaN of what was not run."""
    mean = losses(table).mean("seed")
    return (mean < table.unigram_loss - MARGIN).where(np.isfinite(mean))


def largest_stable(table: xr.Dataset) -> xr.DataArray:
    """From the best rate upwards, the last before one that does not train; NaN where none does."""
    mean, good = losses(table).mean("seed"), trains(table).fillna(0).astype(bool)

    return xr.apply_ufunc(stable_rate, mean, good, table.lr, input_core_dims=[["lr"]] * 3, vectorize=True)


def sensitivity(table: xr.Dataset) -> xr.DataArray:
    """Mean over rates of the loss, at most the first one, less that of the best rate (arXiv:2309.14322)."""
    first = table.held_out_loss.sel(share=0.0, drop=True)
    mean = np.minimum(losses(table), first).mean("seed")
    return mean.mean("lr") - mean.min("lr")


def best(table: xr.Dataset) -> tuple[xr.DataArray, xr.DataArray, xr.DataArray]:
    """The best rate, its mean loss over seeds, and that mean's standard error."""
    all_losses = losses(table)
    mean = all_losses.mean("seed")
    where = mean.argmin("lr")
    error = all_losses.std("seed", ddof=1) / np.sqrt(all_losses.notnull().sum("seed"))
    return table.lr[where], mean.min("lr"), error.isel(lr=where)


def wilson(hits: int, count: int) -> tuple[float, float]:
    """A share's 95 % interval.

    Example:
        >>> [round(end, 3) for end in wilson(9, 10)]
        [0.596, 0.982]
    """
    z = plots.CONFIDENCE
    share = hits / count
    middle = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    return middle - half, middle + half


def words(table: xr.Dataset) -> dict[str, Any]:
    """What captions say of the setting and of how much was run."""
    run = np.isfinite(table.held_out_loss.sel(share=0.0)).sum() if "lr" in table.dims else table.sizes["cell"]
    lost = int(np.isfinite(table.diverged_at).sum()) if "diverged_at" in table else 0
    kept = ("corpus", "vocabulary", "device", "precision", "batch", "tokens", "torch")
    found = {name: table.attrs.get(name, "unknown") for name in kept}
    more = {"draws": int(table.sizes["seed"]), "runs": int(run), "diverged": lost, "limits": LIMITS}
    widths = sorted({int(width) for width in table.width.values}) if "width" in table else []
    steps = sorted({int(steps) for steps in table.steps.values}) if "steps" in table else []
    more |= {"width": ", ".join(map(str, widths)), "steps": ", ".join(map(str, steps))}
    more |= {"unigram": float(table.unigram_loss.max())} if "unigram_loss" in table else {}
    found["corpus"] = str(found["corpus"]).removesuffix(", shuffled")
    return found | more


def rate_axis(axes: Any) -> None:
    """A logarithmic axis of learning rates."""
    axes.set(xscale="log", xlabel="peak learning rate")


def curve(axes: Any, x: Any, values: xr.DataArray, **look: Any) -> None:
    """Mean over seeds, with bars of 1.96 standard errors."""
    mean, error = values.mean("seed"), values.std("seed", ddof=1) / np.sqrt(values.notnull().sum("seed"))
    shown = {"marker": "o", "markersize": 2.6, "linewidth": 1.0, "elinewidth": 0.7} | look
    axes.errorbar(x, mean, plots.CONFIDENCE * error, **shown)
