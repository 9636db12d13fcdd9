"""Token arrays that are hard to factor, shared by the tests of factors and of the weightless sampler."""

import numpy as np

DRAWS = 3


def token_arrays(tokens: int = 12, coordinates: int = 40) -> dict[str, np.ndarray]:
    """Arrays of shape (draws, tokens, coordinates) by name."""
    rng = np.random.default_rng(7)
    z, shared = rng.standard_normal((DRAWS, tokens, coordinates)), rng.standard_normal((DRAWS, 1, coordinates))
    along = rng.standard_normal((DRAWS, tokens, 1)) * rng.standard_normal((DRAWS, 1, coordinates))
    first_alike, first_equal, pair_apart, mixed = z.copy(), z.copy(), z.copy(), z.copy()
    first_alike[:, 1:3] = z[:, :1] + 1e-6 * z[:, 1:3]
    first_equal[:, 1:3] = z[:, :1]
    pair_apart[:, 7] = z[:, 2]
    mixed[1], mixed[2] = 0.0, shared[2]
    return {
        "independent": z,
        "1 - correlation 1e-6": shared + 1e-3 * z,
        "1 - correlation 1e-12": shared + 1e-6 * z,
        "1 - correlation 1e-20": shared + 1e-10 * z,
        "exactly equal": shared + 0 * z,
        "deviations on a line": shared + 1e-6 * along,
        "graded deviations": shared + z * np.logspace(0, -12, tokens)[:, None],
        "first tokens alike": first_alike,
        "first tokens equal": first_equal,
        "two distant tokens equal": pair_apart,
        "few directions": z[:, :, :3] @ z[:, :3],
        "zero": 0 * z,
        "draws of different kinds": mixed,
        "one token": z[:, :1],
        "as many tokens as coordinates": z[:, :, :tokens],
        "more tokens than coordinates": z[:, :, :5],
        "one coordinate": z[:, :, :1],
        "tiny": 1e-120 * z,
        "vanishing": 1e-200 * z,
        "huge": 1e160 * z,
        "one zero token": z * (np.arange(tokens) != 4)[:, None],
    }


ARRAYS = token_arrays()
