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
# # A laptop at width one million
#
# A block of width 2^20 has twelve matrices of 2^20 x 2^20 entries: 48 TiB in single precision. Here four such blocks
# run forward and backward on a laptop, and they are not an approximation: the same law, coordinate by coordinate.
#
# The idea: what a Gaussian matrix does to a few vectors is a few Gaussian vectors. With T tokens, W X has columns
# that are jointly normal with covariance X^T X, so draw them from that T x T matrix. The way back multiplies by the
# transpose of the *same* W: condition on what has been seen. Given W X, the matrix is known on the span of X and
# fresh on its complement, and W^T G is again a small known part plus a fresh normal one. Cost: tokens² x width in
# place of tokens x width².

# %%
import matplotlib.pyplot as plt
import numpy as np

import propagate as pg

plt.style.use("propagate.propagate")

# %% tags=["parameters"]
million, draws = 2**20, 64

# %%
depth, tokens, head = 4, 16, 128


def postnorm(width):
    return pg.Model("postnorm", depth=depth, width=width, tokens=tokens, heads=width // head, activation="relu")


matrices = 12 * million**2 * 4
print(f"width {million}: the matrices of a block would take {matrices / 2**40:.3g} TiB in single precision")

# %% [markdown]
# ## The same law
#
# At a width where both can run, draw networks with their matrices (`dense`) and without (`weightless`), and compare
# each with the theory.

# %%
same = {"draws": draws, "backend": "numpy", "covariance": 0.3}
theory = pg.predict(postnorm(256), covariance=0.3)
for sampler in ("dense", "weightless"):
    seen = pg.simulate(postnorm(256), sampler=sampler, seed=1, **same)
    verdict = pg.compare(theory, seen)
    logarithm, error = float(seen.log_grad_variance[0]), float(seen.log_grad_variance_se[0])
    z = float(verdict.worst_z.max())
    print(f"{sampler:10}: log gradient variance at the embedding {logarithm:.3f} +- {error:.3f}; largest |z| {z:.1f}")

# %% [markdown]
# Agreement of two means is a weak test; `benchmarks/same_law.py` compares whole distributions, and `tests/` do so
# with negative controls.
#
# ## To a million
#
# From 256 coordinates upwards, with fewer draws as the width grows, since wide networks differ less.

# %%
widths = [2**power for power in range(8, int(np.log2(million)) + 1, 2)]
rows = []
for width in widths:
    count = max(2, min(draws, 2**15 // width))
    single = {"precision": "float32", "sampler": "weightless", "backend": "numpy"}
    seen = pg.simulate(postnorm(width), covariance=0.3, draws=count, seed=width, **single)
    rows.append([float(seen[name][0]) for name in ("log_grad_variance", "log_grad_variance_se")] + [count])
    print(f"width {width:8}, {count:3} networks: gradient variance at the embedding {np.exp(rows[-1][0]):.4f}")
expected = float(pg.predict(postnorm(million), covariance=0.3).grad_variance[0])
print(f"theory, infinite width:                                          {expected:.4f}")

# %%
logarithm, error, _ = np.array(rows).T
_, axis = plt.subplots(figsize=(3.4, 2.6))
axis.axhline(expected, label="theory")
axis.errorbar(widths, np.exp(logarithm), yerr=1.96 * error * np.exp(logarithm), fmt="o", label="networks, 95 %")
axis.legend()
axis.set(xscale="log", xlabel="width", ylabel="gradient variance at the embedding\n(per coordinate)")
plt.show()

# %% [markdown]
# Points lie on the line at every width, and their bars shrink although there are fewer and fewer networks: those of
# width d differ from one another by about 1/√d. (From width 2^14 on there are two networks each, and a bar from two
# is no more than a hint.) At a million coordinates one network is nearly the limit itself, which is what "infinite
# width" means.
#
# No seconds are printed, since the outputs of these notebooks are the same bytes on every run. Put `%%time` over a
# cell to see them. `benchmarks/results/million.json` records how long 8 blocks at width 2^20 took, forward and
# backward, and how little memory.
#
# ## What to try next
#
# - `tokens = 64`: what does the square in the cost do?
# - `sampler="dense"` at width 4096, and a cup of tea.
# - On a GPU, `backend="cupy"`: thousands of draws of width 16384 in a minute.
