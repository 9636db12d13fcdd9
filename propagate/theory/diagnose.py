"""What large runs watch for their stability, predicted at initialisation: Adam's eps, z-loss, routers.

The loss is the mean cross-entropy of a batch. The gradient of a sequence has the moments that `predict` gives from the
cotangents of that loss (`theory.losses_met`). Gradients of sequences are taken to be uncorrelated, as those of random
tokens and targets are: a batch of B sequences divides mean squares of matrices by B. What sequences of a real text have
in common, such as frequent targets, leaves more than that.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from propagate.checks import ModelError, integer, number, shown
from propagate.diagnosis import Diagnosis, lines_of
from propagate.experts import Experts
from propagate.layers import Layer
from propagate.losses import CrossEntropy
from propagate.model import Model, check_model
from propagate.optimizers import Adam
from propagate.start import Start
from propagate.sublayers import Sublayer
from propagate.table import BY_MATRIX, table
from propagate.theory.balance_loss import balance_gradient
from propagate.theory.gaussian.hidden_z import hidden_z
from propagate.theory.losses_met import ends_met
from propagate.theory.parameter_gradients import Numbers, by_block
from propagate.theory.predict import walk_of
from propagate.theory.reading.blocks import Call
from propagate.theory.tokens.gram import Gram
from propagate.theory.uses import Use, uses_of
from propagate.transfer import factors_by_kind

VOCABULARY = 32768
SQUARE, VARIANCE, CORRELATION = "grad_square", "router_variance", "router_correlation"
MEANINGS = {
    "grad_rms": "root mean square of the gradient's entries, of the mean cross-entropy of a batch",
    "eps_share": "share of Adam's step that eps takes",
    "embedding_grad_rms": "root mean square of the gradient's entries, of the embedding of an entry that occurs once",
    "hidden_z": "E (log sum_i exp |z_ti|)^2 of the stream that leaves the last block",
    "hidden_z_grad_rms": "root mean square of its gradient by an entry of the stream",
    "hidden_z_ratio": "that over the root mean square of the loss's gradient",
    "router_cosine": "root mean square of the cosine of two experts' rows of the router",
    "balance_ratio": "gradient of the load-balance loss of weight 1 at the router over the loss's own",
}
POINTS = 4  # correlations at which the balance loss's gradient is drawn; between them it is interpolated


def diagnose(
    model: Model,
    optimizer: Adam = Adam(lr=1e-3),  # noqa: B008  # frozen
    *,
    start: Start | None = None,
    loss: CrossEntropy = CrossEntropy(VOCABULARY),  # noqa: B008  # frozen
    batch: int = 1,
    z_weight: float | None = None,
    balance_weight: float | None = None,
) -> Diagnosis:
    """Whether Adam's eps is felt, how large a hidden z-loss is, and whether routers are healthy, at initialisation.

    Args:
        model: the network.
        optimizer: `Adam`, of which only `eps` matters here.
        start: with a `variance` alone, that of an embedding; see `CrossEntropy`.
        loss: the mean cross-entropy of the batch; its `gain` is that of the unembedding. The number of entries hardly
            matters.
        batch: sequences of `model.tokens` tokens.
        z_weight: of the hidden z-loss of LongCat-Flash (arXiv:2509.01322); None asks how large it may be.
        balance_weight: of the load-balance loss, likewise.

    Returns:
        A `Diagnosis`, whose table has, over `block` and `matrix`, `grad_rms`, root mean square over the entries of all
        matrices of a name in a block (experts that no token chose count) and over networks, with `grad_rms_allowance`,
        how far a network of the model's width may lie from it, and `eps_share` = eps / (eps + grad_rms), the share of
        Adam's step that eps takes where the root of its second moment is the gradient's. Without dimensions
        `embedding_grad_rms`, of the row of an entry that occurs once in the batch; `hidden_z`, mean of
        (log sum_i exp |z_i|)^2 over tokens, of the stream z that leaves the last block; `hidden_z_grad_rms`, of the
        gradient of its mean over a sequence, by an entry of z; `hidden_z_ratio`, that over the loss's own gradient
        there. Over `block`, with experts, `router_cosine`, root mean square of the cosine of two experts' rows, and
        `balance_ratio`, the load-balance loss's gradient at the router over the loss's own, of one sequence and for a
        weight of 1; `balance_ratio_se`, what drawing logits leaves.

        Streams are taken at the mean of their variance over routers. Placements of several streams have no
        `hidden_z`: the norm at their end is of one of them, or of none.

    Raises:
        ModelError: for what is no Adam or cross-entropy, a start with more than a variance, or a network that
            `predict` does not cover.

    Example: at width 256 an eps of 1e-8 is not felt, one of 1e-3 is.
        >>> model = Model("prenorm", depth=4, width=256, tokens=8)
        >>> diagnose(model).verdict, diagnose(model, Adam(lr=1e-3, eps=1e-3)).verdict
        ('well', 'trouble')
        >>> print(diagnose(model, z_weight=1e-3).line("hidden z-loss"))
        hidden z-loss: log sum exp |z| is 9.44, 5.55 of it log width; weight 0.001: its gradient is 1.7 % of the loss's
    """
    check_model(model)
    if not isinstance(optimizer, Adam):
        raise ModelError(f"optimizer must be propagate.Adam, whose eps is asked about, got {shown(optimizer)}")
    if not isinstance(loss, CrossEntropy):
        raise ModelError(f"loss must be propagate.CrossEntropy(vocabulary), got {shown(loss)}")
    batch = integer("batch", batch)
    for name, value in (("z_weight", z_weight), ("balance_weight", balance_weight)):
        if value is not None:
            number(name, value, positive=False)
    ends = ends_met(loss, start, model, factors_by_kind(model, None, None))
    walked = walk_of(
        model,
        ends.start,
        frozenset(),
        by_block(model, _squares),
        through_readout=ends.through_readout,
        head_size=None,
        samples=None,
    )
    found = walked.found
    columns = found.columns
    with np.errstate(invalid="ignore", divide="ignore"):
        rms = np.sqrt(columns[SQUARE] / batch)
    sent = columns["grad_variance"]
    read = {
        "grad_rms": rms,
        "grad_rms_allowance": columns[f"{BY_MATRIX}_allowance"] / 2,
        "eps_share": np.where(rms > 0, optimizer.eps / (optimizer.eps + rms), np.nan),
    }
    attributes = {
        "witness": "theory",
        "model": repr(model),
        "width": model.width,
        "depth": model.depth,
        "tokens": model.tokens,
        "eps": optimizer.eps,
        "loss": repr(loss),
        "batch": batch,
        "z_weight": z_weight,
        "balance_weight": balance_weight,
    }
    made = table({}, model.depth, attributes, matrices=found.matrices)
    made = made.assign({name: (("block", "matrix"), values) for name, values in read.items()})
    made["embedding_grad_rms"] = math.sqrt(float(np.ravel(sent[0])[-1])) / batch
    if not found.several:
        made = made.assign(_of_stream(model, columns, batch))
    if "router" in found.matrices:
        made = made.assign(_of_routers(model, columns, found.matrices.index("router")))
    for name, meaning in MEANINGS.items():
        if name in made:
            made[name].attrs["long_name"] = meaning
    return Diagnosis(made, lines_of(made))


def _squares(index: int, layer: Layer, calls: Sequence[Call]) -> Numbers:
    """Mean squares of the gradient's entries by matrix; of a router also what it reads: a `Measure`."""
    sums: dict[str, Any] = {}
    counts: dict[str, int] = {}
    read: list[Use] = []
    for call in calls:
        if not isinstance(call.description, Sublayer):
            continue
        for at, (g, seen) in enumerate(call.arrived):
            for name, found in uses_of(call, g, seen, layer).items():
                for use in found if isinstance(found, tuple) else (found,):
                    label = _told_apart(name, call.description)
                    sums[label] = sums.get(label, 0.0) + use.gradient(layer.tokens)
                    if at == 0:
                        counts[label] = counts.get(label, 0) + use.fan_in * use.fan_out
                        read += [use] if label == "router" else []
    squares = {name: total / counts[name] for name, total in sums.items()}
    variances = [_diagonal(use.x) for use in read]
    together = [_together(use.x, layer.tokens) for use in read]
    if not read:
        return {SQUARE: squares, VARIANCE: {}, CORRELATION: {}}
    mean = sum(variances) / len(read)
    return {SQUARE: squares, VARIANCE: {"router": mean}, CORRELATION: {"router": sum(together) / len(read) / mean}}


