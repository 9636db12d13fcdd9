"""Launches the kernels of the .cu files beside it. Arrays are (draws, tokens, width); T x T matrices are float64."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from propagate.montecarlo.arrays import Array
from propagate.montecarlo.pulls import AddingPull, Pull

LARGEST_TOKENS = 48  # a block's shared memory holds a few T x T matrices of float64
CHUNK = 2048  # columns whose sums one block takes; a constant, so that sums do not depend on the draws of a batch
MOMENTS_CHUNK = 4096  # likewise, of `sums_of_squares`
COLUMNS = {"float32": 1024, "float64": 128}  # that one block of `forward` and `backward` makes
THREADS = 256
FILES = {
    "float32": ("common", "single", "attention", "after", "activations"),
    "float64": ("common", "double", "after", "activations"),
}
DEPENDENT = {"float32": 1e-7, "float64": 0.0}  # see `factor` in after.cu
LARGEST_INVERSE = {"float32": 1e9, "float64": 1e6}


class Site(NamedTuple):
    """Where a matrix's random numbers begin, as the kernels take it."""

    first_draw: np.uint64
    site: np.uint32
    key0: np.uint32
    key1: np.uint32

    @classmethod
    def of(cls, seed: int, draws: range, site: int) -> Site:
        return cls(np.uint64(draws.start), np.uint32(site), *np.random.SeedSequence(seed).generate_state(2))


@lru_cache(maxsize=64)
def _module(tokens: int, dtype: str) -> Any:
    import cupy

    real = {"float32": "float", "float64": "double"}[dtype]
    source = "\n".join(Path(__file__).with_name(f"{name}.cu").read_text() for name in FILES[dtype])
    return cupy.RawModule(code=source, options=("-std=c++17", f"-DREAL={real}", f"-DTOKENS={tokens}"))


@lru_cache(maxsize=1024)
def _kernel(tokens: int, dtype: str, name: str) -> Callable[..., None]:
    kernel: Callable[..., None] = _module(tokens, dtype).get_function(name)
    return kernel


def launch(name: str, tokens: int, dtype: Any, grid: tuple[int, ...], threads: int, *arguments: Any) -> None:
    """Run a kernel compiled for this number of tokens and this type."""
    _kernel(tokens, np.dtype(dtype).name, name)(grid, (threads,), arguments)


