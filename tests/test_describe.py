"""What is read off a torch model of a known architecture predicts what is traced in it; a wrong reading does not."""

import dataclasses
from typing import Any

import pytest

import propagate as pg

torch = pytest.importorskip("torch", reason="torch is absent: install the extra [torch]")
pytest.importorskip("transformers", reason="transformers is absent: install the extra [text]")

from figures.hugging_face import VOCABULARY, make  # noqa: E402

torch.set_num_threads(1)
IDS = torch.randint(3, VOCABULARY, (4, 8), generator=torch.Generator().manual_seed(0))
SMALL: dict[str, Any] = {"width": 128, "depth": 4, "heads": 2}
STRONG = 0.08  # standard deviation of an entry, so that branches weigh as much as skips


def berts(count: int, **own: Any) -> Any:
    return (make("BERT", **SMALL, seed=seed, initializer_range=STRONG, **own) for seed in range(count))


def test_theory_of_what_was_read_agrees_with_the_trace() -> None:
    model, unread = pg.describe(next(berts(1)), tokens=8)
    seen = pg.trace(berts(12), {"input_ids": IDS})
    judged = pg.compare(pg.predict(model, **pg.start_of(seen)), seen)
    assert judged.attrs["verdict"] != "disagrees", judged.worst_z.to_series().to_dict()
    assert unread == ()
    wrong = dataclasses.replace(model, attention_gain=1.3)
    assert pg.compare(pg.predict(wrong, **pg.start_of(seen)), seen).attrs["verdict"] == "disagrees"


@pytest.mark.parametrize(
    ("name", "placement", "activation", "norm", "causal"),
    [
        ("GPT-2", "PreNorm", "gelu", "layer", True),
        ("BERT", "PostNorm", "gelu", "layer", False),
        ("Llama", "PreNorm", "swiglu", "rms", True),
        ("OLMo", "PreNorm", "swiglu", "layer", True),
    ],
)
def test_sizes_and_initial_gains_are_read(name: str, placement: str, activation: str, norm: str, causal: bool) -> None:
    model = pg.describe(make(name, **SMALL), tokens=8).model
    assert type(model.equations).__name__ == placement
    assert (model.depth, model.width, model.heads, model.tokens, model.ffn_ratio) == (4, 128, 2, 8, 4.0)
    assert (model.activation, model.at(2).norm.kind, model.causal) == (activation, norm, causal)
    std = 0.02 * 128**0.5
    layer = model.at(2)
    assert layer.attention.value_gain == pytest.approx(std, rel=0.02)
    assert layer.ffn.in_gain == pytest.approx(std, rel=0.02)
    assert layer.attention.query_gain == pytest.approx(std, rel=0.02)
    assert layer.attention.key_gain == pytest.approx(std, rel=0.02)
    assert model.logit_std == 1.0
    scaled = 8**-0.5 if name == "GPT-2" else 1.0  # GPT-2 divides its output matrices by sqrt(2 depth)
    assert layer.attention.out_gain == pytest.approx(std * scaled, rel=0.02)


@pytest.mark.slow
def test_the_eps_of_norms_is_read_and_told_from_none() -> None:
    """The first block of OLMo2 norms what its sublayers make of small embeddings."""
    modules = (make("OLMo2", **SMALL, seed=seed) for seed in range(12))
    seen = pg.trace(modules, {"input_ids": IDS})
    model, said = pg.describe(make("OLMo2", **SMALL), tokens=8)
    assert (said, model.norm) == ((), pg.Norm("rms", eps=1e-5))

    def verdict(eps: float) -> str:
        told = pg.predict(dataclasses.replace(model, norm=pg.Norm("rms", eps)), **pg.start_of(seen))
        return str(pg.compare(told, seen).attrs["verdict"])

    with pytest.warns(pg.ValidityWarning):  # of norms inside heads, which theory takes beside the mean
        assert verdict(1e-5) != "disagrees"
    assert verdict(0.0) == verdict(1e-6) == "disagrees"


class Own(torch.nn.Module):
    """A norm that says nothing of its eps."""

    def __init__(self, eps: float, *, rooted: bool = False) -> None:
        super().__init__()
        self.added, self.rooted = eps, rooted

    def forward(self, x: Any) -> Any:
        size = x.square().mean(-1, keepdim=True)
        return x / (size.sqrt() + self.added if self.rooted else (size + self.added).sqrt())


def test_an_eps_is_measured_where_nothing_says_it_and_may_differ_by_block() -> None:
    module = make("Llama", **SMALL)
    for layer in module.layers:
        layer.input_layernorm, layer.post_attention_layernorm = Own(3e-4), Own(3e-4)
    module.layers[1].input_layernorm = module.layers[1].post_attention_layernorm = Own(1e-3)
    model, said = pg.describe(module, tokens=8)
    assert [model.at(index).norm.eps for index in (1, 2, 3)] == pytest.approx([3e-4, 1e-3, 3e-4], rel=0.01)
    assert said == ()
    module.layers[2].input_layernorm = Own(1e-2)
    module.layers[3].input_layernorm = Own(1e-3, rooted=True)
    said = pg.describe(module, tokens=8).unread
    assert any(words.startswith("norms of one block with eps") for words in said)
    assert "an eps of the norms that is added to something else than the mean square" in said


