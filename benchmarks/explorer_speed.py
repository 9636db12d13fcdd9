"""How long an update of the explorer takes when a slider is moved: CPU milliseconds of its theory, and of drawing it.

    python benchmarks/explorer_speed.py --out benchmarks/results/explorer_speed.json

A state is shown, then the same with another exponent, which changes everything but the state's own sizes. `begun` is
the time to the first curves, which are true as far as they go: where tokens differ they grow block by block while they
are computed. `curves` are the moments at every block, `first` all that is shown before anything else is begun,
`rest` the attention's share, first step and better curves that follow there. `drawing` is what the page and Bokeh make
of `first`, with the message to the browser. Medians over moves (of `rest` one move), on one thread, after the tables of
the softmax are there; of several placements together. `other_load` is how many processes ran or waited when the
benchmark began (the mean over the last minute): where machines share caches and cores CPU seconds, too, grow with it.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from timing import provenance, write

from propagate.explorer import growing
from propagate.explorer.curves import GRID, Curves, Moments
from propagate.explorer.page import Page
from propagate.explorer.state import State
from propagate.explorer.waits import Waits

FOUR = ("prenorm", "postnorm", "spannorm", "residual")
CASES = {
    "one placement": State(placements=("spannorm",)),
    "two placements": State(placements=("postnorm", "spannorm")),
    "three placements, as at first": State(),
    "one of 128 blocks": State(placements=("spannorm",), depth=128),
    "four of 128 blocks": State(placements=FOUR, depth=128),
    "one, Adam's step": State(placements=("spannorm",), optimizer="adam"),
    "one, causal": State.clamped(placements=("spannorm",), mask="causal"),
    "one, causal, 64 blocks": State.clamped(placements=("spannorm",), mask="causal", depth=64),
    "four, causal, 64 blocks": State.clamped(placements=FOUR, mask="causal", depth=64),
    "one, causal, 64 blocks, the slowest": State.clamped(placements=("dyt",), mask="causal", depth=64),
    "one, experts": State.clamped(placements=("spannorm",), experts="8:2"),
    "one, experts, 32 blocks": State.clamped(placements=("spannorm",), experts="16:4", depth=32),
}
GOAL = 0.2  # seconds
COLUMNS = ("begun", "curves", "first", "drawing", "rest")


class Nobody:
    """A pool in which nothing is done: calls are made here."""

    def submit(self, *_: Any) -> None: ...


def cpu(call: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of this process, and what came of it."""
    began = time.process_time()
    found = call()
    return time.process_time() - began, found


def moves(state: State, count: int) -> dict[str, float]:
    """Medians over so many moves of the exponent; the first two are not counted."""
    from bokeh.document import Document
    from bokeh.document.events import DocumentPatchedEvent
    from bokeh.protocol import Protocol

    growing.clock = time.process_time  # pictures of growing curves come after so much work, whatever else runs
    events: list[Any] = []
    page = Page(state, Nobody(), lambda show: show())  # type: ignore[arg-type]
    document = page.view().server_doc(Document())
    document.on_change(events.append)

    def shown(moved: State, results: list[Any]) -> None:
        events.clear()
        page._show(moved, results, ())
        patches = [event for event in events if isinstance(event, DocumentPatchedEvent)]
        assert patches
        assert Protocol().create("PATCH-DOC", patches).content_json

    rows: dict[str, list[float]] = {name: [] for name in COLUMNS}
    for number in range(count + 2):
        moved, told = dataclasses.replace(state, exponent=round(0.3 + 0.01 * number, 2)), list[float]()
        began = time.process_time()
        plan = Curves().plan(moved, Waits(bool, bool, lambda _, told=told: told.append(time.process_time())))
        of_first = [cpu(call) for call in plan.first]
        rows["begun"].append((told[0] - began) if told else of_first[0][0])
        rows["curves"].append(sum(took for took, found in of_first if isinstance(found, Moments)))
        rows["first"].append(sum(took for took, _ in of_first))
        if number == 2 and len(state.placements) < len(FOUR):  # of four it is four times that of one
            mapped = len({moved.exponent, *GRID}) * len(state.placements)  # critical depths, which come last
            rows["rest"] = 3 * [sum(cpu(call)[0] for call in plan.then[:-mapped])]
        rows["drawing"].append(cpu(lambda moved=moved, found=of_first: shown(moved, [one for _, one in found]))[0])
    return {name: statistics.median(row[2:]) if row else 0.0 for name, row in rows.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--moves", type=int, default=5)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    load, rows = os.getloadavg()[0], []
    print(f"{'CPU ms of a move':36s}" + "".join(f"{column:>9s}" for column in COLUMNS))
    for name, state in CASES.items():
        found = moves(state, options.moves)
        rows.append({"what": name, "state": state.query} | found)
        print(f"{name:36s}" + "".join(f"{1000 * found[column]:9.0f}" for column in COLUMNS), flush=True)
    if options.out:
        of_packages = provenance("CPU", ("numpy", "scipy", "panel", "bokeh"))
        write(options.out, of_packages | {"other_load": load, "moves": options.moves, "goal": GOAL, "rows": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
