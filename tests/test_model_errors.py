"""Bad input to `Model`, `predict`, `simulate` or `compare`: one line with the field, the value, what is allowed."""

import math
from typing import Any

import numpy as np
import pytest
import xarray as xr

import propagate as pg

MODEL = pg.Model("postnorm", depth=1, width=8, tokens=4, heads=2)
NAN, INF = math.nan, math.inf


class Half:
    """Not a placement, not a scaling, not a number."""

    def __repr__(self) -> str:
        return "Half()"


def refused(call, *words: str) -> str:
    with pytest.raises(pg.ModelError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 500
    for word in words:
        assert word in message, message
    return message


def named(value) -> str:
    """A short label for a case: its arguments, or nothing for the words."""
    if not isinstance(value, dict):
        return "-"
    return ",".join(
        f"{key}={np.ravel(v)[:3] if isinstance(v, np.ndarray) else repr(v)[:20]}" for key, v in value.items()
    )


WHOLE = ("depth", "width", "tokens", "heads")
REAL = ("logit_std", "value_gain", "attention_gain", "ffn_gain", "ffn_ratio")


@pytest.mark.parametrize("value", [0, -1, 1.5, "4", None, True, NAN, INF, [4], Half()], ids=repr)
@pytest.mark.parametrize("field", WHOLE)
def test_whole_numbers_of_a_model(field: str, value) -> None:
    fields = {"depth": 1, field: value}
    allowed = "at least 1" if type(value) is int else "whole number"
    refused(lambda: pg.Model("postnorm", **fields), field, repr(value), allowed)


@pytest.mark.parametrize("value", [-0.5, NAN, INF, -INF, "1", None, True, 1j, [1.0], Half()], ids=repr)
@pytest.mark.parametrize("field", REAL)
def test_numbers_of_a_model(field: str, value) -> None:
    if type(value) is not float:
        allowed = "a number"
    elif not math.isfinite(value):
        allowed = "finite"
    else:
        allowed = "positive" if field == "ffn_ratio" else "at least 0"
    refused(lambda: pg.Model("postnorm", depth=1, **{field: value}), field, repr(value), allowed)


def test_a_ratio_of_zero_is_refused() -> None:
    refused(lambda: pg.Model("postnorm", depth=1, ffn_ratio=0.0), "ffn_ratio", "positive", "0.0")
    refused(lambda: pg.Model("postnorm", depth=1, width=8, ffn_ratio=0.01), "ffn_ratio", "0.01", "hidden")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"count": 0}, ("experts.count", "at least 1", "0")),
        ({"count": 4, "top_k": 5}, ("experts.top_k", "at most 4", "5")),
        ({"count": 4, "top_k": 7, "identity": 2}, ("experts.top_k", "at most 6", "7")),
        ({"count": 4, "router_std": 0.0}, ("experts.router_std", "positive", "0.0")),
        ({"count": 4, "softmax": "behind"}, ("experts.softmax", "after, before, sigmoid, sigmoid_after", "behind")),
        ({"count": 4, "shared": -1}, ("experts.shared", "at least 0", "-1")),
        ({"count": 4, "split": 1.5}, ("experts.split", "whole number", "1.5")),
        ({"count": 4, "gain": NAN}, ("experts.gain", "finite", "nan")),
    ],
    ids=named,
)
def test_experts(fields: dict, words: tuple[str, ...]) -> None:
    refused(lambda: pg.Experts(**fields), *words)


