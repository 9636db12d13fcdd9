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

    Theory is worked out, networks are simulated and proofs are run here and now; training is read from records that lie
    in the checkout and in a wheel. Where they are not at hand, verdicts are of the rest.

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
    if not isinstance(sources, Sources | None):
        raise ModelError(f"sources must be propagate.claims.claim.Sources, got {shown(sources)}")
    where = sources or here()
    return [judged(claim, where) for claim in chosen(names)]


def chosen(names: Iterable[str] | None = None) -> list[Claim]:
    """The claims of these names; all by default.

    Raises:
        ModelError: for a name that no claim has.

    Example:
        >>> [claim.words for claim in chosen(["C3"])]
        ['twice as deep']
    """
    known = {claim.name: claim for claim in claims()}
    if isinstance(names, str) or not isinstance(names, Iterable | None):
        raise ModelError(f"names must be several names of claims, such as ['C1'], got {shown(names)}")
    found = []
    for name in known if names is None else names:  # not all of them at first: they may have no end
        if not isinstance(name, str) or name not in known:
            raise ModelError(f"names must be of {', '.join(known)}, got {shown(name)}")
        found.append(known[name])
    return found


def here() -> Sources:
    """The verbs of this package, and what its checkout or its wheel holds."""
    import propagate as pg

    return Sources(pg.predict, pg.simulate, _proved, _trained)


@lru_cache(maxsize=64)
def _proved_one(number: str) -> bool:
    runner: Any = import_module("proofs.runner")
    return all(report.proved for report in runner.prove([number]))


def _proved(numbers: Sequence[str]) -> bool | None:
    from propagate.checkout import importable

    try:
        importable("proofs")
    except ModelError:
        return None
    return all(_proved_one(number) for number in numbers)


@lru_cache(maxsize=8)
def _trained(name: str) -> xr.Dataset | None:
    import xarray as xr

    from propagate.checkout import at_hand

    try:
        path = at_hand("figures") / "measured" / f"training_{name}.nc"
    except ModelError:
        return None
    return xr.load_dataset(path, engine="scipy") if path.is_file() else None
