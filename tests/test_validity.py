"""The domain of validity: measured error maps, and the warning outside them."""

import dataclasses
import math
import warnings

import numpy as np
import pytest
import xarray as xr

import propagate as pg

SMALL = {"depth": 2, "width": 512, "tokens": 32, "heads": 8}


def warned(model: pg.Model, **start: object) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pg.predict(model, **start)
    return [str(warning.message) for warning in caught if warning.category is pg.ValidityWarning]


@pytest.mark.parametrize("operator", ["attention", "wide_attention", "ffn", "norm"])
def test_each_operator_has_a_map_and_its_assumptions(operator: str) -> None:
    errors = pg.validity(operator)
    assert errors.attrs["assumptions"]
    assert errors.attrs["width"] == 512
    assert bool(np.isfinite(errors.to_array()).all())


def test_an_unknown_operator_is_refused() -> None:
    with pytest.raises(pg.ModelError, match="operator must be one of attention, wide_attention, ffn, norm, got 'moe'"):
        pg.validity("moe")


def test_where_the_map_is_exact_its_errors_are_noise() -> None:
    """Uniform attention, FFN and norm: errors over standard errors are those of chance; a map 10 % off is not."""
    for errors in (pg.validity("attention").sel(logit_std=0.0), pg.validity("ffn"), pg.validity("norm")):
        for name in ("variance", "grad_variance"):
            error = np.hypot(errors[f"{name}_se"], 2 / errors.attrs["width"])  # and the finite width
            scores = errors[name] / error
            assert float(abs(scores).max()) < 4.5
            assert float((abs(scores + 0.1 / error) > 3).mean()) > 0.5


def test_nothing_is_said_inside_the_domain() -> None:
    assert warned(pg.Model("spannorm", **SMALL), covariance=0.3) == []
    assert warned(pg.Model("prenorm", causal=True, **SMALL)) == []
    assert warned(pg.Model("prenorm", **SMALL | {"tokens": 1})) == []


@pytest.mark.parametrize("causal", [False, True])
def test_wide_logits_are_warned_of(causal: bool) -> None:
    (message,) = warned(pg.Model("postnorm", logit_std=9.0, causal=causal, **SMALL))
    assert "standard deviation of 9" in message
    assert "not known" in message
    assert "nearest measured point" in message
    assert "below what was resolved" not in message  # which would reassure where nothing was measured
    assert "heads of 64" in message


@pytest.mark.slow
def test_queries_and_keys_that_are_normed_do_not_grow() -> None:
    grown = {"variance": 16.0, "covariance": 4.0}
    assert warned(pg.Model("tfixup", **SMALL), **grown)
    assert warned(pg.Model("tfixup", normed=("query", "key"), **SMALL), **grown) == []


def test_a_measured_error_inside_the_domain_is_warned_of() -> None:
    """At logit_std 2.25 and 128 tokens heads of 64 are not wide: more than 5 % if they are taken for it, measured."""
    model = pg.Model("postnorm", logit_std=2.25, **SMALL | {"tokens": 128})
    assert warned(model) == []
    (message,) = warned(dataclasses.replace(model, depth=1), head_size=math.inf)
    assert "standard deviation 2.25" in message
    assert "heads of 64" in message


def scores_of(errors: xr.Dataset) -> np.ndarray:
    return np.stack([errors[name] / errors[f"{name}_se"] for name in ("variance", "grad_variance")])


def test_attention_over_few_tokens_has_no_measured_error_beyond_chance() -> None:
    """At any logits: the scores are those of chance, and those of the map for wide heads are not."""
    few = {"tokens": slice(None, 32)}
    assert float((np.abs(scores_of(pg.validity("attention").sel(few))) > 3).mean()) < 0.006
    assert float((np.abs(scores_of(pg.validity("wide_attention").sel(few))) > 3).mean()) > 0.02


def test_attention_over_many_tokens_is_off_by_a_few_percent() -> None:
    """Terms of order 1 / width that the map leaves out, at a width of 512."""
    farthest = {}
    for operator in ("attention", "wide_attention"):
        errors = pg.validity(operator).sel(tokens=slice(128, None))
        sizes = np.abs(np.stack([errors[name] for name in ("variance", "grad_variance")]))
        farthest[operator] = float(sizes[np.abs(scores_of(errors)) > 3].max())
    assert farthest["attention"] < 0.04
    assert farthest["wide_attention"] > 0.1


def test_more_tokens_than_were_measured_are_warned_of() -> None:
    (message,) = warned(pg.Model("postnorm", logit_std=0.5, **SMALL | {"tokens": 1024}))
    assert "1024 tokens, verified up to" in message


def test_large_preactivations_are_warned_of_unless_scale_does_not_matter() -> None:
    start = {"variance": 400.0}
    (message,) = warned(pg.Model("tfixup", activation="gelu", logit_std=0.0, **SMALL), **start)
    assert "verified from 0.01 to 100" in message
    assert warned(pg.Model("tfixup", activation="relu", logit_std=0.0, **SMALL), **start) == []


@pytest.mark.slow
def test_arrays_of_starts_are_watched_too() -> None:
    import xarray as xr

    starts = xr.DataArray([1.0, 25.0], dims="start")
    assert len(warned(pg.Model("tfixup", **SMALL), variance=starts)) == 1
    assert warned(pg.Model("tfixup", **SMALL), variance=starts / 25) == []


@pytest.mark.parametrize(
    ("norm", "size", "few"), [("rms", 4, True), ("rms", 8, False), ("layer", 5, True), ("layer", 6, False)]
)
def test_norms_of_few_free_coordinates_are_warned_of(norm: str, size: int, few: bool) -> None:
    model = pg.Model("prenorm", depth=1, width=240, heads=240 // size, tokens=4, norm=norm, normed=("value",))
    said = warned(model)
    assert any(f"leave {size - (norm == 'layer')} free coordinates" in words for words in said) == few
    assert not warned(model, head_size=math.inf)  # of wide heads there is no such norm


def test_a_bias_of_few_wild_units_is_warned_of() -> None:
    """Its first order was wrong in sign with 8 and 16 hidden units of squared ReLU, and could not be told with 64."""
    model = pg.Model("spannorm", depth=1, width=16, tokens=2, heads=4, logit_std=0.0, activation="squared_relu")
    for hidden, warned in ((8, True), (64, True), (512, False)):
        few = dataclasses.replace(model, activation="relu", ffn=pg.FFN("squared_relu", hidden=hidden))
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            pg.predict(few, include={"bias"})
        assert any("bias is of first order" in str(each.message) for each in told) == warned
