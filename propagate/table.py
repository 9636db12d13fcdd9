"""The labelled table that every witness returns: names, meanings and provenance. No mathematics."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Sequence
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import xarray as xr

MEANING = {
    "variance": "E x_ti^2: second moment per coordinate of the stream",
    "covariance": "E x_ti x_si, t != s: token-token second moment",
    "deviation": "variance - covariance, computed without cancellation",
    "grad_variance": "E g_ti^2, g the cotangent of the stream",
    "grad_covariance": "E g_ti g_si, t != s",
    "grad_deviation": "grad_variance - grad_covariance, computed without cancellation",
    "param_grad": "E |dLoss/dW|^2: squared Frobenius norm, W with entries of standard deviation gain / sqrt(fan_in)",
}
QUANTITIES = tuple(MEANING)
BY_MATRIX = "param_grad"
"""The quantity that has a dimension `matrix` besides `block`; the embedding, block 0, has no matrix: NaN there."""


def table(
    variables: dict[str, Any],
    depth: int,
    attributes: dict[str, Any],
    dims: tuple[str, ...] = (),
    matrices: Sequence[str] = (),
) -> xr.Dataset:
    """A Dataset over `block` 0 ... depth (and any further `dims`), with meanings and provenance.

    `param_grad`, and what is said of it, has the dimension `matrix` after `block`, labelled by `matrices`.

    Example:
        >>> table({"variance": [1.0, 2.0]}, depth=1, attributes={"seed": 0}).sizes["block"]
        2
    """
    import xarray as xr

    data = xr.Dataset(
        {
            name: (("block", *(("matrix",) if BY_MATRIX in name else ()), *dims), values)
            for name, values in variables.items()
        },
        coords={"block": ("block", range(depth + 1), {"long_name": "block (0: the embedding)"})}
        | ({"matrix": list(matrices)} if matrices else {}),
        attrs={key: value for key, value in attributes.items() if value is not None} | provenance(),
    )
    for name in data.variables:
        if name in MEANING:
            data[name].attrs["long_name"] = MEANING[str(name)]
    return data


@lru_cache(maxsize=1)
def provenance() -> dict[str, str]:
    """Versions and git revision, for a table's attributes.

    Example:
        >>> "numpy" in provenance()
        True
    """
    from propagate import __version__

    versions = {"propagate": __version__} | {name: metadata.version(name) for name in ("numpy", "scipy")}
    return versions | {"python": platform.python_version(), "revision": _revision()}


def _revision() -> str:
    """The checkout's commit, or "unknown" for an installed package."""
    root = Path(__file__).parent.parent
    if not (root / ".git").exists():
        return "unknown"
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
