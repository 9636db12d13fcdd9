"""A model in a few lines: what differs from the defaults, blocks that are alike in one."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from itertools import groupby
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from propagate.model import Model

SIZES = ("depth", "width", "tokens")


def summary(model: Model) -> str:
    """See `Model.__str__`; gains of several blocks are given as a range.

    Example:
        >>> from propagate.model import Model
        >>> from propagate.sublayers import Attention
        >>> local = {"attention": Attention(causal=True, window=4)}
        >>> print(summary(Model("prenorm", depth=3, causal=True, layers={2: local})))
        PreNorm(), depth 3, width 512, tokens 32, norm rms
        blocks 1, 3: attention heads 8, head_size 64, causal; ffn relu, hidden 2048
        block 2: attention heads 8, head_size 64, causal, window 4; ffn relu, hidden 2048
    """
    general = [f"{name} {getattr(model, name)}" for name in SIZES] + [f"norm {_norm(model.at(1).norm)}"]
    if model.weights != "normal":
        general.append(f"weights {model.weights}")
    if model.dropout:
        general.append(f"dropout {model.dropout:g}")
    lines = [", ".join([repr(model.placement), *general])]
    rows = [tuple(_parts(model.at(index))) for index in range(1, model.depth + 1)]
    alike: dict[Any, list[int]] = {}
    for index, parts in enumerate(rows, 1):
        alike.setdefault(tuple((name, words) for name, words, _ in parts), []).append(index)
    for key, indices in alike.items():
        gains = [
            {f"{name} {gain}": value for name, _, own in rows[index - 1] for gain, value in own.items()}
            for index in indices
        ]
        said = [f"{name} {words}{_range(name, gains)}" for name, words in key]
        lines.append(f"{_indices(indices)}: {'; '.join(said)}")
    return "\n".join(lines)


def _parts(layer: Any) -> Iterator[tuple[str, str, dict[str, float]]]:
    """Of every sublayer its name, what it is in words, and its gains."""
    for name in ("attention", "ffn", "experts"):
        kind = getattr(layer, name)
        if kind is None or (name == "experts" and kind == layer.ffn):
            continue
        yield name, ", ".join(_fields(kind)), dict(_gains(kind))


def _fields(kind: Any) -> Iterator[str]:
    for field in dataclasses.fields(kind):
        value = getattr(kind, field.name)
        if field.name.endswith("gain") or field.name == "ratio":
            continue
        if field.name == "ffn":
            yield f"each {', '.join(_fields(value))}"
        elif field.name == "activation":
            yield str(value)
        elif value is True:
            yield field.name
        elif field.name in ("heads", "head_size", "hidden") or value != field.default:
            yield f"{field.name} {_several(value) if isinstance(value, tuple) else _number(value)}"


def _several(values: tuple[Any, ...]) -> str:
    """Names; of numbers, one a head, between which they lie.

    Example:
        >>> _several(("key", "query")), _several((0.5, 0.75, 0.5))
        ('key query', '0.5 to 0.75')
    """
    if all(isinstance(value, str) for value in values):
        return " ".join(values)
    low, high = _number(min(values)), _number(max(values))
    return low if low == high else f"{low} to {high}"


def _gains(kind: Any) -> Iterator[tuple[str, float]]:
    for field in dataclasses.fields(kind):
        value = getattr(kind, field.name)
        if field.name == "ffn" and value is not None:
            yield from _gains(value)
        elif field.name.endswith("_gain") and isinstance(value, int | float):
            yield field.name, float(value)


def _range(name: str, gains: list[dict[str, float]]) -> str:
    said = ""
    for key in gains[0]:
        own, _, gain = key.partition(" ")
        values = [row[key] for row in gains]
        low, high = _number(min(values)), _number(max(values))
        if own == name and not low == high == "1":
            said += f", {gain} {low}" + (f" to {high}" if high != low else "")
    return said


def _indices(indices: list[int]) -> str:
    """1, 2, 3, 5 as "blocks 1 to 3, 5"."""
    runs = [[i for _, i in run] for _, run in groupby(enumerate(indices), lambda pair: pair[1] - pair[0])]
    said = [str(run[0]) if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs]
    return f"block{'s' if len(indices) > 1 else ''} {', '.join(said)}"


def _norm(norm: Any) -> str:
    return f"{norm.kind}, eps {norm.eps:g}" if getattr(norm, "eps", 0) else str(getattr(norm, "kind", norm))


def _number(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
