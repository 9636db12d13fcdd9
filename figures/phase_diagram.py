"""ScaleInit's exponent against depth for every placement: gradient gain, collapse, and what attention carries; and
for three placements the lines at which each of these crosses a level."""

from __future__ import annotations

from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

import propagate as pg
from figures.networks import (
    DRAWS,
    HEADS,
    LARGER,
    LOGIT_STD,
    PLACEMENTS,
    SAMPLER,
    SEED,
    START,
    TOKENS,
    WIDTH,
    counts,
    digits,
    scores,
    shipped,
)
from propagate import plots
from propagate.columns import narrow
from propagate.figures import workers
from propagate.inverse.point import Point

EXPONENTS, DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0), (4, 16, 64)
CHECKED = ((0.0, 16), (0.5, 16))  # simulated, for every placement
JUDGED = ("gain", "distinct", "own", "other")
SAMPLES = 16  # of attention's logits in each sublayer, where the theory follows single tokens
PANELS = {  # quantity: title, label of the colours, colours, their range
    "gain": ("gradient gain", "log10 of the gain", "PuOr_r", (-1.5, 1.5)),
    "distinct": ("1 - correlation", "log10 of 1 - correlation", "cividis", (-3, 0)),
    "share": ("attention's share", "log10 of the share", "cividis", (-4, 0)),
}

LINES = {  # quantity: level, what holds on the other side of it, line style
    "gain": (0.5, "gradient fades", "-"),
    "distinct": (0.1, "tokens alike", (0, (4, 2))),
    "share": (0.05, "attention silent", (0, (1, 1.2))),
}
LINE_DEPTHS = (4, 6, 8, 12, 16, 24, 32, 48, 64)

FULL = LARGER
CAPTION = """\
**ScaleInit's exponent, depth and placement.** Output matrices of attention and FFN are scaled by depth^(-k), on top of
a placement's own scaling. Above: the phases of three placements. Each line joins the exponents at which, at a depth, a
level is crossed (`propagate.solve`, theory alone): {gain_level:g} by the end-to-end gradient gain, below which the
gradient fades; {distinct_level:g} by 1 - correlation, below which tokens are alike; {share_level:g} by attention's
share, below which it is silent. Shaded: all three lie above their levels, with {deepest} blocks from k =
{low_prenorm:.2f} to {high_prenorm:.2f} in PreNorm, {low_postnorm:.2f} to {high_postnorm:.2f} in PostNorm and
{low_spannorm:.2f} to {high_spannorm:.2f} in SpanNorm. Levels are ours; a level that nothing crosses has no line.

Below: every placement of the package, a row each. In each group of columns k is fixed, and the
depth is {depths} from left to right. Left: end-to-end gradient gain, the gradient variance at the embedding for a
gradient of variance 1, independent over tokens, that enters at the network's output, behind its final norm if it has
one. Middle: collapse, 1 - correlation of two tokens in the stream that leaves the last block (of several streams, in
what they are joined to); 0.7 at the start. Right: attention's share, the part of the gradient of one token's output
that reaches the inputs of other tokens, which only attention can carry. Colours end at the ends of their bars.

Squares: theory in the limit of infinite width; for the share token by token, with attention's logits drawn {samples}
times a sublayer. Discs: simulation at k = 0 and k = 1/2 with {checked} blocks, geometric mean over {light} networks for
each placement; a disc that merges into its square agrees. Largest |z| over {judged} comparisons, of the gain, the
collapse, and the gradients at the own and at another token: {worst:.1f}; beyond 3: {beyond}.

What it shows: the trade-off that an exponent makes, at {deepest} blocks in numbers. Without scaling (k = 0) placements
that norm the sum of skip and branch lose the differences between tokens; the larger k, the less attention carries. With
k = 1/2 nothing changes any more with depth in PreNorm, PostNorm or B2T, and attention keeps a share of
{share_half_prenorm:.2f}, {share_half_postnorm:.2f} and {share_half_b2t:.2f}. In SpanNorm it does not: attention reaches
its stream only through the FFN, and at k = 1/2 its share falls as 1/depth, to {share_half_spannorm:.4f}. At k = 1/4 the
share of SpanNorm holds at {share_quarter_spannorm:.2f}, and its tokens become alike but slowly (1 - correlation
{distinct_quarter_spannorm:.2f}), where PostNorm's are lost ({distinct_quarter_postnorm:.0e}). DeepNorm and KEEL weaken
their branches already at k = 0. Peri-LN, Sandwich-LN, OLMo2 and nGPT norm their branches and do not see k; DeepScaleLM
sets their size itself; ReZero starts as the identity (share 0). Bears on claims C1, C2 and C3. The paper's exponent is
not known to us, and we know of no such figure in it.

Width {width}, {heads} heads, ReLU FFN of ratio 4, RMSNorm, logit standard deviation {logit_std:g}, {tokens} tokens;
start: variance 1, covariance 0.3. Sampler {sampler}, exact in law at every width. Device: {device}. Seed {first_seed};
each network has its own.
"""


