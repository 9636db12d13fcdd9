"""Rules of transfer: how initial size, multiplier, learning rate, decay and eps of a matrix follow width and depth.

A rule is one method, `factors(kind, width, depth)`: what to multiply the values found on a small network with, on a
network `width` times as wide and `depth` times as deep. Both may be numbers or SymPy symbols, so a rule is written with
plain arithmetic. The rules here are for optimisers whose step does not grow with the gradient (Adam, Sign), and
`Spectral` for Muon; all were derived for PreNorm.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Literal, Protocol

from propagate.checks import ModelError, choice, integer, number, shown
from propagate.latent import LatentAttention
from propagate.optimizers import Adam, Optimizer
from propagate.recurrent import LinearAttention

if TYPE_CHECKING:
    from propagate.model import Model

HALF = Fraction(1, 2)
Number = Any  # an int, a float or a SymPy expression
Kind = Literal["embedding", "hidden", "branch_out", "unembedding"]
"""What a matrix does: "branch_out" is the last matrix of a branch, "hidden" every other one inside a block."""
KINDS: tuple[Kind, ...] = ("embedding", "hidden", "branch_out", "unembedding")
BRANCH_OUT = ("attention_out", "cross_out", "ffn_out", "shared_out")


@dataclass(frozen=True)
class Factors:
    """Of one matrix, against that of the small network.

    Attributes:
        gain: of its initial entries, which have standard deviation gain / sqrt(fan_in).
        multiplier: of its output; it is no part of the matrix that is trained.
        lr: of the learning rate.
        decay: of the decoupled weight decay.
        eps: of Adam's eps.
    """

    gain: Number = 1
    multiplier: Number = 1
    lr: Number = 1
    decay: Number = 1
    eps: Number = 1


class Transfer(Protocol):
    """Anything with `factors(kind, width, depth)` is a rule of transfer."""

    def factors(self, kind: Kind, width: Number, depth: Number) -> Factors:
        """Factors of a matrix of this kind, on a network `width` times as wide and `depth` times as deep."""
        ...


def factors_by_kind(model: Model, transfer: Any, base: Any) -> dict[Kind, Factors]:
    """Numbers of a rule of transfer, by a matrix's kind; of none, all 1.

    Args:
        model: the network.
        transfer: a rule, its name or None.
        base: width and depth at which it changes nothing; None means the network's own.

    Raises:
        ModelError: for an unknown rule, a base that is no width and depth, factors that are no positive numbers, or
            latent attention.

    Example:
        >>> from propagate.model import Model
        >>> factors_by_kind(Model("prenorm", depth=4, width=64), "mup", (32, 4))["hidden"].lr
        0.5
    """
    if base is not None:
        if not isinstance(base, tuple) or len(base) != 2:
            raise ModelError(f"base must be a width and a depth, (width, depth), got {shown(base)}")
        base = integer("base[0]", base[0]), integer("base[1]", base[1])
    if transfer is None:
        return {kind: Factors() for kind in KINDS}
    if any(isinstance(parts.attention, LatentAttention) for parts in model.parts):
        raise ModelError("transfer does not cover LatentAttention, whose ranks no rule here says how to choose")
    if any(isinstance(parts.attention, LinearAttention) for parts in model.parts):
        raise ModelError("transfer does not cover LinearAttention, whose state no rule here says how to choose")
    rule, (width, depth) = as_transfer(transfer), base or (model.width, model.depth)
    found: dict[Kind, Factors] = {}
    for kind in KINDS:
        given = rule.factors(kind, model.width / width, model.depth / depth)
        if not isinstance(given, Factors):
            raise ModelError(f"factors of {shown(rule)} must be propagate.transfer.Factors, got {shown(given)}")
        numbers = {
            name: number(f"{name} of {shown(rule)} for {kind}", value, positive=name not in ("decay", "eps"))
            for name, value in given.__dict__.items()
        }
        found[kind] = Factors(**numbers)
    return found


def trained_with(optimizer: Optimizer, factors: Factors) -> Optimizer:
    """The optimiser of a matrix with these factors: its own rate, decay and eps.

    Example:
        >>> trained_with(Adam(lr=0.5, decay=0.5), Factors(lr=0.5, decay=2, eps=0.25))
        Adam(lr=0.25, betas=(0.9, 0.999), eps=2.5e-09, decay=1.0)
    """
    scaled = replace(optimizer, lr=optimizer.lr * float(factors.lr), decay=optimizer.decay * float(factors.decay))
    return replace(scaled, eps=scaled.eps * float(factors.eps)) if isinstance(scaled, Adam) else scaled


def kind_of(matrix: str) -> Kind:
    """What the matrix of this name does.

    Example:
        >>> kind_of("ffn_in"), kind_of("ffn_out")
        ('hidden', 'branch_out')
    """
    if matrix in ("embedding", "unembedding"):
        return matrix  # type: ignore[return-value]
    return "branch_out" if matrix in BRANCH_OUT else "hidden"


@dataclass(frozen=True)
class Standard:
    """Entries of every matrix drawn alike and trained at one rate, whatever the width (SP).

    Example:
        >>> Standard().factors("hidden", 4, 1)
        Factors(gain=2.0, multiplier=1, lr=1, decay=1, eps=1)
    """

    def factors(self, kind: Kind, width: Number, depth: Number) -> Factors:
        return Factors() if kind == "embedding" else Factors(gain=width**HALF)


@dataclass(frozen=True)
class LongCat:
    """Hidden matrices and the head at variance and rate 1 / width (arXiv:2509.01322, "full align").

    Example:
        >>> LongCat().factors("unembedding", 4, 1).lr
        0.25
    """

    def factors(self, kind: Kind, width: Number, depth: Number) -> Factors:
        return Factors() if kind == "embedding" else Factors(lr=width**-1)


@dataclass(frozen=True)
class MuP:
    """The maximal update parametrisation for Adam (arXiv:2203.03466), with a multiplier on the head.

    Example:
        >>> MuP().factors("unembedding", 4, 1)
        Factors(gain=2.0, multiplier=0.25, lr=1, decay=1, eps=1)
    """

    def factors(self, kind: Kind, width: Number, depth: Number) -> Factors:
        if kind == "embedding":
            return Factors()
        if kind == "unembedding":
            return Factors(gain=width**HALF, multiplier=width**-1)
        return Factors(lr=width**-1, decay=width, eps=width**-1)


@dataclass(frozen=True)
class DepthMuP:
    """muP with branches scaled by a power of the depth: 1/2 is depth-muP, 1 is CompleteP (arXiv:2505.01618).

    Attributes:
        exponent: alpha in the branch multiplier depth ** -alpha; from 1/2 to 1.

    Raises:
        ModelError: for an exponent out of this range.

    Example:
        >>> float(DepthMuP(1.0).factors("branch_out", 2, 4).multiplier)
        0.25
    """

    exponent: float = 1.0

    def __post_init__(self) -> None:
        if not 0.5 <= number("DepthMuP.exponent", self.exponent, positive=True) <= 1:
            raise ModelError(f"DepthMuP.exponent must lie between 0.5 and 1, got {shown(self.exponent)}")

    def factors(self, kind: Kind, width: Number, depth: Number) -> Factors:
        plain = MuP().factors(kind, width, depth)
        if kind in ("embedding", "unembedding"):
            return plain
        alpha = Fraction(self.exponent).limit_denominator(10**6)
        branch = depth**-alpha if kind == "branch_out" else 1
        return Factors(1, branch, plain.lr * depth ** (alpha - 1), plain.decay, plain.eps * depth**-alpha)


@dataclass(frozen=True)
class Spectral:
    """The spectral condition for Muon (arXiv:2603.00541): one rate at every width, branches scaled by 1 / depth.

    Attributes:
        matched: whether Muon's steps are as large as Adam's (`Muon(scale="rms")`); the rate then falls with the
            width.

    Example:
        >>> Spectral().factors("branch_out", 2, 4).multiplier
        0.25
    """

    matched: bool = False

    def factors(self, kind: Kind, width: Number, depth: Number) -> Factors:
        if kind in ("embedding", "unembedding"):
            return MuP().factors(kind, width, depth)
        branch = depth**-1 if kind == "branch_out" else 1
        return Factors(multiplier=branch, lr=width**-HALF if self.matched else 1)


RULES: dict[str, Transfer] = {
    "standard": Standard(),
    "longcat": LongCat(),
    "mup": MuP(),
    "depth-mup": DepthMuP(0.5),
    "complete-p": DepthMuP(1.0),
    "spectral": Spectral(),
}


def as_transfer(rule: str | Transfer) -> Transfer:
    """A rule, by its name or itself.

    Raises:
        ModelError: for an unknown name, or an object without `factors`.

    Example:
        >>> as_transfer("complete-p")
        DepthMuP(exponent=1.0)
    """
    if isinstance(rule, str):
        choice("transfer", rule, tuple(RULES))
        return RULES[rule]
    if not hasattr(rule, "factors"):
        raise ModelError(
            f"transfer must be one of {', '.join(RULES)} or have factors(kind, width, depth), got {shown(rule)}"
        )
    return rule
