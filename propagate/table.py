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
}
QUANTITIES = tuple(MEANING)
BY_MATRIX = "param_grad"
"""The quantity of each weight matrix; the embedding, block 0, has no matrix: NaN there."""
BY_CALL = ("call_variance", "call_covariance")
"""Second moments of what each sublayer call of a block gives, over (`block`, `call`), which some tables have."""
FURTHER = {"token_variance": ("token",), "grad_token_variance": ("token",), BY_MATRIX: ("matrix",)}
"""Quantities with dimensions besides `block`: those of single tokens, which only tables of tokens that are not
exchangeable have, and those of single matrices, which no one stream has."""
MEANING |= {
    "token_variance": "E x_ti^2 of each token t",
    "grad_token_variance": "E g_ti^2 of each token t",
    BY_MATRIX: "E |dLoss/dW|^2: squared Frobenius norm, W with entries of standard deviation gain / sqrt(fan_in)",
}
STREAM = "stream"
JOINED = "joined"


def table(
    variables: dict[str, Any],
    depth: int,
    attributes: dict[str, Any],
    dims: tuple[str, ...] = (),
    matrices: Sequence[str] = (),
) -> xr.Dataset:
    """A Dataset over `block` 0 ... depth (and any further `dims`, or a quantity's own), with meanings and provenance.

    With "stream" first among `dims`, its coordinates are "1", "2", ... and, last, "joined": see `predict`. That of the
    dimension `matrix` of `param_grad` are the `matrices`; that quantity has no streams. Of one token, quantities of two
    are left out.

    Example:
        >>> table({"variance": [1.0, 2.0]}, depth=1, attributes={"seed": 0}).sizes["block"]
        2
    """
    import xarray as xr

    variables = of_tokens(variables, attributes.get("tokens"))
    data = xr.Dataset(
        {name: (("block", *_without_stream(name, dims), *further(name)), values) for name, values in variables.items()},
        coords={"block": ("block", range(depth + 1), {"long_name": "block (0: the embedding)"})}
        | ({"matrix": list(matrices)} if matrices else {}),
        attrs={key: value for key, value in attributes.items() if value is not None} | provenance(),
    )
    if STREAM in dims:
        labels = [str(i + 1) for i in range(data.sizes[STREAM] - 1)]
        data = data.assign_coords({STREAM: [*labels, JOINED]})
    for name in data.variables:
        if name in MEANING:
            data[name].attrs["long_name"] = MEANING[str(name)]
    return data


def further(name: str) -> tuple[str, ...]:
    """Dimensions besides `block` of a variable: its quantity's, whatever stands before or after its name.

    Example:
        >>> further("log_token_variance_se"), further("variance")
        (('token',), ())
    """
    for suffix in ("_se", "_allowance", "_bias"):
        name = name.removesuffix(suffix)
    return FURTHER.get(name.removeprefix("log_"), ())


def of_tokens(variables: dict[str, Any], tokens: int | None) -> dict[str, Any]:
    """Without the quantities of two tokens, where there is one.

    Example:
        >>> list(of_tokens({"variance": 1.0, "log_grad_deviation_se": 0.1, "covariance": 0.0}, tokens=1))
        ['variance']
    """
    return {
        name: v for name, v in variables.items() if tokens != 1 or not ("covariance" in name or "deviation" in name)
    }


def _without_stream(name: str, dims: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dim for dim in dims if dim != STREAM) if further(name) == FURTHER[BY_MATRIX] else dims


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
