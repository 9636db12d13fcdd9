"""A mixture of experts beside dense FFNs: which calls and which matrices are whose."""

from __future__ import annotations

import re
from collections.abc import Iterable

from torch import nn

from propagate.tracing.gains import Rows
from propagate.tracing.roles import by_role
from propagate.tracing.sublayers import Call

ROUTER = re.compile(r"(gate|router)(\.\w+)*\.weight$")


def home(rows: Rows) -> str | None:
    """Path of the module that a router is part of, with a dot at its end; None where there is no router.

    Example:
        >>> home({"router": [("mlp.router.classifier.weight", None)]})
        'mlp.'
    """
    routers = rows.get("router")
    return None if routers is None else ROUTER.sub("", routers[0][0])


def apart(rows: Rows) -> tuple[Rows, Rows | None]:
    """A block's weights without those of a mixture that stands beside dense FFNs, and those; None where none does.

    Example:
        >>> rows = {"ffn_out": [("mlp.experts.down_proj", 1), ("mlps.0.down_proj.weight", 2)]}
        >>> apart(rows | {"router": [("mlp.router.classifier.weight", 3)]})[0]
        {'ffn_out': [('mlps.0.down_proj.weight', 2)]}
    """
    inside = home(rows)
    if inside is None:
        return rows, None
    dense, mixture = _chosen(rows, inside, within=False), _chosen(rows, inside, within=True)
    return (dense, mixture) if "ffn_out" in dense and "ffn_out" in mixture else (rows, None)


def _chosen(rows: Rows, inside: str, *, within: bool) -> Rows:
    found = {role: [row for row in of_role if row[0].startswith(inside) == within] for role, of_role in rows.items()}
    return {role: of_role for role, of_role in found.items() if of_role}


def told_apart(calls: Iterable[tuple[str, Call]], block: nn.Module) -> list[tuple[str, Call]]:
    """Sublayers with the mixture among them called "experts" where it stands beside dense FFNs."""
    found, rows = list(calls), by_role(block)
    inside = home(rows)
    if inside is None:
        return found
    mixture = [kind == "ffn" and inside.startswith(f"{call.path}.") for kind, call in found]
    beside = sum(kind == "ffn" for kind, _ in found) > sum(mixture)
    return [("experts" if own and beside else kind, call) for own, (kind, call) in zip(mixture, found, strict=True)]
