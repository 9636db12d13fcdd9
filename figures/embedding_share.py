"""How much of the stream is still the embedding: over blocks, depth, width and training; what drowns it; collisions."""

from __future__ import annotations

import math
from concurrent.futures import Executor
from typing import Any

import numpy as np
import xarray as xr

import propagate as pg
from figures import measure_embedding as trained
from figures import training_results as results
from figures.networks import SEED, digits
from propagate import plots
from propagate.figures import workers
from propagate.montecarlo.ngrams import count_collisions
from propagate.theory.ngrams import collision_rate, embedded_gram

SHARE, WIDTH, DEPTH, TOKENS = "embedding_share", 256, 24, 8
DRAWS = 64  # what is left by chance is, of tokens that have collapsed, the square of one normal a network
NETWORKS = tuple((name, scaled) for name in ("PreNorm", "PostNorm", "SpanNorm") for scaled in (False, True))
DEPTHS, WIDTHS = (1, 2, 4, 8, 16, 32, 64), (64, 128, 256, 512)
LONGEST = 512  # blocks that theory is asked for
RATIO, OFFSETS = 4, tuple(range(-12, 13))
SHADES = ("#7F7F7F", "#000000", "#CC79A7", "#56B4E9", "#E69F00")
TRACED = 8  # held-out sequences of a trace

FULL = {"draws": 96}
CAPTION = """\
**The embedding's share of the stream.** How much of a token's stream still lies along its embedding: the squared
cosine of the two. Lines: theory, s + (1 − s)/width, with s what the skips kept and 1/width what lies along the
embedding by chance. Points: simulation, mean over {draws} random networks, 95 % intervals. Solid and filled: no
scaling; dashed and open: ScaleInit(0.5). A: over the blocks of a network of {depth}. B: at its end, against the depth.
C: at the end of {depth_of_width} blocks without scaling, against the width, where the share of PostNorm and SpanNorm is
chance and little else.

D: language models of 24 blocks, thin at initialisation, thick after training (mean over 3 seeds, squared mean cosine;
the runs of layers_trained). E: what the first attention gives over the embedding that it enters beside (root mean
squares), over the steps of training of small PreNorm language models on embeddings of entries of standard deviation
{std:g}: tokens alone, and with hashed bigrams and trigrams in 4 tables, their sum divided by the count 5, by its root,
by the count and amplified by √width, and normed. Crosses: theory, from the text's Gram matrix with its shared n-grams
and collisions. Means over 3 seeds, 95 % intervals. F: of all pairs of bigrams of a text that differ, the share that
reads one row, over that of a perfect hash, against how far the table's rows lie from 4 times the vocabulary. Line:
predicted from how frequent tokens are; points: counted on the text.

Bears on LongCat-Flash-Lite's reasons (c) and (d), arXiv:2601.21204. (c) "In pre-norm the identity path carries ever
less of the early signal": it does. In PreNorm the share at the end falls as 1/depth (theory: {pre_4:.3f},
{pre_16:.3f} and {pre_64:.3f} at 4, 16 and 64 blocks), and training takes most of what initialisation leaves: at
block 20 of 24 it is {pre_first:.3f} at first and {pre_last:.3f} in the end. It is no matter of 20 blocks, and none
of PreNorm alone: norms on the skip lose the embedding exponentially, ScaleInit keeps a fifth to two fifths of it at
any depth and loses most of that in training too. (d) "Without amplification the first attention is ten times the
embedding": that is the embedding's size, and there at initialisation if embeddings are small. Divided by the count
it is {count_first:.1f} at first (theory {count_said:.1f}) and {count_last:.1f} after {steps} steps; divided by its
root {root_first:.1f} and {root_last:.1f}, amplified {scale_first:.2f} and {scale_last:.2f}, normed {norm_first:.2f}
and {norm_last:.2f}. Held-out losses in the end, in this order: {losses} (tokens alone {loss_alone}). Of a table of
exactly 4 times the vocabulary, {exact_said:.1f} times as many bigrams collide as in a perfect hash ({exact_seen:.1f}
counted), of the released code's first table, one row more, {next_said:.1f} ({next_seen:.1f} counted).

Of {judged} profiles simulated, {disagreeing} disagree with theory (|z| > 4). A to C: width {width}, {tokens} tokens,
ReLU, start covariance 0.3, weightless. Trained: width 64, 4 blocks, 32 tokens, SwiGLU, Adam at {lr:g}, {corpus}, as
bytes. Device: {device}. Seed {first_seed}.
"""


