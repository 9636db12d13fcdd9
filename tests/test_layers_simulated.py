"""Networks whose blocks differ, and all that only a description can say, in the simulation."""

import pickle
from typing import Any

import numpy as np
import pytest
from test_parameter_gradients import Dense
from test_reverse_pass import relative_mismatch, start

import propagate as pg
from propagate import FFN, Attention, Experts, Norm
from propagate.montecarlo.backend import Backend, choose_backend
from propagate.montecarlo.blocks import block_of, read
from propagate.montecarlo.normals import Normals
from propagate.montecarlo.operators import output_rms
from propagate.montecarlo.parameter_gradients import Norms
from propagate.montecarlo.samplers import dense

HOST = choose_backend("numpy")
BACKENDS = ["numpy", pytest.param("cupy", marks=pytest.mark.gpu)]


class Described(pg.Placement):
    """Sublayers that the placement describes itself, a difference and a negative."""

    def block(self, x, block):
        y = x - block.apply(FFN("geglu", hidden=10, gate_gain=1.7, normed=("hidden",)), block.norm(x))
        return -y + block.apply(Attention(heads=2, head_size=5, query_gain=0.6, causal=True), y, normed=("key",))


LOCAL, WHOLE = Attention(heads=3, causal=True, window=2, rope=10.0), Attention(heads=3, causal=True)
WIDE = Attention(heads=3, head_size=6, key_value_heads=1, query_gain=1.5, key_gain=0.7, value_gain=1.2, out_gain=0.8)
GATED = FFN("swiglu", ratio=1.5, in_gain=0.9, gate_gain=1.7, out_gain=1.1)
OWN = Experts(4, 2, shared=2, identity=1, split=2, ffn=FFN("swiglu", hidden=6, gate_gain=0.6, out_gain=0.9))
MODELS: dict[str, dict[str, Any]] = {
    "windows": {"placement": "sandwichnorm", "layers": lambda i: {"attention": WHOLE if i % 2 == 0 else LOCAL}},
    "first dense": {"placement": "prenorm", "experts": Experts(5, 2), "layers": {1: {"experts": None}}},
    "wide heads": {"placement": "spannorm", "attention": WIDE},
    "wide heads, uniform": {
        "placement": "postnorm",
        "attention": Attention(heads=2, head_size=9, logit_std=0.0, causal=True),
        "normed": ("value", "heads"),
    },
    "gate": {"placement": "postnorm", "ffn": GATED, "norm": Norm("layer", eps=0.3)},
    "eps inside": {"placement": "hybridnorm", "norm": Norm("rms", eps=0.5), "normed": ("hidden",)},
    "own experts": {"placement": "olmo2", "experts": OWN},
    "shortcut": {"placement": "scmoe", "experts": OWN, "layers": [{}, {"norm": "layer"}]},
    "described": {"placement": Described(), "scaling": pg.ScaleInit(0.5)},
}


def model_of(name: str) -> pg.Model:
    heads = {} if "attention" in MODELS[name] else {"heads": 3}
    return pg.Model(**{"depth": 2, "width": 12, "tokens": 5} | heads | MODELS[name])


def block_at(model: pg.Model, index: int, backend: Backend = HOST, sampler: Any = None):
    """A block as a function of its input: the same weights at every call."""
    normals = Normals(backend, 7, range(2))

    def apply(x):
        block = block_of(model, backend, sampler or dense(normals), index, normals)
        return read(model.equations.block, block, x)

    return apply


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("case", MODELS)
def test_the_reverse_pass_is_the_adjoint(case: str, name: str) -> None:
    model, backend = model_of(case), choose_backend(name)
    for index in (1, 2):
        block, x = block_at(model, index, backend), start(model, backend)
        # a small step, within which no choice of experts and no kink of a ReLU is crossed
        assert relative_mismatch(block, x, backend, step=1e-6) < 1e-6
        assert relative_mismatch(block, x, backend, scale=1.001, step=1e-6) > 1e-6


@pytest.mark.parametrize("case", ["windows", "first dense"])
def test_each_block_is_that_of_a_network_all_of_whose_blocks_are_made_so(case: str) -> None:
    size = {"depth": 2, "width": 12, "tokens": 5}
    alike = {
        "windows": [{"attention": LOCAL}, {"attention": WHOLE}],
        "first dense": [{"heads": 3}, {"heads": 3, "experts": Experts(5, 2)}],
    }[case]
    networks = [pg.Model(MODELS[case]["placement"], **size, **own) for own in alike]
    x = start(networks[0], HOST)
    for index in (1, 2):
        found = block_at(model_of(case), index)(x)[0]
        same = [np.array_equal(found, block_at(other, index)(x)[0]) for other in networks]
        assert same == [index == 1, index == 2]


