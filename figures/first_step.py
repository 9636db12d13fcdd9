"""What the first step does to every matrix of every placement: simulated over predicted, for four optimisers."""

from __future__ import annotations

from concurrent.futures import Executor
from typing import Any

import numpy as np
import xarray as xr

import propagate as pg
from figures.networks import SEED, digits, shipped
from propagate import plots
from propagate.columns import narrow
from propagate.figures import workers
from propagate.scores import score

DRAWS, WIDTH, DEPTH, TOKENS, HEADS = 12, 128, 2, 8, 4
START = pg.Start(covariance=0.3)
OPTIMIZERS = {"SGD": pg.SGD(1e-6), "Muon": pg.Muon(1e-6), "Sign": pg.Sign(1e-9), "Adam": pg.Adam(1e-9, eps=1.0)}
SAMPLERS = {"SGD": "weightless", "Muon": "weightless", "Sign": "dense", "Adam": "dense"}
SHOWN = {
    "query": "#CC79A7",
    "key": "#D55E00",
    "value": "#E69F00",
    "attention_out": "#009E73",
    "ffn_in": "#56B4E9",
    "ffn_out": "#000000",
}
QUANTITIES = {"own_change": "change of its own output", "first_order_fall": "fall of the loss by it"}
COLUMNS = [form.format(name) for name in QUANTITIES for form in ("theory_{}", "{}_allowance", "{}", "{}_se")]
REFUSED = "none"  # in place of the device, where the theory does not cover a placement under an optimiser

FULL = {"draws": 48, "width": 256}
CAPTION = """\
**The first step, matrix by matrix.** Simulated over predicted, for every placement of the package and every matrix of
its {depth} blocks. Left: mean square, per token and coordinate, of what the first step changes in a matrix's own
output, its input held fixed. Right: by how much the change of that matrix lets the loss fall, to first order. The loss
is linear in the stream that leaves the last block.

Points: mean over {draws} random networks of width {width} over the theory of infinite width, bars 1.96 standard errors;
a point a block and matrix. Grey: largest finite-width allowance of a placement's matrices. Largest normal score:
{worst:.1f}, of {judged}; beyond 3: {beyond}.

What it shows: SGD and Muon are predicted in closed form, from the Gram matrices of a matrix's inputs and cotangents;
the sign, and Adam with an eps that is as large as gradients are, by averages that have no width in them. Muon changes
an output by the same amount whatever the gradient; the fall of the loss is then a nuclear norm. Propositions 13 and 14
have the laws. Refused by the theory, in words, and left out: {refused}.

{heads} heads, ReLU FFN of ratio 4, RMSNorm, logit standard deviation 1, {tokens} tokens; start: variance 1, covariance
0.3, cotangent independent over tokens. Networks of SGD and Muon are weightless, exact in law; of the sign and Adam,
dense. Device: {device}. Seed {first_seed}.
"""


def data(
    draws: int = DRAWS,
    seed: int = SEED,
    executor: Executor | None = None,
    width: int = WIDTH,
    backend: str = "numpy",
    placements: tuple[str, ...] | None = None,
) -> xr.Dataset:
    """Theory and simulation over (optimizer, placement, block, matrix)."""
    names = placements or shipped()
    with workers(executor) as pool:
        cells = [
            [
                pool.submit(
                    cell, name, optimizer, width, draws, 1_000_000 * seed + 950_000 + 100 * row + column, backend
                )
                for column, name in enumerate(names)
            ]
            for row, optimizer in enumerate(OPTIMIZERS)
        ]
        tables = [[one.result() for one in row] for row in cells]
    labels = xr.Variable("placement", [pg.placements()[name].__name__ for name in names])
    rows = [xr.concat(row, labels, data_vars="all", combine_attrs="override") for row in tables]
    found = xr.concat(rows, xr.Variable("optimizer", list(OPTIMIZERS)), combine_attrs="override")
    scores = np.concatenate([z(found, name, draws).ravel() for name in QUANTITIES])
    scores = scores[np.isfinite(scores)]
    return found.assign_attrs(
        draws=draws,
        width=width,
        depth=DEPTH,
        heads=HEADS,
        device=next(table.attrs["device"] for row in tables for table in row if table.attrs["device"] != REFUSED),
        refused=", ".join(_refused(tables, labels.to_numpy())) or "nothing",
        tokens=TOKENS,
        first_seed=seed,
        worst=float(digits(np.abs(scores).max(), 3)),
        judged=scores.size,
        beyond=int((np.abs(scores) > 3).sum()),
        propagate=pg.__version__,
    )


