"""What a sublayer does to second moments: one registered function a description, for either resolution.

`Moments` hold exchangeable tokens, a `Gram` any; a function sees which from its input.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache, partial, singledispatch
from typing import Any

from propagate.checks import ModelError
from propagate.crossing import CrossAttention
from propagate.experts import Experts
from propagate.latent import LatentAttention, SelfAttention
from propagate.norms import Norm
from propagate.recurrent import LinearAttention
from propagate.scaling import Gains
from propagate.sublayers import FFN, Attention, Sublayer, registered
from propagate.theory.pairs import experts as pair_experts
from propagate.theory.pairs import sublayers as pairs
from propagate.theory.reading.blocks import Applied, NotExchangeable
from propagate.theory.tokens import crossing, latent, recurrent, softmax
from propagate.theory.tokens import experts as gram_experts
from propagate.theory.tokens import sublayers as grams
from propagate.theory.tokens.gram import Gram

NORMED = frozenset({"latent"})


@dataclass(frozen=True)
class Setting:
    """What a sublayer's map may know beside its description and its input.

    Attributes:
        width, tokens: of the stream.
        norm: of inner projections.
        head_size: coordinates of a head, in place of its own; `math.inf` takes heads for wide.
        samples: how often something that has no closed form is drawn, in each replica.
        seed: numbers that name the call, so that each has draws of its own and every run the same ones.
    """

    width: int
    tokens: Any
    norm: Norm
    head_size: float | None = None
    samples: int = 0
    seed: tuple[int, ...] = ()


@singledispatch
def apply(description: Any, x: Any, setting: Setting) -> Any:
    """Moments of a sublayer's output, and the pull: a function from those of the cotangent there to those of what
    comes back; an `Applied`, or just the two.

    Register one for a description of your own, for `Moments`, a `Gram` or both. It may take for granted that weights
    are fresh and zero-mean, so that its output and what it sends back are uncorrelated with all else.
    The pull is linear in its moments. Of exchangeable tokens it is asked for two cotangents at once, the real and the
    imaginary parts of complex moments.

    Args:
        description: in force: sizes filled in, gains those of the block.
        x: moments of the input.
        setting: what else it may know.

    Raises:
        ModelError: for a description that the theory does not cover.

    Example: a linear layer of one's own.
        >>> from propagate.sublayers import Sublayer
        >>> from propagate.theory.pairs.moments import Moments
        >>> @dataclass(frozen=True)
        ... class Mixing(Sublayer):
        ...     gain: float = 1.0
        >>> @apply.register
        ... def _(mixing: Mixing, x, setting):
        ...     return x.times(mixing.gain), lambda g: g.times(mixing.gain)
        >>> apply(Mixing(2.0), Moments(1.0, 0.5), Setting(8, 4, Norm()))[0]
        Moments(variance=4.0, deviation=2.0)
    """
    raise ModelError(f"theory does not cover {type(description).__name__}, got {description!r}")


def _inner(norm: Norm, normed: frozenset[str]) -> dict[str, Any]:
    """What inner norms are; ModelError for one of a user's own, whose action inside a sublayer is not known."""
    if not normed:
        return {"centred": False, "eps": 0.0}
    if type(norm) is not Norm:
        raise ModelError(f"theory does not cover {type(norm).__name__} inside a sublayer, got {norm!r}")
    return {"centred": norm.centred, "eps": norm.eps}


@apply.register
def _(description: Attention, x: Any, setting: Setting) -> Applied:
    if not isinstance(x, Gram):
        of_pairs, normed = _attention(description, setting.tokens, setting.head_size, setting.norm)
        return Applied(*of_pairs(x, normed))
    kind, normed = attention_of(description, setting), frozenset(description.normed)
    gains = {name: getattr(description, f"{name}_gain") for name in ("query", "key", "value", "out")}
    return Applied(*grams.attention(kind, **gains, **_inner(setting.norm, normed))(x, normed))


def attention_of(description: SelfAttention, setting: Setting) -> softmax.Attention:
    """What attention between tokens that differ depends on."""
    size = setting.head_size or description.size
    visible, frequencies = description.visible(setting.tokens), description.frequencies
    return softmax.Attention(visible, description.logit_std**2, frequencies, setting.samples, setting.seed, size)


