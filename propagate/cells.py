"""The cells of the agreement matrix: every placement, activation, mask and scaling, and what all have in common."""

from __future__ import annotations

import dataclasses
import itertools
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from propagate.activations import ACTIVATIONS as KNOWN
from propagate.checks import choice
from propagate.experts import Experts
from propagate.model import Model, ModelError, as_placement
from propagate.outline import outline
from propagate.placement import Placement, placements
from propagate.placements import ReZero
from propagate.scaling import ScaleInit

ACTIVATIONS = ("linear", "relu", "squared_relu", "gelu", "silu", "tanh", "swiglu", "geglu")  # further ones by name
MASKS = {"bidirectional": False, "causal": True}
SCALINGS = {"none": None, "ScaleInit 1/2": ScaleInit(0.5)}
AS_VERIFIED: dict[str, Placement] = {"rezero": ReZero(a=0.2)}  # its own a = 0 leaves nothing to measure
MIXTURE = Experts(16, top_k=6, softmax="before", identity=8, gain=3.0)
"""What placements that call `block.experts` have there: LongCat-Flash's design, small."""


@dataclass(frozen=True)
class Settings:
    """What all cells have in common. The first seven fields are those of `Model`, the rest those of `simulate`."""

    width: int = 256
    depth: int = 12
    tokens: int = 16
    heads: int = 4
    norm: str = "rms"
    logit_std: float = 1.0
    weights: str = "normal"
    covariance: float = 0.3
    grad_covariance: float = 0.0
    draws: int = 32
    seed: int = 0
    backend: str = "auto"
    sampler: str = "auto"
    precision: str = "float64"

    @property
    def network(self) -> dict[str, Any]:
        """Fields of the model."""
        names = ("width", "depth", "tokens", "heads", "norm", "logit_std", "weights")
        return {name: getattr(self, name) for name in names}

    @property
    def start(self) -> dict[str, Any]:
        """What enters the network at both ends."""
        return {"covariance": self.covariance, "grad_covariance": self.grad_covariance}

    @property
    def run(self) -> dict[str, Any]:
        """How it is simulated, but for the seed."""
        return {name: getattr(self, name) for name in ("draws", "backend", "sampler", "precision")}


@dataclass(frozen=True)
class Cell:
    """One network of the matrix.

    Example: a cell's seed depends on its name alone, so any selection of cells draws the same networks.
        >>> Cell("prenorm", "relu", "causal", "none").seed(0)
        2706395512
    """

    placement: str
    activation: str
    mask: str
    scaling: str

    def seed(self, seed: int) -> int:
        """Of the cell's draws, from the matrix's own."""
        return zlib.crc32(" ".join(dataclasses.astuple(self)).encode()) + seed * 2**32

    def model(self, settings: Settings) -> Model:
        """The cell's network."""
        equations = AS_VERIFIED.get(self.placement, as_placement(self.placement))
        mixes = any(call.verb == "experts" for call in outline(equations, settings.depth, 1))
        return Model(
            equations,
            activation=self.activation,
            causal=MASKS[self.mask],
            scaling=SCALINGS[self.scaling],
            experts=MIXTURE if mixes else None,
            **settings.network,
        )


def verifiable() -> list[str]:
    """Names of the registered placements, without those that need fields to be given.

    Example:
        >>> "spannorm" in verifiable()
        True
    """
    found = []
    for name in placements():
        try:
            as_placement(name)
        except ModelError:
            continue
        found.append(name)
    return found


def cells_of(
    placements: Sequence[str] | None = None,
    activations: Sequence[str] | None = None,
    masks: Sequence[str] | None = None,
    scalings: Sequence[str] | None = None,
) -> list[Cell]:
    """The cells of a selection; by default all, with the activations that `ACTIVATIONS` has.

    Raises:
        ModelError: for an unknown name.

    Example:
        >>> len(cells_of(["prenorm", "postnorm"], ["relu"]))
        8
    """
    names = [_name_of(name) for name in placements] if placements else verifiable()
    kinds = [
        _known(field, given, allowed)
        for field, given, allowed in (
            ("mask", masks, tuple(MASKS)),
            ("scaling", scalings, tuple(SCALINGS)),
        )
    ]
    for name in activations or ():
        choice("activation", name, KNOWN)
    return [Cell(*labels) for labels in itertools.product(names, activations or ACTIVATIONS, *kinds)]


def _name_of(name: str) -> str:
    kind = type(as_placement(name))
    return next(key for key, registered in placements().items() if registered is kind)


def _known(field: str, given: Sequence[str] | None, allowed: tuple[str, ...]) -> tuple[str, ...]:
    for value in given or ():
        if value not in allowed:
            raise ModelError(f"{field} must be one of {', '.join(allowed)}, got {value!r}")
    return tuple(given or allowed)
