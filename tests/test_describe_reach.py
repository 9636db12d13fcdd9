"""Models of many architectures are read by what their blocks do, whatever they are called; what is not read is said."""

import re
from typing import Any

import pytest

import propagate as pg

torch = pytest.importorskip("torch", reason="torch is absent: install the extra [torch]")
transformers = pytest.importorskip("transformers", reason="transformers is absent: install the extra [text]")


torch.set_num_threads(1)
BERT: dict[str, Any] = {
    "vocab_size": 99,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "initializer_range": 0.1,
    "pad_token_id": 0,
}
LLAMA = BERT | {"num_key_value_heads": 2, "head_dim": 8}
GPT = {"vocab_size": 99, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "initializer_range": 0.1}


def make(name: str, seed: int = 0, **own: Any) -> Any:
    torch.manual_seed(seed)
    known = (
        GPT if name in ("gptj", "gpt_bigcode", "gpt2") else {"n_layer": 2, "n_head": 4} if name == "bloom" else LLAMA
    )
    if name in ("bert", "gpt_neox", "opt", "falcon", "vit", "camembert", "bloom"):
        known = BERT | (known if name == "bloom" else {})
    config = transformers.AutoConfig.for_model(name, **(known | own))
    return transformers.AutoModel.from_config(config).eval()


@pytest.mark.few(8)
@pytest.mark.parametrize(
    ("name", "own", "placement", "causal"),
    [
        ("gpt_neox", {"use_parallel_residual": False}, "PreNorm", True),
        ("gpt_neox", {"use_parallel_residual": True}, "ParallelPreNorm", True),
        ("stablelm", {"use_parallel_residual": True}, "ParallelPreNorm", True),
        ("opt", {"ffn_dim": 64, "word_embed_proj_dim": 32, "do_layer_norm_before": False}, "PostNorm", True),
        ("bert", {"is_decoder": True}, "PostNorm", True),
        ("bert", {}, "PostNorm", False),
        ("falcon", {"parallel_attn": True}, "ParallelPreNorm", True),  # it adds to its FFN's output in place
        ("falcon", {"parallel_attn": False}, "PreNorm", True),
        ("bloom", {}, "PreNorm", True),  # its sublayers add the skip themselves
        ("gptj", {"rotary_dim": 4}, "ParallelPreNorm", True),
        ("gpt_bigcode", {}, "PreNorm", True),
        ("cohere", {}, "ParallelPreNorm", True),
        ("glm4", {}, "SandwichNorm", True),
        ("olmo3", {}, "OLMo2", True),
        ("phi3", {}, "PreNorm", True),
        ("camembert", {}, "PostNorm", False),
        ("vit", {"image_size": 16, "patch_size": 4}, "PreNorm", False),
    ],
)
def test_placement_and_mask_are_those_that_the_configuration_makes(
    name: str, own: dict[str, Any], placement: str, causal: bool
) -> None:
    model, said = pg.describe(make(name, **own), tokens=8)
    assert (type(model.equations).__name__, model.causal) == (placement, causal)
    assert not any("times the variance" in words for words in said), said


def test_a_class_token_that_is_smaller_than_the_others_starts_as_it_is() -> None:
    """The gradient at its place is as much larger: of tokens that are alike theory has too small a mean."""
    sizes = {"image_size": 8, "patch_size": 4, "hidden_size": 64, "intermediate_size": 128}
    pixels = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    seen = pg.trace((make("vit", seed, **sizes) for seed in range(8)), {"pixel_values": pixels})
    model, said = pg.describe(make("vit", **sizes), tokens=5)
    assert said == ()
    assert set(pg.start_of(seen)) == {"gram", "grad_gram"}
    assert pg.compare(pg.predict(model, **pg.start_of(seen)), seen).attrs["verdict"] != "disagrees"
    alike = pg.start_of(seen, each_token=False)
    assert set(alike) == {"variance", "covariance", "grad_variance", "grad_covariance"}
    assert pg.compare(pg.predict(model, **alike), seen).attrs["verdict"] == "disagrees"


def test_tokens_that_are_alike_start_as_two_numbers_unless_asked() -> None:
    ids = torch.randint(10, 99, (2, 8), generator=torch.Generator().manual_seed(0))
    seen = pg.trace(make("bert"), {"input_ids": ids})
    assert not {"gram", "grad_gram"} & set(pg.start_of(seen))
    start = pg.start_of(seen, each_token=True)
    assert start.gram.trace() / 8 == pytest.approx(float(seen.variance[0]), rel=1e-6)
    off = start.grad_gram.sum() - start.grad_gram.trace()
    assert off / 56 == pytest.approx(float(seen.grad_covariance[-1]), rel=1e-4)
    with pytest.raises(pg.ModelError, match="each_token needs a table with gram"):
        pg.start_of(seen.drop_vars("gram"), each_token=True)
    padded = torch.ones(2, 8)
    padded[0, -1] = 0
    assert "gram" not in pg.trace(make("bert"), {"input_ids": ids, "attention_mask": padded})


