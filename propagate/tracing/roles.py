"""Which matrix a weight of a transformer's block is, by its name."""

from __future__ import annotations

import re

from torch import Tensor, nn

from propagate.tracing.named import named_weights

ROLES = {
    "shared_in": r"shared_(expert|mlp)\w*\.up_proj\.weight$",
    "shared_gate": r"shared_(expert|mlp)\w*\.gate_proj\.weight$",
    "shared_out": r"shared_(expert|mlp)\w*\.down_proj\.weight$",
    "query_down": r"q_a_proj\.weight$",
    "key_value_down": r"kv_a_proj(_with_mqa)?\.weight$",
    "key_value_up": r"kv_b_proj\.weight$",
    "fused": r"(c_attn|query_key_value|Wqkv|qkv_proj|qkv)\.weight$|in_proj_weight$",
    "query": r"(\bq|q_proj|q_b_proj|query|query_proj|q_lin|Wq)\.weight$",
    "key": r"(\bk|k_proj|key|key_proj|k_lin|Wk)\.weight$",
    "value": r"(\bv|v_proj|value|value_proj|v_lin|Wv)\.weight$",
    "attention_out": r"(\bo|o_proj|out_proj|out_lin|attn\.Wo|att\w*\.c_proj|att\w*\.(output\.)?dense)\.weight$",
    "ffn_gate": r"(gate_proj|wi_0|feed_forward\.w1)\.weight$",
    "ffn_both": r"gate_up_proj(\.weight)?$|mlp\.Wi\.weight$|block_sparse_moe\.input_linear\.weight$",
    "ffn_in": r"(up_proj|c_fc|fc_in|intermediate\.dense|dense_h_to_4h|linear1|fc1|lin1|\bffn|wi|wi_1|feed_forward\.w3"
    r"|ffn\.0)\.weight$",
    "ffn_out": r"(mlp\.c_proj|fc_out|output\.dense|dense_4h_to_h|linear2|fc2|lin2|ffn_output|\bwo|mlp\.Wo|ffn\.2"
    r"|feed_forward\.w2|block_sparse_moe\.output_linear)\.weight$|down_proj(\.weight)?$",
    "router": r"(mlp|block_sparse_moe)\.(gate|router)(\.wg|\.layer|\.classifier)?\.weight$",
}
"""Ends of a weight's path; the first that fits."""


def by_role(block: nn.Module) -> dict[str, list[tuple[str, Tensor]]]:
    """The weights of a block by role, each with its path.

    Example:
        >>> [path for path, _ in by_role(nn.TransformerEncoderLayer(8, 2))["ffn_in"]]
        ['linear1.weight']
    """
    found: dict[str, list[tuple[str, Tensor]]] = {}
    for path, weight in named_weights(block):
        role = role_of(path)
        if role is not None and weight.dim() >= 2:
            found.setdefault(role, []).append((path, weight))
    return found


def role_of(path: str) -> str | None:
    """The role of a weight, by its path.

    Example:
        >>> role_of("mlp.down_proj.weight"), role_of("mlp.other.weight")
        ('ffn_out', None)
    """
    return next((role for role, pattern in ROLES.items() if re.search(pattern, path)), None)