def data(
    draws: int = DRAWS,
    seed: int = SEED,
    executor: Executor | None = None,
    depth: int = DEPTHS[-1],
    width: int = WIDTH,
    backend: str = "numpy",
    placements: tuple[str, ...] | None = None,
) -> xr.Dataset:
    """Theory over (placement, exponent, depth), and over (placement, check) the simulation of some cells."""
    names = placements or shipped()
    depths = [length for length in DEPTHS if length <= depth]
    checked = [(k, length) for k, length in CHECKED if length <= depth]
    light = counts(draws)["light"]
    with workers(executor) as pool:
        simulated = [
            [
                pool.submit(simulate, network(name, k, length, width), 1_000_000 * seed + 800_000 + row, light, backend)
                for k, length in checked
            ]
            for row, name in enumerate(names)
        ]
        rows = [pool.submit(predict_row, name, depths, width) for name in names]
        drawn = {label: key for label, key in zip(_labels(names), names, strict=True) if label in PLACEMENTS}
        lines = [pool.submit(critical_lines, drawn[name], depth, width) for name in filter(drawn.get, PLACEMENTS)]
        found = xr.concat([row.result() for row in rows], xr.Variable("placement", _labels(names)), join="exact")
        found = found.merge(_measured([[one.result() for one in row] for row in simulated], checked, names))
        found = found.merge(
            _joined_lines([name for name in PLACEMENTS if name in drawn], [one.result() for one in lines])
        )
    for name in JUDGED:
        for suffix in ("", "_allowance"):
            cells = [found[f"theory_{name}{suffix}"].sel(exponent=k, depth=length) for k, length in checked]
            found[f"checked_{name}{suffix}"] = ("placement", "check"), np.stack(cells, 1)
    found = found.assign_attrs(counts(draws))
    judged = np.concatenate([z(found, name) for name in JUDGED])
    device = simulated[0][0].result().attrs["device"]
    return found.assign_attrs(
        {f"{name}_level": level for name, (level, _, _) in LINES.items()},
        depths=", ".join(map(str, depths)),
        checked=checked[-1][1],
        deepest=depths[-1],
        samples=SAMPLES,
        judged=int(np.isfinite(judged).sum()),
        worst=float(digits(np.nanmax(abs(judged)), 3)),
        beyond=int((abs(judged) > 3).sum()),
        width=width,
        heads=HEADS,
        tokens=TOKENS,
        logit_std=LOGIT_STD,
        sampler=SAMPLER,
        device=device,
        first_seed=seed,
        propagate=pg.__version__,
        **_said(found),
    )


def network(placement: str, exponent: float, depth: int, width: int) -> pg.Model:
    """A cell of the figure."""
    size: dict[str, Any] = {"depth": depth, "width": width, "tokens": TOKENS, "heads": HEADS, "logit_std": LOGIT_STD}
    return pg.Model(placement, scaling=pg.ScaleInit(exponent), activation="relu", **size)


