# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # The variance plots
#
# Three questions that one asks of any deep network before training it. How large does the stream become? Does the
# gradient reach the embedding? Do the tokens stay apart? Here for PreNorm, PostNorm and SpanNorm, with and without
# ScaleInit, which multiplies the output matrices of attention and FFN by depth^(-1/2). (The SpanNorm paper's own
# formula is not known to us; the exponent is a parameter here.)

# %%
import matplotlib.pyplot as plt
import numpy as np
from tour import size

import propagate as pg
from propagate import plots

plt.style.use("propagate.propagate")
depth, width, draws = size(64, fast=8), size(512, fast=128), size(12, fast=4)
PLACEMENTS = ("PreNorm", "PostNorm", "SpanNorm")

# %% [markdown]
# Six networks, theory and simulation. The start: 16 tokens of variance 1 and covariance 0.3, exactly, in every draw.
# The gradient enters at the stream that leaves the last block, with variance 1, independent over tokens.

# %%
networks = {}
for seed, (name, scaled) in enumerate((name, scaled) for name in PLACEMENTS for scaled in (False, True)):
    scaling = pg.ScaleInit(0.5) if scaled else None
    model = pg.Model(name, depth=depth, width=width, tokens=16, heads=8, activation="relu", scaling=scaling)
    theory = pg.predict(model, covariance=0.3)
    measured = pg.simulate(
        model, covariance=0.3, draws=draws, seed=seed, backend="numpy", sampler="weightless", progress=False
    )
    networks[name, scaled] = theory, measured


def picture(quantity, label):
    """A panel for each placement: theory as lines, simulation as points, with and without scaling."""
    figure, axes = plt.subplots(1, 3, sharey=True)
    for (name, scaled), (theory, measured) in networks.items():
        axis = axes[PLACEMENTS.index(name)]
        plots.profile(axis, quantity, theory, measured, placement=name, scaled=scaled)
        axis.set(title=name, yscale="log")
    axes[0].set_ylabel(label)
    plots.legend(figure, plots.key())


# %% [markdown]
# ## Forward: how large is the stream?

# %%
picture("variance", "variance\n(second moment per coordinate)")

# %% [markdown]
# PreNorm adds up its branches: variance grows in proportion to depth. With ScaleInit all branches together add about
# as much as the stream began with. PostNorm and SpanNorm end each block with a norm, so their variance is 1 by
# construction.
#
# ## Backward: does the gradient reach the embedding?

# %%
picture("grad_variance", "gradient variance, geometric mean\n(second moment per coordinate)")

# %% [markdown]
# Read from right to left. Without scaling, PostNorm's and SpanNorm's gradient falls within some blocks to a floor
# near 1/tokens and then *stays*: with ReLU it does not vanish with depth. PreNorm's grows towards the embedding,
# because the stream that its norms divide by is smallest there. With ScaleInit all three stay within about a factor
# of two of 1; that holds for PostNorm too, so it is the scaling that helps here as much as the placement.
#
# Points of one curve come from the same networks, so they stray together.
#
# ## Rank collapse: do tokens stay apart?
#
# `deviation / variance` is 1 - correlation of two tokens; at 0 they are one vector.

# %%
figure, axes = plt.subplots(1, 3, sharey=True)
for (name, scaled), (theory, measured) in networks.items():
    axis = axes[PLACEMENTS.index(name)]
    look = {"placement": name, "scaled": scaled}
    apart = theory.deviation / theory.variance
    plots.theory_line(axis, theory.block, apart, allowance=theory.deviation_allowance, **look)
    points = measured.isel(block=slice(None, None, max(1, depth // 12)))
    error = np.hypot(points.log_deviation_se, points.log_variance_se)
    plots.simulation_points(
        axis, points.block, points.log_deviation - points.log_variance, error, logarithmic=True, **look
    )
    axis.set(title=name, yscale="log", xlabel=plots.BLOCK_AXIS)
axes[0].set_ylabel("1 - correlation, geometric mean")
plots.legend(figure, plots.key())
plt.show()

# %% [markdown]
# This is what goes wrong in deep unscaled PostNorm: a factor of 1/2 a block, so that after 64 blocks two tokens
# differ by 10^-19 of their size. SpanNorm takes about 2.4 times as many blocks to get there, and PreNorm falls only
# as a power of depth. With ScaleInit nobody collapses.
#
# ## Do theory and simulation agree?

# %%
for (name, scaled), (theory, measured) in networks.items():
    verdict = pg.compare(theory, measured)
    label = "ScaleInit(0.5)" if scaled else "no scaling"
    print(f"{name:9} {label:15} largest |z| {float(verdict.worst_z.max()):.1f}: {verdict.attrs['verdict']}")

# %% [markdown]
# ## What to try next
#
# - `activation="swiglu"`: whose gradient explodes now?
# - `covariance=0.0`, or a Gram matrix of your own tokens: `pg.predict(model, gram=...)`.
# - `causal=True`: tables gain `token_variance` and `grad_token_variance`, a value for each token.
# - The same pictures with 128 blocks, and a third start from English text, are in `figures/`.
