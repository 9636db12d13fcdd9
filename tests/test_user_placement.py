"""A placement written outside the package works in every verb, and its simulation agrees with its theory."""

import dataclasses

import pytest

import propagate as pg


class ScaledSandwich(pg.Placement):
    """A skip of its own weight, one norm inside and one outside, and gains that fall with the block's index."""

    skip: float = 1.5

    def embed(self, x, block):
        return block.norm(x) * 2

    def block(self, x, block):
        y = self.skip * x + block.attention(block.norm(x)) / 2
        return block.norm(y + block.ffn(block.norm(y) if block.last else y))

    def readout(self, x, block):
        return block.norm(x)

    def gains(self, index, depth):
        return pg.Gains(ffn_out=(1 + index) ** -1)


MODEL = pg.Model("scaled sandwich", depth=4, width=64, tokens=6, heads=2)


def test_it_is_found_by_name_and_by_instance() -> None:
    assert pg.placement("Scaled-Sandwich") == ScaledSandwich()
    assert pg.Model(ScaledSandwich(skip=1.5), depth=4, width=64, tokens=6, heads=2) == MODEL
    assert pg.placements()["scaledsandwich"] is ScaledSandwich


def test_theory_and_simulation_agree() -> None:
    start = {"covariance": 0.3, "grad_covariance": 0.2}
    measured = pg.simulate(MODEL, draws=200, seed=5, backend="numpy", **start)
    judged = pg.compare(pg.predict(MODEL, **start), measured)
    assert judged.attrs["verdict"] != "disagrees"
    other = pg.Model(ScaledSandwich(skip=1.2), depth=4, width=64, tokens=6, heads=2)
    assert pg.compare(pg.predict(other, **start), measured).attrs["verdict"] == "disagrees"


def test_they_agree_through_its_readout() -> None:
    """The readout's norm takes one of `width` directions from the cotangent, of a stream whose variance is exact."""
    seen = pg.simulate(MODEL, draws=100, seed=5, backend="numpy", through_readout=True)
    judged = pg.compare(pg.predict(MODEL, through_readout=True), seen)
    assert judged.attrs["verdict"] != "disagrees", judged.worst_z.to_series().to_dict()


def test_its_recursion_is_a_step_of_predict() -> None:
    text = pg.recursion("scaledsandwich", activation="linear")
    step = text.lambdify(T=6, g_a=1.0, g_f=1.0, l=2, L=4)
    model = pg.Model("scaledsandwich", depth=4, tokens=6, activation="linear", logit_std=0.0)
    found = pg.predict(model, covariance=0.3, grad_covariance=0.2)
    q, p = (float(found[name][1]) for name in ("variance", "covariance"))
    gamma, kappa = (float(found[name][2]) for name in ("grad_variance", "grad_covariance"))
    after = [float(found[name][2]) for name in ("variance", "covariance")]
    before = [float(found[name][1]) for name in ("grad_variance", "grad_covariance")]
    assert step(q, p, gamma, kappa) == pytest.approx([*after, *before], rel=1e-12)
    assert step(q, p, gamma, kappa) != pytest.approx([*before, *after], rel=1e-12)


class Needy(pg.Placement):
    """A placement whose field has no default."""

    weight: float

    def block(self, x, block):
        return block.norm(self.weight * x + block.ffn(x))


def test_a_field_without_default_is_asked_for() -> None:
    with pytest.raises(pg.ModelError, match="weight"):
        pg.Model("needy", depth=2)
    assert float(pg.predict(pg.Model(Needy(weight=2.0), depth=2)).variance[-1]) == pytest.approx(1)


class Leaky(pg.Placement):
    """Two streams and a number: a sum whose skip is the last sum's own size, and a slow average of what it reads."""

    rate: float = 0.3

    def embed(self, x, block):
        return x, 1.0, block.norm(x) / 2

    def block(self, state, block):
        x, size, slow = state
        slow = (1 - self.rate) * slow + self.rate * x
        x = x + block.attention(x + slow, normed=("query", "heads")) / size
        y = x + block.ffn(block.tanh(slow), normed=("hidden",))
        return block.norm(y), block.std(y), slow

    def readout(self, state, block):
        return state[0] + block.norm(state[2])


STREAMS = pg.Model("leaky", depth=3, width=96, tokens=6, heads=2, activation="gelu")


@pytest.mark.few(1)
@pytest.mark.parametrize("norm", ["rms", "layer"])
def test_several_streams_and_a_number(norm: str) -> None:
    model, start = dataclasses.replace(STREAMS, norm=norm), {"covariance": 0.3, "grad_covariance": 0.2}
    measured = pg.simulate(model, draws=100, seed=6, backend="numpy", **start)
    theory = pg.predict(model, **start)
    assert theory.variance.dims == measured.variance.dims == ("block", "stream")
    assert list(theory.stream.values) == ["1", "2", "joined"]
    judged = pg.compare(theory, measured)
    assert judged.attrs["verdict"] != "disagrees", judged.worst_z.to_series().to_dict()
    wrong = dataclasses.replace(model, placement=Leaky(rate=0.4))
    assert pg.compare(pg.predict(wrong, **start), measured).attrs["verdict"] == "disagrees"


def test_the_recursion_of_several_streams_names_every_moment() -> None:
    """`tests/test_recursion.py` holds such recursions against `predict`."""
    text = pg.recursion("leaky", activation="relu")
    assert [str(a) for a in text.arguments if str(a)[0] in "qw"] == ["q11", "q12", "q22", "w1"]
    assert str(text.result("gamma22")).count("gamma22") == 1
    with pytest.raises(pg.ModelError, match="gamma12"):
        text.result("gamma")


class Splits(pg.Placement):
    """A block that makes a second stream, which `embed` did not."""

    def block(self, x, block):
        return (x, x) if block.first else x


class NeverJoins(pg.Placement):
    """Two streams and no readout."""

    def embed(self, x, block):
        return x, x

    def block(self, x, block):
        return x


class ReturnsNothing(pg.Placement):
    """An equation without return."""

    def block(self, x, block):
        x + block.ffn(x)


@pytest.mark.parametrize("name", ["splits", "neverjoins", "returnsnothing"])
def test_wrong_returns_are_refused(name: str) -> None:
    small = pg.Model(name, depth=2, width=8, tokens=2, heads=1)
    for verb in (lambda: pg.predict(small), lambda: pg.simulate(small, draws=2, backend="numpy")):
        with pytest.raises(pg.ModelError, match="stream"):
            verb()


class Misspelt(pg.Placement):
    """A normed projection that there is not."""

    def block(self, x, block):
        return x + block.attention(x, normed=("keys",))


def test_an_unknown_inner_norm_is_named() -> None:
    for verb in (pg.predict, lambda model: pg.simulate(model, draws=2, backend="numpy")):
        with pytest.raises(pg.ModelError, match="normed must be one of query, key, value, heads, got 'keys'; did you"):
            verb(pg.Model("misspelt", depth=1, width=8, tokens=2, heads=1))


class Empty(pg.Placement):
    """A placement without equations."""


def test_missing_equations_are_named() -> None:
    with pytest.raises(NotImplementedError, match=r"Empty must define block"):
        pg.predict(pg.Model("empty", depth=1))
