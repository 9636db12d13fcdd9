"""What a diagnosis found, in words: lines that are computed from the numbers of its table."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import xarray as xr

TENTH = 0.1
"""From which share on something is trouble: of a step that eps takes, of the loss's gradient that another has."""
HUNDREDTH = 0.01
"""From which share on something is near it."""
COLUMNS = ("what", "number", "where", "verdict", "in words")


@dataclass(frozen=True)
class Line:
    """One thing that was looked at.

    Attributes:
        name: of what it is about.
        value: the number that the verdict is made of.
        where: the place that has it: a matrix and its block.
        verdict: "well", "near" or "trouble", or "known" of a number that nothing is asked of.
        words: what that means.
    """

    name: str
    value: float
    where: str
    verdict: str
    words: str

    def __str__(self) -> str:
        return f"{self.name}: {self.words}"


@dataclass(frozen=True)
class Diagnosis:
    """What `diagnose` found.

    Attributes:
        table: its numbers, over `block` and `matrix`.
        lines: a verdict for each kind of them.
    """

    table: xr.Dataset
    lines: tuple[Line, ...]

    @property
    def verdict(self) -> str:
        """The worst that a line has, of "well", "near" and "trouble"."""
        order = ("known", "well", "near", "trouble")
        worst = max((line.verdict for line in self.lines), key=order.index)
        return "well" if worst == "known" else worst

    def line(self, name: str) -> Line:
        """The line of this name.

        Raises:
            KeyError: where there is none.
        """
        return {line.name: line for line in self.lines}[name]

    def __str__(self) -> str:
        from propagate.readable import aligned

        return aligned(COLUMNS, rows(self))

    __repr__ = __str__


def rows(found: Diagnosis) -> list[tuple[str, ...]]:
    """A row of text for each line."""
    return [(line.name, f"{line.value:.3g}", line.where, line.verdict, line.words) for line in found.lines]


def lines_of(table: xr.Dataset) -> tuple[Line, ...]:
    """What the numbers of a table say, line by line.

    Args:
        table: of `diagnose`; of a network without experts, or without one stream before its end, it lacks columns.
    """
    found = [_of_matrices(table), _of_embedding(table)]
    if "hidden_z" in table:
        found.append(_of_hidden_z(table))
    if "router_cosine" in table:
        found += [_of_cosines(table), _of_balance(table)]
    return tuple(found)


def _of_matrices(table: xr.Dataset) -> Line:
    rms = table.grad_rms.transpose("block", "matrix")
    one = rms.isel(rms.where(rms > 0).argmin(("block", "matrix")))
    least, where = float(one), f"{one.matrix.item()} of block {one.block.item()}"
    eps, width = float(table.attrs["eps"]), int(table.attrs["width"])
    taken, at_width = _taken(least, eps), _bites_at(least, eps, width)
    if eps == 0:
        return Line("eps, matrices", 0.0, where, "well", "an eps of 0 takes nothing of a step")
    several = "" if rms.sizes["matrix"] * (rms.sizes["block"] - 1) == 1 else "the smallest gradient has "
    words = f"{several}rms {least:.2g}, so that eps {eps:g} {_of_step(taken)}; a tenth {_from(taken, at_width)}"
    return Line("eps, matrices", taken, where, _verdict(taken), words)


def _of_embedding(table: xr.Dataset) -> Line:
    rms, eps = float(table.embedding_grad_rms), float(table.attrs["eps"])
    taken = _taken(rms, eps)
    words = f"a row that occurs once has rms {rms:.2g}, so that eps {eps:g} {_of_step(taken)}"
    return Line("eps, embedding", taken, "embedding", _verdict(taken), words)


def _of_hidden_z(table: xr.Dataset) -> Line:
    loss, ratio, width = float(table.hidden_z), float(table.hidden_z_ratio), table.attrs["width"]
    root, plain, weight = math.sqrt(loss), math.log(width), float(table.attrs.get("z_weight", math.nan))
    size = f"log sum exp |z| is {root:.3g}, {plain:.3g} of it log width"
    if math.isnan(weight):
        words = f"{size}; up to a weight of {TENTH / ratio:.2g} its gradient is below a tenth of the loss's"
        return Line("hidden z-loss", root, "last block", "known", words)
    share = weight * ratio
    return Line("hidden z-loss", share, "last block", _verdict(share), f"{size}; weight {weight:g}: {_of_loss(share)}")


def _of_cosines(table: xr.Dataset) -> Line:
    one = table.router_cosine.isel(block=table.router_cosine.argmax("block"))
    worst, chance = float(one), float(table.attrs["width"]) ** -0.5
    words = f"rows of experts are as unlike as chance makes them, {chance:.2g} = 1 / sqrt(width)"
    if worst > 2 * chance:
        words = f"rows of experts are alike: {worst / chance:.2g} times what chance makes of them, 1 / sqrt(width)"
    elif worst < chance / 2:
        words = "rows of experts are at right angles"
    verdict = "well" if worst <= 2 * chance else "near" if worst < TENTH else "trouble"
    return Line("router, cosines", worst, f"block {one.block.item()}", verdict, words)


def _of_balance(table: xr.Dataset) -> Line:
    one = table.balance_ratio.isel(block=table.balance_ratio.argmax("block"))
    worst, weight = float(one), float(table.attrs.get("balance_weight", math.nan))
    where = f"block {one.block.item()}"
    if math.isnan(weight):
        words = f"up to a weight of {TENTH / worst:.2g} the balance loss's gradient is below a tenth of the loss's"
        return Line("router, balance", worst, where, "known", words)
    share = weight * worst
    words = f"balance loss of weight {weight:g}: {_of_loss(share)}"
    return Line("router, balance", share, where, _verdict(share), words)


def _taken(rms: float, eps: float) -> float:
    """Of Adam's step, the share that eps takes where the root of its second moment is the root mean square."""
    return eps / (rms + eps)


def _bites_at(rms: float, eps: float, width: int) -> float:
    """The width at which that is a tenth, gains and proportions held: gradients fall as its square root."""
    return width * (rms * TENTH / (1 - TENTH) / eps) ** 2 if eps else math.inf


def _verdict(share: Any) -> str:
    return "trouble" if share > TENTH else "near" if share > HUNDREDTH else "well"


def _of_step(taken: float) -> str:
    return f"takes {100 * taken:.2g} % of its step"


def _of_loss(share: float) -> str:
    return f"its gradient is {100 * share:.2g} % of the loss's"


def _from(taken: float, width: float) -> str:
    return f"{'only below' if taken > TENTH else 'from'} width {width:.2g}"
