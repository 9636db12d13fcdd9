"""Prediction over trace, architecture by architecture of the library transformers: small, at random initialisation.

    python benchmarks/architectures.py --workers 16 --out benchmarks/results/architectures.json

Each is made from its configuration with sizes of a few numbers and, where it has one, an initial standard deviation of
0.9 / sqrt(width), so that branches weigh as much as skips. `describe` reads a Model off one, `predict` begins where the
traces do. The width is what lets a row tell: at 128 the theory's allowance alone hides an error of 20 %. The file is
written whenever a row is done; a run that was ended goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import warnings
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch
import transformers
from timing import provenance, write

import propagate as pg
from propagate.figures import one_thread
from propagate.montecarlo.workers import ended_at_once

NAMES = """
albert arcee beit bert bert-generation biogpt bitnet bloom camembert codegen cohere cohere2 ctrl cwm data2vec-text
deberta-v2 deit diffllama dinov2 dinov2_with_registers distilbert electra ernie ernie4_5 ernie4_5_moe esm eurobert
exaone4 falcon flex_olmo gemma gemma2 gemma3_text glm glm4 glm4_moe gpt2 gpt_bigcode gpt_neo gpt_neox
gpt_neox_japanese gpt_oss gptj granite granitemoe granitemoeshared helium hunyuan_v1_dense hunyuan_v1_moe lfm2 llama
megatron-bert ministral ministral3 mistral mixtral modernbert mpnet mpt nemotron olmo olmo2 olmo3 olmoe opt persimmon
phi phi3 phimoe qwen2 qwen2_moe qwen3 qwen3_moe rembert roberta roc_bert roformer seed_oss smollm3 splinter stablelm
starcoder2 t5 umt5 vaultgemma vit vit_msn xglm xlm-roberta xlm-roberta-xl bart marian
deepseek_v2 deepseek_v3 longcat_flash afmoe apertus jetmoe minimax
""".split()  # noqa: SIM905
WIDTH, DEPTH, HEADS, TOKENS, SEQUENCES = 1024, 3, 16, 8, 8
SIZES = {"vocab_size": 512, "hidden_size": WIDTH, "num_hidden_layers": DEPTH, "num_attention_heads": HEADS}
IF_ANY: dict[str, Any] = {
    **dict.fromkeys(("intermediate_size", "ffn_dim", "d_ff", "ffn_hidden_size", "dff", "hidden_dim"), 4 * WIDTH),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 4 * WIDTH),
    **dict.fromkeys(("encoder_layers", "decoder_layers"), DEPTH),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), HEADS),
    **dict.fromkeys(("head_dim", "d_kv"), WIDTH // HEADS),
    **dict.fromkeys(("word_embed_proj_dim", "embedding_size"), WIDTH),
    **dict.fromkeys(("max_position_embeddings", "n_positions"), 128),
    **dict.fromkeys(("initializer_range", "init_std"), round(0.9 / math.sqrt(WIDTH), 4)),
    **dict.fromkeys(("num_local_experts", "num_experts", "n_routed_experts"), 4),
    "n_inner": None,
    "num_key_value_heads": 2,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 2 * WIDTH,
    "image_size": 48,
    "patch_size": 16,
    "rotary_dim": WIDTH // HEADS // 4,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
"""Fields that are given where the configuration has them."""
LATENT = {"q_lora_rank": WIDTH // 2, "kv_lora_rank": WIDTH // 4, "v_head_dim": WIDTH // HEADS}
LATENT |= {"qk_nope_head_dim": WIDTH // HEADS, "qk_rope_head_dim": WIDTH // HEADS // 2, "head_dim": WIDTH // HEADS // 2}
LATENT |= {"num_key_value_heads": HEADS, "first_k_dense_replace": 1}
OWN: dict[str, dict[str, Any]] = {
    "deepseek_v2": LATENT,
    "deepseek_v3": LATENT | {"n_group": 1, "topk_group": 1},
    "longcat_flash": LATENT | {"num_layers": DEPTH, "expert_ffn_hidden_size": WIDTH},
    "gpt_neo": {"num_layers": DEPTH, "num_heads": HEADS, "attention_types": [[["global"], DEPTH]]},
    "falcon": {"head_dim": ...},
    "roc_bert": {"enable_pronunciation": False, "enable_shape": False},
    "rembert": {"input_embedding_size": WIDTH},
    "lfm2": {"block_auto_adjust_ff_dim": False, "layer_types": ["full_attention"] * DEPTH},
}
"""Fields of one architecture; `...` leaves one out."""
X_TRANSFORMERS: dict[str, dict[str, Any]] = {
    "x-transformers": {},
    "x-transformers post-norm": {"pre_norm": False},
    "x-transformers sandwich norm": {"sandwich_norm": True},
    "x-transformers pre and post norm": {"pre_and_post_norm": True, "scale_residual_constant": 2.0},
    "x-transformers rms glu": {"use_rmsnorm": True, "ff_glu": True, "ff_swish": True, "attn_kv_heads": 2},
}
"""Decoders of the package x-transformers, which steps through lists of sublayers, and their own options."""
ENCODERS = {"t5": "T5EncoderModel", "umt5": "UMT5EncoderModel"}
STACK = {"bart": "encoder.layers", "marian": "encoder.layers"}


class Absent(Exception):
    """The library here is a version without this architecture."""


def made(name: str, seed: int) -> Any:
    """The architecture with weights of that seed."""
    if name in X_TRANSFORMERS:
        return stepped(X_TRANSFORMERS[name], seed)
    if name not in transformers.CONFIG_MAPPING:
        raise Absent(f"transformers {transformers.__version__} has none")
    kind = transformers.CONFIG_MAPPING[name]
    default = kind()
    fields = SIZES | {key: value for key, value in IF_ANY.items() if hasattr(default, key)} | OWN.get(name, {})
    config = kind(**{key: value for key, value in fields.items() if value is not ...})
    torch.manual_seed(seed)
    if name in ENCODERS:
        return getattr(transformers, ENCODERS[name])(config).eval()
    module = transformers.AutoModel.from_config(config).eval()
    for of, weight in module.named_parameters():  # a token that begins as 0 no norm divides; a trained model's is not
        if of.endswith(("_token", "_tokens")) and not weight.any():
            torch.nn.init.normal_(weight, std=config.initializer_range)
    return module


def stepped(options: dict[str, Any], seed: int) -> Any:
    from x_transformers import Decoder, TransformerWrapper

    torch.manual_seed(seed)
    sizes = {"dim": WIDTH, "depth": DEPTH, "heads": HEADS, "attn_dim_head": WIDTH // HEADS, "ff_no_bias": True}
    module = TransformerWrapper(num_tokens=512, max_seq_len=128, attn_layers=Decoder(**sizes, **options))
    torch.nn.init.normal_(module.token_emb.emb.weight)
    return module.eval()


def inputs_of(name: str, module: Any) -> dict[str, Any]:
    """Images of noise, or sequences in which no token occurs twice."""
    generator = torch.Generator().manual_seed(0)
    if size := getattr(getattr(module, "config", None), "image_size", None):
        return {"pixel_values": torch.randn(SEQUENCES, 3, size, size, generator=generator)}
    rows = [torch.randperm(500, generator=generator)[:TOKENS] + 10 for _ in range(SEQUENCES)]
    ids = torch.stack(rows)
    if name in X_TRANSFORMERS:
        return {"x": ids}
    return {"input_ids": ids} | ({"decoder_input_ids": ids} if name in STACK else {})


def row_of(name: str, draws: int) -> dict[str, Any]:
    """What was read, and the ratios; or why there are none, whatever went wrong."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", pg.ValidityWarning)
    transformers.logging.set_verbosity_error()
    found: dict[str, Any] = {"name": name}
    try:
        return found | measured(name, draws)
    except pg.ModelError as error:
        return found | {"refused": str(error)}
    except Exception as error:  # one row's fault is no other's
        return found | {"failed": f"{type(error).__name__}: {error}".splitlines()[0][:300]}


