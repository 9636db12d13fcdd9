"""Theory, simulation and trace of architectures of the library transformers, at their own initialisation."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from figures.measure_models import QUANTITIES, load
from propagate import plots

SHOWN = {  # quantity: (colour, label)
    "variance": ("#0072B2", "variance of the stream"),
    "distinct": ("#D55E00", "1 - correlation"),
    "grad_variance": ("#009E73", "gradient variance"),
}
COLUMNS = 5
OTHERS = "other placements"

CAPTION = """\
**Real architectures: theory, simulation, trace.** Variance of the residual stream, 1 - correlation of two tokens and
gradient variance against block, in {count} models of the library `transformers` at their own random initialisation,
width {width}, {depth} blocks, {heads} heads, {tokens} tokens, vocabulary 512, {sequences} sequences without repeated
tokens. A standard normal gradient enters at the last block.

Filled points: `trace`, hooks on the untouched torch model; geometric mean over initialisations, {draws}; bars ±1.96
standard errors (hidden by most points). Open points: `simulate`, random networks, {simulated}, with what `describe`
read off the model: its placement, activation, norm, mask and the standard deviation of every matrix, block by block.
Lines: `predict` of the same. Theory and simulation start from the trace's own moments at its two ends and know
nothing else.

Bears on whether the theory describes the networks people run. {agree} of {count} agree within |z| < 4, the
finite-width allowance included; largest |z| over all quantities and blocks: {worst}. With so few draws that is a weak
test, so also the largest relative difference of variance or gradient variance at any block: {apart} (standard errors
reach {errors:.0f} %).

**OLMo2 leaves the band, and the eps of its norms is why.** Its first block reads embeddings of variance 4e-4 without
a norm. What attention and FFN make of them has a variance near, and far below, the 1e-5 that the norms behind them
add under the root, and behind that block {olmo:.0f} % of the predicted variance are left. The Models here have no eps;
since then `describe` reads it, and a small OLMo2 keeps to theory (`benchmarks/results/architectures.json`). The
panel beside it is the same weights with eps 1e-20: it agrees. The same eps makes the variance of GPT-NeoX's first
block 3 % smaller than predicted and its gradient 5 % larger.

What the theory leaves out, as `describe` says it: {unread}. Biases start at zero; embeddings enter by the start.
Rotary positions of whole heads are in the theory; those of a quarter of each head (StableLM, GPT-NeoX) and those with
two bases (Gemma3) are not and matter little here. Gemma2 caps its logits at 50, which logits that spread by 0.1 do
not notice. Gemma scales its embeddings up by sqrt(width), so that its eps does not count. Mixtral and Qwen3-MoE have
4 experts here, 2 for a token, and are predicted token by token with them. Qwen3 norms queries and keys: its logits
spread by 1 whatever the matrices. GPT-2 divides its output matrices by sqrt(2 depth); that is in the gains read.
Gradients grow steeply towards the embedding in PreNorm models because their embeddings are small: the first norm
divides by their standard deviation, 0.02.