def _told_apart(name: str, description: Any) -> str:
    """What a matrix is called here, where experts are not the dense FFN beside them."""
    return name.replace("ffn", "expert") if isinstance(description, Experts) else name


def _diagonal(x: Any) -> Any:
    return x.variance.mean(axis=-1) if isinstance(x, Gram) else x.variance


def _together(x: Any, tokens: int) -> Any:
    """Mean second moment of two tokens; of one token its own."""
    if tokens == 1:
        return _diagonal(x)
    if not isinstance(x, Gram):
        return x.covariance
    return (x.matrix.sum(axis=(-1, -2)) / tokens - _diagonal(x)) / (tokens - 1)


def _of_stream(model: Model, columns: dict[str, Any], batch: int) -> dict[str, Any]:
    """The hidden z-loss of what leaves the last block, and its gradient there beside the loss's."""
    of_tokens = columns.get("token_variance", columns["variance"])[-1]
    found = hidden_z(np.atleast_1d(of_tokens), model.width)
    own, loss = float(np.mean(found.gradient)) / model.tokens**2, float(columns["grad_variance"][-1])
    return {
        "hidden_z": float(np.mean(found.loss)),
        "hidden_z_grad_rms": math.sqrt(own) / batch,
        "hidden_z_ratio": math.sqrt(own / loss),
    }


