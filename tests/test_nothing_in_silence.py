"""What a user gave is used as it is or refused in words: nothing is dropped, read twice, or worked on for ever."""

import math
from collections.abc import Callable

import numpy as np
import pytest

import propagate as pg

SIZE = {"depth": 2, "width": 16, "tokens": 4, "heads": 2}
MODEL = pg.Model("postnorm", **SIZE)
SAMPLED = {"draws": 2, "backend": "numpy"}
GRAM = np.eye(4) + 0.1

Verb = Callable[..., object]


def predict(model: pg.Model, **start: object) -> object:
    return pg.predict(model, **start)


def simulate(model: pg.Model, **start: object) -> object:
    return pg.simulate(model, **SAMPLED, **start)


VERBS = pytest.mark.parametrize("verb", [predict, simulate])


def refused(call: Callable[[], object], *words: str) -> None:
    with pytest.raises(pg.ModelError) as caught:
        call()
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value), str(caught.value)


def lopsided(by: float) -> np.ndarray:
    return GRAM + by * np.eye(4, k=1)


GRAMS = {
    "complex": (GRAM + 0j, "complex128"),
    "text": (GRAM.astype(str), "<U"),
    "masked": (np.ma.masked_array(GRAM, mask=np.eye(4, k=1)), "mask"),
    "objects": (GRAM.astype(object), "object"),
    "truths": (np.eye(4, dtype=bool), "bool"),
    "a little lopsided": (lopsided(1e-7), "differ by 1e-07"),
    "small and lopsided": (1e-9 * lopsided(0.1), "symmetric"),
    "too small to square": (1e-200 * GRAM, "1e-100"),
    "too large to square": (1e200 * GRAM, "1e+100"),
    "larger than there is memory": (np.broadcast_to(1.0, (10**7, 10**7)), "(4, 4)"),
}


@VERBS
@pytest.mark.parametrize("name", ["gram", "grad_gram"])
@pytest.mark.parametrize(("matrix", "word"), GRAMS.values(), ids=GRAMS)
def test_grams(verb: Verb, name: str, matrix: np.ndarray, word: str) -> None:
    refused(lambda: verb(MODEL, **{name: matrix}), name, word)


@VERBS
def test_rounding_is_no_asymmetry(verb: Verb) -> None:
    """Else the test above could not fail: and what rounding leaves is taken out."""
    inexact = GRAM * (1 + 1e-15 * np.tri(4))
    assert float(verb(MODEL, gram=inexact).variance[0]) == pytest.approx(1.1)


STARTS = {
    "true": ({"variance": True}, ("variance", "True")),
    "true of NumPy": ({"covariance": np.True_}, ("covariance", "True")),
    "complex": ({"variance": 1 + 0j}, ("variance", "(1+0j)")),
    "complex of NumPy": ({"variance": np.complex128(1)}, ("variance", "1")),
    "squares underflow": ({"variance": 1e-200}, ("variance", "1e-100", "1e-200")),
    "squares overflow": ({"grad_variance": 1e200}, ("grad_variance", "1e+100")),
    "no float": ({"variance": 10**400}, ("variance", "401 digits")),
    "no text": ({"variance": 10**5000}, ("variance", "5001 digits")),
    "given by both": ({"gram": GRAM, "variance": 2.0}, ("gram", "variance", "not both")),
    "gradient given by both": ({"grad_gram": GRAM, "grad_covariance": 0.1}, ("grad_gram", "grad_covariance")),
    "given in a start and by both": ({"start": pg.Start(gram=GRAM), "covariance": 0.1}, ("gram", "covariance")),
    "true in a start": ({"start": pg.Start(variance=True)}, ("variance", "True")),
    "twice": ({"start": pg.Start(variance=2.0), "variance": 3.0}, ("variance", "not in both")),
}


@VERBS
@pytest.mark.parametrize(("start", "words"), STARTS.values(), ids=STARTS)
def test_starts(verb: Verb, start: dict, words: tuple[str, ...]) -> None:
    refused(lambda: verb(MODEL, **start), *words)


def test_inputs_stand_in_place_of_all() -> None:
    refused(lambda: simulate(MODEL, inputs=np.ones((4, 16)), variance=2.0), "inputs", "variance")
    refused(lambda: simulate(MODEL, inputs=1j * np.ones((4, 16))), "inputs", "complex")
    refused(lambda: simulate(MODEL, inputs=1e-120 * np.ones((4, 16))), "inputs", "1e-100")


class Scaled:
    """A scaling that gives anything."""

    def __init__(self, gains: object) -> None:
        self.given = gains

    def gains(self, index: int, depth: int) -> object:
        return self.given if index == 2 else pg.Gains()

    def __repr__(self) -> str:
        return "Scaled()"


class OwnGains(pg.Placement):
    """A placement that gives anything."""

    given: object

    def block(self, x, block):
        return x + block.ffn(x)

    def gains(self, index: int, depth: int) -> object:
        return self.given


