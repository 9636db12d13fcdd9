"""A mixture of experts that `build` made has the model's initial weights, routes as it says, learns, and is traced."""

import pytest

import propagate as pg

torch = pytest.importorskip("torch", reason="torch is absent: install the extra [torch]")

from propagate.tracing.build import build, build_language_model  # noqa: E402

torch.set_num_threads(1)
SIZE = {"depth": 2, "width": 96, "tokens": 6, "heads": 4}
FINE = pg.Experts(4, 2, split=3, shared=1, identity=2, router_std=1.5)


def spread(weight) -> float:
    """Standard deviation of the entries times the square root of the model's width."""
    return float(weight.detach().double().square().mean().sqrt() * SIZE["width"] ** 0.5)


def test_initial_weights_have_the_gains_of_the_model() -> None:
    model = pg.Model("prenorm", experts=FINE, ffn_gain=0.4, ffn_ratio=1.5, **SIZE)
    ffn = build(model, seed=3).blocks[0].sublayers["ffn1"]
    assert (len(ffn.routed), len(ffn.shared), ffn.router.weight.shape) == (12, 1, (14, 96))
    assert spread(ffn.router.weight) == pytest.approx(1.5, rel=0.1)
    assert ffn.routed[0].read.weight.shape == (48, 96)
    wanted = 0.4 * 2**0.5 / 1.5**0.5  # of ReLU; a cut output matrix has the entries of the uncut one
    for expert in (*ffn.routed, *ffn.shared):
        assert spread(expert.write.weight) == pytest.approx(wanted, rel=0.06)
        assert spread(expert.write.weight) != pytest.approx(wanted * 3**0.5, rel=0.06)


def test_a_token_is_written_by_the_experts_it_chose() -> None:
    model = pg.Model("prenorm", experts=pg.Experts(5, 2), **SIZE)
    ffn, x = build(model, dtype=torch.float64).blocks[0].sublayers["ffn1"], torch.randn(7, 6, 96, dtype=torch.float64)
    weights, chosen = ffn.gates(x.reshape(-1, 96))
    assert chosen.shape == (42, 2)
    assert torch.allclose(weights.sum(-1), torch.ones(42, dtype=torch.float64))
    before = ffn(x).reshape(-1, 96)
    with torch.no_grad():
        ffn.routed[3].write.weight.mul_(2)
    moved = (ffn(x).reshape(-1, 96) - before).abs().amax(-1) > 0
    assert (moved == (chosen == 3).any(-1)).all()
    assert 0 < moved.sum() < 42


def test_identity_experts_return_what_they_read() -> None:
    model = pg.Model("prenorm", experts=pg.Experts(1, 2, identity=1, softmax="before"), ffn_gain=0.0, **SIZE)
    ffn, x = build(model, dtype=torch.float64).blocks[0].sublayers["ffn1"], torch.randn(6, 96, dtype=torch.float64)
    assert torch.allclose(ffn(x), ffn.router(x).softmax(-1)[:, 1:] * x)


@pytest.mark.parametrize("kind", [FINE, pg.Experts(4, 2, softmax="before")])
def test_it_learns_its_router_too(kind: pg.Experts) -> None:
    learner = build_language_model(pg.Model("prenorm", experts=kind, causal=True, **SIZE), vocabulary=12)
    ids = torch.randint(12, (8, 7), generator=torch.Generator().manual_seed(0))
    descent, losses = torch.optim.Adam(learner.parameters(), lr=3e-3), []
    routers = [block.sublayers["ffn1"].router.weight for block in learner.network.blocks]
    before = [router.detach().clone() for router in routers]
    for _ in range(12):
        loss = torch.nn.functional.cross_entropy(learner(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        descent.zero_grad()
        loss.backward()
        descent.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]
    assert all((new - old).abs().max() > 1e-3 for new, old in zip(routers, before, strict=True))


@pytest.mark.few(1)
@pytest.mark.parametrize("kind", [pg.Experts(4, 2), pg.Experts(4, 2, shared=1, identity=1)])
def test_theory_and_trace_agree(kind: pg.Experts) -> None:
    model = pg.Model("prenorm", experts=kind, **SIZE)
    x = torch.randn(4, 6, 96, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    seen = pg.trace((build(model, seed=seed, dtype=torch.float64) for seed in range(24)), x)
    judged = pg.compare(pg.predict(model, **pg.start_of(seen)), seen)
    assert judged.attrs["verdict"] != "disagrees", judged.worst_z.to_series().to_dict()
    dense = pg.Model("prenorm", **SIZE)
    assert pg.compare(pg.predict(dense, **pg.start_of(seen)), seen).attrs["verdict"] == "disagrees"
    assert pg.first_divergence(pg.predict_calls(dense, **pg.start_of(seen)), seen).call == "ffn1"
