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
# # Where does PostNorm's gradient go?
#
# The textbook argument: PostNorm's skip path meets two norms a block, each divides a sum of two equal parts, so the
# gradient variance is halved twice a block and vanishes as 4^(-depth). What does it get right, and what wrong?

# %%
import matplotlib.pyplot as plt
import numpy as np
from tour import size

import propagate as pg
from propagate import plots

plt.style.use("propagate.propagate")
depth, width, draws, tokens = size(32, fast=6), size(512, fast=128), size(12, fast=4), 16
run = {"draws": draws, "backend": "numpy", "sampler": "weightless", "progress": False}


def postnorm(**fields):
    return pg.Model("postnorm", depth=depth, width=width, tokens=tokens, heads=8, **fields)


# %% [markdown]
# ## The skip path is not the gradient
#
# `skip_gain` is what the gradient variance would be if the gradient returned along the skips alone.

# %%
theory = pg.predict(postnorm(), covariance=0.3)
measured = pg.simulate(postnorm(), covariance=0.3, seed=0, **run)

figure, axis = plt.subplots(figsize=(plots.COLUMN, 2.6))
plots.profile(axis, "grad_variance", theory, measured, placement="postnorm")
axis.plot(theory.block, theory.skip_gain, "-.", color=plots.colour("postnorm"), linewidth=0.9)
axis.axhline(1 / tokens, color="0.35", linestyle=":", linewidth=0.9)
axis.set(yscale="log", ylim=(1e-20, 10), ylabel="gradient variance\n(per coordinate)")
handles = [plots.entry("total"), plots.entry("skips alone", linestyle="-."), plots.entry("1 / tokens", linestyle=":")]
axis.legend(handles=handles)
plt.show()

# %% [markdown]
# The argument is right about the skips and wrong about the gradient. Branches are not only a loss in the denominator;
# they carry gradient back too. A ReLU FFN returns exactly as much as its output added to the sum, so it costs
# nothing. What costs is attention, and only once: the gradient falls to a floor of order 1/tokens and stays there.
#
# ## What does vanish: differences between tokens
#
# Split the gradient of the sequence into its mean over tokens and the rest. The mean mode has the second moment
# grad_variance + (tokens - 1) grad_covariance; the rest, `grad_deviation` = grad_variance - grad_covariance. Forward,
# the same split of the stream: `deviation` is how much tokens differ.

# %%
figure, axes = plt.subplots(1, 2, sharey=True)
mean_mode = theory.grad_variance + (tokens - 1) * theory.grad_covariance
axes[0].plot(theory.block, mean_mode, color="black", label="token mean (theory)")
plots.profile(axes[0], "grad_deviation", theory, measured, placement="postnorm")
axes[0].set(title="backward", yscale="log", ylabel="second moment\n(per coordinate)")
axes[0].legend(handles=[plots.entry("token mean", color="black"), plots.entry("differences", color="#D55E00")])
plots.profile(axes[1], "deviation", theory, measured, placement="postnorm")
axes[1].set(title="forward", yscale="log")

later = slice(2 * depth // 3, depth)
for label, line in (("backward", theory.grad_deviation), ("forward", theory.deviation)):
    steps = np.diff(np.log(line.isel(block=later)))
    print(f"{label}: differences fall by a factor of {np.exp(-abs(steps).mean()):.2f} a block, in the later blocks")

# %% [markdown]
# The mean over tokens passes at a constant size. The differences between tokens are halved in every block: forward,
# until at the top all tokens are the same vector; and backward, at the same rate, from the top down. PostNorm's
# disease at initialisation is rank collapse: one disease with two faces.
#
# Backward the differences come up again towards the embedding, to some percent. There tokens are still distinct, so
# ReLU masks their gradients differently, and a gradient that all tokens share is no longer shared. (With
# `activation="linear"` there are no masks, and the two lines are mirror images.) The allowance for finite width,
# shaded, is wide where differences are small: a small part, of order 1/width, of the mean leaks into them.
#
# ## Where the textbook is right: a causal mask
#
# A decoder's last token is seen by no later one: nothing but its own path brings its gradient back.

# %%
causal = postnorm(causal=True)
theory = pg.predict(causal, covariance=0.3)
measured = pg.simulate(causal, covariance=0.3, seed=1, **run)

figure, axis = plt.subplots(figsize=(plots.COLUMN, 2.6))
places = np.arange(1, tokens + 1)
plots.theory_line(axis, places, theory.grad_token_variance[0], placement="postnorm")
log = measured.log_grad_token_variance[0], measured.log_grad_token_variance_se[0]
plots.simulation_points(axis, places, *log, placement="postnorm", logarithmic=True)
axis.set(
    yscale="log", xlabel="token", ylabel="gradient variance at the\nembedding (per coordinate)", title="causal mask"
)
axis.set_xticks([1, 4, 8, 12, 16])
plt.show()

# %% [markdown]
# The first token, which all others look at, collects the gradient. Every other token's gradient does vanish with
# depth, exponentially: here is the vanishing gradient of the textbook, in the tokens behind the first.
#
# ## It depends on the activation
#
# What an FFN returns, for what it adds, depends on its activation: as much (ReLU), a little more (GELU), twice as
# much (SwiGLU).

# %%
figure, axis = plt.subplots(figsize=(plots.COLUMN, 2.6))
kinds = {"relu": "#0072B2", "gelu": "#D55E00", "swiglu": "#009E73"}
for seed, (activation, colour) in enumerate(kinds.items(), start=2):
    model = postnorm(activation=activation)
    theory = pg.predict(model, covariance=0.3)
    seen = pg.simulate(model, covariance=0.3, seed=seed, **run).isel(block=slice(None, None, max(1, depth // 8)))
    plots.theory_line(axis, theory.block, theory.grad_variance, placement="", color=colour)
    log = seen.log_grad_variance, seen.log_grad_variance_se
    plots.simulation_points(axis, seen.block, *log, shade=colour, logarithmic=True)
axis.set(yscale="log", xlabel=plots.BLOCK_AXIS, ylabel="gradient variance\n(per coordinate)")
axis.legend(handles=[plots.entry(name, color=colour) for name, colour in kinds.items()])
plt.show()

# %% [markdown]
# Same placement, same depth: a floor with ReLU, nearly one with GELU, an explosion with SwiGLU. An argument that
# counts norms and skips cannot tell these apart.
#
# So: *right*, the skip path, and the gradient of a decoder's later tokens. *Wrong*, the total gradient of an encoder,
# and any statement that does not name the activation. *Missing*, that tokens become indistinguishable.
#
# All this is at initialisation. It does not say what training does with it.
#
# ## What to try next
#
# - `grad_covariance=1.0`: a gradient that all tokens share, as a pooled loss would send. What becomes of the floor?
# - The same with `"spannorm"`, whose skip path has one norm a block; `figures/twice_as_deep.md` has the answer.
# - `pg.recursion("postnorm")` prints the map whose modes these are.
