"""Solving for exponents gives the published rules back: each beside what was derived, and a rule that it must not give.

Growth is the exponent of a number between two depths. Where a number is bounded its growth goes to 0 with depth, but
only as a power of it: what is expected between these two depths is derived for each network.
"""

import math
from dataclasses import dataclass
from typing import Any

import pytest
from scipy.optimize import brentq

import propagate as pg
from propagate.placement import Placement
from propagate.transfer import Factors

DEPTHS = (16, 32)
UNIFORM: dict[str, Any] = {"tokens": 4, "heads": 2, "width": 64, "logit_std": 0.0}
LINEAR = UNIFORM | {"activation": "linear"}
ALIKE = pg.Start(covariance=0.3)


def weakest(model: pg.Model, growing: Any, *, above: float | None = None, below: float | None = None) -> pg.Solution:
    asked = [pg.Growth(growing, above, below, sizes=DEPTHS)]
    return pg.solve(model, "scaling.exponent", asked, between=(0.0, 1.0), start=ALIKE, points=5)


def growth(number: Any) -> float:
    """The exponent of a function of the depth."""
    return math.log(number(DEPTHS[1]) / number(DEPTHS[0])) / math.log(DEPTHS[1] / DEPTHS[0])


def test_scale_init_half_keeps_prenorms_gradient() -> None:
    """Of one token and a linear FFN every sublayer adds L^(-2k): G = 1 + 2 L^(1-2k), bounded from k = 1/2 on."""
    model = pg.Model("prenorm", depth=4, scaling=pg.ScaleInit(0.0), **(LINEAR | {"tokens": 1}))
    asked = [pg.Growth(pg.GradientGain(), below=0.01, sizes=DEPTHS)]
    found = pg.solve(model, "scaling.exponent", asked, between=(0.0, 1.0), points=5)
    derived = brentq(lambda k: growth(lambda depth: 1 + 2 * depth ** (1 - 2 * k)) - 0.01, 0.1, 0.9)
    assert found.value == pytest.approx(derived, abs=1e-4)
    assert abs(derived - 0.5) < 0.01
    (quarter,) = found.table.growth_of_gradient_gain.sel(exponent=[0.25])
    assert float(quarter) > 0.3  # 1/4 will not do


def test_spannorm_keeps_tokens_apart_from_a_quarter_on_and_postnorm_from_a_half() -> None:
    """Of a linear FFN a block leaves of the differences (1 + 2 s) / (1 + s)^2 and 1 / (1 + s), at s = L^(-2k) of gain.

    So their logarithms add up to -L^(1-4k) and -L^(1-2k). What attention adds to the mean is m s, m near 1.
    """
    quarter, half = (
        weakest(pg.Model(name, depth=4, scaling=pg.ScaleInit(0.0), **LINEAR), pg.Distinct(), above=-0.02).value or 0
        for name in ("spannorm", "postnorm")
    )
    assert quarter == pytest.approx(0.25, abs=0.02)
    assert half == pytest.approx(0.5, abs=0.02)
    relu = pg.Model("spannorm", depth=4, scaling=pg.ScaleInit(0.0), **UNIFORM)  # 1/4 is for a linear FFN alone
    assert (weakest(relu, pg.Distinct(), above=-0.02).value or 0) > 0.4


def test_no_exponent_reaches_a_normed_branch() -> None:
    """Peri-LN norms what ScaleInit scales: the gradient grows as before."""
    model = pg.Model("periln", depth=4, scaling=pg.ScaleInit(0.0), **UNIFORM)
    found = weakest(model, pg.GradientGain(), below=0.05)
    assert not found.met
    assert float(found.table.growth_of_gradient_gain.min()) > 0.5


class PowersOfDepth(Placement):
    """DeepNorm with exponents of its own: skips times (2L)^skip, values, outputs and FFNs times (8L)^-gain."""

    skip: float = 0.25
    gain: float = 0.25

    def block(self, x: Any, block: Any) -> Any:
        alpha = (2 * block.depth) ** self.skip
        y = block.norm(alpha * x + block.attention(x))
        return block.norm(alpha * y + block.ffn(y))

    def gains(self, index: Any, depth: Any) -> pg.Gains:
        beta = (8 * depth) ** -self.gain
        return pg.Gains(value=beta, attention_out=beta, ffn_in=beta, ffn_out=beta)


@pytest.mark.parametrize(("gain", "skip"), [(0.25, 0.25), pytest.param(0.1, 0.4, marks=pytest.mark.slow)])
def test_deepnorms_exponents_keep_the_first_step_of_one_size(gain: float, skip: float) -> None:
    """Under SGD a sublayer moves the stream by (v^2 + w^2) / alpha^2, and there are 2L: L^(1 - 2 gain - 2 skip).

    With gain 1/4 that is DeepNorm's skip exponent, 1/4 (arXiv:2203.00555, Theorem 4.2).
    """
    model = pg.Model(PowersOfDepth(gain=gain), depth=4, **LINEAR)
    asked = [pg.Growth(pg.FirstStep(), above=-0.02, below=0.02, sizes=DEPTHS)]
    step: Any = {"start": ALIKE, "optimizer": pg.SGD(lr=1.0), "points": 6}
    found = pg.solve(model, "placement.skip", asked, between=(0.0, 1.0), **step)
    ((low, high),) = found.intervals
    assert low < skip + 0.02
    assert high > skip - 0.02
    assert high - low < 0.03  # so any other quarter is wrong


