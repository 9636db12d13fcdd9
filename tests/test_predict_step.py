"""The theory of the first step against dense networks whose steps are taken entry by entry."""

import dataclasses
import math
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
import xarray as xr
from brute_steps import brute, of_matrix
from own_placements import OWN

import propagate as pg
from proofs.propositions import p13_one_step as p13
from proofs.vocabulary import step_of
from propagate.theory import predict_step as verb
from propagate.theory import stacked, walks
from propagate.theory.gaussian.signs import mean_root, soft_sign_averages
from propagate.theory.pairs.moments import Moments
from propagate.theory.tokens.gram import Gram
from propagate.theory.tokens.modes import modes
from propagate.theory.updates import Met, step
from propagate.theory.uses import Use

OPTIMIZERS = {"sgd": pg.SGD(1e-3), "muon": pg.Muon(0.1), "sign": pg.Sign(1e-3), "adam": pg.Adam(1e-3, eps=0.05)}
START = pg.Start(covariance=0.3, grad_covariance=0.2)
SIZES: dict[str, Any] = {"depth": 2, "width": 128, "tokens": 4, "heads": 16, "ffn_ratio": 2.0}
CASES: dict[str, pg.Model] = {
    "gates": pg.Model("prenorm", activation="swiglu", **SIZES),
    "kinks": pg.Model("postnorm", activation="relu", **SIZES),
    "masked": pg.Model("spannorm", activation="gelu", causal=True, rope=100.0, key_value_heads=4, **SIZES),
    "normed": pg.Model("hybridnorm", activation="geglu", normed=("heads", "hidden"), norm="layer", **SIZES),
    "two streams": pg.Model("residual", activation="tanh", logit_std=0.0, **SIZES),
}
LONGER = {name: [pytest.mark.slow] * (name in ("gates", "normed")) for name in CASES}


@lru_cache(maxsize=len(CASES))
def seen(name: str) -> dict[str, xr.Dataset]:
    return brute(CASES[name], OPTIMIZERS, START, draws=24)


def scores(said: xr.Dataset, measured: xr.Dataset) -> dict[str, float]:
    return {str(name): float(z) for name, z in pg.compare(said, measured).worst_z.to_series().items()}


@pytest.mark.parametrize("name", [pytest.param(name, marks=LONGER[name]) for name in CASES])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_theory_and_networks_agree(name: str, optimizer: str) -> None:
    said = pg.predict_step(CASES[name], OPTIMIZERS[optimizer], START)
    measured = seen(name)[optimizer]
    found = scores(said, measured)
    assert max(found.values()) < 4, found
    assert list(said.matrix.to_numpy()) == list(measured.matrix.to_numpy())
    assert len(found) == 4 * said.sizes["matrix"]
    error = np.abs(np.log(measured.own_change / said.own_change)[1:])
    assert float(error.max()) < 0.25  # whatever is allowed


def wrong(monkeypatch: pytest.MonkeyPatch, case: str, optimizer: str, change: Any) -> dict[str, float]:
    """Scores of a theory in which every use of a matrix is changed."""
    right = verb.uses_of_block
    with monkeypatch.context() as patched:
        patched.setattr(verb, "uses_of_block", lambda *args: [(name, change(name, use)) for name, use in right(*args)])
        said = pg.predict_step(CASES[case], OPTIMIZERS[optimizer], START)
    return scores(said, seen(case)[optimizer])


