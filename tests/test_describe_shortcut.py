"""LongCat-Flash's blocks as `transformers` has them: two attentions, two FFNs and a mixture on a shortcut are read."""

import dataclasses

import pytest

import propagate as pg

torch = pytest.importorskip("torch", reason="torch is absent: install the extra [torch]")
transformers = pytest.importorskip("transformers")

torch.set_num_threads(1)
WIDTH, STD = 96, 0.02


def make(seed: int = 0, **fields):
    size = {"num_layers": 2, "num_attention_heads": 4, "ffn_hidden_size": 192, "expert_ffn_hidden_size": 32}
    experts = {"n_routed_experts": 8, "zero_expert_num": 4, "moe_topk": 4, "routed_scaling_factor": 6.0}
    heads = {"qk_nope_head_dim": 24, "qk_rope_head_dim": 8, "head_dim": 8, "v_head_dim": 24}
    ranks = {"q_lora_rank": 48, "kv_lora_rank": 32}
    torch.manual_seed(seed)
    config = transformers.LongcatFlashConfig(
        vocab_size=256, hidden_size=WIDTH, initializer_range=STD, **size, **experts, **heads, **ranks, **fields
    )
    return transformers.LongcatFlashModel(config).eval()


ATTENTION = pg.LatentAttention(
    4,
    24,
    rope_size=8,
    value_size=24,
    query_rank=48,
    key_value_rank=32,
    scale_correction=True,
    causal=True,
    rope=1e7,
    query_gain=STD * 48**0.5,
    key_gain=STD * 32**0.5,
    value_gain=STD * 32**0.5,
    **dict.fromkeys(("rotary_gain", "query_down_gain", "key_value_down_gain", "out_gain"), STD * WIDTH**0.5),
)


def test_the_layer_is_read_as_published() -> None:
    module = make()
    model, unread = pg.describe(module, tokens=8, attention=ATTENTION)
    assert unread == ()
    assert model.placement == pg.placement("scmoe")
    layer = model.at(1)
    assert isinstance(layer.ffn, pg.FFN)
    assert (layer.ffn.units, layer.attention, layer.ffn.activation) == (192, ATTENTION.fitted(WIDTH, 8), "swiglu")
    found = layer.experts
    assert (found.count, found.identity, found.top_k, found.factor, found.softmax) == (8, 4, 4, 6.0, "before")
    assert (found.expert.units, found.bias) == (32, None)
    gain = STD * WIDTH**0.5
    for said in (found.router_std, layer.ffn.in_gain, found.expert.in_gain):
        assert said == pytest.approx(gain, rel=0.05)
    # both output matrices have entries of the same size: gains go as the roots of their fan-ins
    assert found.expert.out_gain / layer.ffn.out_gain == pytest.approx((32 / 192) ** 0.5, rel=0.05)


def test_a_bias_that_only_chooses_is_read() -> None:
    module = make()
    bias = torch.linspace(-0.01, 0.01, 12)
    with torch.no_grad():
        module.layers[1].mlp.router.e_score_correction_bias[:] = bias
    model = pg.describe(module, tokens=8, attention=ATTENTION).model
    assert model.at(1).experts.bias is None
    assert model.at(2).experts.bias == pytest.approx(bias.tolist())


def test_its_attention_is_read_with_the_scale_correction() -> None:
    model, unread = pg.describe(make(), tokens=8)
    read, given = model.at(1).attention, ATTENTION.fitted(WIDTH, 8)
    assert unread == ()
    assert isinstance(read, pg.LatentAttention)
    assert read.scale_correction
    for name in ("heads", "head_size", "rope_size", "value_size", "query_rank", "key_value_rank", "rope", "causal"):
        assert getattr(read, name) == getattr(given, name)
    for name in ("query", "key", "value", "rotary", "out", "query_down", "key_value_down"):
        assert getattr(read, f"{name}_gain") == pytest.approx(getattr(given, f"{name}_gain"), rel=0.1)


@pytest.mark.slow
def test_the_description_and_traces_agree() -> None:
    """The stream, that is: gradients behind an embedding of standard deviation 0.02 vary too much to tell."""
    model = pg.describe(make(), tokens=8, attention=ATTENTION).model
    ids = torch.randperm(256, generator=torch.Generator().manual_seed(0))[:16].reshape(2, 8)
    seen = pg.trace((make(seed) for seed in range(32)), ids)
    start = pg.start_of(seen)
    judged = pg.compare(pg.predict(model, **start), seen)
    assert judged.attrs["verdict"] != "disagrees", judged.worst_z.to_series().to_dict()
    mixture = dataclasses.replace(model.experts, count=12, identity=0)
    other = pg.predict(dataclasses.replace(model, experts=mixture), **start)
    assert pg.compare(other, seen).verdict.sel(quantity="variance") == "disagrees"