def ends() -> dict[str, Any]:
    """The start, and a gradient that enters at the first token alone: its trace, and so its gain, is 1."""
    grad_gram = np.zeros((TOKENS, TOKENS))
    grad_gram[0, 0] = 1.0
    return {"covariance": float(START), "grad_gram": grad_gram, "through_readout": True}


def predict(one: pg.Model) -> dict[str, float]:
    """The quantities of one network in theory, by their names, and their allowances."""
    table = joined(pg.predict(one, **ends(), samples=SAMPLES))
    found = {f"theory_{name}": value for name, value in quantities(table).items()}
    first, last = table.isel(block=0), table.isel(block=-1)
    for name, place in {
        "gain": first.grad_variance,
        "own": first.grad_token_variance[0],
        "other": first.grad_token_variance[1],
        "distinct": last.deviation,
    }.items():
        allowed = table[f"{place.name}_allowance"].isel(place_of(name))
        own = table[f"{place.name}_se"].isel(place_of(name)) / place  # of logits the theory drew
        found[f"theory_{name}_allowance"] = float(np.hypot(allowed, own.fillna(0.0)))
    return found


def place_of(name: str) -> dict[str, int]:
    """Where in a table a quantity is found."""
    return {"distinct": {"block": -1}, "gain": {"block": 0}}.get(name, {"block": 0, "token": int(name == "other")})


def quantities(table: xr.Dataset) -> dict[str, float]:
    """Gain, collapse, and the gradient at the token that it entered at, at another and at all others (their share)."""
    first, last = table.isel(block=0), table.isel(block=-1)
    tokens = first.grad_token_variance.to_numpy()
    found = {"gain": tokens.sum(), "own": tokens[0], "other": tokens[1], "share": tokens[1:].sum() / tokens.sum()}
    return {name: float(value) for name, value in found.items()} | {"distinct": float(last.deviation / last.variance)}


def joined(table: xr.Dataset) -> xr.Dataset:
    """The one stream of a table, or what several are joined in."""
    return table.sel(stream="joined") if "stream" in table.dims else table


def predict_row(placement: str, depths: list[int], width: int) -> xr.Dataset:
    """A placement at every exponent and depth."""
    cells = [[predict(network(placement, k, length, width)) for length in depths] for k in EXPONENTS]
    dims, coords = ("exponent", "depth"), {"exponent": list(EXPONENTS), "depth": depths}
    return xr.Dataset(
        {name: (dims, digits([[cell[name] for cell in row] for row in cells], 7)) for name in cells[0][0]}, coords
    )


def simulate(one: pg.Model, seed: int, draws: int, backend: Any) -> xr.Dataset:
    """The simulation of a cell, in the process that calls it."""
    table = pg.simulate(one, draws=draws, seed=seed, **ends(), backend=backend, sampler=SAMPLER, progress=False)
    return joined(table)


@dataclass(frozen=True)
class Level:
    """A condition of `propagate.solve`: a quantity of the figure lies above a level."""

    name: str
    above: float
    below: None = None

    def value(self, at: Point) -> float:
        if self.name == "share":
            return at.attention_share
        return quantities_of_pairs(at.network)[self.name]


def quantities_of_pairs(one: pg.Model) -> dict[str, float]:
    """Gain and collapse, in closed form: the gradient enters at all tokens, independent over them."""
    table = joined(pg.predict(one, covariance=float(START), through_readout=True))
    last = table.isel(block=-1)
    return {"gain": float(table.grad_variance[0]), "distinct": float(last.deviation / last.variance)}


