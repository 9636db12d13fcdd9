"""An encoder and its decoder: what passes from one to the other, forward and backward."""

from __future__ import annotations

from functools import reduce
from typing import TYPE_CHECKING, Any

from propagate.crossing import CrossAttention, Memory
from propagate.model import Model, ModelError, check_flag, check_model
from propagate.start import Start
from propagate.theory.pairs.moments import Moments
from propagate.theory.reading.blocks import NotExchangeable
from propagate.theory.starts import both_grams, both_moments
from propagate.theory.tokens.gram import Gram
from propagate.theory.walks import walk, walk_grams

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def memory_of(encoder: Model, start: Start | None = None) -> Memory:
    """Predicted second moments of what leaves an encoder, behind the placement's readout, for its decoder to attend to.

    Args:
        encoder: the network.
        start: what enters it, numbers or a Gram matrix; its cotangent has no part in this.

    Raises:
        ModelError: as `predict`.

    Example: behind PreNorm's last norm tokens have variance 1, and are more alike than when they entered.
        >>> memory = memory_of(Model("prenorm", depth=6, tokens=8), Start(covariance=0.2))
        >>> memory.tokens, bool(0.2 < memory.gram[0, 1] < memory.gram[0, 0] < 1 + 1e-12)
        (8, True)
    """
    (entering, leaving), gram = _ends(encoder, start), None
    if isinstance(entering, Moments) and encoder.exchangeable and not encoder.uneven:
        try:
            gram = walk(encoder, entering, leaving).readout
        except NotExchangeable:  # a sublayer that the placement describes itself
            gram = None
    if isinstance(gram, Moments):
        return Memory.alike(encoder.tokens, float(gram.variance), float(gram.covariance))
    readout = walk_grams(encoder, *_grams(encoder, start)).readout
    assert isinstance(readout, Gram)
    return Memory.of(_mean(readout))


def memory_gradient(
    decoder: Model, start: Start | None = None, *, through_readout: bool = False
) -> NDArray[np.float64]:
    """Predicted second moments of the gradient at a decoder's memory, from all cross-attentions of all blocks.

    It is the `grad_gram` with which the encoder goes on, behind its readout.

    Args:
        decoder: a network whose placement applies `CrossAttention`.
        start: what enters it at both ends.
        through_readout: as for `predict`.

    Returns:
        (memory tokens, memory tokens), per coordinate.

    Raises:
        ModelError: as `predict`; for a network that attends to no memory, or to two that differ.

    Example:
        >>> from propagate.placement import Placement
        >>> class Asking(Placement):
        ...     def block(self, x, block):
        ...         return x + block.apply(CrossAttention(Memory.alike(2), logit_std=0.0), x)
        >>> memory_gradient(Model(Asking(), depth=3, tokens=4)).round(12).tolist()
        [[3.0, 3.0], [3.0, 3.0]]
    """
    check_flag("through_readout", through_readout)
    path = walk_grams(decoder, *_grams(decoder, start), through_readout=through_readout, exact=True)
    calls = [call for block in path.calls for call in block if isinstance(call.description, CrossAttention)]
    memories = {call.description.memory for call in calls}
    if len(memories) != 1:
        raise ModelError(f"memory_gradient needs a network that attends to one memory, got {len(memories)}")
    sent = [call.pull.to_memory(g) for call in calls for g, _ in call.arrived]
    return _mean(reduce(Gram.plus, sent))


def _mean(gram: Gram) -> NDArray[np.float64]:
    """Over replicas, symmetric to the last digit."""
    mean = gram.matrix.mean(axis=0)
    return (mean + mean.T) / 2  # type: ignore[no-any-return]


def _ends(model: Model, start: Start | None) -> tuple[Any, Any]:
    """Moments at both ends, or Gram matrices where they are given."""
    given = _checked(model, start)
    plain = given.gram is None and given.grad_gram is None
    return (both_moments if plain else both_grams)(given, model.tokens)


def _grams(model: Model, start: Start | None) -> tuple[Gram, Gram]:
    return both_grams(_checked(model, start), model.tokens)


def _checked(model: Model, start: Start | None) -> Start:
    check_model(model)
    given = Start.of(start)
    if given.inputs is not None:
        raise ModelError("start must hold moments or Gram matrices, not inputs")
    return given
