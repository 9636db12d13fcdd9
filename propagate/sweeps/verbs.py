"""What is done in every cell: a verb of the package by its name, or any function from a model to a table."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from propagate.checks import ModelError, choice, integer, shown
from propagate.model import Model
from propagate.start import Start

if TYPE_CHECKING:
    import xarray as xr

KNOWN = ("predict", "predict_calls", "predict_step", "simulate", "simulate_steps", "compare")
OURS = ("executor", "progress", "checkpoint")
"""Options of verbs that a sweep sees to itself."""


@dataclass(frozen=True)
class Verb:
    """One verb and its options, the same in every cell.

    Attributes:
        name: before its columns, where there are several verbs.
        function: a name in `KNOWN`, or a function.
        options: by keyword.
    """

    name: str
    function: str | Callable[..., Any]
    options: dict[str, Any] = field(default_factory=dict)

    def __call__(self, model: Model) -> xr.Dataset:
        """Its table of a network."""
        made: Any = _function(self.function)(model, **self.options, **_silent(self.function))
        if not (hasattr(made, "data_vars") and hasattr(made, "to_netcdf")):
            raise ModelError(f"{self.name} must give an xarray.Dataset, got {shown(made)}")
        return made  # type: ignore[no-any-return]


def verbs_of(verbs: Any) -> list[Verb]:
    """The verbs of a sweep, checked.

    Args:
        verbs: a name or a function, several of them, or a mapping from them to their options.

    Raises:
        ModelError: for an unknown verb, an option that it does not have, or one out of range.

    Example:
        >>> verbs_of({"predict": {"covariance": 0.3}})
        [Verb(name='predict', function='predict', options={'covariance': 0.3})]
    """
    if isinstance(verbs, str) or callable(verbs):
        verbs = [verbs]
    if isinstance(verbs, list | tuple):
        for verb in verbs:
            if not (isinstance(verb, str) or callable(verb)):
                raise ModelError(f"verbs must be names or functions, got {shown(verb)}")
        verbs = {verb: {} for verb in verbs}
    if not isinstance(verbs, Mapping) or not verbs:
        raise ModelError(f"verbs must be names of verbs, or map them to their options, got {shown(verbs)}")
    found = [_verb(given, options) for given, options in verbs.items()]
    names = [verb.name for verb in found]
    if len(set(names)) < len(names):
        raise ModelError(f"verbs must have different names, got {', '.join(names)}")
    return found


def _verb(given: Any, options: Any) -> Verb:
    if not callable(given):
        choice("verbs", given, KNOWN)
    name = str(given if isinstance(given, str) else getattr(given, "__name__", type(given).__name__))
    if not isinstance(options, Mapping) or not all(isinstance(key, str) for key in options):
        raise ModelError(f"options of {name} must map names to values, got {shown(options)}")
    for key in options:
        if key in OURS:
            raise ModelError(f"{key} must be given to sweep, not to {name}")
    try:
        _signature(given).bind(None, **options)
    except (TypeError, ValueError) as error:
        raise ModelError(f"options of {name}: {' '.join(str(error).split())}") from None
    _check(options)
    return Verb(name, given, dict(options))


def _check(options: Mapping[str, Any]) -> None:
    """Those that every verb means alike."""
    if options.get("start") is not None:
        Start.of(options["start"])
    for name, least in (("draws", 2), ("seed", 0), ("steps", 1)):
        if name in options:
            integer(name, options[name], at_least=least, at_most=2**128 - 1)
    for name, known in (
        ("backend", ("auto", "numpy", "cupy")),
        ("sampler", ("auto", "dense", "weightless")),
        ("precision", ("float32", "float64")),
    ):
        if name in options:
            choice(name, options[name], known)


def compared(model: Model, start: Start | None = None, *, include: Any = (), **run: Any) -> xr.Dataset:
    """Predict, simulate and judge one by the other: the verb "compare".

    Args:
        model: the network.
        start: what enters it.
        include: what the prediction includes, such as {"bias"}.
        run: options of `simulate`.
    """
    import propagate as pg

    return pg.compare(pg.predict(model, start, include=include), pg.simulate(model, start, **run))


def _function(given: str | Callable[..., Any]) -> Callable[..., Any]:
    import propagate as pg

    if callable(given):
        return given
    return compared if given == "compare" else getattr(pg, given)


def _signature(given: str | Callable[..., Any]) -> inspect.Signature:
    import propagate as pg

    if given == "predict_calls":
        return inspect.signature(pg.predict)
    if given == "compare":
        own, run = inspect.signature(compared), inspect.signature(pg.simulate)
        kept = [p for name, p in own.parameters.items() if name != "run"]
        more = [p.replace(kind=p.KEYWORD_ONLY) for name, p in run.parameters.items() if name not in own.parameters]
        return inspect.Signature([*kept, *more])
    return inspect.signature(_function(given))


def _silent(given: str | Callable[..., Any]) -> dict[str, Any]:
    """No bar of its own."""
    return {"progress": False} if given in ("simulate", "simulate_steps", "compare") else {}
