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
# # The first step
#
# So far networks were at rest. Here they take their first steps: what an optimiser does to every matrix is predicted
# from the moments of one walk, and simulated on random networks. Then three questions: does a rule of transfer hold,
# which matrix breaks it, and what does depth do?

# %%
from dataclasses import dataclass

import matplotlib.pyplot as plt
import numpy as np

import propagate as pg

plt.style.use("propagate.propagate")

# %% tags=["parameters"]
draws, few, width, widest, steps = 24, 8, 256, 8192, 5
widths, depths = (64, 128, 256, 512), (4, 8, 16, 32, 64)

# %%
model = pg.Model("spannorm", depth=3, width=width, tokens=8, heads=4)
start = pg.Start(covariance=0.3)

# %% [markdown]
# ## Predicted and simulated
#
# `own_change` is the mean square, per token and coordinate, of what the first step changes in a matrix's own output;
# `first_order_fall` is how much the loss falls by it. Muon moves the output by its rate, whatever the gradient.

# %%
said = pg.predict_step(model, pg.Muon(lr=0.01), start)
seen = pg.simulate_steps(model, pg.Muon(lr=0.01), start, steps=1, draws=draws, backend="numpy")
both = {"predicted": said.own_change, "simulated": seen.own_change.sel(step=1)}
for name, table in both.items():
    print(name, table.sel(block=2).round(7).to_series().to_dict())

# %%
verdict = pg.compare(said, seen.sel(step=1))
print(verdict.attrs["verdict"], "largest |z|", round(float(verdict.worst_z.max()), 1))

# %% [markdown]
# Heads are small and the width is finite: where the stated allowance would let an error of 20 % pass unseen, the
# verdict is that it cannot tell. A wrong law is found out: SGD's changes are no Muon's, even at a rate at which the
# loss falls as far.

# %%
lr = 0.01 * float(said.total_fall / pg.predict_step(model, pg.SGD(lr=0.01), start).total_fall)
other = pg.predict_step(model, pg.SGD(lr=lr), start)
print("both let the loss fall by", float(other.total_fall.round(4)), "and", float(said.total_fall.round(4)))
print(pg.compare(other, seen.sel(step=1)).attrs["verdict"])

# %% [markdown]
# ## The stream
#
# All these changes travel on, through matrices that are not strange to them: the cotangents of which the changes are
# made have come through their transposes. `predict_change` knows that, to first order in the rate, and states what the
# finite width may do to it.

# %%
small_rate = pg.Muon(lr=1e-6)
moved = pg.predict_change(model, small_rate, start)
seen = pg.simulate_steps(model, small_rate, start, steps=1, draws=draws, backend="numpy").sel(step=1)
for block in range(1, 4):
    ratio, error = seen.change[block] / moved.change[block], seen.change_se[block] / moved.change[block]
    allowed = float(moved.change_allowance[block])
    print(f"block {block}: simulated over predicted {float(ratio):.2f} +- {float(error):.2f}, allowed: {allowed:.0%}")

# %% [markdown]
# ## More steps
#
# The simulation goes on: forward, backward, update. With SGD and Muon no matrix is ever made, so the width may be what
# it is in practice.

# %%
wide = pg.Model("spannorm", depth=2, width=widest, tokens=8, heads=widest // 128)
loss, rate = pg.CrossEntropy(64), pg.Muon(lr=2e-4)
trained = pg.simulate_steps(wide, rate, steps=steps, loss=loss, draws=few // 2, backend="numpy", sampler="weightless")
print("loss", trained.loss.to_numpy().round(3))
print("mean square change of the last block's stream", *(f"{x:.0e}" for x in trained.change.isel(block=-1).to_numpy()))

# %% [markdown]
# ## Does my rule transfer?
#
# Rules of transfer say how rates, multipliers and initial sizes follow the width. The check measures each matrix's own
# response at several widths and fits exponents; a right rule wants 0.

# %%
small = pg.Model("prenorm", depth=2, tokens=4, heads=2)
settings = {"widths": widths, "steps": 1, "draws": few}
for rule in ("standard", "mup"):
    check = pg.coordinate_check(small, optimizer=pg.Adam(lr=1e-3), transfer=rule, **settings)
    print(f"{rule}: {check.summary}")

# %% [markdown]
# One matrix forgotten: muP, but for the hidden matrices' rate, which stays as it was.


# %%
from propagate.transfer import Factors, MuP


class Forgetful:
    def factors(self, kind, width, depth):
        right = MuP().factors(kind, width, depth)
        return Factors(gain=right.gain, multiplier=right.multiplier) if kind == "branch_out" else right


check = pg.coordinate_check(small, optimizer=pg.Adam(lr=1e-3), transfer=Forgetful(), **settings)
print(check.summary)
check.plot()

# %% [markdown]
# ## Depth
#
# Rules over depth (depth-muP, CompleteP) multiply branches by a power of the depth; they were derived for identity
# skips. Proposition 14 asks what normed skips do. How far does the loss fall by all attention output matrices together,
# and by all the FFNs', against the depth?


# %%
@dataclass(frozen=True)
class Branches:
    alpha: float

    def factors(self, kind, width, depth):
        return Factors(multiplier=depth**-self.alpha if kind == "branch_out" else 1)


figure, axes = plt.subplots(1, 2, sharey=True)
for axis, matrix in zip(axes, ("attention_out", "ffn_out"), strict=True):
    for name in ("prenorm", "postnorm", "spannorm"):
        falls = []
        for depth in depths:
            deep = pg.Model(name, depth=depth, width=256, tokens=8, heads=4)
            step = pg.predict_step(deep, pg.Muon(lr=1.0), start, transfer=Branches(0.5), base=(256, 1))
            falls.append(float(step.first_order_fall.sel(matrix=matrix).sum()))
        exponent = np.log(falls[-1] / falls[-2]) / np.log(depths[-1] / depths[-2])
        axis.loglog(depths, falls, marker="o", label=f"{name}: depth^{exponent:.2f}")
    axis.set(title=matrix, xlabel="depth")
    axis.set_xticks(depths, map(str, depths))
    axis.minorticks_off()
    axis.legend()
axes[0].set_ylabel("fall of the loss / rate")
plt.show()

# %% [markdown]
# With branches times depth^(-1/2) every placement's first step grows as depth^(1/2), so that the rate must fall as
# depth^(-1/2), as depth-muP has it, in PostNorm too. But for one: SpanNorm's attention reaches the stream through the
# FFN alone and meets the FFN's multiplier as well, and its first step does not grow at all. At one rate it learns more
# slowly than the FFN, the more the deeper the network is. That is a statement about the first step; what training makes
# of it is not shown here.
#
# ## What to try next
#
# - `pg.Sign`, `pg.Adam` or `pg.SGD` in place of Muon: the exponents of the first two are the same.
# - A rule of your own that raises the rate of SpanNorm's `attention_out` by depth^(1/2): a class with `factors`.
# - `propagate coordcheck prenorm --transfer complete-p --depths 2,4,8,16` on the command line.
# - Your own torch modules: `pg.coordinate_check` takes a function from the width to a module.