def test_sgd_without_the_cotangents_gram_matrix_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens whose cotangents are taken for uncorrelated, of the size that they have."""

    def apart(name: str, use: Any) -> Any:
        size = math.sqrt(np.mean(use.g.variance))
        return dataclasses.replace(use, g=Moments(1.0, 1.0).times(size), balanced=False)

    found = wrong(monkeypatch, "kinks", "sgd", apart)
    assert min(found[f"own_change[{name}]"] for name in ("value", "attention_out", "ffn_out", "ffn_in")) > 4, found


@pytest.mark.parametrize(
    ("case", "optimizer"), [("kinks", "sign"), pytest.param("gates", "adam", marks=pytest.mark.slow)]
)
def test_the_law_of_gaussian_inputs_behind_an_activation_is_rejected(
    monkeypatch: pytest.MonkeyPatch, case: str, optimizer: str
) -> None:
    def gaussian(name: str, use: Any) -> Any:
        return dataclasses.replace(use, draw_x=None, draw_g=None)

    found = wrong(monkeypatch, case, optimizer, gaussian)
    assert found["own_change[ffn_out]"] > 4, found


@pytest.mark.parametrize("optimizer", ["sgd", "muon", "sign"])
def test_a_change_that_is_independent_between_tokens_is_rejected(optimizer: str) -> None:
    """Off its diagonal the Gram matrix of the change is judged too."""
    said = pg.predict_step(CASES["kinks"], OPTIMIZERS[optimizer], START)
    found = scores(said.assign(own_covariance=0 * said.own_covariance), seen("kinks")[optimizer])
    assert min(found[f"own_covariance[{name}]"] for name in ("value", "attention_out", "ffn_in", "ffn_out")) > 4, found


def test_the_gram_matrix_of_a_masked_networks_change_is_that_of_its_formula() -> None:
    """Of tokens that differ, the means on and off the diagonal of n^2 K Gamma K and of n / m K."""
    draw = np.random.default_rng(0).standard_normal((2, 4, 9))
    x, g = (Gram.of(rows @ rows.T / 9 + 0.5) for rows in draw)
    use, k = Use(16, 32, 1.0, x, g), x.matrix
    for optimizer, gram in ((pg.SGD(1.0), 16**2 * k @ g.matrix @ k), (pg.Muon(1.0), 16 / 32 * k)):
        np.testing.assert_allclose(step(optimizer, Met(use, tokens=4)).change, [np.trace(gram), gram.sum()], rtol=1e-9)


def test_adam_without_eps_is_rejected() -> None:
    said = pg.predict_step(CASES["kinks"], pg.Adam(1e-3, eps=0.0), START)
    assert scores(said, seen("kinks")["adam"])["update_ratio[query]"] > 4
    sign = pg.predict_step(CASES["kinks"], pg.Sign(1e-3), START)
    np.testing.assert_allclose(said.own_change, sign.own_change, rtol=0.1)  # the same law by another average


def test_muon_of_keys_that_span_one_mode_less() -> None:
    """Cotangents of keys sum to zero over tokens: at most tokens - 1 of the directions move."""
    said = pg.predict_step(CASES["kinks"], pg.Muon(0.1), START)
    assert float(said.update_ratio.sel(block=1, matrix="key")) == pytest.approx(0.1 * math.sqrt(3 / 128))
    assert float(said.update_ratio.sel(block=1, matrix="query")) == pytest.approx(0.1 * math.sqrt(4 / 128))
    whole = dataclasses.replace(CASES["kinks"], tokens=8)
    with pytest.raises(pg.ModelError, match=r"needs at most as many tokens .*, got 8 for 4 x 8"):
        pg.predict_step(pg.Model("prenorm", 1, width=8, tokens=8, heads=1, ffn_ratio=0.5), pg.Muon(0.1))
    assert pg.predict_step(whole, pg.Muon(0.1)).sizes["block"] == 3


def test_resolutions_agree() -> None:
    """Of exchangeable tokens: closed forms in two modes, and Gram matrices."""
    gram = 0.7 * np.eye(4) + 0.3
    model = dataclasses.replace(CASES["kinks"], logit_std=0.0)
    for optimizer in OPTIMIZERS.values():
        closed = pg.predict_step(model, optimizer, START)
        resolved = pg.predict_step(model, optimizer, pg.Start(gram=gram, grad_covariance=0.2))
        for name in ("own_change", "update_ratio", "first_order_fall", "spectral_ratio"):
            drawn = name != "spectral_ratio" and isinstance(optimizer, pg.Sign | pg.Adam)  # in single precision
            np.testing.assert_allclose(closed[name], resolved[name], rtol=1e-5 if drawn else 1e-9)


def test_collapsed_tokens_keep_their_digits() -> None:
    """What moves keys is made of differences between tokens alone: Muon's change falls as they do."""
    found = []
    for apart in (1e-4, 1e-18):
        said = pg.predict_step(CASES["kinks"], pg.Muon(0.1), pg.Start(covariance=1 - apart))
        start = pg.Start(gram=Gram.exchangeable(1.0, apart, 4).matrix)
        resolved = pg.predict_step(CASES["kinks"], pg.Muon(0.1), start) if apart > 1e-10 else said
        found.append(float(said.own_change.sel(block=1, matrix="key")))
        np.testing.assert_allclose(found[-1], resolved.own_change.sel(block=1, matrix="key"), rtol=1e-6)
    assert found[0] == pytest.approx(0.01 * 3 / 4 * 1e-4, rel=1e-3)
    near = [modes(4, Moments(1.0, d), Moments(1.0, 4 / 3), balanced=True).spanned for d in (1e-4, 1e-18)]
    grams = [Gram.exchangeable(1.0, d, 4) for d in (1e-4, 1e-18)]
    balanced = Gram.exchangeable(1.0, 4 / 3, 4)
    both = [modes(4, gram, balanced, balanced=True).spanned for gram in grams]
    np.testing.assert_allclose(near, both, rtol=1e-9, atol=1e-30)
    assert both[1] == pytest.approx(3e-18)


