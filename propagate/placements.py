"""Normalisation placements, each written as the equations of its paper. `propagate/placement.py` has the language.

A paper's factors on its initial weights multiply the gains of `Model`, which count from 1/sqrt(fan_in).
"""

from __future__ import annotations

from fractions import Fraction

from propagate.placement import Block, Placement, S
from propagate.scaling import Gains, Number, log

HALF, QUARTER = Fraction(1, 2), Fraction(1, 4)  # exact, so that SymPy prints roots and not decimals


class PreNorm(Placement):
    """Norm before each sublayer, on the branch; a final norm. arXiv:2002.04745."""

    citation = "2002.04745"

    def block(self, x: S, block: Block[S]) -> S:
        x = x + block.attention(block.norm(x))
        return x + block.ffn(block.norm(x))

    def readout(self, x: S, block: Block[S]) -> S:
        return block.norm(x)


class ParallelPreNorm(Placement):
    """PreNorm with attention and FFN side by side, reading one norm (GPT-J, PaLM). arXiv:2204.02311."""

    citation = "2204.02311"

    def block(self, x: S, block: Block[S]) -> S:
        y = block.norm(x)
        return x + block.attention(y) + block.ffn(y)

    def readout(self, x: S, block: Block[S]) -> S:
        return block.norm(x)


class PostNorm(Placement):
    """Norm after each residual sum. arXiv:1706.03762."""

    citation = "1706.03762"

    def block(self, x: S, block: Block[S]) -> S:
        y = block.norm(x + block.attention(x))
        return block.norm(y + block.ffn(y))


class SpanNorm(Placement):
    """Norm after each sublayer; the FFN's skip is the block's own input. arXiv:2601.22580, Eqs. 5-8.

    In the first block attention reads the normed input. Whether that block's skip is normed too is not settled by
    the sources at hand: `norm_first_skip` chooses.
    """

    norm_first_skip: bool = False
    citation = "2601.22580"

    def block(self, x: S, block: Block[S]) -> S:
        read = block.norm(x) if block.first else x
        skip = read if self.norm_first_skip else x
        y = block.norm(skip + block.attention(read))
        return block.norm(skip + block.ffn(y))


class B2T(Placement):
    """PostNorm with a further skip from the block's input to its last norm. arXiv:2206.00330."""

    citation = "2206.00330"

    def block(self, x: S, block: Block[S]) -> S:
        y = block.norm(x + block.attention(x))
        return block.norm(x + y + block.ffn(y))


class DeepNorm(Placement):
    """PostNorm with the skip times alpha and values, outputs and FFN initialised with gain beta. arXiv:2203.00555.

    `None` means the paper's choice for an encoder-only or decoder-only network of L blocks:
    alpha = (2L)^(1/4), beta = (8L)^(-1/4).
    """

    alpha: float | None = None
    beta: float | None = None
    citation = "2203.00555"

    def block(self, x: S, block: Block[S]) -> S:
        alpha = (2 * block.depth) ** QUARTER if self.alpha is None else self.alpha
        y = block.norm(alpha * x + block.attention(x))
        return block.norm(alpha * y + block.ffn(y))

    def gains(self, index: Number, depth: Number) -> Gains:
        beta = (8 * depth) ** -QUARTER if self.beta is None else self.beta
        return Gains(value=beta, attention_out=beta, ffn_in=beta, ffn_out=beta)


class Admin(Placement):
    """PostNorm with each skip times the standard deviation that the branches so far add up to. arXiv:2004.08249.

    The paper profiles the variances on data before training: here each sum's own measured one weighs the next skip,
    starting from 1.
    """

    citation = "2004.08249"

    def embed(self, x: S, block: Block[S]) -> tuple[S, Number]:
        return x, 1.0

    def block(self, state: tuple[S, Number], block: Block[S]) -> tuple[S, Number]:
        x, skip = state
        x = skip * x + block.attention(x)
        x, skip = block.norm(x), block.std(x)
        x = skip * x + block.ffn(x)
        return block.norm(x), block.std(x)

    def readout(self, state: tuple[S, Number], block: Block[S]) -> S:
        return state[0]


class DSInit(Placement):
    """PostNorm with all of block l's matrices times alpha/sqrt(l). arXiv:1908.11365.

    The published TensorFlow code instead takes the *variance* proportional to l^(-1/2): that is not this.
    """

    alpha: float = 1.0
    citation = "1908.11365"

    def block(self, x: S, block: Block[S]) -> S:
        y = block.norm(x + block.attention(x))
        return block.norm(y + block.ffn(y))

    def gains(self, index: Number, depth: Number) -> Gains:
        gain = self.alpha * index**-HALF
        return Gains(query=gain, key=gain, value=gain, attention_out=gain, ffn_in=gain, ffn_out=gain)


