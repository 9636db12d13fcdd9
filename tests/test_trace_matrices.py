"""`param_grad` of the trace: theory predicts what torch's autograd gives for every matrix, of ours and of others."""

from typing import Any

import numpy as np
import pytest
import xarray as xr

import propagate as pg

torch = pytest.importorskip("torch", reason="torch is absent: install the extra [torch]")

torch.set_num_threads(1)
SIZES: dict[str, Any] = {"depth": 2, "width": 64, "tokens": 6, "heads": 4, "ffn_ratio": 2.0}
BUILT: dict[str, tuple[str, dict[str, Any]]] = {
    "logits of 2": ("prenorm", {"logit_std": 2.0}),
    "a decoder": (
        "postnorm",
        {"causal": True, "rope": 100.0, "activation": "swiglu", "key_value_heads": 2, "logit_std": 0.3},
    ),
    "experts": ("prenorm", {"experts": pg.Experts(4, 2, shared=2, split=2), "activation": "geglu"}),
    "several streams": ("residual", {"logit_std": 0.0}),
}


def traced(model: pg.Model, count: int = 24) -> xr.Dataset:
    x = torch.randn(4, model.tokens, model.width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return pg.trace((pg.build(model, seed=seed, dtype=torch.float64) for seed in range(count)), x)


def scores(prediction: xr.Dataset, seen: xr.Dataset) -> dict[str, float]:
    judged = pg.compare(prediction, seen).worst_z.to_series()
    return {str(name): judged[f"param_grad[{name}]"] for name in seen.matrix.to_numpy()}


@pytest.mark.few(1)
@pytest.mark.parametrize("name", BUILT)
def test_theory_agrees_with_autograd(name: str) -> None:
    placement, fields = BUILT[name]
    model = pg.Model(placement, **SIZES | fields)
    seen = traced(model)
    said = pg.predict(model, include={"param_grad"}, **pg.start_of(seen))
    found = scores(said, seen)
    assert max(found.values()) < 4, found
    assert list(found) == said.matrix.to_numpy().tolist()
    if name == "logits of 2":  # logit_std^2 as a factor, or a gradient of the batch and not of a sequence
        wrong = said.assign(param_grad=said.param_grad * 4)
        assert min(scores(wrong, seen).values()) > 4


@pytest.mark.few(1)
@pytest.mark.parametrize("name", ["GPT-2", "GPT-NeoX", "Qwen3", "Mixtral"])
def test_other_models_matrices_are_known_by_name(name: str) -> None:
    pytest.importorskip("transformers", reason="transformers is absent: install the extra [text]")
    from figures.hugging_face import VOCABULARY, make

    ids = torch.randint(3, VOCABULARY, (4, 8), generator=torch.Generator().manual_seed(0))
    kind = {"width": 128, "depth": 2, "heads": 2, "initializer_range": 0.08}
    model, _ = pg.describe(make(name, **kind), tokens=8)
    seen = pg.trace((make(name, seed=seed, **kind) for seed in range(12)), {"input_ids": ids})
    said = pg.predict(model, include={"param_grad"}, **pg.start_of(seen))
    found = scores(said, seen)
    assert max(found.values()) < 4, (name, found)
    assert list(found) == said.matrix.to_numpy().tolist()
    exchanged = said.assign_coords(matrix=said.matrix.to_numpy()[::-1].tolist())
    assert max(scores(exchanged, seen).values()) > 4, name


def test_a_batch_is_the_mean_of_its_sequences_and_a_loss_of_several_has_no_such_table() -> None:
    model = pg.Model("prenorm", **SIZES | {"logit_std": 2.0})
    network = pg.build(model, dtype=torch.float64)
    x = torch.randn(3, model.tokens, model.width, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def loss(output: Any) -> Any:
        return output.square().sum()

    one = pg.trace(network, x[:1], loss=loss)
    network(x[:1]).square().sum().backward()
    query = network.blocks[0].sublayers["attention1"].read.weight.grad[: model.width]
    assert float(one.param_grad.sel(matrix="query")[1]) == pytest.approx(float(query.square().sum()), rel=1e-9)
    assert "param_grad" not in pg.trace(network, x, loss=loss)
    network.zero_grad()
    stream = x
    for block in network.blocks:
        stream = block(stream)
    stream.backward(torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).to(x.dtype))
    out = network.blocks[1].sublayers["ffn1"].write.weight.grad
    assert float(pg.trace(network, x).param_grad.sel(matrix="ffn_out")[2]) == pytest.approx(
        float(out.square().sum()) / 3, rel=1e-9
    )


def test_matrices_that_no_name_tells_or_that_blocks_share_are_left_out() -> None:
    layers = torch.nn.ModuleList(torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Tanh()) for _ in range(2))
    assert "param_grad" not in pg.trace(torch.nn.Sequential(*layers), torch.randn(1, 3, 8))
    network = pg.build(pg.Model("prenorm", **SIZES))
    shared = [network.blocks[0]] * 2
    x = torch.randn(1, 6, 64)
    assert "param_grad" not in pg.trace(torch.nn.Sequential(*shared), x, blocks=shared)
    network.blocks[0].sublayers["ffn1"].read.weight.requires_grad_(False)
    seen = pg.trace(network, x).param_grad.sel(matrix="ffn_in").values
    assert np.isnan(seen[:2]).all()
    assert seen[2] > 0
