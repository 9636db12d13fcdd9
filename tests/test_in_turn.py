"""Walks in threads: results in order, few in memory, the same numbers from one core as from two."""

import threading

import numpy as np
import pytest

import propagate as pg
from propagate.theory import in_turn as threads
from propagate.theory import walks
from propagate.theory.in_turn import in_turn
from propagate.watching import watched


@pytest.fixture(params=[1, 2])
def cores(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(threads, "cores", lambda: request.param)
    return int(request.param)


def test_in_order_and_at_the_same_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "cores", lambda: 2)
    met = threading.Barrier(2)  # each waits until another is there

    def call(number: int) -> int:
        met.wait(timeout=30)
        return number

    assert list(in_turn(call, range(4), at_once=2)) == [0, 1, 2, 3]


def test_no_more_are_begun_than_are_asked_for(cores: int) -> None:
    begun: list[int] = []
    for number, _ in enumerate(in_turn(begun.append, range(8), at_once=2)):
        assert number < len(begun) <= number + cores


def test_an_error_comes_in_its_turn(cores: int) -> None:
    results = in_turn(lambda number: 1 / (2 - number), range(5), at_once=2)
    assert [next(results), next(results)] == [0.5, 1.0]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_under_the_error_state_of_the_caller(cores: int) -> None:
    for state in ("ignore", "raise"):
        with np.errstate(divide=state):
            results = in_turn(lambda zero: np.ones(1) / zero, [np.zeros(1)] * 2, at_once=2)
            if state == "ignore":
                assert [found.item() for found in results] == [np.inf] * 2
            else:
                with pytest.raises(FloatingPointError):
                    next(results)


SMALL = {"depth": 2, "tokens": 12, "causal": True, "width": 64, "heads": 8}


def predicted(monkeypatch: pytest.MonkeyPatch, cores: int, **changed: object) -> dict[str, np.ndarray]:
    """With room for two replicas, on so many cores."""
    model = pg.Model("prenorm", **SMALL | {"activation": "swiglu"} | changed)
    monkeypatch.setattr(walks, "TOGETHER", 2 * model.tokens**2 * walks._of_each(model, None))
    monkeypatch.setattr(threads, "cores", lambda: cores)
    assert walks.at_once(model, None) == 2
    found = pg.predict(model, covariance=0.3, include=["param_grad", "calls"])
    return {str(name): column.to_numpy() for name, column in found.items()}


@pytest.mark.parametrize("changed", [{}, {"rope": 100.0, "key_value_heads": 2}, {"window": 5}], ids=str)
def test_the_same_numbers_from_one_core_as_from_two(
    monkeypatch: pytest.MonkeyPatch, changed: dict[str, object]
) -> None:
    one, two = (predicted(monkeypatch, cores, **changed) for cores in (1, 2))
    assert one.keys() == two.keys()
    for name, column in one.items():
        np.testing.assert_array_equal(column, two[name])
    monkeypatch.setattr(walks, "THREADS", 1)  # other groups draw other logits: this comparison would tell
    monkeypatch.setattr(walks, "at_once", lambda *_: 2)
    assert (predicted(monkeypatch, 2, **changed)["variance"] != one["variance"]).any()


def test_other_groups_agree_within_the_stated_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is drawn together: two predictions with draws of their own lie as far apart as both state."""
    few = predicted(monkeypatch, 2)
    monkeypatch.undo()
    found = pg.predict(pg.Model("prenorm", **SMALL | {"activation": "swiglu"}), covariance=0.3, samples=2**14)
    many = {str(name): column.to_numpy() for name, column in found.items()}
    for name in ("variance", "deviation", "grad_variance"):
        block = 0 if name.startswith("grad") else -1
        apart = few[name][block] - many[name][block]
        error = float(np.hypot(few[f"{name}_se"][block], many[f"{name}_se"][block]))
        assert abs(apart) < 5 * error
        assert abs(apart + 0.02 * many[name][block]) > 5 * error  # two per cent would show


def test_groups_hold_no_more_than_fits_together() -> None:
    for tokens in (8, 32, 64, 96, 128, 180, 256, 512):
        model = pg.Model("prenorm", depth=1, tokens=tokens, causal=True)
        each, groups = tokens**2 * walks._of_each(model, None), walks.groups_of(model, None)
        assert sum(group.replicas for group in groups) == walks.replicas_of(model)
        largest = max(group.replicas for group in groups) * walks.at_once(model, None)
        assert largest == 1 or largest * each <= walks.TOGETHER


def test_who_watches_sees_one_walk_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    with watched(lambda direction, block, moments: told.append(threading.current_thread().name)):
        predicted(monkeypatch, 2, depth=1)
    assert set(told) == {threading.current_thread().name}
