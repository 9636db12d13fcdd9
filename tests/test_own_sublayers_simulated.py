"""A sublayer, and a norm, of a user's own: one registered function each, and the simulation has it."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from test_reverse_pass import relative_mismatch, start

import propagate as pg
from propagate.montecarlo.backend import choose_backend
from propagate.montecarlo.blocks import block_of, read
from propagate.montecarlo.normals import Normals
from propagate.montecarlo.samplers import dense

HOST = choose_backend("numpy")
RUN = {"backend": "numpy", "draws": 200, "seed": 3}


@dataclass(frozen=True)
class TokenShift(pg.Sublayer):
    """A causal convolution over two tokens: W x_t + V x_(t-1)."""

    gain: float = 1.0
    before: float = 0.5
    alike = False


@pg.montecarlo.apply.register
def _(shift: TokenShift, x, block):
    xp = block.xp
    here, pull_here = block.matrix(x, block.width, shift.gain)
    read, pull_read = block.matrix(x[:, :-1], block.width, shift.before, [pg.montecarlo.Part("before", block.width)])
    zero = xp.zeros_like(x[:, :1])

    def pull(g):
        return pull_here(g) + xp.concatenate([pull_read(g[:, 1:]), zero], axis=1)

    return here + xp.concatenate([zero, read], axis=1), pull


@dataclass(frozen=True)
class LinearAttention(pg.Sublayer):
    """Gated linear attention: y_t = sigmoid(x_t W) * sum over s <= t of decay^(t-s) (q_t . k_s) v_s / size."""

    decay: float = 0.8
    size: int = 6
    alike = False


@pg.montecarlo.apply.register
def _(kind: LinearAttention, x, block):
    xp, size, width = block.xp, kind.size, block.width
    projected, pull_in = block.matrix(x, 2 * size + 2 * width)
    query, key, value, gate = xp.split(projected, (size, 2 * size, 2 * size + width), axis=-1)
    lag = xp.arange(block.tokens)[:, None] - xp.arange(block.tokens)[None, :]
    decay = xp.where(lag >= 0, kind.decay ** abs(lag), 0.0).astype(x.dtype) / size
    weights = decay * (query @ key.swapaxes(-1, -2))
    read, opened = weights @ value, 1 / (1 + xp.exp(-gate))
    y, pull_norm = block.norm(read)

    def pull(g):
        arrived = pull_norm(g * opened)
        of_weights = decay * (arrived @ value.swapaxes(-1, -2))
        parts = (of_weights @ key, of_weights.swapaxes(-1, -2) @ query, weights.swapaxes(-1, -2) @ arrived)
        return pull_in(xp.concatenate([*parts, g * y * opened * (1 - opened)], axis=-1))

    return opened * y, pull


@dataclass(frozen=True)
class AbsNorm(pg.Norm):
    """Over the mean absolute value, in place of the root mean square."""


@pg.montecarlo.norm.register
def _(norm: AbsNorm, x, backend):
    xp = backend.xp
    size = xp.mean(abs(x), axis=-1, keepdims=True) + norm.eps
    y = x / size
    return y, lambda g: (g - xp.sign(x) * xp.mean(g * y, axis=-1, keepdims=True)) / size


class Shifted(pg.Placement):
    """A skip and a convolution."""

    sublayer: pg.Sublayer = TokenShift(gain=0.8, before=0.5)

    def block(self, x, block):
        return x + block.apply(self.sublayer, x)


class Mixed(pg.Placement):
    """Three kinds of sublayers behind one norm."""

    def block(self, x, block):
        y = block.apply(LinearAttention(), block.norm(x)) + block.apply(TokenShift(), x)
        return block.norm(x + block.ffn(x + y))


SMALL = {"depth": 2, "width": 12, "tokens": 5, "heads": 3}


@pytest.mark.parametrize("backend", ["numpy", pytest.param("cupy", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("norm", ["rms", AbsNorm(), AbsNorm(eps=0.2)], ids=str)
def test_their_reverse_pass_is_the_adjoint(norm, backend: str) -> None:
    here = choose_backend(backend)
    model = pg.Model(Mixed(), norm=norm, activation="gelu", **SMALL)
    normals = Normals(here, 7, range(2))

    def apply(x):
        return read(model.equations.block, block_of(model, here, dense(normals), 1), x)

    # a small step, within which no coordinate changes its sign
    assert relative_mismatch(apply, start(model, here), here, step=1e-6) < 1e-6
    assert relative_mismatch(apply, start(model, here), here, scale=1.001, step=1e-6) > 1e-6


@pytest.mark.parametrize("sampler", ["dense", "weightless"])
def test_a_convolution_has_the_moments_that_are_worked_out_by_hand(sampler: str) -> None:
    """At every width: the convolution's matrices are independent of all else, so that second moments add up."""
    model = pg.Model(Shifted(), depth=1, width=64, tokens=3, heads=1)
    seen = pg.simulate(model, sampler=sampler, variance=1.5, grad_variance=0.7, **RUN)

    def score(name: str, expected: list[float]) -> float:
        at = {"token_variance": 1, "grad_token_variance": 0}[name]
        return float((abs(seen[name][at] - np.array(expected)) / seen[f"{name}_se"][at]).max())

    assert score("token_variance", [1.5 * 1.64, 1.5 * 1.89, 1.5 * 1.89]) < 4
    assert score("token_variance", [1.5 * 1.64] * 3) > 4
    assert score("grad_token_variance", [0.7 * 1.89, 0.7 * 1.89, 0.7 * 1.64]) < 4
    assert score("grad_token_variance", [0.7 * 1.64, 0.7 * 1.89, 0.7 * 1.89]) > 4


