"""How linear attention uses each of its matrices; see `uses`."""

from __future__ import annotations

import math
from typing import Any

from propagate.layers import Layer
from propagate.model import ModelError
from propagate.recurrent import LinearAttention
from propagate.theory.reading.blocks import Call
from propagate.theory.uses import Use, Uses, matrix_uses


@matrix_uses.register
def _(description: LinearAttention, call: Call, g: Any, sent: dict[str, Any], layer: Layer) -> Uses:
    """A projection's own cotangent is that which it sends back to the input over the variance of its matrix."""
    uses: Uses = {}
    for name, fan_in, fan_out, gain in description.matrices(layer.width):
        if gain == 0:
            raise ModelError(f"parameter_gradients needs gains that are not 0, got 0 for {name}")
        if name == "attention_out":
            uses[name] = Use(fan_in, fan_out, gain, call.pull.heads, g)
        else:
            uses[name] = Use(fan_in, fan_out, gain, call.entered, sent[name].times(math.sqrt(fan_in / fan_out) / gain))
    return uses
