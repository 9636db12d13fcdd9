"""Which axes of a torch stream hold sequences, tokens and the width: found by what a block mixes, or said by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from propagate.checks import ModelError, shown

AXES = ("sequence", "token", "width")
Axes = str | Sequence[str] | None


@dataclass(frozen=True)
class Layout:
    """What each axis of the stream holds.

    Attributes:
        names: "sequence", "token" or "width" for each axis; several axes of tokens are one after the other.

    Example: torch's own layers have tokens first.
        >>> layout = Layout(("token", "sequence", "width"))
        >>> layout.flat(torch.zeros(5, 2, 8)).shape
        torch.Size([2, 5, 8])
    """

    names: tuple[str, ...]

    @property
    def order(self) -> list[int]:
        """Axes in the order sequences, tokens, width."""
        return [axis for name in AXES for axis, held in enumerate(self.names) if held == name]

    def flat(self, x: Tensor) -> Tensor:
        """The stream as (sequences, tokens, width)."""
        sizes = [math.prod(x.shape[a] for a, held in enumerate(self.names) if held == name) for name in AXES]
        return x.permute(self.order).reshape(sizes)

    def spread(self, values: Tensor, shape: Sequence[int]) -> Tensor:
        """The inverse of `flat`: (sequences, tokens, width) as a stream of this shape."""
        order = self.order
        return values.reshape([shape[axis] for axis in order]).permute([order.index(a) for a in range(len(order))])


def layout_by_hand(axes: Axes, dims: int) -> Layout | None:
    """A layout that was given in words; None if none was.

    Args:
        axes: such as "token sequence width", or the names in a sequence.
        dims: number of the stream's axes.

    Raises:
        ModelError: for names that are not known, or not one for each axis.

    Example:
        >>> layout_by_hand("token sequence width", 3).names
        ('token', 'sequence', 'width')
    """
    if axes is None:
        return None
    names = tuple(axes.split()) if isinstance(axes, str) else tuple(axes) if isinstance(axes, list | tuple) else ()
    known = all(isinstance(name, str) and name in AXES for name in names)
    if len(names) != dims or not known or names.count("width") != 1 or "token" not in names:
        raise ModelError(
            f"axes must name each of the stream's {dims} axes sequence, token or width (once), got {shown(axes)}"
        )
    return Layout(names)


def layout_of(entered: Tensor, left: Tensor, block: nn.Module) -> Layout:
    """The layout of a stream, from what one block does to it.

    The width is the last axis, or the one of the size of the block's matrices and norms; tokens lie along the axes that
    the block mixes. A block that mixes none is taken to have its tokens before the width.

    Args:
        entered, left: the stream before and after the block, in one graph.
        block: the module between them.

    Raises:
        ModelError: where axes cannot be told apart; then `axes=` says it.

    Example:
        >>> layer, x = nn.TransformerEncoderLayer(8, 2, 16), torch.randn(5, 3, 8, requires_grad=True)
        >>> layout_of(x, layer.eval()(x), layer).names
        ('token', 'sequence', 'width')
    """
    width = _width(entered, block)
    rest = [axis for axis in range(entered.dim()) if axis != width]
    mixed = _mixed(entered, left, width)
    if mixed is None or not mixed:
        if len(rest) > 2:
            raise _unclear(entered, "no block mixes tokens")
        mixed = [rest[-1]]
    if len(mixed) == len(rest) and len(rest) > 1 and min(entered.shape[axis] for axis in rest) > 1:
        raise _unclear(entered, "a block mixes all of its axes")
    names = ["sequence"] * entered.dim()
    for axis in mixed:
        names[axis] = "token"
    names[width] = "width"
    return Layout(tuple(names))


def _unclear(x: Tensor, why: str) -> ModelError:
    return ModelError(
        f"which axes of a stream of shape {tuple(x.shape)} are tokens cannot be told ({why});"
        " say it with axes=, such as axes='sequence token width'"
    )


def _width(x: Tensor, block: nn.Module) -> int:
    """The last axis, unless the block's parameters fit another alone."""
    sizes = {size for parameter in block.parameters() for size in parameter.shape if size > 1}
    fitting = [axis for axis in range(x.dim()) if x.shape[axis] in sizes]
    last = x.dim() - 1
    if x.dim() <= 3:
        return fitting[0] if len(fitting) == 1 else last
    if len(fitting) != 1:
        raise _unclear(x, f"its block has parameters that fit {len(fitting)} of them")
    return fitting[0]


def _mixed(entered: Tensor, left: Tensor, width: int) -> list[int] | None:
    """Axes along which an entry of the output depends on others than itself; None where gradients do not tell."""
    at = tuple(slice(None) if axis == width else size - 1 for axis, size in enumerate(entered.shape))
    gradient = gradient_at(left, entered, at)
    if gradient is None or not torch.isfinite(gradient).all():
        return None
    touched = gradient.abs().sum(width) > 0
    last = [size - 1 for axis, size in enumerate(entered.shape) if axis != width]
    axes = [axis for axis in range(entered.dim()) if axis != width]
    places = touched.nonzero()
    return [axis for i, axis in enumerate(axes) if bool((places[:, i] != last[i]).any())]


def gradient_at(output: Tensor, source: Tensor, at: object) -> Tensor | None:
    """The gradient, by `source`, of a random projection of `output[at]`; None if there is no path."""
    if not (output.requires_grad and source.requires_grad):
        return None
    chosen = output[at]  # type: ignore[index]
    weights = torch.linspace(0.5, 1.5, chosen.numel(), device=chosen.device).reshape(chosen.shape).to(chosen.dtype)
    found: Tensor | None = torch.autograd.grad((chosen * weights).sum(), source, retain_graph=True, allow_unused=True)[
        0
    ]
    return found
