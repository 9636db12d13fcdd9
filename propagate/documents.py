"""Text as token ids, cut into documents to train on and documents held out."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from propagate.checks import ModelError, integer, number, shown
from propagate.files import is_folder, read_whole
from propagate.vocabularies import BETWEEN, BYTES, encoder

Ids = NDArray[np.unsignedinteger[Any]]
ENDINGS = (".txt", ".md", ".rst")
"""Of the files of a folder that are text."""
PASSAGE = 4096
"""Letters, at least, of the documents that one text alone is cut into."""
PYTHON = "python"
MOST_TOKENS, MOST_FILES = 2**22, 10**5
"""Of a vocabulary: whoever learns pairs of bytes makes room for all of them first."""


@dataclass(frozen=True, eq=False)
class Corpus:
    """Documents as token ids, each on one side of a split that only its own text decides.

    Attributes:
        name: of the text.
        vocabulary: how many tokens there are, numbered from 0, which stands between two documents.
        training, held_out: the documents of each side, in the order of their hashes.

    Raises:
        ModelError: for a side without a document, or ids that are no tokens.

    Example:
        >>> tiny = Corpus("tiny", 4, (np.array([1, 2], np.uint8), np.array([3], np.uint8)), (np.array([2], np.uint8),))
        >>> tiny.stream("training").tolist()
        [1, 2, 0, 3]
    """

    name: str
    vocabulary: int
    training: tuple[Ids, ...] = field(repr=False)
    held_out: tuple[Ids, ...] = field(repr=False)

    def __post_init__(self) -> None:
        integer("vocabulary", self.vocabulary, at_least=2)
        for side in SIDES:
            documents = getattr(self, side)
            if not isinstance(documents, list | tuple) or not all(isinstance(ids, np.ndarray) for ids in documents):
                raise ModelError(f"{side} must be documents, each an array of token ids, got {shown(documents)[:80]}")
            if not documents:
                raise ModelError(f"{side} must hold at least one document, got none")
            for ids in documents:
                if ids.dtype.kind != "u" or ids.ndim != 1 or not len(ids) or int(ids.max()) >= self.vocabulary:
                    raise ModelError(f"{side} must hold token ids from 0 to {self.vocabulary - 1}, got {shown(ids)}")

    @cached_property
    def _streams(self) -> dict[str, Ids]:
        between = np.array([BETWEEN], self.training[0].dtype)
        joined = {side: [part for ids in getattr(self, side) for part in (between, ids)][1:] for side in SIDES}
        return {side: np.concatenate(parts) for side, parts in joined.items()}

    def stream(self, side: str) -> Ids:
        """The documents of "training" or "held_out", one after another, with token 0 between them."""
        return self._streams[side]

    @cached_property
    def unigram_loss(self) -> float:
        """Mean cross-entropy in nats of held-out tokens under the frequencies of training, one added to each count.

        Example:
            >>> ids = np.array([1, 1, 1], np.uint8), np.array([1], np.uint8)
            >>> round(Corpus("ones", 2, ids[:1], ids[1:]).unigram_loss, 6) == round(float(-np.log(4 / 5)), 6)
            True
        """
        counts = [np.bincount(self.stream(side), minlength=self.vocabulary) for side in SIDES]
        share = (counts[0] + 1) / (counts[0] + 1).sum()
        return float(-(counts[1] * np.log(share)).sum() / counts[1].sum())

    @cached_property
    def digest(self) -> str:
        """A short name for every token of it."""
        made = hashlib.sha256(str(self.vocabulary).encode())
        for side in SIDES:
            made.update(side.encode() + self.stream(side).astype("<u4").tobytes())
        return made.hexdigest()[:16]


SIDES = ("training", "held_out")


def corpus(source: Any = PYTHON, vocabulary: int = BYTES, *, held_out: float = 0.1) -> Corpus:
    """Text to train on, as token ids.

    A document is held out if the hash of its text says so, whatever else there is and in whatever order; at least one
    is on each side. One text alone is cut at blank lines into documents of 4096 letters or more.

    Args:
        source: "python", the documentation of the language's topics, which ships with Python itself and differs between
            its versions; a text file; a folder, whose .txt, .md and .rst files are documents, such as that of
            `propagate corpus`; or documents: an iterable of texts or of rows with a "text", as data sets of `datasets`.
        vocabulary: 256 for bytes, or more for byte pairs (BPE), which `tokenizers` learns on the training documents.
            They are kept beside a file or folder, in bpe-VOCABULARY-HASH.json, and read from there the next time.
        held_out: the share of documents, above 0 and below 1.

    Raises:
        ModelError: for text that is empty, not UTF-8 or a single passage, a vocabulary that it does not fill, or a
            source that is none of these.

    Example:
        >>> text = corpus()
        >>> text.vocabulary, len(text.stream("training")) > 4 * len(text.stream("held_out"))
        (256, True)
    """
    integer("vocabulary", vocabulary, at_least=BYTES, at_most=MOST_TOKENS)
    share = number("held_out", held_out, positive=True)
    if share >= 1:
        raise ModelError(f"held_out must lie below 1, got {held_out!r}")
    name, texts, beside = _read(source)
    kept = [_checked(name, text) for text in texts if text.strip()]
    documents = sorted(_passages(kept[0]) if len(kept) == 1 else kept, key=_hash)
    if len(documents) < 2:
        raise ModelError(
            f"{name} must hold at least two documents, or a text of more than {PASSAGE} letters, got {len(documents)}"
        )
    cut = min(max(sum(int(_hash(one), 16) < share * 16**64 for one in documents), 1), len(documents) - 1)
    aside, training = documents[:cut], documents[cut:]
    encode = encoder(training, vocabulary, beside)
    return Corpus(name, vocabulary, encode(training), encode(aside))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _read(source: Any) -> tuple[str, list[str], Path | None]:
    """A name, the texts, and the folder beside which a vocabulary may be kept."""
    if isinstance(source, str) and source == PYTHON:
        return _python()
    if isinstance(source, str | Path):
        return _files(Path(source))
    if isinstance(source, Iterable) and not isinstance(source, Mapping | bytes):
        texts = [_text_of(row) for row in source]
        return type(source).__name__, texts, None
    raise ModelError(
        f"source must be 'python', a file, a folder or an iterable of texts or of rows with a 'text' "
        f"(of several splits name one, such as data['train']), got {shown(source)[:80]}"
    )


def _python() -> tuple[str, list[str], None]:
    import platform

    try:
        from pydoc_data.topics import topics
    except ModuleNotFoundError:
        raise ModelError("source 'python' is not there: this Python came without pydoc_data") from None
    return f"the topics of Python {platform.python_version()}", list(topics.values()), None


def _files(path: Path) -> tuple[str, list[str], Path]:
    if not is_folder(path):
        return path.name, [_decoded(path)], path.parent
    try:
        every = list(islice(path.rglob("*"), MOST_FILES + 1))
    except OSError as error:
        raise ModelError(f"folder {str(path)!r} of texts cannot be read: {error.strerror}") from None
    if len(every) > MOST_FILES:
        raise ModelError(f"folder {str(path)!r} must hold at most {MOST_FILES} files, got more: name one with texts")
    files = sorted(file for file in every if file.suffix in ENDINGS and file.is_file())
    if not files:
        raise ModelError(f"folder {str(path)!r} must hold files that end in {', '.join(ENDINGS)}, got none")
    return path.resolve().name, [_decoded(file) for file in files], path


def _decoded(path: Path) -> str:
    content = read_whole(path, "text")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise ModelError(f"text {str(path)!r} must be UTF-8, got {error.reason} at byte {error.start}") from None


def _text_of(row: Any) -> str:
    text = row.get("text") if isinstance(row, Mapping) else row
    if not isinstance(text, str):
        raise ModelError(f"documents must be texts, or rows with a 'text', got {shown(row)[:80]}")
    return text


def _checked(name: str, text: str) -> str:
    if "\0" in text:
        raise ModelError(f"{name} must be text, got a NUL, which stands between documents")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ModelError(f"{name} must be text that UTF-8 has, got {error.reason}") from None
    return text


def _passages(text: str) -> Sequence[str]:
    """Whole paragraphs, as many as it takes to make documents of a fair length.

    Example:
        >>> [len(one) for one in _passages("\\n\\n".join(4 * [2000 * "a"]))]
        [6004, 2000]
    """
    found: list[list[str]] = [[]]
    for paragraph in re.split(r"\n\s*\n", text):
        if sum(map(len, found[-1])) >= PASSAGE:
            found.append([])
        found[-1].append(paragraph)
    return ["\n\n".join(paragraphs) for paragraphs in found]