def normals(at: Site, draws: int, shape: tuple[int, ...], dtype: Any) -> Array:
    """Standard normals of shape (draws, *shape)."""
    import cupy

    width = shape[-1]
    rows = int(np.prod(shape[:-1]))
    out = cupy.empty((draws, *shape), dtype=dtype)
    grid = (-(-width // THREADS), min(-(-rows // 4), 65535), draws)
    launch("normals", 1, dtype, grid, THREADS, out, np.uint32(rows), np.uint32(width), *at)
    return out


def site_normals(at: Site, draws: int, tokens: int, width: int, dtype: Any) -> Array:
    """The normals that `forward`, `backward` and `dot` make for themselves: (draws, tokens, width)."""
    import cupy

    out = cupy.empty((draws, tokens, width), dtype=dtype)
    grid = (-(-width // (2 * THREADS)), draws)
    launch("site_normals", tokens, dtype, grid, THREADS, out, np.uint32(width), *at)
    return out


def forward(mix: Array, width: int, at: Site, dtype: Any, *, relu: bool = False) -> Array:
    """mix @ Z with Z the site's normals and `mix` lower triangular; ReLU of it if asked for."""
    import cupy

    draws, tokens = mix.shape[:2]
    out = cupy.empty((draws, tokens, width), dtype=dtype)
    grid, sizes = _columns(draws, width, dtype)
    launch("forward", tokens, dtype, grid, 128, out, mix, *sizes, np.bool_(relu), *at)
    return out


def backward(mix: Array, x: Array, along: Array, at: Site, *, relu: bool = False, onto: Array | None = None) -> Array:
    """mix @ Z + along @ D, with `mix` lower triangular and D the successive differences of x's tokens.

    If asked for, the pull of the ReLU whose output x is follows at once; and the sum with `onto`.
    """
    import cupy

    draws, tokens, width = x.shape
    out = cupy.empty_like(x)
    grid, sizes = _columns(draws, width, x.dtype)
    arguments = (out, mix, x, along, _or_null(onto), *sizes, np.bool_(relu), *at)
    launch("backward", tokens, x.dtype, grid, 128, *arguments)
    return out


def _or_null(array: Array | None) -> Any:
    """The array, or the null pointer that tells a kernel there is none."""
    import cupy

    return np.uintp(0) if array is None else cupy.ascontiguousarray(array)


def _columns(draws: int, width: int, dtype: Any) -> tuple[tuple[int, int], tuple[np.uint32, np.uint32]]:
    columns = COLUMNS[np.dtype(dtype).name]
    return (-(-width // columns), draws), (np.uint32(width), np.uint32(columns))


def gram_and_dot(x: Array, at: Site) -> tuple[Array, Array]:
    """D D^T and D Z^T of the tokens' successive differences, in chunks of columns: (chunks, draws, T, T)."""
    import cupy

    draws, tokens, width = x.shape
    chunks = -(-width // CHUNK)
    gram, dot = (cupy.empty((chunks, draws, tokens, tokens)) for _ in range(2))
    sizes = (np.uint32(width), np.uint32(CHUNK))
    launch("gram_and_dot_of", tokens, x.dtype, (chunks, draws), THREADS, gram, dot, x, *sizes, *at)
    return gram, dot


def factors(grams: Array, noises: Array, unsound: Array, scale: float, dtype: Any) -> tuple[Array, Array, Array]:
    """Of x = root @ change @ D with orthonormal rows change @ D: scale * root, change, and Z2 (change @ D)^T.

    From the chunks of D D^T and D Z2^T; all (draws, T, T). `unsound` is set for the draws where rounding does not allow
    such factors.
    """
    import cupy

    chunks, draws, tokens = grams.shape[:3]
    out = [cupy.empty((draws, tokens, tokens)) for _ in range(3)]
    arguments = (*out, unsound, grams, noises, *_factor_sizes(chunks, draws, scale, dtype))
    launch("factors", tokens, dtype, (draws,), THREADS, *arguments)
    return out[0], out[1], out[2]


def returns(
    grams: Array, dots: Array, met: Array, change: Array, unsound: Array, scale: float, dtype: Any
) -> tuple[Array, Array]:
    """Of a cotangent g = root @ ...: scale * root, and scale * (g Z^T - root @ met) @ change; all (draws, T, T).

    From the chunks of D D^T and D Z^T, with D the differences of g's tokens.
    """
    import cupy

    chunks, draws, tokens = grams.shape[:3]
    out = [cupy.empty((draws, tokens, tokens)) for _ in range(2)]
    arguments = (*out, unsound, grams, dots, met, change, *_factor_sizes(chunks, draws, scale, dtype))
    launch("returns", tokens, dtype, (draws,), THREADS, *arguments)
    return out[0], out[1]


def _factor_sizes(chunks: int, draws: int, scale: float, dtype: Any) -> tuple[Any, ...]:
    name = np.dtype(dtype).name
    limits = (np.float64(DEPENDENT[name]), np.float64(LARGEST_INVERSE[name]))
    return (np.uint32(chunks), np.uint32(draws), np.float64(scale), *limits)


def norm(x: Array, second: Array | None = None, *, centred: bool) -> tuple[Array, Pull]:
    """x, or the sum of two arrays, less its mean if `centred`, over its root mean square along the last axis.

    And the pull, to that sum.
    """
    import cupy

    x = cupy.ascontiguousarray(x)
    width, rows = x.shape[-1], x.size // x.shape[-1]
    y, scale = cupy.empty_like(x), cupy.empty(rows, dtype=x.dtype)
    sizes = (np.uint32(width), np.bool_(centred))
    launch("norm_forward", 1, x.dtype, (rows,), THREADS, y, scale, x, _or_null(second), *sizes)

    def pull(g: Array, onto: Array | None) -> Array:
        out = cupy.empty_like(y)
        arguments = (out, cupy.ascontiguousarray(g), y, scale, _or_null(onto), *sizes)
        launch("norm_backward", 1, y.dtype, (rows,), THREADS, *arguments)
        return out

    return y, AddingPull(pull)


def attention(projected: Array, heads: int, scale: float, *, causal: bool) -> tuple[Array, Pull]:
    """Softmax attention, float32: from queries, keys and values side by side, (draws, tokens, 3 width)."""
    import cupy

    draws, tokens, width = projected.shape[0], projected.shape[1], projected.shape[2] // 3
    projected = cupy.ascontiguousarray(projected)
    out = cupy.empty((draws, tokens, width), dtype=projected.dtype)
    weights = cupy.empty((draws, heads, tokens, tokens), dtype=projected.dtype)
    sizes, grid = (np.uint32(heads), np.uint32(width // heads), np.float32(scale)), (heads, draws)
    threads = 128 if tokens <= 32 else 64
    arguments = (out, weights, projected, *sizes, np.bool_(causal))
    launch("attention_forward", tokens, projected.dtype, grid, threads, *arguments)

    def pull(g: Array) -> Array:
        cotangent = cupy.empty_like(projected)
        arguments = (cotangent, cupy.ascontiguousarray(g), weights, projected, *sizes)
        launch("attention_backward", tokens, projected.dtype, grid, threads, *arguments)
        return cotangent

    return out, pull


def sums_of_squares(x: Array) -> tuple[Array, Array, Array]:
    """Sums over columns of x^2, of the squared mean over tokens, and of the squared deviations from it."""
    import cupy

    draws, tokens, width = x.shape
    chunks = -(-width // MOMENTS_CHUNK)
    out = cupy.empty((chunks, draws, 3))
    sizes = (np.uint32(width), np.uint32(MOMENTS_CHUNK))
    launch("moments", tokens, x.dtype, (chunks, draws), THREADS, out, cupy.ascontiguousarray(x), *sizes)
    square, of_mean, of_deviation = out.sum(axis=0).T
    return square, of_mean, of_deviation
