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
from tour import size

import propagate as pg
from propagate import figures

plt.style.use("propagate.propagate")
PLACEMENTS = ("prenorm", "postnorm", "spannorm")
exponents = np.linspace(0, 1, size(9, fast=3))
depths = size((2, 4, 8, 16, 32, 64), fast=(2, 4))
tokens = 16


def model(placement, exponent, depth):
    scaling = pg.ScaleInit(float(exponent))
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


def three(placement, exponent, depth):
    """Gain, 1 - correlation and attention's share."""
    table = pg.predict(
        model(placement, exponent, depth), covariance=0.3, grad_gram=one_token, through_readout=True, samples=16
    )
    gradient, last = table.grad_token_variance[0].to_numpy(), table.isel(block=-1)
    return gradient.sum(), float(last.deviation / last.variance), gradient[1:].sum() / gradient.sum()


diagrams = {
    name: np.array([[three(name, exponent, depth) for depth in depths] for exponent in exponents])
    for name in PLACEMENTS
}

# %%
PANELS = (
    ("gain", "PuOr_r", (-2, 2)),
    ("1 - correlation", "cividis", (-3, 0)),
    ("attention's share", "cividis", (-3, 0)),
)
figure, axes = plt.subplots(3, 3, figsize=(7, 5.2), sharex=True, sharey=True)
for row, (name, diagram) in zip(axes, diagrams.items(), strict=True):
    for axis, (title, colours, (low, high)), k in zip(row, PANELS, range(3), strict=True):
        shown = np.log10(diagram[..., k])
        image = axis.pcolormesh(depths, exponents, shown, cmap=colours, vmin=low, vmax=high, shading="nearest")
        axis.contour(depths, exponents, shown, levels=[-2, -1, 1], colors="0.35", linewidths=0.7, linestyles="-")
        axis.set(xscale="log", title=f"{pg.placements()[name].__name__}: {title}")
        axis.set_xticks(depths, [str(depth) for depth in depths])
        axis.minorticks_off()
        axis.grid(False)
        figure.colorbar(image, ax=axis, label="log10", extend="both")
for axis in axes[-1]:
    axis.set_xlabel("depth, blocks")
for axis in axes[:, 0]:
    axis.set_ylabel("exponent k")

# %% [markdown]
# Lines are at powers of ten. Towards k = 0, below, PostNorm and SpanNorm collapse, and their gradient sits on its
# floor; towards k = 1, above, nothing is lost, and attention is switched off. The useful band lies between. PreNorm
# has no lower region: it collapses slowly.
#
# ## The trade-off, at one depth

# %%
deep = depths[-1]
print(f"{deep} blocks          k   gain  1 - correlation  attention's share")
for name in ("postnorm", "spannorm"):
    for exponent in (0.0, 0.25, 0.5, 1.0):
        gain, apart, share = three(name, exponent, deep)
        print(f"{name:16} {exponent:4.2f}  {gain:5.2f}  {apart:15.1e}  {share:17.1e}")

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
run = {"draws": size(8, fast=4), "backend": "numpy", "sampler": "weightless", "progress": False}
checked = size(((0.0, 8), (0.25, 16), (0.5, 32)), fast=((0.0, 4), (0.5, 4)))
for seed, (name, (exponent, depth)) in enumerate((name, cell) for name in PLACEMENTS for cell in checked):
    one = model(name, exponent, depth)
    start = {"covariance": 0.3, "grad_gram": one_token, "through_readout": True}
    seen = pg.simulate(one, seed=seed, **start, **run)
    gradient = seen.grad_token_variance[0].to_numpy()
    said = pg.predict(one, samples=16, **start)
    z = float(pg.compare(said, seen).worst_z.max())
    _, _, share = three(name, exponent, depth)
    measured = gradient[1:].sum() / gradient.sum()
    print(
        f"{name:9} k = {exponent:4.2f}, {depth:3} blocks: share {measured:.4f}, theory {share:.4f}; largest |z| {z:.1f}"
    )

# %% [markdown]
# `|z|` is over every quantity, token and block, so values around 3 are what chance gives.
#
# ## Every placement
#
# The same three quantities for all placements of the package, from the data stored in `figures/phase_diagram.nc`;
# `propagate figures phase_diagram` makes them again. Discs are simulations.

# %%
stored = xr.load_dataset(figures.ROOT / "figures" / "phase_diagram.nc", engine="scipy")
figures.load("phase_diagram").draw(stored)

# %% [markdown]
# ## What to try next
#
# - `activation="swiglu"` in `model`: k = 1/4 no longer bounds SpanNorm's gain. Where does the band move?
# - `pg.ScaleInit(0.5, per="sublayer")` counts sublayers. Does it matter?
# - A placement of your own, in the place of `"spannorm"`.