def cell(placement: str, optimizer: str, width: int, draws: int, seed: int, backend: Any) -> xr.Dataset:
    """One placement under one optimiser, in the process that calls it."""
    model = pg.Model(placement, depth=DEPTH, width=width, tokens=TOKENS, heads=HEADS)
    chosen, sampler = OPTIMIZERS[optimizer], SAMPLERS[optimizer]
    try:
        said = pg.predict_step(model, chosen, START)
    except pg.ModelError:
        nothing = np.full((DEPTH, len(SHOWN)), np.nan)
        return _table(dict.fromkeys(COLUMNS, nothing), REFUSED)
    run: dict[str, Any] = {"draws": draws, "seed": seed, "backend": backend, "sampler": sampler, "progress": False}
    seen = pg.simulate_steps(model, chosen, START, steps=1, **run).sel(step=1)
    columns: dict[str, Any] = {}
    for name in QUANTITIES:
        columns[f"theory_{name}"], columns[f"{name}_allowance"] = said[name], said[f"{name}_allowance"]
        drawn = said.get(f"{name}_se", 0 * said[name])
        columns[name] = seen[name]
        columns[f"{name}_se"] = np.hypot(seen[f"{name}_se"], drawn.reindex_like(seen[name]))
    wanted = {"matrix": list(SHOWN), "block": range(1, DEPTH + 1)}
    columns = {key: value.reindex(wanted).transpose("block", "matrix") for key, value in columns.items()}
    return _table(columns, seen.attrs["device"])


def _table(columns: dict[str, Any], device: str) -> xr.Dataset:
    arrays = {key: (("block", "matrix"), digits(np.asarray(value))) for key, value in columns.items()}
    return xr.Dataset(arrays, {"block": range(1, DEPTH + 1), "matrix": list(SHOWN)}, {"device": device})


def _refused(tables: list[list[xr.Dataset]], labels: Any) -> list[str]:
    """Placements under optimisers that the theory refuses."""
    return [
        f"{label} under {optimizer}"
        for optimizer, row in zip(OPTIMIZERS, tables, strict=True)
        for label, table in zip(labels, row, strict=True)
        if table.attrs["device"] == REFUSED
    ]


def z(found: xr.Dataset, name: str, draws: int) -> Any:
    """Normal scores of a quantity; NaN where a placement has no such matrix or it does nothing."""
    said = found[f"theory_{name}"].where(found[f"theory_{name}"] > 0)
    allowed = found[f"{name}_allowance"] * said
    found_z = score(*(x.to_numpy() for x in (found[name] - said, found[f"{name}_se"], allowed)), draws)
    return np.where(np.isfinite(said), found_z, np.nan)


def draw(found: xr.Dataset) -> Any:
    """Optimisers in rows, the two quantities in columns, placements along the axis."""
    places = np.arange(found.sizes["placement"])
    with plots.style():
        grid, height = ((2 * len(OPTIMIZERS), 1), 12.0) if narrow() else ((len(OPTIMIZERS), 2), 6.4)
        figure, axes = plots.panels(*grid, height=height, sharex=True, sharey=True)
        axes = axes.reshape(len(OPTIMIZERS), 2)  # beneath one another in a column: placements need its width
        for row, optimizer in enumerate(OPTIMIZERS):
            for column, (name, title) in enumerate(QUANTITIES.items()):
                axis, one = axes[row, column], found.sel(optimizer=optimizer)
                said = one[f"theory_{name}"].where(one[f"theory_{name}"] > 0)
                band = np.nan_to_num(one[f"{name}_allowance"].where(said > 0).max(("block", "matrix")))
                axis.bar(places, 2 * band, bottom=1 - band, width=0.94, color="0.9", linewidth=0)
                axis.axhline(1, color="0.4", linewidth=0.8)
                for number, (matrix, colour) in enumerate(SHOWN.items()):
                    for block in found.block.to_numpy():
                        at = {"block": block, "matrix": matrix}
                        ratio, error = (one[name] / said).sel(at), (one[f"{name}_se"] / said).sel(at)
                        x = places + (number - 2.5) * 0.13 + 0.05 * (block - 1.5)
                        plots.simulation_points(axis, x, ratio, error, shade=colour)
                if row == 0 or narrow():
                    axis.set_title(f"{optimizer}: {title}" if narrow() else title)
            axes[row, 0].set_ylabel("simulated / predicted" if narrow() else f"{optimizer}\nsimulated / predicted")
        for axis in axes.flat if narrow() else axes[-1]:
            axis.set_xticks(places, found.placement.values.tolist(), rotation=90)
            axis.set(ylim=(0.55, 1.6), xlim=(-0.6, places[-1] + 0.6))
            axis.grid(visible=False, axis="x")
        plots.legend(figure, [plots.entry(matrix, color=colour, linewidth=2.0) for matrix, colour in SHOWN.items()])
    return figure
