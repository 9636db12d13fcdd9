"""Every claim, judged: as records, as text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

from propagate.checks import ModelError, shown
from propagate.claims.claim import Claim, Judged, Sources, judged

if TYPE_CHECKING:
    import xarray as xr


def claims() -> tuple[Claim, ...]:
    """All that are audited, in their order."""
    from propagate.claims import (
        c1_bounded_variance,
        c2_no_vanishing,
        c3_twice_as_deep,
        c4_collapse,
        c5_trains_deeper,
        c6_beats_others,
        c7_transfer,
        c8_fig3,
        lite,
        longcat,
        reviewers,
    )

    files = (c1_bounded_variance, c2_no_vanishing, c3_twice_as_deep, c4_collapse, c5_trains_deeper, c6_beats_others)
    spannorm = (*(one.CLAIM for one in files), c7_transfer.CLAIM, c8_fig3.CLAIM)
    return (*spannorm, c7_transfer.LONGCAT, *longcat.CLAIMS, *lite.CLAIMS, *reviewers.CLAIMS)


def audit(names: Iterable[str] | None = None, *, sources: Sources | None = None) -> list[Judged]:
    """Claims of the literature, each with its evidence and the verdict that follows from it.

    Theory is worked out and networks are simulated here and now; proofs are run, and records of training read, where
    the package lies in a checkout. Without one that evidence is missing, and verdicts are of the rest.

    Args:
        names: of claims, such as ["C1", "C5"]; all by default.
        sources: where tables come from.

    Returns:
        A record a claim: its words, source, statement and evidence, and `verdict`: "holds", "holds at initialisation",
        "only under ...", "fails" or "not testable here". Printed, it is all of that as text.

    Raises:
        ModelError: for a name that no claim has.

    Example:
        >>> [found] = audit(["C3"])
        >>> found.verdict
        'only under skips alone'
    """
    known = {claim.name: claim for claim in claims()}
    if isinstance(names, str) or not isinstance(names, Iterable | None):
        raise ModelError(f"names must be several names of claims, such as ['C1'], got {shown(names)}")
    chosen = []
    for name in known if names is None else names:  # not all of them at first: they may have no end
        if not isinstance(name, str) or name not in known:
            raise ModelError(f"names must be of {', '.join(known)}, got {shown(name)}")
        chosen.append(name)
    if not isinstance(sources, Sources | None):
        raise ModelError(f"sources must be propagate.claims.claim.Sources, got {shown(sources)}")
    where = sources or here()
    return [judged(known[name], where) for name in chosen]


def here() -> Sources:
    """The verbs of this package, and what its checkout holds."""
    import propagate as pg

    return Sources(pg.predict, pg.simulate, _proved, _trained)


@lru_cache(maxsize=64)
def _proved_one(number: str) -> bool:
    from propagate.checkout import importable

    try:
        importable("proofs")
    except ModelError:
        return False
    runner: Any = import_module("proofs.runner")
    return all(report.proved for report in runner.prove([number]))


def _proved(numbers: Sequence[str]) -> bool:
    return all(_proved_one(number) for number in numbers)


@lru_cache(maxsize=8)
def _trained(name: str) -> xr.Dataset | None:
    import xarray as xr

    from propagate.checkout import folder

    try:
        path = folder("figures") / "measured" / f"training_{name}.nc"
    except ModelError:
        return None
    return xr.load_dataset(path, engine="scipy") if path.is_file() else None
