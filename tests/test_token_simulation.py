"""Token-resolved theory against random networks, token by token; a theory that leaves something out is rejected."""

import dataclasses
import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

import propagate as pg
from propagate.theory.tokens import averages as gram_averages

TOKENS = 8
TEXT = Path(__file__).parents[1] / "figures" / "measured" / "text_embedding.json"


def random_gram(seed: int) -> np.ndarray:
    """Unequal variances, correlations around one half."""
    draw = np.random.default_rng(seed)
    z = draw.standard_normal((TOKENS, 2 * TOKENS)) + 0.7 * draw.standard_normal((1, 2 * TOKENS))
    size = draw.uniform(0.6, 1.4, TOKENS)
    return np.asarray((z @ z.T / (2 * TOKENS)) * size[:, None] * size)


MASK = (np.random.default_rng(3).random((TOKENS, TOKENS)) < 0.4) | np.eye(TOKENS, dtype=bool)[::-1]
SEEN: dict[str, dict[str, Any]] = {
    "all": {},
    "causal": {"causal": True},
    "window": {"causal": True, "window": 3},
    "mask": {"mask": MASK},
    "rotary": {"rope": 100.0},
    "rotary causal": {"rope": 100.0, "causal": True},
}
START = {"gram": random_gram(1), "grad_gram": random_gram(2)}


def network(seen: str, placement: str, activation: str, **fields: Any) -> pg.Model:
    size: dict[str, Any] = {"depth": 4, "width": 256, "heads": 4, "tokens": TOKENS, "logit_std": 1.5}
    return pg.Model(placement, activation=activation, **(size | SEEN[seen] | fields))


@cache
def measured(model: pg.Model, seed: int) -> xr.Dataset:
    return pg.simulate(model, draws=60, seed=seed, backend="numpy", progress=False, **START)


NETWORKS = (("postnorm", "relu"), ("prenorm", "swiglu"), ("spannorm", "gelu"))
EVERY = [
    pytest.param(seen, *network, marks=[pytest.mark.slow] * ((i + j) % 3 > 0))  # here each mask in one of them
    for i, seen in enumerate(SEEN)
    for j, network in enumerate(NETWORKS)
]


@pytest.mark.few(3)
@pytest.mark.parametrize(("seen", "placement", "activation"), EVERY)
def test_every_token_of_every_mask(seen: str, placement: str, activation: str) -> None:
    model = network(seen, placement, activation)
    judged = pg.compare(pg.predict(model, **START), measured(model, 1))
    assert set(judged.quantity.to_numpy()) > {"token_variance", "grad_token_variance"}
    assert judged.attrs["verdict"] != "disagrees", judged.worst_z.to_series()


@pytest.mark.few(3)
@pytest.mark.parametrize("placement", ["residual", "siamesenorm", "hybridnorm", "dyt", "subln"])
def test_every_token_of_other_placements(placement: str) -> None:
    """Several streams, norms inside sublayers, tanh in place of norms."""
    model = network("causal", placement, "gelu", logit_std=1.0)
    judged = pg.compare(pg.predict(model, **START), measured(model, 1))
    assert judged.attrs["verdict"] != "disagrees", judged.worst_z.to_series()


def rejected(prediction: xr.Dataset, model: pg.Model, *names: str) -> bool:
    wanted = [key for name in names for key in (name, f"{name}_allowance", f"{name}_se") if key in prediction]
    return pg.compare(prediction[wanted], measured(model, 1)).attrs["verdict"] == "disagrees"


@pytest.mark.parametrize("seen", ["causal", "window", "mask"])
def test_a_mask_ignored_is_noticed(seen: str) -> None:
    model = network(seen, "postnorm", "relu")
    unmasked = pg.predict(dataclasses.replace(model, causal=False, window=None, mask=None), **START)
    assert rejected(unmasked, model, "grad_token_variance")


