"""`propagate.testing.assert_adjoint`: right reverse passes are let through, wrong ones and missing ones are not."""

from dataclasses import dataclass

import pytest

import propagate as pg
from propagate import FFN, Attention, Experts
from propagate.testing import assert_adjoint

LIKE = pg.Model("prenorm", depth=1, width=16, tokens=4, heads=2, norm=pg.Norm("layer", eps=0.1))
KINDS = [
    Attention(heads=2, head_size=6, causal=True, rope=10.0, normed=("key", "heads"), value_gain=1.3),
    FFN("swiglu", gate_gain=0.7, normed=("hidden",)),
    Experts(4, 2, shared=1, identity=1, softmax="before"),
]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.call)
@pytest.mark.parametrize("like", [None, LIKE], ids=["small", "like"])
def test_what_the_package_covers_passes(kind: pg.Sublayer, like: pg.Model | None) -> None:
    assert_adjoint(kind, like)


@dataclass(frozen=True)
class Mean(pg.Sublayer):
    """Every token reads the mean token."""

    wrong: float = 0.0


@pg.montecarlo.apply.register
def _(mean: Mean, x, block):
    y, pull = block.matrix(x.mean(axis=1, keepdims=True), block.width)
    everywhere = block.xp.broadcast_to

    def back(g):
        return everywhere(pull(g.sum(axis=1, keepdims=True)) * (1 + mean.wrong), x.shape) / x.shape[1]

    return everywhere(y, x.shape), back


@pytest.mark.parametrize("wrong", [1e-3, -1.0, float("nan")])
def test_a_wrong_pull_does_not(wrong: float) -> None:
    assert_adjoint(Mean())
    with pytest.raises(AssertionError, match="Mean: the pull is not the adjoint"):
        assert_adjoint(Mean(wrong))


def test_what_is_not_covered_is_named() -> None:
    @dataclass(frozen=True)
    class Absent(pg.Sublayer):
        """Nothing is registered for it."""

    with pytest.raises(pg.ModelError, match="simulation does not cover Absent"):
        assert_adjoint(Absent())
