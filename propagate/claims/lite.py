"""Claims of LongCat-Flash-Lite on the embedding: what depth leaves of it, and what drowns it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from propagate.claims.claim import Claim, Evidence, Sources, of_runs
from propagate.model import Model
from propagate.systems import configuration

if TYPE_CHECKING:
    import xarray as xr

SHARE = "embedding_share"
DEEP = 20
"""Blocks beyond which the source sees the gain shrink."""
TENFOLD = 10.0


def share_at_first(sources: Sources) -> Evidence:
    """PreNorm's, at initialisation: as 1 / depth."""
    said = sources.predict(Model("prenorm", depth=2 * DEEP, width=3072), include={SHARE}, covariance=0.3)[SHARE]
    near, far = float(said[DEEP]), float(said[2 * DEEP])
    words = f"PreNorm's stream at block {DEEP} is embedding by a share of {near:.4f}, at block {2 * DEEP} of {far:.4f}."
    return Evidence("theory", words, bool((np.diff(said) < 0).all()) and 0.4 < far / near < 0.6)


def share_simulated(sources: Sources) -> Evidence:
    """The same of random networks, of which fewer blocks are enough."""
    model = Model("prenorm", depth=8, width=128, tokens=8, heads=2)
    seen = sources.simulate(model, include={SHARE}, covariance=0.3, draws=16, backend="numpy", progress=False)
    (near, error), (far, other) = [[float(seen[n][b]) for n in (SHARE, f"{SHARE}_se")] for b in (4, 8)]
    at = f"{near:.3f} +- {error:.3f} at block 4, {far:.3f} +- {other:.3f} at block 8"
    words = f"16 random PreNorm networks, width 128: {at}."
    return Evidence("simulation", words, 0.4 < far / near < 0.7, device=seen.attrs["device"])


@of_runs("profiles")
def share_trained(profiles: xr.Dataset) -> Evidence:
    """Squared cosine of the streams at the embedding and at a block, before and after training."""
    plain = np.flatnonzero((profiles.architecture == "prenorm").values)
    cosine = profiles.layer_similarity.isel(cell=plain[0], block=0).transpose("seed", "end", "other_block").values
    share, seeds = np.square(cosine), len(cosine)
    first, last = (share[:, end, DEEP] for end in (0, 1))
    errors = [float(one.std(ddof=1) / math.sqrt(seeds)) for one in (first, last)]
    falls = bool((np.diff(share[:, 1, 1:].mean(0)) < 0).all())
    words = (
        f"PreNorm of {share.shape[-1] - 1} blocks, {seeds} trained networks, block {DEEP}: {first.mean():.4f} +- "
        f"{errors[0]:.4f} at first, {last.mean():.4f} +- {errors[1]:.4f} in the end."
    )
    return Evidence("training", words, falls and float(last.mean()) < float(first.mean()) / 2)


def drowned_at_first(sources: Sources) -> Evidence:
    """First attention over embedding, root mean squares, at the released sizes: by how embeddings are sized."""
    lite = configuration("longcat-flash-lite")
    fields, size = lite.fields(), float(lite.start().variance)
    width, terms = fields["width"], lite.values["ngram_tables"] * (lite.values["ngram_longest"] - 1) + 1
    same: dict[str, Any] = {"attention": fields["attention"], "norm": fields["norm"], "ffn_gain": 1e-6}
    model = Model("prenorm", depth=1, width=width, tokens=32, **same)

    def ratio(variance: float) -> float:
        said = sources.predict(model, variance=variance).variance
        return math.sqrt(float(said[1] - said[0]) / variance)

    count, root, scaled, normed = (ratio(one) for one in (size, size * terms, size * width, 1.0))
    words = (
        f"at the released sizes, 32 unlike tokens and entries of standard deviation {lite.values['std']:g}: "
        f"{count:.0f} over the count of terms and {root:.0f} over its root, {scaled:.1f} amplified by the root of the "
        f"width, {normed:.2f} normed; it is the embedding's size, and there before training."
    )
    return Evidence("theory", words, count > TENFOLD > max(scaled, normed))


@of_runs("embedding")
def drowned_in_training(arms: xr.Dataset) -> Evidence:
    """The same of small language models, in the end, at the larger rate."""
    found = arms.attention_ratio.isel(lr=-1, block=1).transpose("arm", "seed", "probe").values.astype(float)
    names = [str(name) for name in arms.arm.values]
    mean, seeds = found.mean(1), found.shape[1]
    error = found.std(1, ddof=1) / math.sqrt(seeds)
    told = [
        f"{name} {mean[i, 0]:.2f} at first and {mean[i, -1]:.2f} +- {error[i, -1]:.2f} in the end"
        for i, name in enumerate(names)
    ]
    drowned, others = names.index("over the count"), [names.index(one) for one in ("times root of width", "normed")]
    words = (
        f"{seeds} networks of {arms.sizes['block'] - 1} blocks for each, embeddings of standard deviation "
        f"{arms.attrs['std']:g}: {'; '.join(told)}."
    )
    return Evidence("training", words, mean[drowned, -1] > TENFOLD > mean[others, -1].max())


CLAIMS = (
    Claim(
        name="Lite 1",
        words="in pre-norm the identity path carries ever less of the early signal beyond 20 layers",
        source="arXiv:2601.21204, of N-gram embeddings (c)",
        sure="from the full text",
        statement=(
            "In PreNorm the embedding's share of the stream falls as 1 / depth at initialisation, and training takes "
            "more than half of what is left at block 20."
        ),
        tests=(share_at_first, share_simulated, share_trained),
        change="networks that keep the embedding on the stream through training.",
    ),
    Claim(
        name="Lite 2",
        words="without amplification the first attention's output is ten times the embedding's norm",
        source="arXiv:2601.21204, of embedding amplification (d)",
        sure="from the full text; it is said to develop in training, from norms that are alike",
        statement=(
            "The first attention's output exceeds the embedding by a factor of ten or more where the sum of terms is "
            "divided by their count, and does not where that is amplified by the root of the width or normed."
        ),
        tests=(drowned_at_first, drowned_in_training),
        change="the standard deviations that the released embeddings began with, which are not published.",
    ),
)
