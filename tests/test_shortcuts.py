"""LongCat-Flash's layer in every placement of norms: theory, simulation and torch agree, and reject its neighbours."""

import dataclasses
from functools import cache

import pytest
import xarray as xr
from test_torch_autograd import both, mismatch

import propagate as pg
from propagate import FFN, Experts
from propagate.cells import Settings, cells_of
from propagate.placement import SHIPPED
from propagate.shortcuts import ScMoE, ScMoESpan, path_correlation

MIXTURE = Experts(8, top_k=4, softmax="before", identity=4, gain=4.0, ffn=FFN("swiglu", hidden=64))
SIZE = {"depth": 2, "width": 128, "tokens": 4, "heads": 4, "activation": "swiglu", "ffn_ratio": 1.0}
START = {"covariance": 0.3, "grad_covariance": 0.2}
NAMES = sorted(name for name, kind in pg.placements().items() if kind.__module__ == SHIPPED[1])


class Late(pg.Placement):
    """A wrong ScMoE: the mixture reads what the second FFN reads."""

    def block(self, x, block):
        a = x + block.attention(block.norm(x))
        b = a + block.ffn(block.norm(a))
        c = b + block.attention(block.norm(b))
        u = block.norm(c)
        return c + block.ffn(u) + block.experts(u)

    def readout(self, x, block):
        return block.norm(x)


class Outside(pg.Placement):
    """A wrong ScMoESpan: the mixture joins behind the last norm."""

    def block(self, x, block):
        u = block.norm(x + block.attention(block.norm(x) if block.first else x))
        b = block.norm(x + block.ffn(u))
        c = block.norm(b + block.attention(b))
        return block.norm(b + block.ffn(c)) + block.experts(u)


def network(placement: str | pg.Placement, **fields) -> pg.Model:
    return pg.Model(placement, experts=MIXTURE, **SIZE | fields)


@cache
def measured(name: str, sampler: str = "weightless", draws: int = 100, **fields) -> xr.Dataset:
    model = network(name, **fields)
    seed = NAMES.index(name)
    return pg.simulate(model, draws=draws, seed=seed, backend="numpy", sampler=sampler, **START)


def judged(placement: str | pg.Placement, seen: xr.Dataset, **fields) -> xr.Dataset:
    return pg.compare(pg.predict(network(placement, **fields), **START), seen)


@pytest.mark.few(1)
@pytest.mark.parametrize("name", NAMES)
def test_theory_and_simulation_agree(name: str) -> None:
    found = judged(name, measured(name))
    assert found.attrs["verdict"] != "disagrees", found.worst_z.to_series().to_dict()
    assert 0.05 < float(found.worst_z.max()) < 4


def test_they_agree_with_matrices_and_a_mask() -> None:
    fields = {"causal": True, "norm": "layer", "scaling": pg.ScaleInit(0.5)}
    found = judged("scmoespan", measured("scmoespan", "dense", 60, **fields), **fields)
    assert found.attrs["verdict"] != "disagrees", found.worst_z.to_series().to_dict()


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("scmoe", "scmoeperi"),
        ("scmoe", Late()),
        ("scmoespan", "scmoepost"),
        ("scmoespan", Outside()),
    ],
)
def test_neighbours_are_rejected(name: str, wrong: str | pg.Placement) -> None:
    assert judged(wrong, measured(name)).attrs["verdict"] == "disagrees"


@pytest.mark.slow
def test_the_two_spans_are_told_apart() -> None:
    """The longer skip keeps more of the differences between tokens."""
    fields = {"depth": 4, "width": 256, "logit_std": 0.0}
    whole = ScMoESpan(whole=True)
    seen = pg.simulate(network(whole, **fields), draws=300, seed=9, backend="numpy", sampler="weightless", **START)
    assert judged(whole, seen, **fields).attrs["verdict"] != "disagrees"
    assert judged(ScMoESpan(), seen, **fields).attrs["verdict"] == "disagrees"


