"""From the coordinates of networks of several sizes to exponents, and from exponents to a verdict in words."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from propagate.coordinates.curves import Coordinates
from propagate.coordinates.expected import expected_response
from propagate.coordinates.slopes import Slope, judged, slope
from propagate.optimizers import Optimizer
from propagate.table import provenance
from propagate.verdicts import CANNOT_TELL, DISAGREES, together

if TYPE_CHECKING:
    import xarray as xr

THRESHOLD = 3.0
TOLERANCE = 0.25
"""Mistakes of a rule are half powers and whole ones; corrections of finite width look like a few hundredths."""
OVER_STEPS = ("response", "own_change", "output_change")
WORDS = {
    "embedding": "the embedding",
    "unembedding": "the unembedding",
    "query": "attention's query matrix",
    "key": "attention's key matrix",
    "value": "attention's value matrix",
    "attention_out": "attention's output matrix",
    "router": "the router",
    "ffn_gate": "the FFN's gate matrix",
    "ffn_in": "the FFN's input matrix",
    "ffn_out": "the FFN's output matrix",
    "stream": "the stream's change",
    "logits": "the logits' change",
    "output": "the output's change",
}
MEANING = {
    "response": "rms of the change of a matrix's output by its own update alone, per unit of its input at step 0",
    "own_change": "rms of the change of a matrix's output by its own update alone",
    "output_change": "rms of the change of a matrix's output",
    "gain": "rms of a matrix's initial output per unit of its input",
    "change": "rms of the change of what leaves the last block, or the network",
}


@dataclass(frozen=True)
class Finding:
    """One exponent, judged.

    Attributes:
        name: of the matrix (parameter), or "stream", "logits", "output".
        quantity: "gain", "response" or "change".
        slope: as fitted.
        wanted: the exponent that it should have, or at most have.
        rule: the exponent that the rule's own factors give; NaN where nobody knows.
        at_most: whether a smaller one is as good.
        step: at which it was measured.
        verdict: "agrees", "disagrees" or "cannot tell".
    """

    name: str
    quantity: str
    slope: Slope
    wanted: float
    rule: float
    at_most: bool
    step: int
    verdict: str

    @property
    def subject(self) -> str:
        """In words.

        Example:
            >>> Finding("query", "response", Slope(1.0, 0.1, 9), 0.0, 1.0, False, 1, "disagrees").subject
            "the response of attention's query matrix"
        """
        words = WORDS.get(self.name, self.name)
        return words if self.quantity == "change" else f"the {self.quantity} of {words}"

    @property
    def follows(self) -> bool:
        """Whether it hangs on what reaches the matrix alone: by the rule's own factors the response is as wanted.

        Example:
            >>> Finding("attention_out", "response", Slope(0.25, 0.09, 9), 0.0, 0.0, False, 1, "disagrees").follows
            True
        """
        return self.quantity == "response" and round(self.rule, 2) == round(self.wanted, 2)


def fitted(
    along: str, sizes: Sequence[int], found: Sequence[Sequence[Coordinates]], law: Optimizer | None
) -> xr.Dataset:
    """Curves and exponents of networks, by size and draw.

    Args:
        along: "width" or "depth".
        sizes: one a row.
        found: rows of independent networks.
        law: the optimiser, where its law gives what the rule's factors make of a response.
    """
    import xarray as xr

    first, draws = found[0][0], len(found[0])
    names, wholes = list(first.response), list(first.whole)
    columns: dict[str, Any] = {}

    def add(quantity: str, dims: tuple[str, ...], values: Any) -> None:
        """`values` of shape (sizes, draws, ...)."""
        with np.errstate(divide="ignore"):
            logarithms = np.log(values)
        errors = np.full(values.shape[:1] + values.shape[2:], np.nan)
        with np.errstate(invalid="ignore"):
            means = logarithms.mean(1)
            if draws > 1:
                errors = logarithms.std(1, ddof=1) / math.sqrt(draws)
        columns[quantity] = (("size", *dims), np.exp(means), {"long_name": MEANING[quantity]})
        columns[f"log_{quantity}"], columns[f"log_{quantity}_se"] = (("size", *dims), means), (("size", *dims), errors)
        shape = means.shape[1:]
        slopes = [slope(sizes, means[:, *at], errors[:, *at], draws) for at in np.ndindex(shape)]
        for part in ("value", "error", "freedom"):
            entries = np.array([getattr(one, part) for one in slopes], dtype=float).reshape(shape)
            columns[f"{quantity}_slope{'' if part == 'value' else f'_{part}'}"] = (dims, entries)

    def array(of: Callable[[Coordinates], Any]) -> Any:
        return np.array([[of(one) for one in row] for row in found], dtype=float)

    for quantity in OVER_STEPS:
        values = np.array([[[getattr(one, quantity)[name] for name in names] for one in row] for row in found])
        add(quantity, ("step", "name"), np.swapaxes(values, -1, -2))
    add("gain", ("name",), array(lambda one: [one.gain[name] for name in names]))
    add("change", ("step", "whole"), np.swapaxes(array(lambda one: [one.whole[name] for name in wholes]), -1, -2))
    rule = np.full(len(names), np.nan)
    if law is not None:
        expected = array(lambda one: [expected_response(law, one.matrices[n], one.gradient[n]) for n in names])
        with np.errstate(divide="ignore"):
            means = np.log(expected).mean(1)
        rule = np.array([slope(sizes, column, np.zeros(len(sizes)), draws).value for column in means.T])
        columns["response_rule"] = ("name", rule)
    columns["judged_step"] = (
        "name",
        [_first_moved([one.response[name] for row in found for one in row]) for name in names],
    )
    coords = {"size": list(sizes), "step": range(len(first.response[names[0]])), "name": names, "whole": wholes}
    attributes = {"witness": "coordinate check", "along": along, "draws": draws} | provenance()
    return xr.Dataset(columns, coords, attributes)


def _first_moved(responses: Sequence[Sequence[float]]) -> int:
    """The first step at which a matrix has moved on every network; 0 if it never does."""
    moved = (np.nan_to_num(np.array(responses), nan=1.0) > 0).all(0)
    return int(moved.argmax()) if moved.any() else 0


def findings(table: xr.Dataset) -> list[Finding]:
    """Every exponent that is judged, matrices in the order of the forward pass, then what leaves the network."""
    tolerance, threshold = float(table.attrs["tolerance"]), float(table.attrs["threshold"])
    over_width, found = table.attrs["along"] == "width", []
    for name in table.name.to_numpy().tolist():
        one = table.sel(name=name)
        step = int(one.judged_step)
        rule = float(one.response_rule) if "response_rule" in one else math.nan
        rows = [("gain", _slope(one, "gain"), 0.0, math.nan, True, 0)]
        if step:
            wanted = 0.0 if over_width else rule
            rows.append(("response", _slope(one.sel(step=step), "response"), wanted, rule, False, step))
        for quantity, slope_, wanted, by_rule, at_most, at in rows:
            if quantity == "gain" and math.isnan(slope_.value):
                continue  # of what has no stream for an input, or begins at 0
            if math.isnan(wanted):
                continue
            verdict = judged(slope_, wanted, tolerance, threshold, at_most=at_most)
            found.append(Finding(name, quantity, slope_, wanted, by_rule, at_most, at, verdict))
    last = table.isel(step=-1)
    for name in table.whole.to_numpy().tolist():
        slope_ = _slope(last.sel(whole=name), "change")
        verdict = judged(slope_, 0.0, tolerance, threshold, at_most=True)
        found.append(Finding(name, "change", slope_, 0.0, math.nan, True, int(last.step), verdict))
    return found


def _slope(at: xr.Dataset, quantity: str) -> Slope:
    value, error = float(at[f"{quantity}_slope"]), float(at[f"{quantity}_slope_error"])
    return Slope(value, error, int(at[f"{quantity}_slope_freedom"]))


def overall(found: Sequence[Finding]) -> str:
    """The verdict on all: the worst of the matrices; what leaves the network counts where it departs.

    "cannot tell" where no response is judged.
    """
    matrices = [one.verdict for one in found if one.quantity != "change"]
    if any(one.verdict == DISAGREES for one in found):
        return DISAGREES
    return together(matrices) if any(one.quantity == "response" for one in found) else CANNOT_TELL


def departing(found: Sequence[Finding]) -> list[Finding]:
    """What departs: gains, then responses, each in the order of the forward pass, then what leaves the network.

    A gain depends on no other matrix; a response may, by the gradient's size and by what is alike in what reaches the
    matrix, so those that the rule's own factors explain come first; what leaves the network depends on all.
    """
    order = ("gain", "response", "change")
    departed = [one for one in found if one.verdict == DISAGREES]
    return sorted(departed, key=lambda one: (order.index(one.quantity), one.follows))


def sentence(table: xr.Dataset, found: Sequence[Finding]) -> str:
    """The verdict in words: what departs first in the forward pass, and what else."""
    along, tolerance = str(table.attrs["along"]), float(table.attrs["tolerance"])
    verdict, low, high = overall(found), int(table.size.min()), int(table.size.max())
    if verdict == DISAGREES:
        first, *rest = departing(found)
        words = f"{_departs(first, along)}."
        if first.quantity == "change":
            words += " No matrix departs by itself: look between them (a sum, a scale, a multiplier that is missing)."
        also = _named([one for one in rest if first.follows or not one.follows], but={first.name})
        if also:
            words += f" So do {', '.join(also)}." if len(also) > 1 else f" So does {also[0]}."
        after = _named(rest, but={first.name, *(one.name for one in rest if not one.follows)})
        if after and not first.follows:
            words += f" The rule's own factors are right for {', '.join(after)}, whose response departs after these."
        return words[:1].upper() + words[1:]
    if verdict == CANNOT_TELL:
        unsure = [one for one in found if one.verdict == CANNOT_TELL and one.quantity != "change"]
        if not unsure:
            return "Nothing can be told: no matrix moved."
        worst = max(unsure, key=lambda one: math.inf if math.isnan(one.slope.error) else one.slope.error)
        return f"It cannot be told: {worst.subject} goes as {along}^{worst.slope}. More draws or sizes would tell."
    responses = [one.slope.value - one.wanted for one in found if one.quantity == "response"]
    return (
        f"Every matrix is as expected from {along} {low} to {high}: responses are off by exponents between "
        f"{min(responses):.2f} and {max(responses):.2f}; beyond {tolerance:g} would show."
    )


def _named(found: Sequence[Finding], but: Set[str]) -> list[str]:
    """Their matrices in words, each once."""
    return list(dict.fromkeys(WORDS.get(one.name, one.name) for one in found if one.name not in but))


def _departs(one: Finding, along: str) -> str:
    verb = "grows" if one.slope.value > one.wanted else "falls"
    words = f"{one.subject} {verb} as {along}^{one.slope}; it should go as {along}^{one.wanted:.2g}"
    words += " at most" * one.at_most
    if math.isnan(one.rule) or one.quantity != "response" or one.rule == one.wanted:
        return words
    return f"{words}, and the rule's own factors give {along}^{one.rule + 0.0:.2f}"