def matrices_of(x: Any, *fans: tuple[int, int], index: int = 2, first: int = 0) -> list[Any]:
    """Those that a block draws from `first` on, (draws, fan_in, fan_out), entries of variance 1 / fan_in."""
    normals, site = Normals(HOST, 7, range(len(x))), index * 64 + first
    return [normals(site + i, fan) / np.sqrt(fan[0]) for i, fan in enumerate(fans)]


class Alone(pg.Placement):
    """One sublayer and nothing else."""

    which: str

    def block(self, x, block):
        return getattr(block, self.which)(x)


def test_a_gate_has_a_gain_of_its_own() -> None:
    model = pg.Model(Alone("ffn"), depth=2, width=12, tokens=5, heads=3, ffn=GATED)
    x = start(model, HOST)
    read_in, write = matrices_of(x, (12, 36), (18, 12))
    gate, value = np.split(0.9 * x @ read_in, 2, axis=-1)

    def said(gain: float):
        z = gain * gate
        return 1.1 / output_rms("swiglu") * (z / (1 + np.exp(-z)) * value) @ write

    found = block_at(model, 2)(x)[0]
    assert np.allclose(found, said(1.7), rtol=1e-12)
    assert not np.allclose(found, said(1.0), rtol=1e-2)


@pytest.mark.parametrize("shared", [1, 3])
def test_heads_of_any_size(shared: int) -> None:
    kind = Attention(
        heads=3, head_size=6, key_value_heads=shared, logit_std=0.8, query_gain=1.5, key_gain=0.7, value_gain=1.2
    )
    model = pg.Model(Alone("attention"), depth=2, width=12, tokens=5, attention=kind)
    x = start(model, HOST)
    project, write = matrices_of(x, (12, 18 + 12 * shared), (18, 12))

    def heads(part):
        split = part.reshape(2, 5, -1, 6).swapaxes(1, 2)
        return np.repeat(split, 3 // split.shape[1], axis=1)

    def said(query_gain: float):
        query, key, value = map(heads, np.split(x @ project, (18, 18 + 6 * shared), axis=-1))
        logits = 0.8 * query_gain * 0.7 * query @ key.swapaxes(-1, -2) / np.sqrt(6)
        weights = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
        return 1.2 * (weights @ value).swapaxes(1, 2).reshape(2, 5, 18) @ write

    found = block_at(model, 2)(x)[0]
    assert np.allclose(found, said(1.5), rtol=1e-12)
    assert not np.allclose(found, said(1.0), rtol=1e-2)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["rms", "layer"])
def test_eps(kind: str, backend: str) -> None:
    here = choose_backend(backend)
    model = pg.Model(Alone("norm"), depth=2, width=12, tokens=5, heads=3, norm=Norm(kind, eps=0.5))
    x = start(model, here)
    host = here.to_host(x)
    less = host - host.mean(axis=-1, keepdims=True) * (kind == "layer")
    found = here.to_host(block_at(model, 2, here)(x)[0])
    assert np.allclose(found, less / np.sqrt((less**2).mean(axis=-1, keepdims=True) + 0.5), rtol=1e-12)
    assert not np.allclose(found, less / np.sqrt((less**2).mean(axis=-1, keepdims=True)), rtol=1e-2)


def test_a_query_s_gain_times_its_inverse_is_none_and_alone_it_scales_the_logits() -> None:
    def run(**fields: float):
        model = pg.Model(Alone("attention"), depth=2, width=12, tokens=5, attention=Attention(heads=3, **fields))
        return block_at(model, 2)(start(model, HOST))[0]

    assert np.allclose(run(query_gain=2.0, key_gain=0.5), run(), rtol=1e-12)
    assert np.allclose(run(query_gain=2.0), run(logit_std=2.0), rtol=1e-12)
    assert not np.allclose(run(query_gain=2.0), run(), rtol=1e-2)


FFNS = {
    "ffn": ({"ffn": FFN("swiglu", hidden=3, in_gain=0.9, gate_gain=1.7, out_gain=1.1)}, {}),
    "experts": ({"experts": Experts(2, 1, split=3, ffn=FFN("geglu", hidden=3, in_gain=0.9, gate_gain=0.6))}, {}),
    "attention": (
        {"attention": Attention(heads=2, head_size=3, query_gain=1.5, key_gain=0.7, value_gain=1.3, out_gain=0.8)},
        {"query": 1.5, "key": 0.7, "value": 1.3, "attention_out": 0.8},
    ),
}