Measured by `figures/measure_models.py` on two CPU cores in float32, {seconds} s for each trace of one model (forward,
backward and making it included); stored in `measured/models.json`. Seeds 0 ... {last}.
"""


def data(**_: Any) -> xr.Dataset:
    """The stored record, over (architecture, block). It was measured once: arguments change nothing."""
    record = load()
    names = list(record["random"])
    columns: dict[str, Any] = {}
    for witness in ("trace", "theory", "simulation"):
        shared = set.intersection(*(set(record["random"][name][witness]) for name in names))
        for key in sorted(shared):
            rows = [np.array(record["random"][name][witness][key], dtype=float) for name in names]
            columns[f"{witness}_{key}"] = ("architecture", "block"), np.stack(rows)
    worst = {name: max(record["random"][name]["worst_z"].values()) for name in names}
    unread = sorted({words for name in names for words in record["random"][name]["unread"]})
    seconds = [record["random"][name]["seconds"] for name in names]
    attributes = record["sizes"] | {
        "last": max(one["draws"] for one in record["random"].values()) - 1,
        "worst": ", ".join(f"{name} {value:.1f}" for name, value in worst.items()),
        "agree": sum(value < 4 for value in worst.values()),
        "count": len(names),
        "unread": "; ".join(unread),
        "seconds": f"{min(seconds):.0f} to {max(seconds):.0f}",
    }
    for key in ("draws", "simulated"):
        attributes[key] = _counted({name: record["random"][name][key] for name in names})
    blocks = np.arange(record["sizes"]["depth"] + 1)
    found = xr.Dataset(columns, {"architecture": names, "block": blocks}, attributes)
    for key in ("placement", "draws", "simulated"):
        found[key] = "architecture", [record["random"][name][key] for name in names]
    errors = [found[f"trace_log_{name}_se"].max() for name in ("variance", "grad_variance")]
    olmo = found.sel(architecture="OLMo2", block=1)
    return found.assign_attrs(
        apart=", ".join(f"{name} {100 * _apart(found.sel(architecture=name)):.0f} %" for name in names),
        errors=100 * float(max(errors)),
        olmo=100 * float(np.exp(olmo.trace_log_variance) / olmo.theory_variance),
    )


def _counted(draws: dict[str, int]) -> str:
    """How many draws each architecture had: the smallest number, and who had more."""
    least = min(draws.values())
    more = {count: [name for name in draws if draws[name] == count] for count in sorted({*draws.values()} - {least})}
    return "; ".join([str(least), *(f"{count} of {', '.join(names)}" for count, names in more.items())])


def _apart(one: xr.Dataset) -> float:
    """Largest relative difference between trace and theory, of variance and gradient variance at any block."""
    ratios = [np.exp(one[f"trace_log_{name}"]) / one[f"theory_{name}"] for name in ("variance", "grad_variance")]
    return float(max(abs(ratio - 1).max() for ratio in ratios))


def tables(data: xr.Dataset, architecture: str) -> tuple[xr.Dataset, xr.Dataset]:
    """Prediction and trace of one architecture, as `propagate.compare` wants them."""
    row = data.sel(architecture=architecture, drop=True)
    made = []
    for witness in ("theory", "trace"):
        held = {str(k).removeprefix(f"{witness}_"): row[k] for k in row if str(k).startswith(f"{witness}_")}
        made.append(xr.Dataset({k: v for k, v in held.items() if any(name in k for name in QUANTITIES)}))
    return made[0], made[1].assign_attrs(draws=int(row.draws))


def draw(data: xr.Dataset) -> Any:
    """One panel an architecture, those of one placement in rows with a scale of their own."""
    names = _arranged(data)
    rows = len(names) // COLUMNS
    with plots.style():
        figure, axes = plots.panels(rows, COLUMNS, height=1.8 * rows, sharey="row")
        for axis, name in zip(axes.flat, names, strict=True):
            axis.set_visible(bool(name))
            if not name:
                continue
            one = data.sel(architecture=name)
            for quantity, (colour, _) in SHOWN.items():
                line, _ = _values(one, "theory", quantity)
                axis.plot(one.block, line, color=colour)
                for witness, face in (("simulation", "white"), ("trace", colour)):
                    mean, half = _values(one, witness, quantity)
                    error = [mean * (1 - np.exp(-half)), mean * (np.exp(half) - 1)]
                    look = {"markersize": 2.2 if witness == "trace" else 4.6, "markerfacecolor": face}
                    order = 3 if witness == "trace" else 2
                    axis.errorbar(
                        one.block, mean, error, color=colour, linestyle="none", marker="o", zorder=order, **look
                    )
            axis.set(yscale="log", title=_title(data, name), xlabel="block")
            if one.placement == "PostNorm":
                axis.set(ylim=(0.4, 1.25), yticks=[0.5, 1.0], yticklabels=["0.5", "1"])
                axis.minorticks_off()
        for axis, name in zip(axes[:, 0], names[::COLUMNS], strict=True):
            axis.set_ylabel(_row(data, name))
        handles = [plots.entry(label, color=colour) for colour, label in SHOWN.values()]
        dots = {"linestyle": "none", "marker": "o"}
        handles += [
            plots.entry("theory"),
            plots.entry("simulation", markersize=4.6, markerfacecolor="white", **dots),
            plots.entry("trace", markersize=2.2, **dots),
        ]
        plots.legend(figure, handles)
    return figure


def _arranged(data: xr.Dataset) -> list[str]:
    """The architectures, those of one placement in rows of their own, each filled up with "" to whole rows."""
    rows: dict[str, list[str]] = {}
    for name in data.architecture.values.tolist():
        rows.setdefault(_row(data, name), []).append(name)
    ordered = sorted(rows, key=lambda row: (row == OTHERS, -len(rows[row])))
    return [name for row in ordered for name in rows[row] + [""] * (-len(rows[row]) % COLUMNS)]


def _row(data: xr.Dataset, name: str) -> str:
    """The placement of an architecture, or the common row of those that few have."""
    placement = data.placement.sel(architecture=name).item()
    return placement if int((data.placement == placement).sum()) > 2 else OTHERS


def _title(data: xr.Dataset, name: str) -> str:
    placement = data.placement.sel(architecture=name).item()
    return f"{name}\n({placement})" if _row(data, name) == OTHERS and placement not in name else name


def _values(one: xr.Dataset, witness: str, quantity: str) -> tuple[Any, Any]:
    """Geometric mean of a quantity (of the theory: the quantity), and 1.96 standard errors of the logarithm."""
    if quantity == "distinct":
        deviation, half = _values(one, witness, "deviation")
        variance, more = _values(one, witness, "variance")
        return deviation / variance, np.hypot(half, more)
    if witness == "theory":
        return one[f"theory_{quantity}"].to_numpy(), np.zeros(one.sizes["block"])
    mean = np.exp(one[f"{witness}_log_{quantity}"].to_numpy())
    return mean, plots.CONFIDENCE * one[f"{witness}_log_{quantity}_se"].to_numpy()
