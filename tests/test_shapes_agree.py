"""Networks of other shapes than a plain decoder's, as `transformers` makes them, agree with what `describe` reads."""

from dataclasses import replace
from typing import Any

import pytest

import propagate as pg

torch = pytest.importorskip("torch", reason="torch is absent: install the extra [torch]")
transformers = pytest.importorskip("transformers", reason="transformers is absent: install the extra [text]")

from test_describe_reach import make  # noqa: E402

torch.set_num_threads(1)
SIZES: dict[str, Any] = {"hidden_size": 128, "intermediate_size": 256, "initializer_range": 0.08}
MIXTURE = {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1, "moe_intermediate_size": 64}
LATENT = {"q_lora_rank": 48, "kv_lora_rank": 32, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16}


def words() -> Any:
    """Sequences of tokens that all differ."""
    draws = (torch.Generator().manual_seed(seed) for seed in range(4))
    return torch.stack([10 + torch.randperm(89, generator=draw)[:8] for draw in draws])


def without_windows(model: pg.Model) -> pg.Model:
    whole = replace(model.parts[0].attention, window=None)
    return replace(
        model, window=None, attention=None, layers={key: {"attention": whole} for key in range(1, model.depth + 1)}
    )


pytestmark = pytest.mark.slow  # eight initialisations of each class


@pytest.mark.parametrize(
    ("name", "own", "placement", "wrong"),
    [
        ("bert", {}, "PostNorm", lambda model: replace(model, placement="prenorm")),
        (
            "gpt_neox",
            {"use_parallel_residual": True},
            "ParallelPreNorm",
            lambda model: replace(model, placement="postnorm"),
        ),
        (
            "gemma2",
            {"head_dim": 32, "sliding_window": 2, "layer_types": ["sliding_attention"] * 3 + ["full_attention"]}
            | {"query_pre_attn_scalar": 32, "num_hidden_layers": 4},
            "SandwichNorm",
            without_windows,
        ),
    ],
    ids=["encoder", "parallel", "windows"],
)
def test_what_is_read_agrees_with_eight_initialisations(
    name: str, own: dict[str, Any], placement: str, wrong: Any
) -> None:
    own = SIZES | own
    seen = pg.trace((make(name, seed, **own) for seed in range(8)), {"input_ids": words()})
    model, _ = pg.describe(make(name, **own), tokens=8)
    assert type(model.equations).__name__ == placement
    start = pg.start_of(seen)
    assert pg.compare(pg.predict(model, start), seen).attrs["verdict"] != "disagrees"
    assert pg.compare(pg.predict(wrong(model), start), seen).attrs["verdict"] == "disagrees"


def test_a_first_block_that_is_dense_is_told_from_experts() -> None:
    own = (
        SIZES | MIXTURE | LATENT | {"first_k_dense_replace": 1, "num_key_value_heads": 4, "routed_scaling_factor": 1.0}
    )
    own |= {"n_group": 1, "topk_group": 1}
    seen = pg.trace((make("deepseek_v2", seed, **own) for seed in range(8)), {"input_ids": words()})
    model, _ = pg.describe(make("deepseek_v2", **own), tokens=8)
    assert [parts.experts is None for parts in model.parts] == [True, False]
    start = pg.start_of(seen)
    assert pg.compare(pg.predict(model, start), seen).attrs["verdict"] != "disagrees"
    dense = replace(model, experts=None, layers={2: {"experts": None, "ffn": model.parts[0].ffn.with_(out_gain=3.0)}})
    assert pg.compare(pg.predict(dense, start), seen).attrs["verdict"] == "disagrees"