def test_what_does_not_norm_a_token_is_refused() -> None:
    module = make("Llama", **SMALL)
    for layer in module.layers:
        layer.input_layernorm = type("BatchNorm", (torch.nn.Identity,), {})()
    with pytest.raises(pg.ModelError, match="BatchNorm does not norm the coordinates of a token"):
        pg.describe(module, tokens=8)


def test_what_build_made_describes_itself() -> None:
    model = pg.Model("spannorm", depth=2, width=16, heads=2)
    assert pg.describe(pg.build(model)) == (model, ())


def test_what_could_not_be_read_is_said() -> None:
    module = make("Qwen3", **SMALL)
    model, said = pg.describe(module)
    assert (said, model.norm) == ((), pg.Norm("rms", eps=1e-6))
    assert model.rope == 10000.0
    assert any(words.startswith("rotary positions of parts") for words in pg.describe(make("StableLM", **SMALL)).unread)
    assert model.normed == ("key", "query")
    with torch.no_grad():
        module.layers[1].input_layernorm.weight[3] = 2
    assert any("learned gains" in words for words in pg.describe(module).unread)
    other = make("Llama", **SMALL)
    with torch.no_grad():
        other.layers[2].self_attn.q_proj.weight *= 3
    read = pg.describe(other).model
    assert read.at(3).attention.query_gain == pytest.approx(3 * read.at(2).attention.query_gain, rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Mixtral", "Qwen3-MoE"])
def test_mixtures_of_experts_are_read(name: str) -> None:
    """Simulation of what was read has the moments that are traced; with other gates or a dense FFN it has not."""
    kind = SMALL | {"depth": 3, "initializer_range": 2 * STRONG}
    modules = (make(name, **kind, seed=seed) for seed in range(20))
    seen = pg.trace(modules, {"input_ids": IDS})
    model, unread = pg.describe(make(name, **kind), tokens=8)
    experts = model.experts
    assert (experts.count, experts.top_k, experts.softmax) == (4, 2, "after" if name == "Mixtral" else "before")
    assert experts.router_std == pytest.approx(2 * STRONG * 128**0.5, rel=0.05)
    assert model.ffn_ratio == (4.0 if name == "Mixtral" else 2.0)
    assert unread == ()

    def agrees(model: pg.Model) -> int:
        simulated = pg.simulate(model, draws=48, seed=1, progress=False, backend="numpy", **pg.start_of(seen))
        return pg.compare(simulated, seen).attrs["verdict"] != "disagrees"

    assert agrees(model) == 1
    assert agrees(dataclasses.replace(model, experts=None)) == 0
    other = "before" if name == "Mixtral" else "after"
    assert agrees(dataclasses.replace(model, experts=dataclasses.replace(experts, softmax=other))) == 0


def test_blocks_without_experts_are_said_block_by_block() -> None:
    model = pg.describe(make("Qwen3-MoE", **SMALL, mlp_only_layers=[2], intermediate_size=256), tokens=8).model
    kinds = [model.at(index).experts for index in (1, 2, 3, 4)]
    assert [kind is None for kind in kinds] == [False, False, True, False]
    assert (model.at(3).ffn.units, model.at(4).ffn.expert.units) == (256, 256)


def test_a_matrix_that_is_not_known_is_refused_in_one_line() -> None:
    unknown = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
    with pytest.raises(pg.ModelError, match="what the matrix weight of Linear does is not known") as caught:
        pg.describe(unknown)
    assert "\n" not in str(caught.value)


def encoder(count: int = 3, **fields: Any) -> Any:
    layer = torch.nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, **fields)
    return torch.nn.TransformerEncoder(layer, count, enable_nested_tensor=False)


def test_weights_that_blocks_share_are_said() -> None:
    copies, own = encoder(), encoder()
    for block in own.layers:
        torch.nn.init.normal_(block.linear1.weight)
    said = "the same weights in 3 of 3 blocks, where a Model's are independent"
    assert said in pg.describe(copies).unread
    assert not any("the same weights" in words for words in pg.describe(own).unread)


def test_one_layer_called_many_times_is_as_deep_as_it_is_called() -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64, "embedding_size": 16}
    config = transformers.AlbertConfig(vocab_size=VOCABULARY, num_hidden_layers=4, **sizes)
    module = transformers.AlbertModel(config).eval()
    model, unread = pg.describe(module, tokens=8)
    seen = pg.trace(module, {"input_ids": IDS})
    assert model.depth == seen.sizes["block"] - 1 == 4
    assert " ".join(seen.call.values) == "attention1 norm1 ffn1 norm2"
    assert any("the same weights in 4 of 4 blocks" in words for words in unread)


@pytest.mark.parametrize(
    ("given", "read"),
    [(torch.nn.GELU(), "gelu"), (torch.nn.ReLU(), "relu"), (torch.nn.functional.gelu, "gelu"), ("relu", "relu")],
)
def test_activations_may_be_modules_or_functions(given: Any, read: str) -> None:
    assert pg.describe(encoder(activation=given)).model.activation == read


def test_an_activation_that_is_not_known_is_refused_by_name() -> None:
    for given in (lambda x: x.relu(), torch.nn.Softsign()):
        with pytest.raises(pg.ModelError, match="activation must be a function or module of torch that is known here"):
            pg.describe(encoder(activation=given))
