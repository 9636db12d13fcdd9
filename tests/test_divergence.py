"""The first place where a network leaves its theory is found: the block, and the sublayer that is to blame."""

import pytest

import propagate as pg

torch = pytest.importorskip("torch", reason="torch is absent: install the extra [torch]")

torch.set_num_threads(1)
MODEL = pg.Model("prenorm", depth=5, width=128, tokens=8, heads=2, scaling=pg.ScaleInit(0.5))
X = torch.randn(16, 8, 128, generator=torch.Generator().manual_seed(0))


def spoilt(block: int, call: str, part: str, factor: float) -> pg.Divergence | None:
    """The first divergence of networks in which one matrix was multiplied by a factor."""

    def one(seed: int):
        network = pg.build(MODEL, seed=seed)
        with torch.no_grad():
            network.get_submodule(f"blocks.{block - 1}.sublayers.{call}.{part}".rstrip(".")).weight.mul_(factor)
        return network

    seen = pg.trace((one(seed) for seed in range(6)), X)
    return pg.first_divergence(pg.predict_calls(MODEL, **pg.start_of(seen)), seen)


def test_a_sound_network_diverges_nowhere() -> None:
    assert spoilt(3, "ffn1", "write", 1.0) is None


@pytest.mark.parametrize(
    ("block", "call", "part"),
    [(3, "ffn1", "write"), (2, "attention1", "write"), (4, "norm2", ""), (1, "norm1", ""), (5, "ffn1", "read")],
)
def test_the_spoilt_sublayer_is_named(block: int, call: str, part: str) -> None:
    found = spoilt(block, call, part, 1.5)
    assert (found.block, found.call) == (block, call)
    assert found.quantity in ("variance", "covariance")
    assert found.measured / found.predicted == pytest.approx(2.25, rel=0.3)
    assert f"block {block}, {call}: " in str(found)


def test_a_sum_that_its_sublayers_do_not_explain() -> None:
    seen = pg.trace([pg.build(MODEL, seed=seed) for seed in range(4)], X)
    said = pg.predict_calls(MODEL, **pg.start_of(seen))
    said["variance"][3] *= 1.5
    found = pg.first_divergence(said, seen)
    assert (found.block, found.call, found.quantity) == (3, "sum", "variance")


def test_a_gradient_alone() -> None:
    seen = pg.trace([pg.build(MODEL, seed=seed) for seed in range(4)], X)
    said = pg.predict_calls(MODEL, **pg.start_of(seen))
    said["grad_variance"][:3] *= 2
    found = pg.first_divergence(said, seen)
    assert (found.block, found.call, found.quantity) == (2, "gradient", "grad_variance")


def test_bad_input_is_refused_in_one_line() -> None:
    said = pg.predict(MODEL)
    for call in (
        lambda: pg.first_divergence(said, said, tolerance=0),
        lambda: pg.first_divergence(said, said, threshold=-1),
        lambda: pg.first_divergence(said, pg.predict(pg.Model("prenorm", depth=2))),
    ):
        with pytest.raises(pg.ModelError) as caught:
            call()
        assert "\n" not in str(caught.value)
    assert pg.first_divergence(said, said) is None


@pytest.mark.parametrize("placement", ["residual", "siamesenorm"])
def test_of_several_streams_the_sublayers_are_compared(placement: str) -> None:
    model = pg.Model(placement, depth=3, width=64, tokens=8, heads=2)
    seen = pg.trace([pg.build(model, seed=seed) for seed in range(4)], X[..., :64])
    said = pg.predict_calls(model, **pg.start_of(seen))
    assert pg.first_divergence(said, seen, tolerance=0.2) is None
    said["call_variance"].loc[{"block": 2, "call": "ffn1"}] *= 2
    found = pg.first_divergence(said, seen, tolerance=0.2)
    assert (found.block, found.call) == (2, "ffn1")