class DeepScaleLM(Placement):
    """PreNorm with skip lambda and unit-variance branches times beta, lambda^2 + beta^2 = 1. arXiv:2403.09635.

    beta^2 = k / 2L with L blocks. The paper picks each layer's initial weights from predicted token correlations so
    that a branch has variance 1; dividing by the branch's own standard deviation does the same. k = 2, and that its
    denominator counts sublayers, we have from secondary sources only.
    """

    k: float = 2.0
    citation = "2403.09635"

    def block(self, x: S, block: Block[S]) -> S:
        power = self.k / (2 * block.depth)
        skip: float = (1 - power) ** HALF
        a = block.attention(block.norm(x))
        weight: float = power**HALF / block.std(a)
        x = skip * x + weight * a
        f = block.ffn(block.norm(x))
        weight = power**HALF / block.std(f)
        return skip * x + weight * f

    def readout(self, x: S, block: Block[S]) -> S:
        return block.norm(x)


class PeriLN(Placement):
    """Norm before and after each sublayer, on the branch; the embedding and the output are normed. arXiv:2502.02732."""

    citation = "2502.02732"

    def embed(self, x: S, block: Block[S]) -> S:
        return block.norm(x)

    def block(self, x: S, block: Block[S]) -> S:
        x = x + block.norm(block.attention(block.norm(x)))
        return x + block.norm(block.ffn(block.norm(x)))

    def readout(self, x: S, block: Block[S]) -> S:
        return block.norm(x)


class SandwichNorm(Placement):
    """Norm before and after each sublayer, on the branch; a final norm. Sandwich-LN, arXiv:2105.13290."""

    citation = "2105.13290"
    also = ("sandwich", "sandwichln")

    def block(self, x: S, block: Block[S]) -> S:
        x = x + block.norm(block.attention(block.norm(x)))
        return x + block.norm(block.ffn(block.norm(x)))

    def readout(self, x: S, block: Block[S]) -> S:
        return block.norm(x)


class OLMo2(Placement):
    """Norm after each sublayer, on the branch; queries and keys normed; a final norm. arXiv:2501.00656."""

    citation = "2501.00656"

    def block(self, x: S, block: Block[S]) -> S:
        x = x + block.norm(block.attention(x, normed=("query", "key")))
        return x + block.norm(block.ffn(x))

    def readout(self, x: S, block: Block[S]) -> S:
        return block.norm(x)


class HybridNorm(Placement):
    """Queries, keys and values normed inside attention, PostNorm around the FFN's input. arXiv:2503.04598."""

    citation = "2503.04598"

    def block(self, x: S, block: Block[S]) -> S:
        y = block.norm(x + block.attention(x, normed=("query", "key", "value")))
        return y + block.ffn(y)


class MixLN(Placement):
    """PostNorm in the first `fraction` of the blocks, PreNorm in the others; a final norm. arXiv:2412.13795."""

    fraction: float = 0.25
    citation = "2412.13795"

    def block(self, x: S, block: Block[S]) -> S:
        early = block.index <= Fraction(self.fraction).limit_denominator(10**6) * block.depth
        return (PostNorm() if early else PreNorm()).block(x, block)

    def readout(self, x: S, block: Block[S]) -> S:
        return block.norm(x)


class LayerNormScaling(Placement):
    """PreNorm with each norm's output divided by the square root of the block's index. arXiv:2502.05795."""

    citation = "2502.05795"

    def block(self, x: S, block: Block[S]) -> S:
        scale = block.index**-HALF
        x = x + block.attention(scale * block.norm(x))
        return x + block.ffn(scale * block.norm(x))

    def readout(self, x: S, block: Block[S]) -> S:
        return block.norm(x)


class KEEL(Placement):
    """PostNorm with normed branches and the skip times alpha. arXiv:2601.19895.

    `None` means the paper's choice, alpha = the number of sublayers, 2L.
    """

    alpha: float | None = None
    citation = "2601.19895"

    def block(self, x: S, block: Block[S]) -> S:
        alpha = 2 * block.depth if self.alpha is None else self.alpha
        y = block.norm(alpha * x + block.attention(block.norm(x)))
        return block.norm(alpha * y + block.ffn(block.norm(y)))


