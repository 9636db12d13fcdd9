"""Layers with two attentions, two dense FFNs and a mixture of experts on a shortcut, after LongCat-Flash.

The mixture reads what the first FFN reads and joins where the layer ends, so that its communication hides behind the
dense path. A model of them needs `experts`. The published layer is `ScMoE`; the other placements of norms are ours, and
so is the same layer without the shortcut. A layer counts as one block: `ScaleInit` counts layers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from propagate.checks import ModelError
from propagate.placement import Block, Placement, S
from propagate.table import JOINED

if TYPE_CHECKING:
    import xarray as xr


class ScMoE(Placement):
    """PreNorm with a mixture of experts beside the dense path, and a final norm. LongCat-Flash, arXiv:2509.01322.

    Every skip is the plain sum so far; the mixture's spans the first FFN, the second attention and the second FFN.

    Example:
        >>> from propagate.text import equations
        >>> print(equations("scmoe"))  # doctest: +NORMALIZE_WHITESPACE
        a = Attn(N(x)); b = N(x + a); c = FFN(b); d = Attn(N(x + a + c));
        x' = x + a + c + d + FFN(N(x + a + c + d)) + Experts(b)
    """

    citation = "2509.01322"

    def block(self, x: S, block: Block[S]) -> S:
        a = x + block.attention(block.norm(x))
        u = block.norm(a)
        s = block.experts(u)
        b = a + block.ffn(u)
        c = b + block.attention(block.norm(b))
        return c + block.ffn(block.norm(c)) + s

    def readout(self, x: S, block: Block[S]) -> S:
        return block.norm(x)


class ScMoEPost(Placement):
    """ScMoE with PostNorm: a norm after each sum, the mixture inside the last. Ours.

    Each skip spans its own sublayer; the mixture's output first meets a norm together with the second FFN's.
    """

    citation = "2509.01322"

    def block(self, x: S, block: Block[S]) -> S:
        u = block.norm(x + block.attention(x))
        s = block.experts(u)
        b = block.norm(u + block.ffn(u))
        c = block.norm(b + block.attention(b))
        return block.norm(c + block.ffn(c) + s)


class ScMoESpan(Placement):
    """ScMoE with SpanNorm (arXiv:2601.22580) for each pair of attention and FFN, the mixture in the layer's last sum.

    Ours. An attention's skip spans it alone, and an FFN's is what its pair's attention had read. With `whole` the
    second FFN's skip is the layer's own input: it spans all five sublayers, as SpanNorm's spans its two, and the first
    FFN's output goes on through sublayers only. The first layer's attention reads the normed input, as in `SpanNorm`.
    """

    whole: bool = False
    citation = "2509.01322"

    def block(self, x: S, block: Block[S]) -> S:
        u = block.norm(x + block.attention(block.norm(x) if block.first else x))
        s = block.experts(u)
        b = block.norm(x + block.ffn(u))
        c = block.norm(b + block.attention(b))
        skip = x if self.whole else b
        return block.norm(skip + block.ffn(c) + s)


class ScMoEPeri(Placement):
    """ScMoE with Peri-LN (arXiv:2502.02732): norms before and after each sublayer, the mixture too. Ours.

    Skips as in `ScMoE`; embedding and output are normed. A norm behind the mixture leaves nothing of the routed scale.
    """

    citation = "2509.01322"

    def embed(self, x: S, block: Block[S]) -> S:
        return block.norm(x)

    def block(self, x: S, block: Block[S]) -> S:
        a = x + block.norm(block.attention(block.norm(x)))
        u = block.norm(a)
        s = block.norm(block.experts(u))
        b = a + block.norm(block.ffn(u))
        c = b + block.norm(block.attention(block.norm(b)))
        return c + block.norm(block.ffn(block.norm(c))) + s

    def readout(self, x: S, block: Block[S]) -> S:
        return block.norm(x)


class ScMoESequence(Placement):
    """ScMoE's five sublayers one after another, PreNorm, the mixture last: what the shortcut is compared with. Ours."""

    citation = "2509.01322"

    def block(self, x: S, block: Block[S]) -> S:
        x = x + block.attention(block.norm(x))
        x = x + block.ffn(block.norm(x))
        x = x + block.attention(block.norm(x))
        x = x + block.ffn(block.norm(x))
        return x + block.experts(block.norm(x))

    def readout(self, x: S, block: Block[S]) -> S:
        return block.norm(x)


class ScMoEPaths(Placement):
    """ScMoE from parting to parting, its two paths as two streams: the dense path, then the shortcut. Ours.

    A block begins where a layer's paths part, behind its first attention: both streams enter equal, and their
    cotangents there are what each path returns. The last block ends where they meet, without the second attention and
    the final norm, and what leaves it is what each path brings. `path_correlation` reads both off a table.
    """

    citation = "2509.01322"

    def embed(self, x: S, block: Block[S]) -> tuple[S, S]:
        return x, x

    def block(self, state: tuple[S, S], block: Block[S]) -> tuple[S, S]:
        dense, shortcut = state
        s = block.experts(block.norm(shortcut))
        b = dense + block.ffn(block.norm(dense))
        c = b + block.attention(block.norm(b))
        d = c + block.ffn(block.norm(c))
        if block.last:
            return d, s
        x = d + s
        a = x + block.attention(block.norm(x))
        return a, a

    def readout(self, state: tuple[S, S], block: Block[S]) -> S:
        return state[0] + state[1]


def path_correlation(table: xr.Dataset) -> dict[str, float]:
    """How correlated a layer's two paths are, coordinate by coordinate, from a table of `ScMoEPaths`.

    Branches have weights of their own, and are uncorrelated. What is not is the skip in the dense path and the part of
    the mixture that identity experts hand on, which is the normed skip: without them both correlations are 0.

    Args:
        table: of `predict`, `simulate` or `trace`, with two streams.

    Returns:
        `forward`, of what the two paths bring to the last layer's end; `backward`, of the cotangents that they return
        to the first parting.

    Raises:
        ModelError: for a table without two streams and what they are together.

    Example: one of three candidates hands its input on.
        >>> import propagate as pg
        >>> mixture = pg.Experts(2, top_k=2, identity=1, softmax="before")
        >>> found = path_correlation(pg.predict(pg.Model("scmoepaths", depth=1, experts=mixture)))
        >>> {way: round(value, 1) for way, value in found.items()}
        {'forward': 0.2, 'backward': 0.2}
    """
    streams = [str(name) for name in table.stream.values] if "stream" in getattr(table, "dims", ()) else []
    if len(streams) != 3 or streams[-1] != JOINED:
        raise ModelError(f"table must have two streams and what they are together, got {', '.join(streams) or 'one'}")
    return {"forward": _joint(table.variance[-1]), "backward": _joint(table.grad_variance[0])}


def _joint(variances: Any) -> float:
    """Correlation of two from their second moments and that of their sum."""
    one, other, both = (float(value) for value in variances)
    product = one * other
    return 0.0 if product == 0 else (both - one - other) / 2 / float(product**0.5)
