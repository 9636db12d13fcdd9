"""What a cell of the agreement matrix may have beside a placement: other attention, experts, patterns of blocks, ends.

Each variant says what its network is, how both witnesses come to their tables, and which wrong theories, near its own,
the same measurement must reject.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from propagate.crossing import CrossAttention, Memory
from propagate.embeddings import NGrams, TokenEmbedding
from propagate.experts import Experts
from propagate.latent import LatentAttention
from propagate.model import Model, ModelError
from propagate.placement import Block, Placement, S
from propagate.recurrent import LinearAttention
from propagate.start import Start
from propagate.sublayers import Attention

if TYPE_CHECKING:
    import xarray as xr

    from propagate.cells import Settings

PLAIN = "plain"
PLACEMENTS = ("prenorm", "postnorm", "spannorm", "periln")  # a norm before, behind, spanning, on both sides
MASKS = {"bidirectional": False, "causal": True}
MIXTURE = Experts(16, top_k=6, softmax="before", identity=8, gain=3.0)
"""LongCat-Flash's design, small: softmax over all, gates as they are, identity experts, a routed scale."""
SIGMOID = Experts(16, top_k=4, softmax="sigmoid_after", shared=1, gain=2.5)
"""DeepSeek-V3's, small: logistic gates that are made to sum to 1, a shared expert, a routed scale."""
EMBEDDING = TokenEmbedding(256, ngrams=NGrams(longest=3, tables=2, rows=(256, 257, 256, 515)), scale=5**0.5)
"""Five terms of variance 1, over five, times the root of five; two of its tables have as many rows as there are tokens,
and tell no more apart than these.
"""


def predicted(model: Model, settings: Settings, **options: Any) -> xr.Dataset:
    """What `predict` says of one cell's network, from the settings' two ends."""
    return _said(model, settings.start, **options) if options else _limit(model, settings)


@lru_cache(maxsize=64)
def _limit(model: Model, settings: Settings) -> xr.Dataset:
    return _said(model, settings.start)


def _said(model: Model, start: Mapping[str, Any], **options: Any) -> xr.Dataset:
    import propagate as pg

    return pg.predict(model, **start, **options)


def measured(model: Model, settings: Settings, seed: int) -> xr.Dataset:
    """What `simulate` finds of it."""
    import propagate as pg

    return pg.simulate(model, seed=seed, progress=False, **settings.start, **settings.run)


Theory = Callable[..., "xr.Dataset"]  # of a model and settings


def of(**changes: Callable[[Model], Any]) -> Theory:
    """The theory of another network: with these fields, each a function of the right one."""

    def wrong(model: Model, settings: Settings) -> xr.Dataset:
        return predicted(
            dataclasses.replace(model, **{name: change(model) for name, change in changes.items()}), settings
        )

    return wrong


@dataclass(frozen=True)
class Variant:
    """One kind of network in the matrix.

    Attributes:
        wrong: theories that are not its own, by name.
        fields: of its `Model`, from the settings and whether tokens hear earlier ones only; None for none.
        equations: of the placement of a name; None are those it is registered with.
        placements, masks: in which it is verified.
        predicted: from a model, settings and options of `predict` to a prediction; ModelError for options it has not.
        measured: from a model, settings and a seed, to a measurement.
    """

    wrong: Mapping[str, Theory]
    fields: Callable[[Settings, bool], dict[str, Any]] | None = None
    equations: Callable[[str, Settings], Placement] | None = None
    placements: tuple[str, ...] = PLACEMENTS
    masks: tuple[str, ...] = tuple(MASKS)
    predicted: Theory = predicted
    measured: Callable[[Model, Settings, int], xr.Dataset] = measured