@pytest.mark.parametrize("gain", ["logit_std", "value_gain", "attention_gain", "ffn_gain"])
def test_a_gain_of_zero_is_a_gain(gain: str) -> None:
    assert getattr(pg.Model("postnorm", depth=1, **{gain: 0}), gain) == 0.0


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("placement", "postnrom", ("postnorm",)),
        ("placement", "span-nrom", ("spannorm",)),
        ("placement", "zzzz", ("known", "postnorm", "spannorm")),
        ("placement", "", ("placement",)),
        ("placement", 3, ("placement", "3", "name")),
        ("placement", None, ("placement", "None")),
        ("placement", pg.Placement, ("placement", "instance")),
        ("activation", "rulu", ("activation", "rulu", "relu", "did you mean")),
        ("activation", "GELU", ("activation", "GELU", "gelu")),
        ("activation", 3, ("activation", "3", "swiglu")),
        ("activation", None, ("activation", "None")),
        ("activation", ["relu"], ("activation", "relu")),
        ("norm", "layr", ("norm", "layr", "layer", "did you mean")),
        ("norm", None, ("norm", "None", "rms")),
        ("causal", 1, ("causal", "1", "True or False")),
        ("causal", "yes", ("causal", "yes")),
        ("causal", None, ("causal", "None")),
        ("scaling", 0.5, ("scaling", "0.5", "gains")),
        ("scaling", Half(), ("scaling", "Half()")),
        ("scaling", "ScaleInit", ("scaling", "ScaleInit")),
        ("experts", 8, ("experts", "8", "None")),
        ("key_value_heads", 3, ("key_value_heads=3", "heads=2")),
        ("key_value_heads", 0, ("key_value_heads", "at least 1", "0")),
        ("dropout", 1.0, ("dropout", "below 1", "1.0")),
        ("dropout", -0.1, ("dropout", "at least 0", "-0.1")),
        ("experts", pg.Experts(8, 2, split=3), ("experts.split", "3")),
        ("heads", 3, ("heads", "3", "width")),
    ],
)
def test_other_fields_of_a_model(field: str, value, words: tuple[str, ...]) -> None:
    refused(lambda: pg.Model(**{"placement": "postnorm", "depth": 1, "width": 8, "heads": 2, field: value}), *words)


def test_a_layer_norm_needs_coordinates() -> None:
    refused(lambda: pg.Model("postnorm", depth=1, width=2, heads=1, norm="layer"), "width", "2", "3")
    assert pg.Model("postnorm", depth=1, width=3, heads=1, norm="layer").width == 3


def test_numpy_numbers_are_numbers() -> None:
    fields = {name: np.int64(4) for name in WHOLE} | {name: np.float32(0.5) for name in REAL}
    model = pg.Model("postnorm", **fields)
    assert [type(getattr(model, name)) for name in WHOLE] == [int] * 4
    assert [type(getattr(model, name)) for name in REAL] == [float] * 5
    assert float(pg.predict(model, variance=np.float64(2), covariance=np.int64(1)).variance[0]) == 2
    seen = pg.simulate(model, draws=np.int64(2), seed=np.int32(1), variance=np.float32(2), backend="numpy")
    assert seen.attrs["draws"] == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"exponent": "half"}, ("exponent", "half")),
        ({"exponent": NAN}, ("exponent", "nan", "finite")),
        ({"exponent": True}, ("exponent", "True")),
        ({"per": "layer"}, ("per", "layer", "block", "sublayer")),
    ],
)
def test_scale_init(arguments: dict, words: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=words[0]) as caught:
        pg.ScaleInit(**arguments)
    assert all(word in str(caught.value) for word in words)


STARTS = [
    ({"variance": -1.0}, ("variance", "positive", "-1.0")),
    ({"variance": 0.0}, ("variance", "positive", "0.0")),
    ({"variance": NAN}, ("variance", "finite", "nan")),
    ({"variance": INF}, ("variance", "finite", "inf")),
    ({"variance": "1"}, ("variance", "'1'")),
    ({"variance": None}, ("variance", "None")),
    ({"variance": Half()}, ("variance", "Half()")),
    ({"covariance": 1.1}, ("covariance", "1.1", "between")),
    ({"covariance": -0.5}, ("covariance", "-0.5", "between")),
    ({"covariance": NAN}, ("covariance", "finite", "nan")),
    ({"covariance": "0"}, ("covariance", "'0'")),
    ({"grad_variance": -1.0}, ("grad_variance", "positive", "-1.0")),
    ({"grad_variance": INF}, ("grad_variance", "finite", "inf")),
    ({"grad_variance": "1"}, ("grad_variance", "'1'")),
    ({"grad_covariance": 1.1}, ("grad_covariance", "1.1", "between")),
    ({"grad_covariance": -0.4}, ("grad_covariance", "-0.4", "between")),
    ({"grad_covariance": None}, ("grad_covariance", "None")),
]


