"""Files that are written whole or not at all, and results that a failed write does not lose."""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from pathlib import Path

from propagate.checks import ModelError


def replace(path: str | os.PathLike[str], content: bytes) -> Path:
    """Write the content; whatever interrupts it leaves the old file or the new one, never a part.

    A link is followed, and an old file keeps its mode.

    Raises:
        OSError: where it cannot be written.

    Example:
        >>> target = Path(tempfile.mkdtemp()) / "note.txt"
        >>> replace(target, b"old") == replace(target, b"new")
        True
        >>> target.read_bytes(), len(list(target.parent.iterdir()))
        (b'new', 1)
    """
    target = Path(os.path.realpath(path))
    mode = stat.S_IMODE(target.stat().st_mode) if target.exists() else _MODE
    handle, part = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(part, mode)
        os.replace(part, target)
    except BaseException:
        Path(part).unlink(missing_ok=True)  # an interrupt may come after the file took its place
        raise
    return Path(path)


_MODE = 0o644  # of a new file
_SEAL = 64  # letters of a SHA-256


def sealed(content: bytes) -> bytes:
    """The content with its SHA-256 behind it, which archives and netCDF files may have: their readers do not see it.

    Example:
        >>> unsealed(sealed(b"draws"))
        b'draws'
    """
    return content + hashlib.sha256(content).hexdigest().encode()


def unsealed(content: bytes) -> bytes | None:
    """What was sealed; None if a bit of it has changed.

    Example:
        >>> unsealed(b"D" + sealed(b"draws")[1:]) is None
        True
    """
    inner, seal = content[:-_SEAL], content[-_SEAL:]
    return inner if hashlib.sha256(inner).hexdigest().encode() == seal else None


def read_whole(path: str | os.PathLike[str], what: str, most: int = 2**32) -> bytes:
    """The content of a regular file.

    Args:
        path: of the file.
        what: names it in the error.
        most: bytes; a longer file is no result of ours.

    Raises:
        ModelError: for what cannot be read, is no regular file, or is too long.

    Example:
        >>> read_whole("/dev/zero", "checkpoint")
        Traceback (most recent call last):
        propagate.checks.ModelError: checkpoint must be a regular file, got '/dev/zero'
    """
    given = os.fspath(path)
    try:
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode):
            raise ModelError(f"{what} must be a regular file, got {given!r}")
        if found.st_size > most:
            raise ModelError(f"{what} must be at most {most} bytes long, got {given!r} of {found.st_size}")
        return Path(path).read_bytes()
    except ModelError:
        raise
    except (OSError, ValueError) as error:
        raise ModelError(f"{what} {given!r} cannot be read: {getattr(error, 'strerror', None) or error}") from None


def check_writable(path: str | os.PathLike[str] | None, what: str) -> None:
    """Before any work: the file can be made, or is a regular one that can be replaced.

    Args:
        path: of the file; None is fine.
        what: names it in the error, such as "--out".

    Raises:
        ModelError: says why not.

    Example:
        >>> check_writable("/dev/null", "--out")
        Traceback (most recent call last):
        propagate.checks.ModelError: --out must be a regular file or a new one, got '/dev/null'
    """
    if path is None:
        return
    given = os.fspath(path)
    if not given or "\0" in given:
        raise ModelError(f"{what} must name a file, got {given!r}")
    target = Path(os.path.realpath(path))
    try:
        if target.exists() and not target.is_file():
            raise ModelError(f"{what} must be a regular file or a new one, got {given!r}")
        if not target.parent.is_dir():
            raise ModelError(f"{what} must lie in an existing folder, got {given!r}")
        handle, part = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    except OSError as error:
        raise ModelError(f"{what} must be a file that can be written, got {given!r}: {error.strerror}") from None
    os.close(handle)
    os.unlink(part)


def is_folder(path: Path) -> bool:
    """Whether there is a folder of that name, which may be no name that a file can have.

    Example:
        >>> is_folder(Path("/")), is_folder(Path(5000 * "x"))
        (True, False)
    """
    try:
        return path.is_dir()
    except OSError:
        return False


def check_folder(path: str | os.PathLike[str], what: str) -> Path:
    """Before any work: the folder is there and can be written into, or it can be made.

    Args:
        path: of the folder.
        what: names it in the error, such as "to".

    Raises:
        ModelError: says why not.

    Example:
        >>> check_folder("/dev/null/texts", "to")
        Traceback (most recent call last):
        propagate.checks.ModelError: to must be a folder or a new one, got '/dev/null/texts'
    """
    given = os.fspath(path)
    if not given or "\0" in given:
        raise ModelError(f"{what} must be a folder's path, got {given!r}")
    there = Path(os.path.realpath(path))
    try:
        while not there.exists():
            there = there.parent
        if not there.is_dir():
            raise ModelError(f"{what} must be a folder or a new one, got {given!r}")
        os.rmdir(tempfile.mkdtemp(dir=there))
    except OSError as error:
        raise ModelError(f"{what} must be a folder that can be written into, got {given!r}: {error.strerror}") from None
    return Path(path)


def replace_or_keep(path: str | os.PathLike[str], content: bytes) -> Path:
    """`replace`; where that fails, the content is kept in a temporary file.

    Raises:
        ModelError: names both files, where the write failed.

    Example:
        >>> try:
        ...     replace_or_keep("/nowhere/table.nc", b"result")
        ... except ModelError as error:
        ...     kept = Path(str(error).rpartition(" ")[2])
        >>> kept.read_bytes()
        b'result'
        >>> kept.unlink()
    """
    try:
        return replace(path, content)
    except OSError as error:
        suffix = Path(path).suffix
        handle, kept = tempfile.mkstemp(prefix="propagate-", suffix=suffix)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        raise ModelError(f"{os.fspath(path)!r} could not be written ({error.strerror}); it is kept in {kept}") from None