def critical_lines(placement: str, deepest: int, width: int) -> xr.Dataset:
    """The exponents at which each quantity crosses its level, and between which all lie above theirs, over depth."""
    found: dict[str, list[float]] = {name: [] for name in (*LINES, "low", "high")}
    depths = [length for length in LINE_DEPTHS if length <= deepest]
    for length in depths:
        one, start = network(placement, 0.0, length, width), pg.Start(covariance=float(START))
        met = []
        for name, (level, _, _) in LINES.items():
            solved = pg.solve(one, "scaling.exponent", [Level(name, level)], between=(0, 1), start=start, points=9)
            inside = [edge for pair in solved.intervals for edge in pair if 0 < edge < 1]
            found[name].append(inside[-1] if inside else np.nan)
            met.append(solved.intervals[-1] if solved.intervals else (1.0, 0.0))
        found["low"].append(max(low for low, _ in met))
        found["high"].append(min(high for _, high in met))
    columns = {f"line_{name}": ("line_depth", digits(values, 4)) for name, values in found.items()}
    return xr.Dataset(columns, {"line_depth": depths})


def _joined_lines(names: list[str], lines: list[xr.Dataset]) -> xr.Dataset:
    return xr.concat(lines, xr.Variable("line_placement", names)) if names else xr.Dataset()


def _measured(tables: list[list[xr.Dataset]], checked: Any, names: tuple[str, ...]) -> xr.Dataset:
    """Simulated cells over (placement, check): quantities, and mean logarithms with their errors."""
    columns: dict[str, list[list[float]]] = {}
    for row in tables:
        cells = [quantities(table) | _logarithms(table) for table in row]
        for name in cells[0]:
            columns.setdefault(name, []).append([cell[name] for cell in cells])
    dims = ("placement", "check")
    found = xr.Dataset(
        {name: (dims, digits(values)) for name, values in columns.items()}, {"placement": _labels(names)}
    )
    found["check_exponent"] = "check", [k for k, _ in checked]
    found["check_depth"] = "check", [length for _, length in checked]
    return found


def _logarithms(table: xr.Dataset) -> dict[str, float]:
    first, last = table.isel(block=0), table.isel(block=-1)
    found = {
        "log_gain": first.log_grad_variance + np.log(TOKENS),
        "log_distinct": last.log_deviation - last.log_variance,
    }
    found["log_gain_se"] = first.log_grad_variance_se
    found["log_distinct_se"] = np.hypot(last.log_deviation_se, last.log_variance_se)
    for token, name in enumerate(("own", "other")):
        for suffix in ("", "_se"):
            found[f"log_{name}{suffix}"] = first[f"log_grad_token_variance{suffix}"][token]
    return {name: float(value) for name, value in found.items()}


def z(data: xr.Dataset, name: str) -> Any:
    """Scores of a quantity in every checked network; NaN where theory has 0, and so has simulation."""
    said, measured = data[f"checked_{name}"], data[f"log_{name}"]
    said = said.where((said != 0) | np.isfinite(measured))
    uncertain = data[f"checked_{name}_allowance"], measured, data[f"log_{name}_se"]
    with np.errstate(divide="ignore"):
        return scores(said, *uncertain, draws=int(data.attrs["light"]))


def _said(found: xr.Dataset) -> dict[str, float]:
    """What the caption says of some placements in their deepest networks; NaN for one that is left out."""
    said = {}
    for quantity in ("share", "distinct"):
        for word, k in (("quarter", 0.25), ("half", 0.5)):
            cells = found[f"theory_{quantity}"].isel(depth=-1).sel(exponent=k)
            for name in ("PreNorm", "PostNorm", "SpanNorm", "B2T"):
                there = name in found.placement
                said[f"{quantity}_{word}_{name.lower()}"] = float(cells.sel(placement=name)) if there else np.nan
    for name in PLACEMENTS:
        there = name in found.get("line_placement", ())
        for side in ("low", "high"):
            deep = found[f"line_{side}"].isel(line_depth=-1) if there else None
            said[f"{side}_{name.lower()}"] = np.nan if deep is None else float(deep.sel(line_placement=name))
    return said


def _labels(names: tuple[str, ...]) -> list[str]:
    return [pg.placements()[name].__name__ for name in names]


