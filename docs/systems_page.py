"""The page on released systems' own classes, made from what `benchmarks/systems.py` measured."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from docs import results

KINDS = ("", "simulated_")
BAND = 0.06


def page() -> str:
    """Prediction over trace of released systems' own classes, every quantity at every block."""
    found = results.read("systems.json")
    summary, rows = found["summary"], found["rows"]
    beyond = [row for row in rows if any(abs(worst["ratio"] - 1) > BAND for worst in row["worst"].values())]
    words = (
        f"Classes of transformers {summary['transformers']} at small sizes, with weights as large as in the released"
        f" systems (width {summary['width']}, {summary['tokens']} tokens, {summary['sequences']} sequences,"
        f" {summary['draws']} initialisations): prediction over trace, give or take a standard error, at the"
        " block where it is farthest from 1; of the stream's and its gradient's moments, and of the gradients of all"
        " matrices. Beside each a simulation of the same sizes over trace, at the same place, tells what is due to few"
        " coordinates. The stream's and its gradient's moments are within"
        f" {results.percent(_farthest(rows, 'stream'))} in all {len(rows)};"
        f" all of {_joined(row['name'] for row in rows if row not in beyond)} are within"
        f" {results.percent(BAND)}."
    )
    why = (
        "Beyond that are gradients of matrices that make the logits, of "
        + _joined(f"{row['name']} ({_of(row['worst']['matrices'], '')})" for row in beyond)
        + ". Simulated networks of these sizes have them too (over trace "
        + _joined(_of(row["worst"]["matrices"], "simulated_") for row in beyond)
        + "): the model is read right, and it is the limit that is far. A part of it is chance products between tokens"
        " in the latent that keys and values share, as tokens over its rank: of the keys' matrix of block 1, where"
        " tokens enter uncorrelated, the ratio is "
        + _joined(f"{row['quantities']['param_grad[key]']['ratio'][1]:.3f} ({row['name']})" for row in beyond)
        + "."
    )
    cells = [
        (
            row["name"],
            *(
                cell
                for worst in row["worst"].values()
                for cell in (f"{worst['quantity']}, block {worst['block']}", *(_of(worst, kind) for kind in KINDS))
            ),
            "; ".join(row["unread"]),
        )
        for row in rows
    ]
    head = ("system", "stream", "theory", "simulation", "matrices", "theory", "simulation", "not read")
    parts = ["# Released systems, small", words, *([why] if beyond else []), f"`{results.command(summary)}`"]
    return "\n\n".join([*parts, results.table(head, cells)]) + "\n"


def _of(worst: dict[str, Any], kind: str) -> str:
    return f"{worst[f'{kind}ratio']:.3f} ± {worst[f'{kind}se']:.3f}"


def _farthest(rows: list[dict[str, Any]], kind: str) -> float:
    return float(max(abs(row["worst"][kind]["ratio"] - 1) for row in rows))


def _joined(parts: Iterable[str]) -> str:
    *most, last = parts
    return f"{', '.join(most)} and {last}" if most else last
