"""The files of a verification: results, and measured tables. What is read back is what was written, or refused."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from propagate.cells import Cell, Settings
from propagate.checks import ModelError
from propagate.files import read_whole, replace
from propagate.identity import differences, digest
from propagate.kept_tables import read_sealed
from propagate.verdicts import AGREES, CANNOT_TELL, DISAGREES

if TYPE_CHECKING:
    import xarray as xr

MOST = 2**28  # bytes of a file: the whole matrix's results take a hundredth
SEAL = "sha256"


def write_results(path: Path, content: dict[str, Any]) -> None:
    """As JSON, with the digest of all of it."""
    whole = json.loads(json.dumps(content))
    replace(path, (json.dumps(whole | {SEAL: digest(whole)}, indent=1) + "\n").encode())


def read_results(
    path: Path, settings: Settings, texts: dict[str, Any]
) -> tuple[dict[Cell, dict[str, Any]], dict[str, Any]]:
    """The rows in the file, and the texts that they and the cells asked for are drawn from.

    Args:
        path: of the file; one that does not exist holds nothing.
        settings: which its results must have.
        texts: that the cells asked for are drawn from.

    Raises:
        ModelError: for a damaged file, results of other settings, or of other texts.
    """
    if not path.exists():
        return {}, texts
    content = _content(path)
    stored, drawn = content["settings"], content["drawn from"]
    if stored != asdict(settings):
        names = [name for name, value in asdict(settings).items() if stored.get(name) != value] or ["settings"]
        raise ModelError(f"out must be a new file: {str(path)!r} holds results of another {', '.join(names)}")
    found = {Cell(*(row[field.name] for field in dataclasses.fields(Cell))): row for row in content["rows"]}
    held = {"propagate", *(name for cell in found for name in (cell.placement, cell.scaling))}
    there, now = ({name: side.get(name) for name in texts if name in held} for side in (drawn, texts))
    if apart := differences(there, json.loads(json.dumps(now))):
        raise ModelError(f"out must be a new file: {str(path)!r} holds results that differ in {'; '.join(apart)}")
    return found, drawn | texts


def _content(path: Path) -> dict[str, Any]:
    """What is in the file, every row checked."""
    try:
        content = json.loads(read_whole(path, "out", MOST))
    except ModelError:
        raise
    except (ValueError, RecursionError, MemoryError) as error:
        raise _damaged(path, f"it is no JSON ({error})") from None
    if not isinstance(content, dict) or not {"settings", "rows", "drawn from"} <= set(content):
        raise _damaged(path, "it holds no settings, texts and rows")
    for name, kind in (("settings", dict), ("drawn from", dict), ("rows", list)):
        if not isinstance(content[name], kind):
            raise _damaged(path, f"its {name} are a {type(content[name]).__name__}")
    for row in content["rows"]:
        if wrong := _wrong(row):
            raise _damaged(path, wrong)
    if content.get(SEAL) != digest({name: value for name, value in content.items() if name != SEAL}):
        raise _damaged(path, "its rows are not those that were written, by their digest")
    return content


def _wrong(row: Any) -> str:
    """What is wrong with a row, if anything."""
    labels = [field.name for field in dataclasses.fields(Cell)]
    if not isinstance(row, dict) or not all(isinstance(row.get(name), str) for name in labels):
        return f"a row must name {', '.join(labels)}"
    if row.get("verdict") not in (AGREES, CANNOT_TELL, DISAGREES) or row.get("agrees") is not (
        row["verdict"] == AGREES
    ):
        return f"a verdict must be one of three, and agree with itself, got {row.get('verdict')!r}"
    if "refused" in row:
        return "" if isinstance(row["refused"], str) and isinstance(row.get("seconds"), float) else "a refusal is text"
    if not all(_number(row.get(name)) for name in ("z", "seconds", "block")) or not _number(row.get("first_z", 0.0)):
        return "z, block and seconds of a row must be numbers"
    for name in ("worst", "by_quantity"):
        if not isinstance(row.get(name), dict):
            return f"{name} of a row must be numbers by quantity"
    if not isinstance(row.get("quantity"), str) or not all(_control(one) for one in [*_listed(row.get("controls"))]):
        return "a row must have a quantity, and what became of wrong theories"
    return ""


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [None]


def _control(one: Any) -> bool:
    kinds = {"theory": str, "differs": bool, "rejected": bool}
    return isinstance(one, dict) and all(isinstance(one.get(name), kind) for name, kind in kinds.items())


def read_table(path: Path, depth: int) -> xr.Dataset:
    """A measured table.

    Raises:
        ModelError: for a file that is not as it was written, or no table of so many blocks.
    """
    found = read_sealed(path)
    names = ("variance", "variance_se", "grad_variance")
    complete = all(name in found and "block" in found[name].dims for name in names) and "sampler" in found.attrs
    if not complete or found.sizes["block"] != depth + 1:
        raise ModelError(f"table {str(path)!r} is no table of depth={depth}; remove it")
    return found


def _damaged(path: Path, what: str) -> ModelError:
    return ModelError(f"out must be a file of results, or a new one, got {str(path)!r}, which is damaged: {what}")
