"""Which matrix of a block does what, where names do not tell: by autograd's graph of one call.

Of a sublayer, the matrix that its output was made from last is its output matrix; those that hear of the stream by no
other matrix read it. Queries, keys and values are told apart by where attention took them, a gate from what it opens
by the activation that fits.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from propagate.tracing.cores import Core
from propagate.tracing.graph import first_met
from propagate.tracing.sublayers import Call


@dataclass(frozen=True, eq=False)
class Product:
    """One call of a module that multiplies by a matrix, or a part of its outputs.

    Attributes:
        path: of its weight within the block.
        weight: as stored.
        outputs: the axis of the weight that its outputs lie along.
        entered, output: what it was given and gave.
    """

    path: str
    weight: Tensor
    outputs: int
    entered: Tensor
    output: Tensor

    def cut(self, which: Callable[[Tensor], Tensor]) -> Product:
        """Some of its outputs; `which` takes them off a tensor that has all of them along its last axis."""
        weight = which(self.weight.detach().movedim(self.outputs, -1)).movedim(-1, self.outputs)
        return replace(self, weight=weight, output=which(self.output))


class Parts(NamedTuple):
    """By role, the weights of those of a block's sublayers whose matrices are the usual ones.

    Attributes:
        rows: the weights.
        inside: what the matrices gave or, "attention_out" and "ffn_out", were given, of the first attention and FFN.
        ffns: the same of every FFN, apart.
    """

    rows: dict[str, list[tuple[str, Tensor]]]
    inside: dict[str, Tensor]
    ffns: tuple[dict[str, Tensor], ...]


def product_of(path: str, module: nn.Module, entered: Any, output: Any) -> Product | None:
    """A call of a Linear or of the library transformers' Conv1D, which stores its matrix transposed; None of others.

    Example:
        >>> linear, x = nn.Linear(2, 3), torch.ones(1, 2)
        >>> product_of("fc", linear, x, linear(x)).path
        'fc.weight'
    """
    transposed = type(module).__name__ == "Conv1D"
    if not (transposed or isinstance(module, nn.Linear)) or not isinstance(output, Tensor):
        return None
    weight: Any = module.weight
    return Product(f"{path}.weight", weight, 1 if transposed else 0, entered, output)


Roles = dict[str, list[Product]]


def parts_of(
    calls: Sequence[tuple[str, Call]], products: Sequence[Product], streams: Collection[Tensor], cores: Sequence[Core]
) -> Parts | None:
    """The matrices of attentions and FFNs by role; None where none are the usual ones, or one is called again.

    Args:
        calls: the block's sublayers.
        products: of the block's matrices.
        streams: those that its norms and sublayers give and the one that entered it.
        cores: of its attentions, with where queries, keys and values come from.
    """
    if len({p.path for p in products}) < len(products):
        return None
    rows: dict[str, list[tuple[str, Tensor]]] = {}
    inside: dict[str, Tensor] = {}
    ffns: list[dict[str, Tensor]] = []
    left = list(cores)
    for kind, call in calls:
        core = left.pop(0) if kind == "attention" and left else None
        ends = {x.grad_fn for x in streams if x is not call.output}
        last, (first, count) = _last(call, products, ends), _first(call, products, ends)
        if last is None or last in first or kind not in ("attention", "ffn") or count > len(first) + 1:
            continue  # with others in between, or beside
        roles = _of_attention(first, core) if kind == "attention" else _of_ffn(first, last)
        if roles is None:
            continue
        out = f"{kind}_out"
        given = {role: torch.cat([p.output.detach() for p in found], -1) for role, found in roles.items()}
        given[out] = last.entered.detach()
        for role, found in {**roles, out: [last]}.items():
            rows.setdefault(role, []).extend((product.path, product.weight) for product in found)
        inside = given | inside
        ffns += [given] if kind == "ffn" else []
    return Parts(rows, inside, tuple(ffns)) if rows else None


def _nodes(products: Sequence[Product], ends: Collection[Any] = ()) -> dict[Any, Product]:
    """By what made their outputs; without those that are what another sublayer gave."""
    return {p.output.grad_fn: p for p in products if p.output.grad_fn is not None and p.output.grad_fn not in ends}


def _last(call: Call, products: Sequence[Product], ends: set[Any]) -> Product | None:
    """The one that the output was made from, or that gave it."""
    nodes = _nodes(products, ends)
    if call.output.grad_fn in nodes:
        return nodes[call.output.grad_fn]
    met = first_met(call.output, {*nodes, *ends})
    return nodes[met[0]] if len(met) == 1 and met[0] in nodes else None


def _first(call: Call, products: Sequence[Product], ends: set[Any]) -> tuple[list[Product], int]:
    """Those of a sublayer that hear of no other, in the order in which they were called; and how many it has."""
    nodes = _nodes(products, ends)
    within, waiting = set[Any](), [call.output.grad_fn] if call.output.grad_fn in nodes else []
    waiting += [node for node in first_met(call.output, {*nodes, *ends}) if node in nodes]
    while waiting:
        node = waiting.pop()
        if node in within:
            continue
        within.add(node)
        waiting += [met for met in first_met(nodes[node].output, {*nodes, *ends}) if met in nodes]
    heard = {node: [m for m in first_met(nodes[node].output, {*nodes, *ends}) if m in nodes] for node in within}
    return [product for node, product in nodes.items() if node in within and not heard[node]], len(within)


def _of_attention(first: Sequence[Product], core: Core | None) -> Roles | None:
    if len(first) == 1:
        return _cut_by_head(first[0], core) or {"fused": [first[0]]}
    if core is None:
        return None
    found: Roles = {"query": [], "key": [], "value": []}
    for one in core.apart or (core,):
        sources = [_source(source, first) for source in one.sources or ()]
        if len(sources) != 3 or None in sources:
            return None
        for role, product in zip(found, sources, strict=True):
            found[role] += [product] if product is not None else []
    query, key, value = (list(dict.fromkeys(products)) for products in found.values())
    if key == value and len(key) == 1 and query != key:
        return _cut_in_two(query, key[0], core)
    several = {product for products in (query, key, value) for product in products}
    return found if len(several) == len(first) == 3 * len(query) else None


def _source(source: Any, first: Sequence[Product]) -> Product | None:
    """The one product that what attention took was made from."""
    nodes = _nodes(first)
    met = [source] if source in nodes else [node for node in _behind(source, set(nodes)) if node in nodes]
    return nodes[met[0]] if len(met) == 1 else None


def _cut_in_two(query: Sequence[Product], both: Product, core: Core) -> Roles | None:
    """Keys and values that one matrix gives side by side; None where its halves are not told apart."""
    if both.output.shape[-1] % 2 or len(query) != 1:
        return None
    halves = [both.cut(lambda x, number=number: x.chunk(2, -1)[number]) for number in (0, 1)]  # type: ignore[misc]
    for key, value in (halves, halves[::-1]):
        if _is_first_token(core.key, key.output):
            return {"query": list(query), "key": [key], "value": [value]}
    return None


def _is_first_token(heads: Tensor, output: Tensor) -> bool:
    """Whether a matrix gave the queries or keys of the first token, which no positions turn, head by head."""
    token = heads.flatten(0, -4)[0, :, 0].flatten() if heads.dim() > 3 else heads[0, 0]
    own = output.detach().flatten(0, -2)[0]
    if token.numel() != own.numel():
        return False
    return float(torch.cosine_similarity(token.double(), own.double(), dim=0)) > 0.99


def _cut_by_head(fused: Product, core: Core | None) -> Roles | None:
    """Queries, keys and values that lie within every head, one after the other; None where they do not."""
    if core is None or core.query.dim() != 4 or fused.output.shape[-1] != 3 * core.heads * core.size:
        return None

    def which(number: int) -> Callable[[Tensor], Tensor]:
        shape = (core.heads, 3, core.size)
        return lambda x: x.reshape(*x.shape[:-1], *shape)[..., number, :].flatten(-2)

    found = [fused.cut(which(number)) for number in range(3)]
    if not _is_first_token(core.query, found[0].output):
        return None
    return {role: [product] for role, product in zip(("query", "key", "value"), found, strict=True)}


def _behind(source: Any, ends: set[Any]) -> list[Any]:
    class Made:
        grad_fn = source

    made: Any = Made()
    return first_met(made, ends)


def _of_ffn(first: Sequence[Product], last: Product) -> Roles | None:
    if len(first) == 1 and first[0].output.shape == last.entered.shape:
        return {"ffn_in": [first[0]]}
    if len(first) == 1:
        first = [first[0].cut(lambda x, number=number: x.chunk(2, -1)[number]) for number in (0, 1)]  # type: ignore[misc]
    if len(first) != 2 or any(p.output.shape != last.entered.shape for p in first):
        return None
    one, other = first
    return min(_orders(one, other, last), key=lambda found: found[0])[1]


def _orders(one: Product, other: Product, last: Product) -> Iterator[tuple[float, Roles]]:
    """Which of the two is the gate, and how far what leaves the pair is from being linear in the other."""
    for gate, entry in ((one, other), (other, one)):
        ratio = (last.entered / entry.output).detach().flatten()
        yield _unlike(ratio, gate.output.detach().flatten()), {"ffn_gate": [gate], "ffn_in": [entry]}


def _unlike(values: Tensor, arguments: Tensor) -> float:
    """How far values are from a function of their arguments: their steps where the arguments are neighbours."""
    steps = values[arguments.argsort()].diff().abs()
    return float(steps[torch.isfinite(steps)].median())
