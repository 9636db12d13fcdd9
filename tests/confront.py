"""Tables for confronting what was proved with random networks of several widths, through `propagate.compare`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import sympy as sp
import xarray as xr
from numpy.typing import NDArray

import propagate as pg
from proofs.names import unfold
from proofs.vocabulary import Proposition, step_of
from propagate.montecarlo.backend import choose_backend
from propagate.montecarlo.blocks import block_of, read
from propagate.montecarlo.normals import Normals
from propagate.montecarlo.run import COTANGENT_SITE, INPUT_SITE
from propagate.montecarlo.samplers import dense
from propagate.montecarlo.starts import exchangeable_root, with_gram
from propagate.theory.finite.allowances import allowances

Floats = NDArray[np.float64]
HOST = choose_backend("numpy")
WIDTHS = (64, 128, 256)
DRAWS = {64: 200, 128: 100, 256: 60}
TOKENS = 4


class BareFFN(pg.Placement):
    """The FFN and nothing else."""

    def block(self, x: Any, block: Any) -> Any:
        return block.ffn(x)


class BareAttention(pg.Placement):
    """Attention and nothing else."""

    def block(self, x: Any, block: Any) -> Any:
        return block.attention(x)


class BareSum(pg.Placement):
    """alpha x + FFN(x), with a norm after it if asked."""

    alpha: float = 1.5
    normed: bool = False

    def block(self, x: Any, block: Any) -> Any:
        z = self.alpha * x + block.ffn(x)
        return block.norm(z) if self.normed else z


def formula(proposition: Proposition, name: str, side: str = "right") -> Callable[..., Any]:
    """A side of a proved step as a numeric function of its symbols, by name."""
    expression = unfold(getattr(step_of(proposition, name), side))
    symbols = sorted(expression.free_symbols, key=str)
    stand_ins = [sp.Dummy() for _ in symbols]
    function = sp.lambdify(stand_ins, expression.subs(dict(zip(symbols, stand_ins, strict=True))), "scipy")

    def evaluate(**values: Any) -> Any:
        return function(*(values[str(s)] for s in symbols))

    return evaluate


def said(width: int = 0, skip: Any = None, **columns: Any) -> xr.Dataset:
    """A prediction over `block`. With `skip`, the gain of each block's skip path, the package's stated allowance."""
    table = xr.Dataset({name: ("block", np.atleast_1d(np.asarray(values, float))) for name, values in columns.items()})
    if skip is None:
        return table
    blocks = table.sizes["block"]
    gains = np.append(np.cumprod(np.broadcast_to(skip, blocks - 1)[::-1])[::-1], 1.0)
    ones = xr.DataArray(np.ones(blocks), dims="block")
    needed = ("variance", "deviation", "grad_variance", "grad_deviation")
    stated = {name: table.get(name, ones).to_numpy() for name in needed}
    model = pg.Model("prenorm", depth=blocks - 1, width=width, tokens=TOKENS, heads=1, logit_std=0.0)
    found = allowances({**stated, "skip_gain": gains}, model)
    return table.assign({k: ("block", v) for k, v in found.items() if k.removesuffix("_allowance") in table})


def seen(columns: Mapping[str, Floats]) -> xr.Dataset:
    """A measurement from arrays of shape (draws, rows)."""
    draws = len(next(iter(columns.values())))
    table = {name: ("block", values.mean(axis=0)) for name, values in columns.items()}
    errors = {f"{name}_se": ("block", values.std(axis=0, ddof=1) / np.sqrt(draws)) for name, values in columns.items()}
    return xr.Dataset(table | errors, attrs={"draws": draws})


def network(placement: Any, depth: int, width: int, seed: int, start: Mapping[str, float], **fields: Any) -> xr.Dataset:
    """A simulated table, with uniform attention unless said otherwise; more draws for a single block."""
    fields = {"tokens": TOKENS, "logit_std": 0.0, "ffn_ratio": 2.0, "heads": 1} | fields
    model = pg.Model(placement, depth=depth, width=width, **fields)
    return pg.simulate(
        model,
        draws=DRAWS[width] * (6 if depth == 1 and width < 256 else 2 if depth == 1 else 1),
        seed=seed,
        backend="numpy",
        progress=False,
        **start,
    )


def arithmetic(table: xr.Dataset) -> xr.Dataset:
    """Without the mean logarithms: what is exact at every width is exact for arithmetic means."""
    return table.drop_vars([name for name in table if str(name).startswith("log_")])


def agrees(prediction: xr.Dataset, measurement: xr.Dataset) -> bool:
    """The verdict; |z| < 4 throughout. The z-scores are printed for the record (pytest -rP shows them)."""
    result = pg.compare(prediction, measurement)
    print({str(k): round(float(v), 2) for k, v in zip(result.quantity.values, result.worst_z.values, strict=True)})
    return bool(result.attrs["verdict"] != "disagrees")


def slope(sizes: Sequence[float], biases: Sequence[float]) -> float:
    """Exponent with which a bias depends on a size, by regression of logarithms."""
    return float(np.polyfit(np.log(np.asarray(sizes)), np.log(np.abs(np.asarray(biases))), 1)[0])


def arrays(draws: int, width: int, seed: int, variance: float, covariance: float, tokens: int = TOKENS) -> Any:
    """A sampler of linear maps, and inputs and cotangents with exact second moments (both with these)."""
    normals = Normals(HOST, seed, range(draws))
    root = exchangeable_root(variance, covariance, tokens)
    return dense(normals), with_gram(root, normals, INPUT_SITE, width), with_gram(root, normals, COTANGENT_SITE, width)


def token_gradients(model: pg.Model, draws: int, seed: int, covariance: float) -> tuple[Floats, Floats]:
    """Token by token: correlations with the first token (draws, tokens, depth + 1), and gradient mean squares."""
    normals = Normals(HOST, seed, range(draws))
    x = with_gram(exchangeable_root(1.0, covariance, model.tokens), normals, INPUT_SITE, model.width)
    correlations, pulls = [(x * x[:, :1]).mean(axis=-1)], []
    for index in range(1, model.depth + 1):
        x, pull = read(model.equations.block, block_of(model, HOST, dense(normals), index), x)
        correlations.append((x * x[:, :1]).mean(axis=-1))
        pulls.append(pull)
    g = with_gram(np.eye(model.tokens), normals, COTANGENT_SITE, model.width)
    gradients = [(g * g).mean(axis=-1)]
    while pulls:
        g = pulls.pop()(g)
        gradients.append((g * g).mean(axis=-1))
    return np.stack(correlations, axis=-1), np.stack(gradients[::-1], axis=-1)