def test_gradients_of_its_matrices_have_columns_of_their_names() -> None:
    """|x^T g|^2 of orthogonal tokens: the sum of |x_t|^2 |g_t|^2 over those that the matrix meets, in every draw."""
    model = pg.Model(Shifted(), depth=1, width=64, tokens=3, heads=1)
    seen = pg.simulate(model, variance=1.5, grad_variance=0.7, include={"param_grad"}, **RUN)
    assert seen.matrix.values.tolist() == ["tokenshift", "before"]
    tokens = {"tokenshift": 3, "before": 2 * 0.5**2}  # its entries are stored with gain 1, and applied with 1 / 2
    for name, count in tokens.items():
        assert float(seen.param_grad.sel(matrix=name)[1]) == pytest.approx(64**2 * 1.5 * 0.7 * count, rel=1e-9)


def test_a_norm_of_one_s_own_is_used_on_streams_and_inside() -> None:
    model = pg.Model("postnorm", norm=AbsNorm(), normed=("heads",), **SMALL)
    seen = pg.simulate(model, draws=20, backend="numpy")
    gaussian = np.pi / 2  # mean square over squared mean absolute value
    assert abs(float(seen.variance[-1]) / gaussian - 1) < 0.2
    assert abs(float(seen.variance[-1]) - 1) > 0.2
    plain = pg.simulate(pg.Model("postnorm", norm=AbsNorm(), **SMALL), draws=20, backend="numpy")
    assert float(abs(plain.variance[1] / seen.variance[1] - 1)) > 1e-3


@dataclass(frozen=True)
class Unknown(pg.Sublayer):
    """A description for which nothing is registered."""


@dataclass(frozen=True)
class Sparse(pg.FFN):
    """One that inherits from another kind and may mean another thing."""

    kept: int = 2


@dataclass(frozen=True)
class UnknownNorm(pg.Norm):
    """The same of norms."""


@dataclass(frozen=True)
class Narrow(pg.Sublayer):
    """Its function gives an array of another shape."""


@pg.montecarlo.apply.register
def _(narrow: Narrow, x, block):
    return x[..., :1], lambda g: g


def test_what_is_not_registered_is_refused_in_words() -> None:
    for kind in (Unknown, Sparse):
        with pytest.raises(pg.ModelError, match=f"simulation does not cover {kind.__name__}"):
            pg.simulate(pg.Model(Shifted(kind()), **SMALL), draws=2)
    for normed in ((), ("key",)):
        with pytest.raises(pg.ModelError, match="simulation does not cover UnknownNorm"):
            pg.simulate(pg.Model("prenorm", norm=UnknownNorm(), normed=normed, **SMALL), draws=2)
    with pytest.raises(pg.ModelError, match=r"block\.apply takes a description, such as propagate\.FFN\(\), got 'ffn'"):
        pg.simulate(pg.Model(Shifted("ffn"), **SMALL), draws=2)
    with pytest.raises(pg.ModelError, match=r"Narrow must give an array of shape \(2, 5, 12\), got \(2, 5, 1\)"):
        pg.simulate(pg.Model(Shifted(Narrow()), **SMALL), draws=2)


@dataclass(frozen=True)
class Edited(pg.Sublayer):
    """A description whose function is registered anew."""


def test_a_checkpoint_knows_the_registered_function(tmp_path: Path) -> None:
    def once(kind, x, block):
        return block.matrix(x, block.width)

    def twice(kind, x, block):
        return block.matrix(x, block.width, 2.0)

    model, file = pg.Model(Shifted(Edited()), **SMALL), tmp_path / "run.npz"
    for function in (once, once):
        pg.montecarlo.apply.register(Edited, function)
        pg.simulate(model, draws=2, checkpoint=file)
    pg.montecarlo.apply.register(Edited, twice)
    with pytest.raises(pg.ModelError, match=r"another run, which differs in functions\..*Edited \('def once"):
        pg.simulate(model, draws=3, checkpoint=file)


def test_the_package_is_imported_when_it_is_used() -> None:
    assert pg.montecarlo.apply is not None
    with pytest.raises(AttributeError, match="has no attribute 'spread'"):
        _ = pg.montecarlo.spread
