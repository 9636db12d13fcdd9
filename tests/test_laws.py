"""Laws of weight matrices: their entries, their matrices, their one wide limit, and which sampler takes them."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

import propagate as pg
from propagate.model import WEIGHTS
from propagate.montecarlo.backend import Backend, choose_backend
from propagate.montecarlo.laws import LAWS
from propagate.montecarlo.normals import Normals

BACKENDS = ["numpy", pytest.param("cupy", marks=pytest.mark.gpu)]
SHAPES = [(6, 6), (4, 9), (9, 4), (1, 3), (3, 1)]
LEVEL = 1e-4


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Backend:
    return choose_backend(request.param)


def matrices(law: str, backend: Backend, shape: tuple[int, int], draws: int = 2000) -> np.ndarray:
    return backend.to_host(LAWS[law](Normals(backend, 5, range(draws)), 64, *shape))


def test_every_law_of_a_model_is_there() -> None:
    assert tuple(LAWS) == WEIGHTS


def z_scores(samples: np.ndarray, expected: float) -> np.ndarray:
    """Of the means over draws."""
    spread = samples.std(axis=0, ddof=1) / math.sqrt(len(samples))
    return (samples.mean(axis=0) - expected) / np.maximum(spread, 1e-12)


@pytest.mark.few(12)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("law", LAWS)
def test_entries_have_mean_0_and_variance_1_over_fan_in(law: str, shape: tuple[int, int], backend: Backend) -> None:
    weight = matrices(law, backend, shape)
    assert weight.shape == (2000, *shape)
    variance = 1 / shape[0]
    assert abs(z_scores(weight, 0.0)).max() < 5
    assert abs(z_scores(weight**2, variance)).max() < 5
    wrong = 1 / shape[1] if shape[0] != shape[1] else 1.2 * variance
    assert abs(z_scores(weight**2, wrong)).max() > 5


ENTRIES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "normal": stats.norm.cdf,
    "uniform": stats.uniform(-math.sqrt(3), 2 * math.sqrt(3)).cdf,
    "truncated_normal": stats.truncnorm(-2, 2, scale=1 / stats.truncnorm(-2, 2).std()).cdf,
}


@pytest.mark.parametrize("claimed", ENTRIES)
@pytest.mark.parametrize("law", ENTRIES)
def test_independent_entries_have_the_law_they_claim_and_no_other(law: str, claimed: str, backend: Backend) -> None:
    entries = 2 * matrices(law, backend, (4, 5)).ravel()
    assert bool(stats.kstest(entries, ENTRIES[claimed]).pvalue > LEVEL) is (law == claimed)


@pytest.mark.parametrize("shape", SHAPES)
def test_orthogonal_matrices_are(shape: tuple[int, int], backend: Backend) -> None:
    fan_in, fan_out = shape
    weight = matrices("orthogonal", backend, shape, draws=50)
    if fan_in <= fan_out:
        gram, expected = weight @ weight.swapaxes(1, 2), fan_out / fan_in * np.eye(fan_in)
    else:
        gram, expected = weight.swapaxes(1, 2) @ weight, np.eye(fan_out)
    assert abs(gram - expected).max() < 1e-13 * max(shape)


def test_orthogonal_matrices_are_uniform(backend: Backend) -> None:
    """A row of a uniform orthogonal 3 x 3 matrix is uniform on the sphere, so each entry is uniform in (-1, 1)."""
    weight = matrices("orthogonal", backend, (3, 3))
    uniform = stats.uniform(-1, 2).cdf
    assert min(stats.kstest(entry, uniform).pvalue for entry in weight.reshape(-1, 9).T) > LEVEL / 9
    raw = np.linalg.qr(np.random.default_rng(0).standard_normal((2000, 3, 3)))[0]
    assert min(stats.kstest(entry, uniform).pvalue for entry in raw.reshape(-1, 9).T) < LEVEL / 9


def model(placement: str = "spannorm", **others: object) -> pg.Model:
    return pg.Model(placement, **{"depth": 3, "width": 64, "tokens": 4, "heads": 2, "activation": "gelu"} | others)


def judged(network: pg.Model) -> bool:
    start = {"covariance": 0.3, "grad_covariance": 0.2}
    measured = pg.simulate(network, draws=40, seed=11, backend="numpy", **start)
    assert measured.attrs["sampler"] == ("weightless" if network.weights == "normal" else "dense")
    return bool(pg.compare(pg.predict(network, **start), measured).attrs["verdict"] != "disagrees")


@pytest.mark.few(3)
@pytest.mark.parametrize(("law", "placement"), [*((law, "spannorm") for law in LAWS), ("orthogonal", "prenorm")])
def test_all_laws_have_the_wide_limit_of_the_theory(law: str, placement: str) -> None:
    assert judged(model(placement, weights=law))


def test_a_law_of_another_variance_has_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's truncated normal as it comes, with a standard deviation of 0.88 for 1."""
    truncated = LAWS["truncated_normal"]
    monkeypatch.setitem(LAWS, "truncated_normal", lambda *where: 0.8796 * truncated(*where))
    assert not judged(model("prenorm", weights="truncated_normal"))


def test_orthogonal_maps_keep_the_variance_where_normal_ones_only_do_on_average() -> None:
    """PreNorm's attention alone, at uniform attention to one token: x + x W_v W_o, of square matrices."""
    spread = {}
    for law in ("normal", "orthogonal"):
        network = pg.Model("prenorm", 1, width=16, tokens=1, heads=1, logit_std=0, ffn_gain=0, weights=law)
        found = pg.simulate(network, draws=200, sampler="dense", backend="numpy")
        spread[law] = float(found.variance_se[1]) * math.sqrt(200)
    # |x + O x|^2 / d = 2 + 2 <x, O x> / d with a variance of 4 / d; normal matrices add that of |W x|^2
    assert spread["orthogonal"] == pytest.approx(math.sqrt(4 / 16), rel=0.2)
    assert spread["normal"] > 1.25 * spread["orthogonal"]


@pytest.mark.parametrize("law", LAWS)
def test_batches_leave_no_trace(law: str) -> None:
    whole, single = (
        pg.simulate(model(weights=law, width=24), draws=5, sampler="dense", backend="numpy", memory=memory)
        for memory in (None, 1)
    )
    for name in whole:
        assert whole[name].values.tobytes() == single[name].values.tobytes()


@pytest.mark.parametrize("law", [law for law in LAWS if law != "normal"])
def test_the_weightless_sampler_refuses_other_laws(law: str) -> None:
    with pytest.raises(pg.ModelError, match=f"'weightless' needs weights='normal', got '{law}'"):
        pg.simulate(model(weights=law), draws=2, sampler="weightless", backend="numpy")


@pytest.mark.parametrize("value", ["uniforn", "Normal", None, 3, ["normal"]], ids=repr)
def test_another_law_is_refused(value: object) -> None:
    with pytest.raises(pg.ModelError, match="weights must be one of normal, uniform, truncated_normal, orthogonal"):
        model(weights=value)
