"""Latent attention of transformers' DeepSeek models: described from their own matrices, and predicted as traced."""

import math
from typing import Any

import numpy as np
import pytest

import propagate as pg

torch = pytest.importorskip("torch", reason="torch is absent: install the extra [torch]")
transformers = pytest.importorskip("transformers", reason="transformers is absent")

torch.set_num_threads(1)
SIZES: dict[str, Any] = {"vocab_size": 64, "hidden_size": 128, "intermediate_size": 320, "moe_intermediate_size": 96}
SIZES |= {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4, "kv_lora_rank": 48}
SIZES |= {"qk_rope_head_dim": 16, "v_head_dim": 24, "qk_nope_head_dim": 32, "max_position_embeddings": 64}
SIZES |= {"initializer_range": 0.08, "n_routed_experts": 8, "num_experts_per_tok": 3}
GROUPS = {"q_lora_rank": 80, "n_group": 1, "topk_group": 1}
LARGER = {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 8}
LARGER |= {"kv_lora_rank": 96, "initializer_range": 0.06, "v_head_dim": 32}


def second(seed: int = 0, **fields: Any) -> Any:
    """DeepSeek-V2's kind: no latent of queries, one dense block and softmax routers."""
    config = transformers.DeepseekV2Config(
        **{**SIZES, "q_lora_rank": None, "n_shared_experts": 2, "first_k_dense_replace": 1} | fields
    )
    torch.manual_seed(seed)
    return transformers.DeepseekV2Model(config).eval()


def third(seed: int = 0, dense: int = 2, **fields: Any) -> Any:
    """DeepSeek-V3's."""
    config = transformers.DeepseekV3Config(**{**SIZES, **GROUPS, "first_k_dense_replace": dense} | fields)
    torch.manual_seed(seed)
    return transformers.DeepseekV3Model(config).eval()


def test_sizes_gains_and_experts_are_the_models() -> None:
    module = second()
    model, unread = pg.describe(module, tokens=8)
    assert unread == ()
    first, other = model.at(1), model.at(2)
    kind = other.attention
    assert isinstance(kind, pg.LatentAttention)
    assert (kind.heads, kind.head_size, kind.rope_size, kind.value_size) == (4, 32, 16, 24)
    assert (kind.query_rank, kind.key_value_rank, kind.causal, kind.rope) == (None, 48, True, 1e4)
    assert not kind.scale_correction
    up = module.layers[1].self_attn.kv_b_proj.weight.detach().reshape(4, 56, 48)
    down = module.layers[1].self_attn.kv_a_proj_with_mqa.weight.detach()
    assert kind.key_gain == pytest.approx(float(up[:, :32].square().mean() * 48) ** 0.5, rel=1e-5)
    assert kind.value_gain == pytest.approx(float(up[:, 32:].square().mean() * 48) ** 0.5, rel=1e-5)
    assert kind.rotary_gain == pytest.approx(float(down[48:].square().mean() * 128) ** 0.5, rel=0.03)
    assert first.experts is None
    mixture = other.mixture
    assert (mixture.count, mixture.top_k, mixture.shared, mixture.softmax) == (8, 3, 2, "before")
    assert mixture.expert.units == 96


def test_a_latent_of_queries_is_read_and_the_correction_where_it_is() -> None:
    module = third()
    model, unread = pg.describe(module, tokens=8)
    kind = model.at(1).attention
    assert isinstance(kind, pg.LatentAttention)
    assert (kind.query_rank, kind.scale_correction, unread) == (80, False, ())
    assert kind.query_gain == pytest.approx(0.08 * math.sqrt(80), rel=0.05)
    for layer in module.layers:  # claimed, but not done
        layer.self_attn.mla_scale_q_lora, layer.self_attn.mla_scale_kv_lora = (128 / 80) ** 0.5, (128 / 48) ** 0.5
    model, unread = pg.describe(module, tokens=8)
    kind = model.at(1).attention
    assert isinstance(kind, pg.LatentAttention)
    assert kind.scale_correction
    assert "the attention of block 1 writes" in unread[0]


