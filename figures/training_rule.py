"""The rule by which initialisation foretells training, written down before the runs that judge it were made.

**The rule.** An arm (an architecture, a depth and a peak rate) trains if and only if, in `predict`'s theory of the
*moved* network, (a) the relative gradient gain is below 35, and (b) 1 - correlation of two tokens in the last block's
stream is above 1e-3.

- The relative gradient gain is the root of (E g^2 E x^2 at the embedding) / (E g^2 E x^2 at the last block): how much
  more the loss feels a relative change of the stream at the bottom than at the top.
- The moved network is the initial one, but entries of the output matrices of attention and FFN have gained, in
  quadrature, 10 steps of Adam at the peak rate: gain^2 -> gain^2 + width (10 rate)^2. ScaleInit makes these matrices
  small, and the steps of Adam, which do not know it, undo it: the rule asks whether what is then there still passes
  gradients and tells tokens apart.
- Theory is that of tokens without a mask, of variance 1 and covariance 0.02, as many as are trained on.

Judged are rates from 5e-4 on: smaller ones may leave a network where it was after few steps, whatever it is, of which
the rule knows nothing. (Added while the first runs were being made: results are told with those rates too.)

"At rest" is the same rule with rate 0: whether an architecture trains at all, at its best rate.

An arm trains if the mean over its seeds of the last held-out loss, a diverged run counting at its initial loss, is
more than 0.1 nats below the unigram loss.

**Where the numbers come from.** 10 steps and 35 were chosen on 39 arms of earlier pilots: PreNorm, PostNorm, SpanNorm,
with and without ScaleInit, 24 blocks, width 256, 128 tokens, another vocabulary. The rule says what became of 38 of
them; PostNorm + ScaleInit 1/2 at 3e-3 ought to have trained and did not. The pilots know nothing of other depths and
widths, of runs without warm-up, or of Peri-LN, DeepNorm, LayerNorm-Scaling and KEEL. Nothing in the rule may be changed
after seeing the runs.
"""

from __future__ import annotations

import math
from typing import Any

import propagate as pg

GAIN, DISTINCT, MOVES = 35.0, 1e-3, 10.0
COVARIANCE = 0.02
FROM = 5e-4
"""The smallest rate that is judged."""
MARGIN = 0.1
"""Nats below the unigram loss from which on a network is said to train."""


def moved(model: pg.Model, lr: float) -> pg.Model:
    """The network after ten steps of Adam at a peak rate, in the rule's sense: dense, without a mask and positions.

    Example:
        >>> still = pg.Model("spannorm", depth=4, width=64, scaling=pg.ScaleInit(0.5))
        >>> [round(moved(still, lr).at(1).ffn.out_gain, 3) for lr in (0.0, 0.01)]
        [0.5, 0.943]
    """
    step = model.width * (MOVES * lr) ** 2
    now = {"attention_gain": model.at(1).attention.out_gain, "ffn_gain": model.at(1).ffn.out_gain}
    return pg.Model(
        model.placement,
        depth=model.depth,
        width=model.width,
        heads=model.heads,
        tokens=model.tokens,
        activation=model.activation,
        scaling=model.scaling,
        **{name: math.sqrt(gain**2 + step) / gain for name, gain in now.items()},
    )


def judged(model: pg.Model, lr: float = 0.0) -> dict[str, Any]:
    """Relative gradient gain and 1 - correlation that theory predicts of the moved network, and what the rule says."""
    said = pg.predict(moved(model, lr), covariance=COVARIANCE)
    power = said.grad_variance * said.variance
    distinct = said.deviation[-1] / said.variance[-1]
    gain = math.sqrt(float(power[0] / power[-1]))
    return {"gain": gain, "distinct": float(distinct), "trains": gain < GAIN and float(distinct) > DISTINCT}