@pytest.mark.slow  # what is proved is contracted first
def test_the_propositions_formulas() -> None:
    """Those that proposition 13 proves, against the theory's and against the steps of dense networks."""
    formulas = {name: step_of(p13.PROPOSITION, name).right for name in ("sgd_fall", "sgd_change", "muon_fall")}
    formulas |= {name: step_of(p13.PROPOSITION, name).right for name in ("muon_change", "sign_change", "chi")}
    x, g = Moments(2.0, 1.5), Moments(0.3, 0.2)
    sizes: dict[Any, Any] = {p13.T: 4, p13.n: 16, p13.m: 32}
    at = sizes | {p13.K_0: 3.5, p13.K_1: 1.5, p13.G_0: 0.6, p13.G_1: 0.2}
    use = Use(16, 32, 1.0, x, g)
    found = {optimizer: step(optimizer, Met(use, tokens=4)) for optimizer in OPTIMIZERS.values()}
    for name, optimizer in (("sgd", OPTIMIZERS["sgd"]), ("muon", OPTIMIZERS["muon"])):
        assert found[optimizer].fall == pytest.approx(float(formulas[f"{name}_fall"].subs(at)))
        assert found[optimizer].change[0] / 4 == pytest.approx(float(formulas[f"{name}_change"].subs(at)))
    alike = dataclasses.replace(use, x=Moments(1.5, 1.5), g=Moments(0.2, 0.2))
    sign = step(pg.Sign(1.0), Met(alike, tokens=4))
    assert sign.change[0] / 4 == pytest.approx(float(formulas["sign_change"].subs(at)))
    length = math.sqrt(2 / math.pi * 1.5 * 0.2) * float(formulas["chi"].subs(at))
    assert sign.fall == pytest.approx(16 * 32 * length)
    random = np.random.default_rng(1)
    root = 2.0**0.5 * np.linalg.cholesky(0.75 * np.eye(4) + 0.25)
    rows = root @ np.linalg.qr(random.standard_normal((16, 4)))[0].T * 4  # of this very Gram matrix
    root = 0.3**0.5 * np.linalg.cholesky(2 / 3 * np.eye(4) + 1 / 3)
    columns = root @ np.linalg.qr(random.standard_normal((32, 4)))[0].T * 32**0.5
    for optimizer in (OPTIMIZERS["sgd"], OPTIMIZERS["muon"]):
        seen = of_matrix(optimizer, rows, columns, 1.0)
        trace, total = optimizer.lr**2 * found[optimizer].change
        assert (seen["own_change"], seen["own_covariance"]) == pytest.approx((trace / 4, (total - trace) / 12))
        assert seen["first_order_fall"] == pytest.approx(optimizer.lr * found[optimizer].fall)


