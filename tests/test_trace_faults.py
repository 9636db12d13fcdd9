"""A trace of models that have gone wrong, or that compute in another precision."""

import copy
from typing import Any

import numpy as np
import pytest

import propagate as pg

torch = pytest.importorskip("torch", reason="torch is absent: install the extra [torch]")
from torch import nn  # noqa: E402

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def layers(count: int = 2, **fields: Any) -> Any:
    return nn.Sequential(*[nn.TransformerEncoderLayer(32, 4, 64, **fields) for _ in range(count)])


def test_where_numbers_end_is_said() -> None:
    module, x = layers(3, batch_first=True), torch.randn(2, 6, 32)
    assert pg.trace(module, x).attrs["first_not_finite"] == ""
    module[1].linear2.weight.data[0, 0] = float("nan")
    seen = pg.trace(module, x)
    assert seen.attrs["first_not_finite"] == "block 2, stream"
    assert np.isfinite(seen.variance.values).tolist() == [True, True, False, False]


def test_without_autograd_there_is_no_trace() -> None:
    with torch.inference_mode(), pytest.raises(pg.ModelError, match="outside torch"):
        pg.trace(layers(), torch.randn(6, 2, 32))


def test_the_same_cotangents_whatever_the_precision() -> None:
    module, x = layers(batch_first=True), torch.randn(2, 6, 32)
    single, double = pg.trace(module, x), pg.trace(copy.deepcopy(module).double(), x.double())
    assert single.grad_variance.values == pytest.approx(double.grad_variance.values, rel=1e-5)
    assert pg.trace(module, x, seed=1).grad_variance.values != pytest.approx(double.grad_variance.values, rel=1e-5)
