"""A module made of a placement's text has the model's initial weights, reproducibly, and only the parts it uses."""

import numpy as np
import pytest

import propagate as pg

torch = pytest.importorskip("torch", reason="torch is absent: install the extra [torch]")

from propagate.tracing.build import KNOWN, build, build_language_model  # noqa: E402

torch.set_num_threads(1)
SIZE = {"depth": 3, "width": 64, "tokens": 5, "heads": 4}


def spread(weight) -> float:
    """Standard deviation of the entries times the square root of the fan-in."""
    return float(weight.detach().double().pow(2).mean().sqrt() * weight.shape[1] ** 0.5)


def allowed(weight) -> float:
    """Four standard errors of `spread`, relative."""
    return 4 / float(np.sqrt(2 * weight.numel()))


@pytest.mark.parametrize(("activation", "second_moment"), [("relu", 0.5), ("linear", 1.0)])
def test_initial_weights_have_the_gains_of_the_model(activation: str, second_moment: float) -> None:
    gains = {"value_gain": 0.7, "attention_gain": 1.3, "ffn_gain": 0.4, "scaling": pg.ScaleInit(0.5)}
    network = build(pg.Model("deepnorm", activation=activation, **gains, **SIZE), seed=3)
    beta, scaled = 24**-0.25, 3**-0.5
    attention, ffn = (network.blocks[1].sublayers[name] for name in ("attention1", "ffn1"))
    query, key, value = attention.read.weight.chunk(3)
    wanted = {
        query: 1.0,
        key: 1.0,
        value: 0.7 * beta,
        attention.write.weight: 1.3 * beta * scaled,
        ffn.read.weight: beta,
        ffn.write.weight: 0.4 * beta * scaled / second_moment**0.5,
    }
    for weight, gain in wanted.items():
        assert spread(weight) == pytest.approx(gain, rel=allowed(weight))
        assert spread(weight) != pytest.approx(1.1 * gain, rel=allowed(weight))


@pytest.mark.parametrize("law", ["uniform", "truncated_normal", "orthogonal"])
def test_other_laws_have_the_same_variance(law: str) -> None:
    network = build(pg.Model("prenorm", weights=law, ffn_gain=0.4, **SIZE), seed=3)
    ffn = network.blocks[1].sublayers["ffn1"]
    for weight, gain in ((ffn.read.weight, 1.0), (ffn.write.weight, 0.4 * 2**0.5)):
        assert spread(weight) == pytest.approx(gain, rel=allowed(weight))
        largest = float(weight.detach().abs().max()) * weight.shape[1] ** 0.5 / gain
        assert largest < {"uniform": 3**0.5 + 1e-5, "truncated_normal": 2 / 0.8795, "orthogonal": 8.0}[law]
    gram = ffn.write.weight.detach() @ ffn.write.weight.detach().T / (0.4 * 2**0.5) ** 2
    assert torch.allclose(gram, torch.eye(64), atol=1e-5) == (law == "orthogonal")


def test_a_seed_names_the_weights() -> None:
    model = pg.Model("prenorm", **SIZE)
    first, again, other = (build(model, seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["blocks.0.sublayers.ffn1.read.weight"], other["blocks.0.sublayers.ffn1.read.weight"])


def test_every_call_is_a_module_of_its_own() -> None:
    network = build(pg.Model("spannorm", **SIZE))
    assert list(network.blocks[0].sublayers) == ["norm1", "attention1", "norm2", "ffn1", "norm3"]
    assert list(network.blocks[1].sublayers) == ["attention1", "norm1", "ffn1", "norm2"]
    assert list(network.embed.sublayers) == list(network.readout.sublayers) == []
    weights = [p.data_ptr() for p in network.parameters()]
    assert len(set(weights)) == len(weights) == 3 * (4 + 2) + 1


def test_a_causal_language_model_reads_no_later_token() -> None:
    ids = torch.tensor([[1, 2, 3, 4, 5]])
    changed = torch.tensor([[1, 2, 3, 9, 5]])
    for causal in (True, False):
        learner = build_language_model(pg.Model("prenorm", causal=causal, **SIZE), vocabulary=10)
        moved = (learner(ids) - learner(changed)).abs().amax(-1)[0]
        assert (moved[:3].max().item() == 0) == causal
        assert moved[3:].min().item() > 0


def test_a_field_that_modules_do_not_follow_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Never a module that silently is another network: what a model may learn to say later is refused until known."""
    model = pg.Model("prenorm", causal=True, **SIZE)
    build(model)
    monkeypatch.setattr("propagate.tracing.build.KNOWN", KNOWN - {"causal"})
    with pytest.raises(pg.ModelError, match="causal must be False"):
        build(model)


def test_bad_input_is_refused_in_one_line() -> None:
    model = pg.Model("prenorm", **SIZE)
    for call, named in (
        (lambda: build("prenorm"), "model"),
        (lambda: build(model, seed=-1), "seed"),
        (lambda: build_language_model(model, vocabulary=0), "vocabulary"),
    ):
        with pytest.raises(pg.ModelError, match=named) as caught:
            call()
        assert "\n" not in str(caught.value)
