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
# ScaleInit, which multiplies the output matrices of attention and FFN by depth^(-k), with k = 1/2. (The SpanNorm
# paper's own formula is not known to us; the exponent is a parameter here.)

# %%
import propagate as pg

# %% tags=["parameters"]
depth, width, draws = 64, 512, 12

# %% [markdown]
# Six networks, theory and simulation. The start: 16 tokens of variance 1 and covariance 0.3, exactly, in every draw.
# The gradient enters at the stream that leaves the last block, with variance 1, independent over tokens. In the
# pictures lines are theory and points the geometric mean over networks, per coordinate; dashed and open is what
# ScaleInit scales.

# %%
placements = "prenorm", "postnorm", "spannorm"
networks = {}
for seed, (name, exponent) in enumerate((name, exponent) for name in placements for exponent in (0.0, 0.5)):
    scaling = pg.ScaleInit(exponent) if exponent else None
    model = pg.Model(name, depth=depth, width=width, tokens=16, heads=8, activation="relu", scaling=scaling)
    theory = pg.predict(model, covariance=0.3)
    measured = pg.simulate(model, covariance=0.3, draws=draws, seed=seed, backend="numpy")
    networks[name, exponent] = theory, measured

tables = [table for pair in networks.values() for table in pair]

# %% [markdown]
# ## Forward: how large is the stream?

# %%
pg.plot(*tables, quantities=["variance"])

# %% [markdown]
# PreNorm adds up its branches: variance grows in proportion to depth. With ScaleInit all branches together add about
# as much as the stream began with. PostNorm and SpanNorm end each block with a norm, so their variance is 1 by
# construction.
#
# ## Backward: does the gradient reach the embedding?

# %%
pg.plot(*tables, quantities=["grad_variance"])

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
# `decorrelation` is deviation / variance, or 1 - correlation of two tokens; at 0 they are one vector.

# %%
pg.plot(*tables, quantities=["decorrelation"])

# %%
for name in placements:
    theory, _ = networks[name, 0.0]
    left = theory.deviation / theory.variance
    print(f"{name:9} the last block leaves {float(left[-1] / left[-2]):.2f} of it, all blocks {float(left[-1]):.1e}")

# %% [markdown]
# This is what goes wrong in deep unscaled PostNorm: every block halves the squared difference between two tokens, until
# they are one vector to all digits that a computer keeps. SpanNorm goes the same way more slowly, and PreNorm falls
# only as a power of depth. With ScaleInit nobody collapses.
#
# ## Do theory and simulation agree?

# %%
for (name, exponent), (theory, measured) in networks.items():
    verdict = pg.compare(theory, measured)
    print(f"{name:9} k = {exponent}: largest |z| {float(verdict.worst_z.max()):.1f}, {verdict.attrs['verdict']}")

# %% [markdown]
# "Cannot tell" is what a verdict says where so few networks would let an error of 20 % pass unseen in some block; more
# `draws` settle it.
#
# ## What to try next
#
# - `activation="swiglu"`: whose gradient explodes now?
# - `covariance=0.0`, or a Gram matrix of your own tokens: `pg.predict(model, gram=...)`.
# - `causal=True`: tables gain `token_variance` and `grad_token_variance`, a value for each token.
# - The same pictures with 128 blocks, and a third start from English text, are in `figures/`.