def measured(name: str, draws: int) -> dict[str, Any]:
    module, blocks = made(name, 0), STACK.get(name)
    given = inputs_of(name, module)
    model, unread = pg.describe(module, tokens=TOKENS, blocks=blocks, inputs=given if blocks else None)
    seen = pg.trace((made(name, seed) for seed in range(draws)), given, blocks=blocks)
    start = pg.start_of(seen)
    said = pg.predict(model, start)
    judged = pg.compare(said, seen)
    found: dict[str, Any] = {"placement": type(model.equations).__name__, "unread": list(unread)}
    found |= {"each_token": "gram" in start, "verdict": judged.attrs["verdict"]}
    found["worst_z"] = round(float(abs(judged.worst_z).max()), 2)
    found["first_divergence"] = judged.attrs["first_divergence"]
    unresolved = judged.unresolved.max("block")
    found["unresolved"] = {str(q): shown(float(unresolved.sel(quantity=q))) for q in judged["quantity"].values}
    for quantity, block in (("variance", -1), ("deviation", -1), ("grad_variance", 0), ("grad_deviation", 0)):
        told, traced = float(said[quantity][block]), float(seen[quantity][block])
        error = told / traced * float(seen[f"{quantity}_se"][block]) / traced
        found[quantity] = {"ratio": round(told / traced, 4), "se": round(error, 4), "block": block % (model.depth + 1)}
    return found