def test_a_mask_ignored_on_the_way_back_alone_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network("causal", "spannorm", "linear", logit_std=0.0)
    assert not rejected(pg.predict(model, **START), model, "grad_token_variance")
    kept, all_see_all = gram_averages.values, np.full((TOKENS, TOKENS), 1 / TOKENS)
    monkeypatch.setattr(gram_averages, "values", lambda drawn, g: kept(drawn._replace(uniform=all_see_all), g))
    assert rejected(pg.predict(model, **START), model, "grad_token_variance")


@pytest.mark.parametrize("part", ["query_average", "key_average", "values"])
def test_a_path_left_out_is_noticed(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = network("causal", "prenorm", "linear", logit_std=2.0)
    assert not rejected(pg.predict(model, **START), model, "grad_variance", "grad_token_variance")
    kept = getattr(gram_averages, part)
    none = (lambda *a: kept(*a).weighted(0.0)) if part == "values" else (lambda *a: 0.0 * kept(*a))
    monkeypatch.setattr(gram_averages, part, none)
    assert rejected(pg.predict(model, **START), model, "grad_variance", "grad_token_variance")


def test_rotary_positions_left_out_are_noticed() -> None:
    """Tokens nearly alike, logits large: positions decide what is attended to, and the gradients show it."""
    model = network("rotary", "postnorm", "linear", logit_std=3.0)
    alike = {"covariance": 0.95}
    seen = pg.simulate(model, draws=60, seed=4, backend="numpy", progress=False, **alike)
    assert pg.compare(pg.predict(model, **alike), seen).attrs["verdict"] != "disagrees"
    without = pg.predict(dataclasses.replace(model, rope=None), gram=0.95 + 0.05 * np.eye(TOKENS))
    assert pg.compare(without, seen).attrs["verdict"] == "disagrees"


@pytest.mark.few(1)
@pytest.mark.parametrize("logit_std", [0.0, 1.0])
def test_gradients_gather_on_the_first_token(logit_std: float) -> None:
    """PostNorm under a causal mask (section B.3 of the notes): the last token's gradient vanishes, the first keeps all.

    A uniform spread over tokens, which is what the average alone would suggest, is rejected.
    """
    size: dict[str, Any] = {"depth": 8, "width": 192, "tokens": 16, "heads": 4, "logit_std": logit_std, "causal": True}
    model = pg.Model("postnorm", **size)
    seen = pg.simulate(model, draws=40, seed=5, covariance=0.3, backend="numpy", progress=False)
    said = pg.predict(model, covariance=0.3)
    assert pg.compare(said, seen).attrs["verdict"] != "disagrees", pg.compare(said, seen).worst_z.to_series()
    assert float(said.grad_token_variance[0, 0]) > 8
    assert float(said.grad_token_variance[0, -1]) < 0.02
    names = ["grad_token_variance", "grad_token_variance_allowance"]
    uniform = said[names].assign(grad_token_variance=said.grad_variance.expand_dims(token=16, axis=1))
    assert pg.compare(uniform, seen).attrs["verdict"] == "disagrees"


@pytest.mark.slow
def test_real_text() -> None:
    """32 tokens of embedded English: the matrix theory agrees; mean moments alone are rejected for PreNorm."""
    gram = np.array(json.loads(TEXT.read_text(encoding="utf-8"))["median_window"]["gram"])
    gram /= gram.diagonal().mean()
    model = pg.Model("prenorm", depth=6, tokens=32, width=512, heads=8, logit_std=0.0)
    seen = pg.simulate(model, draws=64, seed=6, gram=gram, backend="numpy", progress=False)
    names = ["variance", "deviation", "grad_variance", "grad_deviation"]
    kept = [*names, *(f"{name}_allowance" for name in names)]
    full = pg.predict(model, gram=gram)
    assert pg.compare(full, seen).attrs["verdict"] != "disagrees"
    pairs = gram[~np.eye(32, dtype=bool)]
    pair = pg.predict(model, variance=1.0, covariance=float(pairs.mean()))
    assert pg.compare(pair[kept], seen).attrs["verdict"] == "disagrees"
