"""Training is the plain loop that it says; killed, it goes on; what diverges is data; text is learned."""

import dataclasses
import io
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import propagate as pg
from propagate.documents import Corpus
from propagate.files import sealed

torch = pytest.importorskip("torch", reason="torch is absent: install the extra [torch]")

from propagate.tracing.training import arm as arms  # noqa: E402
from propagate.tracing.training.batches import batch_of  # noqa: E402
from propagate.tracing.training.plan import Plan  # noqa: E402

TEXT = pg.corpus()
MODEL = pg.Model("spannorm", depth=1, width=16, heads=2, tokens=8, causal=True, rope=10000.0)
ADAM = pg.Adam(lr=0.01, betas=(0.9, 0.95), decay=0.1)
SETTINGS = {"steps": 6, "batch": 2, "probes": (3,), "progress": False}
OPTIMIZERS = [ADAM, pg.SGD(0.1, momentum=0.9, decay=0.1), pg.Sign(0.01), pg.Muon(0.02, momentum=0.9, scale="original")]


def equal(one: Any, other: Any) -> bool:
    return bool(one.equals(other))


def plainly(model: pg.Model, lr: float, seed: int, plan: Plan) -> tuple[list[float], list[float]]:
    """Losses and gradient norms of the loop that anybody would write, with torch's AdamW over whole parameters."""
    learner = pg.build_language_model(model, 256, seed=seed)
    vectors = [one for one in learner.parameters() if one.dim() < 2]
    matrices = [one for one in learner.parameters() if one.dim() > 1]
    groups = [{"params": matrices, "weight_decay": ADAM.decay}, {"params": vectors, "weight_decay": 0.0}]
    made = torch.optim.AdamW(groups, lr=lr, betas=ADAM.betas, eps=ADAM.eps)
    losses, norms = [], []
    for step in range(plan.steps):
        for group in made.param_groups:
            group["lr"] = lr * plan.share(step)
        ids = batch_of(TEXT, model.tokens, plan.batch, seed, step)
        made.zero_grad()
        loss = torch.nn.functional.cross_entropy(learner(ids[:, :-1]).transpose(1, 2), ids[:, 1:])
        loss.backward()
        losses.append(loss.item())
        norms.append(torch.nn.utils.clip_grad_norm_(learner.parameters(), plan.clip).item())
        made.step()
    return losses, norms


def test_an_arm_is_the_plain_loop() -> None:
    plan = Plan(steps=6, batch=2, warmup=0.34, schedule="cosine", clip=0.7)
    seen = pg.train(MODEL, TEXT, ADAM, lrs=(0.01, 0.1), seeds=(1, 2), **(SETTINGS | {"warmup": 0.34, "clip": 0.7}))
    for lr, seed in ((0.01, 1), (0.1, 2)):
        losses, norms = plainly(MODEL, lr, seed, plan)
        at = seen.sel(lr=lr, seed=seed)
        np.testing.assert_allclose(at.loss, losses, rtol=2e-5)
        np.testing.assert_allclose(at.grad_norm, norms, rtol=2e-4)
    wrong, _ = plainly(MODEL, 0.01, 1, dataclasses.replace(plan, clip=100.0, warmup=0.0))  # the check must tell
    assert np.abs(np.array(wrong) / seen.sel(lr=0.01, seed=1).loss.values - 1).max() > 1e-3
    assert (seen.loss.isel(step=0, lr=0) == seen.loss.isel(step=0, lr=1)).all()


