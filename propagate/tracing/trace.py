"""The third witness: any torch model, watched by hooks, gives the table that theory and simulation give."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from propagate.checks import ModelError, integer, shown
from propagate.quantities import quantity_of
from propagate.start import GRAMS
from propagate.table import STREAM, table
from propagate.tracing.build import Network
from propagate.tracing.find import Blocks, blocks_of, none_called, unwrapped
from propagate.tracing.layout import Axes
from propagate.tracing.lists import all_listed, blocks_in_lists, on_its_own
from propagate.tracing.loss import value_of
from propagate.tracing.masks import checked_mask, counted_tokens
from propagate.tracing.matrices import MATRICES, Weight, matrices_of, squared_norms
from propagate.tracing.recorder import Recorder, watching
from propagate.tracing.statistics import change, cosine, effective_rank, precise, second_moments, shared, token_gram
from propagate.tracing.streams import Choice

if TYPE_CHECKING:
    import xarray as xr

MOMENTS = ("variance", "covariance", "deviation")
MOST_COTANGENTS = 10**4
MOST_TOKENS = 1024
"""Of longer sequences no Gram matrix is kept."""


def trace(
    module: nn.Module | Iterable[nn.Module],
    inputs: Any,
    *,
    loss: Callable[[Any], Tensor] | None = None,
    blocks: Blocks = None,
    mask: Tensor | None = None,
    axes: Axes = None,
    stream: Choice = None,
    seed: int = 0,
    cotangents: int = 1,
) -> xr.Dataset:
    """Second moments of the residual stream and its gradient at every block of a torch model, forward and backward.

    Hooks only: the model's code, weights, `.grad` and mode are as before, also after an error. Dropout is off.
    Statistics are float32 or better, whatever the model computes in.

    Args:
        module: a model, or an iterable of models of one architecture with independent weights (made one at a time, if
            it is a generator): then every quantity is a mean over these draws, with its standard error.
        inputs: what the model is called with: a tensor, a tuple of arguments or a mapping of keyword arguments.
        loss: from the model's output to a scalar, whose gradient is traced. By default a standard normal cotangent
            enters at the stream that leaves the last block, on the tokens that count: `simulate`'s grad_variance of 1.
        blocks: where the residual stream runs: modules, their container or its dotted path. By default the list of
            equal blocks that holds the most parameters; lists of sublayers that a model steps through itself, as
            x-transformers and vit-pytorch do, make blocks too.
        mask: (sequences, tokens), true for tokens that count. By default what the inputs' masks say of the stack that
            is traced (`attention_mask`, `decoder_attention_mask`, `src_key_padding_mask` and torch's like), else all.
            Pass one to leave out special tokens too. `attrs` state how many counted.
        axes: what each axis of the stream holds, such as "token sequence width". By default the width is the last axis,
            or the one that the block's matrices fit, and tokens lie along the axes that a block mixes: torch's layers
            with `batch_first=False` and streams of images are read right.
        stream: of blocks that return several tensors of the stream's shape, which is the stream: 0, 1, ..., or "sum" of
            a branch and a residual that the next block adds, the default where a block has an argument `residual`.
        seed: of the cotangents.
        cotangents: how many enter one after the other, instead of one: quantities of the gradient are means over them
            and, of a single model, have the standard error that they tell (of this model: another has another).

    Returns:
        A Dataset over `block` 0 ... depth with the names of `predict`; and `branch_skip_ratio`, rms(x_l - x_{l-1}) /
        rms(x_{l-1}); `layer_cosine`, of a token before and after a block; `embedding_share`, its squared cosine with
        what it was at block 0; `effective_rank` of the token Gram matrix;
        `parameter_grad_norm` of a block's parameters. Over (`block`, `call`), `call_variance`, `call_covariance` and
        `call_deviation` of what the sublayers gave ("attention1", "ffn1", "norm1", ...), before the skip is added.
        For several draws also `<name>_se`, and `log_<name>` of the positive ones.

        `param_grad` over (`block`, `matrix`), as in `predict`: squared Frobenius norms of the gradients of a block's
        matrices, of what `build` made and of the architectures that `describe` knows, where blocks share no weights. It
        is that of one sequence: with the default cotangent, which is independent between sequences, the mean over them;
        a loss over several sequences has none, since their gradients add up as no second moments tell.

        `gram` and `grad_gram`, over two tokens, are second moments of the embedded tokens and of the cotangent at the
        last block, from which `start_of` begins where tokens differ; of up to 1024 tokens that all count.

        A network that `build` made of a placement of several streams (ResiDual, SiameseNorm) has a further dimension
        `stream`, as in `predict`: "1", "2", ... and "joined", which is the embedded tokens at block 0 and what leaves
        the readout at the last block. The default cotangent then enters behind the readout. Of another model's
        several streams the first is traced.

        A sublayer is named by what it computes: "attention" mixes tokens, "ffn" treats each by itself and has matrices;
        "crossattention" does so too, and is told by its name.
        Where numbers are not finite, `attrs["first_not_finite"]` says where that began ("" if nowhere).

    Raises:
        ModelError: where the blocks are not found, are given no stream or do not hand it on, axes or streams cannot be
            told apart, or autograd is off (`torch.inference_mode`).

    Example: a model that is not ours.
        >>> layers = [nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=True) for _ in range(3)]
        >>> seen = trace(nn.Sequential(*layers), torch.randn(2, 5, 16))
        >>> seen.sizes["block"], bool(seen.variance[3] > seen.variance[0])
        (4, True)
    """
    seed = integer("seed", seed, at_least=0)
    if loss is not None and not callable(loss):
        raise ModelError(f"loss must be a function of the model's output, got {shown(loss)}")
    count = integer("cotangents", cotangents, at_most=MOST_COTANGENTS)
    if loss is not None and count > 1:
        raise ModelError(f"cotangents must be 1 with a loss, which makes its own, got {count}")
    draws: list[dict[str, Any]] = []
    for one in _modules(module):
        draws.append(_one(one, inputs, loss, blocks, mask, (axes, stream), Entering(seed, len(draws), count)))
        del one  # before the next is made
    if not draws:
        raise ModelError("module must be a torch model or an iterable of at least one")
    if any(
        [len(draw["variance"]), draw["_calls"], draw["_matrices"]]
        != [len(draws[0]["variance"]), draws[0]["_calls"], draws[0]["_matrices"]]
        for draw in draws
    ):
        raise ModelError("all models must have one architecture, got blocks or sublayers that differ")
    stacked = {name: np.array([draw[name] for draw in draws]) for name in draws[0] if name[:1] != "_"}
    for name in [name for name in stacked if len(draws) > 1 and quantity_of(name).scale == "log"]:
        with np.errstate(divide="ignore"):
            stacked[quantity_of(name).column("log")] = np.where(stacked[name] > 0, np.log(stacked[name]), np.nan)
    columns = {name: values.mean(0) for name, values in stacked.items()}
    if len(draws) > 1:
        columns |= {f"{name}_se": v.std(0, ddof=1) / np.sqrt(len(draws)) for name, v in stacked.items()}
    else:
        columns |= draws[0]["_errors"]
    attributes = dict(draws[0]["_attributes"]) | {"draws": len(draws), "seed": seed, "torch": torch.__version__}
    found = _labelled(columns, draws[0]["_calls"], draws[0]["_matrices"], draws[0]["_several"], attributes)
    grams = {name: sum(draw[f"_{name}"] for draw in draws) / len(draws) for name in GRAMS if f"_{name}" in draws[0]}
    return found.assign({name: (("token", "other_token"), value) for name, value in grams.items()})


def _modules(module: Any) -> Iterator[nn.Module]:
    if isinstance(module, nn.Module):
        yield module
        return
    if not isinstance(module, Iterable):
        raise ModelError(f"module must be a torch model or an iterable of them, got {shown(module)}")
    for one in module:
        if not isinstance(one, nn.Module):
            raise ModelError(f"module must be a torch model or an iterable of them, got one of {shown(one)}")
        yield one
        del one


def _one(
    module: nn.Module,
    inputs: Any,
    loss: Any,
    blocks: Blocks,
    mask: Tensor | None,
    reading: tuple[Axes, Choice],
    entering: Entering,
) -> dict[str, Any]:
    """All quantities of one model, over blocks; what is no quantity has a name with an underscore."""
    if torch.is_inference_mode_enabled() or any(p.is_inference() for p in module.parameters()):
        raise ModelError("trace needs autograd: call it outside torch.inference_mode, with weights made outside of it")
    found = blocks_of(module, blocks)
    with _evaluating(module):
        found = blocks_in_lists(found, lambda: _call(module, inputs))
    mask = counted_tokens(inputs, module, found[0]) if mask is None else mask
    seen = Recorder(None if mask is None else checked_mask(mask), *reading)
    eager = torch.compiler.set_stance("force_eager")  # hooks inside a compiled module are not called otherwise
    with (
        _in_place_named(),
        eager,
        torch.enable_grad(),
        _evaluating(module),
        watching(seen, module, found, _ends(module, found)),
    ):
        output = _call(module, on_its_own(inputs) if all_listed(found) else inputs)
        seen.asleep = True
        if not seen.called:
            raise none_called()
        weights = matrices_of(unwrapped(module), [unwrapped(block) for block in seen.called])
        every = [
            _columns(seen, *_gradients(seen, output, loss, entering, number), weights, alone=loss is None)
            for number in range(entering.cotangents)
        ]
    stream, counted = seen.flat(seen.states[0][0]), seen.kept
    sequences = counted.shape[0]
    columns: dict[str, Any] = {name: np.mean([one[name] for one in every], axis=0) for name in every[0]}
    errors = {
        quantity_of(name).column("se"): np.std([one[name] for one in every], axis=0, ddof=1) / np.sqrt(len(every))
        for name in columns
        if len(every) > 1 and name.startswith(("grad_", "param"))
    }
    matrices = _matrices(weights) if "param_grad" in columns else []
    names = list(dict.fromkeys(name for block in seen.calls for name in block))
    nothing = dict.fromkeys(MOMENTS, np.nan)
    for moment in MOMENTS if names else ():
        columns[f"call_{moment}"] = [[block.get(n, nothing)[moment] for n in names] for block in [{}, *seen.calls]]
    entered = "behind the readout" if seen.several else "at the last block"
    attributes = {
        "witness": "trace",
        "model": type(module).__name__,
        "width": stream.shape[-1],
        "depth": len(seen.called),
        "tokens": stream.shape[-2],
        "sequences": sequences,
        "tokens_counted": int(counted.sum()),
        "tokens_left_out": int((~counted).sum()),
        "gradient": "of the loss" if loss else f"of a standard normal cotangent {entered}",
        "dtype": str(stream.dtype).removeprefix("torch."),
        "device": str(stream.device),
        "axes": " ".join(seen.layout.names),
        "first_not_finite": _first_not_finite(columns, several=seen.several),
    }
    found_names = {"_calls": names, "_matrices": matrices, "_several": seen.several}
    return columns | found_names | {"_attributes": attributes, "_errors": errors}


def _columns(
    seen: Recorder, gradients: Gradients, of_parameters: OfParameters, weights: list[list[Weight]], *, alone: bool
) -> dict[str, Any]:
    """Quantities over blocks, with one cotangent, which is `alone` where no loss made it."""
    counted = seen.kept
    columns = _of_streams(seen, gradients, counted)
    columns["parameter_grad_norm"] = [np.nan, *(_norm(block, of_parameters) for block in seen.called)]
    sequences = counted.shape[0]
    matrices = _matrices(weights)
    if matrices and (alone or sequences == 1):
        norms = [squared_norms(of, of_parameters) for of in weights]
        rows = [[of.get(name, 0.0) / sequences for name in matrices] for of in norms]
        columns["param_grad"] = [[np.nan] * len(matrices), *rows]
    if bool(counted.all()) and counted.shape[1] <= MOST_TOKENS:
        ends = (seen.states[0][0], gradients.states[-1][0])
        if seen.several:
            ends = seen.ends[0], gradients.ends[-1]
        for name, end in zip(GRAMS, ends, strict=True):
            columns[f"_{name}"] = token_gram(seen.flat(end)).cpu().numpy()
    return columns


def _matrices(weights: list[list[Weight]]) -> list[str]:
    """The names that any block has, in their order."""
    named = {name for of in weights for weight in of for name in weight.names}
    return [name for name in MATRICES if name in named]


def _ends(module: nn.Module, blocks: list[nn.Module]) -> tuple[nn.Module, nn.Module] | None:
    """Where several streams begin and are joined, of a network that `build` made with all of its blocks."""
    for part in module.modules():
        if isinstance(part, Network) and part.streams > 1 and [*part.blocks] == blocks:
            return part.embed, part.readout
    return None


def _of_streams(seen: Recorder, gradients: Gradients, counted: Tensor) -> dict[str, Any]:
    """Quantities over blocks or, of several streams, over blocks and streams, what joins them last."""
    found: dict[str, Any] = {}
    for number in range(len(seen.states[0])):
        streams = [seen.flat(state[number]) for state in seen.states]
        steps = list(pairwise(streams))
        rows = {"": [second_moments(x, counted) for x in streams]}
        rows["grad_"] = [second_moments(seen.flat(state[number]), counted) for state in gradients.states]
        one = {prefix + name: [row[name] for row in rows[prefix]] for prefix in rows for name in MOMENTS}
        one["branch_skip_ratio"] = [np.nan, *(change(x, y, counted) for x, y in steps)]
        one["layer_cosine"] = [np.nan, *(cosine(x, y, counted) for x, y in steps)]
        embedded = seen.flat(seen.ends[0]) if seen.several else streams[0]
        one["embedding_share"] = [shared(x, embedded, counted) for x in streams]
        one["effective_rank"] = [effective_rank(x, counted) for x in streams]
        for name, values in one.items():
            found.setdefault(name, []).append(values)
    if not seen.several:
        return {name: values for name, (values,) in found.items()}
    for prefix, ends in (("", seen.ends), ("grad_", gradients.ends)):
        moments = [second_moments(seen.flat(end), counted) for end in ends]
        for name in MOMENTS:
            between = [np.nan] * (len(seen.states) - 2)
            found[prefix + name].append([moments[0][name], *between, moments[1][name]])
    embedded, left = (seen.flat(end) for end in seen.ends)
    between = [np.nan] * (len(seen.states) - 2)
    found["embedding_share"].append([1.0, *between, shared(left, embedded, counted)])
    for name in ("branch_skip_ratio", "layer_cosine", "effective_rank"):
        found[name].append([np.nan] * len(seen.states))
    return {name: np.array(values).T for name, values in found.items()}


def _first_not_finite(columns: dict[str, Any], *, several: bool) -> str:
    """In words, the first block whose stream, or the last whose gradient, is not finite; "" if there is none."""
    for name, order, words in (("variance", 1, "stream"), ("grad_variance", -1, "gradient")):
        values = np.array(columns[name], dtype=float)
        bad = ~np.isfinite(values[:, :-1] if several else values[:, None]).all(axis=1)  # "joined" is at its ends alone
        if bad.any():
            return f"block {np.arange(len(bad))[::order][bad[::order]][0]}, {words}"
    return ""


def _call(module: nn.Module, inputs: Any) -> Any:
    args, named = inputs if isinstance(inputs, tuple) else (inputs,), {}
    if isinstance(inputs, Mapping):
        args, named = (), dict(inputs)
    try:
        inspect.signature(module.forward).bind(*args, **named)
    except (TypeError, ValueError) as error:
        raise ModelError(f"inputs are not what {type(module).__name__} takes: {error}") from None
    return module(*args, **named)


class Entering(NamedTuple):
    """Which cotangents: the seed, the number of the draw, and how many."""

    seed: int
    draw: int
    cotangents: int


class Gradients(NamedTuple):
    """Cotangents in the shape of `Recorder.states` and `Recorder.ends`."""

    states: list[tuple[Tensor, ...]]
    ends: list[Tensor]


OfParameters = dict[int, Tensor | None]
"""Gradients by the identity of the parameter; None where nothing reached it."""


def _gradients(
    seen: Recorder, output: Any, loss: Any, entering: Entering, number: int
) -> tuple[Gradients, OfParameters]:
    """Cotangents of the streams, and the gradients of the blocks' parameters."""
    last = seen.ends[-1] if seen.several else seen.states[-1][0]
    if loss is None:
        generator = torch.Generator().manual_seed(1_000_003 * entering.seed + entering.draw + 15_485_863 * number)
        shape = seen.flat(last).shape  # the same numbers, however the stream lies in memory and whatever its precision
        cotangent = torch.randn(shape, generator=generator).to(last) * seen.kept[..., None]
        target, seeds = last, seen.layout.spread(cotangent, last.shape)
    else:
        target, seeds = value_of(loss, output), None
    if not target.requires_grad:
        raise ModelError(
            "the model runs its blocks without autograd (torch.no_grad, or a re-entrant checkpoint), so there is no"
            " gradient to trace"
        )
    streams = [x for state in seen.places for x in state] + seen.ends
    wanted = {id(p): p for block in seen.called for p in block.parameters() if p.requires_grad}
    found = torch.autograd.grad(
        target, [*streams, *wanted.values()], seeds, retain_graph=number + 1 < entering.cotangents, allow_unused=True
    )
    given = iter(torch.zeros_like(x) if g is None else g for x, g in zip(streams, found, strict=False))
    states = [tuple(next(given) for _ in state) for state in seen.states]
    return Gradients(states, list(given)), dict(zip(wanted, found[len(streams) :], strict=True))


def _norm(block: nn.Module, gradients: OfParameters) -> float:
    """Of the gradient of all of a block's parameters; NaN where no parameter of the model has one."""
    if not gradients:
        return float("nan")
    own = [gradients.get(id(parameter)) for parameter in block.parameters()]
    return float(np.sqrt(sum(float(precise(g).square().sum()) for g in own if g is not None)))


@contextmanager
def _in_place_named() -> Iterator[None]:
    """Torch's own words about a tensor changed in place, as a ModelError of one line."""
    try:
        yield
    except RuntimeError as error:
        if "inplace operation" not in str(error) and "in-place operation" not in str(error):
            raise
        first = str(error).split(";")[0].splitlines()[0]
        raise ModelError(
            f"the model changes in place what its own gradient needs, so none can be traced: {first}"
        ) from None


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Without dropout; afterwards every part is in the mode it was in."""
    before = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in before:
            part.training = training


def _labelled(
    columns: dict[str, Any], calls: list[str], matrices: list[str], several: bool, attributes: dict[str, Any]
) -> xr.Dataset:
    dims = (STREAM,) if several else ()
    return table(columns, attributes["depth"], attributes, dims, matrices, calls)
