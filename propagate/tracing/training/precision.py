"""The number types of training: what weights are kept in, and what products of matrices are taken in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

from propagate.checks import ModelError, choice

Precision = Literal["float32", "float64", "tf32", "bfloat16"]
PRECISIONS: tuple[Precision, ...] = ("float32", "float64", "tf32", "bfloat16")


def check_precision(precision: Precision, device: str) -> None:
    """ModelError for a name that is none, or for what only CUDA devices have.

    Example:
        >>> check_precision("tf32", "cpu")
        Traceback (most recent call last):
        propagate.checks.ModelError: precision 'tf32' needs a CUDA device, got device='cpu'
    """
    choice("precision", precision, PRECISIONS)
    if precision == "tf32" and torch.device(device).type != "cuda":
        raise ModelError(f"precision 'tf32' needs a CUDA device, got device={device!r}")


def kept_in(precision: Precision) -> torch.dtype:
    """What weights, gradients and the optimiser's moments are."""
    return torch.float64 if precision == "float64" else torch.float32


@contextmanager
def products_in(precision: Precision, device: str) -> Iterator[None]:
    """Within it matrix products and attention, forward and backward, are taken in TF32, or, forward, in bfloat16.

    Everything else (streams, norms, softmax over the vocabulary) stays in float32, by the rules of `torch.autocast`;
    what was forward in bfloat16 goes backward in bfloat16 by itself.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    try:
        kind = torch.device(device).type
        with torch.autocast(kind, torch.bfloat16, enabled=precision == "bfloat16", cache_enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)
