"""Tables kept in files: netCDF, with the SHA-256 of its bytes behind them. What is read is what was written."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from propagate.checks import ModelError
from propagate.files import read_whole, replace, sealed, unsealed

if TYPE_CHECKING:
    import xarray as xr

MOST = 2**28  # bytes of a file


def content_of(table: xr.Dataset) -> bytes:
    """The table as a netCDF file.

    Example:
        >>> import xarray as xr
        >>> content_of(xr.Dataset(attrs={"seed": 2**70})) == content_of(xr.Dataset(attrs={"seed": str(2**70)}))
        True
    """
    long = {"seed": str(table.attrs["seed"])} if "seed" in table.attrs else {}  # more digits than the format has
    return bytes(table.assign_attrs(long).to_netcdf(engine="scipy"))


def write_table(path: Path, table: xr.Dataset) -> None:
    """Whole or not at all, with the SHA-256 of its bytes behind them."""
    replace(path, sealed(content_of(table)))


def read_sealed(path: Path) -> xr.Dataset:
    """What `write_table` wrote.

    Raises:
        ModelError: for a file that is not as it was written, or no table.

    Example:
        >>> import tempfile, xarray as xr
        >>> path = Path(tempfile.mkdtemp()) / "one.nc"
        >>> write_table(path, xr.Dataset({"variance": ("block", [1.0, 2.0])}))
        >>> read_sealed(path).variance.values.tolist()
        [1.0, 2.0]
    """
    import xarray as xr

    content = unsealed(read_whole(path, "table", MOST))
    if content is None:
        raise ModelError(
            f"table {str(path)!r} is damaged or no table: its bytes are not those that were written, by their SHA-256;"
            " remove it, and it is measured again"
        )
    try:
        return xr.load_dataset(io.BytesIO(content), engine="scipy")
    except Exception as error:  # of SciPy's reader: its bytes are a stranger's, sealed by a stranger
        raise ModelError(f"table {str(path)!r} is no table: {type(error).__name__}; remove it") from None
