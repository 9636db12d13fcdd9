"""Files of finished work that something has damaged, or that somebody made up: one line, and they stay as they were."""

import io
import json
import os
import random
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import propagate as pg
from propagate.cells import Settings, cells_of
from propagate.files import sealed, unsealed
from propagate.verification import verify

MODEL = pg.Model("spannorm", depth=2, width=16, tokens=4, heads=2)
RUN = {"draws": 3, "seed": 9, "backend": "numpy", "sampler": "dense"}
SMALL = Settings(width=16, depth=1, tokens=2, heads=1, draws=3, backend="numpy", sampler="dense")
CELLS = cells_of(["postnorm"], ["relu"], ["bidirectional"], ["none"])

Damage = Callable[[bytes], bytes]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A checkpoint."""
    file = tmp_path_factory.mktemp("whole") / "run.npz"
    pg.simulate(MODEL, checkpoint=file, **RUN)
    return file.read_bytes()


def arrays(content: bytes) -> dict[str, np.ndarray]:
    with np.load(io.BytesIO(content)) as found:
        return dict(found)


def packed(state: dict, *, seal: bool = True, save: Callable = np.savez) -> bytes:
    """An archive with a right seal, so that nothing but its content can be what is refused."""
    file = io.BytesIO()
    save(file, **state)
    return sealed(file.getvalue()) if seal else file.getvalue()


def changed(**changes: object) -> Damage:
    """With other arrays, or functions of the old ones, or without (None)."""

    def damage(content: bytes) -> bytes:
        state = arrays(content)
        for key, change in changes.items():
            name = key.replace("__", ":")
            state[name] = change(state.get(name)) if callable(change) else change
        return packed({name: value for name, value in state.items() if value is not None})

    return damage


def bomb(content: bytes) -> bytes:
    """Ten gigabytes of zeros in ten megabytes would take the machine; a tenth of that will do."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("mean:variance.npy", "w") as member:
        for _ in range(64):
            member.write(bytes(2**20))
    return sealed(file.getvalue())


