"""A trace measures the streams and gradients that a torch model really has, and leaves the model as it was."""

import gc
import weakref
from typing import Any

import numpy as np
import pytest

import propagate as pg

torch = pytest.importorskip("torch", reason="torch is absent: install the extra [torch]")
pytest.importorskip("transformers", reason="transformers is absent: install the extra [text]")

from figures.hugging_face import ARCHITECTURES, VOCABULARY, make  # noqa: E402

torch.set_num_threads(1)
SMALL: dict[str, Any] = {"width": 32, "depth": 4, "heads": 4}
IDS = torch.randint(3, VOCABULARY, (2, 10), generator=torch.Generator().manual_seed(0))
SPLIT_BLOCKS = ("LongCat-Flash",)  # a block holds two layers


@pytest.mark.few(11)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_stream_is_found_by_structure(name: str) -> None:
    """`output_hidden_states` lists the same streams, but for the last, which it gives after the final norm."""
    module = make(name, **SMALL)
    seen = pg.trace(module, {"input_ids": IDS})
    said = module(input_ids=IDS, output_hidden_states=True).hidden_states
    assert seen.sizes["block"] == len(said) == (3 if name in SPLIT_BLOCKS else 5)
    wanted = [float(stream.detach().square().mean()) for stream in said]
    assert seen.variance.values[:-1] == pytest.approx(wanted[:-1], rel=1e-5)
    totals = [stream.detach().double() for stream in said]
    pairs = [float(((x.sum(1) ** 2).mean() - (x**2).sum(1).mean()) / (10 * 9)) for x in totals]
    assert seen.covariance.values[:-1] == pytest.approx(pairs[:-1], rel=1e-3, abs=1e-7)
    assert seen.covariance.values[1:] != pytest.approx(pairs[:-1], rel=1e-3, abs=1e-7)


@pytest.mark.parametrize(
    ("name", "calls"),
    [
        ("GPT-2", "norm1 attention1 norm2 ffn1"),
        ("BERT", "attention1 norm1 ffn1 norm2"),
        ("Llama", "norm1 attention1 norm2 ffn1"),
        ("Qwen3", "norm1 attention1 norm2 ffn1"),  # the norms of queries and keys are the attention's own affair
        ("OLMo2", "attention1 norm1 ffn1 norm2"),
        ("Gemma3", "norm1 attention1 norm2 norm3 ffn1 norm4"),
        ("Mixtral", "norm1 attention1 norm2 ffn1"),
        ("LongCat-Flash", "norm1 attention1 norm2 ffn1 ffn2 norm3 attention2 norm4 ffn3"),
    ],
)
def test_sublayers_are_named_in_the_order_of_their_calls(name: str, calls: str) -> None:
    assert " ".join(pg.trace(make(name, **SMALL), {"input_ids": IDS}).call.values) == calls


def test_branches_add_up_to_the_stream() -> None:
    """What a pre-norm block adds is what its two branches were seen to give."""
    module = make("Llama", **SMALL)
    seen, caught = pg.trace(module, {"input_ids": IDS}), []
    layer = module.layers[2]
    hooks = [m.register_forward_hook(lambda m, a, out: caught.append(out)) for m in (layer.self_attn, layer.mlp)]
    module(input_ids=IDS)
    for hook in hooks:
        hook.remove()
    attention, ffn = caught[0][0].detach(), caught[1].detach()
    found = seen.call_variance.isel(block=3)
    assert found.sel(call="attention1").item() == pytest.approx(float(attention.square().mean()), rel=1e-5)
    assert found.sel(call="ffn1").item() == pytest.approx(float(ffn.square().mean()), rel=1e-5)
    written = float((attention + ffn).square().mean())
    ratio = float(np.sqrt(written / float(seen.variance[2])))
    assert float(seen.branch_skip_ratio[3]) == pytest.approx(ratio, rel=1e-4)


def cross_entropy(output: Any) -> Any:
    return torch.nn.functional.cross_entropy(output.last_hidden_state.flatten(0, 1), IDS.flatten() % 32)


def test_gradients_of_a_loss_are_autograd_s() -> None:
    module = make("GPT-2", **SMALL)
    seen = pg.trace(module, {"input_ids": IDS}, loss=cross_entropy)
    output = module(input_ids=IDS, output_hidden_states=True)
    streams = output.hidden_states[:-1]
    wanted = torch.autograd.grad(cross_entropy(output), [*streams, *module.h[1].parameters()])
    squares = [float(g.square().mean()) for g in wanted[: len(streams)]]
    assert seen.grad_variance.values[:-1] == pytest.approx(squares, rel=1e-4)
    norm = sum(float(g.square().sum()) for g in wanted[len(streams) :]) ** 0.5
    assert float(seen.parameter_grad_norm[2]) == pytest.approx(norm, rel=1e-4)


