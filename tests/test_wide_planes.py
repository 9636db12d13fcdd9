"""Smooth activations without straight ends at a large variance: many pairs of one variance are interpolated, too long
work is refused."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import sympy

import propagate as pg
from propagate.expressions import symbol
from propagate.theory.gaussian import panels, quadrature
from propagate.theory.gaussian.expressions import functions
from propagate.theory.tokens import angles, kinked, large_variances
from propagate.theory.tokens.gram import Gram
from propagate.theory.tokens.kernels import kernel_of

RIPPLED = pg.Activation("rippled", symbol() + sympy.sin(symbol()) / 2)
LOSSES = 2 * np.sin(np.array([1e-4, 0.02, 0.4, 1.7, 3.1]) / 2) ** 2


def test_a_table_of_angles_is_the_quadrature_of_each_pair() -> None:
    phi = functions(RIPPLED).slope
    found = large_variances._table(phi, 40.0)
    of_each = np.array([quadrature.drop_on_plane(phi, 40.0, 40.0, 40.0 * loss) for loss in LOSSES])
    np.testing.assert_allclose(found.at(LOSSES), of_each, rtol=1e-10)
    coarse = angles.Table(found.power, found.ends, found.series[:, :5])  # as if of 5 nodes
    assert np.abs(coarse.at(LOSSES) / of_each - 1).max() > 1e-8


def test_many_pairs_of_one_variance_take_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    apart = 50.0 * (1 - np.corrcoef(np.random.default_rng(0).standard_normal((24, 40))))
    np.fill_diagonal(apart, 0.0)
    gram = Gram(50.0 - apart, apart)
    calls, one = list[object](), quadrature.drop_on_plane

    def counted(*of: Any) -> float:
        calls.append(of)
        return one(*of)

    monkeypatch.setattr(quadrature, "drop_on_plane", counted)
    large_variances._table.cache_clear()
    found = kernel_of(RIPPLED).value(gram)
    assert len(calls) == 2 + angles.NODES * (len(angles._ends(50.0)) - 1) < 24 * 23 / 2
    pair = one(functions(RIPPLED).value, 50.0, 50.0, float(gram.deviation[3, 17]))
    assert found.deviation[3, 17] == pytest.approx(pair, rel=1e-10)


def test_what_takes_too_long_is_refused_before_it_is_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quadrature, "drop_on_plane", lambda *_: pytest.fail("begun"))
    v = np.linspace(2000.0, 4000.0, 24)
    unequal = Gram.of(np.diag(v))
    with pytest.raises(pg.ModelError, match=r"rippled reads a variance of 4e\+03, where 300 pairs of tokens take"):
        kernel_of(RIPPLED).value(unequal)
    with pytest.raises(pg.ModelError, match="rippled reads a variance of 9e"):
        kernel_of(RIPPLED).slope(Gram.of(9000.0 * np.corrcoef(np.random.default_rng(0).random((20, 30)))))


def test_the_work_is_that_of_the_points_taken() -> None:
    first, second, deviation = 81.0, 100.0, 60.0
    slope, of_sum, of_difference = quadrature._split(first, second, deviation)
    points = len(quadrature._gaussian(of_sum)[0]) * len(quadrature._gaussian(of_difference, moved=1 + abs(slope))[0])
    one = (np.array([first]), np.array([second]), np.array([deviation]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quadrature, "MOST_POINTS", points)
        quadrature.check_work("rippled", *one)
        patch.setattr(quadrature, "MOST_POINTS", points - 1)
        with pytest.raises(pg.ModelError, match="1 pairs of tokens"):
            quadrature.check_work("rippled", *one)


def test_panels_that_take_too_long_are_refused_before_they_are_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    z = symbol()
    kernel = kernel_of(pg.Activation("clipped", sympy.Min(1, sympy.Max(-1, z))))
    few = Gram.of(np.diag([50.0, 60.0]))
    assert kernel.value(few).matrix[0, 1] == pytest.approx(0.0, abs=1e-9)
    monkeypatch.setattr(kinked, "drop", lambda *_: pytest.fail("begun"))
    with pytest.raises(pg.ModelError, match="clipped reads a variance of 90, where 528 pairs of tokens take"):
        kernel.value(Gram.of(np.diag(np.linspace(50.0, 90.0, 32))))


def test_the_number_of_nodes_in_panels_is_about_that_taken() -> None:
    of = functions(pg.Activation("clipped", sympy.Min(1, sympy.Max(-1, symbol())))).kinked[0]
    taken = list[int]()
    counted = replace(of, f=lambda x: (taken.append(x.size), of.f(x))[1])
    for first, second, deviation in ((1.0, 1.2, 0.5), (10.0, 60.0, 30.0), (60.0, 60.0, 119.0)):
        taken.clear()
        panels.drop(counted, first, second, deviation)
        estimate = panels.points(of, *(np.array([x]) for x in (first, second, deviation)))
        assert 0.25 < sum(taken) / 2 / estimate < 2.0
