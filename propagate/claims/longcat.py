"""Claims of LongCat-Flash."""

from __future__ import annotations

from propagate.claims.claim import Claim, Evidence, Sources
from propagate.latent import LatentAttention
from propagate.model import Model

RANKS = (16, 64, 256)
WIDTH, STD = 512, 0.02
ALIKE = 1.05
"""Largest ratio of two variances that are called the same; a small rank leaves a trace of its own, of a few percent."""


def _added(sources: Sources, rank: int, *, corrected: bool) -> float:
    """Variance that latent attention of this rank adds to the stream of a lone block without FFN."""
    kind = LatentAttention.of_std(STD, WIDTH, heads=8, query_rank=rank, key_value_rank=rank, scale_correction=corrected)
    said = sources.predict(Model("prenorm", depth=1, width=WIDTH, attention=kind, ffn_gain=1e-6), covariance=0.3)
    return float(said.variance[1] - said.variance[0])


def ranks_leave_no_trace(sources: Sources) -> Evidence:
    """With the correction, what attention adds is the same for all ranks."""
    added = [_added(sources, rank, corrected=True) for rank in RANKS]
    plain = [_added(sources, rank, corrected=False) for rank in RANKS]
    said = (
        f"ranks {RANKS[0]} to {RANKS[-1]} at width {WIDTH}: the largest variance that attention adds is "
        f"{max(added) / min(added):.3f} times the smallest with the correction, {max(plain) / min(plain):.1f} times "
        f"without."
    )
    return Evidence("theory", said, max(added) / min(added) < ALIKE < max(plain) / min(plain))


def proof(sources: Sources) -> Evidence | None:
    """Queries, keys, values and logits."""
    proved = sources.proved(("15",))
    if proved is None:
        return None
    said = f"proposition 15, no rank is left in queries, keys, values and logits, is {'' if proved else 'NOT '}proved."
    return Evidence("proof", said, proved)


CLAIMS = (
    Claim(
        name="LongCat 2",
        words="scale correction makes the variances of queries and of the rotary keys equal, whatever the ranks",
        source="arXiv:2509.01322, of its latent attention",
        sure="the equations are from the full text, the sentence is ours",
        statement=(
            "What corrected latent attention adds to the stream does not depend on its ranks (variances within "
            f"{ALIKE - 1:.0%}); without correction it does."
        ),
        tests=(ranks_leave_no_trace, proof),
        change="matrices whose entries are not all of one size.",
    ),
)