def boast(content: bytes) -> bytes:
    """A header that says more than there is."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f8", "fortran_order": False, "shape": (10**12,)})
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as out:
        out.writestr("mean:variance.npy", file.getvalue())
    return sealed(archive.getvalue())


def twice(content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as out:
        out.writestr("draws.npy", b"")
        with pytest.warns(UserWarning, match="Duplicate"):
            out.writestr("draws.npy", b"")
    return sealed(file.getvalue())


def nested(content: bytes) -> bytes:
    return changed(identity=np.array("[" * 100_000))(content)


class Runs:
    """What a pickle would run."""

    def __reduce__(self) -> tuple:
        return exec, ("import propagate; propagate.it_ran = True",)


def infinite(values: np.ndarray) -> np.ndarray:
    return values * np.inf


DAMAGES: dict[str, Damage] = {
    **{f"cut to {share} %": lambda c, s=share: c[: len(c) * s // 100] for share in (0, 1, 10, 33, 50, 75, 90, 99)},
    "last byte gone": lambda c: c[:-1],
    "without its seal": lambda c: c[:-64],
    "first byte gone": lambda c: c[1:],
    "first byte twice": lambda c: c[:1] + c,
    "a byte behind": lambda c: c + b"\0",
    "text": lambda c: b"not an archive",
    "zeros": lambda c: bytes(len(c)),
    "itself twice": lambda c: c + c,
    "another format": lambda c: b"CDF\x01" + c[4:],
    "one array": lambda c: sealed(_npy(np.ones(3))),
    "no arrays": lambda c: packed({}),
    "another archive": lambda c: packed({"a": np.ones(3)}),
    "pickles": lambda c: packed({"identity": np.array([Runs()], dtype=object)}),
    "a pickle": lambda c: sealed(b"cbuiltins\nexec\n(S'import propagate; propagate.it_ran = True'\ntR."),
    "compressed": lambda c: packed(arrays(c), save=np.savez_compressed),
    "a bomb": bomb,
    "a boast": boast,
    "one name twice": twice,
    "made by hand": lambda c: packed(arrays(c), seal=False),
    "no identity": changed(identity=None),
    "an identity that is no text": changed(identity=np.ones(2)),
    "an identity that is a list": changed(identity=np.array("[1]")),
    "an identity without end": nested,
    "no draws": changed(draws=None),
    "negative draws": changed(draws=np.array(-3)),
    "no draw": changed(draws=np.array(0)),
    "draws that are no whole number": changed(draws=np.array(3.5)),
    "draws of each block": changed(draws=np.array([3, 3, 3])),
    "no mean": changed(mean__variance=None),
    "no squares": changed(squares__variance=None),
    "a mean that is no number": changed(mean__variance=lambda v: v * np.nan),
    "both no numbers": changed(mean__variance=lambda v: v * np.nan, squares__variance=lambda v: v * np.nan),
    "an infinite mean": changed(mean__grad_variance=infinite),
    "a negative variance": changed(mean__variance=lambda v: -v),
    "negative squares": changed(squares__variance=lambda v: -1 - v),
    "another depth": changed(mean__variance=lambda v: v[:-1], squares__variance=lambda v: v[:-1]),
    "another shape": changed(mean__variance=lambda v: v[None]),
    "whole numbers": changed(mean__variance=lambda v: v.astype(int)),
    "single precision": changed(mean__variance=lambda v: v.astype(np.float32)),
    "complex": changed(mean__variance=lambda v: v * 1j),
    "text for numbers": changed(mean__variance=lambda v: v.astype(str)),
    "one more array": changed(extra=np.ones(3)),
}


def _npy(values: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


def refused(file: Path, run: Callable[[], object]) -> str:
    """The message, which is one line and names the file, which has not changed."""
    before = file.read_bytes()
    with pytest.raises(pg.ModelError) as caught:
        run()
    assert file.read_bytes() == before
    assert os.listdir(file.parent) == [file.name]
    message = str(caught.value)
    assert file.name in message
    assert "\n" not in message
    assert len(message) < 600
    return message


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_checkpoint_is_refused(damage: Damage, whole: bytes, tmp_path: Path) -> None:
    file = tmp_path / "run.npz"
    file.write_bytes(damage(whole))
    message = refused(file, lambda: pg.simulate(MODEL, checkpoint=file, **RUN))
    assert "damaged" in message
    assert not hasattr(pg, "it_ran")


def test_any_flipped_bit_of_a_checkpoint_is_seen(whole: bytes, tmp_path: Path) -> None:
    """Drawn over the whole file, headers and seal included; and the whole file is not refused."""
    file, random_ = tmp_path / "run.npz", random.Random(0)
    for _ in range(40):
        at, bit = random_.randrange(len(whole)), random_.randrange(8)
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :])
        refused(file, lambda: pg.simulate(MODEL, checkpoint=file, **RUN))
    file.write_bytes(whole)
    assert pg.simulate(MODEL, checkpoint=file, **RUN).attrs["draws"] == 3


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name in ("folder", "pipe"):
        with pytest.raises(pg.ModelError, match=name):
            pg.simulate(MODEL, checkpoint=tmp_path / name, **RUN)


def test_a_long_file_is_refused_unread(tmp_path: Path) -> None:
    file = tmp_path / "run.npz"
    with file.open("wb") as hole:
        hole.truncate(2**33)
    with pytest.raises(pg.ModelError, match=r"run\.npz.*8589934592"):
        pg.simulate(MODEL, checkpoint=file, **RUN)


def row(**changes: object) -> Callable[[dict], None]:
    def change(content: dict) -> None:
        content["rows"][0] |= changes

    return change


RESULTS: dict[str, Callable[[dict], object]] = {
    "rows": lambda c: c.update(rows={}),
    "row": lambda c: c.update(rows=[1]),
    "settings": lambda c: c.update(settings=[]),
    "texts": lambda c: c.update({"drawn from": None}),
    "another z": row(z=0.123),
    "no z": row(z=None),
    "no number": row(z=float("nan")),
    "another verdict": row(verdict="maybe"),
    "a verdict that contradicts itself": row(agrees=None),
    "another cell": row(placement=["postnorm"]),
    "controls": row(controls=[{}]),
    "quantities": row(by_quantity=3),
    "worst": row(worst="z"),
    "no digest": lambda c: c.pop("sha256"),
}


@pytest.mark.parametrize("change", RESULTS.values(), ids=RESULTS)
def test_damaged_results_of_verify_are_refused(change: Callable, results: bytes, tmp_path: Path) -> None:
    file, content = tmp_path / "found.json", json.loads(results)
    change(content)
    file.write_text(json.dumps(content))
    refused(file, lambda: verify(CELLS, SMALL, out=file))


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    file = tmp_path_factory.mktemp("results") / "found.json"
    verify(CELLS, SMALL, out=file)
    assert len(verify(CELLS, SMALL, out=file).rows) == 1  # read back
    return file.read_bytes()


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff\xfe", b"[" * 10**5, b'{"rows":', b"null"], ids=range(6))
def test_what_is_no_json_is_refused(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "found.json"
    file.write_bytes(content)
    refused(file, lambda: verify(CELLS, SMALL, out=file))


def test_damaged_tables_are_refused(tmp_path: Path) -> None:
    verify(CELLS, SMALL, tables=tmp_path)
    (file,) = tmp_path.iterdir()
    table, random_ = file.read_bytes(), random.Random(1)
    inner = unsealed(table)
    assert inner is not None
    flips = [random_.randrange(len(table)) for _ in range(6)]
    damaged = [table[:at] + bytes([table[at] ^ 4]) + table[at + 1 :] for at in flips]
    damaged += [
        b"",
        table[:-1],
        inner,
        sealed(inner[: len(inner) // 2]),
        sealed(b"CDF\x01"),
        sealed(b"\x1f\x8b" + inner),
    ]
    for content in damaged:
        file.write_bytes(content)
        refused(file, lambda: verify(CELLS, SMALL, tables=tmp_path))
