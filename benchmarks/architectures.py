"""Prediction over trace, architecture by architecture of the library transformers: small, at random initialisation.

Each is made from its configuration with sizes of a few numbers and, where it has one, an initial standard deviation of
0.08, so that branches weigh as much as skips. `describe` reads a Model off one, `predict` begins where the traces do.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from timing import provenance, write

import propagate as pg

NAMES = """
albert arcee beit bert bert-generation biogpt bitnet bloom camembert codegen cohere cohere2 ctrl cwm data2vec-text
deberta-v2 deit diffllama dinov2 dinov2_with_registers distilbert electra ernie ernie4_5 ernie4_5_moe esm eurobert
exaone4 falcon flex_olmo gemma gemma2 gemma3_text glm glm4 glm4_moe gpt2 gpt_bigcode gpt_neo gpt_neox
gpt_neox_japanese gpt_oss gptj granite granitemoe granitemoeshared helium hunyuan_v1_dense hunyuan_v1_moe lfm2 llama
megatron-bert ministral ministral3 mistral mixtral modernbert mpnet mpt nemotron olmo olmo2 olmo3 olmoe opt persimmon
phi phi3 phimoe qwen2 qwen2_moe qwen3 qwen3_moe rembert roberta roc_bert roformer seed_oss smollm3 splinter stablelm
starcoder2 t5 umt5 vaultgemma vit vit_msn xglm xlm-roberta xlm-roberta-xl bart marian
deepseek_v2 deepseek_v3 longcat_flash
afmoe apertus jetmoe minimax
""".split()  # noqa: SIM905
"""Those that are described, and on the last line those that are refused in words."""
WIDTH, DEPTH, HEADS, TOKENS, SEQUENCES = 128, 3, 4, 8, 2
SIZES = {"vocab_size": 512, "hidden_size": WIDTH, "num_hidden_layers": DEPTH, "num_attention_heads": HEADS}
IF_ANY: dict[str, Any] = {
    **dict.fromkeys(("intermediate_size", "ffn_dim", "d_ff", "ffn_hidden_size", "dff", "hidden_dim"), 4 * WIDTH),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 4 * WIDTH),
    **dict.fromkeys(("encoder_layers", "decoder_layers"), DEPTH),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), HEADS),
    **dict.fromkeys(("head_dim", "d_kv"), WIDTH // HEADS),
    **dict.fromkeys(("word_embed_proj_dim", "embedding_size"), WIDTH),
    **dict.fromkeys(("max_position_embeddings", "n_positions"), 128),
    **dict.fromkeys(("initializer_range", "init_std"), 0.08),
    **dict.fromkeys(("num_local_experts", "num_experts", "n_routed_experts"), 4),
    "n_inner": None,
    "num_key_value_heads": 2,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 2 * WIDTH,
    "image_size": 12,
    "patch_size": 4,
    "rotary_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
"""Fields that are given where the configuration has them."""
LATENT = {"q_lora_rank": 64, "kv_lora_rank": 32, "qk_rope_head_dim": 16, "qk_nope_head_dim": 32, "v_head_dim": 32}
LATENT |= {"head_dim": 16, "num_key_value_heads": HEADS, "first_k_dense_replace": 1}
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


def made(name: str, seed: int) -> Any:
    """The architecture with weights of that seed."""
    if name in X_TRANSFORMERS:
        return stepped(X_TRANSFORMERS[name], seed)
    kind = transformers.CONFIG_MAPPING[name]
    default = kind()
    fields = SIZES | {key: value for key, value in IF_ANY.items() if hasattr(default, key)} | OWN.get(name, {})
    config = kind(**{key: value for key, value in fields.items() if value is not ...})
    torch.manual_seed(seed)
    if name in ENCODERS:
        return getattr(transformers, ENCODERS[name])(config).eval()
    module = transformers.AutoModel.from_config(config).eval()
    if name == "deit":  # whose class tokens begin as 0, which no norm divides: as a trained model's, they are not
        for weight in (module.embeddings.cls_token, module.embeddings.distillation_token):
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
    """What was read, and the ratios; or why there are none."""
    found: dict[str, Any] = {"name": name}
    module, blocks = made(name, 0), STACK.get(name)
    try:
        given = inputs_of(name, module)
        model, unread = pg.describe(module, tokens=TOKENS, blocks=blocks, inputs=given if blocks else None)
        found |= {"placement": type(model.equations).__name__, "unread": list(unread)}
        seen = pg.trace((made(name, seed) for seed in range(draws)), given, blocks=blocks)
        start = pg.start_of(seen)
        said = pg.predict(model, start)
    except pg.ModelError as error:
        return found | {"refused": str(error)}
    judged = pg.compare(said, seen)
    found |= {"each_token": "gram" in start, "verdict": judged.attrs["verdict"]}
    found["worst_z"] = round(float(abs(judged.worst_z).max()), 2)
    for quantity, block in (("variance", -1), ("deviation", -1), ("grad_variance", 0), ("grad_deviation", 0)):
        told, traced = float(said[quantity][block]), float(seen[quantity][block])
        error = told / traced * float(seen[f"{quantity}_se"][block]) / traced
        found[quantity] = {"ratio": round(told / traced, 4), "se": round(error, 4), "block": block % (model.depth + 1)}
    return found


def rows(names: list[str], draws: int) -> Iterator[dict[str, Any]]:
    for name in names:
        row = row_of(name, draws)
        if "refused" in row:
            print(f"{name:33} {row['refused']}", flush=True)
        else:
            told = (f"{row[q]['ratio']:.3f} ± {row[q]['se']:.3f}" for q in ("variance", "grad_variance"))
            print(f"{name:33} {row['placement']:16} {'  '.join(told)}  {row['verdict']} {row['worst_z']}", flush=True)
        yield row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--names", nargs="*", default=[*NAMES, *X_TRANSFORMERS])
    parser.add_argument("--draws", type=int, default=48)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--add", action="store_true", help="to the file: its other rows stay")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", pg.ValidityWarning)
    transformers.logging.set_verbosity_error()
    sizes = {"width": WIDTH, "depth": DEPTH, "heads": HEADS, "tokens": TOKENS, "sequences": SEQUENCES}
    summary = provenance("CPU", ("numpy", "scipy", "torch", "transformers", "x_transformers", "propagate"))
    summary |= {"draws": arguments.draws, "sizes": sizes}
    before = json.loads(arguments.out.read_text()) if arguments.add else {"summary": summary, "rows": []}
    found = {row["name"]: row for row in [*before["rows"], *rows(arguments.names, arguments.draws)]}
    ordered = sorted(found.values(), key=lambda row: ("refused" in row, row["name"]))
    write(arguments.out, {"summary": before["summary"], "rows": ordered})


if __name__ == "__main__":
    main()
