"""A network stacked on itself at the moment of growth, simulated: copies with the very same matrices."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from propagate.checks import integer
from propagate.growth import grown
from propagate.model import Model, check_flag, check_norms
from propagate.montecarlo.places import place_of, planned_at
from propagate.montecarlo.run import Network, run_halving
from propagate.montecarlo.simulate import MOST_DRAWS, tabled
from propagate.montecarlo.starts import ends_of
from propagate.montecarlo.statistics import Summary, check_finite
from propagate.progress import progress_bar
from propagate.start import Start

if TYPE_CHECKING:
    import xarray as xr


def simulate_growth(
    model: Model,
    start: Start | None = None,
    *,
    times: int = 2,
    rescaled: bool = False,
    draws: int = 64,
    seed: int = 0,
    through_readout: bool = False,
    backend: Literal["auto", "numpy", "cupy"] = "auto",
    precision: Literal["float32", "float64"] = "float64",
    memory: int | None = None,
    progress: bool | None = None,
) -> xr.Dataset:
    """Second moments along random networks that are stacked on themselves, forward and back.

    Every draw is a network of its own, whose copies have the same matrices, entry by entry; dropout masks are drawn
    once a block, and copies have them in common too. The matrices are materialised: what conditions on their own past
    does not keep them.

    Args:
        model: the network that is stacked; anything that `simulate` covers.
        start: at the two ends of the stack.
        times: copies.
        rescaled: whether branches have the gains of the stack's depth; see `grown`.
        draws, seed, through_readout, backend, precision, memory, progress: as in `simulate`. The first copy is that
            network which `simulate` draws from the same seed with sampler="dense".

    Returns:
        A table as `simulate`'s, over `block` 0 ... depth times copies.

    Raises:
        ModelError: for values out of range.

    Example: PreNorm's second copy writes in the direction of the first.
        >>> small = Model("prenorm", depth=2, width=32, tokens=4, heads=2)
        >>> found = simulate_growth(small, draws=16, progress=False)
        >>> found.attrs["copies"], bool(found.variance[4] > 1.8 * found.variance[2])
        (2, True)
    """
    stack = grown(model, times, rescaled=rescaled)
    check_norms(stack)
    check_flag("through_readout", through_readout)
    if progress is not None:
        check_flag("progress", progress)
    where = place_of(backend, precision)
    draws = integer("draws", draws, at_least=2, at_most=MOST_DRAWS)
    seed = integer("seed", seed, at_least=0, at_most=2**128 - 1)
    given = Start.of(start)
    planned = planned_at(where, stack, precision, "dense", memory)
    network = Network(
        stack,
        where.backend,
        precision,
        "dense",
        seed,
        ends_of(stack, given),
        through_readout,
        planned.segment,
        period=model.depth,
    )
    summary = Summary()
    with progress_bar(progress, draws, 0) as advance:
        for first in range(0, draws, planned.batch):
            some = range(first, min(first + planned.batch, draws))
            moments = run_halving(network, some)
            check_finite(moments, some)
            summary.add(moments)
            advance(len(some))
    return tabled(network, summary, where.device, copies=integer("times", times), rescaled=int(rescaled))
