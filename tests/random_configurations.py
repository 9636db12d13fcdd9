"""Random networks, starts and options for every verb of the theory, and what may be wrong with an answer."""

from __future__ import annotations

import math
import random
import warnings
from collections import Counter
from typing import Any, NamedTuple

import numpy as np

import propagate as pg
from propagate.outline import outline
from tests.own_placements import OWN


class Case(NamedTuple):
    """Keyword arguments of a Model, a start, and what else is asked of `predict`."""

    model: dict[str, Any]
    start: dict[str, Any]
    asked: dict[str, Any]
    verb: str


def configuration(rng: random.Random) -> Case:
    """Any combination of fields, starts at both ends of what is allowed, and any options: a refusal is an answer."""
    tokens, heads = rng.choice([1, 2, 3, 8, 16]), rng.choice([1, 2, 4, 8])
    model: dict[str, Any] = {
        "placement": rng.choice(OWN),
        "depth": rng.choice([1, 2, 5]),
        "width": heads * rng.choice([1, 2, 4, 8, 16, 64]),
        "heads": heads,
        "tokens": tokens,
        "activation": rng.choice(["linear", "relu", "squared_relu", "gelu", "silu", "tanh", "swiglu", "geglu"]),
        "norm": rng.choice(["rms", "layer"]),
        "logit_std": rng.choice([0.0, 0.3, 1.0, 2.0, 4.0]),
        "causal": rng.random() < 0.25,
        "ffn_ratio": rng.choice([0.5, 2.0, 4.0]),
    }
    if rng.random() < 0.25:
        softmax, count = rng.choice(["before", "after", "sigmoid", "sigmoid_after"]), rng.choice([1, 2, 4, 8])
        identity, std = rng.choice([0, 0, 2]), rng.choice([0.3, 1.0, 2.0])
        model["experts"] = pg.Experts(count, 1, softmax=softmax, identity=identity, router_std=std)
    if rng.random() < 0.2:
        model["dropout"] = rng.choice([0.1, 0.5, 0.9])
    if rng.random() < 0.2:
        model["normed"] = tuple(rng.sample(["query", "key", "value", "heads", "hidden"], rng.choice([1, 2])))
    if rng.random() < 0.15:
        model["rope"] = 10000.0
    if rng.random() < 0.3:
        model["scaling"] = pg.ScaleInit(exponent=rng.choice([-0.5, 0.25, 0.5, 1.0, 2.0]))
    if rng.random() < 0.1:
        model[rng.choice(["value_gain", "attention_gain", "ffn_gain"])] = rng.choice([0.0, 0.1, 3.0])
    if rng.random() < 0.1:
        model["key_value_heads"] = rng.choice([1, heads])
    variance, lowest = rng.choice([1e-6, 1e-3, 0.1, 1.0, 10.0, 100.0]), -1 / (tokens - 1) if tokens > 1 else 0.0
    start = {"variance": variance, "covariance": variance * rng.choice([0.0, 0.3, 0.9, 1.0, lowest, lowest / 2])}
    start["grad_variance"] = grad = rng.choice([1.0, 1.0, 1e-4, 0.0])
    start["grad_covariance"] = grad * rng.choice([0.0, 0.5, 1.0, lowest])
    if rng.random() < 0.1:
        rank = rng.choice([1, tokens, 3 * tokens])
        rows = np.random.default_rng(rng.randrange(10**6)).standard_normal((tokens, rank))
        start["gram" if rng.random() < 0.7 else "grad_gram"] = variance * rows @ rows.T / rank
    asked: dict[str, Any] = {}
    include = {name for name, share in (("param_grad", 0.2), ("fluctuations", 0.1)) if rng.random() < share}
    if rng.random() < 0.3:
        asked["through_readout"] = True
    if rng.random() < 0.04 and tokens <= 8:
        include.add("bias")
    if include:
        asked["include"] = include
    if rng.random() < 0.1:
        asked["head_size"] = math.inf
    return Case(model, start, asked, "predict_calls" if rng.random() < 0.15 else "predict")


def faults(seed: int, count: int, *, quick: bool) -> list[tuple[str, Case]]:
    """What is wrong with the answers to random cases, with each case.

    `quick` leaves out what takes a second or more: tables of finite heads, and samples of more than a few tokens.
    """
    rng, found = random.Random(seed), []
    for _ in range(count):
        case = configuration(rng)
        if quick:
            case.asked["head_size"] = math.inf
            slow = {"bias"} | ({"fluctuations"} if case.model["tokens"] > 3 else set())
            case.asked["include"] = case.asked.get("include", set()) - slow
        what = fault(case)
        if what:
            found.append((what, case))
    return found


def fault(case: Case) -> str | None:
    """What is wrong with the answer, if anything; a refusal or a warning in words is an answer."""
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            model = pg.Model(**case.model)
            table = getattr(pg, case.verb)(model, **case.start, **case.asked)
    except pg.ModelError:
        return None
    except Exception as error:  # whatever it is, it is what the test looks for
        return f"{type(error).__name__}: {str(error)[:70]}"
    for warned in told:
        if not issubclass(warned.category, UserWarning):
            return f"{warned.category.__name__}: {str(warned.message)[:70]}"
    return not_finite(table, model)


def not_finite(table: Any, model: pg.Model) -> str | None:
    """The name of a quantity that is not a number where it exists."""
    for name, column in table.data_vars.items():
        if "stream" in column.dims:  # between the ends nothing is joined
            column = column.drop_sel(stream="joined")
        if "matrix" in column.dims or "call" in column.dims:  # the embedding has neither
            column = column.isel(block=slice(1, None))
        if "call" in column.dims:  # a block need not have every call
            column = column.where(made(column, model), 0.0)
        if str(name).startswith("log_") and model.uneven:  # a router may leave exactly nothing, which has no logarithm
            continue
        if not np.isfinite(column.to_numpy()).all():
            return f"not finite: {name}"
    return None


def made(column: Any, model: pg.Model) -> np.ndarray:
    """Whether a block makes a call, (block, call) as the column has them."""
    names = []
    for index in column.block.to_numpy():
        verbs = Counter[str]()
        names.append(set())
        for call in outline(model.equations, model.depth, int(index)):
            verbs[call.verb] += 1
            names[-1].add(f"{call.verb}{verbs[call.verb]}")
    return np.array([[call in found for call in column.call.to_numpy()] for found in names])
