"""Optimisers: how a step changes a weight matrix, given the gradient of the loss with respect to it.

These are descriptions only; each witness has its own function for them. Weight decay is decoupled from the gradient, as
in AdamW (arXiv:1711.05101): a step first multiplies the matrix by 1 - lr * decay.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from propagate.checks import ModelError, check_flag, choice, number, shown


@dataclass(frozen=True)
class SGD:
    """Gradient descent: W -= lr * M, with M = momentum * M + gradient.

    Attributes:
        lr: learning rate, above 0.
        momentum: from 0 to below 1.
        decay: decoupled weight decay, at least 0.

    Raises:
        ModelError: for a value out of its range.

    Example:
        >>> SGD(lr=0.1).momentum
        0.0
    """

    lr: float
    momentum: float = 0.0
    decay: float = 0.0

    def __post_init__(self) -> None:
        _check(self)


@dataclass(frozen=True)
class Sign:
    """The sign of every entry of the gradient, or of its momentum (arXiv:1802.04434): Adam's first step, with eps 0.

    Attributes:
        lr: learning rate, above 0.
        momentum: from 0 to below 1.
        decay: decoupled weight decay, at least 0.

    Raises:
        ModelError: for a value out of its range.

    Example:
        >>> Sign(lr=0.001).decay
        0.0
    """

    lr: float
    momentum: float = 0.0
    decay: float = 0.0

    def __post_init__(self) -> None:
        _check(self)


@dataclass(frozen=True)
class Adam:
    """Adam with decoupled weight decay (arXiv:1412.6980, 1711.05101).

    Attributes:
        lr: learning rate, above 0.
        betas: decay rates of the gradient's mean and of its square's, each from 0 to below 1.
        eps: added to the root of the mean square, at least 0.
        decay: decoupled weight decay, at least 0.

    Raises:
        ModelError: for a value out of its range.

    Example:
        >>> Adam(lr=0.001).betas
        (0.9, 0.999)
    """

    lr: float
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    decay: float = 0.0

    def __post_init__(self) -> None:
        _check(self)
        if not isinstance(self.betas, tuple) or len(self.betas) != 2:
            raise ModelError(f"Adam.betas must be two numbers, got {shown(self.betas)}")
        for name, beta in zip(("Adam.betas[0]", "Adam.betas[1]"), self.betas, strict=True):
            _below_one(name, beta)
        number("Adam.eps", self.eps, positive=False)


@dataclass(frozen=True)
class Muon:
    """The orthogonal factor of the gradient's momentum (Jordan et al. 2024; arXiv:2502.16982), taken exactly.

    For M = U S V^T a step is lr * scale * U V^T. Implementations approximate U V^T by a few Newton-Schulz steps, which
    leave singular values between 0.7 and 1.2.

    Attributes:
        lr: learning rate, above 0.
        momentum: from 0 to below 1.
        nesterov: whether the gradient is added once more to momentum * M.
        scale: "none" (1), "original" (the root of the larger of 1 and fan_out / fan_in) or "rms" (0.2 times the root of
            the larger of fan_in and fan_out, so that entries are as large as Adam's).
        decay: decoupled weight decay, at least 0.

    Raises:
        ModelError: for a value out of its range.

    Example:
        >>> Muon(lr=0.02).scale
        'none'
    """

    lr: float
    momentum: float = 0.0
    nesterov: bool = False
    scale: Literal["none", "original", "rms"] = "none"
    decay: float = 0.0

    def __post_init__(self) -> None:
        _check(self)
        check_flag("Muon.nesterov", self.nesterov)
        choice("Muon.scale", self.scale, ("none", "original", "rms"))

    def size(self, fan_in: int, fan_out: int) -> float:
        """The number that `scale` stands for, of a matrix with these sides.

        Example:
            >>> Muon(0.1, scale="original").size(16, 64), Muon(0.1, scale="rms").size(100, 16)
            (2.0, 2.0)
        """
        if self.scale == "original":
            return math.sqrt(max(1.0, fan_out / fan_in))
        return 0.2 * math.sqrt(max(fan_in, fan_out)) if self.scale == "rms" else 1.0


Optimizer = SGD | Sign | Adam | Muon


def check_optimizer(optimizer: Any) -> None:
    """ModelError unless it is one of the optimisers here.

    Example:
        >>> check_optimizer("adam")
        Traceback (most recent call last):
        propagate.checks.ModelError: optimizer must be one of SGD, Sign, Adam, Muon, such as SGD(lr=0.1), got 'adam'
    """
    if not isinstance(optimizer, Optimizer):
        raise ModelError(f"optimizer must be one of SGD, Sign, Adam, Muon, such as SGD(lr=0.1), got {shown(optimizer)}")


def _check(optimizer: Optimizer) -> None:
    kind = type(optimizer).__name__
    number(f"{kind}.lr", optimizer.lr, positive=True)
    number(f"{kind}.decay", optimizer.decay, positive=False)
    if not isinstance(optimizer, Adam):
        _below_one(f"{kind}.momentum", optimizer.momentum)


def _below_one(name: str, value: float) -> None:
    if number(name, value, positive=False) >= 1:
        raise ModelError(f"{name} must lie below 1, got {shown(value)}")