@pytest.mark.parametrize(("arguments", "words"), STARTS, ids=named)
@pytest.mark.parametrize("verb", ["predict", "simulate"])
def test_starts(verb: str, arguments: dict, words: tuple[str, ...]) -> None:
    options = {"backend": "numpy", "draws": 2} if verb == "simulate" else {}
    refused(lambda: getattr(pg, verb)(MODEL, **arguments, **options), *words)


@pytest.mark.parametrize("verb", ["predict", "simulate"])
@pytest.mark.parametrize("model", ["postnorm", None, 3], ids=repr)
def test_a_model_is_a_model(verb: str, model) -> None:
    refused(lambda: getattr(pg, verb)(model), "model", repr(model))


@pytest.mark.parametrize("verb", ["predict", "simulate"])
def test_the_readout_is_a_choice(verb: str) -> None:
    refused(lambda: getattr(pg, verb)(MODEL, through_readout="no"), "through_readout", "'no'")


def test_the_lowest_covariance_is_allowed() -> None:
    lowest = -1 / 3
    assert float(pg.predict(MODEL, covariance=lowest).covariance[0]) == pytest.approx(lowest)
    found = pg.simulate(MODEL, covariance=lowest, draws=2, backend="numpy")
    assert float(found.covariance[0]) == pytest.approx(lowest)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"window": 0, "causal": True}, ("window", "0", "at least 1")),
        ({"window": 1.5, "causal": True}, ("window", "1.5", "whole")),
        ({"window": 2}, ("window", "causal=True", "2")),
        ({"mask": np.ones((3, 4), dtype=bool)}, ("mask", "square", "(3, 4)")),
        ({"mask": np.ones((3, 3), dtype=bool)}, ("mask", "4", "3")),
        ({"mask": np.ones((4, 4))}, ("mask", "True and False", "float64")),
        ({"mask": np.eye(4, k=1, dtype=bool)}, ("mask", "every row", "row 3")),
        ({"mask": "causal"}, ("mask", "square")),
        ({"mask": [[True], [True, False]]}, ("mask", "boolean matrix")),
        ({"mask": np.tri(4, dtype=bool), "causal": True}, ("mask", "causal=True", "Mask(4 tokens")),
        ({"rope": 0.0}, ("rope", "positive", "0.0")),
        ({"rope": "10000"}, ("rope", "number", "'10000'")),
        ({"rope": 100.0, "heads": 8}, ("rope", "odd", "width 1")),
    ],
    ids=lambda value: named(value),
)
def test_masks_and_positions_of_a_model(fields: dict[str, Any], words: tuple[str, ...]) -> None:
    given = {"width": 8, "tokens": 4, "heads": 2} | fields
    refused(lambda: pg.Model("postnorm", depth=1, **given), *words)


@pytest.mark.parametrize("verb", [pg.predict, pg.simulate])
@pytest.mark.parametrize("name", ["gram", "grad_gram"])
def test_gram_matrices(verb: Any, name: str) -> None:
    lopsided, negative = np.eye(4) + np.eye(4, k=1), 2 - np.eye(4) * 3
    for matrix, word in (
        (np.eye(3), "(4, 4)"),
        (lopsided, "symmetric"),
        (negative, "positive"),
        (np.full((4, 4), np.nan), "finite"),
        ("one", "numbers"),
    ):
        refused(lambda matrix=matrix: verb(MODEL, **{name: matrix}), name, word)


