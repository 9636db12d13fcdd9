"""Names of the placements that come with the package; tests register others, in one process with any test."""

import propagate as pg

OWN = sorted(name for name, kind in pg.placements().items() if kind.__module__ == "propagate.placements")
