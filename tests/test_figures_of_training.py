"""The figures of training: told from the stored measurements, whose captions say what the data say and no more."""

from typing import Any

import numpy as np
import pytest
import xarray as xr
from figure_data import stored

from propagate import figures

NAMES = (
    *("collapse_training", "experts_trained", "foretold", "layers_trained", "stability", "training_cost"),
    *("transfer_training", "vision"),
)
QUICK = tuple(name for name in NAMES if name != "foretold")


def results() -> Any:
    figures.load("stability")  # puts the checkout on the path
    import figures.training_results as module

    return module


@pytest.mark.parametrize("name", NAMES)
def test_the_stored_data_are_told(name: str) -> None:
    data, script = stored(name), figures.load(name)
    caption = (figures.ROOT / "figures" / f"{name}.md").read_text(encoding="utf-8")
    assert caption.endswith(script.CAPTION.strip().format(**data.attrs) + "\n")
    assert data.attrs["draws"] >= 3
    assert data.attrs["device"] in ("NVIDIA H200", "CPU")


@pytest.mark.few(1)
@pytest.mark.parametrize("name", NAMES)
def test_the_stored_data_can_be_drawn(name: str) -> None:
    figure = figures.load(name).draw(stored(name))
    assert all(axes.get_xlabel() or axes.get_ylabel() or axes.get_title() for axes in figure.axes[:2])


@pytest.mark.parametrize("name", QUICK)
def test_the_figure_is_that_of_the_measurements(name: str) -> None:
    made = figures.load(name).data()
    assert made.identical(stored(name)) or made.equals(stored(name))


def kept(table: xr.Dataset, placement: str, exponent: float, **fields: Any) -> xr.Dataset:
    return results().chosen(table, placement=placement, exponent=exponent, **fields)


def test_shuffled_text_does_not_beat_the_plateau_and_text_does() -> None:
    sweeps = results().stored("sweeps")
    shuffled, text = (results().chosen(sweeps, text=kind) for kind in ("shuffled", "text"))
    last = results().losses(shuffled) - shuffled.unigram_loss
    assert int(last.notnull().sum()) == 27
    assert float(last.min()) > -0.005
    learned = results().losses(text).mean("seed").min("lr") - text.unigram_loss
    assert float((learned < -1.0).mean()) > 0.7  # the same check rejects text that can be learned


def test_without_scaling_training_collapses_and_with_it_does_not() -> None:
    data = stored("collapse_training")
    last = data.sizes["block"] - 1
    for placement in ("postnorm", "spannorm"):
        bare = kept(data, placement, 0.0).isel(cell=0)
        assert float(abs(bare.held_out_loss.sel(share=1.0) - bare.unigram_loss).max()) < 0.02
        assert float(bare.decorrelation.isel(block=last).sel(share=1.0).max()) < 1e-4
        assert float(bare.decorrelation.sel(block=1, share=1.0).min()) > 0.6
        for exponent in (0.5, 1.0):
            one = kept(data, placement, exponent).isel(cell=0)
            assert float(one.held_out_loss.sel(share=1.0).max()) < float(one.unigram_loss) - 1.5
            assert float(one.decorrelation.isel(block=last).sel(share=1.0).min()) > 0.5
            gain = np.sqrt(one.grad_variance.isel(block=0) / one.grad_variance.isel(block=last))
            assert 0.1 < float(gain.sel(share=[0.0, 1.0]).min()) < float(gain.sel(share=[0.0, 1.0]).max()) < 3
    pre = kept(data, "prenorm", 0.0).isel(cell=0)
    assert float(pre.held_out_loss.sel(share=1.0).max()) < float(pre.unigram_loss) - 1.5


def test_what_is_said_of_rates_and_losses() -> None:
    data = stored("stability")
    main = results().chosen(results().chosen(data, depth=24), warmup=0.1)
    mean = main.loss.mean("seed")

    def of(placement: str, exponent: float = 0.0) -> xr.DataArray:
        (place,) = np.flatnonzero((main.placement == placement) & np.isclose(main.exponent, exponent))
        return mean.isel(cell=int(place))

    best = of("spannorm", 0.5).idxmin("lr")
    assert float(of("postnorm", 0.5).sel(lr=best) - of("spannorm", 0.5).sel(lr=best)) > 0.5
    told = data.attrs["told"]
    for exponent in (0.25, 0.5, 1.0):
        assert float(of("postnorm", exponent).min() - of("spannorm", exponent).min()) > told
        assert float(of("prenorm", exponent).min() - of("spannorm", exponent).min()) < told
    assert float(max(of(name).min() for name in ("keel", "layernormscaling")) - of("spannorm", 1.0).min()) < 0
    for exponent in (0.0, 0.25, 0.5, 1.0):
        assert bool((of("prenorm", exponent).sel(lr=slice(2e-4, None)) < float(data.unigram_loss[0]) - 0.1).all())


def test_the_largest_stable_rate_is_the_last_before_one_that_fails() -> None:
    losses = np.array([[4.0, 3.0, 4.0, 6.0, 3.0], [6.0, 6.0, 6.0, 6.0, 6.0], [4.0, 3.5, 3.0, 2.5, 2.0]])
    shares = np.stack([np.full_like(losses, 7.0), losses], -1)[:, :, None]
    coordinates = {"lr": [1.0, 2.0, 4.0, 8.0, 16.0], "share": [0.0, 1.0]}
    table = xr.Dataset({"held_out_loss": (("cell", "lr", "seed", "share"), shares)}, coordinates)
    table = table.assign(unigram_loss=("cell", [6.0, 6.0, 6.0]))
    np.testing.assert_array_equal(results().largest_stable(table), [4.0, np.nan, 16.0])


