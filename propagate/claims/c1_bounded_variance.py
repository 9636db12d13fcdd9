"""C1: with its scaling, SpanNorm's signal stays bounded through the network."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from propagate.claims.claim import Claim, Evidence, Sources, of_runs
from propagate.model import Model
from propagate.scaling import ScaleInit

if TYPE_CHECKING:
    import xarray as xr

DEPTHS = (24, 96, 384)
BOUND = 10.0
"""Variance and gradient variance between 1/10 and 10 of what enters are called bounded."""


def theory(sources: Sources) -> Evidence:
    """Stream and gradient, over three activations and a sixteenfold depth."""
    gains, sizes = [], []
    for activation in ("relu", "gelu", "swiglu"):
        for depth in DEPTHS:
            model = Model("spannorm", depth=depth, activation=activation, scaling=ScaleInit(0.5))
            said = sources.predict(model, covariance=0.3)
            gains.append(float(said.grad_variance[0] / said.grad_variance[-1]))
            sizes += [float(said.variance.max()), float(said.variance[1:].min())]
    low, high = min(gains), max(gains)
    said_ = (
        f"with ScaleInit 1/2 at {DEPTHS[0]} to {DEPTHS[-1]} blocks of ReLU, GELU or SwiGLU the stream's variance is "
        f"{min(sizes):.3g} to {max(sizes):.3g} and the gradient's gain {low:.3g} to {high:.3g}."
    )
    return Evidence("theory", said_, min(low, *sizes) > 1 / BOUND and max(high, *sizes) < BOUND)


def proof(sources: Sources) -> Evidence | None:
    """Of the bounds with a ReLU FFN."""
    proved = sources.proved(("9", "10"))
    if proved is None:
        return None
    said = (
        "propositions 9 and 10, that SpanNorm's gradient gain with ReLU is bounded from both sides at every depth for "
        f"exponent 1/2, {'are proved' if proved else 'are NOT proved'}."
    )
    return Evidence("proof", said, proved)


def simulation(sources: Sources) -> Evidence:
    """A small network of 24 blocks."""
    model = Model("spannorm", depth=24, width=128, tokens=16, scaling=ScaleInit(0.5))
    seen = sources.simulate(model, covariance=0.3, draws=8, backend="numpy", progress=False)
    gain, error = float(seen.grad_variance[0]), float(seen.grad_variance_se[0])
    said = f"8 random networks of 24 blocks, width 128: gradient gain {gain:.2f} +- {error:.2f}."
    bounded = bool(gain - 3 * error > 1 / BOUND and gain + 3 * error < BOUND)
    return Evidence("simulation", said, bounded, device=seen.attrs["device"])


@of_runs("profiles")
def training(profiles: xr.Dataset) -> Evidence:
    """The stream's variance in trained networks."""
    at = profiles.sel(cell=profiles.architecture.values == "spannorm+0.5").isel(cell=0).sel(share=1.0)
    sizes = at.variance.values[:, 1:]
    gains = at.grad_variance.values[:, 0] / at.grad_variance.values[:, -1]
    said = (
        f"after training, {len(sizes)} runs of 24 blocks at their best rate: variance behind the blocks "
        f"{np.min(sizes):.2g} to {np.max(sizes):.2g}, gradient gain {np.min(gains):.2g} to {np.max(gains):.2g}."
    )
    extremes = (float(np.min(sizes)), float(np.max(sizes)), float(np.min(gains)), float(np.max(gains)))
    return Evidence("training", said, min(extremes) > 1 / BOUND and max(extremes) < BOUND)


CLAIM = Claim(
    name="C1",
    words="signal variance is bounded throughout the network",
    source="abstract of arXiv:2601.22580",
    sure="in the sense of the abstract, whose text was not available to us; the scaling's formula is not known",
    statement=(
        f"With ScaleInit of exponent 1/2, variance and gradient variance stay within a factor of {BOUND:g} of "
        "what enters, at any depth."
    ),
    tests=(theory, proof, simulation, training),
    change="another exponent: below 1/4 the bounds do not hold; with GELU or SwiGLU below 1/2.",
)