def test_a_probe_is_a_trace_of_the_network_at_that_moment() -> None:
    seen = pg.train(MODEL, TEXT, ADAM, **SETTINGS)
    start = seen.isel(lr=0, seed=0).sel(probe=0)
    learner = pg.build_language_model(MODEL, 256)
    stream = TEXT.stream("held_out")
    begins = np.linspace(0, len(stream) - 9, 32).astype(int)
    ids = torch.from_numpy(stream[begins[:, None] + np.arange(9)].astype(int))
    with torch.no_grad():
        logits = learner(ids[:, :-1])
    loss = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:])
    assert float(start.held_out_loss) == pytest.approx(loss.item(), rel=1e-5)
    assert float(start.log_z) == pytest.approx(logits.logsumexp(-1).mean().item(), rel=1e-5)
    embedded = learner.embedding(ids[:8, :-1]).detach()
    assert float(start.variance[0]) == pytest.approx(embedded.square().mean().item(), rel=1e-5)
    assert start.decorrelation.values == pytest.approx((1 - start.covariance / start.variance).values, rel=1e-4)
    assert (start.update_ratio.fillna(0) == 0).all()
    alike = start.layer_similarity
    assert alike.dims == ("block", "other_block")
    assert np.diag(alike) == pytest.approx(1.0, abs=1e-5)
    assert float(alike[0, 1]) == float(alike[1, 0]) == pytest.approx(float(start.layer_cosine[1]), abs=1e-5)
    last = seen.isel(lr=0, seed=0).sel(probe=6)
    assert list(seen.matrix.values) == [
        *("embedding", "query", "key", "value", "attention_out", "ffn_in", "ffn_out", "unembedding")
    ]
    assert (last.update_ratio.sel(matrix="query")[1:] > 0.01).all()
    assert np.isnan(last.update_ratio.sel(matrix="query", block=0))
    assert np.isnan(last.step_ratio).all()
    assert (seen.sel(probe=3).step_ratio.sel(matrix="ffn_in")[..., 1:] > 0).all()


def test_the_largest_attention_logit_sees_what_a_token_sees() -> None:
    from propagate.tracing.layers import Attention

    (module,) = [
        part
        for part in pg.build(pg.Model("prenorm", depth=1, width=8, heads=2, causal=True)).modules()
        if isinstance(part, Attention)
    ]
    x = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0))
    module.requires_grad_(False)
    query, key, _ = (part.reshape(3, 5, 2, 4) for part in module.read(x).split(8, dim=-1))
    logits = torch.einsum("sthc,suhc->shtu", query, key) * module.scale
    seen = torch.ones(5, 5, dtype=torch.bool).tril()
    assert float(module.largest_logit(x)) == pytest.approx(float(logits[..., seen].max()), rel=1e-5)
    assert float(module.largest_logit(x)) < float(logits.max())