@apply.register
def _(description: LatentAttention, x: Any, setting: Setting) -> Applied:
    """Heads and ranks have their own sizes, or are all taken for wide."""
    inner, wide = _inner(setting.norm, NORMED), setting.head_size == math.inf
    if setting.head_size is not None and not (wide and not isinstance(x, Gram)):
        raise ModelError(
            f"head_size must be None for LatentAttention, or infinite where tokens are exchangeable, got"
            f" {setting.head_size}"
        )
    if isinstance(x, Gram):
        core: Any = partial(latent.of_grams, description, attention=attention_of(description, setting))
    else:
        core = partial(latent.of_pairs, description, tokens=setting.tokens, wide=wide)
    norm = Norm("layer" if inner["centred"] else "rms", inner["eps"])
    return Applied(*latent.latent_attention(description, x, setting.width, norm, core, wide=wide))


@apply.register
def _(description: LinearAttention, x: Any, setting: Setting) -> Applied:
    """It tells tokens apart; keys of any size have the same second moments."""
    if not isinstance(x, Gram):
        raise NotExchangeable
    inner = _inner(setting.norm, frozenset(description.normed))
    norm = Norm("rms", inner["eps"])  # the mean over coordinates is 0
    return Applied(*recurrent.linear_attention(description, x, norm, setting.samples, setting.seed))


@apply.register
def _(description: CrossAttention, x: Any, setting: Setting) -> Applied:
    if not isinstance(x, Gram):
        raise NotExchangeable
    inner = _inner(setting.norm, frozenset(description.normed))
    size = setting.head_size or description.size
    return Applied(*crossing.cross_attention(description, x, setting.samples, setting.seed, size, **inner))


OfPairs = tuple[pairs.Sublayer, frozenset[str]]
"""A sublayer's map of exchangeable tokens, and which of its inner projections are normed."""


@lru_cache(maxsize=256)
def _attention(description: Attention, tokens: Any, head_size: float | None, norm: Norm) -> OfPairs:
    size, normed = head_size or description.size, frozenset(description.normed)
    gains = Gains(description.query_gain, description.key_gain, description.value_gain, description.out_gain)
    return pairs.attention(tokens, description.logit_std**2, gains, size, **_inner(norm, normed)), normed


@apply.register
def _(description: FFN, x: Any, setting: Setting) -> Applied:
    if not isinstance(x, Gram):
        of_pairs, normed = _ffn(description, setting.norm)
        return Applied(*of_pairs(x, normed))
    kind, normed = (description.activation, description.in_gain, description.out_gain), frozenset(description.normed)
    return Applied(*grams.ffn(*kind, gate_gain=description.gate_gain, **_inner(setting.norm, normed))(x, normed))


@lru_cache(maxsize=256)
def _ffn(description: FFN, norm: Norm) -> OfPairs:
    normed = frozenset(description.normed)
    gains = Gains(ffn_in=description.in_gain, ffn_gate=description.gate_gain, ffn_out=description.out_gain)
    return pairs.ffn(description.activation, gains, **_inner(norm, normed)), normed


@apply.register
def _(description: Experts, x: Any, setting: Setting) -> Applied:
    ffn = description.expert
    kind, normed = (ffn.activation, ffn.in_gain, ffn.out_gain, description), frozenset(ffn.normed)
    further = {"gate_gain": ffn.gate_gain, **_inner(setting.norm, normed)}
    if isinstance(x, Gram):
        mixture = gram_experts.mixture(*kind, setting.seed, **further)
    else:
        mixture = pair_experts.mixture(*kind, **further)
    output, kept, pull = mixture(x, normed)
    return Applied(output, pull, kept, through_gates=True)


def applied(description: Sublayer, x: Any, setting: Setting) -> Applied:
    """What is registered for this very kind of description, applied; see `apply`.

    Example: what inherits from another kind is not taken for it.
        >>> class Sparse(FFN): ...
        >>> try:
        ...     applied(Sparse(), None, Setting(8, 4, Norm()))
        ... except ModelError as error:
        ...     print(str(error).partition(",")[0])
        theory does not cover Sparse
    """
    found = registered(apply.registry, description)(description, x, setting)
    return found if isinstance(found, Applied) else Applied(*found)


@singledispatch
def norm_scale(norm: Any, x: Any) -> Any:
    """What a norm multiplies a stream by, token by token, from its moments.

    Raises:
        ModelError: for a norm that the theory does not cover.

    Example:
        >>> from propagate.theory.pairs.moments import Moments
        >>> norm_scale(Norm(eps=3.0), Moments(1.0, 1.0))
        0.5
    """
    raise ModelError(f"theory does not cover {type(norm).__name__}, got {norm!r}")


@norm_scale.register
def _(norm: Norm, x: Any) -> Any:
    return x.norm_scale(norm.eps)
