"""A network stacked on itself at the moment of growth, predicted: copies with the same weights, in the wide limit."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from propagate.checks import check_memory, integer
from propagate.growth import grown
from propagate.model import Model, ModelError, check_flag, check_norms
from propagate.start import Start
from propagate.table import STREAM, table
from propagate.theory.predict import MOMENTS, predict
from propagate.theory.starts import both_grams
from propagate.theory.tied import TiedPath, walk_tied
from propagate.theory.token_resolved import statistics
from propagate.theory.tokens.gram import Gram
from propagate.theory.tokens.softmax import REPLICAS, default_samples
from propagate.theory.walks import repeated, replicas_of

if TYPE_CHECKING:
    import xarray as xr

QUANTITIES = ("variance", "covariance", "deviation")
GRAMS = 12  # arrays of tokens by tokens, of all copies together, that a call takes
Array = NDArray[np.float64]


def predict_growth(
    model: Model,
    start: Start | None = None,
    *,
    times: int = 2,
    rescaled: bool = False,
    through_readout: bool = False,
) -> xr.Dataset:
    """Second moments along a network that is stacked on itself, forward and back, in the limit of infinite width.

    Copies of a block have the same weights, so that what they give adds up: `predict` of `grown(model)`, whose weights
    are all fresh, is what it is compared with. Tokens are resolved whatever the start; cost grows with the square of
    blocks times copies, and with the cube of tokens times copies.

    Args:
        model: the network that is stacked.
        start: at the two ends of the stack.
        times: copies.
        rescaled: whether branches have the gains of the stack's depth; see `grown`.
        through_readout: the cotangent enters behind the readout instead.

    Returns:
        A Dataset over `block` 0 ... depth times copies with the moments of `predict` and, of each, `<name>_fresh`, that
        of fresh weights in every block; `<name>_allowance`, that of fresh weights too (measured errors of eight
        placements at widths 64 and 256 are as large, and fall with the width); and, where attention's logits were
        drawn, `<name>_se`.

    Raises:
        ModelError: for what is not derived: sublayers other than `Attention` and `FFN`, experts and dropout among
            them, tanh of streams, arrays of starts, and tokens that come so near one another that sums over copies lose
            what is between them.

    Example: the second copy of a linear block adds more than fresh weights would, for its input is like the first's.
        >>> small = Model("prenorm", depth=1, activation="linear", tokens=4, heads=8, logit_std=0.0)
        >>> found = predict_growth(small)
        >>> found.variance.values.round(3).tolist(), found.variance_fresh.values.round(3).tolist()
        ([1.0, 2.25, 5.451], [1.0, 2.25, 3.65])
    """
    stack = grown(model, times, rescaled=rescaled)
    check_flag("through_readout", through_readout)
    times = integer("times", times)
    if model.uneven or model.dropout:
        field = "dropout=0" if model.dropout else "experts=None"
        raise ModelError(
            f"predict_growth needs {field}: what copies of routers and masks have in common is not derived;"
            " simulate_growth has it"
        )
    check_norms(stack)
    given = Start.of(start)
    if given.inputs is not None:
        raise ModelError("inputs must be None for predict_growth, which takes moments or a Gram matrix")
    for name in MOMENTS:
        if getattr(given[name], "dims", ()):
            raise ModelError(f"{name} must be a number for predict_growth, got an array of starts")
    tokens = model.tokens
    check_memory(f"{times} copies of {tokens} tokens", GRAMS * 8.0 * REPLICAS * (times * tokens) ** 2 * stack.depth)
    first, last = both_grams(given, tokens)
    replicas = replicas_of(stack)
    with np.errstate(divide="raise"):
        path = walk_tied(
            stack,
            model.depth,
            first,
            last,
            replicas=replicas,
            samples=default_samples(times * tokens) // REPLICAS,
            through_readout=through_readout,
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the maps' use, of which the walk with tied weights is another
        fresh = predict(stack, given, through_readout=through_readout)
    several = len(path.forward[0]) > 1
    of_replicas = _columns(path, repeated(first, replicas), repeated(last, replicas))
    columns: dict[str, Any] = {}
    for name, values in of_replicas.items():
        columns[name] = values.mean(axis=1)
        if replicas > 1:
            columns[f"{name}_se"] = values.std(axis=1, ddof=1) / np.sqrt(replicas)
        if f"{name}_allowance" in fresh:  # of one token there is none of two
            columns[f"{name}_allowance"] = fresh[f"{name}_allowance"].transpose("block", ...).values
    attributes = {
        "witness": "theory",
        "model": repr(stack),
        "width": model.width,
        "depth": stack.depth,
        "tokens": tokens,
        "copies": times,
        "rescaled": int(rescaled),
    }
    found = table(columns, stack.depth, attributes, (STREAM,) if several else ())
    return found.assign({f"{name}_fresh": fresh[name] for name in of_replicas if name in fresh and name in found})


def _columns(path: TiedPath, start: Gram, cotangent: Gram) -> dict[str, Array]:
    """Arrays (block, replica), or (block, replica, stream)."""
    found: dict[str, Array] = {}
    for prefix, ends, places in (
        ("", (start, path.readout), path.forward),
        ("grad_", (path.embedding, cotangent), path.backward),
    ):
        streams = [statistics([place[i] for place in places], start) for i in range(len(places[0]))]
        for name in QUANTITIES:
            values = [stream[name] for stream in streams]
            if len(streams) > 1:
                joined = np.full_like(values[0], np.nan)
                joined[0], joined[-1] = (statistics([end], start)[name][0] for end in ends)
                values.append(joined)
            found[prefix + name] = values[0] if len(streams) == 1 else np.stack(values, axis=-1)
    return found
