"""The measured domain of attention's moment map: its error against logit standard deviation, tokens, correlations."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

import propagate as pg
from propagate import plots

COLOURS = ("#0072B2", "#009E73", "#E69F00", "#D55E00")
ROWS = {  # what is shown: its label
    "variance": "variance",
    "grad_variance_0": "gradient variance,\nindependent gradients",
    "grad_variance_1": "gradient variance,\nshared gradient",
}

CAPTION = """\
**Where attention's map was verified.** Error of the map (theory / simulation - 1, percent) of one attention sublayer on
tokens with exact second moments, against the standard deviation of the logits between unit-variance, uncorrelated
tokens; columns: number of tokens; colours: their correlation; rows: the output's variance, and the variance of the
gradient sent back when those that arrive are independent over tokens and when they are all the same. Bars: 1.96
standard errors of {draws} random networks (twice as many for the top row); band: 5 %, beyond which `predict` gives
a `ValidityWarning` with the nearest measured error.

What it shows: {beyond} of {places} gradient variances lie beyond 3 standard errors (places at gradient correlations
between 0 and 1 share two measurements), the farthest of them {beyond_farthest:+.1f} %, all but one with 128 tokens or
more at a width of {width}: what is left are terms of order 1/width, which the map leaves out. The map knows that heads
have {head_size} coordinates. The one that takes them for wide (`propagate.validity("wide_attention")`, used if asked
for) falls short by up to {worst:.0f} % where the gradients of many tokens are correlated: chance correlations between
queries, of order 1/sqrt({head_size}), add up over tokens; {beyond_wide} lie beyond 3. Not shown: gradient
correlations 1/3 and 2/3; the FFN's map, largest error {ffn:.1f} % with standard errors up
to {ffn_se:.1f} %; the norm's, {norm:.1f} % (all in the data, `propagate.validity(...)`).

Width {width}, device {device}. Data: propagate/data/validity.json, made by benchmarks/validity.py.
"""


def data(**_: Any) -> xr.Dataset:
    """The stored map, at both ends of the gradient's correlation."""
    stored = 100 * pg.validity("attention")
    forward = stored.sel(grad_correlation=0, drop=True)  # the same at every correlation of the gradients
    found = {"variance": forward.variance, "variance_se": forward.variance_se}
    for end in (0, 1):
        one = stored.sel(grad_correlation=end, drop=True)
        found |= {f"grad_variance_{end}": one.grad_variance, f"grad_variance_{end}_se": one.grad_variance_se}
    about = {key: pg.validity("attention").attrs[key] for key in ("width", "head_size", "draws", "device")}
    for operator in ("ffn", "norm"):
        errors = pg.validity(operator)
        about[operator] = 100 * max(float(abs(errors[name]).max()) for name in errors if not str(name).endswith("_se"))
        about[f"{operator}_se"] = 100 * max(float(errors[name].max()) for name in errors if str(name).endswith("_se"))
    wide = 100 * pg.validity("wide_attention")
    about |= {"worst": -float(wide.grad_variance.min()), "places": stored.grad_variance.size}
    for name, errors in (("beyond", stored), ("beyond_wide", wide)):
        far = errors.grad_variance.where(abs(errors.grad_variance) > 3 * errors.grad_variance_se, 0)
        about |= {name: int((far != 0).sum()), f"{name}_farthest": float(far.values.flat[abs(far).values.argmax()])}
    return xr.Dataset(found).assign_attrs(about)


def draw(data: xr.Dataset) -> Any:
    """A column for each number of tokens."""
    with plots.style():
        figure, axes = plots.panels(len(ROWS), data.sizes["tokens"], height=5.0, sharex=True, sharey=True)
        for row, (name, label) in zip(axes, ROWS.items(), strict=True):
            row[0].set_ylabel(f"{label},\nerror in percent")
            for axis, tokens in zip(row, data.tokens.values, strict=True):
                axis.axhspan(-5, 5, color="0.9", linewidth=0)
                for c, shade in enumerate(COLOURS):
                    one = data.sel(tokens=tokens).isel(correlation=c)
                    x = np.arange(data.sizes["logit_std"]) + 0.14 * (c - 1.5)
                    error = plots.CONFIDENCE * one[f"{name}_se"]
                    axis.errorbar(
                        x, one[name], yerr=error, color=shade, marker="o", markersize=2.6, elinewidth=0.7, lw=0.6
                    )
        for axis, tokens in zip(axes[0], data.tokens.values, strict=True):
            axis.set_title(f"{tokens} tokens")
        for axis in axes[-1]:
            axis.set_xticks(range(data.sizes["logit_std"]), [f"{s:g}" for s in data.logit_std.values], rotation=90)
        axes[-1][data.sizes["tokens"] // 2].set_xlabel("standard deviation of the logits between unit-variance tokens")
        names = [f"correlation {c:.2g}" for c in data.correlation.values]
        plots.legend(figure, [plots.entry(n, color=s, linewidth=2) for n, s in zip(names, COLOURS, strict=True)])
    return figure
