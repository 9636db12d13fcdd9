"""The description of a norm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from propagate.checks import ModelError, choice, number, shown

NORMS = ("rms", "layer")


@dataclass(frozen=True)
class Norm:
    """A norm of each token's coordinates, without learned gain and bias.

    Attributes:
        kind: "rms", x / sqrt(mean x^2 + eps), or "layer", the same of x less its mean.
        eps: what is added to the mean square.

    Raises:
        ModelError: names the field, the value and what is allowed.

    Example:
        >>> Norm("layer").centred, Norm().eps
        (True, 0.0)
    """

    kind: str = "rms"
    eps: float = 0.0

    def __post_init__(self) -> None:
        choice("norm", self.kind, NORMS)
        object.__setattr__(self, "eps", number("norm.eps", self.eps, positive=False))

    @property
    def centred(self) -> bool:
        """Whether the mean over coordinates is taken out."""
        return self.kind == "layer"

    @property
    def smallest(self) -> int:
        """The fewest coordinates that it can norm and leave a gradient."""
        return 3 if self.centred else 1


def as_norm(value: Any) -> Norm:
    """A norm from its name, or the description itself.

    Example:
        >>> as_norm("rms")
        Norm(kind='rms', eps=0.0)
    """
    if isinstance(value, Norm):
        return value
    if not isinstance(value, str):
        raise ModelError(f"norm must be one of {', '.join(NORMS)} or a propagate.Norm, got {shown(value)}")
    return Norm(value)
