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
import numpy as np

import propagate as pg

# %% tags=["parameters"]
depth, width, draws = 24, 512, 32

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


model = pg.Model("span", depth=depth, width=width, tokens=16, heads=8, activation="relu")

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
theory[columns].isel(block=slice(None, None, depth // 6)).to_dataframe().round(6)

# %% [markdown]
# ## Simulate, and compare
#
# The simulation draws whole random networks, runs them forward and backward, and averages over networks. Standard
# errors are over networks too, never over coordinates.

# %%
measured = pg.simulate(model, covariance=0.3, draws=draws, backend="numpy")
verdict = pg.compare(theory, measured)
verdict[["worst_z", "verdict"]].to_dataframe().round(2)

# %% [markdown]
# `worst_z` is the largest distance, over all blocks, in standard errors. `compare` counts a stated allowance for the
# finite width. Where so few networks, or so wide an allowance, would let an error of 20 % pass unseen, it says that it
# cannot tell. Can it say no? Give it the theory of another placement:

# %%
other = pg.predict(pg.Model("postnorm", depth=depth, width=width, tokens=16, heads=8), covariance=0.3)
pg.compare(other, measured)[["worst_z", "verdict"]].to_dataframe().round(2)

# %% [markdown]
# ## Plot
#
# Lines are theory, shaded with its allowance; points are simulation with 95 % intervals.


# %%
def both(name, seed):
    """The theory and the simulation of a placement."""
    one = pg.Model(name, depth=depth, width=width, tokens=16, heads=8)
    return pg.predict(one, covariance=0.3), pg.simulate(one, covariance=0.3, draws=draws, seed=seed, backend="numpy")


pair = both("spannorm", seed=1), both("postnorm", seed=2)
pg.plot(*pair[0], *pair[1], quantities=["deviation", "grad_variance"])

# %%
span, post = (float(np.log(said.deviation).diff("block")[-6:].mean()) for said, _ in pair)
print(f"a block leaves {np.exp(span):.2f} of the deviation in SpanNorm, {np.exp(post):.2f} in PostNorm:")
print(f"SpanNorm takes {post / span:.1f} times as many blocks")

# %% [markdown]
# Without scaling both collapse: their norms keep the variance at 1, so `deviation` is 1 - correlation, and differences
# between tokens shrink by the same factor in every later block. The gradient falls to a floor and stays there; notebook
# 3 is about that.
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
# stream through the FFN alone. Is that a good idea? (`decorrelation` is deviation / variance, 1 - correlation.)


# %%
class SpanPre(pg.Placement):
    """PreNorm, with the FFN's skip taken from the block's own input."""

    def block(self, x, block):
        y = x + block.attention(block.norm(x))
        return x + block.ffn(block.norm(y))

    def readout(self, x, block):
        return block.norm(x)


mine = *both("prenorm", seed=10), *both("spanpre", seed=11)
pg.plot(*mine, quantities=["variance", "decorrelation", "grad_variance"])

# %% [markdown]
# The theory holds: points on lines, and nothing had to be derived. The stream grows about half as fast, since one
# branch is added a block in place of two; tokens stay further apart; the gradient at the embedding is a little
# larger. The price is what attention can say. Here is how much of the gradient of one token's output reaches the
# inputs of *other* tokens, which only attention can carry:

# %%
one_token = np.zeros((16, 16))
one_token[0, 0] = 1.0
for name in ("prenorm", "spanpre"):
    one = pg.Model(name, depth=depth, width=width, tokens=16, heads=8)
    gradient = pg.predict(one, covariance=0.3, grad_gram=one_token).grad_token_variance[0]
    print(f"{name:8} {1 - float(gradient[0] / gradient.sum()):.2f}")

# %% [markdown]
# ## What to try next
#
# - Add `scaling=pg.ScaleInit(exponent=0.5)` to the models and draw the last picture again.
# - Swap the norm and the sum in your block. Which change makes the gradient explode?
# - `propagate placements` lists those that come with the package; `propagate verify spannorm` judges one over every
#   activation, mask and scaling.
# - Notebook 2 draws the classical variance plots; notebook 4 asks how deep one can go.
