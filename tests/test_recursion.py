"""The symbolic recursion, made numeric, is one step of `predict`."""

import itertools
import math

import numpy as np
import pytest

import propagate as pg
from propagate.placements import ReZero
from propagate.theory.moments import Moments
from propagate.theory.predict import Path, propagate_moments

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
    found = pg.predict(model, variance=q, covariance=p, grad_variance=gamma, grad_covariance=kappa, head_size=math.inf)
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


QUICK = ("admin", "dyt", "hybridnorm", "parallelprenorm", "residual", "subln")
OTHERS = sorted(
    name
    for name, kind in pg.placements().items()
    if kind.__module__ == ReZero.__module__ and name not in (*PLACEMENTS, "mixln")
)


def joint_numbers(joint) -> list[float]:
    pairs = [joint[i][j] for i in range(len(joint)) for j in range(i, len(joint))]
    return [float(value) for pair in pairs for value in (pair.variance, pair.covariance)]


def block_of_a_network(name: str, index: int, depth: int, **changes: float) -> tuple[list[float], list[float]]:
    """What enters a block of a network at both its ends, and what leaves it, in a recursion's order."""
    fields = {"attention_gain": VALUES["g_a"], "ffn_gain": VALUES["g_f"], "tokens": TOKENS, "logit_std": 0.0} | changes

    def path(placement: str) -> Path:
        model = pg.Model(placement, depth=depth, **fields)
        return propagate_moments(model, Moments(1.0, 0.7), Moments(1.0, 0.8))

    found = path(ReZero(a=0.4) if name == "rezero" else name)
    ends = []
    for forward, backward in ((index - 1, index), (index, index - 1)):
        # Admin's skip is the root of the variance that PreNorm has there
        skip = [path("prenorm").forward[forward][0][0].variance ** 0.5] if name == "admin" else []
        ends.append([*joint_numbers(found.forward[forward]), *skip, *joint_numbers(found.backward[backward])])
    return ends[0], ends[1]


def largest_miss(step, name: str, index: int, depth: int, **changes: float) -> float:
    before, after = block_of_a_network(name, index, depth, **changes)
    found = [float(value) for value in step(*before)]
    return float(np.abs(np.subtract(found, after)).max() / np.abs(after).max())


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in OTHERS])
def test_a_block_of_every_other_placement(name: str) -> None:
    placement = ReZero(a=0.4) if name == "rezero" else name
    step = pg.recursion(placement, activation="linear").lambdify(**VALUES)
    assert largest_miss(step, name, INDEX, DEPTH, activation="linear") < 1e-12
    assert largest_miss(step, name, INDEX, DEPTH, activation="linear", tokens=TOKENS + 1) > 1e-6


@pytest.mark.parametrize("index", [1, 2])
def test_mixln_needs_to_know_which_block(index: int) -> None:
    with pytest.raises(pg.ModelError, match="index and depth must be numbers for MixLN"):
        pg.recursion("mixln")
    step = pg.recursion("mixln", activation="linear", index=index, depth=4).lambdify(**VALUES)
    assert largest_miss(step, "mixln", index, 4, activation="linear") < 1e-12
    assert largest_miss(step, "mixln", 3 - index, 4, activation="linear") > 1e-3


def test_layer_norm_inside_an_ffn() -> None:
    rms, layer = (pg.recursion("subln", norm=norm).lambdify(**VALUES) for norm in ("rms", "layer"))
    before, after = block_of_a_network("subln", INDEX, DEPTH, norm="layer", activation="relu")
    assert [float(value) for value in layer(*before)] == pytest.approx(after, rel=1e-12)
    assert [float(value) for value in rms(*before)] != pytest.approx(after, rel=1e-3)


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
    lines = str(text).splitlines()
    assert lines[0].startswith("# Uniform attention: the map of predict(Model(..., logit_std=0), head_size=math.inf)")
    assert len([line for line in lines if not line.startswith("#")]) == len(text.equations())
    assert str(pg.recursion("prenorm", activation="linear", logit_std="symbol")).startswith("# Softmax attention")


@pytest.mark.parametrize("value", ["__import__('os').getpid()", "2", None, True, float("nan"), [1.0]])
def test_no_text_is_evaluated(value: object) -> None:
    with pytest.raises(pg.ModelError, match="T must be"):
        pg.recursion("postnorm", activation="linear").lambdify(T=value, g_a=1.0, g_f=1.0)


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
        ({"placement": "postnorm", "index": 2}, "index"),
        ({"placement": "postnorm", "index": 5, "depth": 4}, "index"),
        ({"placement": "postnorm", "norm": "batch"}, "norm"),
    ],
)
def test_bad_arguments(arguments: dict, words: str) -> None:
    with pytest.raises(pg.ModelError, match=words) as caught:
        pg.recursion(**arguments)
    assert "\n" not in str(caught.value)
