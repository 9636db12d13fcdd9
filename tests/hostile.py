"""Values that nobody should give, for every option of every public callable; and what a call makes of one.

A call must answer, with numbers, or raise a ModelError of one line, within seconds and little memory.
"""

from __future__ import annotations

import datetime
import importlib.util
import inspect
import math
import multiprocessing
import os
import resource
import signal
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import sympy
import xarray as xr

import propagate as pg
from propagate.cells import Settings, cells_of

SECONDS, LONGER, BYTES = 5.0, 180.0, 2**30
SIZE = {"depth": 1, "width": 8, "tokens": 2, "heads": 1}


class Unprintable:
    def __repr__(self) -> str:
        raise RuntimeError("no repr")


class NoArray:
    def __array__(self, *_: object, **__: object) -> np.ndarray:
        raise RuntimeError("no array")


class Crossed(pg.Placement):
    """Attends to a memory."""

    def block(self, x: Any, block: Any) -> Any:
        return x + block.apply(pg.CrossAttention(pg.Memory.alike(2), heads=1), x)


VALUES: dict[str, Any] = {
    "None": None,
    "True": True,
    "0": 0,
    "-1": -1,
    "3": 3,
    "1.5": 1.5,
    "-0.5": -0.5,
    "nan": math.nan,
    "inf": math.inf,
    "1e300": 1e300,
    "1e-300": 1e-300,
    "denormal": 5e-324,
    "10^12": 10**12,
    "10^30": 10**30,
    "10^400": 10**400,
    "-10^400": -(10**400),
    "10^5000": 10**5000,
    "complex": 1j,
    "empty": "",
    "text": "nonesuch",
    "number as text": "1",
    "lines": "two\nlines",
    "code": "__import__('os').abort()",
    "long text": "x" * 10**6,
    "bytes": b"relu",
    "list": [1],
    "nested": [[1.0, 2.0], [3.0]],
    "mapping": {"depth": 1},
    "empty mapping": {},
    "set": {"calls", "x"},
    "array": np.array([1.0, 2.0]),
    "nan array": np.full((2, 2), np.nan),
    "complex array": np.eye(2) * 1j,
    "masked array": np.ma.masked_array(np.eye(2), mask=np.eye(2)),
    "objects": np.array([None, "x"], dtype=object),
    "nan of NumPy": np.float64("nan"),
    "true of NumPy": np.True_,
    "range": range(10**12),
    "table": xr.Dataset({"x": 1.0}),
    "date": datetime.date(2026, 1, 1),
    "type": int,
    "function": abs,
    "module": math,
    "unprintable": Unprintable(),
    "no array": NoArray(),
}


def _tables() -> tuple[xr.Dataset, xr.Dataset]:
    model = pg.Model("postnorm", **SIZE)
    return pg.predict(model), pg.simulate(model, draws=3, backend="numpy")