def test_predict_takes_no_plain_arrays_and_no_dimensions_of_unequal_tokens() -> None:
    causal = pg.Model("postnorm", depth=1, causal=True)
    many = xr.DataArray([0.0, 0.1], dims="start")
    refused(lambda: pg.predict(causal, covariance=many), "number", "exchangeable", "start")
    for samples in (0, 1.5, True, "16"):
        refused(lambda samples=samples: pg.predict(causal, samples=samples), "samples", repr(samples))
    refused(lambda: pg.predict(MODEL, covariance=np.array([0.0, 0.1])), "DataArray")
    refused(lambda: pg.predict(MODEL, covariance=xr.DataArray([0.0, 2.0], dims="start")), "covariance", "between")
    refused(lambda: pg.predict(MODEL, covariance=xr.DataArray(["a"], dims="start")), "covariance")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"draws": 1}, ("draws", "1", "at least 2")),
        ({"draws": 2.5}, ("draws", "2.5", "whole")),
        ({"draws": "2"}, ("draws", "'2'")),
        ({"draws": None}, ("draws", "None")),
        ({"draws": True}, ("draws", "True")),
        ({"seed": -1}, ("seed", "-1", "at least 0")),
        ({"seed": 0.5}, ("seed", "0.5")),
        ({"seed": None}, ("seed", "None")),
        ({"backend": "cuda"}, ("backend", "cuda", "numpy", "cupy", "auto")),
        ({"backend": None}, ("backend", "None")),
        ({"sampler": "sparse"}, ("sampler", "sparse", "dense")),
        ({"sampler": None}, ("sampler", "None")),
        ({"memory": 0}, ("memory", "0", "at least 1")),
        ({"memory": 1.5e9}, ("memory", "1500000000.0", "whole")),
        ({"memory": "1G"}, ("memory", "1G")),
        ({"gram": np.eye(3)}, ("gram", "(4, 4)", "(3, 3)")),
        ({"gram": 1.0}, ("gram", "(4, 4)")),
        ({"gram": "x"}, ("gram",)),
        ({"gram": -np.eye(4)}, ("gram", "positive")),
        ({"gram": np.triu(np.ones((4, 4)))}, ("gram", "symmetric")),
        ({"gram": np.full((4, 4), NAN)}, ("gram", "finite")),
        ({"gram": np.zeros((4, 4))}, ("gram",)),
        ({"inputs": np.ones((4, 7))}, ("inputs", "(4, 8)", "(4, 7)")),
        ({"inputs": np.full((4, 8), INF)}, ("inputs", "finite")),
        ({"inputs": [["a"] * 8] * 4}, ("inputs", "numbers")),
        ({"inputs": np.zeros((4, 8))}, ("inputs",)),
        ({"inputs": np.ones((4, 8)), "gram": np.eye(4)}, ("inputs", "gram")),
        ({"progress": "yes"}, ("progress", "'yes'")),
        ({"checkpoint": 3}, ("checkpoint", "3")),
    ],
    ids=named,
)
def test_arguments_of_simulate(arguments: dict, words: tuple[str, ...]) -> None:
    refused(lambda: pg.simulate(MODEL, **{"draws": 2, "backend": "numpy"} | arguments), *words)


def table(**columns) -> xr.Dataset:
    return xr.Dataset({name: ("block", np.array(values, dtype=float)) for name, values in columns.items()})


GOOD = table(variance=[1, 2], variance_se=[0.1, 0.1])


@pytest.mark.parametrize(
    ("prediction", "measurement", "words"),
    [
        (table(variance=[1, 2]), table(grad_variance=[1, 2]), ("share none", "variance")),
        (table(variance=[1, 2, 3]), GOOD, ("depth", "2", "1")),
        (table(variance=[1, 2]), table(variance=[1, 2]), ("variance_se",)),
        (table(covariance=[1, 2]), table(covariance=[1, 2], covariance_se=[1, 2]), ("variance",)),
        (xr.Dataset({"variance": (("block", "start"), np.ones((2, 3)))}), GOOD, ("variance", "block", "start")),
        (3, GOOD, ("prediction", "3")),
        (table(variance=[1, 2]), None, ("measurement", "None")),
        (xr.Dataset({"variance": 1.0}), GOOD, ("block",)),
    ],
)
def test_tables_that_do_not_fit(prediction, measurement, words: tuple[str, ...]) -> None:
    refused(lambda: pg.compare(prediction, measurement), *words)


@pytest.mark.parametrize("threshold", [0, -1.0, NAN, "4", None, True], ids=repr)
def test_the_threshold_is_a_positive_number(threshold) -> None:
    refused(lambda: pg.compare(GOOD, GOOD, threshold=threshold), "threshold", repr(threshold), "positive")
