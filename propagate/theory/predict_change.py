"""How far one step moves every stream, predicted, to first order in the rate."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from propagate.checks import integer
from propagate.losses import Linear
from propagate.model import Model, ModelError, check_model
from propagate.optimizers import SGD, Muon, check_optimizer
from propagate.outline import outline
from propagate.start import Start
from propagate.sublayers import FFN, Attention
from propagate.table import STREAM, table
from propagate.theory.losses_met import ends_met
from propagate.theory.predict_step import predict_step
from propagate.theory.starts import both_grams, both_moments
from propagate.theory.tangent_maps import Change
from propagate.theory.tangents import Places, places_of, tangents, through
from propagate.theory.tokens.drawn_units import REPLICAS
from propagate.theory.tokens.gram import Array
from propagate.theory.transferred import transferred
from propagate.theory.walks import walk, walk_grams
from propagate.threads import one_thread_each
from propagate.transfer import Transfer, as_transfer, factors_by_kind

if TYPE_CHECKING:
    import xarray as xr

SEED = 20_261_130
UNITS = 4096  # hidden units, or coordinates of heads, drawn in each replica
MOST_UNITS = 2**16


def predict_change(
    model: Model,
    optimizer: SGD | Muon,
    start: Start | None = None,
    *,
    transfer: str | Transfer | None = None,
    base: tuple[int, int] | None = None,
    samples: int | None = None,
) -> xr.Dataset:
    """By how much the first step of an optimiser changes the stream at every block, in the limit of infinite width.

    To first order in the rate: the changes of all matrices, each carried through what comes after it, with what that
    shares with the cotangent of which the change is made (`propagate.theory.tangents`). The loss is linear.

    Args:
        model: the network; of attention and FFNs, norms, and sums of streams.
        optimizer: `SGD` or `Muon`, without decay; momentum has no part in the first step.
        start: moments or Gram matrices at the two ends; plain numbers.
        transfer, base: a rule of transfer, and where it is neutral, as for `predict_step`.
        samples: about how many hidden units, and coordinates of heads, are drawn in each of 8 replicas.

    Returns:
        A Dataset over `block` 0 ... depth: `change`, the mean square per token and coordinate of the stream less that
        before the step, as in `simulate_steps` where the rate is so small that only the first order counts; of several
        streams with the dimension `stream`. `change_se` is the error of the draws, and `change_allowance`, relative,
        how far a network of the model's width may lie from it. `total_fall` and `total_fall_se`, by which the loss
        falls, which `predict_step` has in closed form.

    Raises:
        ModelError: for what is not derived: `Sign` and `Adam`, whose steps are not in the span of what a matrix has
            met; decay, experts, dropout, tanh of streams, and sublayers other than attention and FFNs.

    Example: nothing has moved where nothing is trained yet; the change of the last block's stream lets the loss fall.
        >>> from propagate.optimizers import SGD
        >>> found = predict_change(Model("prenorm", depth=2, width=128, tokens=4), SGD(lr=1e-6))
        >>> float(found.change[0]), bool((found.change[1:] > 0).all()), bool(found.total_fall > 0)
        (0.0, True, True)
    """
    check_model(model)
    check_optimizer(optimizer)
    _check_covered(model, optimizer)
    units = UNITS if samples is None else integer("samples", samples, at_least=64, at_most=MOST_UNITS)
    factors = factors_by_kind(model, transfer, base)
    network = transferred(model, factors)
    given = ends_met(Linear(), start, network, factors).start
    places = _places(network, given)
    replicas = [
        _of_replica(places, Change(optimizer, factors, units, np.random.default_rng([SEED, replica])))
        for replica in range(REPLICAS)
    ]
    changes = np.stack([one for one, _ in replicas])
    columns: dict[str, Any] = {"change": changes.mean(axis=0), "change_se": changes.std(axis=0, ddof=1) / REPLICAS**0.5}
    step = predict_step(model, optimizer, start, transfer=transfer, base=base)
    allowed = _allowed(step)
    columns["change_allowance"] = np.broadcast_to(allowed.reshape(-1, *[1] * (changes.ndim - 2)), changes.shape[1:])
    of_model = {"model": repr(model), "width": model.width, "depth": model.depth, "tokens": model.tokens}
    asked = {
        "optimizer": repr(optimizer),
        "loss": repr(Linear()),
        "transfer": repr(None if transfer is None else as_transfer(transfer)),
    }
    several = (STREAM,) if columns["change"].ndim > 1 else ()
    found = table(columns, model.depth, {"witness": "theory"} | of_model | asked, several)
    falls = np.array([fall for _, fall in replicas]) * model.width
    return found.assign(total_fall=falls.mean(), total_fall_se=falls.std(ddof=1) / REPLICAS**0.5)


def _allowed(step: xr.Dataset) -> Array:
    """(blocks,): of the changes that lie before, weighed by the falls that they make: what is coherent in the stream's
    change adds up as falls do, and is squared.
    """
    falls = np.nan_to_num(step.first_order_fall.to_numpy())
    own, fall = (np.nan_to_num(step[f"{name}_allowance"].to_numpy()) for name in ("own_change", "first_order_fall"))
    weights, found = falls.sum(axis=1).cumsum(), (falls * np.maximum(own, 2 * fall)).sum(axis=1).cumsum()
    return np.asarray(np.divide(found, weights, out=np.zeros_like(found), where=weights > 0))


def _check_covered(model: Model, optimizer: Any) -> None:
    if not isinstance(optimizer, SGD | Muon):
        raise ModelError(
            f"predict_change does not cover {type(optimizer).__name__}, whose steps are not in the span of what a"
            " matrix has met: take SGD or Muon, or measure by simulate_steps"
        )
    if optimizer.decay:
        raise ModelError(f"predict_change needs decay=0, got {optimizer.decay}")
    if model.dropout:
        raise ModelError(f"predict_change needs dropout=0, got {model.dropout}")
    for index in range(1, model.depth + 1):
        layer = model.at(index)
        for call in outline(model.equations, model.depth, index):
            described = {"attention": layer.attention, "ffn": layer.ffn, "experts": layer.experts}.get(call.verb)
            kind = described or call.description
            if call.verb == "tanh":
                raise ModelError(f"predict_change does not cover tanh of a stream, got {model.placement!r}")
            if kind is None:
                continue
            if type(kind) not in (Attention, FFN):
                raise ModelError(f"predict_change covers attention and FFNs, got {kind!r}")


def _places(network: Model, given: Start) -> Places:
    tokens = network.tokens
    if given.gram is None and given.grad_gram is None and network.exchangeable:
        first, last = both_moments(given, tokens)
        return places_of(network, walk(network, first, last, exact=True), first, last)
    entering, leaving = both_grams(given, tokens)
    return places_of(network, walk_grams(network, entering, leaving, exact=True), entering, leaving)


@one_thread_each()
def _of_replica(places: Places, change: Change) -> tuple[Array, float]:
    """The change of every stream, (blocks,) or with streams and what they are joined in; the fall over the width."""
    joint, beta = tangents(places, change)
    tokens = joint.shape[-1]

    def size(read: Array) -> float:
        return float(np.trace(through(read, joint)) / tokens)

    found = np.array([[size(read) for read in of_block] for of_block in places.streams])
    fall = -float(np.einsum("at,atu,au,tu->", places.leaving, beta, places.leaving, places.arriving))
    if found.shape[1] == 1:
        return found[:, 0], fall
    joined = np.full(len(found), np.nan)
    joined[0], joined[-1] = 0.0, size(places.leaving)
    return np.column_stack([found, joined]), fall