class Convex(Placement):
    """DeepScaleLM with an exponent of its own: beta^2 = k / (2L)^power."""

    power: float = 1.0
    k: float = 2.0

    def block(self, x: Any, block: Any) -> Any:
        share = self.k / (2 * block.depth) ** self.power
        skip = (1 - share) ** 0.5
        for sublayer in (block.attention, block.ffn):
            branch = sublayer(block.norm(x))
            x = skip * x + share**0.5 / block.std(branch) * branch
        return x


def test_deepscalelms_exponent_keeps_tokens_apart() -> None:
    """Uniform attention keeps lambda^2 of the differences, a linear FFN all: (1 - k (2L)^-e)^L, bounded from e = 1."""
    asked = [pg.Growth(pg.Distinct(), above=-0.02, sizes=DEPTHS)]
    found = pg.solve(pg.Model(Convex(), depth=4, **LINEAR), "placement.power", asked, between=(0.5, 1.5), points=5)
    derived = brentq(lambda e: growth(lambda depth: (1 - 2 * (2 * depth) ** -e) ** depth) + 0.02, 0.5, 1.5)
    assert found.lowest == pytest.approx(derived, abs=1e-4)
    assert abs(derived - 1) < 0.05
    assert found.highest == 1.5
    assert not any(low <= 0.9 <= high for low, high in found.intervals)


def test_deepscalelms_k_from_what_is_to_be_left() -> None:
    """(1 - k / 2L)^L = 1/2, in closed form; k = 2 leaves less."""
    depth = 12
    model = pg.Model("deepscalelm", depth=depth, **LINEAR)
    found = pg.solve(model, "placement.k", [pg.Distinct(above=0.5)], between=(0.0, 4.0), points=5)
    assert found.value == pytest.approx(2 * depth * (1 - 0.5 ** (1 / depth)), abs=1e-3)
    assert (found.value or 0) < 2


@dataclass(frozen=True)
class Powers:
    """Branches times depth^-branch, every rate times depth^rate."""

    branch: float = 1.0
    rate: float = 0.0

    def factors(self, kind: Any, width: Any, depth: Any) -> Factors:
        return Factors(multiplier=depth**-self.branch if kind == "branch_out" else 1, lr=depth**self.rate)


@pytest.mark.few(1)
@pytest.mark.parametrize(
    ("placement", "matrix", "rule", "unknown", "expected"),
    [
        ("prenorm", None, Powers(), "transfer.branch", 1.0),  # CompleteP, arXiv:2505.01618: one rate at every depth
        pytest.param("prenorm", None, Powers(branch=0.5), "transfer.rate", -0.5, marks=pytest.mark.slow),  # depth-muP
        ("spannorm", "attention_out", Powers(), "transfer.branch", 0.5),  # proposition 14: it meets the FFN's, too
    ],
)
def test_complete_p_and_depth_mup_keep_the_first_step_of_one_size(
    placement: str, matrix: str | None, rule: Powers, unknown: str, expected: float
) -> None:
    """A step that does not grow with the gradient moves the stream by depth^(1 - branch + rate)."""
    asked = [pg.Growth(pg.FirstStep(matrix=matrix), above=-0.05, below=0.05, sizes=DEPTHS)]
    step: Any = {"start": ALIKE, "optimizer": pg.Muon(lr=1e-3), "transfer": rule, "base": (64, 1), "points": 6}
    low, high = (-1.0, 0.0) if expected < 0 else (0.0, 1.5)
    found = pg.solve(pg.Model(placement, depth=4, **UNIFORM), unknown, asked, between=(low, high), **step)
    assert any(start - 0.03 <= expected <= end + 0.03 for start, end in found.intervals)
    assert max(end - start for start, end in found.intervals) < 0.15
    assert not any(start <= expected - 0.25 <= end for start, end in found.intervals)


def test_random_networks_have_the_gain_that_was_asked_for() -> None:
    model = pg.Model("spannorm", depth=6, activation="swiglu", scaling=pg.ScaleInit(0.0), tokens=4, width=128, heads=4)
    for asked in (3.0, 6.0):
        found = pg.solve(model, "scaling.exponent", [pg.GradientGain(below=asked)], between=(0, 1), points=5)
        seen = pg.simulate(found.model, draws=48, progress=False, backend="numpy")
        off = float(seen.log_grad_variance[0]) - math.log(3.0)
        error = math.hypot(
            float(seen.log_grad_variance_se[0]), float(pg.predict(found.model).grad_variance_allowance[0])
        )
        assert (abs(off) < 4 * error) == (asked == 3.0)
