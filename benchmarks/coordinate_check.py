"""Does a coordinate check name the matrix whose rate or multiplier is wrong, and stay quiet where none is?

    python benchmarks/coordinate_check.py --out benchmarks/results/coordinate_check.json

Twenty planted mistakes, one matrix each, in networks that follow muP otherwise; and twenty right rules. Networks are a
Transformer in plain torch with an optimiser of its own, a group a matrix (Adam, or SGD at muP's rates for it), and
models of `propagate` under a rule of transfer with one kind's factors wrong.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from timing import provenance
from torch import Tensor, nn

import propagate as pg
from propagate import files
from propagate.coordinates.check import CoordinateCheck, coordinate_check
from propagate.transfer import Factors, MuP, Spectral, Transfer, kind_of

VOCABULARY, TOKENS, HEADS, BASE = 64, 16, 4, 64


class Mistake(NamedTuple):
    """A factor width**exponent too much on the rate, the multiplier or the initial gain of one matrix, or one kind."""

    name: str
    what: str = "rate"
    exponent: float = 0.0

    def of(self, what: str, name: str, ratio: float) -> float:
        return ratio**self.exponent if (what, name) == (self.what, self.name) else 1.0


NONE = Mistake("")


class Scaled(nn.Linear):
    def __init__(self, fan_in: int, fan_out: int, std: float, multiplier: float) -> None:
        super().__init__(fan_in, fan_out, bias=False)
        self.multiplier = multiplier
        nn.init.normal_(self.weight, std=std)

    def forward(self, x: Tensor) -> Tensor:
        return self.multiplier * super().forward(x)


class Block(nn.Module):
    def __init__(self, width: int, matrix: Callable[[str, int, int], Scaled]) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.RMSNorm(width, elementwise_affine=False) for _ in range(2))
        self.q, self.k, self.v, self.o = (matrix(name, width, width) for name in "qkvo")
        self.up, self.down = matrix("up", width, 4 * width), matrix("down", 4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm1(x)
        q, k, v = (m(h).unflatten(-1, (HEADS, -1)).transpose(1, 2) for m in (self.q, self.k, self.v))
        heads = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(heads.transpose(1, 2).flatten(-2))
        return x + self.down(nn.functional.relu(self.up(self.norm2(x))))


class Transformer(nn.Module):
    """Pre-norm, two blocks, muP: the head's multiplier falls with the width."""

    def __init__(self, width: int, mistake: Mistake) -> None:
        super().__init__()
        ratio = width / BASE

        def matrix(name: str, fan_in: int, fan_out: int, std: float = 1.0, multiplier: float = 1.0) -> Scaled:
            gain, scale = (mistake.of(what, name, ratio) for what in ("gain", "multiplier"))
            return Scaled(fan_in, fan_out, std * gain * fan_in**-0.5, multiplier * scale)

        self.embed = nn.Embedding(VOCABULARY, width)
        with torch.no_grad():
            self.embed.weight *= mistake.of("multiplier", "embed", ratio)
        self.blocks = nn.Sequential(
            *(Block(width, lambda n, i, o, k=k: matrix(f"blocks.{k}.{n}", i, o)) for k in range(2))
        )
        self.norm = nn.RMSNorm(width, elementwise_affine=False)
        self.head = matrix("head", width, VOCABULARY, std=ratio**0.5, multiplier=1 / ratio)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.embed(ids))))


def groups(module: nn.Module, width: int, mistake: Mistake, lr: float, *, sgd: bool) -> list[dict[str, Any]]:
    """muP's rate for every matrix: of Adam 1 / width inside blocks, of SGD the width outside of them."""
    ratio, found = width / BASE, []
    for name, parameter in module.named_parameters():
        inside = name.startswith("blocks")
        rule = (1.0 if inside else ratio) if sgd else (1 / ratio if inside else 1.0)
        wrong = mistake.of("rate", name.removesuffix(".weight"), ratio)
        found.append({"params": [parameter], "lr": lr * rule * wrong})
    return found


