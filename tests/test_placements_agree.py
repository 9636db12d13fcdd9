"""Every placement of the package: its simulation agrees with its theory, and rejects a slightly wrong placement's."""

import itertools
from functools import cache

import pytest
import xarray as xr

import propagate as pg
from propagate.placements import KEEL, NGPT, DeepScaleLM, DyT, LayerScale, MixLN, ReZero, TFixup

PLACEMENTS = {
    name: ReZero(a=0.5) if name == "rezero" else pg.placement(name)
    for name, kind in pg.placements().items()
    if kind.__module__ == ReZero.__module__
}
ELSEWHERE = ("prenorm", "postnorm", "spannorm", "periln", "deepnorm", "layernormscaling")  # tests/test_agreement.py
SIZE = {"depth": 4, "width": 96, "tokens": 8, "heads": 2}
NEW = sorted(set(PLACEMENTS) - set(ELSEWHERE))
TURNS = dict(
    zip(NEW, itertools.cycle(itertools.product(("relu", "gelu", "swiglu"), ("rms", "layer"), (0.0, 1.0))), strict=False)
)


def network(name: str) -> tuple[pg.Model, dict[str, float]]:
    """Activations, norms and cotangents take turns."""
    activation, norm, shared = TURNS[name]
    model = pg.Model(PLACEMENTS[name], activation=activation, norm=norm, **SIZE)
    return model, {"covariance": 0.3, "grad_covariance": shared}


@cache
def measured(name: str) -> xr.Dataset:
    model, start = network(name)
    return pg.simulate(model, draws=64, seed=NEW.index(name), backend="numpy", **start)


def test_the_registry_is_whole() -> None:
    """Each has its agreement with theory here or elsewhere; names are also written as in the papers."""
    assert set(ELSEWHERE) | set(NEW) == set(PLACEMENTS) >= set(WRONG)
    assert pg.placement("Sandwich-LN") == pg.placement("sandwichnorm")


@pytest.mark.few(6)
@pytest.mark.parametrize("name", NEW)
def test_theory_and_simulation_agree(name: str) -> None:
    model, start = network(name)
    judged = pg.compare(pg.predict(model, **start), measured(name))
    assert judged.attrs["verdict"] != "disagrees", judged.worst_z.to_series().to_dict()
    assert float(judged.worst_z.max()) > 0.1  # something was measured


class OnlyKeyNormed(pg.Placement):
    """HybridNorm with keys alone normed."""

    def block(self, x, block):
        y = block.norm(x + block.attention(x, normed=("key",)))
        return y + block.ffn(y)


class SubLNOfNothing(pg.Placement):
    """Sub-LN without its inner norms."""

    def block(self, x, block):
        x = x + block.attention(block.norm(x))
        return x + block.ffn(block.norm(x))

    def gains(self, index, depth):
        return pg.placement("subln").gains(index, depth)


class UnscaledPostNorm(pg.Placement):
    """Admin with every skip 1, and the gains of DS-Init without its falling with depth."""

    def block(self, x, block):
        return pg.placement("postnorm").block(x, block)


class OutputNorm(pg.Placement):
    """OLMo2 without the norms of queries and keys."""

    def block(self, x, block):
        x = x + block.norm(block.attention(x))
        return x + block.norm(block.ffn(x))


class LateResiDual(pg.Placement):
    """ResiDual whose second stream misses the FFN."""

    def embed(self, x, block):
        return x, x

    def block(self, state, block):
        x, y = state
        a = block.attention(x)
        x, y = block.norm(x + a), y + a
        return block.norm(x + block.ffn(x)), y

    def readout(self, state, block):
        return state[0] + block.norm(state[1])


class TwoFreshBranches(pg.Placement):
    """ResiDual whose streams get different branches, so that they are less correlated than they are."""

    def embed(self, x, block):
        return x, x

    def block(self, state, block):
        x, y = state
        y = y + block.attention(x)
        x = block.norm(x + block.attention(x))
        return block.norm(x + block.ffn(x)), y + block.ffn(x)

    def readout(self, state, block):
        return state[0] + block.norm(state[1])


