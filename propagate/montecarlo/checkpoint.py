"""The finished draws of a run, kept in a file so that an interrupted run goes on from them."""

from __future__ import annotations

import io
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from propagate.files import check_writable, replace
from propagate.identity import differences
from propagate.model import ModelError
from propagate.montecarlo.statistics import Summary


def load(checkpoint: str | os.PathLike[str], identity: dict[str, Any]) -> Summary:
    """The summary in the file; an empty one if there is no file yet.

    Args:
        identity: all that decides a draw, as plain data: see `propagate.identity`.

    Raises:
        ModelError: for a file that cannot be read, or that belongs to a run of another `identity`.
    """
    check_writable(checkpoint, "checkpoint")
    if not Path(checkpoint).exists():
        return Summary()
    try:
        with np.load(checkpoint, allow_pickle=False) as stored:
            state = dict(stored)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ModelError(f"checkpoint {os.fspath(checkpoint)!r} cannot be read: {error}") from None
    try:
        stored = json.loads(str(state["identity"]))
    except (KeyError, ValueError):
        raise ModelError(f"checkpoint {os.fspath(checkpoint)!r} holds no run: name another file") from None
    if apart := differences(stored, json.loads(json.dumps(identity))):
        raise ModelError(
            f"checkpoint {os.fspath(checkpoint)!r} belongs to another run, which differs in {'; '.join(apart)}:"
            " name a new file or remove it"
        )
    return Summary.restored(state)


def save(checkpoint: str | os.PathLike[str], identity: dict[str, Any], summary: Summary) -> None:
    """Write the summary to the file, whole or not at all."""
    content = io.BytesIO()
    np.savez(content, identity=np.array(json.dumps(identity)), **summary.state())
    replace(checkpoint, content.getvalue())
