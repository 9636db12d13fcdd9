"""What the committed figures hold, for the tests of them."""

from typing import Any

import xarray as xr

from propagate import figures


def stored(name: str) -> xr.Dataset:
    with xr.open_dataset(figures.ROOT / "figures" / f"{name}.nc", engine="scipy") as data:
        return data.load()


def networks() -> Any:
    figures.load("skip_path")  # puts the checkout on the path
    import figures.networks as module

    return module
