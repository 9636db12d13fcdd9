"""Squared Frobenius norm of the loss gradient with respect to each weight matrix, in the limit of infinite width.

For y = x W the gradient is x^T g, g the cotangent of y, and |x^T g|^2 = sum_ts (x_t . x_s) (g_t . g_s). Both Gram
matrices concentrate as the width grows, and cotangents are independent of what was passed forward, so that the
expectation is fan_in fan_out sum_ts K_ts Gamma_ts, with the second moments of this matrix's own input and output
cotangent: fan_in fan_out (T variance grad_variance + T (T - 1) covariance grad_covariance) for exchangeable tokens.

The gradient is with respect to the matrix as a network stores it (the modules of `propagate.build` do): its entries
have standard deviation gain / sqrt(fan_in), the gain being that of the model, the placement and the scaling together.
`logit_std` is in no matrix: it is a constant factor on the logits, beside the 1 / sqrt(head size) of every attention,
so that gradients of queries and keys are proportional to it. The gain of the FFN's output matrix includes the constant
that gives the FFN's output its size (see `Model.ffn_gain`), unless its input is normed. A normed projection has its
gain too, and its gradient falls as one over it, though what goes forward ignores it.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from propagate.model import Model, ModelError
from propagate.scaling import Gains
from propagate.table import BY_MATRIX
from propagate.theory.finite.allowances import matrix_allowances
from propagate.theory.gaussian.activations import ACTIVATIONS, Activation
from propagate.theory.gaussian.functions import Scalar
from propagate.theory.pairs.experts import MixturePull
from propagate.theory.pairs.moments import Moments
from propagate.theory.pairs.products import Seen
from propagate.theory.pairs.sublayers import NOTHING, AttentionPull
from propagate.theory.reading.blocks import Block, Tape
from propagate.theory.tokens.gram import Gram
from propagate.theory.tokens.kernels import KERNELS, Kernel
from propagate.theory.tokens.sublayers import of_means

Array = NDArray[np.float64]
Norms = dict[str, Any]
"""A number for each matrix, or one a replica."""
PROJECTIONS = ("query", "key", "value")
FFN = ("gate", "in", "out")
MATRICES = (*PROJECTIONS, "attention_out", "router", *(f"ffn_{part}" for part in FFN), *(f"shared_{p}" for p in FFN))


class MatrixGradients:
    """Sees, along one prediction, what every weight matrix reads and the cotangent of what it gives.

    Example: a linear FFN alone, on one token; both matrices see unit moments.
        >>> from functools import partial
        >>> from propagate.theory.reading.network import block_of, propagate_moments
        >>> model, unit = Model("prenorm", 1, width=8, tokens=1, heads=1, activation="linear"), Moments(1.0, 0.0)
        >>> seen = MatrixGradients(model)
        >>> path = propagate_moments(model, unit, unit, block_at=seen.block_at(partial(block_of, model)))
        >>> round(seen.norms()["ffn_out"][0], 9)
        256.0
    """

    def __init__(self, model: Model, *, wide: bool = False) -> None:
        """`wide`: whether heads are taken for wide."""
        self.model, self.wide = model, wide
        self._blocks: dict[int, Norms] = defaultdict(dict)

    def block_at(self, make: Callable[[int], Block]) -> Callable[[int], Block]:
        """Blocks whose sublayers tell this what their matrices see while cotangents return."""
        return lambda index: self._observed(make(index), self.model.gains(max(index, 1)), self._blocks[index])

    @property
    def names(self) -> list[str]:
        """The matrices, in order."""
        return list(self.norms())

    def columns(self, found: dict[str, Array], shape: tuple[int, ...], *, several: bool) -> dict[str, Array]:
        """`param_grad`, an array (block, *shape, matrix), and its allowance.

        Args:
            found: the table's other columns, of several streams with these along the second axis.
            shape: of the starts, or of the replicas.
            several: whether there are several streams.
        """
        norms = [[np.full(shape, np.nan), *of_blocks] for of_blocks in self.norms().values()]
        stacked = np.stack([[np.broadcast_to(norm, shape) for norm in of_matrix] for of_matrix in norms], axis=-1)
        drifts = (found[f"{name}_allowance"] for name in ("variance", "grad_variance"))
        forward, back = (np.nanmax(drift, axis=1) if several else drift for drift in drifts)
        allowed = matrix_allowances(forward, back, self.model, self.names, wide=self.wide)
        return {BY_MATRIX: stacked.astype(float), f"{BY_MATRIX}_allowance": allowed}

    def norms(self) -> dict[str, list[Any]]:
        """Expected squared Frobenius norms of the gradients of every block's matrices.

        Returns:
            A list over blocks 1 ... depth for each matrix; of a matrix that a block has more than once, the sum; 0
            where a block has none. Of experts, all together.
        """
        of_blocks = [self._blocks[index] for index in range(1, self.model.depth + 1)]
        used = [name for name in MATRICES if any(name in norms for norms in of_blocks)]
        return {name: [norms.get(name, 0.0) for norms in of_blocks] for name in used}

    def _observed(self, block: Block, gains: Gains, total: Norms) -> Block:
        model = self.model

        def note(norms: Norms) -> None:
            for name, norm in norms.items():
                total[name] = total.get(name, 0.0) + norm

        def attention(x: Any, normed: frozenset[str]) -> Any:
            pull: Any
            output, pull = block.attention_map(x, normed)

            def observing(g: Any) -> Any:
                sent = pull.paths(g)
                note(attention_gradients(model, gains, x, g, pull, sent, normed))
                return reduce(lambda a, b: a.plus(b), sent.values())

            return output, observing

        def ffn(x: Any, normed: frozenset[str]) -> Any:
            output, pull = block.ffn_map(x, normed)

            def observing(g: Any) -> Any:
                note(ffn_gradients(model, gains, x, g, normed))
                return pull(g)

            return output, observing

        def experts(x: Any, normed: frozenset[str]) -> Any:
            assert block.experts_map is not None
            pull: Any
            output, kept, pull = block.experts_map(x, normed)

            def observing(g: Any, seen: Seen) -> Any:
                note(experts_gradients(model, gains, x, g, pull, seen, normed))
                return pull(g, seen)

            return output, kept, observing

        mixture = None if block.experts_map is None else experts
        # the pull must see the cotangents that arrive: no two modes stand for them
        return replace(block, attention_map=attention, ffn_map=ffn, experts_map=mixture, tape=Tape(lacking=True))


def frobenius(tokens: int, x: Any, g: Any) -> Any:
    """Per entry of the matrix: the sum over pairs of tokens of the products of their second moments.

    Example: independent tokens, at both resolutions.
        >>> frobenius(3, Moments(1.0, 1.0), Moments(2.0, 2.0))
        6.0
        >>> import numpy as np
        >>> float(frobenius(3, Gram.of(np.eye(3)), Gram.of(2 * np.eye(3))))
        6.0
    """
    if isinstance(x, Gram):
        return (x.matrix * g.matrix).sum(axis=(-1, -2))
    return tokens * (x.variance * g.variance + (tokens - 1) * x.covariance * g.covariance)


def frobenius_of_differences(tokens: int, x: Any, g: Any) -> Any:
    """The same of a cotangent that sums to zero over tokens: differences of tokens alone count, however small.

    Example:
        >>> frobenius_of_differences(2, Moments(1.0, 1e-20), Moments(1.0, 2.0))
        2e-20
        >>> import numpy as np
        >>> x = Gram.exchangeable(1.0, 1e-20, 2)
        >>> float(frobenius_of_differences(2, x, Gram.of([[1.0, -1.0], [-1.0, 1.0]])))
        2e-20
    """
    if isinstance(x, Gram):
        return -(x.deviation * g.matrix).sum(axis=(-1, -2))
    return (tokens - 1) * x.deviation * g.deviation


def attention_gradients(
    model: Model, gains: Gains, x: Any, g: Any, pull: AttentionPull, sent: dict[str, Any], normed: frozenset[str]
) -> Norms:
    """Of the attention's matrices, from the moments of its input, of the cotangent at its output and of what returns.

    A projection's own cotangent is that which it sends back to the input over the variance of its matrix, also where a
    norm follows. Heads that share keys and values add up their cotangents, which are uncorrelated: the matrix is
    smaller, and the sum over its entries the same.

    Raises:
        ModelError: for a gain of 0, over which no cotangent can be found again.
    """
    tokens, entries = model.tokens, model.width**2
    norms = {"attention_out": entries * frobenius(tokens, pull.heads, g)}
    for name in PROJECTIONS if model.logit_std else ("value",):
        # what the keys receive sums to zero over tokens, unless each is turned or stretched by itself
        balanced = name == "key" and name not in normed and model.rope is None
        of = frobenius_of_differences if balanced else frobenius
        found = of(tokens, x, sent[name]) if name in sent else 0.0 * frobenius(tokens, x, g)
        norms[name] = entries * found / _square(getattr(gains, name), name)
    return norms


def _square(gain: Scalar, name: str) -> Scalar:
    if gain == 0:
        raise ModelError(f"parameter_gradients needs gains that are not 0, got 0 for {name}")
    return gain * gain


def ffn_gradients(model: Model, gains: Gains, x: Any, g: Any, normed: frozenset[str] = NOTHING) -> Norms:
    """Of the FFN's matrices, from the moments of its input and of the cotangent at its output.

    The cotangent at a hidden unit is smaller by width / hidden than that at the output, and there are hidden / width
    as many entries: the hidden width appears in the output matrix alone.
    """
    kernel, before = _kernel(model, x), x.times(gains.ffn_in)
    after, scale = _hidden(model, kernel, before, normed)
    norms = {"ffn_out": model.hidden * model.width * frobenius(model.tokens, after, g)}
    hidden = g.times(gains.ffn_out * scale)
    for name, slope in _slopes(kernel, before).items():
        norms[name] = model.width**2 * frobenius(model.tokens, x, slope.product(hidden))
    return norms


def experts_gradients(
    model: Model, gains: Gains, x: Any, g: Any, pull: MixturePull, seen: Seen, normed: frozenset[str] = NOTHING
) -> Norms:
    """Of the matrices of a mixture, the routed experts' together and the shared ones' together; see `ffn_gradients`.

    A routed expert's matrices meet only the tokens that chose it, by their gates: second moments are those of an FFN,
    times sum_j w_tj w_sj. The router's cotangent is what it sends back over the variance of its matrix.
    """
    assert model.experts is not None
    experts, tokens, shared = model.experts, model.tokens, model.experts.shared
    kernel, before = _kernel(model, x), x.times(gains.ffn_in)
    value, scale = _hidden(model, kernel, before, normed)
    hidden = g.times(gains.ffn_out * scale)
    entries_in, entries_out = model.width**2, model.hidden * model.width
    norms = {"ffn_out": entries_out / experts.split * frobenius(tokens, value.product(pull.overlap), g)}
    if shared:
        norms["shared_out"] = shared * entries_out * frobenius(tokens, value, g)
    for name, slope in _slopes(kernel, before).items():
        at_unit = slope.product(hidden)
        norms[name] = entries_in / experts.split * frobenius(tokens, x, at_unit.product(pull.overlap))
        if shared:
            norms[name.replace("ffn", "shared")] = shared * entries_in * frobenius(tokens, x, at_unit)
    norms["router"] = entries_in * frobenius(tokens, x, pull.router(g, seen)) / experts.router_std**2
    return norms


def _kernel(model: Model, x: Any) -> Kernel:
    """The activation's maps at the resolution of x."""
    return KERNELS[model.activation] if isinstance(x, Gram) else _of_pairs(ACTIVATIONS[model.activation])


