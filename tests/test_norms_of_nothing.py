"""A gain of 0 before a norm: refused in words before any work starts, by theory and simulation alike."""

import numpy as np
import pytest
from own_placements import OWN

import propagate as pg

SMALL = {"depth": 3, "width": 16, "tokens": 4, "heads": 2, "logit_std": 0.0}
GAINS = ("value_gain", "attention_gain", "ffn_gain")


@pytest.mark.parametrize("name", OWN)
def test_both_refuse_or_neither(name: str) -> None:
    for gain in GAINS:
        model = pg.Model(name, **SMALL, **{gain: 0.0})
        answers = []
        for verb, options in ((pg.predict, {}), (pg.simulate, {"draws": 2, "backend": "numpy"})):
            try:
                table = verb(model, **options)
            except pg.ModelError as error:
                answers.append(f"{gain} must be positive where" in str(error))
                continue
            ends = table.isel(block=[0, -1])
            ends = ends.sel(stream="joined") if "stream" in ends.dims else ends
            answers.append("answered" if np.isfinite(ends.variance).all() else "not finite")
        assert answers in ([True, True], ["answered", "answered"]), (name, gain, answers)


def test_the_block_is_named() -> None:
    silent = {2: {"ffn": pg.FFN(out_gain=0.0)}}
    with pytest.raises(pg.ModelError, match=r"ffn_gain must be positive where block 2 of PeriLN\(\) norms it, got 0"):
        pg.simulate(pg.Model("periln", **SMALL, layers=silent), draws=2, backend="numpy")
    pg.simulate(pg.Model("prenorm", **SMALL, layers=silent), draws=2, backend="numpy")