def callables() -> dict[str, tuple[Callable[..., Any], dict[str, Any]]]:
    """Every public callable by name, with arguments that are right."""
    model, (said, seen) = pg.Model("postnorm", **SIZE), _tables()
    small = Settings(**SIZE, draws=3, backend="numpy")
    cells = cells_of(["postnorm"], ["relu"], ["bidirectional"], ["none"])
    mixture = pg.Experts(2, identity=2, softmax="before")
    return {
        "Model": (pg.Model, {"placement": "postnorm", **SIZE}),
        "Attention": (pg.Attention, {}),
        "LatentAttention": (pg.LatentAttention, {"head_size": 4, "rope_size": 2, "value_size": 4, "key_value_rank": 4}),
        "CrossAttention": (pg.CrossAttention, {"memory": np.eye(3)}),
        "Memory": (pg.Memory.alike, {"tokens": 3, "covariance": 0.5}),
        "memory_of": (pg.memory_of, {"encoder": model}),
        "memory_gradient": (pg.memory_gradient, {"decoder": pg.Model(Crossed(), **SIZE)}),
        "LinearAttention": (pg.LinearAttention, {"decay": 0.9}),
        "configuration": (pg.configuration, {"name": "llama-3-8b"}),
        "FFN": (pg.FFN, {}),
        "Norm": (pg.Norm, {}),
        "Activation": (pg.Activation, {"name": "own", "expression": sympy.tanh(sympy.Symbol("z", real=True))}),
        "Experts": (pg.Experts, {"count": 4}),
        "ScaleInit": (pg.ScaleInit, {}),
        "Gains": (_used_gains, {}),
        "Start": (_used_start, {}),
        "SGD": (pg.SGD, {"lr": 0.1}),
        "Sign": (pg.Sign, {"lr": 0.1}),
        "Adam": (pg.Adam, {"lr": 0.1}),
        "Muon": (pg.Muon, {"lr": 0.1}),
        "CrossEntropy": (pg.CrossEntropy, {"vocabulary": 8}),
        "NGrams": (pg.NGrams, {}),
        "TokenEmbedding": (pg.TokenEmbedding, {"vocabulary": 8}),
        "predict": (pg.predict, {"model": model}),
        "diagnose": (pg.diagnose, {"model": model, "loss": pg.CrossEntropy(8)}),
        "active_experts": (pg.active_experts, {"experts": mixture}),
        "balance_gradient": (pg.balance_gradient, {"experts": mixture, "tokens": 4}),
        "balanced": (pg.balanced, {"experts": mixture, "expected": 1.0}),
        "predict_balance": (pg.predict_balance, {"experts": mixture, "expected": 1.0, "steps": 2}),
        "simulate_balance": (pg.simulate_balance, {"experts": mixture, "expected": 1.0, "steps": 2}),
        "predict_calls": (pg.predict_calls, {"model": model}),
        "predict_step": (pg.predict_step, {"model": model, "optimizer": pg.Adam(0.1)}),
        "predict_change": (pg.predict_change, {"model": model, "optimizer": pg.SGD(0.1)}),
        "grown": (pg.grown, {"model": model}),
        "predict_growth": (pg.predict_growth, {"model": model}),
        "simulate_growth": (pg.simulate_growth, {"model": model, "draws": 2, "backend": "numpy"}),
        "simulate": (pg.simulate, {"model": model, "draws": 2, "backend": "numpy"}),
        "simulate_steps": (
            pg.simulate_steps,
            {"model": model, "optimizer": pg.SGD(0.1), "steps": 1, "draws": 2, "backend": "numpy"},
        ),
        "compare": (pg.compare, {"prediction": said, "measurement": seen}),
        "audit": (pg.audit, {"names": ["C3"]}),
        "report": (pg.report, {"table": said}),
        "first_divergence": (pg.first_divergence, {"prediction": said, "measurement": seen}),
        "GradientGain": (pg.GradientGain, {"below": 2.0}),
        "StreamGain": (pg.StreamGain, {"below": 2.0}),
        "Distinct": (pg.Distinct, {"above": 0.1}),
        "AttentionShare": (pg.AttentionShare, {"above": 0.1}),
        "FirstStep": (pg.FirstStep, {"below": 1.0}),
        "Growth": (pg.Growth, {"of": pg.Distinct(), "below": 1.0}),
        "solve": (
            pg.solve,
            {"model": model, "unknown": "ffn_gain", "conditions": [pg.StreamGain(below=2.0)], "between": (0.5, 1)},
        ),
        "sweep": (pg.sweep, {"model": model, "over": {"depth": (1,)}}),
        "recursion": (pg.recursion, {"placement": "postnorm"}),
        "start_of": (pg.start_of, {"measured": seen}),
        "equations": (pg.equations, {"placement": "postnorm"}),
        "citation": (pg.citation, {"name": "postnorm"}),
        "placement": (pg.placement, {"name": "postnorm"}),
        "validity": (pg.validity, {"operator": "ffn"}),
        "process_pool": (_ended_pool, {"workers": 1}),
        "plot": (_plot, {"table": said}),
        "corpus": (pg.corpus, {"source": ["in the beginning", "was the word"]}),
        "Corpus": (pg.Corpus, dict(vars(_text()))),
        "verify": (pg.verify, {"cells": cells, "settings": small}),
        **_of_torch(),
    }


def _of_torch() -> dict[str, tuple[Callable[..., Any], dict[str, Any]]]:
    """Those that need torch, where it is there."""
    if importlib.util.find_spec("torch") is None:
        return {}
    import torch

    torch.set_num_threads(1)  # threads of a parent are not there in its forks
    layer = lambda: torch.nn.TransformerEncoderLayer(8, 1, 16, batch_first=True)  # noqa: E731
    module, x = torch.nn.Sequential(layer(), layer()), torch.ones(1, 2, 8)
    language = {"model": pg.Model("postnorm", causal=True, **SIZE), "vocabulary": 8}
    trained = {"corpus": _text(), "optimizer": pg.SGD(0.1), "steps": 1, "batch": 1}
    return {
        "train": (pg.train, {"model": pg.Model("postnorm", causal=True, **SIZE), **trained}),
        "trace": (pg.trace, {"module": module, "inputs": x}),
        "describe": (pg.describe, {"module": module, "tokens": 2}),
        "build": (pg.build, {"model": pg.Model("postnorm", **SIZE)}),
        "build_language_model": (pg.build_language_model, language),
        "grow": (pg.grow, {"module": pg.build(pg.Model("postnorm", **SIZE))}),
    }


