"""Placements of several streams are traced stream by stream, as theory and simulation have them."""

import dataclasses
from typing import Any

import numpy as np
import pytest

import propagate as pg
from propagate.table import JOINED, STREAM

torch = pytest.importorskip("torch", reason="torch is absent: install the extra [torch]")

torch.set_num_threads(1)
SEVERAL = ("residual", "siamesenorm")


def model_of(placement: str, **fields: Any) -> pg.Model:
    return pg.Model(placement, depth=3, width=96, tokens=6, heads=2, **fields)


def tokens(covariance: float, count: int = 6, width: int = 96) -> Any:
    """Tokens with exactly this Gram matrix, so that their norms are those of the theory."""
    gram = (1 - covariance) * np.eye(count) + covariance
    directions = np.linalg.qr(np.random.default_rng(0).standard_normal((width, count)))[0]
    return torch.from_numpy(np.linalg.cholesky(gram) @ directions.T * np.sqrt(width))


def traced(model: pg.Model, draws: int) -> Any:
    return pg.trace((pg.build(model, seed=seed, dtype=torch.float64) for seed in range(draws)), tokens(0.3))


@pytest.mark.few(1)
@pytest.mark.parametrize("placement", SEVERAL)
def test_theory_simulation_and_trace_agree(placement: str) -> None:
    model = model_of(placement, activation="gelu")
    seen = traced(model, 30)
    start = pg.start_of(seen)
    said = pg.predict_calls(model, **start)
    judged = pg.compare(said, seen)
    assert judged.attrs["verdict"] != "disagrees", judged.attrs["first_divergence"]
    assert list(seen[STREAM].values) == ["1", "2", JOINED]
    simulated = pg.simulate(model, draws=30, seed=1, backend="numpy", progress=False, **start)
    assert pg.compare(simulated, seen).attrs["verdict"] != "disagrees"
    weaker = pg.predict_calls(dataclasses.replace(model, ffn_gain=0.6), **start)
    found = pg.compare(weaker, seen)
    assert found.attrs["verdict"] == "disagrees"
    assert found.attrs["first_divergence"].startswith("block 1, ffn1: ")


@pytest.mark.parametrize("placement", SEVERAL)
def test_a_stream_s_gradient_is_its_own(placement: str) -> None:
    """Block by block by hand: streams that the embedding makes alike still have two gradients."""
    network = pg.build(model_of(placement), dtype=torch.float64)
    x = tokens(0.3).requires_grad_()
    seen, last = pg.trace(network, x.detach(), loss=lambda out: out.square().sum()), [network.embed(x)]
    own = [tuple(stream.view_as(stream) for stream in last[0])]
    for block in network.blocks:
        own.append(block(own[-1]))
    joined = network.readout(own[-1])
    wanted = torch.autograd.grad(joined.square().sum(), [stream for state in own for stream in state] + [x, joined])
    squares = [float(g.square().mean()) for g in wanted]
    got = seen.grad_variance.sel(stream=["1", "2"]).values.ravel()
    assert got == pytest.approx(squares[:-2], rel=1e-9)
    ends = seen.grad_variance.sel(stream=JOINED)
    assert [float(ends[0]), float(ends[-1])] == pytest.approx(squares[-2:], rel=1e-9)
    assert np.isnan(ends[1:-1]).all()
    assert float(ends[0]) != pytest.approx(squares[0], rel=1e-3)


def test_first_divergence_names_the_stream() -> None:
    model = model_of("residual")
    seen = traced(model, 16)
    said = pg.predict_calls(model, **pg.start_of(seen))
    assert pg.first_divergence(said, seen, tolerance=0.2) is None
    wrong = said.drop_dims("call")
    wrong["variance"].loc[{"block": 2, STREAM: "2"}] *= 2
    found = pg.first_divergence(wrong, seen, tolerance=0.2)
    assert (found.block, found.call, found.quantity) == (2, "sum", "variance of stream 2")
    assert pg.compare(wrong, seen).attrs["first_divergence"].startswith("block 2, the stream: variance of stream 2 is ")


def test_hooks_go_and_a_language_model_s_streams_are_seen_too() -> None:
    from propagate.testing import assert_propagates
    from propagate.tracing.build import build_language_model

    learner = build_language_model(model_of("siamesenorm", causal=True), vocabulary=20)
    ids = torch.arange(12).reshape(2, 6)
    before = learner(ids)
    seen = pg.trace(learner, ids)
    assert seen.sizes[STREAM] == 3
    assert float(seen.variance.sel(block=0, stream=JOINED)) == pytest.approx(1, rel=0.2)
    assert sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in learner.modules()) == 0
    assert torch.equal(learner(ids), before)
    assert_propagates(learner, ids)
    with pytest.raises(AssertionError, match="variance"):
        assert_propagates(learner, ids, growth=1.5)


def test_one_stream_has_no_such_dimension() -> None:
    for placement in ("prenorm", "admin"):
        assert STREAM not in traced(model_of(placement), 1).dims
