"""Small language models trained with embeddings of several sizes, with and without n-grams, by `propagate.train`.

    python figures/measure_embedding.py

What is asked: whether a branch drowns the embedding, at first and after training (arXiv:2601.21204, of amplification).
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr

import propagate as pg

MEASURED = Path(__file__).resolve().parent / "measured"
VOCABULARY, STD = 256, 0.2
NGRAMS = pg.NGrams.beside_multiple(VOCABULARY, 4, longest=3, tables=2, std=STD)
PLAIN = pg.TokenEmbedding(VOCABULARY, STD)
SUMMED = replace(PLAIN, ngrams=NGRAMS)
ARMS = {
    "tokens alone": PLAIN,
    "over the count": SUMMED,
    "over its root": replace(SUMMED, ngrams=replace(NGRAMS, average="root")),
    "times root of width": replace(SUMMED, scale="root_of_width"),
    "normed": replace(SUMMED, norm="rms"),
}
MODEL = pg.Model(
    "prenorm", depth=4, width=64, heads=4, tokens=32, causal=True, rope=10000.0, activation="swiglu", ffn_ratio=2.0
)
LRS, SEEDS, STEPS, BATCH = (3e-3, 1e-2), (0, 1, 2), 150, 8
PROBES = (10, 50)
KEPT = ("held_out_loss", "attention_ratio", "branch_skip_ratio", "embedding_share", "variance")


def measure(to: Path) -> xr.Dataset:
    """All arms, over (arm, lr, seed, probe, block)."""
    torch.set_num_threads(1)
    text, found, begun = pg.corpus(), [], time.process_time()
    options: dict[str, Any] = {"lrs": LRS, "seeds": SEEDS, "steps": STEPS, "batch": BATCH, "probes": PROBES}
    for name, embedding in ARMS.items():
        seen = pg.train(
            MODEL, text, pg.Adam(lr=1e-3, betas=(0.9, 0.95)), embedding=embedding, progress=False, **options
        )
        found.append(seen[list(KEPT)].astype(np.float32))
        print(f"{name}: {time.process_time() - begun:.0f} s", flush=True)
    table = xr.concat(found, xr.Variable("arm", list(ARMS)), combine_attrs="override")
    for variable in table.data_vars.values():
        variable.encoding.clear()
    told = {"std": STD, "rows": str(NGRAMS.rows), "seconds": round(time.process_time() - begun)}
    keep = ("model", "corpus", "vocabulary", "unigram_loss", "optimizer", "steps", "batch", "tokens", "width", "depth")
    table = table.assign_attrs({key: seen.attrs[key] for key in (*keep, "device", "torch", "propagate")} | told)
    table.attrs = {
        key: value for key, value in table.attrs.items() if key in {*keep, "device", "torch", "propagate", *told}
    }
    table.to_netcdf(to / "training_embedding.nc", engine="scipy")
    return table


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--to", type=Path, default=MEASURED)
    measure(parser.parse_args().to)