def test_the_default_cotangent_is_white_and_enters_at_the_last_block() -> None:
    module = make("Llama", **SMALL)
    seen = pg.trace(module, {"input_ids": IDS}, seed=5)
    size = IDS.numel() * 32
    assert float(seen.grad_variance[-1]) == pytest.approx(1, abs=4 * np.sqrt(2 / size))
    assert float(seen.grad_covariance[-1]) == pytest.approx(0, abs=4 / np.sqrt(size))
    again, other = (pg.trace(module, {"input_ids": IDS}, seed=seed).grad_variance for seed in (5, 6))
    assert (again == seen.grad_variance).all()
    assert (other != seen.grad_variance).any()


def state(module: Any) -> tuple[Any, ...]:
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules())
    return hooks, [m.training for m in module.modules()], [p.grad for p in module.parameters()]


class Refusing(torch.nn.Module):
    """A block that fails."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(8))

    def forward(self, x: Any) -> Any:
        if not self.training:
            raise RuntimeError("no")
        return x * self.weight


def test_nothing_is_left_behind_even_on_error() -> None:
    module = make("BERT", **SMALL).train()
    module.encoder.layer[1].eval()
    before = state(module)
    pg.trace(module, {"input_ids": IDS})
    assert state(module) == before
    failing = torch.nn.Sequential(Refusing(), Refusing()).train()
    before = state(failing)
    with pytest.raises(RuntimeError, match="no"):
        pg.trace(failing, torch.ones(1, 3, 8))
    assert state(failing) == before
    assert before[0] == 0


def test_padding_does_not_count() -> None:
    module = make("BERT", **SMALL)
    padded = torch.cat([IDS, torch.zeros(2, 4, dtype=torch.long)], dim=1)
    mask = (torch.arange(14) < 10).expand(2, -1)
    alone = pg.trace(module, {"input_ids": IDS}, loss=lambda out: out.last_hidden_state[:, :10, 0].sum())
    beside = pg.trace(
        module,
        {"input_ids": padded, "attention_mask": mask.long()},
        loss=lambda out: out.last_hidden_state[:, :10, 0].sum(),
    )
    for name in ("variance", "covariance", "deviation", "effective_rank", "layer_cosine", "grad_variance"):
        assert beside[name].values == pytest.approx(alone[name].values, rel=1e-4, nan_ok=True)
    assert (beside.attrs["tokens_counted"], beside.attrs["tokens_left_out"]) == (20, 8)
    counted = pg.trace(module, {"input_ids": padded})
    assert counted.covariance.values[1:] != pytest.approx(alone.covariance.values[1:], rel=1e-2)


def test_a_mask_leaves_out_special_tokens() -> None:
    x = torch.ones(1, 3, 4)
    x[0, 0] = 100
    module = torch.nn.ModuleList([torch.nn.Identity()])
    seen = pg.trace(torch.nn.Sequential(*module), x, mask=torch.tensor([[False, True, True]]), blocks=list(module))
    assert seen.variance.values.tolist() == [1, 1]
    with pytest.raises(pg.ModelError, match="mask"):
        pg.trace(torch.nn.Sequential(*module), x, mask=torch.ones(1, 2), blocks=list(module))


def test_statistics_of_a_half_precision_model_are_in_single_precision() -> None:
    x = (1 + torch.rand(1, 64, 512, generator=torch.Generator().manual_seed(1))).bfloat16()
    module = torch.nn.Sequential(torch.nn.Identity(), torch.nn.Identity())
    seen = pg.trace(module, x, blocks=module)
    wanted = float(x.double().square().mean())
    assert seen.attrs["dtype"] == "bfloat16"
    assert float(seen.variance[0]) == pytest.approx(wanted, rel=1e-6)
    assert float(x.square().mean()) != pytest.approx(wanted, rel=1e-6)


def test_one_module_called_many_times_is_many_blocks() -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64, "embedding_size": 16}
    config = transformers.AlbertConfig(vocab_size=VOCABULARY, num_hidden_layers=3, **sizes)
    seen = pg.trace(transformers.AlbertModel(config), {"input_ids": IDS}, blocks="encoder.albert_layer_groups")
    assert seen.sizes["block"] == 4
    assert len(set(seen.parameter_grad_norm.values[1:])) == 1


def test_what_is_not_found_is_said_in_one_line() -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"d_model": 16, "d_ff": 32, "num_layers": 2, "num_heads": 2, "d_kv": 8, "vocab_size": VOCABULARY}
    both = transformers.T5Model(transformers.T5Config(**sizes))
    given = {"input_ids": IDS, "decoder_input_ids": IDS}
    for call, named in (
        (lambda: pg.trace(both, given), "encoder.block and decoder.block|decoder.block and encoder.block"),
        (lambda: pg.trace(both, given, blocks="encoder.blocks"), "blocks must be the path"),
        (lambda: pg.trace(torch.nn.Linear(4, 4), torch.ones(3, 4)), "no list of equal blocks"),
        (lambda: pg.trace([], IDS), "at least one"),
        (lambda: pg.trace("llama", IDS), "one of 'l'|torch model"),
    ):
        with pytest.raises(pg.ModelError, match=named) as caught:
            call()
        assert "\n" not in str(caught.value)
    assert pg.trace(both, given, blocks="encoder.block").sizes["block"] == 3


def draws_of(model: pg.Model, count: int) -> Any:
    return (pg.build(model, seed=seed, dtype=torch.float64) for seed in range(count))


def tokens(covariance: float, count: int, width: int) -> Any:
    """Tokens with exactly this Gram matrix."""
    gram = (1 - covariance) * np.eye(count) + covariance
    directions = np.linalg.qr(np.random.default_rng(0).standard_normal((width, count)))[0]
    return torch.from_numpy(np.linalg.cholesky(gram) @ directions.T * np.sqrt(width))


@pytest.mark.parametrize(
    "placement", ["spannorm", *(pytest.param(name, marks=pytest.mark.slow) for name in ("prenorm", "periln"))]
)
def test_theory_and_trace_agree(placement: str) -> None:
    model = pg.Model(placement, depth=4, width=128, tokens=8, heads=2, scaling=pg.ScaleInit(0.5))
    seen = pg.trace(draws_of(model, 40), tokens(0.3, 8, 128))
    judged = pg.compare(pg.predict(model, **pg.start_of(seen)), seen)
    assert judged.attrs["verdict"] != "disagrees", judged.worst_z.to_series().to_dict()
    wrong = pg.Model("postnorm", depth=4, width=128, tokens=8, heads=2)
    assert pg.compare(pg.predict(wrong, **pg.start_of(seen)), seen).attrs["verdict"] == "disagrees"


@pytest.mark.parametrize("kept", [False, True])
def test_one_model_at_a_time_is_in_memory(kept: bool) -> None:
    model, alive, most = pg.Model("prenorm", depth=2, width=32, tokens=4, heads=2), weakref.WeakSet(), []
    holder: list[Any] = []

    def made() -> Any:
        for seed in range(4):
            network = pg.build(model, seed=seed, dtype=torch.float64)
            alive.add(network)
            most.append(len(alive))
            holder.extend([network] * kept)
            yield network
            del network

    pg.build(model)  # torch's own first call keeps a network in a cycle
    gc.disable()
    try:
        pg.trace(made(), tokens(0.0, 4, 32))
    finally:
        gc.enable()
    assert max(most) == (4 if kept else 1)


def test_standard_errors_are_over_models() -> None:
    model = pg.Model("prenorm", depth=2, width=32, tokens=4, heads=2)
    x = tokens(0.0, 4, 32)
    each = [float(pg.trace(module, x).variance[2]) for module in draws_of(model, 5)]
    seen = pg.trace(draws_of(model, 5), x)
    assert float(seen.variance[2]) == pytest.approx(np.mean(each), rel=1e-12)
    assert float(seen.variance_se[2]) == pytest.approx(np.std(each, ddof=1) / 5**0.5, rel=1e-12)
    assert seen.attrs["draws"] == 5
    with pytest.raises(pg.ModelError, match="one architecture"):
        pg.trace([pg.build(model), pg.build(pg.Model("prenorm", depth=3, width=32, tokens=4, heads=2))], x.float())


def test_several_cotangents_give_the_gradient_of_one_model_an_error_bar() -> None:
    torch.manual_seed(0)
    module = torch.nn.Sequential(*(torch.nn.TransformerEncoderLayer(32, 2, 64) for _ in range(2)))
    x = torch.randn(4, 2, 32)
    one, many = pg.trace(module, x), pg.trace(module, x, cotangents=16)
    assert "grad_variance_se" not in one
    assert float(many.variance[2]) == float(one.variance[2])
    assert "variance_se" not in many
    others = [float(pg.trace(module, x, seed=seed).grad_variance[0]) for seed in range(16)]
    mean = sum(others) / 16
    spread = (sum((value - mean) ** 2 for value in others) / 15) ** 0.5
    assert float(many.grad_variance_se[0]) * 4 == pytest.approx(spread, rel=0.8)
    assert abs(float(many.grad_variance[0]) - mean) < 4 * spread / 8**0.5
    assert {"param_grad_se", "parameter_grad_norm_se", "grad_deviation_se"} <= set(many)
    with pytest.raises(pg.ModelError, match="cotangents must be 1 with a loss"):
        pg.trace(module, x, cotangents=2, loss=lambda y: y.sum())
    for wrong in (0, 2.5, True, 10**30):
        with pytest.raises(pg.ModelError, match="cotangents"):
            pg.trace(module, x, cotangents=wrong)


def test_a_loss_that_fails_is_named_and_its_own_error_is_the_cause() -> None:
    layers = [torch.nn.TransformerEncoderLayer(8, 1, 16, batch_first=True) for _ in range(2)]
    module, x = torch.nn.Sequential(*layers), torch.ones(1, 2, 8)
    with pytest.raises(pg.ModelError, match=r"loss could not be taken .* of shape \(1, 2, 8\): KeyError") as caught:
        pg.trace(module, x, loss=lambda out: {}[out.sum().item()])
    assert isinstance(caught.value.__cause__, KeyError)
    with pytest.raises(pg.ModelError, match="loss must be differentiable"):
        pg.trace(module, x, loss=lambda out: out.detach().sum())
    with pytest.raises(pg.ModelError, match="loss must give a tensor with one number"):
        pg.trace(module, x, loss=lambda out: out)
