"""Architectures of the library transformers at random initialisation, from configurations made here; nothing fetched.

Each has the sizes asked for, a vocabulary of 512, no dropout, and otherwise its own defaults, the initial standard
deviations among them.
"""

from __future__ import annotations

from typing import Any

VOCABULARY = 512
_SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def _llama_like(width: int, depth: int, heads: int) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "num_key_value_heads": heads // 2,
        "intermediate_size": 4 * width,
        "max_position_embeddings": 256,
        "head_dim": width // heads,
    }


def _bert_like(width: int, depth: int, heads: int) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "intermediate_size": 4 * width,
        "max_position_embeddings": 256,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }


def _gpt2(width: int, depth: int, heads: int) -> dict[str, Any]:
    dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    return {"n_embd": width, "n_layer": depth, "n_head": heads, "n_positions": 256} | dropout


def _opt(width: int, depth: int, heads: int) -> dict[str, Any]:
    sizes = {"hidden_size": width, "num_hidden_layers": depth, "num_attention_heads": heads, "ffn_dim": 4 * width}
    return sizes | {"word_embed_proj_dim": width, "max_position_embeddings": 256, "dropout": 0.0}


def _electra(width: int, depth: int, heads: int) -> dict[str, Any]:
    return _bert_like(width, depth, heads) | {"embedding_size": width}


def _distilbert(width: int, depth: int, heads: int) -> dict[str, Any]:
    sizes = {"dim": width, "n_layers": depth, "n_heads": heads, "hidden_dim": 4 * width}
    return sizes | {"max_position_embeddings": 256, "dropout": 0.0, "attention_dropout": 0.0}


def _without_eps(width: int, depth: int, heads: int) -> dict[str, Any]:
    return _llama_like(width, depth, heads) | {"rms_norm_eps": 1e-20}


def _experts(width: int, depth: int, heads: int) -> dict[str, Any]:
    return _llama_like(width, depth, heads) | {"num_local_experts": 4, "num_experts_per_tok": 2}


def _qwen_experts(width: int, depth: int, heads: int) -> dict[str, Any]:
    own = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 2 * width}
    return _llama_like(width, depth, heads) | own


def _longcat(width: int, depth: int, heads: int) -> dict[str, Any]:
    size = width // heads
    return {
        "hidden_size": width,
        "num_layers": depth // 2,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "ffn_hidden_size": 4 * width,
        "expert_ffn_hidden_size": width,
        "q_lora_rank": width // 2,
        "kv_lora_rank": width // 4,
        "qk_nope_head_dim": size,
        "qk_rope_head_dim": size // 2,
        "head_dim": size // 2,
        "v_head_dim": size,
        "n_routed_experts": 4,
        "zero_expert_num": 2,
        "moe_topk": 2,
        "max_position_embeddings": 256,
    }


# name: (configuration class, model class, its sizes)
ARCHITECTURES: dict[str, tuple[str, str, Any]] = {
    "GPT-2": ("GPT2Config", "GPT2Model", _gpt2),
    "GPT-NeoX": ("GPTNeoXConfig", "GPTNeoXModel", _bert_like),
    "OPT": ("OPTConfig", "OPTModel", _opt),
    "BERT": ("BertConfig", "BertModel", _bert_like),
    "RoBERTa": ("RobertaConfig", "RobertaModel", _bert_like),
    "ELECTRA": ("ElectraConfig", "ElectraModel", _electra),
    "DistilBERT": ("DistilBertConfig", "DistilBertModel", _distilbert),
    "Llama": ("LlamaConfig", "LlamaModel", _llama_like),
    "Mistral": ("MistralConfig", "MistralModel", _llama_like),
    "Qwen2": ("Qwen2Config", "Qwen2Model", _llama_like),
    "Qwen3": ("Qwen3Config", "Qwen3Model", _llama_like),
    "Gemma": ("GemmaConfig", "GemmaModel", _llama_like),
    "Gemma2": ("Gemma2Config", "Gemma2Model", _llama_like),
    "Gemma3": ("Gemma3TextConfig", "Gemma3TextModel", _llama_like),
    "StableLM": ("StableLmConfig", "StableLmModel", _llama_like),
    "StarCoder2": ("Starcoder2Config", "Starcoder2Model", _llama_like),
    "OLMo": ("OlmoConfig", "OlmoModel", _llama_like),
    "OLMo2": ("Olmo2Config", "Olmo2Model", _llama_like),
    "OLMo2 (eps 1e-20)": ("Olmo2Config", "Olmo2Model", _without_eps),
    "Mixtral": ("MixtralConfig", "MixtralModel", _experts),
    "Qwen3-MoE": ("Qwen3MoeConfig", "Qwen3MoeModel", _qwen_experts),
    "LongCat-Flash": ("LongcatFlashConfig", "LongcatFlashModel", _longcat),
}


def make(name: str, *, width: int = 512, depth: int = 12, heads: int = 8, seed: int = 0, **own: Any) -> Any:
    """The architecture of that name with weights of that seed, in evaluation mode, in float32."""
    import torch
    import transformers

    config, model, sizes = ARCHITECTURES[name]
    arguments = {"vocab_size": VOCABULARY} | _SPECIAL | sizes(width, depth, heads) | own
    torch.manual_seed(seed)
    return getattr(transformers, model)(getattr(transformers, config)(**arguments)).eval()