def _of_routers(model: Model, columns: dict[str, Any], router: int) -> dict[str, Any]:
    """Over blocks: cosines of experts' rows, and the balance loss's gradient over the loss's."""
    square, variance, correlation = (columns[name][:, router] for name in (SQUARE, VARIANCE, CORRELATION))
    cosine, ratio, error = np.full((3, model.depth + 1), np.nan)
    blocks: dict[Experts, list[int]] = {}
    for index in range(1, model.depth + 1):
        if square[index] > 0:
            mixture = model.at(index).mixture
            cosine[index] = _cosine(mixture, model)
            spread = round(mixture.router_std * math.sqrt(variance[index]), 3)
            blocks.setdefault(mixture.with_(router_std=spread), []).append(index)
    for mixture, indices in blocks.items():
        met = np.clip(correlation[indices], 0.0, 1.0)
        points = np.unique(np.linspace(met.min(), met.max(), POINTS) if len(met) > POINTS else met)
        drawn = [balance_gradient(mixture, model.tokens, correlation=float(point)) for point in points]
        value = np.interp(met, points, [one.router for one in drawn])
        relative = max(one.router_se / one.router for one in drawn) / 2
        ratio[indices] = np.sqrt(value * variance[indices] / square[indices])
        error[indices] = relative * ratio[indices]
    return {
        "router_cosine": ("block", cosine),
        "balance_ratio": ("block", ratio),
        "balance_ratio_se": ("block", error),
    }


def _cosine(experts: Experts, model: Model) -> float:
    """Rows with independent entries of either sign: E cos^2 = 1 / width exactly. Orthogonal ones are."""
    if experts.candidates == 1:
        return math.nan
    if model.weights == "orthogonal":
        beyond = max(
            experts.candidates / model.width - 1, 0.0
        )  # sum of cos^2: candidates^2 / width, their own included
        return math.sqrt(beyond / (experts.candidates - 1))
    return 1 / math.sqrt(model.width)
