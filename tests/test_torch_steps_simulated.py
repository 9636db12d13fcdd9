"""The table of torch's steps is that of `simulate_steps` on the very same networks, entry by entry."""

from typing import Any

import numpy as np
import pytest

import propagate as pg
from propagate.montecarlo.backend import choose_backend
from propagate.montecarlo.normals import Normals
from propagate.montecarlo.run import COTANGENT_SITE, INPUT_SITE
from propagate.montecarlo.starts import ends_of
from propagate.montecarlo.steps.ends import _uniform, bounds
from propagate.montecarlo.steps.run import Course, _maker, _pass, run_steps
from propagate.montecarlo.steps.trained import Trained
from propagate.transfer import Factors, factors_by_kind

torch = pytest.importorskip("torch", reason="torch is absent: install the extra [torch]")

from propagate.tracing.build import build  # noqa: E402
from propagate.tracing.layers import Projection  # noqa: E402
from propagate.tracing.starts import Entering  # noqa: E402
from propagate.tracing.stepping import stepped  # noqa: E402

torch.set_num_threads(1)
HOST = choose_backend("numpy")
SIZE: dict[str, Any] = {"depth": 2, "width": 16, "tokens": 4, "heads": 2, "ffn_ratio": 1.5}
BASE = (8, 1)
ONE = range(1)


def networks(course: Course) -> tuple[Any, Entering]:
    """The simulation's first network as a torch module without the rule's gains, and what enters it."""
    normals = Normals(HOST, course.seed, ONE)
    trained = Trained(np, _maker(course, normals), course.factors_of)
    ends = bounds(course.loss, course.model, normals, course.ends, trained)
    _pass(course, normals, trained, ends)
    weights = []
    for site in sorted(trained.sites):
        own = trained.sites[site]
        gains = [float(course.factors_of(one.name).gain) for one in own.matrices]
        parts = [now[0] / gain for now, gain in zip(own.map.now, gains, strict=True)]
        weights.append(torch.from_numpy(np.concatenate(parts, axis=1).T.copy()))
    if isinstance(course.loss, pg.CrossEntropy):
        sizes = (course.model.tokens, course.loss.vocabulary)
        ids, targets = (torch.from_numpy(_uniform(normals, at, *sizes)) for at in (INPUT_SITE, COTANGENT_SITE))
        entering = Entering(ids, targets, weights.pop(0), weights.pop())
    else:
        x, _ = ends.enter()
        entering = Entering(torch.from_numpy(x), torch.from_numpy(ends.leave(x).pull()))
    module = build(course.model, dtype=torch.float64)
    projections = [part for part in module.modules() if isinstance(part, Projection)]
    for projection, weight in zip(projections, weights, strict=True):
        with torch.no_grad():
            projection.weight.copy_(weight)
    return module, entering


def distances(course: Course, rate: float = 1.0) -> dict[str, float]:
    """Largest relative difference of each column; `rate` is a factor on torch's rate for hidden matrices."""
    simulated = run_steps(course, ONE)
    module, entering = networks(course)

    def factors_of(name: str) -> Any:
        own = course.factors_of(name)
        return Factors(**{**own.__dict__, "lr": own.lr * (rate if name == "key" else 1.0)})

    columns, _ = stepped(module, entering, course.optimizer, factors_of, course.steps)
    found: dict[str, float] = {}
    for step, row in enumerate(columns):
        for name, values in row.items():
            pairs = [(name, values)]
            if isinstance(values, dict):
                pairs = [(f"{name}:{matrix}", (block, value)) for (block, matrix), value in values.items()]
            for column, value in pairs:
                if column not in simulated:
                    continue
                there = simulated[column][0] if "first_order" in column else simulated[column][0, step]
                here, there = (value[1], there[value[0]]) if isinstance(value, tuple) else (value, there)
                size = np.nanmax(np.abs(there)) or 1.0
                apart = np.nanmax(np.abs(np.asarray(here) - there)) / size
                found[column] = max(found.get(column, 0.0), float(apart))
    return found


@pytest.mark.parametrize(
    ("placement", "optimizer", "loss", "fields"),
    [
        ("spannorm", pg.SGD(lr=0.05, momentum=0.9, decay=0.1), pg.CrossEntropy(7), {"activation": "swiglu"}),
        ("siamesenorm", pg.Adam(lr=1e-3, eps=1e-4), pg.Linear(), {"causal": True}),
        ("prenorm", pg.Muon(lr=0.01, scale="rms"), pg.CrossEntropy(7), {"key_value_heads": 1, "rope": 100.0}),
        ("postnorm", pg.Sign(lr=1e-3), pg.Linear(), {"norm": "layer", "window": 2, "causal": True}),
    ],
    ids=lambda one: one if isinstance(one, str) else "",
)
def test_every_column_of_every_step_is_the_simulations(placement: str, optimizer: Any, loss: Any, fields: Any) -> None:
    model = pg.Model(placement, **SIZE, **fields)
    factors = factors_by_kind(model, "depth-mup", BASE)
    course = Course(model, optimizer, 3, loss, factors, "numpy", "float64", "dense", 3, ends_of(model, pg.Start()))
    found = distances(course)
    assert {"own_change:query", "output_change:query", "param_grad:query", "update_ratio:query"} <= set(found)
    assert {"loss", "change", "variance", "grad_variance", "first_order_fall:query"} <= set(found)
    assert max(found.values()) < 1e-6, found
    wrong = distances(course, rate=1.01)  # negative control: the keys' rate 1 % off
    assert wrong["update_ratio:key"] > 1e-3
    assert wrong["loss"] > 1e-6
