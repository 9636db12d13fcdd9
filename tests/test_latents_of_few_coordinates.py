"""Latents of few coordinates: what keys and values share moves what is added, and wide logits behind it hear that."""

from typing import Any

import pytest

import propagate as pg
from propagate.theory.finite import allowances


class Attending(pg.Placement):
    """Attention alone, so that nothing else moves."""

    def block(self, x: Any, block: Any) -> Any:
        return x + block.attention(block.norm(x))


def latent(rank: int, logit_std: float) -> pg.LatentAttention:
    sizes = {"heads": 16, "head_size": 4, "value_size": 16, "query_rank": rank, "key_value_rank": rank}
    return pg.LatentAttention(**sizes, logit_std=logit_std, value_gain=2.0)


@pytest.mark.parametrize(("rank", "logit_std"), [(8, 0.5), (16, 2.0)])
def test_what_keys_and_values_share(rank: int, logit_std: float) -> None:
    model = pg.Model(Attending(), depth=1, width=192, tokens=16, attention=latent(rank, logit_std))
    said = pg.predict(model)
    seen = pg.simulate(model, draws=150, backend="numpy", progress=False)
    more = float(seen.deviation[1] / said.deviation[1] - 1)
    assert 0.5 * float(said.deviation_allowance[1]) < more < 1.5 * float(said.deviation_allowance[1])
    assert pg.compare(said, seen).attrs["verdict"] != "disagrees"


def test_it_is_told_from_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    few = latent(8, 0.5).with_(value_gain=1.0)
    wide = pg.Attention(heads=48, logit_std=4.0)
    sizes: dict[str, Any] = {"depth": 2, "width": 192, "tokens": 16, "scaling": pg.ScaleInit(-0.5)}
    model = pg.Model(Attending(), **sizes, layers=[{"attention": few}, {"attention": wide}])
    seen = pg.simulate(model, draws=200, backend="numpy", progress=False)
    assert pg.compare(pg.predict(model), seen).attrs["verdict"] != "disagrees"
    monkeypatch.setattr(allowances, "of_shared_latents", lambda kind, tokens: 0.0)
    assert pg.compare(pg.predict(model), seen).verdict.sel(quantity="deviation") == "disagrees"


def test_it_goes_with_the_tokens_and_the_rank() -> None:
    def allowed(rank: int, tokens: int) -> float:
        model = pg.Model(Attending(), depth=1, width=4096, tokens=tokens, attention=latent(rank, 1.0))
        block = pg.predict(model)
        return float(block.variance_allowance[1] / (block.variance[1] - 1) * block.variance[1])

    assert allowed(64, 17) / allowed(128, 17) == pytest.approx(2, rel=0.2)
    assert allowed(64, 33) / allowed(64, 17) == pytest.approx(2, rel=0.2)
    assert allowed(64, 1) < 0.5 * allowed(64, 17)


def test_wide_logits_hear_what_is_off_forward() -> None:
    """At logit_std 1 they do not by more than is contained elsewhere."""

    def added(first: Any, logit_std: float) -> float:
        wide = pg.Attention(heads=48, logit_std=logit_std)
        model = pg.Model(Attending(), depth=2, width=192, tokens=16, layers=[{"attention": first}, {"attention": wide}])
        allowed = pg.predict(model).grad_variance_allowance
        return float(allowed[1] - allowed[2])

    few, many = latent(8, 1.0), pg.Attention(heads=48, value_gain=2.0)
    assert added(few, 4.0) > added(many, 4.0) + 0.01
    assert added(few, 1.0) == pytest.approx(added(many, 1.0), abs=0.005)
