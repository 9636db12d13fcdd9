"""Pages of numbers, made from the committed results of `benchmarks/results/`."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from propagate.calibration import COLUMNS, calibration

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
FROM_PAGE = "../../benchmarks/results"  # as seen from docs/generated


def performance() -> str:
    """How fast it is: each table is one family of result files."""
    parts = [
        "# Performance",
        "Made from `benchmarks/results/` when these pages are built; no number here is written by hand. Compare the"
        " columns of a row, which come from one run on one machine. [How each was measured, and what was"
        " found](../../benchmarks/README.md).",
        "## Against torch",
        "Seconds for one block of one random network, forward and backward, fresh weights each draw: torch's autograd"
        " on the same network at its best batch size, with and without gradients of the weights, and the weightless"
        " sampler. *Floor*: the time that copying the fewest bytes at the device's measured bandwidth would take, as a"
        " share of ours.",
        *_against_torch(),
        "## How time grows",
        *_scaling(),
        "## A million coordinates",
        *_million(),
        "## Dense against its ceiling",
        "The dense sampler's time, and the share of it that random numbers and matrix products alone would take.",
        *_dense(),
        "## Dense against weightless",
        *_samplers(),
        "## Several workers",
        *_workers(),
        "## What float32 costs",
        "Largest relative difference of one draw's moments between the precisions, 1 - correlation at the end, and the"
        " smallest corrected p-value of two-sample tests between them; in the last column float32 has branches 5 % too"
        " large, which the same tests must find. (Peri-LN norms its branches and cannot tell.)",
        *_precision(),
        "## Theory",
        *_theory(),
        "## Every committed result",
        *_files(),
    ]
    return "\n\n".join(parts) + "\n"


def agreement() -> str:
    """Theory against simulation, placement by placement, from the committed run of `propagate verify`."""
    found = read("verify_h200.json")
    settings, summary, rows = found["settings"], found["summary"], found["rows"]
    lines = []
    for name in dict.fromkeys(row["placement"] for row in rows):
        cells = [row for row in rows if row["placement"] == name]
        wrong = [control for cell in cells for control in cell["controls"] if control["differs"]]
        worst = max(cells, key=lambda cell: abs(cell["z"]))
        where = (
            f"{worst['quantity']}, block {worst['block']}: {worst['activation']}, {worst['mask']}, {worst['scaling']}"
        )
        rejected = f"{sum(control['rejected'] for control in wrong)} of {len(wrong)}"
        agree = f"{sum(cell['agrees'] for cell in cells)} of {len(cells)}"
        lines.append((name, agree, f"{abs(worst['z']):.2f}", where, rejected))
    words = (
        f"{summary['agree']} of {summary['cells']} cells agree (width {settings['width']}, {settings['depth']} blocks,"
        f" {settings['tokens']} tokens, {settings['heads']} heads, {settings['draws']} draws, seed {settings['seed']},"
        f" {rows[0]['device']}); {summary['measured_again']} was measured a second time with other draws."
        f" {summary['controls_rejected']} of {summary['controls']} wrong theories are rejected by the same runs."
        f" Of {summary['scores']} scores {summary['far']} lie beyond 3, where chance alone would give"
        f" {summary['far_by_chance']:.0f}."
    )
    head = ("placement", "cells that agree", "largest |z|", "where", "wrong theories rejected")
    return "\n\n".join([words, table(head, lines), *_calibration(summary, rows)]) + "\n"


def _calibration(summary: dict[str, Any], rows: list[dict[str, Any]]) -> Iterator[str]:
    """Are errors stated of the right size, and how large must one be to show?"""
    yield (
        "Scores of one cell share their draws, and how many of them are independent is seen from cell to cell"
        " (`propagate/calibration.py`). Were all errors stated as large as they are, the root mean square would be 1,"
        " give or take its standard error, and as many scores beyond 3 as by chance, give or take one standard"
        " deviation of such a count; where one cell's lie there, many of its scores do."
    )
    for by, key in (("placement", lambda row, _: row["placement"]), ("quantity", lambda _, quantity: quantity)):
        groups = calibration(rows, key)
        lines = [
            (name, *(f"{group[column]:g}" for column in COLUMNS), str(group["cells"])) for name, group in groups.items()
        ]
        if lines:
            yield table((by, *(column.replace("_", " ") for column in COLUMNS), "cells"), lines)
    lines = [(name, *(f"{100 * x:.2g} %" for x in one.values())) for name, one in summary.get("detects", {}).items()]
    if lines:
        yield table(("errors that would have shown", "median cell", "19 of 20 cells", "worst cell"), lines)


def architectures() -> str:
    """Prediction over trace of architectures of the libraries transformers and x-transformers."""
    found = read("architectures.json")
    summary, sizes = found["summary"], found["summary"]["sizes"]
    told = [row for row in found["rows"] if "verdict" in row]
    count = Counter(row["verdict"] for row in told)
    apart = [row for row in told if row["verdict"] == "disagrees"]
    unsaid = [f"{row['name']} (by {100 * _off(row):.0f} %)" for row in apart if not row["unread"]]
    least = [_smallest(row) for row in told if row["verdict"] != "disagrees"]
    words = (
        f"{len(told)} architectures of transformers {summary['transformers']} and of x-transformers"
        f" {summary['x_transformers']} at random initialisation, with weights so"
        f" large that branches weigh as much as skips (width {sizes['width']}, {sizes['depth']} blocks,"
        f" {sizes['heads']} heads, {sizes['tokens']} tokens, {sizes['sequences']} sequences, {summary['draws']}"
        f" initialisations, torch {summary['torch']}): prediction over"
        " trace, give or take a standard error, of the variance that leaves the last block and of the gradient's that"
        f" reaches the first. {count['agrees']} agree, {count['disagrees']} disagree, with |z| above 4,"
        f" {count['cannot tell']} cannot tell: an error of 20 % at some block would not have shown. Of those"
        f" that do not disagree {sum(one <= 0.1 for one in least)} would have shown an error of 10 % in any quantity at"
        f" any block, half of them one of {100 * sorted(least)[len(least) // 2]:.0f} %. *Not read* is what `describe`"
        " says that its Model leaves out: the reason of those that disagree"
        + (f", but for {', '.join(unsaid)}, which have none." if unsaid else ".")
    )
    head = ("architecture", "read as", "variance", "gradient variance", "worst |z|", "verdict", "not read")
    quantities = ("variance", "grad_variance")
    rows = [
        (
            row["name"],
            row["placement"],
            *(f"{row[name]['ratio']:.3f} ± {row[name]['se']:.3f}" for name in quantities),
            f"{row['worst_z']:.1f}",
            row["verdict"],
            "; ".join(row["unread"]),
        )
        for row in told
    ]
    parts = ["# Architectures", words, f"`{command(summary)}`", table(head, rows)]
    for key, why in (("refused", "Refused, in words:"), ("failed", "Not measured:")):
        without = [(row["name"], row[key]) for row in found["rows"] if key in row]
        parts += [why, table(("architecture", "why"), without)] if without else []
    return "\n\n".join(parts) + "\n"


def _off(row: dict[str, Any]) -> float:
    """Of an architecture, how far its trace lies from the prediction where all blocks have been passed."""
    return max(abs(row[name]["ratio"] - 1) for name in ("variance", "deviation", "grad_variance", "grad_deviation"))


def _smallest(row: dict[str, Any]) -> float:
    """The smallest relative error that would have shown in every quantity at every block."""
    return max(math.inf if one is None else float(one) for one in row["unresolved"].values())


def same_law() -> str:
    """Two-sample tests of the weightless sampler against the dense one, and of a broken one."""
    found = read("same_law_numpy.json")
    rows = [
        (
            case,
            test["tests"],
            f"{test['smallest_p']:.2g}",
            _tiny(found["against_dense"]["unprojected"][case]["smallest_p"]),
        )
        for case, test in found["against_dense"]["weightless"].items()
    ]
    words = (
        f"{found['summary']['draws']} draws each, seed {found['summary']['seed']}, {found['summary']['device']};"
        " smallest p-value of all two-sample tests of a network, corrected for their number."
    )
    head = ("network", "tests", "weightless", "negative control: projection left out")
    return f"{words}\n\n{table(head, rows)}\n"


def _tiny(probability: float) -> str:
    return f"{probability:.2g}" if probability else "below 1e-300"


def read(name: str) -> Any:
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


def table(head: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    """In Markdown; an error stays on one line with its sign."""
    cells = [
        [str(cell).replace("|", "\\|").replace("± ", "±\N{NO-BREAK SPACE}") for cell in row] for row in (head, *rows)
    ]
    lines = [f"| {' | '.join(row)} |" for row in cells]
    return "\n".join([lines[0], "|" + "---|" * len(cells[0]), *lines[1:]])


def _seconds(value: float | None) -> str:
    if value is None:
        return ""
    unit, factor = next(((u, f) for u, f in (("s", 1.0), ("ms", 1e3)) if value * f >= 0.9995), ("µs", 1e6))
    return f"{value * factor:.3g}\N{NO-BREAK SPACE}{unit}"


def percent(share: float) -> str:
    return f"{100 * share:.0f}\N{NO-BREAK SPACE}%"


def command(summary: dict[str, Any]) -> str:
    return str(summary.get("command", "")).split(" --out")[0]


def _device(summary: dict[str, Any]) -> str:
    """The machine in a few words."""
    if summary["device"] != "CPU":
        return str(summary["device"])
    return f"{summary['processors']} CPU cores" if "processors" in summary else f"CPU, {summary['threads']} thread"


def _against_torch() -> Iterator[str]:
    head = ["placement", "tokens", "width", "torch", "with weight gradients", "ours, float32"]
    head += ["times as fast", "with weight gradients", "ours in float64", "floor"]
    for path in sorted(RESULTS.glob("against_torch_*.json")):
        found = read(path.name)
        yield f"{_device(found['summary'])} ([{path.name}]({FROM_PAGE}/{path.name})):"
        yield table(head, map(_row_against_torch, found["rows"]))


def _row_against_torch(row: dict[str, Any]) -> tuple[Any, ...]:
    learning = min((run["seconds"] for run in row["all"]["torch"] if run["weight_gradient"]), default=None)
    ours = row["float32"]["seconds"]
    times = (
        _seconds(row["torch"]["seconds"]),
        _seconds(learning),
        _seconds(ours),
        f"**{row['torch_over_float32']:.3g}**",
        f"{learning / ours:.3g}" if learning else "",
        f"{row['torch_over_float64']:.3g}",
        percent(row["floor_float32"]),
    )
    return row["placement"], row["tokens"], row["width"], *times


def _scaling() -> Iterator[str]:
    for path in sorted(RESULTS.glob("scaling_*.json")):
        found = read(path.name)
        base = ", ".join(f"{name} {value}" for name, value in found["summary"]["base"].items())
        yield f"Exponent of time in each size, fitted on the larger half; {_device(found['summary'])}, around {base}."
        samplers = list(dict.fromkeys(curve["sampler"] for curve in found["curves"]))
        slopes = {(curve["against"], curve["sampler"]): curve["slope"] for curve in found["curves"]}
        sizes = dict.fromkeys(curve["against"] for curve in found["curves"])
        rows = [
            (size, *(f"{slopes[size, s]:.2f}" if slopes.get((size, s)) is not None else "" for s in samplers))
            for size in sizes
        ]
        yield table(("time against", *samplers), rows)
        if path.with_suffix(".png").exists():
            yield f"![Seconds against width, tokens, depth and draws]({FROM_PAGE}/{path.stem}.png)"


def _million() -> Iterator[str]:
    found = read("million.json")
    summary = found["summary"]
    yield (
        f"`{summary['model'].split(', ffn_ratio')[0]}, ...)`, forward and backward, {_device(summary)}:"
        f" {summary['seconds']:.0f} s, {summary['peak_bytes'] / 2**30:.1f} GiB at the most. One draw, and theory:"
    )
    rows = [(r["quantity"], r["block"], f"{r['simulated']:.5g}", f"{r['predicted']:.5g}") for r in found["rows"]]
    yield table(("quantity", "block", "simulated", "predicted"), rows)


def _dense() -> Iterator[str]:
    for path in sorted(RESULTS.glob("dense_ceiling_*.json")):
        found = read(path.name)
        rows = [
            (
                r["precision"],
                r["tokens"],
                r["width"],
                _seconds(r["dense_seconds"]),
                percent(r["share"]),
            )
            for r in found["rows"]
        ]
        yield f"{_device(found['summary'])}:"
        yield table(("precision", "tokens", "width", "a draw and block", "share"), rows)


def _samplers() -> Iterator[str]:
    found = read("samplers_numpy.json")
    summary = found["summary"]
    yield f"{summary['unit'].capitalize()}; {_device(summary)}, PostNorm. `auto` is the rule's choice."
    rows = [
        (
            r["tokens"],
            r["width"],
            _seconds(r["dense_seconds"]),
            _seconds(r["weightless_seconds"]),
            f"{r['dense_over_weightless']:.3g}",
            r["auto"],
        )
        for r in found["rows"]
    ]
    yield table(("tokens", "width", "dense", "weightless", "dense / weightless", "auto"), rows)


def _workers() -> Iterator[str]:
    for path in sorted(RESULTS.glob("workers_*.json")):
        found = read(path.name)
        rows = [
            (r["workers"], _seconds(r["seconds"]), f"{r['speedup']:.2f}", "yes" if r["same_table"] else "NO")
            for r in found["rows"]
        ]
        yield f"{_device(found['summary'])}: `{command(found['summary'])}`"
        yield table(("workers", "time", "times as fast", "same table to the bit"), rows)


def _precision() -> Iterator[str]:
    for path in sorted(RESULTS.glob("precision_*.json")):
        found = read(path.name)
        measured = ("collapse", "variance", "grad_variance", "law", "wrong_law")
        rows = [(r["network"], *(_tiny(r[key]) for key in measured)) for r in found["rows"]]
        yield f"{_device(found['summary'])}:"
        head = ("network", "1 - correlation", "variance", "gradient variance", "p-value", "p-value, wrong law")
        yield table(head, rows)


def _theory() -> Iterator[str]:
    found = read("theory_speed.json")
    yield f"{len(found['placements'])} placements x {found['depth']} blocks, {found['cores']} CPU cores, closed forms:"
    rows = [(r["activation"], r["what"], _seconds(r["cold"]), _seconds(r["warm"])) for r in found["rows"]]
    yield table(("activation", "of", "first call", "later calls"), rows)
    if calls := found.get("first_calls"):
        yield "The first call of a fresh process, beyond its imports, on one thread:"
        of_calls = [
            (
                c["what"],
                "refused" if "refused" in c else _seconds(c["cpu"]),
                f"{c['goal']:g} s",
                _seconds(c["imports_cpu"]),
                f"{c['peak_memory_mb']:.0f} MB",
            )
            for c in calls
        ]
        yield table(("call", "CPU seconds", "goal", "imports", "peak memory"), of_calls)


def explorer() -> str:
    """What a moved slider costs, for the explorer's page."""
    found = read("explorer_speed.json")
    names = ("begun", "curves", "first", "drawing", "rest")
    rows = [(row["what"], *(_seconds(row[name]) if row[name] else "" for name in names)) for row in found["rows"]]
    load = f"{found['other_load']:.1f} other processes ran or waited on its {found['processors']} cores"
    said = (
        f"CPU seconds of one thread, medians of {found['moves']} moves of the exponent ({found['processor']}; {load}):"
    )
    head = (
        "24 blocks where none are named",
        "first curves",
        "all curves",
        "all that comes first",
        "drawing it",
        "what follows",
    )
    return "\n\n".join([said, table(head, rows)]) + "\n"


def _files() -> Iterator[str]:
    rows = []
    for path in sorted(RESULTS.glob("*.json")):
        found = read(path.name)
        said = found.get("summary", {}) | {k: v for k, v in found.items() if isinstance(v, str)}
        device = said.get("device") or next((r.get("device") for r in found.get("rows", []) if "device" in r), "")
        line = command(said)
        rows.append((f"[{path.name}]({FROM_PAGE}/{path.name})", device or "", f"`{line}`" if line else ""))
    yield table(("file", "device", "command"), rows)
