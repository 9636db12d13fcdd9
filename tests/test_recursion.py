"""The symbolic recursion, made numeric and iterated, is `predict`."""

import math
import re
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import pytest
import sympy
from covering import pairwise

import propagate as pg
from propagate.activations import ACTIVATIONS
from propagate.placement import Placement
from propagate.placements import NGPT, ReZero, TFixup
from propagate.theory.pairs.moments import Moments
from propagate.theory.printed import notes, printed
from propagate.theory.reading.network import Path
from propagate.theory.walks import walk

DEPTH, TOKENS, LOGIT_STD = 4, 16, 0.9
VALUES = {"T": TOKENS, "g_a": 0.7, "g_f": 1.2, "L": DEPTH, "tau": LOGIT_STD**2}
POINT = (1.0, 0.4, 1.0, 0.7)
Step = Callable[..., tuple[float, ...]]
NUMBERED = ("mixln", "spannorm")  # whose blocks are of two kinds, told apart by numbers
PLACEMENTS = [name for name, kind in pg.placements().items() if kind.__module__ == ReZero.__module__]
ROWS = pairwise(list(ACTIVATIONS), [0.0, "symbol"], ["rms", "layer"])
COSTLY = ("deepnorm", "deepscalelm", "dyt", "residual", "siamesenorm", "subln", "tfixup")
written = lru_cache(maxsize=None)(pg.recursion)


def cases() -> list[tuple[str, str, float | str, str]]:
    """Every placement, and every pair of an activation, an attention and a norm, with some placement or other.

    GELU's long kernels are met by placements of few norms: others take SymPy many seconds.
    """
    placements = sorted(PLACEMENTS, key=lambda name: (name in COSTLY, name))
    rows = sorted(ROWS, key=lambda row: row[0] not in ("gelu", "geglu"))
    rows += [row for row in rows if row[0] in ("linear", "relu")] * len(placements)
    return [(name, *row) for name, row in zip(placements, rows, strict=False)]


def equations(name: str) -> pg.Placement:
    return ReZero(a=0.4) if name == "rezero" else pg.placement(name)


def joint_numbers(joint) -> list[float]:
    pairs = [joint[i][j] for i in range(len(joint)) for j in range(i, len(joint))]
    return [float(value) for pair in pairs for value in (pair.variance, pair.covariance)]


def network(name: str, *, tokens: int = TOKENS, **changes) -> Path:
    """What passes between the blocks of a network, as `predict` has it in wide heads."""
    fields = {"attention_gain": VALUES["g_a"], "ffn_gain": VALUES["g_f"], "tokens": tokens} | changes
    model = pg.Model(equations(name), depth=DEPTH, **fields)
    return walk(model, Moments(1.0, 0.7), Moments(1.0, 0.8), head_size=math.inf)


def skips(name: str, **fields) -> list[list[float]]:
    """Numbers that enter block 0, 1, ...: Admin's skip, the root of the variance that PreNorm has there."""
    if name != "admin":
        return [[] for _ in range(DEPTH + 1)]
    return [[math.sqrt(joint[0][0].variance)] for joint in network("prenorm", **fields).forward]


def steps(name: str, **fields) -> dict[int, Step]:
    """The numeric map of each block: of interior ones, but of the first and the last too where it can differ."""
    numbered = name in NUMBERED
    blocks = range(1 if numbered else 2, DEPTH + 1 if numbered else DEPTH)
    given = {i: {"index": i, "depth": DEPTH} if numbered else {} for i in blocks}
    found = {i: written(equations(name), **fields, **given[i]) for i in blocks}
    depends = any(sympy.Symbol("l", positive=True) in each.rhs.free_symbols for each in found[min(found)].equations())
    alike = None if depends or numbered else found[min(found)].lambdify(**VALUES)
    return {i: alike or each.lambdify(**VALUES, l=i) for i, each in found.items()}


def iterated(maps: dict, path: Path, numbers: list[list[float]]) -> tuple[list[list[float]], list[list[float]]]:
    """Streams behind each block, from the network's before the first; then cotangents before each, the same way."""
    ends = min(maps) - 1, max(maps)
    forward, cotangent = [joint_numbers(path.forward[ends[0]])], joint_numbers(path.backward[ends[1]])
    count = len(forward[0])
    for i in maps:
        forward.append([float(v) for v in maps[i](*forward[-1], *numbers[i - 1], *cotangent)][:count])
    backward = [cotangent]
    for i in reversed(maps):
        entering = [*forward[i - 1 - ends[0]], *numbers[i - 1], *backward[-1]]
        backward.append([float(v) for v in maps[i](*entering)][-count:])
    return forward[1:], backward[:0:-1]


