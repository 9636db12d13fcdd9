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

import propagate as pg

plt.style.use("propagate.propagate")

# %% tags=["parameters"]
depth, width, draws = 32, 512, 12

# %%
tokens = 16


def both(seed, **fields):
    """Theory and simulation of a PostNorm network."""
    model = pg.Model("postnorm", depth=depth, width=width, tokens=tokens, heads=8, **fields)
    measured = pg.simulate(model, covariance=0.3, draws=draws, seed=seed, backend="numpy")
    return pg.predict(model, covariance=0.3), measured


# %% [markdown]
# ## The skip path is not the gradient
#
# `skip_gain` is what the gradient variance would be if the gradient returned along the skips alone.

# %%
theory, measured = both(seed=0)
figure = pg.plot(theory, measured, quantities=["grad_variance"])
[axis] = figure.axes
axis.plot(theory.block, theory.skip_gain, "-.", label="skips alone")
axis.axhline(1 / tokens, color="0.35", linestyle=":", label="1 / tokens")
axis.legend()
figure

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
figure = pg.plot(theory, measured, quantities=["grad_deviation", "deviation"])
backward, forward = figure.axes
backward.plot(
    theory.block, theory.grad_variance + (tokens - 1) * theory.grad_covariance, "-.", label="mean over tokens"
)
backward.legend(loc="center")

later = slice(2 * depth // 3, depth)
for label, line in (("backward", theory.grad_deviation), ("forward", theory.deviation)):
    steps = np.diff(np.log(line.isel(block=later)))
    print(f"{label}: differences fall by a factor of {np.exp(-abs(steps).mean()):.2f} a block, in the later blocks")
figure

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
# A decoder's last token is seen by no later one: nothing but its own path brings its gradient back. Here is the
# gradient at the embedding, token by token:

# %%
pg.plot(*(table.isel(block=0) for table in both(seed=1, causal=True)), quantities=["grad_token_variance"])

# %% [markdown]
# The first token, which all others look at, collects the gradient. Every other token's gradient does vanish with
# depth, exponentially: here is the vanishing gradient of the textbook, in the tokens behind the first.
#
# ## It depends on the activation
#
# What an FFN returns, for what it adds, depends on its activation: as much (ReLU), a little more (GELU), twice as
# much (SwiGLU).

# %%
kinds = "relu", "gelu", "swiglu"
pg.plot({kind: both(seed, activation=kind) for seed, kind in enumerate(kinds, start=2)}, quantities=["grad_variance"])

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