@pytest.mark.few(2)
@pytest.mark.parametrize("name", NAMES)
def test_the_reverse_pass_is_that_of_torch(name: str) -> None:
    mixture = dataclasses.replace(MIXTURE, ffn=None)
    model = pg.Model(name, depth=2, width=18, tokens=5, heads=3, ffn_ratio=1.5, activation="swiglu", experts=mixture)
    (y, back), (output, grad) = both(model)
    assert mismatch(output, y) < 1e-12
    assert mismatch(grad, back) < 1e-10


def test_paths_are_correlated_by_what_identity_experts_hand_on() -> None:
    mixture = dataclasses.replace(MIXTURE, count=4, identity=8, gain=8.0)
    model = pg.Model("scmoepaths", experts=mixture, **SIZE | {"depth": 1, "width": 256})
    predicted = pg.predict(model, **START)
    seen = pg.simulate(model, draws=200, seed=3, backend="numpy", sampler="weightless", **START)
    said, found = path_correlation(predicted), path_correlation(seen)
    for way in ("forward", "backward"):
        assert said[way] > 0.1
        assert found[way] == pytest.approx(said[way], abs=0.05)
    assert pg.compare(predicted, seen).attrs["verdict"] != "disagrees"
    wrong = predicted.copy(deep=True)  # as if the paths were uncorrelated
    wrong.variance[-1, 2] = wrong.variance[-1, :2].sum()
    wrong.grad_variance[0, 2] = wrong.grad_variance[0, :2].sum()
    verdict = pg.compare(wrong, seen).verdict
    assert verdict.sel(quantity=["variance", "grad_variance"]).values.tolist() == ["disagrees"] * 2


def test_without_identity_experts_paths_are_uncorrelated() -> None:
    mixture = dataclasses.replace(MIXTURE, identity=0)
    found = path_correlation(pg.predict(pg.Model("scmoepaths", experts=mixture, **SIZE | {"depth": 1}), **START))
    assert found == pytest.approx({"forward": 0.0, "backward": 0.0}, abs=1e-12)


def test_paths_are_one_layer_of_the_network() -> None:
    """From the first parting on, what leaves the last layer is ScMoE's without its first attention."""

    class Behind(ScMoE):
        def block(self, x, block):
            a = x if block.first else x + block.attention(block.norm(x))
            u = block.norm(a)
            s = block.experts(u)
            b = a + block.ffn(u)
            c = b + block.attention(block.norm(b))
            return c + block.ffn(block.norm(c)) + s

    mixture = dataclasses.replace(MIXTURE, count=1, identity=0, top_k=1)  # nothing is drawn, with uniform attention
    one, two = (
        pg.predict(pg.Model(kind, experts=mixture, logit_std=0.0, **SIZE), **START) for kind in ("scmoepaths", Behind())
    )
    for name in ("variance", "deviation"):
        assert float(one[name][-1, 2]) == pytest.approx(float(two[name][-1]), rel=1e-9)
    assert float(one.grad_variance[0, 2]) == pytest.approx(float(two.grad_variance[0]), rel=1e-9)


def test_a_table_of_one_stream_has_no_paths() -> None:
    with pytest.raises(pg.ModelError, match="table must have two streams"):
        path_correlation(pg.predict(pg.Model("prenorm", depth=1)))


def test_verify_has_a_mixture_for_each() -> None:
    cells = cells_of([*NAMES, "prenorm"], ["relu"], ["causal"], ["none"])
    mixtures = [cell.model(Settings()).experts is not None for cell in cells]
    assert mixtures == [True] * len(NAMES) + [False]


@pytest.mark.slow
def test_their_recursion_has_the_mixture_beside() -> None:
    found = pg.recursion("scmoe", experts=Experts(8, 2))
    assert "a_2 = g_f**2*gate_routed(1, 1)\n" in str(found)
    assert "p_3 = (b_1 + p)/(a_1 + q)\n" in str(found)  # the first FFN reads what the mixture reads, p_2
    assert str(found.variance) == "a_1 + a_2 + a_3 + a_4 + a_5 + q"
