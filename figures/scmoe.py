"""LongCat-Flash's layer: how correlated its two paths are, and its streams over depth in every placement of norms."""

from __future__ import annotations

from concurrent.futures import Executor
from typing import Any

import numpy as np
import xarray as xr

import propagate as pg
from figures.networks import digits
from propagate import plots
from propagate.figures import workers
from propagate.shortcuts import ScMoE, ScMoEPeri, ScMoEPost, ScMoESequence, ScMoESpan, path_correlation

DEPTH, WIDTH, TOKENS, HEADS, DRAWS, SEED = 16, 256, 8, 4, 24, 0
CANDIDATES, CHOSEN, GAIN = 24, 6, 3.0
START = {"covariance": 0.3}
NETWORKS: dict[str, tuple[pg.Placement, int, str]] = {  # label: equations, identity experts, colour
    "ScMoE": (ScMoE(), 8, "#0072B2"),
    "in sequence": (ScMoESequence(), 8, "#56B4E9"),
    "ScMoE without identity experts": (ScMoE(), 0, "#000000"),
    "Peri-LN": (ScMoEPeri(), 8, "#CC79A7"),
    "PostNorm": (ScMoEPost(), 8, "#D55E00"),
    "SpanNorm by pairs": (ScMoESpan(), 8, "#009E73"),
    "SpanNorm over the layer": (ScMoESpan(whole=True), 8, "#E69F00"),
}
SCALINGS = {"none": None, "ScaleInit(0.5)": pg.ScaleInit(0.5)}
QUANTITIES = ("variance", "deviation", "grad_variance")
IDENTITY = (0, 2, 4, 6, 8, 12, 16)
VARIANCES = (1.0, 20.0)  # of the stream where the paths part
WAYS = {"forward": "#0072B2", "backward": "#D55E00"}
BATCHES = 12  # of draws, between which a correlation's standard error is measured

FULL = {"draws": 96, "width": 1024}
CAPTION = """\
**LongCat-Flash's layer and its shortcut.** A layer has two attentions, two dense FFNs and a mixture of experts, which
reads what the first FFN reads and joins at the layer's end (ScMoE, arXiv:2509.01322; the placements of norms other
than PreNorm are ours, see `propagate.shortcuts`). Lines: theory, token by token, routers drawn. Points: simulation,
95 % intervals over {draws} random networks.

Left above: correlation of what the two paths bring to the end of a layer (blue) and of the cotangents that they return
to where they part (red), against the share of identity experts among the {candidates} candidates; dashed: where the
stream has variance {later:g}, as deep in a network. Branches have weights of their own, so that it is not the shared
input that makes the paths alike: it is the identity experts, which hand on the normed stream. With a third of them it
is {forward:.2f} forward and {backward:.2f} back at variance 1, {forward_later:.2f} and {backward_later:.2f} at
{later:g}; without them 0.

The others: variance of the stream, 1 - correlation of two tokens and gradient variance against the layer, geometric
means, {depth} layers. What it shows: (1) Against the same five sublayers in sequence the shortcut hardly changes the
stream at initialisation, {shortcut:+.0f} % variance at the end: in PreNorm a branch adds its own variance wherever it
joins. The gradient at the embedding is {shortcut_gradient:+.0f} %: what returns along the shortcut adds to what
returns along the dense path, where in sequence they multiply. (2) Identity experts are a second skip, of the normed
stream, that no scaling of output matrices reaches: under ScaleInit the variance ends at {scaled:.0f} with them and at
{scaled_without:.1f} without. Peri-LN norms what branches give, and so undoes ScaleInit: {scaled_peri:.0f}.
(3) Unscaled, norms of sums pay with the gradient: at the embedding it is {gradient_post:.1g} in PostNorm,
{gradient_span:.1g} in SpanNorm by pairs and {gradient_whole:.1g} in SpanNorm over the layer, whose routers' gates are
not renormalised; with ScaleInit {scaled_post:.1f}, {scaled_span:.1f} and {scaled_whole:.1f}. SpanNorm keeps tokens
apart, PostNorm does not. Of {judged} quantities and networks {agreeing} are not rejected at |z| < 4; largest |z|
{worst:.1f}.

Width {width}, {heads} heads, {tokens} tokens, SwiGLU FFNs of {hidden} units and experts of 64, {chosen} of {candidates}
candidates chosen by a softmax before the choice, routed scale {gain:g}, one third identity experts; start: variance 1,
covariance 0.3. Device: {device}. Seed {first_seed}.
"""