def test_averages_of_signs() -> None:
    random = np.random.default_rng(0)
    power, times = np.array([3.0, 1.0, 0.01]), np.array([1, 3, 2])
    roots = np.sqrt(random.standard_normal((200_000, 6)) ** 2 @ np.repeat(power, times))
    error = roots.std() / math.sqrt(len(roots))
    assert abs(roots.mean() - mean_root(power, times)) < 4 * error
    y = 2.0 * random.standard_normal(200_000)
    f = y / (np.abs(y) + 0.3)
    for said, drawn in zip(soft_sign_averages(np.array(2.0), 0.3), (y * f, f * f, y * y * f * f / 4), strict=True):
        assert abs(drawn.mean() - said) < 4 * drawn.std() / math.sqrt(len(y))


def test_decay_and_transfer() -> None:
    """The rule's learning rates, multipliers and gains, and the shrinking of every matrix, enter as stated."""
    model = CASES["kinks"]
    plain = pg.predict_step(model, pg.SGD(1e-3), START)
    decayed = pg.predict_step(model, pg.SGD(1e-3, decay=10.0), START)
    shrunk = 1e-4 * plain.assign(v=plain.own_change * 0 + 1).v.sel(matrix="query")[1:]  # of what queries are, 1
    more = (decayed.own_change - plain.own_change).sel(matrix="query")[1:]
    np.testing.assert_allclose(more, shrunk, rtol=1e-6)
    np.testing.assert_allclose(decayed.update_ratio**2, plain.update_ratio**2 + 1e-4)
    same = pg.predict_step(model, pg.SGD(1e-3), START, transfer="complete-p")
    xr.testing.assert_allclose(same, plain)
    wide = pg.predict_step(model, pg.Muon(0.1), START, transfer="spectral", base=(32, 1))
    by_hand = pg.predict_step(dataclasses.replace(model, attention_gain=0.5, ffn_gain=0.5), pg.Muon(0.1), START)
    np.testing.assert_allclose(wide.own_change.sel(matrix="query"), by_hand.own_change.sel(matrix="query"))
    of_out = {"matrix": "attention_out"}
    np.testing.assert_allclose(wide.own_change.sel(of_out), by_hand.own_change.sel(of_out) / 4)  # the multiplier
    np.testing.assert_allclose(wide.update_ratio.sel(of_out), by_hand.update_ratio.sel(of_out) / 2)  # its own gain is 1
    adam = pg.Adam(1e-3, eps=0.0)
    slow, fast = (pg.predict_step(model, adam, START, transfer="longcat", base=(w, 2)) for w in (32, 128))
    np.testing.assert_allclose(slow.own_change, fast.own_change / 16)


class TwoFFNs(pg.Placement):
    """Two FFNs of different widths and gains, whose matrices have the same names."""

    def block(self, x: Any, block: Any) -> Any:
        x = x + block.apply(pg.FFN("relu", hidden=64, out_gain=2.0), block.norm(x))
        return x + block.ffn(block.norm(x))


def test_matrices_of_one_name_are_counted_together() -> None:
    model = pg.Model(TwoFFNs(), depth=1, width=64, tokens=2, heads=16, ffn_ratio=4.0)
    for optimizer in (pg.SGD(1e-3), pg.Muon(0.1)):
        said = pg.predict_step(model, optimizer)
        found = scores(said, pg.simulate_steps(model, optimizer, steps=1, draws=40, backend="numpy").sel(step=1))
        assert max(found.values()) < 4, found
    one, other = (
        0.1 * math.sqrt(2 / 64),
        0.1 * math.sqrt(2 / 64) / 2,
    )  # over its gain, but for the rms
    together = math.sqrt((one**2 * 1 + other**2 * 4) / 5) * math.sqrt(0.5)
    assert float(said.update_ratio.sel(block=1, matrix="ffn_out")) == pytest.approx(together)


class Dropping(pg.Placement):
    """An FFN beside another, whose result is used nowhere."""

    def block(self, x: Any, block: Any) -> Any:
        block.ffn(x)
        return block.norm(x + block.ffn(x))


