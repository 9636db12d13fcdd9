"""The text that the experiments of training read, as token ids in one file, for machines without a network.

propagate corpus --to build/corpus
python figures/training_text.py build/corpus build/training/text.npz
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np

import propagate as pg
from propagate.documents import Corpus
from propagate.files import replace

ROOT = Path(__file__).resolve().parents[1]
STORED = ROOT / "build" / "training" / "text.npz"
VOCABULARY = 1024


def store(folder: str | Path, to: Path = STORED, vocabulary: int = VOCABULARY) -> Corpus:
    """Byte pairs learned on a folder of `propagate corpus`, and its documents as their ids."""
    text = pg.corpus(folder, vocabulary)
    held = io.BytesIO()
    streams = {side: text.stream(side) for side in ("training", "held_out")}
    np.savez_compressed(held, name=np.array("five old English texts"), vocabulary=np.array(vocabulary), **streams)
    to.parent.mkdir(parents=True, exist_ok=True)
    replace(to, held.getvalue())
    return load(to)


def load(path: Path = STORED) -> Corpus:
    """What `store` wrote. Documents follow one another, with token 0 between them."""
    with np.load(path) as kept:
        sides = ((kept[side],) for side in ("training", "held_out"))
        return Corpus(str(kept["name"]), int(kept["vocabulary"]), *sides)


def shuffled(text: Corpus) -> Corpus:
    """The same tokens in random order: nothing but their frequencies can be learned."""
    generator = np.random.default_rng(0)
    sides = ((generator.permutation(text.stream(side)),) for side in ("training", "held_out"))
    return Corpus(f"{text.name}, shuffled", text.vocabulary, *sides)


if __name__ == "__main__":
    found = store(sys.argv[1], Path(sys.argv[2]) if len(sys.argv) > 2 else STORED)
    print(f"{len(found.stream('training'))} tokens to train on, unigram loss {found.unigram_loss:.4f}, {found.digest}")