def draw(data: xr.Dataset) -> Any:
    """Above a panel of phases for each of three placements; below a panel for each quantity, a row a placement."""
    rows = 1.1 + 0.17 * data.sizes["placement"]
    with plots.style():
        shape, ratios = ((6, 1), [1.7] * 3 + [rows] * 3) if narrow() else ((2, 3), [2.1, rows])
        figure, axes = plots.panels(*shape, height=sum(ratios), height_ratios=ratios, sharey="row")
        axes = axes.reshape(2, 3)
        for axis, name in zip(axes[0], PLACEMENTS, strict=True):
            if name in data.get("line_placement", ()):
                _phases(axis, data.sel(line_placement=name), name)
        axes[0, 0].set_ylabel("exponent k")
        for axis, name in zip(axes[1], PANELS, strict=True):
            _cells(figure, axis, data, name)
    return figure


def _phases(axis: Any, data: xr.Dataset, placement: str) -> None:
    """The critical lines of a placement, each named at an end where no other is near."""
    shade = plots.colour(placement)
    depth, low, high = (data[name].to_numpy() for name in ("line_depth", "line_low", "line_high"))
    axis.fill_between(depth, low, np.maximum(low, high), color=shade, alpha=0.18, linewidth=0)
    for name, (level, word, style) in LINES.items():
        line = data[f"line_{name}"].to_numpy()
        axis.plot(depth, line, color=shade, linestyle=style)
        known = np.flatnonzero(np.isfinite(line))
        if not known.size:
            continue
        end = known[0] if name == "share" else known[-1]
        place: dict[str, Any] = {"ha": "left" if name == "share" else "right", "fontsize": 7}
        shift, arrow = (0, -9 if name == "distinct" else 3), None
        if name == "gain" and line[end] > high[end] - 0.15:  # the line above is too near: beyond it, with a pointer
            end, arrow = known[len(known) // 2], {"arrowstyle": "-", "linewidth": 0.6, "color": "0.4", "shrinkB": 0}
            shift = (50, 45)
        place |= {"va": "top" if name == "distinct" else "bottom", "arrowprops": arrow}
        axis.annotate(f"{word} ({level:g})", (depth[end], line[end]), shift, textcoords="offset points", **place)
    axis.set(xscale="log", title=placement, xlabel="depth", ylim=(-0.16, 1.05), yticks=[0, 0.25, 0.5, 0.75, 1])
    axis.set_yticklabels(["0", "1/4", "1/2", "3/4", "1"])
    axis.set_xticks([4, 8, 16, 32, 64], ["4", "8", "16", "32", "64"])
    axis.minorticks_off()


def _cells(figure: Any, axis: Any, data: xr.Dataset, name: str) -> None:
    """A quantity of all placements, columns by exponent and within it by depth."""
    title, label, colours, (low, high) = PANELS[name]
    groups, within, rows = data.sizes["exponent"], data.sizes["depth"], data.sizes["placement"]
    cells, discs = (np.log10(np.maximum(data[key], 1e-99)) for key in (f"theory_{name}", name))  # 0: the darkest
    cells = cells.to_numpy().reshape(rows, -1)
    look: dict[str, Any] = {"cmap": colours, "vmin": low, "vmax": high}
    image = axis.imshow(cells, aspect="auto", interpolation="nearest", **look)
    for column, (k, length) in enumerate(zip(data.check_exponent.values, data.check_depth.values, strict=True)):
        place = data.exponent.values.tolist().index(k) * within + data.depth.values.tolist().index(length)
        at = np.full(rows, place), np.arange(rows)
        axis.scatter(*at, c=discs[:, column], s=13, edgecolor="0.5", linewidth=0.3, **look)
    for edge in range(1, groups):
        axis.axvline(edge * within - 0.5, color="white", linewidth=2)
    axis.grid(False)
    axis.set_xticks(within * (np.arange(groups) + 0.5) - 0.5, ["0", "1/4", "1/2", "3/4", "1"])
    axis.set_yticks(range(rows), data.placement.values.tolist())
    axis.tick_params(length=0)
    axis.set(title=title, xlabel="exponent k; in each group\ndepth " + data.attrs["depths"])
    figure.colorbar(image, ax=axis, orientation="horizontal", label=label, extend="both", aspect=18)
