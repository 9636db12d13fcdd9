"""Updates of many matrices of one shape at once: a deep network asks the same of every block, one by one.

Only what is told by plain second moments of exchangeable tokens is put together, as arrays over the matrices; what
optimisers draw is of one matrix alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from propagate.optimizers import SGD, Muon, Optimizer
from propagate.theory.gaussian.functions import is_plain
from propagate.theory.pairs.moments import Moments
from propagate.theory.updates import Met, update
from propagate.watching import watch


def updates(mets: Sequence[Met], optimizer: Optimizer) -> list[dict[str, Any]]:
    """`update` of each.

    Raises:
        ModelError: as `update` of any.

    Example:
        >>> from propagate.theory.uses import Use
        >>> uses = [Use(8, 8, gain, Moments(1.0, 0.5), Moments(1e-2, 1e-2)) for gain in (1.0, 2.0)]
        >>> mets = [Met(use, tokens=4) for use in uses]
        >>> updates(mets, SGD(lr=0.1)) == [update(met, SGD(lr=0.1)) for met in mets]
        True
    """
    found: list[dict[str, Any]] = [{}] * len(mets)
    alike: dict[Hashable, list[int]] = {}
    tell = watch()
    for at, met in enumerate(mets):
        if _stackable(met, optimizer):
            alike.setdefault(_shape(met), []).append(at)
        else:
            tell("between", at, None)
            found[at] = update(met, optimizer)
    for places in alike.values():
        columns = update(_stacked([mets[at] for at in places]), optimizer)
        rows = {name: np.broadcast_to(values, (len(places),)).tolist() for name, values in columns.items()}
        for number, at in enumerate(places):
            found[at] = {name: values[number] for name, values in rows.items()}
    return found


def _stackable(met: Met, optimizer: Optimizer) -> bool:
    use = met.use
    known = isinstance(optimizer, SGD | Muon) and isinstance(use.x, Moments) and isinstance(use.g, Moments)
    return known and is_plain(*use.x, *use.g, use.gain)


def _shape(met: Met) -> Hashable:
    """All that an update depends on but moments and gain."""
    use = met.use
    return use.fan_in, use.fan_out, use.balanced, use.several, use.free, met.tokens, met.multiplier


def _stacked(mets: Sequence[Met]) -> Met:
    uses = [met.use for met in mets]

    def over(moments: Sequence[Any]) -> Moments:
        return Moments(*np.array(moments, dtype=float).T)

    gains = np.array([use.gain for use in uses], dtype=float)
    x, g = over([use.x for use in uses]), over([use.g for use in uses])
    return dataclasses.replace(mets[0], use=dataclasses.replace(uses[0], gain=gains, x=x, g=g))