@pytest.mark.parametrize("which", FFNS)
def test_gradients_of_matrices_are_by_what_the_network_stores(which: str) -> None:
    """Central differences by all entries; a stored entry is its gain times what is drawn."""
    fields, stored = FFNS[which]
    model = pg.Model(Alone(which), depth=1, width=4, tokens=3, **{"heads": 2} | fields)
    kind = getattr(model.at(1), which)
    if which != "attention":
        ffn = kind.expert if which == "experts" else kind
        stored = {"ffn_in": 0.9, "ffn_gate": 0.9 * ffn.gate_gain, "router": 1.0}
        # two experts cut into three: six of one unit each, against three units of an uncut one
        stored["ffn_out"] = ffn.out_gain / output_rms(ffn.activation) * (np.sqrt(6 / 3) if which == "experts" else 1)
    names = {
        "attention": [["query"] * 6 + ["key"] * 6 + ["value"] * 6, ["attention_out"] * 4],
        "ffn": [["ffn_gate"] * 3 + ["ffn_in"] * 3, ["ffn_out"] * 4],
        "experts": [["router"] * 6, ["ffn_gate", "ffn_in"] * 6, ["ffn_out"] * 4],
    }[which]
    random = np.random.default_rng(2)
    x, g = random.standard_normal((1, 3, 4)), random.standard_normal((1, 3, 4))

    def loss(sampler: Any) -> float:
        return float((read(model.equations.block, block_of(model, HOST, sampler, 1), x)[0] * g).sum())

    sampler, norms, squares, step = Dense(), Norms(), {}, 1e-5
    read(model.equations.block, block_of(model, HOST, sampler, 1, norms=norms), x)[1](g)
    for (site, (rows, columns)), of_site in zip(sampler.shapes.items(), names, strict=True):
        for row, column in np.ndindex(rows, columns):
            ends = [loss(Dense(site, (row, column), sign * step)) for sign in (1, -1)]
            square = ((ends[0] - ends[1]) / (2 * step)) ** 2
            squares[of_site[column]] = squares.get(of_site[column], 0.0) + square
    assert set(norms) == set(squares)
    for name, square in squares.items():
        assert float(norms[name][0]) == pytest.approx(square / stored[name] ** 2, rel=1e-5), name


def test_tables_of_networks_whose_blocks_differ() -> None:
    """Columns of matrices that only some blocks have are 0 in the others; batches and samplers take all blocks in."""
    model = model_of("shortcut")
    first = pg.Model("scmoe", depth=2, width=12, tokens=5, heads=3, experts=OWN)
    assert pg.simulate(first, draws=2, include={"param_grad"}).matrix.values.tolist() == [
        *("query", "key", "value", "attention_out", "router", "ffn_gate", "ffn_in", "ffn_out"),
        *("shared_gate", "shared_in", "shared_out"),
    ]
    run = {"draws": 4, "seed": 1, "backend": "numpy", "include": {"param_grad"}}
    at_once, twice = pg.simulate(model, **run), pg.simulate(model, memory=1, **run)
    assert at_once.equals(twice)
    dense_first = pg.simulate(model_of("first dense"), **run).param_grad
    assert (dense_first.sel(matrix="router", block=[1, 2]) > 0).values.tolist() == [False, True]
    windows = pg.simulate(model_of("windows"), **run)
    assert "token_variance" in windows
    assert (windows.param_grad[1:] > 0).all()


def test_a_network_whose_blocks_are_told_by_a_function_can_be_sent_to_a_worker() -> None:
    model = model_of("windows")
    sent = pickle.loads(pickle.dumps(model))
    assert [sent.at(index) for index in range(4)] == [model.at(index) for index in range(4)]
    assert sent.at(1) != sent.at(2)
    run = {"draws": 3, "seed": 1, "backend": "numpy"}
    assert pg.simulate(sent, **run).equals(pg.simulate(model, **run))


def test_a_wide_head_or_a_narrow_expert_decides_the_sampler() -> None:
    size = {"placement": "prenorm", "depth": 2, "width": 128, "tokens": 8}
    chosen = {
        "plain": pg.Model(**size),
        "narrow heads": pg.Model(**size, attention=Attention(heads=4, head_size=4)),
        "narrow experts": pg.Model(**size, layers={2: {"experts": Experts(4, ffn=FFN(hidden=8))}}),
        "described": pg.Model(**size | {"placement": Described()}),
    }
    found = {name: pg.simulate(model, draws=2, backend="numpy").attrs["sampler"] for name, model in chosen.items()}
    assert found == {name: "weightless" if name == "plain" else "dense" for name in chosen}


def test_single_precision_stays_single() -> None:
    here = choose_backend("numpy", "float32")
    for case in MODELS:
        model = model_of(case)
        y, pull = block_at(model, 2, here)(start(model, here))
        assert y.dtype == pull(y).dtype == np.float32, case


def test_experts_that_a_model_has_not_are_asked_for() -> None:
    with pytest.raises(
        pg.ModelError, match=r"experts must be given where the placement calls block\.experts, got None"
    ):
        pg.simulate(pg.Model("scmoe", depth=1, width=12, tokens=2, heads=3), draws=2)