def test_what_is_not_derived_is_refused() -> None:
    sign, model = pg.Sign(1e-3), CASES["kinks"]
    refused: list[tuple[str, Any]] = [
        ("loss must be", lambda: pg.predict_step(model, sign, loss="mse")),  # type: ignore[arg-type]
        ("dropout=0", lambda: pg.predict_step(dataclasses.replace(model, dropout=0.1), sign)),
        ("tanh of a stream", lambda: pg.predict_step(dataclasses.replace(model, placement="dyt"), sign)),
        ("plain numbers", lambda: pg.predict_step(model, sign, pg.Start(covariance=xr.DataArray([0.1], dims="s")))),
        ("optimizer must be", lambda: pg.predict_step(model, "adam")),  # type: ignore[arg-type]
        ("transfer must be", lambda: pg.predict_step(model, sign, transfer="mu")),
        ("base must be", lambda: pg.predict_step(model, sign, base=3)),  # type: ignore[arg-type]
        ("samples must be", lambda: pg.predict_step(model, sign, samples=0)),
        ("a dropped ffn", lambda: pg.predict_step(dataclasses.replace(model, placement=Dropping()), pg.SGD(1e-3))),
        ("got 0 for value", lambda: pg.predict_step(dataclasses.replace(model, value_gain=0.0), sign)),
    ]
    for words, call in refused:
        with pytest.raises(pg.ModelError, match=words):
            call()


@pytest.mark.slow
@pytest.mark.parametrize("activation", ["relu", "gelu", "swiglu"])
@pytest.mark.parametrize("placement", OWN)
def test_every_placement(placement: str, activation: str) -> None:
    model = pg.Model(placement, activation=activation, **SIZES)
    streams = {call for call in ("tanh",) if placement in ("dyt", "derf")}
    optimizers = {name: one for name, one in OPTIMIZERS.items() if not streams or name in ("sgd", "muon")}
    for name, measured in brute(model, optimizers, START, draws=40).items():
        found = scores(pg.predict_step(model, optimizers[name], START), measured)
        assert max(found.values()) < 4, (name, found)


@pytest.mark.parametrize("optimizer", ["sgd", "muon"])
@pytest.mark.parametrize("name", ["gates", "two streams"])
def test_blocks_together_are_what_they_are_one_by_one(
    optimizer: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit by bit, also where blocks differ in size; of the wrong neighbour's gains they are not."""
    wide = pg.FFN("relu", ratio=4.0, out_gain=0.5)
    model = dataclasses.replace(CASES[name], depth=3, layers=lambda index: {"ffn": wide} if index == 2 else {})
    together = pg.predict_step(model, OPTIMIZERS[optimizer], START)
    monkeypatch.setattr(stacked, "_stackable", lambda *_: False)
    assert pg.predict_step(model, OPTIMIZERS[optimizer], START).equals(together)
    monkeypatch.undo()
    monkeypatch.setattr(stacked, "_shape", lambda met: (met.multiplier, met.use.balanced))
    assert not pg.predict_step(model, OPTIMIZERS[optimizer], START).equals(together)


@pytest.mark.parametrize("optimizer", ["sgd", "muon"])
def test_replicas_in_groups_say_what_all_of_them_together_say(optimizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many tokens are walked a few replicas at a time; a gated FFN has numbers that are the same for all of a group."""
    model = pg.Model("prenorm", causal=True, activation="swiglu", **SIZES)
    together = pg.predict_step(model, OPTIMIZERS[optimizer])
    monkeypatch.setattr(walks, "TOGETHER", 3 * model.tokens**2 * walks._of_each(model, None))
    assert [group.replicas for group in walks.groups_of(model, None)] == [3, 3, 2]
    apart = pg.predict_step(model, OPTIMIZERS[optimizer])
    errors = 4 * np.hypot(together.own_change_se, apart.own_change_se) + 1e-9 * together.own_change
    assert bool((abs(apart.own_change - together.own_change)[1:] < errors[1:]).all())
    assert not bool((abs(1.2 * apart.own_change - together.own_change)[1:] < errors[1:]).all())