def model(placement: str, *, scaled: bool, depth: int, width: int) -> pg.Model:
    """A network of the upper row."""
    scaling = pg.ScaleInit(0.5) if scaled else None
    return pg.Model(placement, depth=depth, width=width, tokens=TOKENS, heads=4, scaling=scaling)


def data(
    draws: int = DRAWS,
    seed: int = SEED,
    executor: Executor | None = None,
    depth: int = DEPTH,
    width: int = WIDTH,
    backend: str = "numpy",
) -> xr.Dataset:
    """Shares over (network, block), (network, depth) and (network, width), and the stored runs of training."""
    depths = [one for one in DEPTHS if one <= 3 * depth]
    ways = {"block": [(depth, width)], "depth": [(one, width) for one in depths]}
    ways["width"] = [(depth // 2, one) for one in WIDTHS]
    with workers(executor) as pool:
        tasks: dict[Any, Any] = {}
        for number, (name, scaled) in enumerate(NETWORKS):
            for way, sizes in ways.items():
                for place, (length, wide) in enumerate(sizes):
                    own = (
                        1_000_000 * seed + 950_000 + 1000 * number + 10 * place + ["block", "depth", "width"].index(way)
                    )
                    options = {"seed": own, "draws": draws, "backend": backend}
                    tasks[number, way, place] = pool.submit(
                        share, name, scaled=scaled, depth=length, width=wide, **options
                    )
        found = {key: task.result() for key, task in tasks.items()}
    variables: dict[str, Any] = {}
    for row, column in enumerate(("theory", "share", "se")):
        blocks = [found[number, "block", 0][0][row] for number in range(len(NETWORKS))]
        variables[column] = ("network", "block"), digits(np.array(blocks))
        for way, place in (("depth", "length"), ("width", "wide")):
            ends = [
                [found[number, way, at][0][row][-1] for at in range(len(ways[way]))] for number in range(len(NETWORKS))
            ]
            variables[f"{column}_{way}"] = ("network", place), digits(np.array(ends))
    longer = [2**k for k in range(int(math.log2(LONGEST)) + 1)]
    variables["limit"] = ("network", "longer"), digits(np.array([_limits(*one, longer, width) for one in NETWORKS]))
    verdicts = [verdict for _, verdict, _ in found.values()]
    coords = {"placement": ("network", [name for name, _ in NETWORKS]), "scaled": ("network", [s for _, s in NETWORKS])}
    coords |= {"length": depths, "wide": list(WIDTHS), "longer": longer, "offset": list(OFFSETS)}
    table = xr.Dataset(variables | _collisions(), coords)
    drowned = _drowned()
    table = table.merge(_trained_shares()).merge(drowned).assign_attrs(drowned.attrs)
    told = {"judged": len(verdicts), "disagreeing": sum(one == "disagrees" for one in verdicts), "width": width}
    told |= {"draws": draws, "depth": depth, "depth_of_width": depth // 2, "tokens": TOKENS, "first_seed": seed}
    told |= {"device": next(iter(found.values()))[2]} | _told(table)
    return table.assign_attrs(told, propagate=pg.__version__)


def share(
    name: str, *, scaled: bool, depth: int, width: int, seed: int, draws: int, backend: str
) -> tuple[list[Any], str, str]:
    """Theory, simulation and its standard error over blocks; the verdict on the share; the device."""
    one = model(name, scaled=scaled, depth=depth, width=width)
    said = pg.predict(one, covariance=0.3, include={SHARE})
    run: dict[str, Any] = {"draws": draws, "seed": seed, "backend": backend, "sampler": "weightless"}
    seen = pg.simulate(one, covariance=0.3, include={SHARE}, progress=False, **run)
    verdict = str(pg.compare(said, seen).verdict.sel(quantity=SHARE).item())
    return (
        [table.to_numpy() for table in (said[SHARE], seen[SHARE], seen[f"{SHARE}_se"])],
        verdict,
        seen.attrs["device"],
    )


def _limits(name: str, scaled: bool, depths: list[int], width: int) -> list[float]:
    """Theory of the end, at every depth."""
    return [
        float(
            pg.predict(model(name, scaled=scaled, depth=depth, width=width), covariance=0.3, include={SHARE})[SHARE][-1]
        )
        for depth in depths
    ]


def _collisions() -> dict[str, Any]:
    """Predicted and counted, over those of a perfect hash."""
    text = pg.corpus().stream("training")
    frequencies, rows = np.bincount(text, minlength=256), [RATIO * 256 + offset for offset in OFFSETS]
    said = [one * collision_rate(frequencies, 2, one) for one in rows]
    seen = [one * count_collisions(pg.NGrams(2, 1, one), 256, text)[0] for one in rows]
    return {"collisions_said": ("offset", digits(np.array(said))), "collisions": ("offset", digits(np.array(seen)))}


def _trained_shares() -> xr.Dataset:
    """Of the stored profiles: over (architecture, end, layer), means over seeds."""
    profiles = results.stored("profiles")
    cells = [
        results.chosen(profiles, placement=n, exponent=k)
        for n in ("prenorm", "postnorm", "spannorm")
        for k in (0.0, 0.5)
    ]
    cosine = xr.concat(cells, "cell").layer_similarity.isel(block=0).mean("seed") ** 2
    found = cosine.transpose("cell", "end", "other_block").to_numpy()
    return xr.Dataset({"trained_share": (("architecture", "end", "layer"), digits(found))})


def _drowned() -> xr.Dataset:
    """First attention over embedding, of the stored arms and by theory of their initialisation."""
    table = xr.load_dataset(results.MEASURED / "training_embedding.nc", engine="scipy").isel(lr=-1)
    ratio = table.attention_ratio.isel(block=1).transpose("arm", "seed", "probe").to_numpy().astype(float)
    text, tokens = pg.corpus().stream("held_out"), trained.MODEL.tokens
    ids = np.stack([text[tokens * i : tokens * (i + 1)] for i in range(len(text) // tokens)]).astype(int)
    one = pg.Model(**{**_fields(trained.MODEL), "depth": 1})
    said = []
    for embedding in trained.ARMS.values():
        gram = embedded_gram(embedding, ids[:: max(len(ids) // TRACED, 1)][:TRACED], width=one.width)
        calls = pg.predict_calls(one, gram=gram)
        said.append(math.sqrt(float(calls.call_variance.sel(call="attention1")[1] / calls.variance[0])))
    seeds = ratio.shape[1]
    loss = table.held_out_loss.isel(probe=-1).transpose("arm", "seed").to_numpy().astype(float)
    found = {
        "ratio": (("arm", "probe"), digits(ratio.mean(1))),
        "ratio_se": (("arm", "probe"), digits(ratio.std(1, ddof=1) / seeds**0.5)),
        "ratio_said": ("arm", digits(np.array(said))),
        "loss": ("arm", digits(loss.mean(1))),
        "loss_se": ("arm", digits(loss.std(1, ddof=1) / seeds**0.5)),
    }
    keep = {"corpus": table.attrs["corpus"], "steps": int(table.attrs["steps"]), "std": float(table.attrs["std"])}
    return xr.Dataset(found, {"arm": list(trained.ARMS), "probe": table.probe.values}, keep | {"lr": float(table.lr)})


def _fields(one: pg.Model) -> dict[str, Any]:
    names = ("placement", "width", "tokens", "heads", "causal", "rope", "activation", "ffn_ratio")
    return {name: getattr(one, name) for name in names}


def _told(table: xr.Dataset) -> dict[str, Any]:
    """Numbers of the caption."""
    pre = table.limit.isel(network=0)
    told: dict[str, Any] = {f"pre_{depth}": float(pre.sel(longer=depth)) for depth in (4, 16, 64)}
    for key, end in (("pre_first", 0), ("pre_last", 1)):
        told[key] = float(table.trained_share.isel(architecture=0, end=end, layer=20))
    shown = dict(zip(("alone", "count", "root", "scale", "norm"), trained.ARMS, strict=True))
    for key, arm in shown.items():
        one = table.sel(arm=arm)
        told |= {f"{key}_first": float(one.ratio[0]), f"{key}_last": float(one.ratio[-1])}
        told[f"{key}_said"] = float(one.ratio_said)
    losses = [f"{float(one):.2f} ± {float(error):.2f}" for one, error in zip(table.loss, table.loss_se, strict=True)]
    told |= {"loss_alone": losses[0], "losses": ", ".join(losses[1:])}
    for key, offset in (("exact", 0), ("next", 1)):
        one = table.sel(offset=offset)
        told |= {f"{key}_said": float(one.collisions_said), f"{key}_seen": float(one.collisions)}
    told |= {key: table.attrs[key] for key in ("corpus", "steps", "std", "lr")}
    return {key: float(digits(value, 4)) if isinstance(value, float) else value for key, value in told.items()}


def draw(data: xr.Dataset) -> Any:
    """Six panels."""
    with plots.style():
        figure, axes = plots.panels(2, 3, height=4.8)
        over_blocks, over_depth, over_width, after, drowned, collide = axes.ravel()
        for number in range(data.sizes["network"]):
            one = data.isel(network=number)
            look: dict[str, Any] = {"placement": str(one.placement.item()), "scaled": bool(one.scaled)}
            at = np.unique(np.linspace(0, one.sizes["block"] - 1, 9).round().astype(int))
            plots.theory_line(over_blocks, np.arange(one.sizes["block"]), one.theory, **look)
            plots.simulation_points(over_blocks, at, one.share[at], one.se[at], **look)
            plots.theory_line(over_depth, one.longer, one.limit, **look)
            plots.simulation_points(over_depth, one.length, one.share_depth, one.se_depth, **look)
            if not look["scaled"]:
                plots.theory_line(over_width, one.wide, one.theory_width, **look)
                plots.simulation_points(over_width, one.wide, one.share_width, one.se_width, **look)
        for axis, name in ((over_blocks, "block"), (over_depth, "depth"), (over_width, "width")):
            axis.set(yscale="log", xlabel=name, ylim=(1e-3, 1.3))
        for axis in (over_depth, over_width):
            axis.set_xscale("log", base=2)
        over_blocks.set(ylabel="embedding's share")
        over_blocks.set_title("A: over the blocks")
        over_depth.set_title("B: at the end, against depth")
        over_width.set_title("C: at the end, against width")
        for number, (name, scaled) in enumerate(NETWORKS):
            for end, width in ((0, 0.7), (1, 2.0)):
                line = data.trained_share.isel(architecture=number, end=end)
                plots.theory_line(after, data.layer, line, placement=name, scaled=scaled, linewidth=width)
        after.set(
            yscale="log",
            xlabel="block",
            ylim=(1e-3, 1.3),
            ylabel="embedding's share",
            title="D: before and after training",
        )
        for shade, arm in zip(SHADES, data.arm.values, strict=True):
            one = data.sel(arm=arm)
            steps = np.maximum(one.probe, 3)  # 0 has no place on a logarithmic axis
            drowned.plot(steps, one.ratio, color=shade, linewidth=0.8)
            plots.simulation_points(drowned, steps, one.ratio, one.ratio_se, shade=shade)
            drowned.plot(
                [3], [float(one.ratio_said)], color=shade, marker="x", markersize=7, linestyle="none", zorder=4
            )
        ticks = np.maximum(data.probe.values, 3)
        drowned.set(xscale="log", yscale="log", xlabel="step", title="E: first attention / embedding")
        drowned.set_ylabel("ratio of root mean squares")
        drowned.set_xticks(ticks, [str(step) for step in data.probe.values])
        drowned.minorticks_off()
        drowned.axhline(1.0, color="0.6", linewidth=0.6)
        collide.plot(data.offset, data.collisions_said, color="0.3")
        collide.plot(data.offset, data.collisions, color="#D55E00", marker="o", markersize=3.0, linestyle="none")
        collide.axhline(1.0, color="0.6", linewidth=0.6)
        collide.set(yscale="log", xlabel="rows - 4 × vocabulary", title="F: collisions / a perfect hash's")
        collide.set_ylabel("ratio of shares")
        arms = [
            plots.entry(f"E: {arm}", color=shade, linewidth=2.0)
            for arm, shade in zip(data.arm.values, SHADES, strict=True)
        ]
        arms.append(plots.entry("E: theory", marker="x", markersize=5, linestyle="none"))
        ends = [plots.entry("D: at initialisation", linewidth=0.7), plots.entry("D: trained", linewidth=2.0)]
        names = tuple(dict.fromkeys(name for name, _ in NETWORKS))
        plots.legend(figure, [*plots.key(names, band=False), *ends, *arms], columns=5)
    return figure