def largest_miss(found, path: Path, blocks: dict) -> float:
    """Relative to the largest moment of the streams at that place."""
    behind = [joint_numbers(path.forward[i]) for i in blocks]
    before = [joint_numbers(path.backward[i - 1]) for i in blocks]
    pairs = zip([*found[0], *found[1]], [*behind, *before], strict=True)
    return max(float(np.abs(np.subtract(a, b)).max() / np.abs(b).max()) for a, b in pairs)


@pytest.mark.few(2)
@pytest.mark.parametrize(("name", "activation", "logit_std", "norm"), cases())
def test_iterated_it_is_predict(name: str, activation: str, logit_std: float | str, norm: str) -> None:
    fields = {"activation": activation, "norm": norm}
    numeric, other = (LOGIT_STD, LOGIT_STD + 0.1) if logit_std == "symbol" else (0.0, LOGIT_STD)
    path, another = (network(name, **fields, logit_std=value) for value in (numeric, other))
    maps = steps(name, **fields, logit_std=logit_std)
    numbers = skips(name, **fields, logit_std=numeric)
    assert largest_miss(iterated(maps, path, numbers), path, maps) < 1e-9
    assert largest_miss(iterated(maps, another, numbers), another, maps) > 1e-5
    fewer = network(name, **fields, logit_std=numeric, tokens=TOKENS - 1)
    assert largest_miss(iterated(maps, fewer, numbers), fewer, maps) > 1e-6


@pytest.mark.parametrize("name", ["siamesenorm", "deepnorm", "dyt", "postnorm"])
def test_it_is_short(name: str) -> None:
    """What CPU time is spent on: several streams behind norms were written out in thousands of operations."""
    longest, total = (60, 550) if name == "siamesenorm" else (30, 200)
    found = [sympy.count_ops(equation.rhs) for equation in written(name).equations()]
    assert max(found) <= longest
    assert sum(found) <= total


def test_a_long_variance_below_a_norm_is_named() -> None:
    named = {str(each.lhs): each.rhs for each in written("siamesenorm").definitions}
    assert sympy.count_ops(named["n_1"]) > 6
    assert "q_2" not in named  # 1: what a norm leaves
    assert not any(str(each.lhs).startswith("n_") for each in written("postnorm").definitions)


def test_mixln_needs_to_know_which_block() -> None:
    with pytest.raises(pg.ModelError, match="index and depth must be numbers for MixLN"):
        pg.recursion("mixln")


def test_a_scaling_multiplies_the_gains() -> None:
    values = VALUES | {"L": 16, "l": 2}
    scaled = pg.recursion("postnorm", scaling=pg.ScaleInit(0.5)).lambdify(**values)
    plain = written("postnorm").lambdify(**values | {"g_a": 0.7 / 4, "g_f": 1.2 / 4})
    assert scaled(*POINT) == pytest.approx(plain(*POINT), rel=1e-12)
    assert scaled(*POINT) != pytest.approx(written("postnorm").lambdify(**values)(*POINT), rel=1e-3)


def test_a_number_for_logit_std_is_the_symbol_with_that_value() -> None:
    named = written("prenorm", logit_std="symbol").lambdify(**VALUES)
    number = pg.recursion("prenorm", logit_std=0.9).lambdify(**VALUES)
    assert number(*POINT) == pytest.approx(named(*POINT), rel=1e-12)


def test_known_algebra() -> None:
    """PreNorm's variance is a sum, and PostNorm's is 1."""
    assert str(written("prenorm").variance) == "a_1 + a_2 + q"
    assert written("postnorm").variance == 1
    assert pg.recursion("spannorm", activation="gelu").variance == 1


def test_it_prints() -> None:
    text = pg.recursion("spannorm", activation="linear")
    assert text._repr_latex_().startswith("$")
    lines = str(text).splitlines()
    assert lines[0].startswith("# Uniform attention: the map of predict(Model(..., logit_std=0), head_size=math.inf)")
    assert len([line for line in lines if not line.startswith("#")]) == len(text.equations())
    assert str(pg.recursion("prenorm", activation="linear", logit_std="symbol")).startswith("# Softmax attention")


def largest_change(shown: list, exact: list) -> float:
    """Relative, of the right sides, at random values of every symbol."""
    symbols = sorted(set().union(*(each.rhs.free_symbols for each in exact)), key=str)
    point = dict(zip(symbols, np.random.default_rng(0).uniform(0.2, 0.6, len(symbols)), strict=True))
    sides = [[float(each.rhs.subs(point)) for each in equations] for equations in (shown, exact)]
    return float(np.abs(np.divide(*sides) - 1).max())


