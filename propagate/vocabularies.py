"""Tokens: bytes, or byte pairs that are learned once from a text and kept."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from propagate.checks import ModelError
from propagate.files import read_whole, replace

BYTES = 256
BETWEEN = 0
"""The token between two documents: the byte NUL, which no text holds."""
NUL = "\0"
Encode = Callable[[Sequence[str]], tuple[NDArray[Any], ...]]


def encoder(texts: Sequence[str], vocabulary: int, beside: Path | None) -> Encode:
    """From documents to their token ids.

    Args:
        texts: that byte pairs are learned from.
        vocabulary: 256 for bytes; above it, byte pairs.
        beside: a folder that keeps them.

    Raises:
        ModelError: where `tokenizers` is not there, the texts have fewer byte pairs, or the file is damaged.

    Example:
        >>> encoder(["ab"], 256, None)(["ba"])
        (array([98, 97], dtype=uint8),)
    """
    if vocabulary == BYTES:
        return lambda documents: tuple(np.frombuffer(text.encode(), np.uint8) for text in documents)
    tokenizer = _byte_pairs(texts, vocabulary, beside)
    kind = np.uint16 if vocabulary <= 2**16 else np.uint32
    return lambda documents: tuple(np.array(one.ids, kind) for one in tokenizer.encode_batch(list(documents)))


def _byte_pairs(texts: Sequence[str], vocabulary: int, beside: Path | None) -> Any:
    """The tokenizer that is kept there, or a new one."""
    try:
        from tokenizers import Tokenizer
    except ModuleNotFoundError:
        raise ModelError(
            f"vocabulary must be {BYTES} without tokenizers (pip install 'propagate[text]'), got {vocabulary}"
        ) from None
    made = hashlib.sha256()
    for text in texts:
        made.update(hashlib.sha256(text.encode()).digest())
    path = None if beside is None else beside / f"bpe-{vocabulary}-{made.hexdigest()[:16]}.json"
    if path is not None and path.exists():
        try:
            tokenizer: Any = Tokenizer.from_str(read_whole(path, "vocabulary").decode())
        except ModelError:
            raise
        except Exception as error:  # of Rust: it has no other class
            raise ModelError(f"vocabulary {str(path)!r} is damaged: remove it ({error})") from None
    else:
        tokenizer = _learned(texts, vocabulary)
    if tokenizer.get_vocab_size() != vocabulary:
        raise ModelError(
            f"vocabulary must be at most {tokenizer.get_vocab_size()} for so little text, got {vocabulary}"
        )
    if path is not None and not path.exists():
        _keep(path, tokenizer.to_str())
    return tokenizer


def _learned(texts: Sequence[str], vocabulary: int) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=[NUL], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _keep(path: Path, content: str) -> None:
    try:
        replace(path, content.encode())
    except OSError:
        return  # a folder that may only be read: it is learned anew the next time, from the same text
