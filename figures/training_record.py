"""A file of measured cells, to which one is added as soon as it is done: whatever ends the run, the others are kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import xarray as xr

from propagate.files import replace

CELL = "cell"


class Record:
    """Measurements by the name of what was measured.

    Attributes:
        path: of the file; None keeps it in memory alone.
        table: what there is, over `cell`; None if nothing.
    """

    def __init__(self, path: Path | None) -> None:
        self.path, self.table = path, None if path is None or not path.is_file() else read(path)

    @property
    def names(self) -> list[str]:
        """Of the cells that it holds."""
        return [] if self.table is None else [str(name) for name in self.table[CELL].values]

    def add(self, name: str, table: xr.Dataset, **fields: Any) -> None:
        """One more cell, whose fields become coordinates; written at once."""
        one = table.expand_dims({CELL: [name]}).assign_coords({key: (CELL, [value]) for key, value in fields.items()})
        known = [] if self.table is None else [self.table]
        joined = xr.concat(
            [*known, one], CELL, data_vars="all", join="outer", combine_attrs="override", fill_value=float("nan")
        )
        self.table = joined.assign_attrs({**table.attrs, **(known[0].attrs if known else {})})
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            replace(self.path, bytes(self.table.to_netcdf(engine="scipy", format="NETCDF3_64BIT")))


def read(path: Path) -> xr.Dataset:
    """What a record wrote."""
    with xr.open_dataset(path, engine="scipy") as data:
        return data.load().drop_encoding()  # else the lengths of its names would bind later ones
