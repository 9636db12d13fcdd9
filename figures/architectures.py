"""Theory, simulation and trace of architectures of the library transformers, at their own initialisation."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from figures.measure_models import QUANTITIES, load
from propagate import plots

SHOWN = {  # quantity: (colour, label, block)
    "variance": ("#0072B2", "variance that leaves the last block", -1),
    "distinct": ("#D55E00", "1 - correlation of two tokens there", -1),
    "grad_variance": ("#009E73", "gradient variance that reaches the embedding", 0),
}
MAGNITUDES, MEASURED = ("variance", "grad_variance"), ("trace", "simulation")
WITHOUT = "OLMo2 (eps 1e-20)"

CAPTION = """\
**Real architectures: trace over theory.** {count} models of the library `transformers` at their own random
initialisation, width {width}, {depth} blocks, {heads} heads, {tokens} tokens, vocabulary 512, {sequences} sequences
without repeated tokens; a standard normal gradient enters at the last block. The Model that `describe` reads off each
(placement in brackets, activation, norm and its eps, mask, standard deviation of every matrix, block by block) is
predicted from the trace's own moments at its two ends, and from nothing else.

Points: geometric mean of `trace`, hooks on the untouched torch model, over initialisations ({draws}), in percent of
`predict`, where all blocks have been passed: of the stream behind the last, of the gradient at the embedding. Bars:
±1.96 standard errors. Shades: the finite-width allowance of the theory at that width. Sorted by the largest of the
three departures.

Bears on whether the theory describes the networks people run. {agree} of {count} agree within |z| < 4 at every block,
the allowance included; largest |z| over all quantities and blocks: {worst}. With so few draws that is a weak test, so
also the largest relative difference of variance or gradient variance at any block: {apart} (standard errors reach
{errors:.0f} %). `simulate` of the same Models (random networks: {simulated}) lies within {simulation:.0f} % of the
theory in variance and gradient variance at every block (standard errors reach {scatter:.0f} %). Of more
architectures, with fewer blocks and in more draws, `benchmarks/results/architectures.json` is a table of the same
ratios.

**The eps of a norm counts where what it divides is small.** OLMo2's first block reads embeddings of variance
{embedding:.0e} without a norm, and what its attention and FFN make of them has a variance near the 1e-5 that the norms
behind them add under the root. With its eps the theory is {olmo:.0f} % off at most; the row with eps 1e-20 has the same
weights and a theory of its own, {without:.0f} % off at most. Taken for each other they are not: behind the first block
OLMo2 has {left:.0f} % of the variance that is predicted without eps.

What the theory leaves out, as `describe` says it: {unread}. Biases start at zero; embeddings enter by the start.
Mixtral and Qwen3-MoE have 4 experts here, 2 for a token, and are predicted token by token with them.

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
    who = {words: [name for name in names if words in record["random"][name]["unread"]] for words in unread}
    seconds = [record["random"][name]["seconds"] for name in names]
    attributes = record["sizes"] | {
        "last": max(one["draws"] for one in record["random"].values()) - 1,
        "worst": ", ".join(f"{name} {value:.1f}" for name, value in worst.items()),
        "agree": sum(value < 4 for value in worst.values()),
        "count": len(names),
        "unread": "; ".join(f"{words} ({', '.join(those)})" for words, those in who.items()) or "nothing",
        "seconds": f"{min(seconds):.0f} to {max(seconds):.0f}",
    }
    for key in ("draws", "simulated"):
        attributes[key] = _counted({name: record["random"][name][key] for name in names})
    blocks = np.arange(record["sizes"]["depth"] + 1)
    found = xr.Dataset(columns, {"architecture": names, "block": blocks}, attributes)
    for key in ("placement", "draws", "simulated"):
        found[key] = "architecture", [record["random"][name][key] for name in names]
    errors = {of: max(float(found[f"{of}_log_{name}_se"].max()) for name in MAGNITUDES) for of in MEASURED}
    apart = {name: 100 * _apart(found.sel(architecture=name)) for name in names}
    first = found.sel(architecture="OLMo2")
    told = found.theory_variance.sel(architecture=WITHOUT, block=1)
    return found.assign_attrs(
        apart=", ".join(f"{name} {value:.0f} %" for name, value in apart.items()),
        errors=100 * errors["trace"],
        scatter=100 * errors["simulation"],
        simulation=100 * max(_apart(found.sel(architecture=name), "simulation") for name in names),
        embedding=float(np.exp(first.trace_log_variance.sel(block=0))),
        olmo=apart["OLMo2"],
        without=apart[WITHOUT],
        left=100 * float(np.exp(first.trace_log_variance.sel(block=1)) / told),
    )


