"""Which matrix a weight of a transformer's block is, by its name."""

from __future__ import annotations

import re

from torch import nn

ROLES = {
    "fused": r"(c_attn|query_key_value)\.weight$|in_proj_weight$",
    "query": r"(q_proj|query|q_lin)\.weight$",
    "key": r"(k_proj|key|k_lin)\.weight$",
    "value": r"(v_proj|value|v_lin)\.weight$",
    "attention_out": r"(o_proj|out_proj|out_lin|att\w*\.c_proj|att\w*\.(output\.)?dense)\.weight$",
    "ffn_gate": r"gate_proj\.weight$",
    "ffn_both": r"gate_up_proj(\.weight)?$",
    "ffn_in": r"(up_proj|c_fc|intermediate\.dense|dense_h_to_4h|linear1|fc1|lin1|ffn)\.weight$",
    "ffn_out": r"(mlp\.c_proj|output\.dense|dense_4h_to_h|linear2|fc2|lin2|ffn_output)\.weight$|down_proj(\.weight)?$",
    "router": r"mlp\.gate\.weight$",
}
"""Ends of a weight's path; the first that fits."""


def by_role(block: nn.Module) -> dict[str, list[tuple[str, nn.Parameter]]]:
    """The weights of a block by role, each with its path.

    Example:
        >>> [path for path, _ in by_role(nn.TransformerEncoderLayer(8, 2))["ffn_in"]]
        ['linear1.weight']
    """
    found: dict[str, list[tuple[str, nn.Parameter]]] = {}
    for path, weight in block.named_parameters():
        role = next((role for role, pattern in ROLES.items() if re.search(pattern, path)), None)
        if role is not None and weight.dim() >= 2:
            found.setdefault(role, []).append((path, weight))
    return found
