"""Signal propagation in deep Transformers: a theory, a simulation and traces that check one another.

A normalisation placement is written once, as the equations of its paper; `predict` gives its exact wide-limit moments,
`simulate` measures random networks, `compare` judges one by the other, `recursion` prints the algebra.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

import propagate.placements  # noqa: F401  # registers those that come with the package
from propagate.model import Model, ModelError
from propagate.placement import Placement, placement, placements
from propagate.scaling import Gains, ScaleInit

if TYPE_CHECKING:
    from propagate.agreement import compare
    from propagate.montecarlo.simulate import simulate
    from propagate.montecarlo.workers import process_pool, use_device
    from propagate.references import citation
    from propagate.text import equations
    from propagate.theory.predict import predict
    from propagate.theory.recursion import recursion
    from propagate.theory.validity import ValidityWarning, validity
    from propagate.verification import verify

__version__ = "0.1.0"
__all__ = [
    "Gains",
    "Model",
    "ModelError",
    "Placement",
    "ScaleInit",
    "ValidityWarning",
    "citation",
    "compare",
    "equations",
    "placement",
    "placements",
    "predict",
    "process_pool",
    "recursion",
    "simulate",
    "use_device",
    "validity",
    "verify",
]

_LAZY = {
    "citation": "propagate.references",
    "equations": "propagate.text",
    "compare": "propagate.agreement",
    "predict": "propagate.theory.predict",
    "process_pool": "propagate.montecarlo.workers",
    "recursion": "propagate.theory.recursion",
    "simulate": "propagate.montecarlo.simulate",
    "use_device": "propagate.montecarlo.workers",
    "ValidityWarning": "propagate.theory.validity",
    "validity": "propagate.theory.validity",
    "verify": "propagate.verification",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'propagate' has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
