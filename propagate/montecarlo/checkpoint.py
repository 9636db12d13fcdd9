"""The finished draws of a run, kept in a file so that an interrupted run goes on from them.

The file is an archive of plain arrays, as `numpy.savez` writes it, with its SHA-256 behind it. What is read back is
held against all that is known of it before it is believed: a file made by hand runs nothing and fills no memory.
"""

from __future__ import annotations

import io
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy

from propagate.checks import WHOLE
from propagate.files import check_writable, read_whole, replace, sealed, unsealed
from propagate.identity import differences
from propagate.model import ModelError
from propagate.montecarlo.statistics import Summary

State = dict[str, Any]


class _Damaged(Exception):
    """What is wrong with a file, in words."""


def load(checkpoint: str | os.PathLike[str], identity: dict[str, Any], blocks: int) -> Summary:
    """The summary in the file; an empty one if there is no file yet.

    Args:
        checkpoint: the file.
        identity: all that decides a draw, as plain data: see `propagate.identity`.
        blocks: of every quantity, the embedding being one.

    Raises:
        ModelError: for a file that cannot be read or is damaged, or that belongs to a run of another `identity`.
    """
    check_writable(checkpoint, "checkpoint")
    if not Path(checkpoint).exists():
        return Summary()
    content = read_whole(checkpoint, "checkpoint")
    name = f"checkpoint {os.fspath(checkpoint)!r}"
    try:
        stored, state = _read(content, blocks)
    except _Damaged as error:
        raise ModelError(f"{name} is damaged or no checkpoint: {error}; name a new file or remove it") from None
    if apart := differences(stored, json.loads(json.dumps(identity))):
        raise ModelError(
            f"{name} belongs to another run, which differs in {'; '.join(apart)}: name a new file or remove it"
        )
    return Summary.restored(state)


def save(checkpoint: str | os.PathLike[str], identity: dict[str, Any], summary: Summary) -> None:
    """Write the summary to the file, whole or not at all."""
    content = io.BytesIO()
    np.savez(content, identity=np.array(json.dumps(identity)), **summary.state())
    replace(checkpoint, sealed(content.getvalue()))


def _read(content: bytes, blocks: int) -> tuple[dict[str, Any], State]:
    """The identity and the summary's state."""
    if not content:
        raise _Damaged("it is empty")
    arrays = _arrays(content)
    try:
        stored = json.loads(str(arrays.pop("identity")[()]))
    except (KeyError, ValueError, RecursionError):
        raise _Damaged("it holds no run") from None
    if not isinstance(stored, dict):
        raise _Damaged("it holds no run")
    _check_state(arrays, blocks)
    if unsealed(content) is None:
        raise _Damaged("its bytes are not those that were written, by their SHA-256")
    return stored, arrays


def _arrays(content: bytes) -> State:
    """The members of an archive, which must not be larger than they say, nor all together than the archive."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = archive.infolist()
            names = [member.filename for member in members]
            if len(set(names)) < len(names):
                raise _Damaged("two members have one name")
            if any(member.compress_type != zipfile.ZIP_STORED for member in members):
                raise _Damaged("its members are compressed, and ours never are")
            if sum(member.file_size for member in members) > len(content):
                raise _Damaged("its members would be larger than the file")
            return {name.removesuffix(".npy"): _array(name, archive.read(name)) for name in names}
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, NotImplementedError, RuntimeError) as error:
        raise _Damaged(f"it is no whole archive ({error})") from None


def _array(name: str, content: bytes) -> np.ndarray[Any, Any]:
    """One array, without pickles, of as many bytes as its shape says."""
    file = io.BytesIO(content)
    try:
        version = npy.read_magic(file)
        shape, fortran, dtype = (
            npy.read_array_header_1_0(file) if version == (1, 0) else npy.read_array_header_2_0(file)
        )
        rest = content[file.tell() :]
        if fortran and len(shape) > 1:
            raise _Damaged(f"{name} is not in the order of ours")
        if dtype.hasobject or dtype.names is not None or dtype.kind not in "fiU":
            raise _Damaged(f"{name} has entries of type {dtype}")
        count = 1
        for size in shape:
            count *= size
        if count * dtype.itemsize != len(rest):
            raise _Damaged(f"{name} says shape {shape} and has {len(rest)} bytes")
        return np.frombuffer(rest, dtype).reshape(shape).copy()
    except (ValueError, TypeError, EOFError, SyntaxError, RecursionError, MemoryError, OverflowError) as error:
        raise _Damaged(f"{name} is no array ({error})") from None


def _check_state(state: State, blocks: int) -> None:
    """What must be true of every summary."""
    draws = state.get("draws")
    if draws is None or draws.shape != () or draws.dtype.kind != "i" or not 1 <= int(draws) <= WHOLE:
        raise _Damaged(f"draws must be one whole number of at least 1, got {draws!r}")
    names = [key.removeprefix("mean:") for key in state if key.startswith("mean:")]
    odd = {"draws", *(f"{part}:{name}" for name in names for part in ("mean", "squares"))} ^ set(state)
    if odd:
        raise _Damaged(f"it must hold a mean and squares of each quantity and no more, which is not so of {min(odd)}")
    if "variance" not in names or "grad_variance" not in names:
        raise _Damaged("it holds no variance of stream and gradient")
    for name in names:
        mean, squares = state[f"mean:{name}"], state[f"squares:{name}"]
        for part in (mean, squares):
            if part.dtype != np.dtype(float) or part.shape != mean.shape or part.shape[:1] != (blocks,):
                raise _Damaged(f"{name} must be floats of {blocks} blocks, got {part.dtype} of shape {part.shape}")
        if np.isinf(mean).any() or np.isinf(squares).any() or (squares < 0).any():
            raise _Damaged(f"{name} holds infinite numbers or negative squares")
        if not np.array_equal(np.isnan(mean), np.isnan(squares)):
            raise _Damaged(f"{name} is no number in places where its squares are one")
        if name in ("variance", "grad_variance") and (np.isnan(_streams(mean)).any() or (_streams(mean) < 0).any()):
            raise _Damaged(f"{name} must be a number of at least 0")


def _streams(mean: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Without the last column, of what several streams are joined in, which between the ends is no number."""
    return mean if mean.ndim == 1 else mean[:, :-1]