def _of_pairs(activation: Activation) -> Kernel:
    return Kernel(
        lambda x: Moments(*activation.value(*x)),  # type: ignore[arg-type, return-value]
        lambda x: Moments(*activation.slope(*x)),  # type: ignore[arg-type, return-value]
        None if activation.gate is None else _of_pairs(activation.gate),
    )


def _hidden(model: Model, kernel: Kernel, before: Any, normed: frozenset[str]) -> tuple[Any, Any]:
    """What the output matrix reads, and by what the cotangent is multiplied from there to behind the activation.

    The factor is a norm's or, without, what the output matrix makes up for the activation's size with.
    """
    value: Any = kernel.value(before)
    if "hidden" not in normed:
        return value, 1 / math.sqrt(ACTIVATIONS[model.activation].value(1.0, 0.0)[0])
    if model.norm == "layer":  # which also takes the mean over hidden units out
        value = _less_mean(kernel, before, value)
    return value.times(value.norm_scale()), value.norm_scale()


def _less_mean(kernel: Kernel, before: Any, value: Any) -> Any:
    if isinstance(before, Gram):
        return value.less(of_means(kernel, before))
    mean = kernel.value(Moments(before.variance, before.variance)).covariance  # type: ignore[arg-type, attr-defined]
    return Moments(value.variance - mean, value.deviation)


def _slopes(kernel: Kernel, before: Any) -> dict[str, Any]:
    """What multiplies the cotangent on its way into each input matrix: E s_t s_u."""
    if kernel.gate is None:
        return {"ffn_in": kernel.slope(before)}
    return {"ffn_in": kernel.gate.value(before), "ffn_gate": kernel.gate.slope(before).product(before)}
