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
# # Your own pieces
#
# One concept, one place: what is added here is added in a cell, and the package is not touched. A placement is its
# equations; an activation one SymPy expression; blocks that differ are descriptions by index; a kind of sublayer that
# nobody has yet is a frozen dataclass and one function a witness. Each is confronted with simulation at once.

# %%
from dataclasses import dataclass

import numpy as np
import sympy
import torch
from IPython.display import display

import propagate as pg

# %% tags=["parameters"]
depth, width, draws = 6, 512, 64

# %%
sizes = {"depth": depth, "width": width, "tokens": 8, "heads": width // 64}
start = pg.Start(covariance=0.3, grad_covariance=0.1)


def confront(model):
    """Theory and simulation of a model, and what the one says of the other."""
    said = pg.predict(model, start)
    seen = pg.simulate(model, start, draws=draws, backend="numpy")
    verdict = pg.compare(said, seen)
    print(f"{verdict.attrs['verdict']}: largest |z| {float(verdict.worst_z.max()):.1f}", end="; ")
    detectable = verdict.detectable.sel(quantity="grad_variance")
    print(f"a gradient variance {float(detectable.max()):.0%} off would have been rejected in any block")
    return said, seen


# %% [markdown]
# ## A placement
#
# Two or three equations. `Rotated` puts a norm on the skip of the FFN alone.


# %%
class Rotated(pg.Placement):
    """Norm before attention; behind the sum of the FFN."""

    def block(self, x, block):
        y = x + block.attention(block.norm(x))
        return block.norm(y + block.ffn(y))


tables = confront(pg.Model("rotated", **sizes))
display(pg.recursion("rotated", activation="linear"))

# %% [markdown]
# ## An activation
#
# One expression in `z`. Theory integrates it and its derivative over Gaussians, NumPy and torch get it compiled.

# %%
z = sympy.Symbol("z", real=True)
bump = pg.Activation("bump", z * sympy.exp(-(z**2) / 4) + sympy.Max(z, 0))
tables += confront(pg.Model("rotated", **sizes, activation=bump))

# %% [markdown]
# ## Blocks that differ
#
# Every third block attends to all that came before, the others to a window of two tokens; the first block is dense,
# the others are mixtures of experts.

# %%
local, whole = (pg.Attention(heads=sizes["heads"], causal=True, window=window) for window in (2, None))


def layers(index):
    own = {"attention": whole if index % 3 == 0 else local}
    return own | ({"experts": None} if index == 1 else {})


pattern = pg.Model("prenorm", **sizes, experts=pg.Experts(4, 2), layers=layers)
patterned = confront(pattern)

# %% [markdown]
# ## A sublayer that nobody has
#
# Here a causal convolution over two tokens, W x_t + V x_(t-1). Its description has sizes and gains and nothing else.


# %%
@dataclass(frozen=True)
class Convolution(pg.Sublayer):
    gain: float = 0.8
    before: float = 0.6
    alike = False  # it tells tokens apart


class Convolved(pg.Placement):
    def block(self, x, block):
        y = block.norm(x + block.apply(Convolution(), x))
        return block.norm(y + block.ffn(y))


model = pg.Model("convolved", **sizes)
try:
    pg.predict(model)
except pg.ModelError as error:
    print(error)

# %% [markdown]
# Nothing is guessed: theory says that it does not cover it. One function tells it the map of Gram matrices, forward and
# back; one tells the simulation what to do with arrays, and how a cotangent returns.


# %%
@pg.theory.apply.register
def _(conv: Convolution, x, setting):
    moved = np.eye(setting.tokens, k=-1)
    out, back = (
        lambda gram, m=m: pg.theory.Gram.of(
            conv.gain**2 * gram.matrix + conv.before**2 * m @ gram.matrix @ m.swapaxes(-1, -2)
        )
        for m in (moved, moved.T)
    )
    return out(x), back


@pg.montecarlo.apply.register
def _(conv: Convolution, x, block):
    zero = block.xp.zeros_like(x[:, :1])
    here, pull_here = block.matrix(x, block.width, conv.gain)
    earlier, pull_earlier = block.matrix(x[:, :-1], block.width, conv.before)

    def pull(g):
        return pull_here(g) + block.xp.concatenate([pull_earlier(g[:, 1:]), zero], axis=1)

    return here + block.xp.concatenate([zero, earlier], axis=1), pull


convolved = confront(model)

# %% [markdown]
# And torch: a module, whose trace is a third witness.


# %%
from propagate.tracing.layers import Projection  # a linear map that knows its initialisation


class ConvolutionModule(torch.nn.Module):
    def __init__(self, conv, block):
        super().__init__()
        self.here = Projection(block.width, block.width, conv.gain, law=block.weights)
        self.before = Projection(block.width, block.width, conv.before, law=block.weights)

    def forward(self, x):
        return self.here(x) + torch.nn.functional.pad(self.before(x)[..., :-1, :], (0, 0, 1, 0))


pg.tracing.apply.register(Convolution, ConvolutionModule)
network = pg.build(model, seed=1)
inputs = torch.randn(16, model.tokens, model.width, generator=torch.Generator().manual_seed(0))
traced = pg.trace(network, inputs)
print("one network in torch: variance", np.round(traced.variance.values[:3], 2), "...")

# %%
pg.plot(*tables[:2], *convolved)

# %% [markdown]
# Lines are theory with the band that a network of this width may stray, points are random networks. What you
# registered here is found by `compare`, `first_divergence` and `trace` as the package's own pieces are.
#
# ## What to try next
#
# - Tell `Rotated` to norm the attention's input by `block.tanh`, and see which witness refuses what, in words.
# - Give `Convolution` the `alike = True` that it does not deserve: theory then keeps two numbers where tokens differ,
#   and the simulation says so.
# - `pg.Model("rotated", depth=6, norm=pg.Norm(eps=0.1))`: where does eps begin to matter?