class ResiDual(Placement):
    """PostNorm, and a second stream that sums all branches and joins, normed, at the end. arXiv:2304.14802."""

    citation = "2304.14802"

    def embed(self, x: S, block: Block[S]) -> tuple[S, S]:
        return x, x

    def block(self, state: tuple[S, S], block: Block[S]) -> tuple[S, S]:
        x, y = state
        a = block.attention(x)
        x, y = block.norm(x + a), y + a
        f = block.ffn(x)
        return block.norm(x + f), y + f

    def readout(self, state: tuple[S, S], block: Block[S]) -> S:
        return state[0] + block.norm(state[1])


class SiameseNorm(Placement):
    """A PostNorm stream and a PreNorm stream with the same branches, which read both. arXiv:2602.08064.

    As in the authors' DeiT code: in block l a branch enters the PostNorm stream divided by sqrt(branches l). That code
    norms the output once more.
    """

    branches: int = 2
    citation = "2602.08064"

    def embed(self, x: S, block: Block[S]) -> tuple[S, S]:
        return block.norm(x), x

    def block(self, state: tuple[S, S], block: Block[S]) -> tuple[S, S]:
        (x, y), weight = state, (self.branches * block.index) ** -HALF
        a = block.attention(block.norm(x + block.norm(y)))
        x, y = block.norm(x + weight * a), y + a
        f = block.ffn(block.norm(x + block.norm(y)))
        return block.norm(x + weight * f), y + f

    def readout(self, state: tuple[S, S], block: Block[S]) -> S:
        return state[0] + block.norm(state[1])


class SubLN(Placement):
    """PreNorm with a second norm before each output projection, and initial gains sqrt(log 2L). arXiv:2210.06423.

    The gain is the paper's for an encoder or a decoder alone of L blocks; it multiplies values, outputs and FFN.
    """

    citation = "2210.06423"

    def block(self, x: S, block: Block[S]) -> S:
        x = x + block.attention(block.norm(x), normed=("heads",))
        return x + block.ffn(block.norm(x), normed=("hidden",))

    def readout(self, x: S, block: Block[S]) -> S:
        return block.norm(x)

    def gains(self, index: Number, depth: Number) -> Gains:
        gain = log(2 * depth) ** HALF
        return Gains(value=gain, attention_out=gain, ffn_in=gain, ffn_out=gain)


class ReZero(Placement):
    """No norm: each branch times `a`, which is 0 at initialisation. arXiv:2003.04887."""

    a: float = 0.0
    citation = "2003.04887"

    def block(self, x: S, block: Block[S]) -> S:
        x = x + self.a * block.attention(x)
        return x + self.a * block.ffn(x)


class LayerScale(Placement):
    """PreNorm with each branch times a small `scale`. arXiv:2103.17239.

    The paper starts from 0.1 in shallow, 1e-5 and 1e-6 in deeper networks.
    """

    scale: float = 0.1
    citation = "2103.17239"

    def block(self, x: S, block: Block[S]) -> S:
        x = x + self.scale * block.attention(block.norm(x))
        return x + self.scale * block.ffn(block.norm(x))

    def readout(self, x: S, block: Block[S]) -> S:
        return block.norm(x)


class NGPT(Placement):
    """Steps of length `alpha` on the sphere from each stream to its normed branch. arXiv:2410.01131.

    The paper's weights have rows of length 1, which in a wide network are those of any random matrix.
    """

    alpha: float = 0.05
    citation = "2410.01131"

    def embed(self, x: S, block: Block[S]) -> S:
        return block.norm(x)

    def block(self, x: S, block: Block[S]) -> S:
        step = self.alpha
        x = block.norm((1 - step) * x + step * block.norm(block.attention(x, normed=("query", "key"))))
        return block.norm((1 - step) * x + step * block.norm(block.ffn(x)))


class DyT(Placement):
    """PreNorm with tanh(alpha x) in place of every norm. arXiv:2503.10622."""

    alpha: float = 0.5
    citation = "2503.10622"

    def block(self, x: S, block: Block[S]) -> S:
        x = x + block.attention(block.tanh(self.alpha * x))
        return x + block.ffn(block.tanh(self.alpha * x))

    def readout(self, x: S, block: Block[S]) -> S:
        return block.tanh(self.alpha * x)


class TFixup(Placement):
    """No norm, no warm-up: values, outputs and FFN initialised with gain 0.67 L^(-1/4) (encoder). ICML 2020.

    The paper's factor multiplies Xavier initialisation; its scaled embeddings are the start's variance here.
    """

    factor: float = 0.67
    citation = "huang2020tfixup"

    def block(self, x: S, block: Block[S]) -> S:
        x = x + block.attention(x)
        return x + block.ffn(x)

    def gains(self, index: Number, depth: Number) -> Gains:
        gain = self.factor * depth**-QUARTER
        return Gains(value=gain, attention_out=gain, ffn_in=gain, ffn_out=gain)
