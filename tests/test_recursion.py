"""The symbolic recursion, made numeric, is one step of `predict`."""

import itertools

import numpy as np
import pytest

import propagate as pg

PLACEMENTS = ("prenorm", "postnorm", "spannorm", "periln", "deepnorm", "layernormscaling")
INDEX, DEPTH, TOKENS = 2, 3, 16
POINTS = ((1.0, 0.0, 1.0, 0.0), (1.0, 0.4, 1.0, 0.7), (2.5, 2.0, 0.3, 0.1))
VALUES = {"T": TOKENS, "g_a": 0.7, "g_f": 1.2, "l": INDEX, "L": DEPTH, "tau": 0.81}


class Interior(pg.Placement):
    """One block of another placement, as block INDEX of DEPTH would be."""

    inner: pg.Placement

    def block(self, x, block):
        return self.inner.block(x, Seen(block))

    def gains(self, index, depth):
        return self.inner.gains(INDEX, DEPTH)


class Seen:
    """A block that says it is block INDEX of DEPTH."""

    index, depth, first, last = INDEX, DEPTH, False, False

    def __init__(self, block) -> None:
        self.attention, self.ffn, self.norm = block.attention, block.ffn, block.norm


def one_step(placement: str, activation: str, logit_std: float, point: tuple[float, ...], **changes) -> list[float]:
    fields = {"attention_gain": VALUES["g_a"], "ffn_gain": VALUES["g_f"], "tokens": TOKENS} | changes
    inner = pg.placement(placement)
    model = pg.Model(Interior(inner), depth=1, activation=activation, logit_std=logit_std, **fields)
    q, p, gamma, kappa = point
    found = pg.predict(model, variance=q, covariance=p, grad_variance=gamma, grad_covariance=kappa)
    ends = (found.variance[1], found.covariance[1], found.grad_variance[0], found.grad_covariance[0])
    return [float(value) for value in ends]


def cases() -> list:
    """SymPy takes up to ten seconds to write down a block with GELU: most of those are slow tests."""
    found = []
    for case in itertools.product(PLACEMENTS, ("linear", "relu", "gelu", "swiglu"), (0.0, "symbol")):
        slow = case[1] == "gelu" and case[0] not in ("prenorm", "spannorm")
        found.append(pytest.param(*case, marks=pytest.mark.slow if slow else ()))
    found += [pytest.param("spannorm", "squared_relu", 0.0), pytest.param("prenorm", "geglu", "symbol")]
    return found


@pytest.mark.parametrize(("placement", "activation", "logit_std"), cases())
def test_one_step_of_predict(placement: str, activation: str, logit_std: float | str) -> None:
    step = pg.recursion(placement, activation=activation, logit_std=logit_std).lambdify(**VALUES)
    numeric = VALUES["tau"] ** 0.5 if logit_std == "symbol" else 0.0
    found = [[float(value) for value in step(*point)] for point in POINTS]

    def largest_miss(**changes: float) -> float:
        """Relative; covariances, which are differences of variances, on the variances' scale."""
        expected = [one_step(placement, activation, numeric, point, **changes) for point in POINTS]
        scale = np.abs(found)[:, [0, 0, 2, 2]]
        return float((np.abs(np.subtract(found, expected)) / scale).max())

    assert largest_miss() < 1e-12
    assert largest_miss(tokens=TOKENS + 1) > 1e-6
    if placement != "periln":  # whose norms undo a gain
        assert largest_miss(attention_gain=0.71) > 1e-6


def test_a_scaling_multiplies_the_gains() -> None:
    values = VALUES | {"L": 16}
    scaled = pg.recursion("postnorm", scaling=pg.ScaleInit(0.5)).lambdify(**values)
    plain = pg.recursion("postnorm").lambdify(**values | {"g_a": 0.7 / 4, "g_f": 1.2 / 4})
    assert scaled(*POINTS[1]) == pytest.approx(plain(*POINTS[1]), rel=1e-12)
    assert scaled(*POINTS[1]) != pytest.approx(pg.recursion("postnorm").lambdify(**values)(*POINTS[1]), rel=1e-3)


def test_a_number_for_logit_std_is_the_symbol_with_that_value() -> None:
    named = pg.recursion("prenorm", logit_std="symbol").lambdify(**VALUES)
    number = pg.recursion("prenorm", logit_std=0.9).lambdify(**VALUES)
    assert number(*POINTS[1]) == pytest.approx(named(*POINTS[1]), rel=1e-12)


def test_known_algebra() -> None:
    """PreNorm's variance is a sum, and PostNorm's is 1."""
    assert str(pg.recursion("prenorm").variance) == "a_1 + a_2 + q"
    assert pg.recursion("postnorm").variance == 1
    assert pg.recursion("spannorm", activation="gelu").variance == 1


def test_it_prints() -> None:
    text = pg.recursion("spannorm", activation="linear")
    assert text._repr_latex_().startswith("$")
    assert len(str(text).splitlines()) == len(text.equations())


def test_what_is_missing_is_named() -> None:
    with pytest.raises(pg.ModelError, match="T, g_f"):
        pg.recursion("postnorm").lambdify(g_a=1.0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"placement": "postnrom"}, "postnorm"),
        ({"placement": "postnorm", "activation": "rulu"}, "activation"),
        ({"placement": "postnorm", "logit_std": -1.0}, "logit_std"),
        ({"placement": "postnorm", "logit_std": "tau"}, "logit_std"),
        ({"placement": "postnorm", "logit_std": float("nan")}, "logit_std"),
        ({"placement": 3}, "placement"),
    ],
)
def test_bad_arguments(arguments: dict, words: str) -> None:
    with pytest.raises(pg.ModelError, match=words) as caught:
        pg.recursion(**arguments)
    assert "\n" not in str(caught.value)
