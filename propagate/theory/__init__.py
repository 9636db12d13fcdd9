"""The first witness: moments in the limit of infinite width. `apply` is where descriptions of one's own are registered.

`apply` has a function for each sublayer, `norm_scale` for each norm, `matrix_uses` for how a sublayer uses its
matrices, from which `param_grad` and `predict_step` are made.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from propagate.lazy import lazily

if TYPE_CHECKING:
    from propagate.theory.pairs.moments import Moments
    from propagate.theory.reading.blocks import Applied
    from propagate.theory.tokens.apply import Setting, apply, norm_scale
    from propagate.theory.tokens.gram import Gram
    from propagate.theory.uses import Use, matrix_uses

__all__ = ["Applied", "Gram", "Moments", "Setting", "Use", "apply", "matrix_uses", "norm_scale"]

_LAZY = {
    "Applied": "propagate.theory.reading.blocks",
    "Gram": "propagate.theory.tokens.gram",
    "Moments": "propagate.theory.pairs.moments",
    "Setting": "propagate.theory.tokens.apply",
    "Use": "propagate.theory.uses",
    "apply": "propagate.theory.tokens.apply",
    "matrix_uses": "propagate.theory.uses",
    "norm_scale": "propagate.theory.tokens.apply",
}

__getattr__ = lazily(__name__, _LAZY)
