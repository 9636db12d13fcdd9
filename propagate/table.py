"""The labelled table that every witness returns: names, meanings and provenance. No mathematics."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from propagate.quantities import QUANTITIES as QUANTITIES
from propagate.quantities import Quantity as Quantity
from propagate.quantities import quantity_of
from propagate.quantities import register as register

if TYPE_CHECKING:
    import xarray as xr

BY_MATRIX = "param_grad"
"""The quantity of each weight matrix; the embedding, block 0, has no matrix: NaN there."""
EMBEDDING_SHARE = "embedding_share"
"""The quantity that `include` names: how much of a token is still its embedding."""
STREAM = "stream"
JOINED = "joined"


def table(
    variables: dict[str, Any],
    depth: int,
    attributes: dict[str, Any],
    dims: tuple[str, ...] = (),
    matrices: Sequence[str] = (),
    calls: Sequence[str] = (),
) -> xr.Dataset:
    """A Dataset over `block` 0 ... depth (and any further `dims`, or a quantity's own), with meanings and provenance.

    With "stream" first among `dims`, its coordinates are "1", "2", ... and, last, "joined": see `predict`. Those of the
    dimensions `matrix` and `call` are the `matrices` and `calls`. Which dimensions a quantity has, and whether it is
    one of each stream, its record says: see `propagate.quantities`. Of one token, quantities of two are left out.

    Example:
        >>> table({"variance": [1.0, 2.0]}, depth=1, attributes={"seed": 0}).sizes["block"]
        2
    """
    import xarray as xr

    variables = of_tokens(variables, attributes.get("tokens"))
    data = xr.Dataset(
        {name: (("block", *_dims(name, dims)), values) for name, values in variables.items()},
        coords={"block": ("block", range(depth + 1), {"long_name": "block (0: the embedding)"})}
        | {name: list(labels) for name, labels in (("matrix", matrices), ("call", calls)) if len(labels)},
        attrs={key: value for key, value in attributes.items() if value is not None} | provenance(),
    )
    if STREAM in dims:
        labels = [str(i + 1) for i in range(data.sizes[STREAM] - 1)]
        data = data.assign_coords({STREAM: [*labels, JOINED]})
    for name in data.variables:
        if name in QUANTITIES:
            data[name].attrs["long_name"] = QUANTITIES[str(name)].meaning
    return data


def _dims(name: str, dims: tuple[str, ...]) -> tuple[str, ...]:
    quantity = quantity_of(name)
    return (*(dim for dim in dims if quantity.streams or dim != STREAM), *quantity.dims)


def of_tokens(variables: dict[str, Any], tokens: int | None) -> dict[str, Any]:
    """Without the quantities of two tokens, where there is one.

    Example:
        >>> list(of_tokens({"variance": 1.0, "log_grad_deviation_se": 0.1, "covariance": 0.0}, tokens=1))
        ['variance']
    """
    return {name: values for name, values in variables.items() if tokens != 1 or not quantity_of(name).pairs}


@lru_cache(maxsize=1)
def provenance() -> dict[str, str]:
    """Versions and git revision, for a table's attributes.

    Example:
        >>> "numpy" in provenance()
        True
    """
    from importlib import metadata

    from propagate.version import __version__

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
