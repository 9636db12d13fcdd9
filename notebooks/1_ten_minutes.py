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
# # Ten minutes to propagate
#
# You have an idea about where to put a norm. Does the signal survive it, and the gradient? Here you write the block
# as the two equations a paper would print. A theory, exact as the width goes to infinity, and a simulation of random
# networks of finite width both read that text. If they agree, within error bars, believe the theory: it answers in
# milliseconds.

# %%
import matplotlib.pyplot as plt
import numpy as np
from tour import size

import propagate as pg
from propagate import plots

plt.style.use("propagate.propagate")
draws, width = size(32, fast=4), size(512, fast=128)

# %% [markdown]
# ## A block is its equations
#
# SpanNorm (arXiv:2601.22580) comes with the package. This is how it is written, all of it. `x` is the residual
# stream; `block` offers attention, an FFN and a norm, each call with weights of its own. Note the skip of the FFN: it
# starts at the block's own input `x`, not at `y`.


# %%
class Span(pg.Placement):
    """Norm after each sublayer; the FFN's skip is the block's own input."""

    def block(self, x, block):
        y = block.norm(x + block.attention(block.norm(x) if block.first else x))
        return block.norm(x + block.ffn(y))


model = pg.Model("span", depth=24, width=width, tokens=16, heads=8, activation="relu")

# %% [markdown]
# ## Predict
#
# `predict` returns a labelled table, an `xarray.Dataset`, over `block` (0 is the embedding). Everything in it is a
# second moment per coordinate: `variance` E[x²], `covariance` E[x_t x_s] of two tokens, and the same for the
# gradient, which enters at the last block with variance 1. `deviation` is variance - covariance; when deviation /
# variance reaches 0, all tokens have become one vector: rank collapse.

# %%
theory = pg.predict(model, covariance=0.3)
columns = ["variance", "covariance", "deviation", "grad_variance"]
theory[columns].to_dataframe().iloc[[0, 1, 6, 12, 18, 24]].round(6)

# %% [markdown]
# ## Simulate, and compare
#
# The simulation draws whole random networks, runs them forward and backward, and averages over networks. Standard
# errors are over networks too, never over coordinates.

# %%
measured = pg.simulate(model, covariance=0.3, draws=draws, seed=0, backend="numpy", sampler="weightless")
verdict = pg.compare(theory, measured)
verdict[["worst_z", "verdict"]].to_dataframe().round(2)

# %% [markdown]
# `worst_z` is the largest distance, over all blocks, in standard errors. `compare` counts a stated allowance for the
# finite width. Where so few networks, or so wide an allowance, would let an error of 20 % pass unseen, it says that it
# cannot tell. Can it say no? Give it the theory of another placement:

# %%
other = pg.predict(pg.Model("postnorm", depth=24, width=width, tokens=16, heads=8), covariance=0.3)
pg.compare(other, measured)[["worst_z", "verdict"]].to_dataframe().round(2)

# %% [markdown]
# ## Plot
#
# Lines are theory, shaded with its allowance; points are simulation with 95 % intervals.


# %%
def show(models, quantities, scale="log", seed=0):
    """Theory and simulation of some models (by their labels), a panel for each quantity."""
    _, axes = plt.subplots(1, len(quantities))
    for index, (label, one) in enumerate(models.items()):
        said = pg.predict(one, covariance=0.3)
        run = {"draws": draws, "seed": seed + index, "backend": "numpy", "sampler": "weightless"}
        seen = pg.simulate(one, covariance=0.3, **run)
        for axis, quantity in zip(axes, quantities, strict=True):
            plots.profile(axis, quantity, said, seen, placement=label, scaled=one.scaling is not None)
    for axis, quantity in zip(axes, quantities, strict=True):
        axis.set(yscale=scale, ylabel=f"{quantity} (per coordinate)")
    return axes


pair = {name: pg.Model(name, depth=24, width=width, tokens=16, heads=8) for name in ("spannorm", "postnorm")}
axes = show(pair, ("deviation", "grad_variance"))
axes[1].legend(handles=plots.key(("SpanNorm", "PostNorm"), scalings=False))
plt.show()

# %% [markdown]
# Without scaling both collapse: their norms keep the variance at 1, so `deviation` is 1 - correlation. SpanNorm takes
# about 2.4 times as many blocks. The gradient falls to a floor and stays there; notebook 3 is about that.
#
# ## The algebra
#
# The same text, read with symbols, prints the recursion (here with uniform attention and a linear FFN, to keep it
# short):

# %%
pg.recursion("span", activation="linear")

# %% [markdown]
# ## Now your own
#
# An idea: PreNorm, with the FFN's skip taken from the block's own input as in SpanNorm. Attention then reaches the
# stream through the FFN alone. Is that a good idea?


# %%
class SpanPre(pg.Placement):
    """PreNorm, with the FFN's skip taken from the block's own input."""

    def block(self, x, block):
        y = x + block.attention(block.norm(x))
        return x + block.ffn(block.norm(y))

    def readout(self, x, block):
        return block.norm(x)


mine = {name: pg.Model(name, depth=24, width=width, tokens=16, heads=8) for name in ("prenorm", "spanpre")}
axes = show(mine, ("variance", "deviation", "grad_variance"), scale="linear", seed=10)
axes[0].legend(handles=[*plots.key(("PreNorm",), scalings=False, band=False), plots.entry("SpanPre", color="black")])
plt.show()

# %% [markdown]
# The theory holds: points on lines, and nothing had to be derived. The stream grows about half as fast, since one
# branch is added a block in place of two; tokens stay further apart; the gradient at the embedding is a little
# larger. The price is what attention can say. Here is how much of the gradient of one token's output reaches the
# inputs of *other* tokens, which only attention can carry:

# %%
one_token = np.zeros((16, 16))
one_token[0, 0] = 1.0
for name, one in mine.items():
    gradient = pg.predict(one, covariance=0.3, grad_gram=one_token).grad_token_variance[0]
    print(f"{name:8} {1 - float(gradient[0] / gradient.sum()):.2f}")

# %% [markdown]
# ## What to try next
#
# - Add `scaling=pg.ScaleInit(exponent=0.5)` to the models and draw the last picture again.
# - Swap the norm and the sum in your block. Which change makes the gradient explode?
# - `propagate placements` lists 24 placements with their equations; `propagate verify spannorm` judges one over every
#   activation, mask and scaling.
# - Notebook 2 draws the classical variance plots; notebook 4 asks how deep one can go.