@pytest.mark.parametrize(("placement", "other"), [(NGPT(), NGPT(alpha=0.051)), (TFixup(), TFixup(factor=0.68))])
def test_long_fractions_are_printed_as_decimals_that_are_equal_to_them(placement: Placement, other: Placement) -> None:
    found = written(placement, activation="linear")
    exact, shown = found.equations(), printed(found.equations())
    assert 0 < largest_change(shown, exact) < 5e-4  # four digits
    assert largest_change(printed(written(other, activation="linear").equations()), exact) > 5e-3
    assert not re.search(r"\d{4}", re.sub(r"\d*\.\d{1,6}", "", "".join(str(each.rhs) for each in shown)))
    assert re.search(r"\d{4}", "".join(str(each.rhs) for each in exact))
    assert notes(exact)[0] in str(found)
    assert notes(exact)[0] in found._repr_markdown_()


def test_short_fractions_are_printed_as_they_are() -> None:
    exact = written("layerscale").equations()
    assert printed(exact) == exact
    assert notes(exact) == []


def test_products_of_rounded_floats_are_exact_again() -> None:
    """nGPT's steps of 0.95 and 0.05 leave a stream of variance 1: 0.95 times 0.95 is no 0.9025 in floats."""
    assert written("ngpt").variance == 1
    assert not any(
        number.q > 10**6 for each in written("ngpt").equations() for number in each.rhs.atoms(sympy.Rational)
    )


def test_with_experts_it_says_that_it_is_of_means() -> None:
    assert "Map of means over routers and tokens" in key(pg.recursion("prenorm", experts=pg.Experts(2, 1)))
    assert "Map of means" not in key(written("prenorm"))


def key(found: object) -> str:
    """What stands above the equations."""
    return " ".join(line.removeprefix("# ") for line in str(found).splitlines() if line.startswith("# "))


@pytest.mark.parametrize(
    ("placement", "options"),
    [
        ("spannorm", {"activation": "swiglu"}),
        ("subln", {"logit_std": "symbol"}),
        ("residual", {}),
        ("admin", {"experts": pg.Experts(4, 2)}),
        ("dyt", {}),
    ],
)
def test_every_letter_that_is_printed_is_in_the_key_and_no_other(placement: str, options: dict) -> None:
    found = pg.recursion(placement, **options)
    below = " ".join(line for line in str(found).splitlines() if not line.startswith("# "))
    printed_names = {re.sub(r"\d+", "", name) for name in re.findall(r"[A-Za-z]\w*", below)}
    explained = {re.sub(r"\d+", "", name) for name in re.findall(r"[A-Za-z]\w*", key(found).replace("_k", "_"))}
    families = {re.sub("_.*", "_", name) for name in printed_names if name.startswith(("softmax", "gate"))}
    own = {name for name in printed_names if not name.startswith(tuple(families))} if families else printed_names
    assert own - explained <= {"sqrt", "acos", "pi", "log"}
    assert all(any(name.startswith(family) for name in explained) for family in families)
    assert ("tau" in explained) == ("tau" in printed_names)
    assert ("w" in explained) == ("w" in printed_names)
    assert "\\" not in str(found)
    assert r"\gamma'" in found._repr_latex_() or placement == "residual"


def test_numbers_that_stand_together_are_printed_as_one() -> None:
    found = printed(written("prenorm", activation="gelu").equations())
    (hidden,) = (each.rhs for each in found if str(each.lhs) == "a_2")
    assert str(hidden) == "g_f**2"  # gains count from a variance of 1, of which exact fractions and pi made long ones


@pytest.mark.parametrize("value", ["__import__('os').getpid()", "2", None, True, float("nan"), [1.0]])
def test_no_text_is_evaluated(value: object) -> None:
    with pytest.raises(pg.ModelError, match="T must be"):
        written("postnorm", activation="linear").lambdify(T=value, g_a=1.0, g_f=1.0)


def test_what_is_missing_is_named() -> None:
    with pytest.raises(pg.ModelError, match="T, g_f"):
        written("postnorm").lambdify(g_a=1.0)


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


def test_a_model_says_which_block_it_is() -> None:
    """Of a Model the activation, scaling and logits are its own; what contradicts it is refused."""
    model = pg.Model("spannorm", depth=4, activation="linear", scaling=pg.ScaleInit(0.5), logit_std=0.0)
    same = pg.recursion("spannorm", activation="linear", scaling=pg.ScaleInit(0.5), index=2, depth=4)
    assert pg.recursion(model, index=2).results == same.results
    assert "L" in str(pg.recursion(model).grad_variance) or "L" in str(pg.recursion(model))
    with pytest.raises(pg.ModelError, match="recursion of a Model takes activation"):
        pg.recursion(model, activation="gelu")
    with pytest.raises(pg.ModelError, match="recursion needs exchangeable tokens"):
        pg.recursion(pg.Model("spannorm", depth=4, causal=True))
    with pytest.raises(pg.ModelError, match="index must be between 1 and depth, got index=5"):
        pg.recursion(model, index=5)


def test_text_has_the_names_of_greek_letters_and_no_commands() -> None:
    told = pg.recursion("postnorm")
    assert "\ngamma' = " in str(told)
    assert "\\" not in str(told)
    assert r"\gamma' &= " in told._repr_latex_()
