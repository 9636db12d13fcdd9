"""First steps of experts and of their routers: theory against simulated networks."""

from typing import Any

import numpy as np
import pytest

import propagate as pg
from propagate.theory import uses
from propagate.theory.gaussian.routers import Routing
from propagate.theory.pairs.products import Part, Seen, Term
from propagate.theory.tokens.experts import _Gates, _of_vectors, _slopes
from propagate.theory.tokens.gram import Gram

SIZES: dict[str, Any] = {"depth": 1, "width": 128, "tokens": 4, "heads": 16, "ffn_ratio": 2.0}
FINE = pg.Experts(4, 1, softmax="before", shared=1, identity=2, split=2)
CASES = {
    "plain": pg.Model("prenorm", experts=pg.Experts(4, 2), **SIZES),
    "fine": pg.Model("spannorm", activation="swiglu", experts=FINE, **SIZES),
    "masked": pg.Model("postnorm", causal=True, experts=pg.Experts(4, 2, split=2), **SIZES),
}
START = pg.Start(covariance=0.3, grad_covariance=0.2)
OPTIMIZERS = {"sgd": pg.SGD(1e-3, decay=3.0), "sign": pg.Sign(1e-3), "adam": pg.Adam(1e-3, eps=0.05)}


def scores(case: str, optimizer: str, draws: int = 32) -> dict[str, float]:
    model, chosen = CASES[case], OPTIMIZERS[optimizer]
    said = pg.predict_step(model, chosen, START)
    seen = pg.simulate_steps(model, chosen, START, steps=1, draws=draws, seed=5, backend="numpy").sel(step=1)
    return {str(name): float(z) for name, z in pg.compare(said, seen).worst_z.to_series().items()}


@pytest.mark.few(3)
@pytest.mark.parametrize(
    ("case", "optimizer"),
    [
        ("fine", "sgd"),
        ("plain", "sign"),
        ("masked", "adam"),
        *(
            pytest.param(case, optimizer, marks=pytest.mark.slow)
            for case, optimizer in (("plain", "sgd"), ("plain", "adam"), ("fine", "sign"), ("masked", "sgd"))
        ),
    ],
)
def test_theory_and_networks_agree(case: str, optimizer: str) -> None:
    found = scores(case, optimizer)
    assert {"own_change[router]", "first_order_fall[ffn_out]"} <= set(found)
    assert max(found.values()) < 4, found


def test_experts_that_have_all_tokens_are_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every coordinate with its second moments as they are, and not 0 for the tokens that chose another expert."""
    monkeypatch.setattr(uses, "of_random_experts", lambda gates, draw: draw)
    found = scores("plain", "sign")
    assert min(found[f"own_change[{name}]"] for name in ("ffn_in", "ffn_out")) > 4
    assert found["own_change[value]"] < 4


@pytest.mark.parametrize("kind", Seen._fields[:4])
def test_what_the_candidates_receive_adds_up(kind: str) -> None:
    """To what the router sends back, with every kind of product a cotangent may have."""
    random = np.random.default_rng(0)

    def gram() -> Gram:
        return Gram.of((lambda a: a @ a.swapaxes(-1, -2))(random.standard_normal((2, 3, 3))))

    gates = random.dirichlet(np.ones(6), size=(2, 3)) * (random.random((2, 3, 6)) < 0.7)
    drawn = Routing(gates, random.random((2, 3, 6)) * gates, random.random((2, 3, 6)))
    own, slopes = drawn.gates[..., :4], drawn.own[..., :4]
    of_kept, routed, x, g = 0.3 * random.standard_normal((2, 3, 6)), gram(), gram(), gram()
    gates = _Gates(own, slopes, drawn.others, of_kept, routed, random.random((2, 3)), 0.25)
    left, right = (Part(random.random((2, 1)), gram()) for _ in range(2))
    seen = Seen(odds=0.25)._replace(**{kind: (Term(left, right, gram()),)})
    router = routed.product(Gram.of(_slopes(drawn, 4))).plus(x.product(_of_vectors(of_kept))).product(g)
    whole = router.matrix + gates.beyond(seen, g.matrix.shape)
    found = gates.by_candidate(g, x, seen)
    np.testing.assert_allclose(found.sum(axis=1), whole, atol=1e-12)
    assert np.abs(found.sum(axis=1) - router.matrix).max() > 1e-3


def test_muon_is_refused() -> None:
    with pytest.raises(pg.ModelError, match="Muon does not cover experts"):
        pg.predict_step(CASES["plain"], pg.Muon(0.1))
