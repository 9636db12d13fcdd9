"""How far an arm has come, kept in a file: plain tensors and numbers, with their SHA-256 behind them.

Files are written whole or not at all, and read without running anything that they hold.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from propagate.files import read_whole, replace, sealed, unsealed
from propagate.identity import differences
from propagate.model import ModelError
from propagate.tracing.training.columns import Columns

LARGEST = 2**40  # bytes


def save(path: Path, identity: dict[str, Any], step: int, columns: Columns, **states: Any) -> None:
    """Write where an arm stands.

    Args:
        path: of the file.
        identity: all that decides the arm, as plain data.
        step: updates made; -1 when it has ended.
        columns: what has been seen.
        states: of learner and optimisers, as torch gives them.
    """
    held = io.BytesIO()
    kept = {name: torch.from_numpy(np.asarray(values)) for name, values in columns.items()}
    torch.save({"identity": json.dumps(identity), "step": step, "columns": kept, "states": states}, held)
    replace(path, sealed(held.getvalue()))


def load(path: Path, identity: dict[str, Any]) -> tuple[int, Columns, dict[str, Any]] | None:
    """What `save` wrote: step, columns and states; None if there is no file yet.

    Raises:
        ModelError: for a file that is damaged, or of another arm.
    """
    if not path.exists():
        return None
    content = unsealed(read_whole(path, "checkpoint", most=LARGEST))
    name = f"checkpoint {str(path)!r}"
    if content is None:
        raise ModelError(f"{name} is damaged or no checkpoint: remove it")
    try:
        found = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        stored, step = json.loads(found["identity"]), int(found["step"])
        columns = {str(key): values.numpy() for key, values in found["columns"].items()}
        states = dict(found["states"])
    except Exception as error:  # whatever a file made by hand raises
        raise ModelError(f"{name} is damaged or no checkpoint: remove it ({error})") from None
    if apart := differences(stored, json.loads(json.dumps(identity))):
        raise ModelError(f"{name} belongs to another run, which differs in {'; '.join(apart)}: name another folder")
    return step, columns, states
