"""The second witness: random networks. `apply` and `norm` are where descriptions of one's own are registered."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

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


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)