def adam(mistake: Mistake) -> Any:
    return lambda module, width: torch.optim.Adam(groups(module, width, mistake, 2e-3, sgd=False))


def sgd(mistake: Mistake) -> Any:
    return lambda module, width: torch.optim.SGD(groups(module, width, mistake, 0.1, sgd=True), lr=0.1)


def of_torch(mistake: Mistake, optimizer: Any, seed: int, widths: tuple[int, ...], draws: int) -> CoordinateCheck:
    def tokens(draw: int) -> Tensor:
        generator = torch.Generator().manual_seed(97 * seed + draw)
        return torch.randint(VOCABULARY, (1, TOKENS + 1), generator=generator)

    def loss(output: tuple[Tensor, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(output[0].flatten(0, 1), output[1].flatten())

    class WithTargets(Transformer):
        def forward(self, ids: Tensor) -> Any:
            return super().forward(ids[:, :-1]), ids[:, 1:]

    settings = {"inputs": tokens, "loss": loss, "optimizer": optimizer(mistake), "steps": 1}
    return coordinate_check(lambda w: WithTargets(w, mistake), widths=widths, draws=draws, seed=seed, **settings)


@dataclass(frozen=True)
class Wrong:
    """A rule with one kind's factors wrong."""

    rule: Transfer
    mistake: Mistake

    def factors(self, kind: Any, width: float, depth: float) -> Factors:
        right = self.rule.factors(kind, width, depth)
        rate, multiplier = (self.mistake.of(what, kind, width) for what in ("rate", "multiplier"))
        return replace(right, lr=right.lr * rate, multiplier=right.multiplier * multiplier)


def of_model(
    placement: str, rule: Transfer, optimizer: Any, seed: int, widths: tuple[int, ...], draws: int, **fields: Any
) -> CoordinateCheck:
    loss = pg.Linear() if isinstance(optimizer, pg.Muon) else pg.CrossEntropy(VOCABULARY)
    model = pg.Model(placement, depth=2, tokens=8, heads=4, **fields)
    settings = {"loss": loss, "optimizer": optimizer, "steps": 1, "by": "torch"}
    return coordinate_check(model, transfer=rule, widths=widths, draws=draws, seed=seed, **settings)


IN_TORCH = [
    Mistake("blocks.0.q", "rate", 1.0),
    Mistake("blocks.1.k", "rate", 0.5),
    Mistake("blocks.0.v", "rate", -0.5),
    Mistake("blocks.1.o", "rate", 1.0),
    Mistake("blocks.0.up", "rate", -1.0),
    Mistake("blocks.1.down", "rate", 0.5),
    Mistake("embed", "rate", -1.0),
    Mistake("head", "rate", -1.0),
    Mistake("blocks.0.o", "multiplier", 0.5),
    Mistake("blocks.1.up", "multiplier", -0.5),
    Mistake("head", "multiplier", 1.0),
    Mistake("blocks.1.v", "gain", 0.5),
]
BY_SGD = [Mistake("blocks.1.up", "rate", 1.0), Mistake("embed", "rate", -1.0), Mistake("head", "rate", -1.0)]
IN_MODELS = [
    ("prenorm", pg.Adam(2e-3), MuP(), Mistake("embedding", "rate", -1.0)),
    ("spannorm", pg.Adam(2e-3), MuP(), Mistake("unembedding", "multiplier", 0.5)),
    ("postnorm", pg.Sign(2e-3), MuP(), Mistake("branch_out", "rate", 0.5)),
    ("spannorm", pg.Adam(2e-3), MuP(), Mistake("hidden", "rate", 1.0)),
    ("prenorm", pg.Muon(2e-3), Spectral(), Mistake("branch_out", "multiplier", 0.5)),
]
RIGHT = [
    *(("torch", adam, seed) for seed in range(5)),
    *(("torch", sgd, seed) for seed in range(3)),
    *(("prenorm", pg.Adam(2e-3), MuP(), seed, {}) for seed in range(2)),
    *((placement, pg.Adam(2e-3), MuP(), 0, {"activation": "swiglu"}) for placement in ("spannorm", "postnorm")),
    ("periln", pg.Adam(2e-3), MuP(), 0, {"causal": True}),
    ("deepnorm", pg.Adam(2e-3), MuP(), 0, {}),
    ("prenorm", pg.Sign(2e-3), MuP(), 0, {"activation": "gelu"}),
    ("spannorm", pg.Sign(2e-3), MuP(), 1, {"norm": "layer"}),
    ("prenorm", pg.Muon(2e-3), Spectral(), 0, {}),
    ("spannorm", pg.Muon(2e-3), Spectral(), 1, {"activation": "swiglu"}),
    ("prenorm", pg.Muon(2e-3, scale="rms"), Spectral(matched=True), 0, {}),
    ("postnorm", pg.Muon(2e-3), Spectral(), 0, {}),
]


def runs(widths: tuple[int, ...], draws: int) -> Iterator[tuple[str, str, Callable[[], CoordinateCheck]]]:
    """What is tried, in words; which matrix is wrong, "" for none; and the check."""
    for seed, mistake in enumerate(IN_TORCH):
        yield f"torch, Adam: {mistake}", mistake.name, lambda m=mistake, s=seed: of_torch(m, adam, s, widths, draws)
    for seed, mistake in enumerate(BY_SGD):
        yield f"torch, SGD: {mistake}", mistake.name, lambda m=mistake, s=seed: of_torch(m, sgd, s, widths, draws)
    for seed, (placement, optimizer, rule, mistake) in enumerate(IN_MODELS):
        yield (
            f"{placement}, {optimizer}, {rule}: {mistake}",
            mistake.name,
            lambda p=placement, o=optimizer, r=Wrong(rule, mistake), s=seed: of_model(p, r, o, s, widths, draws),
        )
    for right in RIGHT:
        if right[0] == "torch":
            _, optimizer, seed = right
            yield (
                f"torch, {optimizer.__name__}, seed {seed}",
                "",
                lambda o=optimizer, s=seed: of_torch(NONE, o, 100 + s, widths, draws),
            )
        else:
            placement, optimizer, rule, seed, fields = right
            yield (
                f"{placement}, {optimizer}, {rule}, {fields}, seed {seed}",
                "",
                lambda p=placement, o=optimizer, r=rule, s=seed, f=fields: of_model(p, r, o, s, widths, draws, **f),
            )


def names(check: CoordinateCheck, wrong: str) -> bool:
    """Whether the check names the wrong matrix, or one of the wrong kind, first and no matrix beside it."""
    found = [one.name.removesuffix(".weight") for one in check.departures if one.quantity != "change"]
    kinds = [kind_of(name) for name in found]
    return bool(found) and (set(found) == {wrong} or set(kinds) == {wrong})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 128, 256])
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--some", type=int, default=1, help="only every so many of the runs")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)

    rows = []
    for what, wrong, run in list(runs(tuple(options.widths), options.draws))[:: options.some]:
        began = time.perf_counter()
        check = run()
        row = {"what": what, "wrong": wrong, "verdict": check.verdict, "named": names(check, wrong) if wrong else None}
        row |= {"departing": [one.name for one in check.departures], "says": check.summary}
        rows.append(row | {"seconds": round(time.perf_counter() - began, 1)})
        print(*rows[-1].values(), sep=" | ", flush=True)
    planted, right = ([row for row in rows if bool(row["wrong"]) == wrong] for wrong in (True, False))
    summary = {
        **provenance("CPU", ("numpy", "scipy", "torch")),
        "planted": len(planted),
        "named": sum(row["named"] for row in planted),
        "right": len(right),
        "false_alarms": sum(row["verdict"] == "disagrees" for row in right),
        "as_wanted": sum(row["verdict"] == "agrees" for row in right),
    }
    print({key: summary[key] for key in ("planted", "named", "right", "false_alarms", "as_wanted")})
    if options.out:
        files.replace(options.out, json.dumps({"summary": summary, "rows": rows}, indent=1).encode())


if __name__ == "__main__":
    main()
