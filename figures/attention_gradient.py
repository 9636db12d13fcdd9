"""Error of formulas for the gradient variance behind attention: ours, and the published one of DeepScaleLM."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import xarray as xr

from propagate import plots
from propagate.figures import ROOT

MEASURED = ROOT / "benchmarks" / "results" / "attention_gradient.json"
FORMULAS = {  # column of errors: marker, what it is called
    "predicted_error_percent": ("o", "ours, heads of 64"),
    "wide_error_percent": ("x", "ours, limit of wide heads"),
    "published_error_percent": ("D", "published, value path only"),
}
ERROR = "standard_error_percent"
COLOURS = ("#0072B2", "#009E73", "#CC79A7")
LIMIT = 3.0

CAPTION = """\
**Gradient variance behind one attention sublayer: error of three formulas.** Formula over simulation, less 1, in
percent; each panel a standard deviation of the logits, across it the correlation of the tokens (0, 1/3, 2/3), in
colours the correlation of the gradients that arrive at the output. Heads have 64 coordinates, as in the published
comparison. Circles: `predict`, through values, queries and keys, for heads of that size. Crosses: its limit of wide
heads (`head_size=math.inf`). Diamonds: the published formula of DeepScaleLM (arXiv:2403.09635; `pred_g_out_var` in
simulations/SHA.py of akhilkedia/TranformersGetStable), which follows the values alone, under uniform attention:
sigma_g^2 sigma_v^2 (1 + (T - 1) r_g) / T. Band: 3 %; bars: 1.96 standard errors of {draws} random networks, {hard} of
them where tokens and gradients are correlated and logits have standard deviation 2.25. The scale is linear up to 10 %
and logarithmic beyond.

What it shows: where gradients are uncorrelated the published formula misses most of the variance ({published:.1f} % at
worst), because it leaves out the paths through queries and keys. What `predict` says is within 3 % or 3 standard errors
everywhere, {own:.1f} % off at worst. The limit of wide heads is {narrow:.1f} % off at worst, at the widest logits and
correlated gradients: chance correlations of order 1/sqrt(64) between queries then add up over tokens.

Width {width}, {tokens} tokens with exact second moments, unit gains. Data: benchmarks/attention_gradient.py.
"""


def data(**_: Any) -> xr.Dataset:
    """What `benchmarks/attention_gradient.py` measured: stored, since it takes several minutes."""
    content = json.loads(MEASURED.read_bytes())
    rows = content["rows"]
    axes = {
        name: sorted({row[name] for row in rows})
        for name in ("head_size", "logit_std", "correlation", "grad_correlation")
    }
    shape = [len(values) for values in axes.values()]
    order = sorted(rows, key=lambda row: tuple(row[name] for name in axes))
    found = xr.Dataset(
        {name: (tuple(axes), np.array([row[name] for row in order]).reshape(shape)) for name in (*FORMULAS, ERROR)},
        coords=axes,
    )
    worst = abs(found).max(("logit_std", "correlation", "grad_correlation"))
    return found.assign_attrs(
        draws=min(row["draws"] for row in rows),
        hard=max(row["draws"] for row in rows),
        width=content["width"],
        tokens=content["tokens"],
        published=float(found.published_error_percent.sel(head_size=64).min()),
        own=float(worst.predicted_error_percent.sel(head_size=64)),
        narrow=float(worst.wide_error_percent.sel(head_size=64)),
    )


def draw(data: xr.Dataset) -> Any:
    """A panel for each standard deviation of the logits, ours and theirs on one scale."""
    with plots.style():
        figure, axes = plots.panels(1, data.sizes["logit_std"], height=3.0, sharey=True)
        for axis, logit_std in zip(axes[0], data.logit_std.values, strict=True):
            axis.axhspan(-LIMIT, LIMIT, color="0.85", linewidth=0)
            axis.set(title=f"logit standard deviation {logit_std:g}", xlabel="correlation of tokens")
            axis.set_xticks(range(3), ["0", "1/3", "2/3"])
            axis.set_yscale("symlog", linthresh=10, linscale=1.5)
            axis.set_yticks([-100, -30, -10, -3, 0, 3, 10], ["-100", "-30", "-10", "-3", "0", "3", "10"])
            axis.set_ylim(-130, 20)
            axis.minorticks_off()
            for k, shade in enumerate(COLOURS):
                one = data.sel(logit_std=logit_std, head_size=64).isel(grad_correlation=k)
                x = np.arange(3) + 0.24 * (k - 1)
                error = plots.CONFIDENCE * one[ERROR]
                for (name, (marker, _)), shift in zip(FORMULAS.items(), (-0.05, 0.05, 0.0), strict=True):
                    look = {"linestyle": "none", "marker": marker, "color": shade, "markersize": 3.6}
                    if name == "published_error_percent":
                        axis.plot(x, one[name], markerfacecolor="white", **look)
                    else:
                        axis.errorbar(x + shift, one[name], yerr=error, elinewidth=0.8, **look)
        axes[0, 0].set_ylabel("formula / simulation - 1, percent")
        shades = [
            plots.entry(f"gradients correlated {name}", color=shade, linewidth=2.5)
            for name, shade in zip(("0", "1/3", "2/3"), COLOURS, strict=True)
        ]
        marks = [
            plots.entry(
                label,
                linestyle="none",
                marker=marker,
                markersize=3.6,
                markerfacecolor="white" if marker == "D" else "0.3",
            )
            for marker, label in FORMULAS.values()
        ]
        plots.legend(figure, [*shades, *marks], columns=3)
    return figure