def test_routers_that_take_the_logistic_function_are_read_and_others_refused() -> None:
    module = third(dense=1)
    model, unread = pg.describe(module, tokens=8)
    mixture, bias = model.at(2).mixture, [0.3, *[0.0] * 6, -0.2]
    assert (mixture.softmax, mixture.factor, mixture.shared, mixture.bias, unread) == (
        "sigmoid_after",
        2.5,
        1,
        None,
        (),
    )
    router = module.layers[1].mlp.gate
    router.e_score_correction_bias[:] = torch.tensor(bias)
    model, unread = pg.describe(module, tokens=8)
    assert (model.at(2).mixture.bias, unread) == (pytest.approx(bias), ())
    router.e_score_correction_bias += 40  # for all, which chooses nothing
    assert pg.describe(module, tokens=8).model.at(2).mixture.bias == pytest.approx(
        [0.25 + b - 0.3 for b in bias], abs=1e-5
    )
    router.e_score_correction_bias *= 10
    assert "a bias on the choice of experts that spreads over 5" in pg.describe(module, tokens=8).unread[0]
    router.e_score_correction_bias[:] = 0
    router.norm_topk_prob = False
    assert pg.describe(module, tokens=8).model.at(2).mixture.softmax == "sigmoid"
    router.num_group, router.topk_group, router.norm_topk_prob = 4, 2, True
    model, unread = pg.describe(module, tokens=8)
    assert model.at(2).mixture.softmax == "sigmoid_after"
    assert "% from those of softmax='sigmoid_after'" in unread[0]
    router.routed_scaling_factor = 9.0
    with pytest.raises(pg.ModelError, match=r"gates of DeepseekV3TopkRouter are no softmax .* say what the mixture is"):
        pg.describe(module, tokens=8)
    near = pg.Experts(8, 3, router_std=0.9, gain=2.5, shared=1, ffn=pg.FFN("swiglu", hidden=96))
    assert pg.describe(module, tokens=8, ffn=near).model.at(2).mixture.factor == 2.5


def test_a_router_that_wants_its_bias_given_is_asked_within_its_mixture() -> None:
    sizes = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 96, "head_dim": 16, "rotary_dim": 8}
    sizes |= {"num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 4, "initializer_range": 0.1}
    config = transformers.MiniMaxM2Config(**sizes, num_local_experts=4, num_experts_per_tok=2)
    module = transformers.MiniMaxM2Model(config).eval()
    assert pg.describe(module, tokens=4).model.at(1).mixture.softmax == "sigmoid_after"


def test_other_factors_are_refused() -> None:
    module = third()
    module.layers[0].self_attn.mla_scale_q_lora = 3.0
    with pytest.raises(pg.ModelError, match="of latents are not sqrt"):
        pg.describe(module, tokens=8)


def test_gradients_of_its_matrices_have_their_names() -> None:
    module = third()
    seen = pg.trace(module, torch.arange(12).reshape(2, 6))
    wanted = {"query_down", "query", "key_value_down", "key_rotary", "key", "value", "attention_out"}
    assert wanted <= set(seen.matrix.values)
    attention, other = (pg.describe(third(), tokens=6).model.at(1).attention for _ in range(2))
    assert attention == other
    assert np.isfinite(seen.param_grad[1:].sel(matrix=sorted(wanted))).all()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["second", "third"])
def test_a_trace_of_eight_initialisations_is_predicted_within_six_percent(kind: str) -> None:
    """Or within four standard errors; without the norms' latents' own sizes it is not."""
    make = {"second": second, "third": lambda seed, **fields: third(seed, 4, **fields)}[kind]
    ids = torch.randint(0, 64, (4, 16), generator=torch.Generator().manual_seed(5))
    seen = pg.trace((make(seed, **LARGER) for seed in range(8)), ids)
    model = pg.describe(make(0, **LARGER), tokens=16).model
    found = pg.compare(pg.predict(model, **pg.start_of(seen)), seen)
    for name in ("variance", "deviation", "grad_variance", "grad_deviation"):
        one = found.sel(quantity=name)
        off = abs(one.relative_error) - 0.06
        assert bool(((off < 0) | (abs(one.z) < 2)).all()), name
    wrong = pg.predict(pg.Model("prenorm", 4, 256, 16, causal=True, activation="swiglu"), **pg.start_of(seen))
    assert float(abs(pg.compare(wrong, seen).relative_error.sel(quantity="grad_variance")).max()) > 0.3
