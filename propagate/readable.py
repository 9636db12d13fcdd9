"""Tables as text for people: a verdict by its worst blocks, second moments at some of theirs."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from propagate.checks import ModelError, shown
from propagate.quantities import quantity_of
from propagate.table import STREAM

if TYPE_CHECKING:
    from rich.table import Table
    from xarray import Dataset

Columns = Sequence[str]
Rows = list[tuple[str, ...]]
VERDICT = ("quantity", "predicted", "measured", "std. error", "allowance", "detects", "worst block", "z", "verdict")
WORDS = {"agrees": "Theory and simulation agree", "disagrees": "Theory and simulation disagree"}
MOMENTS = ("variance", "covariance", "deviation")


def report(table: Dataset) -> str:
    """A table in lines of text, to print.

    Args:
        table: what `compare` returned, or one with second moments over blocks, as of `predict`, `simulate` and `trace`.

    Returns:
        Of a verdict a line for each quantity, at its worst block: errors and allowance in percent of the prediction (of
        a covariance, which may be next to nothing, as they are), the smallest error that would have been rejected, and
        last the verdict in words. Of second moments a line for each of up to 13 blocks, with standard errors.

    Raises:
        ModelError: for another table.

    Example:
        >>> from propagate import Model, predict
        >>> print(report(predict(Model("prenorm", depth=2, logit_std=0.0))))
        block  variance  covariance  deviation  grad_variance  grad_covariance  grad_deviation
        0             1           0          1         3.0169          0.15594           2.861
        1        2.0312     0.36486     1.6664         1.4694         0.022263          1.4471
        2        3.2365      1.0263     2.2102              1                0               1
    """
    if "quantity" in getattr(table, "dims", ()) and "verdict" in table:
        return "\n".join([aligned(VERDICT, verdict_rows(table)), verdict_in_words(table)])
    if "block" in getattr(table, "dims", ()) and "variance" in table:
        return aligned(*moments(table))
    raise ModelError(f"table must be a verdict, or have a variance over blocks, got {shown(table)[:200]}")


def aligned(columns: Columns, rows: Sequence[Sequence[str]]) -> str:
    """Columns of text, under one another."""
    from rich.console import Console

    held = io.StringIO()
    Console(file=held, width=200, color_system=None).print(in_columns(columns, rows))
    return "\n".join(line.rstrip() for line in held.getvalue().splitlines())


def in_columns(columns: Columns, rows: Sequence[Sequence[str]]) -> Table:
    """The same for a console; what begins with a number stands right."""
    from rich.table import Table

    table = Table(header_style="bold", box=None, pad_edge=False)
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i and rows and rows[0][i][:1] in "0123456789+-n" else "left")
    for row in rows:
        table.add_row(*row)
    return table


def verdict_rows(judged: Dataset) -> Rows:
    """The worst place of each quantity."""
    rows = []
    for name in judged.quantity.values:
        one = judged.sel(quantity=name)
        verdict = str(one.verdict.item())
        size = one.unresolved if verdict == "cannot tell" else abs(one.z)
        at = one.isel(size.fillna(-1.0).argmax(list(size.dims)))
        uncertain = (_uncertainty(at, str(name), key) for key in ("standard_error", "allowance", "detectable"))
        rows.append(
            (
                str(name),
                f"{float(at.predicted):.5g}",
                f"{float(at.measured):.5g}",
                *uncertain,
                " ".join(str(at[place].values) for place in one.z.dims),
                f"{float(at.z):+.2f}",
                "DISAGREES" if verdict == "disagrees" else verdict,
            )
        )
    return rows


def verdict_in_words(judged: Dataset) -> str:
    """Whether theory and simulation agree, where they first part, of what least is known."""
    attrs = judged.attrs
    told = f"errors beyond {_percent(float(judged.unresolved.max()))} would show, "
    told = told if attrs["verdict"] == "agrees" else ""
    head = WORDS.get(attrs["verdict"], "The simulation cannot tell")
    lines = [f"{head}: |z| < {attrs['threshold']:g}, {told}{attrs['draws']} draws, {attrs['device']}."]
    if attrs["first_divergence"]:
        lines.append(f"First divergence: {attrs['first_divergence']}.")
    if attrs["cannot_tell"]:
        lines.append(f"Least is known of {attrs['cannot_tell']}.")
    return "\n".join(lines)


def moments(table: Dataset) -> tuple[Columns, Rows]:
    """Second moments at up to 13 blocks, the first and the last among them."""
    names = [name for name in MOMENTS if name in table]
    names += [f"grad_{name}" for name in names if f"grad_{name}" in table]
    depth = table.sizes["block"] - 1
    streams = [{STREAM: str(name)} for name in table[STREAM].values] if STREAM in table.dims else [{}]
    rows = []
    for stream in streams:
        for block in sorted({round(depth * i / 12) for i in range(13)}):
            at = table.isel(block=block).sel(stream)
            if any(bool(at[name].notnull()) for name in names):  # between its ends "joined" is nowhere
                rows.append((str(block), *stream.values(), *(_cell(at, name) for name in names)))
    return ("block", *streams[0], *names), rows


def _cell(at: Dataset, name: str) -> str:
    of_error = quantity_of(name).column("se")
    error = f" ± {float(at[of_error]):.1g}" if of_error in at else ""
    value = float(at[name])
    return f"{0.0 if abs(value) < 1e-15 else value:.5g}{error}"


def _uncertainty(at: Dataset, name: str, key: str) -> str:
    """In percent; of a covariance, which may be next to nothing, as it is."""
    share = 0.0 if float(at[key]) < 1e-9 else float(at[key])
    return f"{share * float(at.scale):.2g}" if not quantity_of(name).positive else _percent(share)


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %" if share < 10 else "> 1000 %"
