"""Prediction over trace of released systems' own classes in the library transformers, at small sizes: every quantity at
every block, and the gradient of every matrix; and a simulation of the same sizes over trace.

Weights are as large as in the released system: the standard deviation of their entries grows as the square root of the
width falls. `describe` reads a Model off the first initialisation, `predict` begins where the traces do.
"""

from __future__ import annotations

import argparse
import math
import time
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers
from timing import provenance, write

import propagate as pg


class System(NamedTuple):
    """A class of transformers, its configuration's own fields, and the width and standard deviation as released."""

    kind: str
    released_width: int
    released_std: float
    fields: dict[str, Any]


DEEPSEEK = {"first_k_dense_replace": 1, "n_group": 1, "topk_group": 1, "n_routed_experts": 32}
SYSTEMS = {
    "DeepSeek-V2": System(
        "DeepseekV2", 5120, 0.006, DEEPSEEK | {"q_lora_rank": 256, "num_experts_per_tok": 6, "n_shared_experts": 2}
    ),
    "DeepSeek-V3": System(
        "DeepseekV3", 7168, 0.006, DEEPSEEK | {"q_lora_rank": 256, "num_experts_per_tok": 8, "n_shared_experts": 1}
    ),
    "LongCat-Flash": System(
        "LongcatFlash",
        6144,
        0.02,
        {"q_lora_rank": 256, "n_routed_experts": 32, "zero_expert_num": 16, "moe_topk": 12, "num_layers": 3},
    ),
}
NARROW = {f"{name}, key-value rank 64": name for name in ("DeepSeek-V3",)}
"""Systems again, with latents of keys and values that are small beside the number of tokens."""
DEPTH, TOKENS = 4, 8
QUANTITIES = ("variance", "covariance", "deviation", "grad_variance", "grad_covariance", "grad_deviation")


def made(name: str, seed: int, width: int) -> Any:
    """The system with weights of that seed."""
    kind, released_width, std, own = SYSTEMS[NARROW.get(name, name)]
    heads = width // 32
    fields = {
        "vocab_size": 1024,
        "hidden_size": width,
        **dict.fromkeys(("intermediate_size", "ffn_hidden_size"), 2 * width),
        **dict.fromkeys(("moe_intermediate_size", "expert_ffn_hidden_size"), width // 4),
        **dict.fromkeys(("num_attention_heads", "num_key_value_heads"), heads),
        "num_hidden_layers": DEPTH,
        "qk_nope_head_dim": 32,
        "qk_rope_head_dim": 16,
        "head_dim": 16,
        "v_head_dim": 32,
        "kv_lora_rank": 64 if name in NARROW else 256,
        "max_position_embeddings": 64,
        "initializer_range": std * math.sqrt(released_width / width),
    }
    config = getattr(transformers, f"{kind}Config")
    known = set(config().to_dict())
    torch.manual_seed(seed)
    chosen = config(**{key: value for key, value in fields.items() if key in known} | own)
    return getattr(transformers, f"{kind}Model")(chosen).eval()


def inputs(sequences: int) -> dict[str, Any]:
    """Sequences in which no token occurs twice."""
    generator = torch.Generator().manual_seed(0)
    return {"input_ids": torch.stack([torch.randperm(1000, generator=generator)[:TOKENS] for _ in range(sequences)])}


def over_trace(said: Any, seen: Any, name: str, **chosen: Any) -> dict[str, list[float | None]]:
    """Another table over the trace at every block, with a standard error; a covariance's errors over the variance.

    None where there is nothing.
    """
    told, traced = (table[name].sel(chosen).to_numpy() for table in (said, seen))
    errors = [table[f"{name}_se"].sel(chosen).to_numpy() if f"{name}_se" in table else 0 for table in (said, seen)]
    scale = seen[name.replace("covariance", "variance")].to_numpy() if "covariance" in name else traced
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = 1 + (told - traced) / scale
        error = np.where(traced == 0, np.nan, np.hypot(*errors) / scale)
    pairs = [
        [round(float(r), 4), round(float(e), 4)] if np.isfinite(r + e) else [None, None]
        for r, e in zip(ratio, error, strict=True)
    ]
    return {"ratio": [pair[0] for pair in pairs], "se": [pair[1] for pair in pairs]}


def row_of(name: str, width: int, sequences: int, draws: int, model: pg.Model | None = None) -> dict[str, Any]:
    """The ratios of a system, and of them the one farthest from 1 among the stream's and among matrices' gradients.

    Beside prediction over trace stands a simulation of the same sizes over trace: it tells what is due to few
    coordinates from what was read wrongly.

    Args:
        model: to predict and to simulate, in place of the one that is described.
    """
    began = time.process_time()
    read, unread = pg.describe(made(name, 0, width), tokens=TOKENS)
    seen = pg.trace((made(name, seed, width) for seed in range(draws)), inputs(sequences))
    asked: dict[str, Any] = {"include": {"param_grad"}, **pg.start_of(seen)}
    said = pg.predict(model or read, **asked)
    simulated = pg.simulate(model or read, draws=sequences * draws // 2, backend="numpy", progress=False, **asked)
    found, again = (
        {quantity: over_trace(table, seen, quantity) for quantity in QUANTITIES}
        | {
            f"param_grad[{matrix}]": over_trace(table, seen, "param_grad", matrix=matrix)
            for matrix in said.matrix.to_numpy().tolist()
        }
        for table in (said, simulated)
    )
    worst = {}
    for key in ("stream", "matrices"):
        quantity, block = max(
            (
                (quantity, block)
                for quantity, one in found.items()
                if ("[" in quantity) == (key == "matrices")
                for block, ratio in enumerate(one["ratio"])
                if ratio is not None
            ),
            key=lambda place: abs(found[place[0]]["ratio"][place[1]] - 1),
        )
        worst[key] = {"quantity": quantity, "block": block}
        worst[key] |= {part: found[quantity][part][block] for part in ("ratio", "se")}
        worst[key] |= {f"simulated_{part}": again[quantity][part][block] for part in ("ratio", "se")}
    return {
        "name": name,
        "class": f"{SYSTEMS[NARROW.get(name, name)].kind}Model",
        "unread": list(unread),
        "worst": worst,
        "quantities": found,
        "simulated": again,
        "seconds": round(time.process_time() - began, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--names", nargs="*", default=[*SYSTEMS, *NARROW])
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--sequences", type=int, default=64)
    parser.add_argument("--draws", type=int, default=8)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", pg.ValidityWarning)
    transformers.logging.set_verbosity_error()
    summary = provenance("CPU", ("numpy", "scipy", "torch", "transformers", "propagate"))
    summary |= {"width": arguments.width, "sequences": arguments.sequences, "draws": arguments.draws, "tokens": TOKENS}
    rows = []
    for name in arguments.names:
        rows.append(row_of(name, arguments.width, arguments.sequences, arguments.draws))
        print(name, rows[-1]["seconds"], rows[-1]["unread"], rows[-1]["worst"], flush=True)
    write(arguments.out, {"summary": summary, "rows": rows})


if __name__ == "__main__":
    main()
