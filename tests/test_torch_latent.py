"""The torch module of latent attention is the simulation's network: same weights, same output, same gradients."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import propagate as pg

torch = pytest.importorskip("torch", reason="torch is absent: install the extra [torch]")

from confront import formula  # noqa: E402
from test_torch_autograd import assert_is_the_simulation, numpy_pass  # noqa: E402

from proofs.propositions.p15_latent_attention import PROPOSITION  # noqa: E402
from propagate.tracing.latent import LatentHeads  # noqa: E402

torch.set_num_threads(1)
GAINS = {"query_gain": 0.8, "key_gain": 0.7, "rotary_gain": 1.6, "value_gain": 0.6, "out_gain": 1.4}
KINDS = [
    pg.LatentAttention(
        3, rope_size=4, query_rank=7, key_value_rank=5, scale_correction=True, causal=True, rope=10.0, **GAINS
    ),
    pg.LatentAttention(3, rope_size=4, value_size=3, key_value_rank=5, causal=True, window=2, **GAINS),
    pg.LatentAttention(3, rope_size=0, query_rank=6, key_value_rank=5, scale_correction=True, **GAINS),
    pg.LatentAttention(3, key_value_rank=5, scale_correction=True, logit_std=0.0, **GAINS),
]


class LatentBlock(pg.Placement):
    """Attention alone, behind a norm."""

    def block(self, x: Any, block: Any) -> Any:
        return x + block.attention(block.norm(x))


def fill(network: Any, matrices: list[Any], kind: pg.LatentAttention) -> None:
    """The simulation's matrices of gain 1 times their gains, each into the weight of its name."""
    first = ["key_value_down"]
    if kind.logit_std:
        queries = ["query_down", "key_value_down"] if kind.query_rank else ["query", "key_value_down"]
        first = [*queries, *["key_rotary"] * bool(kind.turned_size)]
    up = ["key", "value"] if kind.logit_std else ["value"]
    order = [first, *[["query"]] * bool(kind.query_rank and kind.logit_std), up, ["attention_out"]]
    waiting = iter(matrices)
    for block in network.blocks:
        (heads,) = [part for part in block.modules() if isinstance(part, LatentHeads)]
        gains = {name: gain for name, _, _, gain in heads.attention.matrices(network.model.width)}
        for names in order:
            weights = [heads.weights[name].weight for name in names]
            parts = np.split(next(waiting), np.cumsum([len(weight) for weight in weights])[:-1], axis=-1)
            for name, weight, part in zip(names, weights, parts, strict=True):
                with torch.no_grad():
                    weight.copy_(torch.from_numpy(gains[name] * part.T))


@pytest.mark.parametrize("norm", ["rms", pg.Norm("layer", eps=0.1)], ids=str)
@pytest.mark.parametrize("kind", KINDS, ids=range(len(KINDS)))
def test_output_and_gradients_are_the_simulations(kind: pg.LatentAttention, norm: Any) -> None:
    model = pg.Model(LatentBlock(), depth=2, width=18, tokens=5, norm=norm, attention=kind)
    assert_is_the_simulation(model, lambda network, matrices: fill(network, matrices, model.at(1).attention))


def test_without_the_correction_it_is_another_network() -> None:
    kind = KINDS[0]
    model = pg.Model(LatentBlock(), depth=1, width=18, tokens=5, attention=replace(kind, scale_correction=False))
    random = np.random.default_rng(5)
    x, g = random.standard_normal((2, 1, 5, 18))
    y, _, matrices = numpy_pass(replace(model, attention=kind), x, g)
    network = pg.build(model, dtype=torch.float64)
    fill(network, matrices, model.at(1).attention)
    assert float(abs(network(torch.from_numpy(x)).detach().numpy() - y).max()) > 0.1


def test_a_network_of_other_numbers_of_tokens_and_its_largest_logit() -> None:
    model = pg.Model(LatentBlock(), depth=1, width=18, tokens=5, attention=KINDS[0])
    network = pg.build(model)
    assert network(torch.randn(2, 9, 18)).shape == (2, 9, 18)
    (heads,) = [part for part in network.blocks[0].modules() if isinstance(part, LatentHeads)]
    assert float(heads.largest_logit(torch.randn(2, 5, 18)).detach()) > 0


@pytest.mark.slow
def test_the_trace_of_eight_initialisations_is_predicted() -> None:
    attention = replace(KINDS[0], heads=8, rope_size=12, query_rank=96, key_value_rank=64)
    model = pg.Model("prenorm", depth=3, width=192, tokens=8, attention=attention)
    x = torch.randn(8, 8, 192, generator=torch.Generator().manual_seed(0))
    seen = pg.trace((pg.build(model, seed=seed) for seed in range(8)), x)
    said = pg.predict(model, **pg.start_of(seen))
    assert pg.compare(said, seen).attrs["verdict"] != "disagrees"
    wrong = pg.predict(replace(model, attention=replace(attention, scale_correction=False)), **pg.start_of(seen))
    assert pg.compare(wrong, seen).attrs["verdict"] == "disagrees"


SIZES = {"heads": 6, "head_size": 12, "rope_size": 8, "query_rank": 24, "key_value_rank": 16}


def squares_of(corrected: bool, seed: int) -> dict[str, float]:
    """Mean squares of what one drawn module makes of tokens of size 1; of queries and so on that have a claim."""
    kind = pg.LatentAttention.of_std(0.08, 128, **SIZES, rope=100.0, scale_correction=corrected)
    network = pg.build(pg.Model(LatentBlock(), depth=1, width=128, attention=kind), seed=seed)
    (heads,) = [part for part in network.blocks[0].modules() if isinstance(part, LatentHeads)]
    with torch.no_grad():
        h = torch.randn(8, 6, 128, generator=torch.Generator().manual_seed(seed))
        h = h / h.square().mean(-1, keepdim=True).sqrt()
        latents = heads.inner["key_value"](heads.weights["key_value_down"](h))
        query, key = heads.queries_and_keys(h, latents)
        value = heads.scales["value"] * heads.weights["value"](latents)
    plain = "" if corrected else "plain_"
    parts = {f"{plain}query": query, f"{plain}value": value, f"{plain}logit": query @ key.mT / 20**0.5}
    parts |= {"rotary": key[..., 12:]} | ({"key": key[..., :12]} if corrected else {})
    return {name: float(part.square().mean()) for name, part in parts.items()}


@pytest.mark.parametrize("corrected", [True, False])
def test_the_propositions_formulas(corrected: bool) -> None:
    """Proposition 15 in drawn modules; what it claims of the other case is rejected."""
    at = {"sigma": 0.08, "d": 128, "d_q": 24, "d_kv": 16, "n": 12, "r": 8}
    seen = [squares_of(corrected, seed) for seed in range(24)]
    for name in seen[0]:
        values = [one[name] for one in seen]
        error = np.std(values, ddof=1) / len(values) ** 0.5
        assert abs(np.mean(values) - formula(PROPOSITION, name)(**at)) < 4 * error, name
        other = f"plain_{name}" if corrected else name.removeprefix("plain_")
        if name not in ("rotary", "key"):
            assert abs(np.mean(values) - formula(PROPOSITION, other)(**at)) > 4 * error, name
