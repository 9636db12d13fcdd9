"""The reverse pass of experts, dropout and grouped heads is the adjoint of their forward pass; sites are not shared."""

import pytest
from test_reverse_pass import relative_mismatch, start

import propagate as pg
from propagate import Experts
from propagate.montecarlo.backend import choose_backend
from propagate.montecarlo.blocks import CALLS, MATRICES, block_of, read
from propagate.montecarlo.normals import Normals
from propagate.montecarlo.samplers import dense

BACKENDS = ["numpy", pytest.param("cupy", marks=pytest.mark.gpu)]
SIZE = {"depth": 3, "width": 12, "tokens": 5, "ffn_ratio": 2}
OPERATORS = {
    "experts": {"experts": Experts(5, 2)},
    "identity": {"experts": Experts(3, 2, softmax="before", identity=2, gain=1.5)},
    "shared, split": {"experts": Experts(3, 1, shared=2, split=3), "activation": "swiglu"},
    "dropout": {"dropout": 0.3},
    "all at once": {"experts": Experts(3, 2, identity=1, shared=1), "dropout": 0.5, "activation": "geglu"},
    "grouped": {"heads": 6, "key_value_heads": 2},
    "multi-query": {"heads": 4, "key_value_heads": 1},
    "multi-query, uniform": {"heads": 4, "key_value_heads": 1, "logit_std": 0.0},
    "grouped, uniform, causal": {"heads": 6, "key_value_heads": 3, "logit_std": 0.0, "causal": True},
}


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("placement", ["prenorm", "spannorm"])
@pytest.mark.parametrize("operator", OPERATORS)
def test_adjoint(operator: str, placement: str, name: str) -> None:
    backend = choose_backend(name)
    model = pg.Model(placement, **SIZE | {"heads": 3} | OPERATORS[operator])
    normals = Normals(backend, 7, range(2))

    def apply(x):
        return read(model.equations.block, block_of(model, backend, dense(normals), 2, normals), x)

    x = start(model, backend)
    # a small step, within which no choice of experts changes
    assert relative_mismatch(apply, x, backend, step=1e-6) < 1e-6
    assert relative_mismatch(apply, x, backend, scale=1.001, step=1e-6) > 1e-6


def test_no_site_is_used_twice() -> None:
    """Nor one beyond the block's own, with every operator at once."""
    used: list[int] = []

    def watched(seed: int):
        normals = Normals(choose_backend("numpy"), seed, range(1))

        def draw(site: int, shape: tuple[int, ...]):
            used.append(site)
            return normals(site, shape)

        return draw

    model = pg.Model("prenorm", heads=4, key_value_heads=2, **SIZE | OPERATORS["all at once"])
    backend, normals = choose_backend("numpy"), watched(0)
    for index in (1, 2):
        read(model.equations.block, block_of(model, backend, dense(normals), index, normals), start(model, backend))
    assert len(used) == len(set(used)) > 14
    assert all(CALLS * MATRICES <= site < 3 * CALLS * MATRICES for site in used)


def test_a_block_with_too_many_calls_is_refused() -> None:
    """Rather than let it share weights with the next block."""

    class ManyCalls(pg.Placement):
        calls: int = CALLS

        def block(self, x, block):
            for _ in range(self.calls):
                x = x + block.ffn(block.norm(x))
            return x

    def run(calls: int) -> None:
        pg.simulate(pg.Model(ManyCalls(calls), depth=1, width=8, tokens=2, heads=1), draws=2, backend="numpy")

    run(CALLS)
    with pytest.raises(pg.ModelError, match="at most 16"):
        run(CALLS + 1)
