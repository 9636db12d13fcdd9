"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def replace(path: str | os.PathLike[str], content: bytes) -> Path:
    """Write the content; whatever interrupts it leaves the old file or the new one, never a part.

    Example:
        >>> target = Path(tempfile.mkdtemp()) / "note.txt"
        >>> replace(target, b"old") == replace(target, b"new")
        True
        >>> target.read_bytes(), len(list(target.parent.iterdir()))
        (b'new', 1)
    """
    target = Path(path)
    handle, part = tempfile.mkstemp(dir=target.absolute().parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(part, 0o644)
        os.replace(part, target)
    except BaseException:
        os.unlink(part)
        raise
    return target
