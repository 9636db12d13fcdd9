"""tanh of a perturbed stream, coordinate by coordinate (see `perturbation`).

Coordinates of the stream are known by samples. Forward, the Gram matrix of f = tanh x is a mean over `width`
coordinates of f_t f_s, given the Gram matrix of x: its average over Gaussians, less by what the Gram matrix of Gaussian
coordinates fluctuates, and a fluctuation of its own, which is that of f_t f_s less its regression on products of
coordinates of x. It is sampled at each evaluation's own coordinates: why they differ is correlated with it.

What comes back from the matrices behind is q = A w + M f, with w rows of fresh Gaussian matrices less what they have
along f, and M of order e. With d = tanh'(x), the Gram matrix of d q is that of d times A A^T in the mean, and changes
by what w lacks along f and by what M adds, squared; w is independent of all that came before, so that nothing else has
a mean. Along a stream z that came before d q has E d_t f_a z = (E tanh''_t tanh_a) <x_t, z> + (E d_t d_a) <x_a, z>, by
Stein's lemma, times M and times what w lacks; and, by samples, fluctuations of d w z and of what is beyond it in d f z.
Left out is the product of what is beyond it in two tanhs, M times M: at most 2 % of the bias wherever it was measured
(slopes of 1 to 6, skips of 0.3 and 1, branches of 0.5 and 2; one token, three blocks).

What leaves has directions of its own: sublayers know only its inner products, and nothing else may take it.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from propagate.model import ModelError
from propagate.theory.finite.perturbation import COORDINATES, Array, Frame, Noise, Returned, factored, inner, root
from propagate.theory.finite.tanh_expansion import Expansion, entries, tanh_expansions

SINGULAR = 1e-7  # of the largest direction of tanh x: what is smaller is none
ALIKE = 1e-5  # share of the largest energy of tokens' combinations below which samples lose it in rounding


def tanh(frame: Frame, x: Array) -> tuple[Array, Callable[[Returned], Array]]:
    """Components of tanh x along directions of its own, (evaluations, tokens, tokens), and the pull.

    The pull takes a cotangent, with what it has along these directions, to vectors in the frame.

    Raises:
        ModelError: for tokens that are nearly linearly dependent.
    """
    noise, gram, seen = frame.noise, inner(x, x), frame.seen(x)
    assert seen is not None
    of_values, of_slopes = tanh_expansions(gram[-1])
    _check_apart(of_values.value)
    f, d = _tanh(seen)
    strangers = _tanh(root(gram[-1]) @ noise.random.standard_normal((noise.pairs, len(gram[-1]), COORDINATES)))
    y, _ = factored(root(_mean(noise, of_values, gram, seen, f)))
    slopes = _mean(noise, of_slopes, gram, seen, d)
    unit = np.linalg.pinv(y[-1], rcond=SINGULAR)  # from values to the coordinates of y's directions
    bent, straight = 2 * of_values.gradient[0], of_slopes.value

    def linear(weights: Array) -> Array:
        """Factors of x in what the values, so weighted, times d have along any direction: Stein's lemma."""
        return np.asarray((weights * bent).sum(axis=-1, keepdims=True) * np.eye(len(unit)) + weights * straight)

    def pull(g: Returned) -> Array:
        fresh, size = frame.fresh(g.fresh.shape[-1]), inner(g.fresh, g.fresh)
        assert fresh is not None
        assert frame.coordinates is not None
        rows = g.fresh[:-1] @ fresh
        w = d * rows
        gram = slopes * size + noise.of_products(w, w, _products(d, d) / d.shape[-1] * size[:-1])
        weights = g.known @ unit  # of values
        if g.isotropic:  # with a given Gram matrix, and what is orthogonal to nothing
            gram = gram - of_slopes.value * noise.of_products(rows, rows, size[:-1])
        else:
            gram = gram + noise.square * _second(noise, weights, size, unit, *strangers)
            weights = weights - g.fresh @ noise.of_products(fresh, unit @ f) @ unit
        factors = linear(weights)
        beyond = d * (weights[:-1] @ f) - factors[:-1] @ seen
        along = factors @ frame.padded(x) + noise.of_products(w + beyond, frame.coordinates)
        rest = root(gram - inner(along, along))
        return frame.grown(along, rest, np.linalg.pinv(rest[-1], rcond=SINGULAR) @ w)

    return y, pull


def _check_apart(gram: Array) -> None:
    energies = np.linalg.eigvalsh(gram)
    if energies[0] < ALIKE * energies[-1]:
        raise ModelError(
            f"bias covers tanh of tokens whose combinations all have {ALIKE:g} of the largest one's energy or more,"
            f" got {max(energies[0] / energies[-1], 0.0):.2g}: lower the covariance"
        )


def _second(noise: Noise, weights: Array, size: Array, unit: Array, f: Array, d: Array) -> Array:
    """Of the Gram matrix of what returns, times the width: what the values, so weighted, add, less what rows lack."""
    made = d * (weights[: noise.pairs] / noise.small @ f)
    lost = _products(d * ((unit @ f) ** 2).sum(axis=1, keepdims=True), d) * size[-1]
    second = (_products(made, made) - lost) / f.shape[-1]
    return np.concatenate([second, second, second[:1]])


def _tanh(x: Array) -> tuple[Array, Array]:
    f = np.tanh(x)
    return f, 1 - f * f


def _products(one: Array, other: Array) -> Array:
    """Sums over coordinates of products of tokens."""
    return np.asarray(one @ other.swapaxes(-1, -2))


def _mean(noise: Noise, of: Expansion, gram: Array, seen: Array, f: Array) -> Array:
    """Means over coordinates of f_t f_s, in all evaluations, given the Gram matrix of what f is a function of."""
    moved = entries(gram - gram[-1])
    mean, slopes = of.at(moved), of.slopes(moved)
    number = f.shape[-1]
    regression = (slopes[:, :-1] * entries(_products(seen, seen) - number * gram[:-1])).sum(axis=0)
    own = noise.of_pairs((_products(f, f) - number * mean[:-1] - regression) / math.sqrt(number))
    return np.asarray(mean + own + noise.square * of.of_sample(gram[-1]))
