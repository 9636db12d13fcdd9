"""The finished draws of a run, kept in a file so that an interrupted run goes on from them."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path

import numpy as np

from propagate.files import check_writable, replace
from propagate.model import ModelError
from propagate.montecarlo.statistics import Summary


def load(checkpoint: str | os.PathLike[str] | None, identity: str) -> Summary:
    """The summary in the file; an empty one if there is no file yet.

    Raises:
        ModelError: for a file that cannot be read, or that belongs to a run of another `identity`.

    Example:
        >>> load(None, "a run").draws
        0
    """
    if checkpoint is None:
        return Summary()
    check_writable(checkpoint, "checkpoint")
    if not Path(checkpoint).exists():
        return Summary()
    try:
        with np.load(checkpoint, allow_pickle=False) as stored:
            state = dict(stored)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ModelError(f"checkpoint {os.fspath(checkpoint)!r} cannot be read: {error}") from None
    if str(state.get("identity")) != identity:
        raise ModelError(f"checkpoint {os.fspath(checkpoint)!r} belongs to another run; name a new file or remove it")
    return Summary.restored(state)


def save(checkpoint: str | os.PathLike[str] | None, identity: str, summary: Summary) -> None:
    """Write the summary to the file, whole or not at all. Without a file, do nothing."""
    if checkpoint is None:
        return
    content = io.BytesIO()
    np.savez(content, identity=np.array(identity), **summary.state())
    replace(checkpoint, content.getvalue())