WRONG = {
    "sandwichnorm": "prenorm",
    "admin": UnscaledPostNorm(),
    "b2t": UnscaledPostNorm(),
    "deepscalelm": DeepScaleLM(k=1.0),
    "dsinit": UnscaledPostNorm(),
    "dyt": DyT(alpha=0.8),
    "hybridnorm": OnlyKeyNormed(),
    "keel": KEEL(alpha=4.0),
    "layerscale": LayerScale(scale=0.3),
    "mixln": MixLN(fraction=0.5),
    "ngpt": NGPT(alpha=0.1),
    "olmo2": OutputNorm(),
    "parallelprenorm": DyT(alpha=2.0),
    "residual": TwoFreshBranches(),
    "rezero": ReZero(a=0.4),
    "siamesenorm": pg.placement("residual"),
    "subln": SubLNOfNothing(),
    "tfixup": TFixup(factor=0.9),
}


@pytest.mark.few(3)
@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name == "olmo2")) for name in WRONG])
def test_a_neighbour_is_rejected(name: str) -> None:
    model, start = network(name)
    wrong = pg.Model(WRONG[name], activation=model.activation, norm=model.norm, **SIZE)
    assert pg.compare(pg.predict(wrong, **start), measured(name)).attrs["verdict"] == "disagrees"


def test_a_stream_left_out_is_rejected() -> None:
    """Only the second stream is wrong: the comparison looks at each."""
    model = pg.Model("residual", **SIZE)
    seen = pg.simulate(model, draws=64, seed=1, backend="numpy")
    judged = pg.compare(pg.predict(pg.Model(LateResiDual(), **SIZE)), seen)
    worst = abs(judged.z.sel(quantity="variance")).max("block")
    assert float(worst.sel(stream="1")) < 4 < float(worst.sel(stream="2"))


@pytest.mark.few(3)
@pytest.mark.parametrize(
    ("normed", "norm"),
    [
        (("query", "key"), "rms"),
        (("value",), "layer"),
        (("heads",), "rms"),
        (("hidden",), "layer"),
        (("key", "heads", "hidden"), "rms"),
        (("key", "heads", "hidden"), "layer"),
    ],
)
def test_inner_norms(normed: tuple[str, ...], norm: str) -> None:
    """In a stack whose stream grows, so that an inner norm matters; without it the theory is rejected."""
    size = {"depth": 3, "width": 128, "tokens": 8, "heads": 2, "norm": norm, "activation": "relu", "logit_std": 0.7}
    model = pg.Model("tfixup", normed=normed, **size)
    start = {"variance": 2.0, "covariance": 0.8}
    seen = pg.simulate(model, draws=150, seed=2, backend="numpy", **start)
    judged = pg.compare(pg.predict(model, **start), seen)
    assert judged.attrs["verdict"] != "disagrees", judged.worst_z.to_series().to_dict()
    assert pg.compare(pg.predict(pg.Model("tfixup", **size), **start), seen).attrs["verdict"] == "disagrees"


def test_layer_norm_of_the_hidden_units_removes_their_mean() -> None:
    """An RMSNorm leaves the mean of ReLU's output, which all tokens share; a theory of one is rejected by the other."""
    size = {"depth": 2, "width": 128, "tokens": 8, "heads": 2, "activation": "relu"}
    layer, rms = (pg.Model("subln", norm=norm, **size) for norm in ("layer", "rms"))
    seen = pg.simulate(layer, draws=150, seed=2, backend="numpy")
    assert pg.compare(pg.predict(layer), seen).attrs["verdict"] != "disagrees"
    judged = pg.compare(pg.predict(rms), seen)
    assert judged.verdict.sel(quantity="deviation") == "disagrees"
