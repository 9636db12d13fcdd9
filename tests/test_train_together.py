"""An ensemble is its arms, each trained by the plain loop: losses, gradients, weights; on CUDA as one graph a step."""

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import propagate as pg

torch = pytest.importorskip("torch", reason="torch is absent: install the extra [torch]")

from propagate.tracing.training import together as togethers  # noqa: E402
from propagate.tracing.training.arm import Arm  # noqa: E402
from propagate.tracing.training.ensemble import Ensemble  # noqa: E402
from propagate.tracing.training.fused import Fused  # noqa: E402
from propagate.tracing.training.plan import Plan  # noqa: E402
from propagate.tracing.training.states import load  # noqa: E402
from propagate.transfer import Factors, factors_by_kind  # noqa: E402

TEXT = pg.corpus()
NETWORK: dict[str, Any] = {"depth": 2, "width": 16, "heads": 2, "tokens": 8, "causal": True}
SPAN = pg.Model("spannorm", rope=10000.0, activation="swiglu", **NETWORK)
ADAM = pg.Adam(lr=0.01, betas=(0.9, 0.95), decay=0.1)
SETTINGS: dict[str, Any] = {"steps": 5, "batch": 3, "progress": False, "precision": "float64", "warmup": 0.3}
ARMS: dict[str, Any] = {"lrs": (0.003, 0.02), "seeds": (0, 5)}
MODELS = {
    "prenorm": pg.Model("prenorm", **NETWORK),
    "postnorm layernorm": pg.Model("postnorm", norm="layer", scaling=pg.ScaleInit(), **NETWORK),
    "spannorm swiglu rope": SPAN,
    "grouped heads, window": pg.Model("spannorm", key_value_heads=1, window=3, rope=10.0, **NETWORK),
    "uniform attention": pg.Model("prenorm", logit_std=0.0, **NETWORK),
    "experts": pg.Model("spannorm", experts=pg.Experts(4, 2, shared=1, identity=1), activation="swiglu", **NETWORK),
    "experts, chosen with a bias": pg.Model(
        "spannorm", experts=pg.Experts(3, 2, softmax="before", bias=(0.0, 0.5, 0.1)), **NETWORK
    ),
    "normed inside": pg.Model("prenorm", normed=("query", "key", "heads", "hidden"), **NETWORK),
    "a measured standard deviation": pg.Model("admin", **NETWORK),
    "several streams": pg.Model("siamesenorm", **NETWORK),
}


def both(model: pg.Model, optimizer: Any, **more: Any) -> tuple[Any, Any]:
    """The table of an ensemble, and that of the plain loop."""
    given = SETTINGS | ARMS | more
    return tuple(pg.train(model, TEXT, optimizer, together=together, **given) for together in (4, 1))


def apart(one: Any, other: Any) -> float:
    """Largest relative difference of what an arm is seen to do."""
    names = [name for name in other.data_vars if other[name].size]
    assert set(names) == set(one.data_vars)
    found = [0.0]
    for name in names:
        assert (np.isnan(one[name]) == np.isnan(other[name])).all(), name
        scale = np.abs(other[name]).max()
        found.append(float((np.abs(one[name] - other[name]) / (np.abs(other[name]) + 1e-3 * scale + 1e-300)).max()))
    return max(found)


@pytest.mark.few(3)
@pytest.mark.parametrize("name", MODELS)
def test_an_ensemble_is_its_arms(name: str) -> None:
    optimizer = {"prenorm": pg.SGD(0.1, momentum=0.9, decay=0.1), "experts": pg.SGD(1.0)}.get(name, ADAM)
    together, alone = both(MODELS[name], optimizer, traces=(), probes=(3,))
    assert apart(together, alone) < 1e-10
    swapped = alone.assign_coords(lr=alone.lr[::-1]).sortby("lr")  # each rate by the other's name
    assert apart(together[["loss"]], swapped[["loss"]]) > 1e-6


def test_a_member_is_traced_as_an_arm_by_itself() -> None:
    model = MODELS["experts, chosen with a bias"]
    together, alone = both(model, ADAM, traces=(2,), seeds=(3,), steps=3)
    assert apart(together, alone) < 1e-7
    assert np.isnan(together.variance.sel(probe=0)).all()
    assert (together.step_ratio.sel(probe=2, matrix="query", block=1) > 1e-3).all()
    assert (together.step_ratio < together.update_ratio).sel(probe=2, matrix="ffn_in", block=1).all()


