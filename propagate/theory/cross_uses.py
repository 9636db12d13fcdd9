"""How cross-attention uses each of its matrices; see `uses`."""

from __future__ import annotations

import math
from typing import Any

from propagate.crossing import CrossAttention
from propagate.layers import Layer
from propagate.model import ModelError
from propagate.theory.reading.blocks import Call
from propagate.theory.tokens.crossing import repeated
from propagate.theory.tokens.gram import Gram
from propagate.theory.uses import Use, Uses, matrix_uses


@matrix_uses.register
def _(description: CrossAttention, call: Call, g: Any, seen: Any, layer: Layer) -> Uses:
    """The queries' reads the stream, the keys' and values' the memory; see those of attention."""
    kind, width, sent = description, layer.width, call.pull.paths(g)
    memory = repeated(kind.memory, len(g.matrix))
    uses: Uses = {}
    for name in ("query", "key", "value"):
        gain = getattr(kind, f"{name}_gain")
        if gain == 0:
            raise ModelError(f"parameter_gradients needs gains that are not 0, got 0 for cross_{name}")
        read = call.entered if name == "query" else memory
        assert isinstance(read, Gram)
        arrived = sent[name].times(math.sqrt(width / kind.inside) / gain) if name in sent else read.weighted(0.0)
        balanced = name == "key" and name not in kind.normed
        uses[f"cross_{name}"] = Use(width, kind.inside, gain, read, arrived, balanced=balanced)
    uses["cross_out"] = Use(kind.inside, width, kind.out_gain, call.pull.heads, g)
    return uses