def test_a_gate_has_a_gain_of_its_own() -> None:
    module = make("llama")
    with torch.no_grad():
        for layer in module.layers:
            layer.mlp.gate_proj.weight *= 5
    ffn = pg.describe(module, tokens=8).model.at(1).ffn
    assert ffn.gate_gain == pytest.approx(5, rel=0.1)
    assert ffn.in_gain == pytest.approx(0.1 * 32**0.5, rel=0.1)


def test_equations_that_no_placement_has_are_one() -> None:
    module = make("granite", residual_multiplier=0.5)
    model = pg.describe(module, tokens=8).model
    assert repr(model.placement) == (
        "AsRead(x + 0.5 attention1(norm(x)) + 0.5 ffn1(norm(x + 0.5 attention1(norm(x)))))"
    )
    ids = torch.randint(10, 99, (4, 8), generator=torch.Generator().manual_seed(0))
    seen = pg.trace((make("granite", seed, residual_multiplier=0.5) for seed in range(8)), {"input_ids": ids})
    assert pg.compare(pg.predict(model, **pg.start_of(seen)), seen).attrs["verdict"] != "disagrees"
    wrong = pg.describe(make("granite", residual_multiplier=2.0), tokens=8).model
    assert pg.compare(pg.predict(wrong, **pg.start_of(seen)), seen).attrs["verdict"] == "disagrees"


def test_blocks_that_attend_to_a_window_are_told_from_those_that_do_not() -> None:
    kinds = ["sliding_attention", "full_attention"]
    model = pg.describe(make("gemma2", sliding_window=4, layer_types=kinds), tokens=8).model
    assert [model.at(index).attention.window for index in (1, 2)] == [4, None]


def test_logits_divided_by_the_index_of_their_block_are_read() -> None:
    model = pg.describe(make("gpt2", scale_attn_by_inverse_layer_idx=True), tokens=8).model
    assert [model.at(index).attention.logit_std for index in (1, 2)] == pytest.approx([1.0, 0.5])


def test_logits_that_a_model_computes_itself_are_read() -> None:
    """GPT-Neo does not divide them by the root of the width of a head, Gemma2 by another root."""
    own = {"num_layers": 2, "num_heads": 4, "attention_types": [[["global"], 2]]}
    assert pg.describe(make("gpt_neo", **own), tokens=8).model.logit_std == pytest.approx(8**0.5, rel=1e-3)
    kind = pg.describe(make("gemma2", query_pre_attn_scalar=32), tokens=8).model
    assert kind.logit_std == pytest.approx(0.5, rel=0.02)  # the cap bends it


def test_what_is_read_wrongly_is_said_in_numbers() -> None:
    """GPT-OSS clips and shifts what it gates; a model with another gain than the one that was read is found out."""
    own = {"num_local_experts": 4, "num_experts_per_tok": 2, "hidden_size": 64, "initializer_range": 0.08}
    said = pg.describe(make("gpt_oss", **own), tokens=8).unread
    assert any(re.match(r"the ffn of block \d writes", words) for words in said)
    assert any("self_attn.sinks" in words and "parameters" in words for words in said)


def test_a_field_that_nobody_looked_at_is_listed() -> None:
    said = pg.describe(make("llama", stochastic_weather=0.25), tokens=8).unread
    assert "fields of the configuration that were not looked at: stochastic_weather=0.25" in said


def test_descriptions_may_be_given_in_place_of_what_would_be_read() -> None:
    torch.manual_seed(0)

    class Odd(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = torch.nn.Linear(16, 32), torch.nn.Linear(32, 16)

        def forward(self, x: Any) -> Any:
            return x * x + self.second(self.first(x).relu())

    module = torch.nn.Sequential(Odd(), Odd())
    with pytest.raises(pg.ModelError, match="the matrix attention_out of Odd was not found"):
        pg.describe(module, tokens=4)
    attention, ffn = pg.Attention(heads=2), pg.FFN("relu", hidden=32, in_gain=0.5)
    model, _ = pg.describe(module, tokens=4, placement="rezero", attention=attention, ffn=ffn)
    assert (model.depth, model.width, model.at(2).ffn.in_gain, type(model.equations).__name__) == (2, 16, 0.5, "ReZero")
    with pytest.raises(pg.ModelError, match="is no sum of the streams"):
        pg.describe(module, tokens=4, attention=attention, ffn=ffn)
