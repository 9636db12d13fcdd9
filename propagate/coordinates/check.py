"""Coordinate checks: how the first steps of every matrix follow the width, or the depth, and which one departs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from propagate.checks import ModelError, checked_threshold, choice, integer, number, shown
from propagate.coordinates.curves import Coordinates
from propagate.coordinates.fits import THRESHOLD, TOLERANCE, Finding, departing, findings, fitted, overall, sentence
from propagate.losses import CrossEntropy, Loss, check_loss
from propagate.model import Model
from propagate.optimizers import Optimizer, check_optimizer
from propagate.start import Start
from propagate.transfer import Transfer, as_transfer

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure

WIDTHS, MOST_DRAWS = (64, 128, 256, 512), 10**9


@dataclass(frozen=True)
class CoordinateCheck:
    """What `coordinate_check` found.

    Attributes:
        table: over `size`, `step` and `name`, what was measured (root mean squares; `log_<name>` and its standard
            error over networks), and over `name` the fitted exponents, those expected, and verdicts.
        verdict: "agrees", "disagrees" or "cannot tell".
        findings: every exponent that was judged, in the order of the forward pass.
        summary: the verdict in words.
    """

    table: xr.Dataset
    verdict: str
    findings: tuple[Finding, ...]
    summary: str

    @property
    def departures(self) -> tuple[Finding, ...]:
        """The exponents that depart, with what depends on no other matrix first; see `propagate.coordinates.fits`."""
        return tuple(departing(self.findings))

    def plot(self) -> Figure:
        """Measured points with 95 % bars and expected slopes, a panel a matrix; `propagate.plot(check.table)`."""
        from propagate.picture import plot

        return plot(self.table)

    def print(self) -> None:
        """The exponents as a table of text, and the verdict."""
        from propagate.coordinates.text import text

        print(text(self))

    def __str__(self) -> str:
        from propagate.coordinates.text import text

        return text(self)

    __repr__ = __str__


def coordinate_check(
    model: Model | Callable[[int], Any],
    *,
    optimizer: Any,
    widths: Sequence[int] | None = None,
    depths: Sequence[int] | None = None,
    transfer: str | Transfer | None = None,
    steps: int = 3,
    draws: int = 8,
    seed: int = 0,
    loss: Any = None,
    inputs: Any = None,
    start: Start | None = None,
    by: Literal["simulation", "torch"] = "simulation",
    tolerance: float = TOLERANCE,
    threshold: float = THRESHOLD,
) -> CoordinateCheck:
    """Whether every matrix's first steps keep their size as a network grows; names the one that departs.

    What is judged is local to a matrix. Its *response*: the change that its first update makes of its own output, per
    unit of its input at step 0. Its *gain*: its initial output, per unit of input. Root mean squares of both must not
    follow the width: a response as width^0, a gain no faster (the spectral condition, arXiv:2310.17813, seen on the
    inputs there are). What another matrix does wrong changes neither, but for the gradient's size under SGD. Changes of
    outputs, of the stream and of the logits at later steps are measured too; the last two are judged by their growth.

    Over depths, where branches may be wanted smaller, a response is held against what the rule's own factors say, and
    the stream's change against depth^0.

    Args:
        model: a `Model`, whose width (depth) is replaced by each of those given; or any function from a width to a
            torch module with random weights of torch's own generator.
        optimizer: `SGD`, `Sign`, `Adam` or `Muon`; beside a function, one from the module and the width to an optimiser
            of torch, with its groups.
        widths, depths: one of them, two sizes or more; by default widths 64, 128, 256 and 512. The smallest is the base
            of the rule.
        transfer: of a `Model`, the rule of transfer; None is none. Beside a function the optimiser's groups are it.
        steps: how many; the first is judged, or the first that moves a matrix (behind an unembedding of zeros the
            second).
        draws: independent networks a size.
        seed: of weights and tokens.
        loss: of a `Model`, `Linear()` or `CrossEntropy(vocabulary)`, by default of 64 tokens; beside a function, one
            from the module's output to a scalar.
        inputs: beside a function, what a module is called with, or a function from the number of a draw to that.
        start: of a `Model`, what enters.
        by: of a `Model`, which witness takes the steps: `simulate_steps`, which under SGD and Muon needs no weights and
            so reaches any width, or `trace_steps`.
        tolerance: how far an exponent may lie from the wanted one.
        threshold: normal score of what may be chance.

    Raises:
        ModelError: for both or too few sizes, what does not fit a `Model` or a function, or other values out of range.

    Example: Adam at one rate for all widths, and at muP's.
        >>> from propagate.optimizers import Adam
        >>> model = Model("prenorm", depth=1, heads=2, tokens=4)
        >>> settings = {"optimizer": Adam(lr=1e-3), "widths": (16, 32, 64), "steps": 1, "draws": 4}
        >>> check = coordinate_check(model, transfer="standard", **settings)
        >>> check.verdict, check.departures[0].name
        ('disagrees', 'query')
        >>> coordinate_check(model, transfer="mup", **settings).departures
        ()
    """
    along, sizes = _sizes(widths, depths)
    steps, draws = integer("steps", steps), integer("draws", draws, at_most=MOST_DRAWS)
    seed = integer("seed", seed, at_least=0)
    tolerance, threshold = number("tolerance", tolerance, positive=True), checked_threshold(threshold)
    if isinstance(model, Model):
        if inputs is not None:
            raise ModelError("inputs must be left out beside a Model, whose tokens are drawn: say moments with start")
        loss = CrossEntropy(64) if loss is None else loss
        check_optimizer(optimizer)
        check_loss(loss)
        choice("by", by, ("simulation", "torch"))
        if model.dropout:
            raise ModelError(f"dropout must be 0 where steps are taken, got {shown(model.dropout)}")
        run = Run(optimizer, loss, start, transfer, steps, draws, seed)
        found = (_simulated if by == "simulation" else _traced)(_models(model, along, sizes), run)
        law: Optimizer | None = optimizer
    elif callable(model):
        if transfer is not None or start is not None:
            raise ModelError("transfer and start must be left out beside a function, whose optimizer has the groups")
        if along == "depth":
            raise ModelError("depths must be left out beside a function: nobody knows what its branches are to do")
        if not callable(optimizer) or not callable(loss) or inputs is None:
            raise ModelError("beside a function, optimizer and loss must be functions, and inputs must be given")
        found, law = _of_family(model, sizes, inputs, loss, optimizer, steps, draws, seed), None
    else:
        raise ModelError(
            f"model must be a propagate.Model or a function from the width to a module, got {shown(model)}"
        )
    attributes = {"model": repr(model) if isinstance(model, Model) else getattr(model, "__name__", "function")}
    attributes |= {"optimizer": repr(optimizer) if law else "of the user", "transfer": repr(transfer), "seed": seed}
    attributes |= {"tolerance": tolerance, "threshold": threshold}
    table = fitted(along, sizes, found, law).assign_attrs(attributes)
    judged = findings(table)
    verdict, summary = overall(judged), sentence(table, judged)
    return CoordinateCheck(table.assign_attrs(verdict=verdict, summary=summary), verdict, tuple(judged), summary)


def _sizes(widths: Any, depths: Any) -> tuple[str, list[int]]:
    if widths is not None and depths is not None:
        raise ModelError("widths and depths must not both be given")
    along, given = ("depth", depths) if depths is not None else ("width", WIDTHS if widths is None else widths)
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise ModelError(f"{along}s must be a list of whole numbers, got {shown(given)}")
    sizes = sorted({integer(f"{along}s", size) for size in given})
    if len(sizes) < 2:
        raise ModelError(f"{along}s must be at least two different ones, got {shown(given)}")
    return along, sizes


class Run(NamedTuple):
    """What is done to every network of a `Model`."""

    optimizer: Optimizer
    loss: Loss
    start: Start | None
    transfer: str | Transfer | None
    steps: int
    draws: int
    seed: int


def _models(model: Model, along: str, sizes: Sequence[int]) -> list[Model]:
    """Of every size, before any work."""
    sized: list[dict[str, Any]] = [{along: size} for size in sizes]
    return [dataclasses.replace(model, **size) for size in sized]


def _simulated(models: Sequence[Model], run: Run) -> list[list[Coordinates]]:
    from propagate.montecarlo.steps.coordinates import coordinates_of
    from propagate.montecarlo.steps.simulate import plan

    base = models[0].width, models[0].depth
    said = run.optimizer, run.start, run.steps, run.seed, run.loss, run.transfer
    plans = [plan(model, *said, base) for model in models]
    return [list(coordinates_of(planned, run.draws)) for planned in plans]


def _traced(models: Sequence[Model], run: Run) -> list[list[Coordinates]]:
    from propagate.tracing.coordinates import coordinates_of

    base = models[0].width, models[0].depth
    given = Start.of(run.start)
    rule = None if run.transfer is None else as_transfer(run.transfer)
    said = run.optimizer, run.loss, given, rule, base, run.steps, run.draws, run.seed
    return [list(coordinates_of(model, *said)) for model in models]


def _of_family(
    make: Any, sizes: Sequence[int], inputs: Any, loss: Any, optimizer: Any, steps: int, draws: int, seed: int
) -> list[list[Coordinates]]:
    from propagate.tracing.family import coordinates_of_family

    seeds = [1_000_003 * seed + draw for draw in range(draws)]
    found = [list(coordinates_of_family(make, size, inputs, loss, optimizer, steps, seeds)) for size in sizes]
    names = [list(one.response) for row in found for one in row]
    if any(other != names[0] for other in names):
        unlike = next(other for other in names if other != names[0])
        odd = sorted(set(names[0]) ^ set(unlike)) or ["an order of calls"]
        raise ModelError(f"all sizes must have the same parameters in the same order, got {odd[0]} in some only")
    return found
