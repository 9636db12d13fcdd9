"""What the experiments of training train: architectures, sizes and rates, in the order in which they are measured."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import propagate as pg

RATES = tuple(1.25e-4 * 2**k for k in range(9))
"""Peak learning rates, by factors of 2: 1.25e-4 to 3.2e-2."""
SEEDS = (0, 1, 2)
MANY_SEEDS = tuple(range(100, 120))
"""Of the one cell whose scatter over seeds is measured."""
EXPERTS = pg.Experts(count=4, top_k=2)
OPTIMIZER = pg.Adam(lr=1e-3, betas=(0.9, 0.95), decay=0.1)
SCATTER_RATE = 1e-3


@dataclass(frozen=True)
class Size:
    """How large everything is that is the same for all cells of a plan.

    Attributes:
        width, heads, tokens: of networks, where a cell has none of its own.
        batch: sequences a step.
        steps: of training; those of transfer are fewer.
        depths: shallow, the main one, and deeper ones.
        widths: of transfer, the smallest being the base of the rules.
        transfer_depth, transfer_steps: of it.
        rates, seeds: of sweeps.
        rise: share of the steps with a rising rate, where there is one.
    """

    width: int = 128
    heads: int = 4
    tokens: int = 64
    batch: int = 16
    steps: int = 300
    depths: tuple[int, ...] = (12, 24, 48, 96)
    widths: tuple[int, ...] = (128, 256, 512, 1024)
    transfer_depth: int = 2
    transfer_steps: int = 150
    rates: tuple[float, ...] = RATES
    seeds: tuple[int, ...] = SEEDS
    rise: float = 0.1


FULL = Size()
SMALL = Size(
    width=32,
    heads=2,
    tokens=16,
    batch=8,
    steps=60,
    depths=(2, 4, 6, 8),
    widths=(16, 32, 64),
    transfer_steps=40,
    rates=RATES[2::3],
    seeds=(0, 1),
)
"""What a small machine does within minutes: to try the scripts, not to learn from."""


@dataclass(frozen=True)
class Cell:
    """One architecture, setting and text, to be trained at every rate with every seed.

    Attributes:
        placement: of norms.
        exponent: of ScaleInit; 0 is none.
        depth: blocks.
        warmup: share of the steps.
        width: of the stream.
        experts: whether 2 of 4 experts of half the hidden width stand in place of each FFN.
        rule: of transfer from the smallest width; "" where there is none.
        text: "text", or "shuffled" tokens of the same frequencies.
        rates, seeds: trained.
    """

    placement: str
    exponent: float
    depth: int
    warmup: float
    width: int
    rates: tuple[float, ...]
    seeds: tuple[int, ...]
    experts: bool = False
    rule: str = ""
    text: str = "text"

    @property
    def name(self) -> str:
        """Under which it is kept.

        Example:
            >>> Cell("spannorm", 0.5, 24, 0.1, 128, (1e-3,), (0,)).name
            'spannorm+0.5 depth=24 warmup=0.1 width=128'
        """
        marks = f"depth={self.depth}", f"warmup={self.warmup:g}", f"width={self.width}", self.rule
        kinds = "experts" * self.experts, self.text * (self.text != "text")
        return " ".join(filter(None, (self.architecture, *marks, *kinds)))

    @property
    def architecture(self) -> str:
        """Placement and exponent."""
        return f"{self.placement}+{self.exponent:g}" if self.exponent else self.placement

    def model(self, size: Size) -> pg.Model:
        """The network: causal, rotary positions, SwiGLU; with experts as many active weights as without."""
        return pg.Model(
            self.placement,
            depth=self.depth,
            width=self.width,
            heads=size.heads * self.width // size.width,
            tokens=size.tokens,
            causal=True,
            rope=10000.0,
            activation="swiglu",
            ffn_ratio=1.0 if self.experts else 2.0,
            experts=EXPERTS if self.experts else None,
            scaling=pg.ScaleInit(self.exponent) if self.exponent else None,
        )


SCALED = (("prenorm", 0.0), ("prenorm", 0.5), ("postnorm", 0.5), ("spannorm", 0.5))
UNSCALED = (("postnorm", 0.0), ("spannorm", 0.0))
FAMILY = (
    *(("spannorm", 0.25), ("spannorm", 1.0), ("postnorm", 0.25), ("postnorm", 1.0)),
    *(("prenorm", 0.25), ("prenorm", 1.0)),
)
OTHERS = tuple((name, 0.0) for name in ("periln", "deepnorm", "layernormscaling", "keel"))
OPTIMA = ("standard", "mup", "longcat")


def cells(part: str, size: Size) -> list[Cell]:
    """The cells of a part, most important first.

    Parts: "main", "shuffled", "scatter", "shallow", "deep", "deepest", "unscaled" (at those depths), "sudden" (no
    warm-up), "experts", "transfer", "transfer_experts".

    Example:
        >>> [len(cells(part, FULL)) for part in ("main", "shuffled", "scatter", "deep", "unscaled", "sudden")]
        [16, 3, 1, 4, 6, 6]
    """
    main = replace(
        Cell("prenorm", 0.0, size.depths[1], size.rise, size.width, size.rates, size.seeds),
    )

    def of(kinds: Any, **changes: Any) -> list[Cell]:
        return [replace(main, placement=placement, exponent=exponent, **changes) for placement, exponent in kinds]

    few = size.rates[1:7:2]
    if part == "main":
        return of((*SCALED, *UNSCALED, *FAMILY, *OTHERS))
    if part == "shuffled":
        return of(SCALED[1:], text="shuffled", rates=few)
    if part == "scatter":
        return of(SCALED[3:], rates=(SCATTER_RATE,), seeds=MANY_SEEDS[: 20 if size is FULL else 3])
    shallow, _, deep, deepest = size.depths
    if part in ("shallow", "deep", "deepest"):
        return of(SCALED, depth={"shallow": shallow, "deep": deep, "deepest": deepest}[part])
    if part == "unscaled":
        return [one for depth in (shallow, deep, deepest) for one in of(UNSCALED, depth=depth, rates=few)]
    if part == "sudden":
        return of((*SCALED, *UNSCALED), warmup=0.0)
    if part == "experts":
        return [one for sparse in (False, True) for one in of(SCALED[1:], depth=size.depths[0], experts=sparse)][::-1]
    if part in ("transfer", "transfer_experts"):
        return list(_transfer(part, main, size))
    raise ValueError(part)


def _transfer(part: str, main: Cell, size: Size) -> Iterator[Cell]:
    """At the smallest width rules change nothing: it is trained once, under "mup"."""
    sparse = part == "transfer_experts"
    least = size.widths[0]
    for width in size.widths[: -1 if sparse else None]:
        for placement, exponent in (("spannorm", 0.5), ("prenorm", 0.5)):
            for rule in OPTIMA[1:2] if width == least else OPTIMA[: 2 if sparse else 3]:
                one = replace(main, placement=placement, exponent=exponent, depth=size.transfer_depth, width=width)
                yield replace(one, rule=rule, experts=sparse)
