"""The distance of a finite network from the theory falls as 1 / width."""

import math

import numpy as np
import pytest

import propagate as pg


def regressed(widths: tuple[int, ...], values: list[float], errors: list[float]) -> tuple[float, float]:
    """Slope of log value against log width, and its standard error, weighting by the relative errors."""
    x, y = np.log(widths), np.log(values)
    weight = (np.array(values) / np.array(errors)) ** 2
    centred = x - np.average(x, weights=weight)
    information = float(weight @ centred**2)
    return float(weight @ (centred * y)) / information, 1 / math.sqrt(information)


def judge(widths: tuple[int, ...], values: list[float], errors: list[float]) -> None:
    assert min(v / e for v, e in zip(values, errors, strict=True)) > 4  # log value has a meaning
    slope, error = regressed(widths, values, errors)
    assert abs(slope + 1) < 4 * error
    assert abs(slope + 0.5) > 4 * error
    assert abs(slope) > 4 * error


@pytest.mark.slow
def test_the_first_norm_removes_one_of_the_directions() -> None:
    """DeepNorm's branches are weak: what is left of the gradient's bias is its norms' (width - 1) / width."""
    widths, biases, errors = (16, 32, 64), [], []
    for width in widths:
        model = pg.Model("deepnorm", depth=2, width=width, tokens=4, heads=1, logit_std=0.0, activation="linear")
        seen = pg.simulate(model, draws=1500, seed=width, backend="numpy")
        said = float(np.log(pg.predict(model).grad_variance[1]))
        biases.append(said - float(seen.log_grad_variance[1]))
        errors.append(float(seen.log_grad_variance_se[1]))
    judge(widths, biases, errors)
    assert abs(biases[0] * 16 - 1) < 0.5  # and the constant is about 1


@pytest.mark.slow
def test_the_mean_mode_leaks_into_the_deviation_mode() -> None:
    """Linear PostNorm, uniform attention: the excess of grad_deviation over the theory, per energy in the mean mode."""
    widths, shares, errors = (32, 64, 128, 256), [], []
    for width in widths:
        model = pg.Model("postnorm", depth=8, width=width, tokens=16, heads=1, logit_std=0.0, activation="linear")
        said = pg.predict(model)
        seen = pg.simulate(model, draws=400, seed=width, backend="numpy")
        mean_mode = float(said.grad_variance[0] - said.grad_deviation[0] * 15 / 16)
        shares.append(float(seen.grad_deviation[0] - said.grad_deviation[0]) / mean_mode)
        errors.append(float(seen.grad_deviation_se[0]) / mean_mode)
    judge(widths, shares, errors)
