"""A figure's data made here, beside the data that are committed: the same bytes, the same within errors, or other.

Another processor chooses other kernels, which round otherwise: bytes then differ where nothing else does.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import xarray as xr

MOST_Z = 4.0
"""Standard errors, of both, between two estimates that are taken for the same."""
ROUNDING = 1e-6
"""Relative difference between numbers without a standard error that are taken for the same."""
OF_ERRORS = 0.05
"""Relative difference between standard errors, which are estimates themselves."""


def compared(made: Path, committed: Path) -> str:
    """What tells two files of data apart, in words.

    Args:
        made, committed: netCDF files of one figure.

    Returns:
        "same bytes", "same within its standard errors (largest |z| 0.01)", or what differs most.

    Example:
        >>> import tempfile, xarray as xr
        >>> folder = Path(tempfile.mkdtemp())
        >>> for name, mean in (("a", 1.0), ("b", 1.1), ("c", 2.0)):
        ...     table = xr.Dataset({"x": ("block", [mean]), "x_se": ("block", [0.1])})
        ...     path = table.to_netcdf(folder / f"{name}.nc", engine="scipy")
        >>> for name in "abc":
        ...     print(compared(folder / f"{name}.nc", folder / "a.nc"))
        same bytes
        same within its standard errors (largest |z| 0.71)
        differs: x, |z| 7.07
    """
    import xarray as xr

    if not committed.exists():
        return "nothing committed"
    if made.read_bytes() == committed.read_bytes():
        return "same bytes"
    one, other = (xr.load_dataset(path, engine="scipy") for path in (made, committed))
    if dict(one.sizes) != dict(other.sizes) or set(one.variables) != set(other.variables):
        return "differs: of another size"
    largest = 0.0
    for name in map(str, one.variables):
        apart, z = _apart(name, one, other)
        if apart:
            return f"differs: {name}, {apart}"
        largest = max(largest, z)
    return f"same within its standard errors (largest |z| {largest:.2f})"


def _apart(name: str, one: xr.Dataset, other: xr.Dataset) -> tuple[str, float]:
    """What sets a variable apart, or nothing; and the largest |z| of what has a standard error."""
    x, y = one[name].to_numpy(), other[name].to_numpy()
    if x.dtype.kind not in "fc":
        return ("" if np.array_equal(x, y) else "other values"), 0.0
    if not np.array_equal(np.isnan(x), np.isnan(y)):
        return "NaN elsewhere", 0.0
    if f"{name}_se" in one:
        z = _largest(np.abs(x - y), np.hypot(one[f"{name}_se"].to_numpy(), other[f"{name}_se"].to_numpy()))
        return (f"|z| {z:.2f}" if z > MOST_Z else ""), z
    relative = _largest(np.abs(x - y), np.maximum(np.abs(x), np.abs(y)))
    most = OF_ERRORS if name.endswith("_se") else ROUNDING
    return (f"relative difference {relative:.1g}" if relative > most else ""), 0.0


def _largest(difference: NDArray[Any], scale: NDArray[Any]) -> float:
    """Of their quotients, where there is a difference; infinite where it has no scale."""
    with np.errstate(divide="ignore", invalid="ignore"):
        found = np.where(difference == 0, 0.0, difference / scale)
    known = found[~np.isnan(found)]
    return float(known.max(initial=0.0))
