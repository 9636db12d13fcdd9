"""Products of matrices that torch is asked for, written in any of its ways."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

PLAIN = (torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, Tensor.bmm)
WITH_SUM = (torch.baddbmm, Tensor.baddbmm)


class Factors(NamedTuple):
    """The two factors of a product.

    Attributes:
        first, second: as they were given.
        rows, columns: the factor that the product's rows come from, (..., rows, size), and the other, (..., columns,
            size); None where the product does not say which axes these are.
        product: of them alone, (..., rows, columns).
    """

    first: Tensor
    second: Tensor
    rows: Tensor | None
    columns: Tensor
    product: Tensor


def factors_of(func: Any, args: Any, kwargs: Any, output: Any) -> Factors | None:
    """What a function of torch multiplied; None where it is no product.

    Example: queries and keys with the heads behind the tokens, as einsum has them.
        >>> q, k = torch.zeros(2, 5, 3, 4), torch.zeros(2, 7, 3, 4)
        >>> found = factors_of(torch.einsum, ("bqhd,bkhd->bhqk", q, k), {}, torch.zeros(2, 3, 5, 7))
        >>> found.rows.shape, found.columns.shape
        (torch.Size([2, 3, 5, 4]), torch.Size([2, 3, 7, 4]))
    """
    if func in PLAIN and len(args) > 1 and isinstance(output, Tensor) and output.dim() > 2:
        return Factors(args[0], args[1], args[0], args[1].mT if args[1].dim() > 1 else args[1], output)
    if func in WITH_SUM and isinstance(output, Tensor):
        first, second = (*args[1:], *(kwargs[name] for name in ("batch1", "batch2") if name in kwargs))[:2]
        return Factors(first, second, first, second.mT, first.detach() @ second.detach())
    if func is torch.einsum and len(args) == 3 and isinstance(args[0], str):
        rows, columns = _in_order(args[0], args[1], args[2])
        return Factors(args[1], args[2], rows, args[2] if columns is None else columns, output)
    return None


def _in_order(equation: str, first: Tensor, second: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """The factors of an einsum with axes in the order of its output, and the one summed over last."""
    factors, arrow, output = equation.replace(" ", "").partition("->")
    names = [name.removeprefix("...") for name in factors.split(",")]
    output = output.removeprefix("...")
    if len(names) != 2 or not arrow or "." in "".join([*names, output]):
        return None, None
    given = dict(zip(names, (first, second), strict=True)) if names[0] != names[1] else {}
    summed = (set(names[0]) & set(names[1])) - set(output)
    if len(output) < 2 or len(summed) != 1 or len(given) != 2:
        return None, None
    row, column, inner = *output[-2:], summed.pop()
    of_rows, of_columns = (next((name for name in names if axis in name), "") for axis in (row, column))
    orders = [*(a for a in output[:-1] if a in of_rows), inner], [*(a for a in output if a in of_columns), inner]
    if of_rows == of_columns or any(set(o) != set(n) for o, n in zip(orders, (of_rows, of_columns), strict=True)):
        return None, None
    found = [_permuted(given[name], name, order) for name, order in zip((of_rows, of_columns), orders, strict=True)]
    return found[0], found[1]


def _permuted(x: Tensor, names: str, order: list[str]) -> Tensor:
    """Axes without names stay in front."""
    free = x.dim() - len(names)
    return x.permute([*range(free), *(free + names.index(axis) for axis in order)])