def test_the_rule_is_scored_as_it_was_written_and_another_would_do_worse() -> None:
    data, script = stored("foretold"), figures.load("foretold")
    judged = (data.trains.notnull() & (data.lr >= 5e-4)).values
    right = (data.foretold == data.trains).values
    assert int(right[judged].sum()) == data.attrs["hits"]
    assert int(judged.sum()) == data.attrs["count"]
    for place in (0, 3, 7):
        one = data.isel(cell=place)
        said = script.said(*script._cell(data, place), float(data.lr[4]))
        assert said["gain"] == pytest.approx(float(one.gain[4]), rel=1e-5)
        assert said["trains"] == bool(one.foretold[4])
    generator = np.random.default_rng(0)  # the same words, dealt to other architectures
    chance = []
    for _ in range(50):
        dealt = data.foretold.values[generator.permutation(data.sizes["cell"])]
        both = judged & np.isfinite(dealt)
        chance.append(float((dealt == data.trains.values)[both].mean()))
    assert data.attrs["share"] > 100 * max(chance) + 5
    assert data.attrs["low"] > data.attrs["threshold"]


def test_trained_layers_are_less_alike_in_spannorm_and_as_idle() -> None:
    data = stored("layers_trained")
    size = data.sizes["block"]
    apart = data.layer_similarity.isel(end=1).where(~np.eye(size, dtype=bool)).mean(("block", "other_block"))
    pre, scaled, post, span = apart.values
    assert post + 0.05 < span < min(pre, scaled) - 0.05
    idle = (data.rise.mean("seed") < 0.01).mean("removed")
    assert float(abs(idle[3] - idle[1])) < 0.1


def test_vision_needs_the_scaling() -> None:
    data = stored("vision")
    for placement in ("postnorm", "spannorm"):
        assert float(kept(data, placement, 0.0).wrong.mean("seed").min()) > 0.5
        assert float(kept(data, placement, 0.5).wrong.mean("seed").min()) < 0.05
    assert float(kept(data, "prenorm", 0.0).wrong.mean("seed").min()) < 0.05


def test_spannorm_stands_larger_rates_than_postnorm_at_every_depth() -> None:
    data = stored("stability")
    for depth in (12, 24, 48, 96):
        at = results().chosen(results().chosen(data, depth=depth), warmup=0.1)
        post, span, pre = (kept(at, name, 0.5).isel(cell=0) for name in ("postnorm", "spannorm", "prenorm"))
        assert float(post.largest_stable) <= float(span.largest_stable) < float(pre.largest_stable)
        rates = data.lr[(span.loss.mean("seed") < post.loss.mean("seed") - 0.3).values]
        assert rates.size >= 1


def test_rules_of_transfer_carry_the_rate_and_the_standard_one_does_not() -> None:
    data = stored("transfer_training")
    script = figures.load("transfer_training")
    for placement, sparse in script.KINDS:
        for rule in ("mup", "longcat", "standard"):
            cells = script._line(data, placement, sparse, rule)
            if not cells.sizes["cell"]:
                continue
            mean = cells.loss.mean("seed")
            price = float(mean[-1, int(mean[0].values.argmin())] - mean[-1].min())
            moved = float(cells.optimum.max() - cells.optimum.min())
            assert (price < 0.01) == (moved < 0.8) == (rule != "standard") or not np.isfinite(cells.optimum).all()
            assert (float(mean[-1].min()) < float(mean[0].min())) == (rule != "standard")


def test_experts_change_little_here() -> None:
    data = stored("experts_trained")
    lowest = data.loss.mean("seed").min("lr").values
    assert abs(lowest[::2] - lowest[1::2]).max() < 0.03
    pre, post, span = lowest[::2]
    assert pre < span < post


def test_memory_is_that_of_norms_and_time_is_told_apart_only_roughly() -> None:
    data = stored("training_cost")
    at = dict(zip(data.label.values.tolist(), range(data.sizes["cell"]), strict=True))
    memory = data.memory.values
    assert max(abs(memory[at[name]] - 1) for name in ("PostNorm", "SpanNorm", "B2T", "DeepNorm")) < 0.01
    assert min(memory[at[name]] for name in ("Peri-LN", "OLMo2")) > 1.2
    assert min(data.time.values[at[name]] for name in ("Peri-LN", "OLMo2")) > 1 + data.attrs["chance"] / 100
    others = [data.time.values[place] for name, place in at.items() if name not in ("Peri-LN", "OLMo2")]
    assert max(others) < 1 + data.attrs["chance"] / 100


def test_trained_streams_keep_to_theory_where_norms_hold_them() -> None:
    theory = results().stored("theory")
    ends = theory.first_forward.sel(share=1.0)
    for placement, exponent, wanted in (("spannorm", 0.5, np.nan), ("postnorm", 0.5, np.nan), ("prenorm", 0.5, 1.0)):
        (place,) = np.flatnonzero((theory.placement == placement) & np.isclose(theory.exponent, exponent))
        np.testing.assert_equal(float(ends[place]), wanted)
    assert np.isnan(theory.first_forward.sel(share=0.0)).all()  # at the start there is nothing to leave it for
