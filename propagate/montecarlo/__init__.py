"""The second witness: random networks. `apply` and `norm` are where descriptions of one's own are registered."""

from __future__ import annotations

from typing import TYPE_CHECKING

from propagate.lazy import lazily

if TYPE_CHECKING:
    from propagate.montecarlo.blocks import apply
    from propagate.montecarlo.norms import norm
    from propagate.montecarlo.parameter_gradients import Part
    from propagate.montecarlo.sublayers import Call

__all__ = ["Call", "Part", "apply", "norm"]

_LAZY = {  # `apply` by way of what registers the package's own
    "Call": "propagate.montecarlo.sublayers",
    "Part": "propagate.montecarlo.parameter_gradients",
    "apply": "propagate.montecarlo.blocks",
    "norm": "propagate.montecarlo.norms",
}

__getattr__ = lazily(__name__, _LAZY)
