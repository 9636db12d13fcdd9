"""Trained networks whose matrices are there: gradients, updates, and what is measured of them."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

import propagate as pg
from propagate.montecarlo.backend import choose_backend
from propagate.montecarlo.normals import Normals
from propagate.montecarlo.starts import ends_of
from propagate.montecarlo.steps.directions import Gradient, direction, polar
from propagate.montecarlo.steps.ends import bounds
from propagate.montecarlo.steps.run import Course, Pass, _maker, _pass, run_steps
from propagate.montecarlo.steps.trained import Trained
from propagate.transfer import factors_by_kind

SMALL = {"depth": 2, "width": 16, "tokens": 3, "heads": 2}
HOST = choose_backend("numpy")


def course(model: pg.Model, optimizer: object, loss: object, transfer: str | None = None, steps: int = 1) -> Course:
    factors = factors_by_kind(model, transfer, (8, 1))
    entering = ends_of(model, pg.Start())
    return Course(model, optimizer, steps, loss, factors, "numpy", "float64", "dense", 3, entering)


class Running:
    """One network, whose matrices can be pushed by hand."""

    def __init__(self, chosen: Course) -> None:
        self.course, self.normals = chosen, Normals(HOST, chosen.seed, range(1))
        self.trained = Trained(np, _maker(chosen, self.normals), chosen.factors_of)
        self.loss = bounds(chosen.loss, chosen.model, self.normals, chosen.ends, self.trained)

    def go(self) -> Pass:
        found = _pass(self.course, self.normals, self.trained, self.loss)
        self.trained.settle()
        return found


@pytest.mark.parametrize(
    ("placement", "fields", "loss"),
    [
        ("spannorm", {"value_gain": 0.7, "activation": "swiglu", "ffn_gain": 0.6}, pg.CrossEntropy(5, gain=0.8)),
        ("postnorm", {"value_gain": 0.7, "causal": True, "normed": ("query",), "norm": "layer"}, pg.Linear()),
        ("prenorm", {"experts": pg.Experts(4, 2, shared=1)}, pg.CrossEntropy(5)),
        ("siamesenorm", {"key_value_heads": 1}, pg.Linear()),
    ],
)
def test_gradients_are_the_slopes_of_the_loss(placement: str, fields: dict, loss: object) -> None:
    model = pg.Model(placement, **SMALL, **fields)
    running = Running(course(model, pg.SGD(lr=1.0), loss, "depth-mup"))
    running.go()
    random, slopes = np.random.default_rng(0), []
    gradients = {
        (site, index): gradient.matrix()
        for site, own in running.trained.sites.items()
        for index, gradient in enumerate(own.map.gradients())
    }
    for (site, index), gradient in gradients.items():
        matrix = running.trained.sites[site].map.now[index]
        towards, size = random.standard_normal(matrix.shape), 1e-6
        losses = []
        for sign in (1, -2):  # ahead, then back
            matrix += sign * size * towards
            losses.append(running.go().loss[0])
        matrix += size * towards
        slopes.append(((losses[0] - losses[1]) / (2 * size), (gradient * towards).sum()))
    measured, said = np.array(slopes).T
    scale = np.abs(measured).max()
    assert len(slopes) >= 8
    assert np.abs(measured - said).max() < 1e-6 * scale
    assert np.abs(measured - 1.01 * said).max() > 1e-6 * scale  # what would be noticed


def test_directions_are_those_of_the_papers() -> None:
    left, right = np.random.default_rng(1).standard_normal((2, 2, 1, 3, 6))
    gradients = [Gradient(one, other[..., :5], (6, 5)) for one, other in zip(left, right, strict=True)]
    first, second = (gradient.matrix() for gradient in gradients)
    u, _, v = np.linalg.svd((0.9 * first + second)[0])
    nesterov_u, _, nesterov_v = np.linalg.svd((0.9 * (0.9 * first + second) + second)[0])
    square = 0.999 * 0.001 * first**2 + 0.001 * second**2
    adam = (0.9 * 0.1 * first + 0.1 * second) / (1 - 0.9**2) / (np.sqrt(square / (1 - 0.999**2)) + 0.1)
    for optimizer, said in (
        (pg.SGD(lr=1.0, momentum=0.9), 0.9 * first + second),
        (pg.SGD(lr=1.0), second),
        (pg.Sign(lr=1.0, momentum=0.5), np.sign(0.5 * first + second)),
        (pg.Adam(lr=1.0, eps=0.1), adam),
        (pg.Muon(lr=1.0, momentum=0.9), (u[:, :5] @ v)[None]),
        (pg.Muon(lr=1.0, momentum=0.9, nesterov=True, scale="rms"), 0.2 * 6**0.5 * nesterov_u[:, :5] @ nesterov_v),
    ):
        memory = direction(optimizer, np, gradients[0], ()).memory
        assert np.abs(direction(optimizer, np, gradients[1], memory).towards - said).max() < 1e-12, optimizer
    assert np.abs(u[:, :5] @ v - nesterov_u[:, :5] @ nesterov_v).max() > 1e-3


def test_a_polar_factor_of_less_than_full_rank_leaves_the_rest_alone() -> None:
    left, right = np.random.default_rng(2).standard_normal((2, 1, 4, 9))
    left[:, 2] = left[:, 0]
    towards, doubtful = polar(np, left, right)
    assert np.allclose(np.linalg.svd(towards[0])[1], [1, 1, 1, 0, 0, 0, 0, 0, 0])
    assert not doubtful[0]
    left[:, 2] += 1e-12 * right[:, 3]
    assert polar(np, left, right)[1][0]


def test_a_step_is_decay_and_the_rates_of_the_rule() -> None:
    model = pg.Model("prenorm", **SMALL)
    running = Running(course(model, pg.SGD(lr=0.1, decay=0.5), pg.Linear(), "mup"))
    running.go()
    site = next(site for site, own in running.trained.sites.items() if own.matrices[0].name == "ffn_in")
    own = running.trained.sites[site].map
    before, gradient = own.now[0].copy(), own.gradients()[0].matrix()
    running.trained.update(running.course.optimizer_of)
    said = (1 - 0.1 / 2 * 0.5 * 2) * before - 0.1 / 2 * gradient  # width is twice the base's
    assert np.abs(own.now[0] - said).max() < 1e-14
    assert np.abs(own.now[0] - before - own.moved_by[0]).max() < 1e-14
    assert np.abs(said - ((1 - 0.1 * 0.5) * before - 0.1 * gradient)).max() > 1e-3


def test_step_0_is_what_simulate_draws() -> None:
    for placement, fields in (("siamesenorm", {}), ("postnorm", {"causal": True, "weights": "orthogonal"})):
        model = pg.Model(placement, **SMALL, **fields)
        seen = pg.simulate_steps(model, pg.SGD(lr=0.1), steps=1, draws=3, seed=5, sampler="dense", backend="numpy")
        once = pg.simulate(
            model,
            draws=3,
            seed=5,
            sampler="dense",
            backend="numpy",
            include={"param_grad"},
            through_readout="stream" in seen.dims,
        )
        for name in once.data_vars:
            np.testing.assert_allclose(seen[name].sel(step=0), once[name], rtol=1e-9, atol=1e-12, err_msg=str(name))
        assert abs(seen.covariance.sel(step=1) - once.covariance).max() > 1e-3


@pytest.mark.parametrize("optimizer", [pg.SGD(1e-6), pg.Sign(1e-7), pg.Muon(1e-6), pg.Adam(1e-7, decay=2.0)])
def test_the_loss_falls_as_the_gradients_say(optimizer: object) -> None:
    model = pg.Model("postnorm", **SMALL, activation="silu")

    def missed(factor: float) -> float:
        seen = pg.simulate_steps(
            model,
            replace(optimizer, lr=factor * optimizer.lr),
            steps=1,
            draws=4,
            loss=pg.CrossEntropy(7),
            sampler="dense",
            backend="numpy",
        )
        fall = float(seen.loss[0] - seen.loss[1])
        return abs(fall / float(seen.first_order_fall.sum()) - 1)

    assert missed(10.0) < 1e-3
    assert missed(1e4) > 5 * missed(10.0)


def test_what_reads_the_same_tokens_changes_only_by_its_own_matrix() -> None:
    model = pg.Model("prenorm", **SMALL, value_gain=0.5)
    seen = pg.simulate_steps(
        model, pg.Muon(0.1), steps=2, draws=3, transfer="complete-p", base=(16, 1), backend="numpy"
    )
    own, output = seen.own_change, seen.output_change
    for name in ("query", "key", "value"):
        np.testing.assert_allclose(own.sel(block=1, matrix=name), output.sel(block=1, matrix=name), rtol=1e-9)
    assert (abs(own / output - 1).sel(block=2, step=1) > 1e-3).all()
    # Muon: tokens / fan_in directions of size lr, of entries whose standard deviation is 1 / sqrt(fan_in)
    rank, entries = 3, {"query": 16, "value": 0.5**2 * 16, "ffn_in": 64}
    for name, size in entries.items():
        ratio = seen.update_ratio.sel(step=1, block=1, matrix=name)
        assert abs(float(ratio) / (0.1 * (rank / size) ** 0.5) - 1) < 0.1
    assert seen.own_change.isel(step=0).max() == seen.change.isel(step=0).max() == 0
    assert np.isnan(seen.own_change.sel(block=0)).all()


def test_batches_and_workers_leave_no_trace() -> None:
    model = pg.Model("spannorm", **SMALL, activation="gelu")
    asked = {"steps": 2, "draws": 5, "seed": 2, "sampler": "dense", "backend": "numpy", "loss": pg.CrossEntropy(6)}
    whole = pg.simulate_steps(model, pg.Muon(0.05, momentum=0.5), **asked)
    with ThreadPoolExecutor(2) as pool:
        split = pg.simulate_steps(model, pg.Muon(0.05, momentum=0.5), memory=1, executor=pool, **asked)
    assert whole.equals(split)
    other = pg.simulate_steps(model, pg.Muon(0.05, momentum=0.5), **(asked | {"seed": 3}))
    assert not whole.equals(other)


def test_a_network_that_leaves_the_range_of_numbers_is_data() -> None:
    model = pg.Model("prenorm", **SMALL)
    with pytest.warns(UserWarning, match="2 of 2 networks left the range of numbers, the first at step [12]"):
        seen = pg.simulate_steps(model, pg.SGD(lr=1e90), steps=2, draws=2, backend="numpy")
    assert seen.attrs["diverged"] == 2
    assert np.isfinite(seen.variance.sel(step=0)).all()
    assert not np.isfinite(seen.variance.sel(step=2)).all()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"steps": 0}, "steps must be at least 1"),
        ({"steps": 10**4, "model": pg.Model("prenorm", **(SMALL | {"depth": 5000}))}, "steps must be fewer"),
        ({"optimizer": "sgd"}, "optimizer must be one of SGD, Sign, Adam, Muon"),
        ({"loss": "mse"}, "loss must be"),
        ({"loss": pg.CrossEntropy(4), "start": pg.Start(covariance=0.5)}, "only variance"),
        ({"transfer": "nonesuch"}, "transfer must be one of"),
        ({"transfer": "mup", "base": 16}, "base must be"),
        ({"transfer": "mup", "base": (16, 0)}, r"base\[1\] must be at least 1"),
        ({"model": pg.Model("prenorm", **SMALL, dropout=0.1)}, "dropout must be 0"),
        ({"model": pg.Model("prenorm", **SMALL, experts=pg.Experts(4)), "optimizer": pg.Muon(1.0)}, "experts"),
        ({"model": pg.Model("prenorm", **SMALL, value_gain=0.0)}, "gain that is not 0, got value_gain 0"),
        ({"model": pg.Model("prenorm", depth=1, width=2**20)}, "GiB of memory"),
        ({"sampler": "fused"}, "sampler must be one of"),
    ],
)
def test_what_is_not_covered_is_refused(changed: dict, message: str) -> None:
    asked = {"model": pg.Model("prenorm", **SMALL), "optimizer": pg.Sign(0.1), "steps": 1, "draws": 2}
    with pytest.raises(pg.ModelError, match=message):
        pg.simulate_steps(**(asked | {"backend": "numpy"} | changed))


def test_what_is_sent_back_is_what_was_met() -> None:
    """A run of one draw at a time gives that draw's own numbers."""
    chosen = course(pg.Model("prenorm", **SMALL), pg.SGD(0.1, momentum=0.5), pg.Linear(), steps=2)
    both, second = run_steps(chosen, range(2)), run_steps(chosen, range(1, 2))
    assert all((both[name][1:] == second[name]).all() or np.isnan(second[name]).any() for name in both)
