"""How latent attention uses its matrices; see `theory.uses`."""

from __future__ import annotations

import math
from typing import Any

from propagate.latent import LatentAttention
from propagate.layers import Layer
from propagate.model import ModelError
from propagate.theory.reading.blocks import Call
from propagate.theory.tokens.latent import LatentPull
from propagate.theory.uses import Use, Uses, matrix_uses


@matrix_uses.register
def _(description: LatentAttention, call: Call, g: Any, seen: Any, layer: Layer) -> Uses:
    """A matrix behind a norm reads the latents; its own cotangent is that of queries, keys or values times the scale
    correction. What keys of a head's own receive sums to zero over tokens, and that of turned ones does not.

    The law of the coordinates of heads is not that of a Gaussian, and not given here.
    """
    kind, width, pull = description, layer.width, call.pull
    assert isinstance(pull, LatentPull)
    arrived = pull.inside(g)
    of_queries, of_key_values = pull.latents(arrived)
    read, at = _read(pull, call.entered), {"attention_out": g}
    at["key_value_down"] = pull.keys_values.to_matrix(of_key_values)
    at |= {name: _behind(kind, name, width, cotangent) for name, cotangent in _named(arrived, g).items()}
    if pull.queries is not None:
        at["query_down"] = pull.queries.to_matrix(g.times(0.0) if of_queries is None else of_queries)
    uses: Uses = {}
    for name, fan_in, fan_out, gain in kind.matrices(width):
        if gain == 0:
            raise ModelError(f"parameter_gradients needs gains that are not 0, got 0 for {name}")
        cotangent = at[name] if name == "attention_out" else at[name].times(math.sqrt(width / fan_out))
        balanced = name == "key" or (name == "key_rotary" and kind.rope is None)
        uses[name] = Use(fan_in, fan_out, gain, read[name], cotangent, balanced=balanced)
    return uses


def _read(pull: LatentPull, x: Any) -> dict[str, Any]:
    """What each matrix reads."""
    latents = pull.keys_values.moments
    read = dict.fromkeys(("query_down", "key_value_down", "key_rotary"), x)
    read |= {"query": x if pull.queries is None else pull.queries.moments, "key": latents, "value": latents}
    return read | {"attention_out": pull.core.output}


def _named(arrived: Any, g: Any) -> dict[str, Any]:
    """Cotangents at queries, keys and values, nothing where nothing is chosen."""
    nothing = g.times(0.0)
    found = {"value": arrived.value, "query": arrived.query, "key": arrived.key, "key_rotary": arrived.rotary}
    return {name: nothing if cotangent is None else cotangent for name, cotangent in found.items()}


def _behind(kind: LatentAttention, name: str, width: int, cotangent: Any) -> Any:
    """At what a matrix gives, from that at the query, key or value."""
    return cotangent if name == "key_rotary" else cotangent.times(kind.scale_of(name, width))
