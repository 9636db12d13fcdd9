"""What a torch model has and a `Model` has not, in words."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from torch import nn

from propagate.tracing.find import is_norm
from propagate.tracing.named import is_matrix, named_weights
from propagate.tracing.roles import role_of
from propagate.tracing.statistics import precise

SCALE = re.compile("lambda|gamma|scale", re.IGNORECASE)
MEASURED = """
afn attention_heads dff mask_token_id moe_topk activation activation_dropout activation_function add_bias_linear
add_cross_attention add_pooling_layer alibi apply_layernorm apply_patch_embed_norm apply_query_key_layer_scaling
apply_residual_connection_post_layernorm architectures attention_bias attention_dropout attention_layers
attention_multiplier attention_probs_dropout_prob attention_softmax_in_fp32 attention_types attn_config
attn_logit_softcapping attn_pdrop bias bos_token_id cache_implementation chunk_size_feed_forward classifier_activation
classifier_dropout classifier_dropout_prob classifier_pooling clip_qkv cls_token_id conv_bias d_ff d_kv d_model
decoder_bias decoder_sparse_step decoder_start_token_id dense_act_fn dim do_layer_norm_before drop_path_rate dropout
dropout_rate dtype embd_pdrop embed_dropout embedding_dropout embedding_multiplier embedding_size enable_bias
encoder_stride eod_token_id eos_token_id expansion_ratio expert_ffn_hidden_size explicit_mask feed_forward_proj
ffn_dim ffn_hidden_size final_logit_softcapping first_k_dense_replace global_attn_every_n_layers
gradient_checkpointing head_dim head_dims hidden_act hidden_activation hidden_dim hidden_dropout hidden_dropout_prob
hidden_size hidden_sizes id2label image_size init_device init_std initializer_cutoff_factor initializer_factor
initializer_range inner_group_num intermediate_multiple_size intermediate_size is_decoder is_encoder_decoder
is_gated_act kv_lora_rank kv_n_heads label2id layer_norm_elementwise_affine layer_norm_eps layer_norm_epsilon
layer_scale_init_value layer_types layerdrop layernorm_epsilon layerscale_value learned_pos_emb local_attention
logit_scale logits_scaling max_position_embeddings max_seq_len max_sequence_length max_window_layers mlp_bias
mlp_only_layers mlp_ratio model_type moe_intermediate_size moe_layer_freq moe_num_experts multi_query n_ctx n_embd
n_head n_heads n_inner n_layer n_layers n_positions n_routed_experts n_shared_experts new_decoder_architecture no_bias
no_rope_layer_interval no_rope_layers norm_eps norm_epsilon norm_topk_prob num_attention_heads num_channels
num_decoder_layers num_experts num_experts_per_tok num_heads num_hidden_groups num_hidden_layers num_key_value_heads
num_kv_heads num_layers num_local_experts num_nextn_predict_layers original_max_position_embeddings out_features
out_indices output_attentions output_hidden_states output_router_logits pad_token_id parallel_attn patch_size
pooler_act pooler_hidden_act pooler_hidden_size pooler_output_size position_embedding_type prefix_token_id
pretraining_tp problem_type projection_dim q_lora_rank qa_dropout qk_head_dim qk_layernorm qk_nope_head_dim qk_norm
qk_rope_head_dim qkv_bias query_pre_attn_scalar relative_attention_max_distance relative_attention_num_buckets
reorder_and_upcast_attn reshape_hidden_states resid_pdrop residual_dropout residual_multiplier return_dict
rms_norm_eps rope_interleaved rope_parameters rope_theta rotary rotary_dim rotary_emb_base rotary_pct rotary_value
router_aux_loss_coef routed_scaling_factor router_jitter_noise scale_attention_softmax_in_fp32
scale_attn_by_inverse_layer_idx scale_attn_weights scale_decoder_outputs scale_embedding sep_token_id
seq_classif_dropout shared_expert_intermediate_size sinusoidal_pos_embds sliding_window sliding_window_pattern
sparse_pred_ignore_index stage_names summary_activation summary_first_dropout summary_last_dropout
summary_proj_to_labels summary_type summary_use_proj task_specific_params task_type_vocab_size tie_encoder_decoder
tie_word_embeddings tokenizer_class torch_dtype transformers_version type_vocab_size unk_token_id use_bias
use_bidirectional_attention use_cache use_mask_token use_parallel_residual use_qk_norm use_qkv_bias use_sliding_window
use_swiglu_ffn v_head_dim vocab_size window_size wo_init_scale word_embed_proj_dim zero_expert_num zero_expert_type
n_group num_mtp_layers rope_interleave topk_group topk_method
""".split()  # noqa: SIM905
"""Fields of configurations that are looked at, or whose work is measured, or that act on no block."""


def unread(blocks: Sequence[nn.Module], known: Collection[str], config: Any) -> Iterator[str]:
    """Of weights and the configuration. `known` are paths of matrices whose names do not tell what they do."""
    if repeated := repeats(blocks):
        yield f"the same weights in {repeated} of {len(blocks)} blocks, where a Model's are independent"
    elif shared := shared_by(blocks):
        yield f"weights that several blocks share ({shared}), where a Model's are independent"
    biases = [p for block in blocks for path, p in block.named_parameters() if path.endswith("bias")]
    if any(bool(bias.detach().abs().sum() > 0) for bias in biases):
        yield "biases that are not zero"
    weights = [p.detach() for block in blocks for part in block.modules() if is_norm(part) for p in part.parameters()]
    if any(float(weight.float().var(correction=0)) > 0 for weight in weights):
        yield "learned gains of the norms that are not all one"
    if further := sorted({path for block in blocks for path in _further(block)} - set(known)):
        yield f"parameters {', '.join(further)}"
    if cap := getattr(config, "attn_logit_softcapping", None):
        yield f"attention logits capped softly at {cap:g}"
    if fields := fields_not_looked_at(config):
        yield f"fields of the configuration that were not looked at: {', '.join(fields)}"


def repeats(blocks: Sequence[nn.Module]) -> int:
    """How many blocks have the weights of another: shared, or copies as `nn.TransformerEncoder` makes them."""
    seen: dict[tuple[float, ...], int] = {}
    for block in blocks:
        weights = [precise(p).sum().item() for p in block.parameters() if is_matrix(p)]
        seen[tuple(weights)] = seen.get(tuple(weights), 0) + 1
    return sum(count for weights, count in seen.items() if weights and count > 1)


def shared_by(blocks: Sequence[nn.Module]) -> str:
    """The path of a matrix that several blocks have, if there is one.

    Example:
        >>> blocks = [nn.Sequential(nn.Linear(2, 2)) for _ in range(2)]
        >>> _ = blocks[1].append(blocks[0][0])
        >>> shared_by(blocks)
        '1.weight'
    """
    owners: dict[int, nn.Module] = {}
    for block in blocks:
        for path, weight in block.named_parameters():
            if is_matrix(weight) and owners.setdefault(id(weight), block) is not block:
                return path
    return ""


def fields_not_looked_at(config: Any) -> list[str]:
    """Fields that are on and have no place in `MEASURED`, with their values.

    Example:
        >>> class Config:
        ...     def to_dict(self):
        ...         return {"hidden_size": 4, "stochastic_weather": 3, "off": False}
        >>> fields_not_looked_at(Config())
        ['stochastic_weather=3']
    """
    if config is None or not hasattr(config, "to_dict"):
        return []
    given = {name: value for name, value in config.to_dict().items() if name not in MEASURED and name[:1] != "_"}
    said = {name: value for name, value in given.items() if value not in (None, False, 0, [], {}, "")}
    return [f"{name}={value!r}" for name, value in sorted(said.items())]


def _further(block: nn.Module) -> Iterator[str]:
    """Parameters that are no matrix with a role, no bias and no part of a norm."""
    norms = [f"{name}." for name, part in block.named_modules() if is_norm(part)]
    for path, weight in named_weights(block):
        known = role_of(path) is not None or path.endswith("bias") or path.startswith(tuple(norms))
        scales = SCALE.search(path) or SCALE.search(type(block.get_submodule(path.rpartition(".")[0])).__name__)
        values = weight.detach().double()
        alike = weight.dim() == 1 and float(values.var(correction=0)) <= 1e-10 * float(values.square().mean())
        if not known and not (scales and alike) and weight.numel() > 1:  # a factor, as LayerScale, was measured
            yield path