def model(placement: pg.Placement, identity: int, width: int, depth: int, scaling: Any = None) -> pg.Model:
    """A network of the figure."""
    experts = pg.Experts(
        CANDIDATES - identity,
        top_k=CHOSEN,
        identity=identity,
        softmax="before",
        gain=GAIN,
        ffn=pg.FFN("swiglu", hidden=64),
    )
    size: dict[str, Any] = {"width": width, "depth": depth, "tokens": TOKENS, "heads": HEADS}
    return pg.Model(placement, experts=experts, scaling=scaling, activation="swiglu", ffn_ratio=0.5, **size)


def data(
    draws: int = DRAWS,
    seed: int = SEED,
    executor: Executor | None = None,
    depth: int = DEPTH,
    width: int = WIDTH,
    backend: str = "numpy",
) -> xr.Dataset:
    """Theory and simulation over (scaling, network, block), and correlations over (start, identity, way)."""
    run: dict[str, Any] = {"draws": draws, "backend": backend, "width": width}
    with workers(executor) as pool:
        cells = [
            pool.submit(network, name, scaling, depth=depth, seed=1_000_000 * seed + 900_000 + number, **run)
            for number, (scaling, name) in enumerate((s, n) for s in SCALINGS for n in NETWORKS)
        ]
        points = [
            pool.submit(paths, count, variance, seed=1_000_000 * seed + 910_000 + 100 * number, **run)
            for number, (variance, count) in enumerate((v, n) for v in VARIANCES for n in IDENTITY)
        ]
        tables, correlations = [cell.result() for cell in cells], [point.result() for point in points]
    rows = [tables[at : at + len(NETWORKS)] for at in range(0, len(tables), len(NETWORKS))]
    labels = xr.Variable("network", list(NETWORKS))
    found = xr.concat(
        [xr.concat(row, labels, combine_attrs="drop") for row in rows], xr.Variable("scaling", list(SCALINGS))
    )
    shape = (len(VARIANCES), len(IDENTITY), len(WAYS))
    for key, values in zip(("theory_path", "path", "path_se"), np.array(correlations).transpose(1, 0, 2), strict=True):
        found[key] = ("start", "identity", "way"), digits(values.reshape(shape))
    found = found.assign_coords(start=list(VARIANCES), identity=list(IDENTITY), way=list(WAYS))
    shared = {"draws": draws, "width": width, "depth": depth, "tokens": TOKENS, "heads": HEADS, "first_seed": seed}
    shared |= {"candidates": CANDIDATES, "chosen": CHOSEN, "gain": GAIN, "hidden": width // 2, "later": VARIANCES[1]}
    return found.assign_attrs(
        shared | _told(found), device=tables[0].attrs["device"], propagate=pg.__version__, batches=BATCHES
    )


def network(name: str, scaling: str, *, depth: int, seed: int, draws: int, width: int, backend: str) -> xr.Dataset:
    """One network, in the process that calls it: geometric means, and the score of every quantity."""
    placement, identity, _ = NETWORKS[name]
    one = model(placement, identity, width, depth, SCALINGS[scaling])
    said = pg.predict(one, **START)
    seen = pg.simulate(one, draws=draws, seed=seed, backend=backend, sampler="weightless", progress=False, **START)
    judged = pg.compare(said, seen)
    found: dict[str, Any] = {}
    for key in QUANTITIES:
        found[f"theory_{key}"] = "block", digits(said[key] * np.exp(said[f"log_{key}_bias"]))
        found[key], found[f"{key}_se"] = (("block", digits(seen[f"log_{key}{end}"])) for end in ("", "_se"))
    found["z"] = "quantity", digits(judged.worst_z.sel(quantity=list(QUANTITIES)), 4)
    blocks = {"block": np.arange(depth + 1), "quantity": list(QUANTITIES)}
    return xr.Dataset(found, blocks, {"device": seen.attrs["device"]})


def paths(
    identity: int, variance: float, *, seed: int, draws: int, width: int, backend: str
) -> tuple[list[float], list[float], list[float]]:
    """Correlations of the two paths, forward and backward: predicted, measured, and the standard error."""
    one = model(pg.placement("scmoepaths"), identity, width, 1)
    start = {"variance": variance, "covariance": variance * START["covariance"]}
    run: dict[str, Any] = {"draws": draws, "backend": backend, "sampler": "weightless", "progress": False}
    said = path_correlation(pg.predict(one, **start))
    seen = [path_correlation(pg.simulate(one, seed=seed + at, **run, **start)) for at in range(BATCHES)]
    measured = np.array([[batch[way] for way in WAYS] for batch in seen])
    error = measured.std(axis=0, ddof=1) / BATCHES**0.5
    return [said[way] for way in WAYS], measured.mean(axis=0).tolist(), error.tolist()


def _told(found: xr.Dataset) -> dict[str, Any]:
    """Numbers of the caption, as they were simulated."""

    def end(name: str, scaling: str, quantity: str, block: int) -> float:
        return float(np.exp(found[quantity].sel(network=name, scaling=scaling)[block]))

    plain, scaled = SCALINGS
    told: dict[str, Any] = {}
    for key, name in (("post", "PostNorm"), ("span", "SpanNorm by pairs"), ("whole", "SpanNorm over the layer")):
        told[f"gradient_{key}"] = end(name, plain, "grad_variance", 0)
        told[f"scaled_{key}"] = end(name, scaled, "grad_variance", 0)
    told["shortcut"] = 100 * (end("ScMoE", plain, "variance", -1) / end("in sequence", plain, "variance", -1) - 1)
    gradients = [end(name, plain, "grad_variance", 0) for name in ("ScMoE", "in sequence")]
    told["shortcut_gradient"] = 100 * (gradients[0] / gradients[1] - 1)
    told["scaled"] = end("ScMoE", scaled, "variance", -1)
    told["scaled_without"] = end("ScMoE without identity experts", scaled, "variance", -1)
    told["scaled_peri"] = end("Peri-LN", scaled, "variance", -1)
    for way in WAYS:
        for key, start in ((way, VARIANCES[0]), (f"{way}_later", VARIANCES[1])):
            told[key] = float(found.theory_path.sel(way=way, identity=8, start=start))
    scores = np.abs(found.z.to_numpy())
    told |= {"judged": scores.size, "agreeing": int((scores < 4).sum()), "worst": float(scores.max())}
    return {key: float(digits(value, 4)) if isinstance(value, float) else value for key, value in told.items()}


def draw(data: xr.Dataset) -> Any:
    """Correlations of the paths, and five panels over depth."""
    plain, scaled = SCALINGS
    over_depth = (  # quantity, scaling, title, those shown
        ("variance", plain, "variance, no scaling", list(NETWORKS)[:4]),
        ("variance", scaled, "variance, ScaleInit(0.5)", list(NETWORKS)[:4]),
        ("deviation", plain, "1 - correlation, no scaling", list(NETWORKS)),
        ("grad_variance", plain, "gradient variance, no scaling", list(NETWORKS)),
        ("grad_variance", scaled, "gradient variance, ScaleInit(0.5)", list(NETWORKS)),
    )
    with plots.style():
        figure, axes = plots.panels(2, 3, height=4.6)
        first, *others = axes.ravel()
        share = data.identity / CANDIDATES
        for way, shade in WAYS.items():
            for start, line in zip(VARIANCES, ("-", "--"), strict=True):
                one = data.sel(way=way, start=start)
                plots.theory_line(first, share, one.theory_path, placement="", color=shade, linestyle=line)
                plots.simulation_points(first, share, one.path, one.path_se, shade=shade, scaled=line == "--")
        first.set(title="correlation of the two paths", xlabel="share of identity experts", ylim=(-0.05, 1))
        for axis, (quantity, scaling, title, names) in zip(others, over_depth, strict=True):
            for name in names:
                one, shade = data.sel(network=name, scaling=scaling), NETWORKS[name][2]
                line, points, error = (one[key] for key in (f"theory_{quantity}", quantity, f"{quantity}_se"))
                if quantity == "deviation":
                    line, points = line / one.theory_variance, points - one.variance
                plots.theory_line(axis, one.block, line, placement="", color=shade)
                at = np.unique(np.linspace(0, one.sizes["block"] - 1, 9).round().astype(int))
                at = at[np.isfinite(points[at])]
                plots.simulation_points(axis, at, points[at], error[at], shade=shade, logarithmic=True)
            axis.set(title=title, xlabel="layer", yscale="log" if quantity != "deviation" else "linear")
        shades = [plots.entry(name, color=shade, linewidth=2.0) for name, (_, _, shade) in NETWORKS.items()]
        ways = [plots.entry(f"{way} (first panel)", color=shade) for way, shade in WAYS.items()]
        later = plots.entry(f"stream of variance {VARIANCES[1]:g}", color="0.3", linestyle="--")
        plots.legend(figure, [*shades, *ways, later], columns=4)
    return figure
