"""Linear algebra keeps to one thread in predictions and simulations, and has what it had before once they are done."""

from collections.abc import Iterator

import pytest
import scipy.linalg  # noqa: F401  # SciPy's library is there from the beginning
from threadpoolctl import threadpool_info, threadpool_limits

import propagate as pg
from propagate.threads import one_thread_each

MODEL = pg.Model("postnorm", depth=1, width=16, tokens=4, heads=2, causal=True)


@pytest.fixture(autouse=True)
def several() -> Iterator[None]:
    with threadpool_limits(2):  # whatever the environment says
        yield


def used() -> set[int]:
    return {one["num_threads"] for one in threadpool_info() if one["user_api"] == "blas"}


class Spy(pg.Placement):
    """PostNorm, whose equations look at the threads while a verb reads them."""

    def block(self, x, block):
        SEEN.append(used())
        y = block.norm(x + block.attention(x))
        return block.norm(y + block.ffn(y))


SEEN: list[set[int]] = []


@pytest.mark.parametrize("verb", ["predict", "simulate", "predict_step", "equations"])
def test_verbs_keep_to_one_thread(verb: str) -> None:
    model = pg.Model(Spy(), depth=1, width=16, tokens=4, heads=2, causal=True)
    SEEN.clear()
    if verb == "predict":
        pg.predict(model)
    elif verb == "simulate":
        pg.simulate(model, draws=2, progress=False)
    elif verb == "predict_step":
        pg.predict_step(model, pg.SGD(lr=0.1))
    else:
        pg.equations(model.placement)
    assert ({1} in SEEN) == (verb != "equations")  # the control: what reads the equations for no linear algebra
    assert used() == {2}


def test_what_is_inside_gives_back_what_it_found() -> None:
    with one_thread_each():
        pg.predict(MODEL)
        assert used() == {1}
    assert used() == {2}


def test_an_error_gives_them_back_too() -> None:
    with pytest.raises(pg.ModelError), one_thread_each():
        pg.predict(MODEL, covariance=2.0)
    assert used() == {2}