def shown(share: float) -> float | None:
    """Rounded; None where nothing can be told, for which JSON has no number."""
    return round(share, 4) if math.isfinite(share) else None


def line(row: dict[str, Any]) -> str:
    if "verdict" not in row:
        return f"{row['name']:33} {row.get('refused') or row['failed']}"
    told = (f"{row[q]['ratio']:.3f} ± {row[q]['se']:.3f}" for q in ("variance", "grad_variance"))
    return f"{row['name']:33} {row['placement']:16} {'  '.join(told)}  {row['verdict']} {row['worst_z']}"


def before(path: Path | None, summary: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of an earlier run of the same draws, sizes and versions; those that failed are tried again."""
    if path is None or not path.is_file():
        return []
    found = json.loads(path.read_text())
    same = ("draws", "sizes", "torch", "transformers", "x_transformers", "propagate")
    if any(found["summary"].get(key) != summary[key] for key in same):
        return []
    return [row for row in found["rows"] if "failed" not in row]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--names", nargs="*", help="measured anew, beside what the file has; by default what it lacks")
    parser.add_argument("--draws", type=int, default=32)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    sizes = {"width": WIDTH, "depth": DEPTH, "heads": HEADS, "tokens": TOKENS, "sequences": SEQUENCES}
    summary = provenance("CPU", ("numpy", "scipy", "torch", "transformers", "x_transformers", "propagate"))
    summary |= {"draws": arguments.draws, "sizes": sizes, "threads": "1", "workers": arguments.workers}
    found = {row["name"]: row for row in before(arguments.out, summary)}
    names = arguments.names or [name for name in reversed([*NAMES, *X_TRANSFORMERS]) if name not in found]
    context = multiprocessing.get_context("spawn")
    with one_thread(), ProcessPoolExecutor(arguments.workers, mp_context=context) as pool, ended_at_once(pool):
        for done in as_completed([pool.submit(row_of, name, arguments.draws) for name in names]):
            row = done.result()
            found[row["name"]] = row
            print(line(row), flush=True)
            ordered = sorted(found.values(), key=lambda one: ("verdict" not in one, one["name"]))
            write(arguments.out, {"summary": summary, "rows": ordered})


if __name__ == "__main__":
    main()
