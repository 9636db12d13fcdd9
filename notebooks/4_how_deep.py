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
# # How deep can you go?
#
# ScaleInit multiplies the output matrices of attention and FFN by depth^(-k). Which exponent k? Small ones let deep
# networks collapse; large ones switch the branches off. Three quantities, against exponent and depth:
#
# - **gain**: gradient variance at the embedding, for a gradient of variance 1, independent over tokens, at the output;
# - **collapse**: 1 - correlation of two tokens in the last stream, 0.7 at the start;
# - **attention's share**: of the gradient of one token's output, the part that reaches the inputs of *other* tokens.
#   Only attention can carry it.

# %%
import matplotlib.pyplot as plt
import numpy as np
import xarray as xr

import propagate as pg

plt.style.use("propagate.propagate")

# %% tags=["parameters"]
depths, exponents, checked = (2, 4, 8, 16, 32, 64), np.linspace(0, 1, 9), ((0.0, 8), (0.25, 16), (0.5, 32))
draws = 8

# %%
tokens = 16
placements = "prenorm", "postnorm", "spannorm"


def network(placement, exponent, depth):
    scaling = pg.ScaleInit(exponent)
    return pg.Model(placement, depth=depth, width=512, tokens=tokens, heads=8, scaling=scaling)


# %% [markdown]
# ## Phase diagrams
#
# A gradient that enters at one token alone gives all three at once: its sum over tokens is the gain, and what has
# left the token is attention's share. Then tokens are not alike, and the theory follows each of them; it draws
# attention's logits itself, here 16 times a sublayer, to within about a percent.

# %%
one_token = np.zeros((tokens, tokens))
one_token[0, 0] = 1.0
start = pg.Start(covariance=0.3, grad_gram=one_token)


def three(table):
    """Gain, 1 - correlation and attention's share, of a prediction or a simulation."""
    gradient, last = table.grad_token_variance.isel(block=0, drop=True), table.isel(block=-1, drop=True)
    others = gradient.isel(token=slice(1, None)).sum() / gradient.sum()
    return xr.Dataset({"gain": gradient.sum(), "1 - correlation": last.deviation / last.variance, "share": others})


def predicted(model):
    return three(pg.predict(model, start, through_readout=True, samples=16))


grid = {"placement": placements, "scaling.exponent": exponents, "depth": depths}
diagrams = pg.sweep(network("prenorm", 0.0, 2), grid, predicted)

# %%
for name, colours, levels in (
    ("gain", "PuOr_r", np.arange(-2, 2.1, 0.5)),
    ("1 - correlation", "cividis", np.arange(-3, 0.1, 0.5)),
    ("share", "cividis", np.arange(-3, 0.1, 0.5)),
):
    _, axes = plt.subplots(1, 3, sharey=True, figsize=(7, 2))
    for axis, placement in zip(axes, placements, strict=True):
        shown = np.log10(diagrams[name].sel(placement=placement)).assign_attrs(long_name=f"log10 of {name}")
        look = {"levels": levels, "cmap": colours, "extend": "both", "add_colorbar": axis is axes[-1]}
        shown.plot.contourf(x="depth", y="exponent", xscale="log", ax=axis, **look)
        axis.set(title=placement, ylabel="exponent k" if axis is axes[0] else "")
        axis.set_xticks(depths, map(str, depths))
        axis.minorticks_off()

# %% [markdown]
# Towards k = 0, below, PostNorm and SpanNorm collapse, and their gradient sits on its
# floor; towards k = 1, above, nothing is lost, and attention is switched off. The useful band lies between. PreNorm
# has no lower region: it collapses slowly.
#
# ## The trade-off, at one depth

# %%
deep = depths[-1]
print(deep, "blocks")
diagrams.sel(depth=deep, placement=["postnorm", "spannorm"]).to_dataframe()[[*diagrams]].map("{:.2g}".format)

# %% [markdown]
# PostNorm pays for each block with the variance of its branches, depth^(-2k) of the stream's: it needs k = 1/2 to
# keep the sum over all blocks bounded. SpanNorm pays with the *product* of its two branches' variances, depth^(-4k):
# k = 1/4 bounds its gain, with ReLU. That is the good news about the structure, and more than "twice as deep". The
# same product is the price. Attention reaches SpanNorm's stream only through the FFN, and at k = 1/2 its share falls
# as 1/depth, where PostNorm's stays. At k = 1/4 SpanNorm keeps it, and its tokens grow alike only slowly.
#
# So each exponent makes a trade. PostNorm with k = 1/2 is stable and keeps its attention. SpanNorm with k = 1/2 is
# the most stable of all and, at initialisation, the one that mixes tokens least. Whether training undoes that is
# beyond this theory.
#
# ## Is it so? A few cells by simulation

# %%
for seed, (name, (exponent, depth)) in enumerate((name, cell) for name in placements for cell in checked):
    model = network(name, exponent, depth)
    said = pg.predict(model, start, through_readout=True, samples=16)
    seen = pg.simulate(model, start, through_readout=True, draws=draws, seed=seed, backend="numpy")
    shares, z = [float(three(table).share) for table in (seen, said)], float(pg.compare(said, seen).worst_z.max())
    print(
        f"{name:9} k = {exponent:4.2f}, {depth:3} blocks: share {shares[0]:.4f}, theory {shares[1]:.4f}; |z| <= {z:.1f}"
    )

# %% [markdown]
# `|z|` is the largest over every quantity, token and block, so values around 3 are what chance gives.
#
# ## Every placement
#
# The same three quantities for all placements of the package, as `propagate figures phase_diagram` draws them: above,
# the lines at which they cross a level (`figures/phase_diagram.md` says which); below, all of them, discs being
# simulations.
#
# ![ScaleInit's exponent against depth for every placement](../figures/phase_diagram.png)
#
# ## What to try next
#
# - `activation="swiglu"` in `network`: k = 1/4 no longer bounds SpanNorm's gain. Where does the band move?
# - `pg.ScaleInit(0.5, per="sublayer")` counts sublayers. Does it matter?
# - A placement of your own, in the place of `"spannorm"`.
