"""Sets the theory of the initialisation beside trained streams: `python figures/measure_theory.py`, after the profiles.

A causal network's theory goes token by token, which takes seconds: so it is kept, in training_theory.nc.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import xarray as xr

import propagate as pg
from figures.training_cells import FULL, Cell, Size
from figures.training_record import Record, read

MEASURED = Path(__file__).resolve().parent / "measured"
SHOWN = (("prenorm", 0.0), ("prenorm", 0.5), ("postnorm", 0.0), ("postnorm", 0.5), ("spannorm", 0.0), ("spannorm", 0.5))
TOLERANCE = 0.5
"""Of the logarithm: what a width of 128 and eight sequences whose tokens repeat do by chance is less."""
STREAMS = ("variance", "covariance", "deviation", "grad_variance", "grad_covariance", "grad_deviation")


def beside(model: pg.Model, seen: xr.Dataset) -> xr.Dataset:
    """For each share of the steps: 1 - correlation predicted from its own start, and where theory is left.

    Args:
        model: at its initialisation.
        seen: streams over (share, block).

    Returns:
        `decorrelation` over (share, block), and over `share` `first_forward`, the first block at which a quantity of
        the stream leaves the band of half a natural logarithm, and `first_backward`, the last at which one of the
        gradient does; NaN for none.
    """
    found: dict[str, list[object]] = {"decorrelation": [], "first_forward": [], "first_backward": []}
    for share in seen.share.values:
        at = seen.sel(share=share)
        said = pg.predict(model, **pg.start_of(at))
        found["decorrelation"].append((said.deviation / said.variance).values)
        for name, quantities in (("first_forward", STREAMS[:3]), ("first_backward", STREAMS[3:])):
            left = pg.first_divergence(said[list(quantities)], at[list(quantities)], tolerance=TOLERANCE)
            found[name].append(np.nan if left is None else left.block)
    dims = {"decorrelation": ("share", "block")}
    return xr.Dataset(
        {name: (dims.get(name, "share"), np.array(values, "float32")) for name, values in found.items()},
        {"share": seen.share, "block": seen.block},
    )


def measure(to: Path, size: Size = FULL) -> None:
    """The profiles' means over seeds, architecture by architecture; what is there already is left out."""
    profiles, record = read(to / "training_profiles.nc"), Record(to / "training_theory.nc")
    for placement, exponent in SHOWN:
        here = np.flatnonzero((profiles.placement == placement) & np.isclose(profiles.exponent, exponent))
        for place in here:
            one = profiles.isel(cell=int(place))
            name = str(one.cell.item())
            if name in record.names:
                continue
            cell = Cell(placement, exponent, int(one.depth), float(one.warmup), int(one.width), (), ())
            seen = one[list(STREAMS)].mean("seed").astype(float)
            table = beside(cell.model(size), seen.drop_vars([n for n in seen.coords if n not in ("share", "block")]))
            record.add(name, table.assign_attrs(tolerance=TOLERANCE), placement=placement, exponent=exponent)
            print(name, table.first_forward.values, table.first_backward.values, flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--to", type=Path, default=MEASURED)
    measure(parser.parse_args().to)