GAINS = {
    "nan": pg.Gains(ffn_out=math.nan),
    "negative": pg.Gains(value=-1.0),
    "complex": pg.Gains(query=1j),
    "text": pg.Gains(key="1"),
    "huge": pg.Gains(ffn_in=1e300),
    "endless": pg.Gains(ffn_in=10**400),
    "array": pg.Gains(ffn_in=np.ones(2)),
    "none": None,
    "number": 1.0,
}


@VERBS
@pytest.mark.parametrize("gains", GAINS.values(), ids=GAINS)
def test_gains_of_a_scaling_and_of_a_placement(verb: Verb, gains: object) -> None:
    refused(lambda: verb(pg.Model("postnorm", scaling=Scaled(gains), **SIZE)), "gains(2, 2)", "Scaled()")
    own = OwnGains(gains)
    with pytest.raises(pg.ModelError, match=r"gains\(\d, 2\) of OwnGains"):
        verb(pg.Model(own, **SIZE))


EQUATIONS: dict[str, tuple[Callable, str]] = {
    "a stream times a stream": (lambda self, x, block: x * x, "multiply a stream by a number"),
    "a stream over a stream": (lambda self, x, block: block.ffn(x) / x, "multiply a stream by a number"),
    "a stream and a number": (lambda self, x, block: x + 1.0, "add a stream, got 1.0"),
    "a stream less a number": (lambda self, x, block: x - 1, "add a stream, got"),
    "a stream times nothing": (lambda self, x, block: x * None, "multiply a stream by a number"),
    "no number": (lambda self, x, block: x * math.nan, "finite"),
    "no end": (lambda self, x, block: x * math.inf, "finite"),
    "too much": (lambda self, x, block: x * 1e200, "finite"),
    "nothing": (lambda self, x, block: None, "must return one stream"),
    "a number": (lambda self, x, block: 2.0, "must return one stream"),
    "a list": (lambda self, x, block: [x], "must return one stream"),
    "two streams": (lambda self, x, block: (x, x), "returned 2 streams"),
}


@VERBS
@pytest.mark.parametrize(("equation", "words"), EQUATIONS.values(), ids=EQUATIONS)
@pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore:the name:UserWarning")
def test_equations(verb: Verb, equation: Callable, words: str) -> None:
    own = type("Odd", (pg.Placement,), {"block": equation})
    refused(lambda: verb(pg.Model(own(), **SIZE)), words)


BOUNDS: dict[str, tuple[Callable[[], object], tuple[str, ...]]] = {
    "exponent": (lambda: pg.ScaleInit(1e300), ("ScaleInit.exponent", "-10 and 10", "1e+300")),
    "endless exponent": (lambda: pg.ScaleInit(10**400), ("ScaleInit.exponent", "401 digits")),
    "draws": (lambda: pg.simulate(MODEL, draws=10**30), ("draws", "at most 1000000000")),
    "experts": (lambda: pg.Experts(10**6), ("experts.count", "at most 4096", "1000000")),
    "split": (lambda: pg.Experts(8, split=10**6), ("experts.count * split", "at most 4096")),
    "workers": (lambda: pg.process_pool(10**6), ("workers", "at most 1024", "1000000")),
    "depth": (lambda: pg.Model("prenorm", depth=10**9), ("depth", "at most 1000000")),
    "width": (lambda: simulate(pg.Model("prenorm", depth=1, width=10**12)), ("width=1000000000000", "GiB")),
    "tokens": (lambda: simulate(pg.Model("prenorm", depth=1, tokens=10**7)), ("tokens=10000000", "GiB")),
    "causal tokens": (
        lambda: predict(pg.Model("prenorm", depth=1, tokens=10**7, causal=True)),
        ("tokens=10000000", "GiB"),
    ),
    "samples": (lambda: pg.predict(MODEL, samples=10**12), ("samples", "at most 1048576")),
    "seed": (lambda: pg.simulate(MODEL, seed=10**400), ("seed", "401 digits")),
    "no blocks": (lambda: pg.recursion("prenorm", depth=0), ("depth", "at least 1", "0")),
    "a block by name": (lambda: pg.recursion("prenorm", depth=3, index="1"), ("index", "'1'")),
}


@pytest.mark.parametrize(("call", "words"), BOUNDS.values(), ids=BOUNDS)
def test_bounds_before_work(call: Callable[[], object], words: tuple[str, ...]) -> None:
    refused(call, *words)


@pytest.mark.parametrize(
    ("kind", "field"),
    [
        (kind, field)
        for kind, fields in {
            "Model": "depth width tokens heads ffn_ratio window rope logit_std value_gain ffn_gain dropout",
            "Attention": "heads key_value_heads head_size window rope logit_std query_gain key_gain out_gain",
            "FFN": "ratio hidden in_gain gate_gain out_gain",
            "Norm": "eps",
            "Experts": "count top_k router_std shared identity split gain",
        }.items()
        for field in fields.split()
    ],
)
def test_numbers_beyond_floats(kind: str, field: str) -> None:
    required = {"Model": {"placement": "prenorm", "depth": 1}, "Experts": {"count": 8}}.get(kind, {})
    for value in (10**400, -(10**400), 10**5000, np.float64(1e300)):
        refused(lambda value=value: getattr(pg, kind)(**required | {field: value}), field.removeprefix("out_"))