def _latent(settings: Settings, causal: bool, **own: Any) -> dict[str, Any]:
    """Entries of one standard deviation; positions where tokens hear earlier ones only, else all tokens are alike."""
    width, head = settings.width, settings.width // settings.heads
    kind = LatentAttention.of_std(
        width**-0.5,
        width,
        heads=settings.heads,
        rope_size=2 * max(head // 4, 1),
        query_rank=max(3 * width // 8, 1),
        key_value_rank=max(width // 4, 1),
        causal=causal,
        rope=10000.0 if causal else None,
        logit_std=settings.logit_std,
        **own,
    )
    return {"attention": kind}


def _corrected(settings: Settings, causal: bool) -> dict[str, Any]:
    return _latent(settings, causal, scale_correction=True)


def _turned_around(model: Model) -> Any:
    assert isinstance(model.attention, LatentAttention)
    return model.attention.with_(scale_correction=not model.attention.scale_correction)


def _experts(mixture: Experts, **own: Any) -> Theory:
    return of(experts=lambda model: dataclasses.replace(mixture, **own))


def _first_dense(settings: Settings, causal: bool) -> dict[str, Any]:
    dense = max(settings.depth // 4, 1)
    return {"experts": MIXTURE, "layers": lambda index: {"experts": None} if index <= dense else {}}


def _recurrent(**own: Any) -> Callable[[Settings, bool], dict[str, Any]]:
    return lambda settings, causal: {"attention": LinearAttention(settings.heads, **own)}


def _retention(settings: Settings, causal: bool) -> dict[str, Any]:
    """A time scale for each head, of 2 to 16 tokens; four times as many heads, since few ones let no cell tell."""
    decay = tuple(1 - 2.0 ** -(1 + head % 4) for head in range(4 * settings.heads))
    return {"attention": LinearAttention(4 * settings.heads, decay=decay)}


def _attention(**own: Any) -> Theory:
    def changed(model: Model) -> Any:
        assert model.attention is not None
        return model.attention.with_(**own)

    return of(attention=changed)


def _windows(settings: Settings, causal: bool) -> dict[str, Any]:
    """Every third block attends to all earlier tokens, the others to the last quarter as many as there are."""
    near = Attention(settings.heads, causal=True, window=max(settings.tokens // 4, 1), logit_std=settings.logit_std)
    return {"layers": lambda index: {} if index % 3 == 0 else {"attention": near}}


class CrossingPreNorm(Placement):
    """T5's decoder: PreNorm, with cross-attention between self-attention and FFN. arXiv:1910.10683."""

    cross: CrossAttention
    citation = "1910.10683"

    def block(self, x: S, block: Block[S]) -> S:
        x = x + block.attention(block.norm(x))
        x = x + block.apply(self.cross, block.norm(x))
        return x + block.ffn(block.norm(x))

    def readout(self, x: S, block: Block[S]) -> S:
        return block.norm(x)


class CrossingPostNorm(Placement):
    """The first Transformer's decoder: a norm after each of three sums. arXiv:1706.03762."""

    cross: CrossAttention
    citation = "1706.03762"

    def block(self, x: S, block: Block[S]) -> S:
        x = block.norm(x + block.attention(x))
        x = block.norm(x + block.apply(self.cross, x))
        return block.norm(x + block.ffn(x))


def _decoder(name: str, settings: Settings) -> Placement:
    kind = {"prenorm": CrossingPreNorm, "postnorm": CrossingPostNorm}[name]
    memory = Memory.alike(settings.tokens, covariance=0.5)
    return kind(CrossAttention(memory, heads=settings.heads, logit_std=settings.logit_std))


def _of_another_memory(model: Model) -> Any:
    """Of tokens that have nothing in common."""
    decoder: Any = model.equations
    apart = Memory.alike(decoder.cross.memory.tokens)
    return dataclasses.replace(decoder, cross=dataclasses.replace(decoder.cross, memory=apart))


def _text(settings: Settings) -> list[int]:
    """Token ids: three words, each three of which follow one another once in 27 tokens."""
    words = "111211312212313213322232333"
    return [7 * int(words[t % 27]) for t in range(settings.tokens)]


def _embedded(embedding: TokenEmbedding) -> Theory:
    def said(model: Model, settings: Settings, **options: Any) -> xr.Dataset:
        from propagate.theory.ngrams import embedded_gram

        gram = embedded_gram(embedding, _text(settings), width=model.width)
        return _said(model, {"gram": gram, "grad_covariance": settings.grad_covariance}, **options)

    return said


def _embed(model: Model, settings: Settings, seed: int) -> xr.Dataset:
    """Every draw has tables of its own."""
    import propagate as pg
    from propagate.montecarlo.ngrams import embed_text

    x = embed_text(EMBEDDING, _text(settings), width=model.width, draws=settings.draws, seed=seed).x
    start: dict[str, Any] = {"inputs": x, "grad_covariance": settings.grad_covariance}
    return pg.simulate(model, seed=seed, progress=False, **start, **settings.run)


def _stacked(settings: Settings, causal: bool) -> dict[str, Any]:
    return {"depth": settings.depth // _copies(settings)}


def _copies(settings: Settings) -> int:
    """As few as make the depth."""
    return next((copies for copies in range(2, settings.depth + 1) if settings.depth % copies == 0), 1)


def _predict_stack(model: Model, settings: Settings, **options: Any) -> xr.Dataset:
    import propagate as pg

    if options:
        raise ModelError(f"{', '.join(options)}: predict_growth has none")
    return pg.predict_growth(model, Start(**settings.start), times=_copies(settings))


def _fresh(model: Model, settings: Settings) -> xr.Dataset:
    said = _predict_stack(model, settings)
    names = [str(name).removesuffix("_fresh") for name in said if str(name).endswith("_fresh")]
    return said.assign({name: said[f"{name}_fresh"] for name in names})


def _simulate_stack(model: Model, settings: Settings, seed: int) -> xr.Dataset:
    import propagate as pg

    run = {name: value for name, value in settings.run.items() if name != "sampler"}  # matrices are kept: dense
    start = Start(**settings.start)
    return pg.simulate_growth(model, start, times=_copies(settings), seed=seed, progress=False, **run)


CORRECTION = {"the other scale correction": of(attention=_turned_around)}
DECAY = {"no decay": _attention(decay=0.999)}
OPENED = DECAY | {"no output gate": _attention(output_gate=None)}
VARIANTS: dict[str, Variant] = {
    PLAIN: Variant({"uniform attention": of(logit_std=lambda model: 0.0)}),
    "latent attention": Variant(CORRECTION, _latent),
    "latent attention, corrected": Variant(CORRECTION, _corrected),
    "experts": Variant(
        {
            "gates that sum to 1": _experts(MIXTURE, softmax="after"),
            "no identity experts": _experts(MIXTURE, identity=0),
        },
        lambda settings, causal: {"experts": MIXTURE},
    ),
    "sigmoid gates": Variant(
        {
            "gates that do not sum to 1": _experts(SIGMOID, softmax="sigmoid"),
            "no shared expert": _experts(SIGMOID, shared=0),
        },
        lambda settings, causal: {"experts": SIGMOID},
    ),
    "first blocks dense": Variant({"experts in every block": of(layers=lambda model: None)}, _first_dense),
    "retention": Variant(DECAY, _retention, masks=("causal",)),
    "scalar decay": Variant(
        OPENED,
        _recurrent(decay=0.5, gate="head", gate_power=4.0, output_gate="silu", normed=("gated",)),
        masks=("causal",),
    ),
    "gated linear attention": Variant(
        OPENED,
        _recurrent(decay=0.5, gate="coordinate", gate_power=1 / 16, output_gate="silu", normed=("heads",)),
        masks=("causal",),
    ),
    "alternating windows": Variant({"no windows": of(layers=lambda model: None)}, _windows, masks=("causal",)),
    "cross-attention": Variant(
        {"another memory": of(placement=_of_another_memory)}, equations=_decoder, placements=PLACEMENTS[:2]
    ),
    "n-grams": Variant(
        {
            "no n-grams": _embedded(dataclasses.replace(EMBEDDING, ngrams=None, scale=1.0)),
            "no collisions": _embedded(
                dataclasses.replace(EMBEDDING, ngrams=NGrams(longest=3, tables=2, rows=10**9 + 7))
            ),
        },
        predicted=_embedded(EMBEDDING),
        measured=_embed,
    ),
    "growth": Variant({"fresh weights": _fresh}, _stacked, predicted=_predict_stack, measured=_simulate_stack),
}
"""By name. `PLAIN` is verified in every placement, activation and mask, the others in those they name, with one
activation.
"""
