"""One block of a network, forward and backward, over a batch of draws: what the speed benchmarks time."""

from __future__ import annotations

from collections.abc import Callable

from timing import seconds

from propagate.model import Model
from propagate.montecarlo.arrays import Array
from propagate.montecarlo.backend import Backend, choose_backend
from propagate.montecarlo.blocks import block_of, read
from propagate.montecarlo.cuda.weightless import Fused
from propagate.montecarlo.normals import Normals
from propagate.montecarlo.run import SAMPLERS
from propagate.montecarlo.samplers import Sampler

BLOCK = 2  # of 3: neither the first nor the last, which some placements treat in another way


def network(placement: str, width: int, tokens: int) -> Model:
    return Model(placement, depth=3, width=width, tokens=tokens, heads=8)


def sampler_on(backend: Backend, name: str, normals: Normals) -> Sampler:
    """As `simulate` takes it."""
    if name == "weightless" and backend.name == "cupy":
        return Fused(normals, backend.xp.zeros(len(normals.draws), dtype=bool))
    return SAMPLERS[name](normals)


def there_and_back(model: Model, backend: Backend, sampler: str, seed: int, x: Array, g: Array) -> tuple[Array, Array]:
    """What leaves the block, and the cotangent of what enters it."""
    normals = Normals(backend, seed, range(len(x)))
    block = block_of(model, backend, sampler_on(backend, sampler, normals), BLOCK)
    y, pull = read(model.equations.block, block, x)
    return y, pull(g)


def block_task(model: Model, backend: Backend, sampler: str, draws: int) -> Callable[[], object]:
    """Tokens and cotangents are there already; weights are fresh."""
    there = Normals(backend, 0, range(draws))
    x, g = (there(site, (model.tokens, model.width)) for site in (0, 1))
    return lambda: there_and_back(model, backend, sampler, 1, x, g)


def seconds_in_worker(model: Model, precision: str, draws: int, repeats: int) -> float:
    """Of a block, in a process of its own on the host."""
    return seconds(block_task(model, choose_backend("numpy", precision), "weightless", draws), repeats)


def maps(model: Model) -> list[tuple[int, int]]:
    """Fan-in and fan-out of a block's four maps (of an FFN without a gate)."""
    d, n = model.width, model.at(1).ffn.units
    return [(d, 3 * d), (d, d), (d, n), (n, d)]


def fewest_bytes(model: Model, size: int) -> int:
    """That a weightless block must move, of one draw, if random numbers are made in place: a floor for its time.

    A map reads its input and writes its output; on the way back it reads the cotangent for its Gram matrix, its input
    for the noise along it, its input again for the sum, and writes: 4 fan_in + 2 fan_out. Attention reads query, key
    and value and writes one array, then reads four and writes three. A norm with the sum before it reads two arrays
    and writes two, then reads two and writes one. The activation, scalings and sums of cotangents are taken to cost
    nothing, as if they were always fused with a neighbour.
    """
    d = model.width
    of_maps = sum(4 * fan_in + 2 * fan_out for fan_in, fan_out in maps(model))
    return size * model.tokens * (of_maps + 11 * d + 2 * 7 * d)
