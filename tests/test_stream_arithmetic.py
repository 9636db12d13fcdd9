"""A difference, a negative and a `sum` of streams mean what they say, to every witness that reads an equation."""

import numpy as np
import pytest

import propagate as pg


class WithDifferences(pg.Placement):
    """y = x - Attn(N x); a sum that begins with Python's 0, of a negative among others."""

    def block(self, x, block):
        y = x - block.attention(block.norm(x))
        return sum([-y, block.ffn(block.norm(y))])


class InSums(pg.Placement):
    """The same law: branches are symmetric, and so is the sign of all of it."""

    def block(self, x, block):
        y = x + block.attention(block.norm(x))
        return y + block.ffn(block.norm(y))


class Cancelling(pg.Placement):
    """x - x / 2: half of it, and not three halves in quadrature."""

    def block(self, x, block):
        return x - x / 2 + block.ffn(block.norm(x))


SIZE = {"depth": 2, "width": 128, "tokens": 4, "heads": 2}
START = {"covariance": 0.3, "grad_covariance": 0.2}


@pytest.mark.few(3)
@pytest.mark.parametrize("causal", [False, True], ids=["pairs", "tokens"])
@pytest.mark.parametrize(
    "include", [(), ("bias", "fluctuations"), ("param_grad", "calls")], ids=["", "finite", "calls"]
)
def test_theory(causal: bool, include: tuple[str, ...]) -> None:
    differing, summed = (
        pg.predict(pg.Model(kind(), causal=causal, **SIZE), include=include, **START)
        for kind in (WithDifferences, InSums)
    )
    if "bias" in include:  # from samples, which signs permute
        for name in ("variance", "deviation", "grad_variance"):
            error = 6 * np.hypot(differing[f"{name}_se"], summed[f"{name}_se"]) / summed[name] + 1e-12
            assert (abs(differing[f"{name}_bias"] - summed[f"{name}_bias"]) <= error).all(), name
            assert np.allclose(differing[f"{name}_spread"], summed[f"{name}_spread"], rtol=0.3), name
        return
    for name in summed.data_vars:
        assert np.allclose(differing[name], summed[name], rtol=1e-9, equal_nan=True), name


def test_theory_knows_that_what_is_taken_from_itself_is_gone() -> None:
    found = pg.predict(pg.Model(Cancelling(), **SIZE))
    assert np.allclose(found.variance, [1.0, 1.25, 1.3125])
    assert np.allclose(found.grad_variance[-1], 1)


def test_simulation_agrees_and_a_sum_in_place_of_a_difference_does_not() -> None:
    model = pg.Model(Cancelling(), **SIZE)
    seen = pg.simulate(model, draws=100, backend="numpy", **START)
    assert pg.compare(pg.predict(model, **START), seen).attrs["verdict"] != "disagrees"

    class Adding(pg.Placement):
        def block(self, x, block):
            return x + x / 2 + block.ffn(block.norm(x))

    assert pg.compare(pg.predict(pg.Model(Adding(), **SIZE), **START), seen).attrs["verdict"] == "disagrees"


def test_torch() -> None:
    import torch

    module = pg.build(pg.Model(Cancelling(), **SIZE | {"depth": 1}))
    x = torch.ones(1, 4, 128)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
        assert torch.allclose(module(x), x / 2)


def test_text_recursion_and_diagram() -> None:
    assert pg.equations(WithDifferences()) == "a = Attn(N(x)); x' = -x + a + FFN(N(x - a))"
    assert pg.equations(Cancelling()) == "x' = x - 0.5 x + FFN(N(x))"
    steps = [
        pg.recursion(kind(), activation="linear").lambdify(T=4, g_a=1.0, g_f=1.0) for kind in (WithDifferences, InSums)
    ]
    assert steps[0](1.0, 0.3, 1.0, 0.2) == pytest.approx(steps[1](1.0, 0.3, 1.0, 0.2))
    with pytest.raises(pg.ModelError, match="add a stream, got 1"):
        pg.predict(pg.Model(type("AddsOne", (pg.Placement,), {"block": lambda self, x, block: 1 + x})(), **SIZE))