@pytest.mark.slow
def test_every_optimiser_has_a_rate_a_member() -> None:
    small = {"traces": (), "steps": 4}
    for optimizer in (pg.Sign(0.01, momentum=0.9, decay=0.1), pg.Adam(0.01, eps=0.0)):
        together, alone = both(SPAN, optimizer, **small)
        assert apart(together, alone) < 1e-9, optimizer
        assert set(together.data_vars) == {
            "loss",
            "grad_norm",
            "diverged_at",
            "diverged_value",
            "held_out_loss",
            "log_z",
        }
    other, _ = both(SPAN, pg.Adam(0.01, betas=(0.9, 0.99), eps=0.0), **small)
    assert apart(other, alone) > 1e-6  # the check tells


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_killed_at_any_step_it_goes_on_to_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = SETTINGS | ARMS | {"steps": 6, "every": 2, "traces": (), "together": 3, "precision": "float32"}
    whole = pg.train(SPAN, TEXT, ADAM, to=tmp_path / "whole", **given)
    for kill in (6,):  # files are written; by then arms of one group stand at different steps
        writes, save = iter(range(100)), togethers.save

        def killed(*stated: Any, writes: Any = writes, save: Any = save, kill: int = kill, **states: Any) -> None:
            if next(writes) == kill:
                raise KeyboardInterrupt
            save(*stated, **states)

        folder = tmp_path / str(kill)
        monkeypatch.setattr(togethers, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            pg.train(SPAN, TEXT, ADAM, to=folder, **given)
        monkeypatch.setattr(togethers, "save", save)
        assert whole.equals(pg.train(SPAN, TEXT, ADAM, to=folder, **given)), kill
        assert files(folder) == files(tmp_path / "whole"), kill
    with pytest.raises(pg.ModelError, match="belongs to another run, which differs in together"):
        pg.train(SPAN, TEXT, ADAM, to=tmp_path / "whole", **(given | {"together": 1}))
    kept = load(tmp_path / "whole" / "lr=0.003 seed=5.pt", arm(SPAN, given, 0.003, 5).identity())
    assert kept is not None
    pg.build_language_model(SPAN, 256).load_state_dict(kept[2]["learner"])


def arm(model: pg.Model, given: dict[str, Any], lr: float, seed: int) -> Arm:
    plan = Plan(**{name: given[name] for name in ("steps", "batch", "warmup", "traces")})
    factors, optimizer = factors_by_kind(model, None, None), dataclasses.replace(ADAM, lr=lr)
    return Arm(model, TEXT, optimizer, plan, seed, factors, "cpu", given["precision"], together=True)


def test_one_that_diverges_leaves_the_others_alone(tmp_path: Path) -> None:
    rates = (0.1, 1e30, 0.2, 1e15)
    given = SETTINGS | {"clip": None, "warmup": 0.0, "precision": "float32", "traces": (), "probes": (1,)}
    together, alone = (pg.train(MODELS["prenorm"], TEXT, pg.SGD(0.1), lrs=rates, together=n, **given) for n in (4, 1))
    assert together.attrs["diverged"] == alone.attrs["diverged"] == 2
    assert together.diverged_at.equals(alone.diverged_at)
    fine = together.isel(lr=[0, 2])
    assert apart(fine, alone.isel(lr=[0, 2])) < 1e-3
    only = pg.train(MODELS["prenorm"], TEXT, pg.SGD(0.1), lrs=(0.1, 0.2), together=4, to=tmp_path, **given)
    assert fine.drop_attrs().equals(only.drop_attrs())  # to the bit
    assert np.isnan(together.loss[1, 0, int(together.diverged_at[1, 0]) + 1 :]).all()
    assert np.isnan(together.held_out_loss[1, 0, -1])


@pytest.mark.slow
def test_what_does_not_fit_into_memory_trains_in_halves(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []

    def small(arms: Any, backend: Any = None) -> Ensemble:
        sizes.append(len(arms))
        if len(arms) > 2:
            raise torch.cuda.OutOfMemoryError
        return Ensemble(arms)

    given = SETTINGS | {"seeds": range(5), "traces": (), "steps": 2}
    whole = pg.train(MODELS["prenorm"], TEXT, ADAM, together=5, **given)
    monkeypatch.setattr(togethers, "Ensemble", small)
    assert apart(pg.train(MODELS["prenorm"], TEXT, ADAM, together=5, **given), whole) < 1e-12
    assert sizes == [5, 2, 3, 1, 2]


def test_ensembles_on_workers_give_the_same_table(tmp_path: Path) -> None:
    given = SETTINGS | {"seeds": range(3), "traces": (), "steps": 2, "together": 2}
    with ThreadPoolExecutor(1) as pool:
        found = pg.train(MODELS["prenorm"], TEXT, ADAM, executor=pool, to=tmp_path, **given)
        again = pg.train(MODELS["prenorm"], TEXT, ADAM, executor=pool, to=tmp_path, **given)
    assert found.equals(pg.train(MODELS["prenorm"], TEXT, ADAM, **given))
    assert found.equals(again)
    assert len(list(tmp_path.iterdir())) == 3


@dataclasses.dataclass(frozen=True)
class Steep:
    """A head whose weights are tiny, and act as ever: its gradient is huge, and its squares are no float32."""

    def factors(self, kind: Any, width: Any, depth: Any) -> Factors:
        return Factors(gain=1e-21, multiplier=1e21) if kind == "unembedding" else Factors()


def test_huge_gradients_are_clipped_as_by_the_plain_loop() -> None:
    huge = {"transfer": Steep(), "lrs": (1e-23, 3e-23), "precision": "float32", "traces": (), "steps": 3}
    together, alone = both(MODELS["prenorm"], pg.SGD(0.1), **huge)
    assert (together.grad_norm > 2e19).all()
    assert together.attrs["diverged"] == 0
    assert apart(together, alone) < 1e-3


def test_where_nothing_compiles_arms_train_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    def made(arms: Any, backend: Any = None) -> Any:
        if backend is not None:
            raise RuntimeError("no C compiler\nand more")
        return len(arms), backend

    monkeypatch.setattr(togethers, "Ensemble", made)
    long = dataclasses.replace(arm(SPAN, SETTINGS | {"traces": ()}, 0.1, 0), device="cuda", plan=Plan(10, 1))
    monkeypatch.setattr(togethers, "WORTH_COMPILING", 1)
    with pytest.warns(UserWarning, match="torch.compile failed, .*: no C compiler$"):
        assert togethers._made([long, long]) == (2, None)
    monkeypatch.setattr(togethers, "WORTH_COMPILING", 10**12)
    assert togethers._made([long]) == (1, None)


@dataclasses.dataclass(frozen=True)
class Rule:
    """Other factors for every kind, none of them 1."""

    def factors(self, kind: Any, width: Any, depth: Any) -> Factors:
        place = 1 + ("embedding", "hidden", "branch_out", "unembedding").index(kind)
        return Factors(1 + 0.1 * place, 1 - 0.1 * place, 2.0**place, 0.5 * place, 3.0**place)


def test_a_rule_of_transfer_is_that_of_first_steps() -> None:
    """Weights times gain and multiplier act; the optimiser changes weights without the multiplier, at its own rate."""
    from propagate.tracing.training.pieces import pieces_of

    given = SETTINGS | {"traces": (), "steps": 1, "warmup": 0.0, "clip": None, "transfer": Rule()}
    together, alone = (pg.train(SPAN, TEXT, pg.SGD(0.5, decay=0.1), together=n, **given) for n in (2, 1))
    assert apart(together, alone) < 1e-10
    learner = pg.build_language_model(SPAN, 256, dtype=torch.float64)
    pieces, rule = [piece for piece in pieces_of(learner) if piece.kind], Rule()
    factors = [rule.factors(piece.kind, 1, 1) for piece in pieces]
    for piece, one in zip(pieces, factors, strict=True):
        piece.tensor.mul_(one.gain * one.multiplier)
    ids = arms_batch(0)
    loss = torch.nn.functional.cross_entropy(learner(ids[:, :-1]).transpose(1, 2), ids[:, 1:])
    assert float(alone.loss[0, 0, 0]) == pytest.approx(loss.item(), rel=1e-12)
    loss.backward()
    for piece, one in zip(pieces, factors, strict=True):
        trained = piece.tensor / one.multiplier
        trained = trained * (1 - 0.5 * one.lr * 0.1 * one.decay) - 0.5 * one.lr * one.multiplier * piece.gradient()
        piece.tensor.copy_(one.multiplier * trained)
    for one in learner.parameters():
        if one.dim() < 2:
            one.data -= 0.5 * one.grad
    expected = held_out_loss(learner)
    assert float(alone.held_out_loss[0, 0, 1]) == pytest.approx(expected, rel=1e-10)
    plain = pg.train(SPAN, TEXT, pg.SGD(0.5, decay=0.1), **(given | {"transfer": None}))
    assert abs(float(plain.held_out_loss[0, 0, 1]) / expected - 1) > 1e-3


def arms_batch(step: int) -> Any:
    from propagate.tracing.training.batches import batch_of

    return batch_of(TEXT, SPAN.tokens, SETTINGS["batch"], 0, step)


def held_out_loss(learner: Any) -> float:
    from propagate.tracing.training.batches import held_out_of
    from propagate.tracing.training.probes import evaluated

    return float(evaluated(learner, held_out_of(TEXT, SPAN.tokens), 32)[0])


def test_adam_has_the_eps_of_its_rule_and_a_neutral_rule_changes_no_byte() -> None:
    given = SETTINGS | {"traces": (), "steps": 2}
    together, alone = (pg.train(SPAN, TEXT, ADAM, together=n, transfer=Rule(), **given) for n in (2, 1))
    assert apart(together, alone) < 1e-9
    none, neutral, wide = (  # their attributes differ
        pg.train(SPAN, TEXT, ADAM, transfer=rule, base=base, **given)
        for rule, base in ((None, None), ("mup", (16, 2)), ("mup", (8, 2)))
    )
    assert none.drop_attrs().equals(neutral.drop_attrs())
    assert apart(wide, none) > 1e-4


TEXTS = {"prenorm": 1, "spannorm": 2, "layernormscaling": 1, "siamesenorm": 1, "admin": 2}
"""SpanNorm's first block norms what enters it; Admin's is given a number, the others a measured one."""


@pytest.mark.slow
@pytest.mark.parametrize("placement", TEXTS)
def test_a_compiled_text_serves_those_blocks_that_it_fits(placement: str) -> None:
    given, model = SETTINGS | {"traces": ()}, pg.Model(placement, rope=10.0, **(NETWORK | {"depth": 3}))
    plain, fused = (
        Ensemble([arm(model, given, lr, 0) for lr in (0.003, 0.02)], backend) for backend in (None, "eager")
    )
    blocks = list(fused.learner.network.blocks)
    assert all(isinstance(block, Fused) for block in blocks)
    assert len({block.function for block in blocks}) == TEXTS[placement]
    assert all(one.text.is_of(other.text) for one, other in pairwise(blocks[1:]))
    differ = any(not torch.equal(a, b) for a, b in zip(blocks[1].text.numbers, blocks[2].text.numbers, strict=True))
    assert differ == (placement in ("layernormscaling", "siamesenorm"))
    for one, other in zip(plain.advance(0, 3), fused.advance(0, 3), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12)


def test_bfloat16_keeps_weights_in_float32() -> None:
    given = ARMS | SETTINGS | {"steps": 3, "traces": ()}
    exact, rounded = (
        pg.train(SPAN, TEXT, ADAM, **(given | {"precision": precision, "together": 4}))
        for precision in ("float32", "bfloat16")
    )
    assert 1e-6 < apart(rounded[["loss"]], exact[["loss"]]) < 0.02
    made = Ensemble([arm(SPAN, given | {"precision": "bfloat16"}, 0.01, 0)])
    assert {weight.dtype for weight in made.weights(0).values()} == {torch.float32}


@dataclasses.dataclass(frozen=True)
class Recalled(pg.Sublayer):
    """A kind of one's own, whose weights are nobody else's."""


@pg.tracing.apply.register
def _(_: Recalled, block: Any) -> Any:
    return torch.nn.Linear(block.width, block.width)


class Recalling(pg.Placement):
    def block(self, x: Any, block: Any) -> Any:
        x = x + block.attention(block.norm(x))
        return x + block.apply(Recalled(), block.norm(x))


def test_modules_of_ones_own_train_one_by_one() -> None:
    given = SETTINGS | ARMS | {"traces": (), "steps": 2}
    model = pg.Model(Recalling(), **NETWORK)
    with pytest.raises(pg.ModelError, match="together must be 1 with Linear, whose members cannot be batched"):
        pg.train(model, TEXT, ADAM, together=2, **given)
    assert pg.train(model, TEXT, ADAM, **given).attrs["together"] == "one by one"
    with pytest.raises(pg.ModelError, match="a rule of transfer cannot be applied to network"):
        pg.train(model, TEXT, ADAM, transfer="mup", base=(8, 2), **given)


def test_what_cannot_be_an_ensemble_is_said() -> None:
    for changes, named in (
        ({"optimizer": pg.Muon(0.1)}, "together must be 1 with Muon"),
        ({"together": 0}, "together must be at least 1"),
        ({"precision": "tf32"}, "precision 'tf32' needs a CUDA device"),
        ({"traces": (9,)}, "traces must be at most 5"),
        ({"traces": 3}, "traces must be whole numbers"),
        ({"transfer": "nup"}, "transfer must be one of"),
        ({"base": (1, 0), "transfer": "mup"}, r"base\[1\]"),
    ):
        given = {"optimizer": ADAM, "together": 2} | SETTINGS | changes
        with pytest.raises(pg.ModelError, match=named):
            pg.train(SPAN, TEXT, given.pop("optimizer"), **given)
