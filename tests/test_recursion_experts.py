"""The symbolic recursion of a block with experts: one step of `predict`, averages over gates as named functions."""

import pytest
import sympy
import xarray as xr

import propagate as pg
from propagate import Experts
from propagate.theory.pairs import gates
from propagate.theory.pairs.gates import gate_averages, gate_errors, symbols

POINTS = ((1.0, 0.0, 1.0, 0.0), (1.0, 0.4, 1.0, 0.7), (2.5, 1.5, 0.3, 0.1))
VALUES = {"T": 16, "g_a": 0.7, "g_f": 1.2}
EVEN = Experts(8, 2)
KINDS = {
    "prenorm": EVEN,
    "postnorm": Experts(8, 2, shared=1),
    "spannorm": Experts(2, 1),
}


def predicted(placement: str, kind: Experts, point: tuple[float, ...]) -> list[float]:
    fields = {"attention_gain": VALUES["g_a"], "ffn_gain": VALUES["g_f"], "tokens": VALUES["T"], "logit_std": 0.0}
    # an interior block: SpanNorm's first one differs
    model = pg.Model(Inside(inner=pg.placement(placement)), depth=1, experts=kind, **fields)
    q, p, gamma, kappa = point
    start = xr.DataArray([q], dims="start")  # an array of starts takes experts at their means, as the recursion does
    with pytest.warns(UserWarning, match="routers do not average out"):
        found = pg.predict(model, variance=start, covariance=p, grad_variance=gamma, grad_covariance=kappa)
    found = found.isel(start=0)
    ends = (found.variance[1], found.covariance[1], found.grad_variance[0], found.grad_covariance[0])
    return [float(value) for value in ends]


class Inside(pg.Placement):
    """One interior block of another placement."""

    inner: pg.Placement

    def block(self, x, block):
        return self.inner.block(x, Seen(block))


class Seen:
    """A block that says it is the second of three."""

    index, depth, first, last = 2, 3, False, False

    def __init__(self, block) -> None:
        self.attention, self.ffn, self.norm = block.attention, block.ffn, block.norm


@pytest.mark.slow
@pytest.mark.parametrize("placement", [pytest.param("prenorm", marks=pytest.mark.slow), "postnorm", "spannorm"])
def test_a_block_is_one_step_of_predict(placement: str) -> None:
    kind = KINDS[placement]
    found = pg.recursion(placement, experts=kind)
    dense = pg.recursion(placement).lambdify(**VALUES)
    one_block = found.lambdify(**VALUES)
    for point in POINTS:
        said = predicted(placement, kind, point)
        # the closed form of two candidates stands beside a sampled one
        closed = kind == Experts(2, 1)
        assert one_block(*point) == pytest.approx(said, rel=3e-3 if closed else 1e-6, abs=1e-3 if closed else 1e-9)
        assert dense(*point) != pytest.approx(said, rel=1e-2)


def test_what_is_in_the_equations() -> None:
    found = pg.recursion("prenorm", experts=EVEN)
    names = {str(f.func) for eq in found.equations() for f in eq.rhs.atoms(sympy.core.function.AppliedUndef)}
    assert {"gate_routed", "gate_routed_slope"} <= names
    assert not any("kept" in name for name in names)
    output = next(eq.rhs for eq in found.definitions if str(eq.lhs) == "a_2")
    assert str(output) == "g_f**2*gate_routed(1, 1)"


@pytest.mark.slow
@pytest.mark.parametrize("correlation", [0.0, 0.3, 0.9])
def test_closed_forms_are_what_is_sampled(correlation: float) -> None:
    for kind in (Experts(2, 1), Experts(5, 1), Experts(6, 2, identity=3)):
        said = symbols(kind, sympy.Float(1.0), sympy.Float(1 - correlation))
        sampled, errors = (
            gate_averages(kind, 1.0, 1 - correlation),
            dict(zip(gates.Gates._fields, gate_errors(kind, 1.0), strict=True)),
        )
        for name in ("kept", "routed", "routed_slope", "kept_slope"):
            one, other = getattr(said, name), getattr(sampled, name)
            for exact, value in (
                ((one, other),)
                if name == "kept"
                else ((one.variance, other.variance), (one.covariance, other.covariance))
            ):
                if not exact.has(sympy.core.function.AppliedUndef):
                    assert float(exact) == pytest.approx(value, abs=4 * errors[name] + 1e-12), (kind, name)
    closed = symbols(Experts(2, 1), sympy.Float(1.0), sympy.Float(1 - correlation)).routed.covariance
    error = gate_errors(Experts(2, 1), 1.0)[2]
    if correlation:
        assert abs(float(closed) - (1 + correlation) / 2) > 4 * error  # as if choices were linear in the correlation