def _text() -> Any:
    return pg.corpus(["in the beginning was the word " * 4, "and the earth was without form " * 4])


def _used_gains(**gains: Any) -> Any:
    """Gains are checked where they are used."""
    scaling = type("Scaling", (), {"gains": lambda self, index, depth: pg.Gains(**gains)})()
    return pg.predict(pg.Model("postnorm", **SIZE, scaling=scaling))


def _used_start(**start: Any) -> Any:
    return pg.simulate(pg.Model("postnorm", **SIZE), pg.Start(**start), draws=2, backend="numpy")


def _ended_pool(workers: Any) -> None:
    pg.process_pool(workers).shutdown()


def _plot(table: Any, quantities: Any = ("variance",)) -> Any:
    return pg.plot(table, quantities=quantities)


WORK = {
    ("audit", "names", "None"),
    ("verify", "cells", "None"),
    ("verify", "settings", "None"),
    ("sweep", "verbs", "function"),
}
"""Combinations that are right, and work for minutes; or a function of the user's own, whose error is his."""
SIGNATURES: dict[str, Callable[..., Any]] = {"Gains": pg.Gains, "Start": pg.Start}
Combination = tuple[str, str, str]
"""A callable, one of its options, and a value."""


def combinations() -> list[Combination]:
    """Every option of every public callable with every value."""
    return [
        (name, option, value)
        for name, (function, _) in callables().items()
        for option, parameter in inspect.signature(SIGNATURES.get(name, function)).parameters.items()
        for value in VALUES
        if parameter.kind is not parameter.VAR_KEYWORD
        and not (name == "verify" and option in ("executor", "report"))
        and (name, option, value) not in WORK
    ]


class Late(BaseException):
    """Too long."""


def outcome(call: Callable[[], Any]) -> str:
    """ "answered", "refused", or in words what is wrong."""

    def late(*_: object) -> None:
        raise Late

    before = signal.signal(signal.SIGPROF, late)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)  # of the processor: others may be at work beside
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            answer = call()
    except pg.ModelError as error:
        return "refused" if "\n" not in str(error) and 0 < len(str(error)) < 2000 else f"long or many lines: {error}"
    except Late:
        return "hangs"
    except MemoryError:
        return "takes the memory"
    except BaseException as error:
        return f"traceback: {type(error).__name__}: {str(error)[:200]}"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
    return "silent NaN" if _not_a_number(answer) else "answered"


def _not_a_number(answer: Any) -> bool:
    if isinstance(answer, xr.Dataset):
        if "probe" in answer.dims:  # after those that were not traced there are none
            answer = answer.dropna("probe", how="all", subset=["variance"])
        names = [name for name in ("variance", "grad_variance") if name in answer]
        return any(not np.isfinite(answer[name]).all() for name in names)
    return isinstance(answer, float) and math.isnan(answer)


def tried(combination: Combination) -> str:
    """What a callable makes of a value."""
    name, option, value = combination
    function, right = callables_once()[name]
    return outcome(lambda: function(**right | {option: VALUES[value]}))


_ONCE: dict[str, Any] = {}


def callables_once() -> dict[str, Any]:
    if not _ONCE:
        _ONCE.update(callables())
    return _ONCE


@cache
def _warmed() -> None:
    """What is made and imported once in a process is no part of a call, and those forked from it have it."""
    _used_gains(query=1.5)
    pg.recursion("postnorm", depth=1)
    for name in {"trace", "describe", "build"} & set(callables_once()):
        function, right = callables_once()[name]
        function(**right)


def _limited() -> None:
    """In a process of its own: an empty folder, and 1 GiB more than it has."""
    os.chdir(tempfile.mkdtemp())
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + BYTES, used + BYTES))


def apart(task: Callable[[Any], str], items: Iterable[Any]) -> Iterator[tuple[Any, str]]:
    """Each item with its outcome, in a process of its own that is ended where it does not come back."""
    _warmed()
    context = multiprocessing.get_context("fork")
    pool = ProcessPoolExecutor(1, mp_context=context, initializer=_limited)
    for item in items:
        try:
            yield item, pool.submit(task, item).result(timeout=LONGER)
        except Exception as error:
            for process in list((pool._processes or {}).values()):
                process.kill()
            pool.shutdown(wait=False, cancel_futures=True)
            yield item, "hangs" if isinstance(error, TimeoutError) else f"dies: {type(error).__name__}"
            pool = ProcessPoolExecutor(1, mp_context=context, initializer=_limited)
    pool.shutdown()


def faults(found: Iterable[tuple[Any, str]]) -> list[str]:
    return [f"{' '.join(map(str, item))}: {said}" for item, said in found if said not in ("answered", "refused")]
