"""Trained networks whose matrices are never made: the same algebra as dense ones, and the same law."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import propagate as pg
from propagate.montecarlo.backend import choose_backend
from propagate.montecarlo.normals import Normals
from propagate.montecarlo.steps import weightless
from propagate.montecarlo.steps.dense import Dense
from propagate.montecarlo.steps.maps import Stored
from propagate.montecarlo.steps.weightless import weightless_map

HOST, DRAWS, TOKENS, FAN_IN, WIDTHS, STEPS = choose_backend("numpy"), 2, 4, 30, (22, 26), 3


def met(step: int, width: int, collapse: float, seed: int) -> np.ndarray:
    """Tokens of a step, near those of the step before, the second equal to the first, the others near one another."""
    shared, own, moves = (np.random.default_rng([seed, k]).standard_normal((DRAWS, TOKENS, width)) for k in range(3))
    own[:, 1] = own[:, 0]
    return shared[:, :1] + collapse * own + step * 1e-3 * (moves[:, :1] + collapse * moves)


@pytest.mark.parametrize("collapse", [1.0, 1e-7])
@pytest.mark.parametrize(
    "optimizer",
    [
        pg.SGD(0.02, momentum=0.5, decay=4.0),
        pg.SGD(0.02),
        pg.Muon(0.3, momentum=0.5, nesterov=True, scale="rms"),
    ],
)
def test_some_dense_matrix_does_all_that_was_said(optimizer: object, collapse: float) -> None:
    stored = [Stored("one", WIDTHS[0], 0.8), Stored("two", WIDTHS[1], 1.5)]
    made = weightless_map(Normals(HOST, 0, range(DRAWS)), STEPS, 1000, 64, FAN_IN, stored, TOKENS)
    inputs = [met(step, FAN_IN, collapse, 1) for step in range(STEPS + 1)]
    cotangents = [[met(step, width, collapse, width) for width in WIDTHS] for step in range(STEPS + 1)]

    def run(one: object) -> list[np.ndarray]:
        """All that comes of it."""
        found = []
        for step, (x, g) in enumerate(zip(inputs, cotangents, strict=True)):
            found += [*one.forward(x), one.backward(g)]
            found += [moved.own for moved in one.moved()]
            if not optimizer.decay:  # which is of all of W0, of whose norm only the law is known
                found += [moved.far for moved in one.moved()]
            if step < STEPS:
                one.update([optimizer] * 2)
            found += one.falls()
        return found

    said = run(made)
    rows = made.span.known()
    dense = []
    for one in made.matrices:
        across = one.across.known()
        seen, answered = (  # of rows of zeros, which are none, they say nothing
            kept * there.any(axis=-1, keepdims=True) for kept, there in ((one.seen, rows), (one.answered, across))
        )
        assert abs(rows @ answered.swapaxes(1, 2) - seen @ across.swapaxes(1, 2)).max() < 1e-8
        rest = answered - (answered @ rows.swapaxes(1, 2)) @ rows
        dense.append(one.gain * (rows.swapaxes(1, 2) @ seen + rest.swapaxes(1, 2) @ across))
    done = run(Dense(np, dense))
    for mine, theirs in zip(said, done, strict=True):
        assert abs(mine - theirs).max() <= 1e-7 * abs(theirs).max() + 1e-12
        if mine.ndim == 3:
            apart = abs(np.diff(theirs, axis=1)).max()
            assert abs(np.diff(mine - theirs, axis=1)).max() <= 1e-6 * apart
            assert apart < 100 * collapse * abs(theirs).max()
    for span in (made.span, *(one.across for one in made.matrices)):
        gram = span.known() @ span.known().swapaxes(1, 2)
        lengths = np.diagonal(gram, axis1=1, axis2=2)
        assert (np.minimum(abs(lengths), abs(lengths - 1)) < 1e-9).all()
        assert abs(gram - lengths[..., None] * np.eye(span.count)).max() < 1e-9


def scores(model: pg.Model, optimizer: object, loss: object, draws: int, seed: int) -> np.ndarray:
    """Of every mean in the two tables, their difference in standard errors."""
    asked = {"steps": 2, "draws": draws, "backend": "numpy", "loss": loss}
    one = pg.simulate_steps(model, optimizer, sampler="dense", seed=seed, **asked)
    other = pg.simulate_steps(model, optimizer, sampler="weightless", seed=seed + 1, **asked)
    found = []
    for name in one.data_vars:
        if f"{name}_se" in one and not str(name).startswith("log_"):
            error = np.hypot(one[f"{name}_se"], other[f"{name}_se"]).to_numpy()
            known = error > 1e-9 * abs(one[name].to_numpy())
            found.append((one[name] - other[name]).to_numpy()[known] / error[known])
    return np.concatenate(found)


CASES = [
    (
        pg.Model("prenorm", depth=2, width=24, tokens=3, heads=2, ffn_ratio=2),
        pg.SGD(4e-3, momentum=0.9, decay=10.0),
        None,
    ),
    (
        pg.Model("spannorm", depth=1, width=24, tokens=3, heads=2, ffn_ratio=2, causal=True, activation="swiglu"),
        pg.Muon(0.3, momentum=0.5),
        pg.CrossEntropy(7),
    ),
]


@pytest.mark.parametrize(("model", "optimizer", "loss"), CASES)
def test_the_law_is_that_of_dense_matrices_at_every_step(
    model: pg.Model, optimizer: object, loss: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = scores(model, optimizer, loss, draws=40, seed=0)
    assert len(found) > 100
    assert abs(found).max() < 4
    monkeypatch.setattr(weightless, "conditioned", lambda z, *_: z)  # what was seen is forgotten
    assert abs(scores(model, optimizer, loss, draws=40, seed=0)).max() > 6


@pytest.mark.slow
@pytest.mark.parametrize(("model", "optimizer", "loss"), CASES)
def test_the_law_with_many_draws(model: pg.Model, optimizer: object, loss: object) -> None:
    assert abs(scores(model, optimizer, loss, draws=2000, seed=10)).max() < 4.5


@pytest.mark.slow
def test_the_law_at_a_larger_width() -> None:
    wide = pg.Model("postnorm", depth=2, width=256, tokens=8, heads=4, activation="gelu")
    assert abs(scores(wide, pg.SGD(1e-5, momentum=0.9), None, draws=150, seed=20)).max() < 4.5
    assert abs(scores(wide, pg.Muon(0.05), pg.CrossEntropy(50), draws=150, seed=30)).max() < 4.5


def test_batches_and_workers_leave_no_trace() -> None:
    model = pg.Model("postnorm", depth=1, width=16, tokens=3, heads=2)
    asked = {"steps": 2, "draws": 3, "sampler": "weightless", "backend": "numpy"}
    whole = pg.simulate_steps(model, pg.SGD(0.1, momentum=0.5), **asked)
    with ThreadPoolExecutor(2) as pool:
        assert whole.equals(pg.simulate_steps(model, pg.SGD(0.1, momentum=0.5), memory=1, executor=pool, **asked))


def test_wide_networks_take_it_by_themselves() -> None:
    wide = pg.Model("prenorm", depth=1, width=128, tokens=4, heads=2)
    for optimizer, sampler in ((pg.SGD(1e-3), "weightless"), (pg.Sign(1e-3), "dense"), (pg.Muon(1e-3), "weightless")):
        assert pg.simulate_steps(wide, optimizer, steps=1, draws=2, backend="numpy").attrs["sampler"] == sampler
    assert pg.simulate_steps(wide, pg.SGD(1e-3), steps=20, draws=2, backend="numpy").attrs["sampler"] == "dense"


@pytest.mark.parametrize(
    ("optimizer", "weights", "message"),
    [
        (pg.Sign(0.1), "normal", "does not cover Sign"),
        (pg.Adam(0.1), "normal", "does not cover Adam"),
        (pg.SGD(0.1), "uniform", "needs weights='normal'"),
    ],
)
def test_what_has_another_law_is_refused(optimizer: object, weights: str, message: str) -> None:
    model = pg.Model("prenorm", depth=1, width=16, tokens=3, heads=2, weights=weights)
    with pytest.raises(pg.ModelError, match=message):
        pg.simulate_steps(model, optimizer, steps=1, draws=2, sampler="weightless", backend="numpy")


@pytest.mark.slow
def test_collapsed_tokens_keep_their_differences() -> None:
    """Sixteen blocks of PostNorm leave 1e-6 of the differences between tokens, and less of their cotangents'."""
    model = pg.Model("postnorm", depth=16, width=64, tokens=4, heads=2, ffn_ratio=2)
    found = {
        name: pg.simulate_steps(
            model, pg.SGD(1e-6), pg.Start(covariance=0.9), steps=3, draws=200, seed=seed, sampler=name, backend="numpy"
        )
        for seed, name in enumerate(("dense", "weightless"))
    }
    one, other = found["dense"], found["weightless"]
    assert float(one.log_deviation.min()) < np.log(1e-4)
    for name in ("log_deviation", "log_grad_deviation", "log_grad_variance", "log_change", "log_param_grad"):
        error = np.hypot(one[f"{name}_se"], other[f"{name}_se"])
        z = ((one[name] - other[name]) / error).where(error > 1e-9).to_numpy()
        assert np.nanmax(abs(z)) < 4.5, name
