"""The cells of the agreement matrix: every placement, activation, mask and scaling, variants, and what all share."""

from __future__ import annotations

import dataclasses
import itertools
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from propagate.activations import ACTIVATIONS as KNOWN
from propagate.checks import choice
from propagate.model import Model, ModelError, as_placement
from propagate.outline import outline
from propagate.placement import Placement, placements
from propagate.placements import ReZero
from propagate.scaling import ScaleInit
from propagate.variants import MASKS, MIXTURE, PLAIN, VARIANTS

ACTIVATIONS = ("linear", "relu", "squared_relu", "gelu", "silu", "tanh", "swiglu", "geglu")  # further ones by name
ACTIVATION = "swiglu"  # of variants
SCALINGS = {"none": None, "ScaleInit 1/2": ScaleInit(0.5)}
AS_VERIFIED: dict[str, Placement] = {"rezero": ReZero(a=0.2)}  # its own a = 0 leaves nothing to measure


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
    variant: str = PLAIN

    @property
    def labels(self) -> tuple[str, ...]:
        """Those that are not the plain network's: the variant is said where there is one."""
        return dataclasses.astuple(self)[: 4 if self.variant == PLAIN else 5]

    def seed(self, seed: int) -> int:
        """Of the cell's draws, from the matrix's own."""
        return zlib.crc32(" ".join(self.labels).encode()) + seed * 2**32

    def model(self, settings: Settings) -> Model:
        """The cell's network."""
        variant, causal = VARIANTS[self.variant], MASKS[self.mask]
        own = variant.fields(settings, causal) if variant.fields else {}
        if variant.equations:
            equations = variant.equations(self.placement, settings)
        else:
            equations = AS_VERIFIED.get(self.placement, as_placement(self.placement))
        mixes = any(call.verb == "experts" for call in outline(equations, settings.depth, 1))
        fields = {"causal": causal, "experts": MIXTURE if mixes else None} | settings.network | own
        if "attention" in own:  # which says all of these
            fields = {name: value for name, value in fields.items() if name not in ("heads", "causal", "logit_std")}
        return Model(equations, activation=self.activation, scaling=SCALINGS[self.scaling], **fields)


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
    variants: Sequence[str] | None = None,
) -> list[Cell]:
    """The cells of a selection; by default all: the plain network with the activations that `ACTIVATIONS` has, and
    every variant, where it is verified, with `ACTIVATION`.

    Raises:
        ModelError: for an unknown name, or a variant that is verified nowhere in the selection.

    Example:
        >>> len(cells_of(["prenorm", "postnorm"], ["relu"]))
        8
        >>> len(cells_of(variants=["retention"]))  # causal by itself
        8
    """
    names = [_name_of(name) for name in placements] if placements else None
    masks, scalings, kinds = (
        _known(field, given, allowed)
        for field, given, allowed in (
            ("mask", masks, tuple(MASKS)),
            ("scaling", scalings, tuple(SCALINGS)),
            ("variant", variants, tuple(VARIANTS)),
        )
    )
    for name in activations or ():
        choice("activation", name, KNOWN)
    found = []
    for kind in kinds:
        own = VARIANTS[kind]
        every = kind == PLAIN
        among = names or verifiable() if every else _both(own.placements, names)
        of = activations or ACTIVATIONS if every else _both((ACTIVATION,), activations)
        cells = [Cell(*labels, kind) for labels in itertools.product(among, of, _both(masks, own.masks), scalings)]
        if variants and not cells:
            raise ModelError(
                f"variant {kind!r} is verified with {ACTIVATION}, {' or '.join(own.masks)}, in"
                f" {', '.join(own.placements)}, which nothing of the selection is"
            )
        found += cells
    return found


def _both(one: Sequence[str], other: Sequence[str] | None) -> list[str]:
    """What is in one and, if that says anything, in the other."""
    return [name for name in one if other is None or name in other]


def _name_of(name: str) -> str:
    kind = type(as_placement(name))
    return next(key for key, registered in placements().items() if registered is kind)


def _known(field: str, given: Sequence[str] | None, allowed: tuple[str, ...]) -> tuple[str, ...]:
    for value in given or ():
        if value not in allowed:
            raise ModelError(f"{field} must be one of {', '.join(allowed)}, got {value!r}")
    return tuple(given or allowed)