def _counted(draws: dict[str, int]) -> str:
    """How many draws each architecture had: the smallest number, and who had more."""
    least = min(draws.values())
    more = {count: [name for name in draws if draws[name] == count] for count in sorted({*draws.values()} - {least})}
    return "; ".join([str(least), *(f"{count} of {', '.join(names)}" for count, names in more.items())])


def _apart(one: xr.Dataset, witness: str = "trace") -> float:
    """Largest relative difference between a witness and theory, of variance and gradient variance at any block."""
    ratios = [np.exp(one[f"{witness}_log_{name}"]) / one[f"theory_{name}"] for name in MAGNITUDES]
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
    """One line an architecture, one point a quantity, the largest departure on top."""
    from matplotlib.patches import Patch

    found = {quantity: _departures(data, quantity) for quantity in SHOWN}
    order = np.argsort(np.max([abs(points) for points, _, _ in found.values()], axis=0))
    names = data.architecture.values[order].tolist()
    places = np.arange(len(names))
    with plots.style():
        figure, axes = plots.panels(1, 1, height=5.6)
        axis = axes[0, 0]
        for offset, (quantity, (colour, _, _)) in zip((0.26, 0.0, -0.26), SHOWN.items(), strict=True):
            points, half, allowance = (values[order] for values in found[quantity])
            axis.barh(places + offset, 2 * allowance, 0.24, -allowance, color=colour, alpha=0.16, linewidth=0)
            look = {"linestyle": "none", "marker": "o", "markersize": 2.8, "elinewidth": 0.9}
            axis.errorbar(points, places + offset, xerr=half, color=colour, **look)
        axis.axvline(0, color="0.3", linewidth=0.8, zorder=1)
        axis.set(xlabel="trace / theory - 1, percent", ylim=(-0.6, len(names) - 0.4))
        axis.set_yticks(places, [_title(data, name) for name in names])
        axis.tick_params(axis="y", length=0)
        axis.grid(visible=False, axis="y")
        handles: list[Any] = [
            plots.entry(label, color=colour, linestyle="none", marker="o", markersize=2.8)
            for colour, label, _ in SHOWN.values()
        ]
        handles.append(Patch(color="0.4", alpha=0.25, linewidth=0, label=f"{plots.BAND} of the theory"))
        plots.legend(figure, handles, columns=2)
    return figure


def _title(data: xr.Dataset, name: str) -> str:
    placement = data.placement.sel(architecture=name).item()
    return name if placement in name else f"{name} ({placement})"


def _departures(data: xr.Dataset, quantity: str) -> tuple[Any, Any, Any]:
    """Of each architecture in percent: trace over theory less one, 1.96 standard errors, and the theory's allowance."""
    at = data.isel(block=SHOWN[quantity][2])
    if quantity == "distinct":
        parts, signs = ("deviation", "variance"), (1.0, -1.0)
    else:
        parts, signs = (quantity,), (1.0,)
    logs = [at[f"trace_log_{part}"] - np.log(at[f"theory_{part}"]) for part in parts]
    ratio = np.exp(sum(sign * log for sign, log in zip(signs, logs, strict=True))).to_numpy()
    error = np.sqrt(sum(at[f"trace_log_{part}_se"] ** 2 for part in parts)).to_numpy()
    allowance = at[f"theory_{parts[0]}_allowance"].to_numpy()
    return 100 * (ratio - 1), 100 * plots.CONFIDENCE * error * ratio, 100 * allowance