@pytest.mark.few(2)
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda one: type(one).__name__)
def test_killed_at_any_step_it_goes_on_to_the_same_bytes(
    optimizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = pg.train(MODEL, TEXT, optimizer, seeds=(0, 1), to=tmp_path / "whole", every=2, **SETTINGS)
    steps = iter(range(100))
    take = arms.take_step

    def killed(*given: Any) -> None:
        if next(steps) == 9:
            raise KeyboardInterrupt
        take(*given)

    monkeypatch.setattr(arms, "take_step", killed)
    with pytest.raises(KeyboardInterrupt):
        pg.train(MODEL, TEXT, optimizer, seeds=(0, 1), to=tmp_path / "part", every=2, **SETTINGS)
    monkeypatch.setattr(arms, "take_step", take)
    taken: list[int] = []
    monkeypatch.setattr(arms, "take_step", lambda *given: (taken.append(1), take(*given)))
    assert equal(whole, pg.train(MODEL, TEXT, optimizer, seeds=(0, 1), to=tmp_path / "part", every=2, **SETTINGS))
    assert len(taken) == 4  # of 12: an arm that had ended, and two steps of the other, are not taken again
    names = [path.name for path in sorted((tmp_path / "whole").iterdir())]
    assert len(names) == 2
    for name in names:
        assert (tmp_path / "part" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


class Code:
    def __reduce__(self) -> Any:
        return print, ("run",)


def test_a_checkpoint_of_another_run_or_with_code_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = SETTINGS | {"steps": 1, "probes": ()}
    pg.train(MODEL, TEXT, ADAM, to=tmp_path, **short)
    (path,) = tmp_path.iterdir()
    for model, text, changed in (
        (MODEL, TEXT, {"batch": 3}),
        (dataclasses.replace(MODEL, placement="prenorm"), TEXT, {}),
        (MODEL, Corpus("other", 256, TEXT.training[1:], TEXT.held_out), {}),
    ):
        with pytest.raises(pg.ModelError, match="belongs to another run, which differs in"):
            pg.train(model, text, ADAM, to=tmp_path, **(short | changed))
    held = io.BytesIO()
    torch.save({"identity": json.dumps({}), "step": 0, "columns": {}, "states": Code()}, held)
    for content in (b"", path.read_bytes()[:-1], sealed(b""), sealed(held.getvalue())):
        path.write_bytes(content)
        with pytest.raises(pg.ModelError, match="is damaged or no checkpoint: remove it"):
            pg.train(MODEL, TEXT, ADAM, to=tmp_path, **short)
    assert "run" not in capsys.readouterr().out


def test_what_diverges_is_data() -> None:
    model = pg.Model("prenorm", depth=1, width=16, heads=2, tokens=8, causal=True)
    settings = SETTINGS | {"warmup": 0.0, "clip": None}
    seen = pg.train(model, TEXT, pg.SGD(0.1), lrs=(0.1, 1e30), **settings)
    fine, lost = (seen.isel(lr=i, seed=0) for i in (0, 1))
    assert seen.attrs["diverged"] == 1
    assert np.isnan(fine.diverged_at)
    assert np.isfinite(fine.loss).all()
    at = int(lost.diverged_at)
    assert 1 <= at < 6
    assert np.isfinite(lost.loss[:at]).all()
    assert not np.isfinite(lost.diverged_value)
    assert np.isnan(lost.loss[at + 1 :]).all()
    assert np.isnan(lost.held_out_loss[-1])


def test_theory_starts_at_a_probe_and_training_leaves_it() -> None:
    model = pg.Model("spannorm", depth=2, width=128, heads=4, tokens=16, causal=True, rope=10000.0)
    seen = pg.train(model, TEXT, ADAM, **(SETTINGS | {"steps": 12, "batch": 8, "warmup": 0.0, "probes": ()}))
    for probe, left in ((0, False), (12, True)):
        at = seen.isel(lr=0, seed=0).sel(probe=probe)
        theory = pg.predict(model, **pg.start_of(at))
        apart = np.abs(np.log(at.decorrelation / (theory.deviation / theory.variance)))
        assert apart[0] < 1e-3
        assert (float(apart.max()) > 0.7) == left
        assert float(apart.max()) < 0.2 or left


def test_arms_on_workers_give_the_same_table(tmp_path: Path) -> None:
    settings: Any = SETTINGS | {"seeds": (0, 3), "steps": 3, "probes": ()}
    with ThreadPoolExecutor(2) as pool:
        found = pg.train(MODEL, TEXT, ADAM, executor=pool, to=tmp_path, **settings)
    assert equal(found, pg.train(MODEL, TEXT, ADAM, **settings))
    assert len(list(tmp_path.iterdir())) == 2


def test_text_is_learned_and_shuffled_text_is_not() -> None:
    model = pg.Model("prenorm", depth=1, width=32, heads=2, tokens=16, causal=True)
    generator = np.random.default_rng(0)
    sides = (generator.permutation(TEXT.stream(side)) for side in ("training", "held_out"))
    shuffled = Corpus("shuffled", 256, *((ids,) for ids in sides))
    settings: Any = {"steps": 100, "batch": 16, "progress": False}
    learned, not_learned = (
        pg.train(model, text, pg.Adam(0.01), **settings).held_out_loss[0, 0, -1] - text.unigram_loss
        for text in (TEXT, shuffled)
    )
    assert learned < -0.3
    assert not_learned > -0.05


def test_what_is_not_covered_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    mask = np.tril(np.ones((8, 8), bool))
    mask[3, 5] = True
    short = Corpus("short", 256, (np.ones(8, np.uint8),), (np.ones(9, np.uint8),))
    for changes, settings, named in (
        ({"causal": False}, {}, "model must be causal"),
        ({"causal": False, "mask": mask}, {}, "the mask of block 1"),
        ({"dropout": 0.1}, {}, "dropout must be 0"),
        ({"placement": "rezero"}, {}, "no gradient reaches the matrices of block 1"),
        ({}, {"to": ""}, "to must be a folder's path"),
        ({}, {"to": "a\0b"}, "to must be a folder's path"),
        ({"tokens": 1}, {}, "tokens must be at least 2"),
        ({}, {"steps": 0}, "steps"),
        ({}, {"batch": 1.5}, "batch"),
        ({}, {"lrs": ()}, "lrs must be at least one"),
        ({}, {"lrs": 0.1}, "lrs must be several"),
        ({}, {"lrs": (-0.1,)}, "lrs must be positive"),
        ({}, {"seeds": (1, 1)}, "none of them twice"),
        ({}, {"warmup": 1}, "warmup"),
        ({}, {"schedule": "wsd"}, "schedule must be one of"),
        ({}, {"clip": 0.0}, "clip must be positive"),
        ({}, {"probes": (7,)}, "probes must be at most 6"),
        ({}, {"probes": 3}, "probes must be whole numbers"),
        ({}, {"precision": "float16"}, "precision must be one of"),
        ({}, {"device": "tpu"}, "device must be"),
        ({}, {"executor": 3}, "executor must be"),
        ({}, {"to": tmp_path / "file"}, "to must be a folder"),
        ({}, {"corpus": "python"}, "corpus must be a Corpus"),
        ({}, {"corpus": short}, "more than tokens=8 tokens that are training, got 8"),
        ({}, {"optimizer": "adam"}, "optimizer must be one of"),
    ):
        given: Any = {"corpus": TEXT, "optimizer": ADAM} | SETTINGS | settings
        with pytest.raises(pg.ModelError, match=named) as caught:
            pg.train(dataclasses.replace(MODEL, **changes), **given)
        assert "\n" not in str(caught.value)


def test_several_streams_and_experts_and_gates_train() -> None:
    for placement, more in (("siamesenorm", {}), ("spannorm", {"experts": pg.Experts(4, 2), "activation": "swiglu"})):
        model = pg.Model(placement, depth=1, width=16, heads=2, tokens=8, causal=True, **more)
        seen = pg.train(model, TEXT, pg.Muon(0.01), **(SETTINGS | {"steps": 2, "probes": ()}))
        assert np.isfinite(seen.loss).all()
        assert seen.variance.dims[-1] == ("stream" if placement == "siamesenorm" else "block")


def test_the_command_line_trains(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from propagate.cli import app

    size = ["prenorm", "--depth", "1", "--width", "16", "--heads", "2", "--tokens", "8"]
    given = ["train", *size, "--lr", "0.1", "--lr", "1e30", "--optimizer", "sgd", "--steps", "3", "--clip", "0"]
    kept, out = tmp_path / "kept", tmp_path / "seen.nc"
    given += ["--warmup", "0", "--batch", "2", "--to", str(kept), "--out", str(out), "--together", "2", "--trace", "0"]
    given += ["--transfer", "mup", "--base", "8", "1"]
    done = CliRunner().invoke(app, given)
    assert done.exit_code == 0, done.output
    assert "2 arms, 1 diverged, 3 steps of 2 sequences" in done.output
    assert len(list(kept.iterdir())) == 2
    import xarray as xr

    with xr.open_dataset(out, engine="scipy") as seen:
        assert seen.sizes["lr"] == 2
        assert (seen.attrs["together"], seen.attrs["base"]) == ("an ensemble", "(8, 1)")
    again = CliRunner().invoke(app, [*given, "--json"])
    assert json.loads(again.output)["loss"][0] == seen.loss[0].values.tolist()
