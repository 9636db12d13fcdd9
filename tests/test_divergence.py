"""The first place where a network leaves its theory is found: the block, and the sublayer that is to blame."""

import numpy as np
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


@pytest.mark.few(3)
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


@pytest.mark.few(1)
@pytest.mark.parametrize("placement", ["residual", "siamesenorm"])
def test_of_several_streams_the_sublayers_are_compared(placement: str) -> None:
    model = pg.Model(placement, depth=3, width=64, tokens=8, heads=2)
    seen = pg.trace([pg.build(model, seed=seed) for seed in range(4)], X[..., :64])
    said = pg.predict_calls(model, **pg.start_of(seen))
    assert pg.first_divergence(said, seen, tolerance=0.2) is None
    said["call_variance"].loc[{"block": 2, "call": "ffn1"}] *= 2
    found = pg.first_divergence(said, seen, tolerance=0.2)
    assert (found.block, found.call) == (2, "ffn1")


def causal(seed: int, spoilt: str = "", factor: float = 1.0) -> torch.nn.Module:
    """A Llama with branches as large as its skips, one matrix of which may be multiplied by a factor."""
    pytest.importorskip("transformers", reason="transformers is absent: install the extra [text]")
    from figures.hugging_face import make

    module = make("Llama", width=128, depth=3, heads=2, seed=seed, initializer_range=0.12)
    with torch.no_grad():
        if spoilt:
            module.get_submodule(spoilt).weight.mul_(factor)
    return module


@pytest.mark.few(1)
@pytest.mark.parametrize(
    ("spoilt", "found"),
    [("layers.1.self_attn.o_proj", (2, "attention1")), ("layers.2.mlp.down_proj", (3, "ffn1")), ("", None)],
)
def test_token_by_token_too(spoilt: str, found: tuple[int, str] | None) -> None:
    """Causal, rotary, from a Llama: the calls' averages over tokens are predicted."""
    ids = torch.stack([torch.randperm(500, generator=torch.Generator().manual_seed(row))[:8] + 3 for row in range(4)])
    seen = pg.trace((causal(seed, spoilt, 1.5) for seed in range(10)), {"input_ids": ids})
    model, _ = pg.describe(causal(0), tokens=8)
    said = pg.predict_calls(model, **pg.start_of(seen))
    first, judged = pg.first_divergence(said, seen), pg.compare(said, seen)
    assert (judged.attrs["verdict"] != "disagrees") == (found is None)
    if found is None:
        assert first is None
        assert judged.attrs["first_divergence"] == ""
    else:
        assert (first.block, first.call) == found
        assert judged.attrs["first_divergence"].startswith(f"block {found[0]}, {found[1]}: variance is ")


def test_calls_of_exchangeable_tokens_are_the_same_at_both_resolutions() -> None:
    """A causal mask that hides nothing, from the same start: the pairs' averages and the tokens' own must agree."""
    model = pg.Model("spannorm", depth=3, width=64, tokens=6, heads=2, activation="gelu", logit_std=0.0)
    pairs = pg.predict_calls(model, variance=2.0, covariance=0.5)
    gram = 1.5 * np.eye(6) + 0.5
    tokens = pg.predict_calls(model, gram=gram)
    for name in ("call_variance", "call_covariance", "call_deviation"):
        np.testing.assert_allclose(tokens[name], pairs[name], rtol=1e-9)
    other = pg.predict_calls(model, gram=gram + 0.1)
    assert not np.allclose(other.call_covariance, pairs.call_covariance, rtol=1e-3, equal_nan=True)


def test_compare_names_the_first_place_and_a_wrong_theory_elsewhere() -> None:
    seen = pg.trace((pg.build(MODEL, seed=seed) for seed in range(12)), X)
    said = pg.predict_calls(MODEL, **pg.start_of(seen))
    judged = pg.compare(said, seen)
    assert judged.attrs["first_divergence"] == ""
    assert {"call_variance[attention1]", "call_covariance[ffn1]"} <= set(judged.quantity.values.tolist())

    for spoil, words in (
        (("call_covariance", {"block": 4, "call": "attention1"}), "block 4, attention1: covariance is "),
        (("variance", {"block": 2}), "block 2, the stream: variance is "),
        (("grad_variance", {"block": 3}), "block 3, the gradient: grad_variance is "),
    ):
        wrong = said.copy(deep=True)
        wrong[spoil[0]].loc[spoil[1]] *= 2
        judged = pg.compare(wrong, seen)
        assert judged.attrs["verdict"] == "disagrees"
        assert judged.attrs["first_divergence"].startswith(words)
