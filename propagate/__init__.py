"""Signal propagation in deep Transformers: a theory, a simulation and traces that check one another.

A normalisation placement is written once, as the equations of its paper; `predict` gives its exact wide-limit moments,
`simulate` measures random networks and `trace` any torch model, `compare` judges one by the other, `recursion` prints
the algebra.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

import propagate.placements  # registers those that come with the package
import propagate.shortcuts  # noqa: F401  # and those with a shortcut
from propagate.activations import Activation
from propagate.crossing import CrossAttention, Memory
from propagate.experts import Experts
from propagate.latent import LatentAttention
from propagate.model import Model, ModelError
from propagate.norms import Norm
from propagate.placement import Placement, placement, placements
from propagate.recurrent import LinearAttention
from propagate.scaling import Gains, ScaleInit
from propagate.start import Start, start_of
from propagate.sublayers import FFN, Attention, Sublayer
from propagate.version import __version__ as __version__

if TYPE_CHECKING:
    from propagate import montecarlo as montecarlo
    from propagate import theory as theory
    from propagate import tracing as tracing
    from propagate.agreement import compare
    from propagate.claims.audit import audit
    from propagate.coordinates.check import CoordinateCheck, coordinate_check
    from propagate.diagnosis import Diagnosis
    from propagate.divergence import Divergence, first_divergence
    from propagate.documents import Corpus, corpus
    from propagate.embeddings import NGrams, TokenEmbedding
    from propagate.explorer.notebook import explore
    from propagate.growth import grown
    from propagate.inverse.conditions import AttentionShare, Distinct, FirstStep, GradientGain, Growth, StreamGain
    from propagate.inverse.solve import Solution, solve
    from propagate.losses import CrossEntropy, Linear
    from propagate.montecarlo.balance import simulate_balance
    from propagate.montecarlo.growth import simulate_growth
    from propagate.montecarlo.simulate import simulate
    from propagate.montecarlo.steps.simulate import simulate_steps
    from propagate.montecarlo.workers import process_pool, use_device
    from propagate.optimizers import SGD, Adam, Muon, Sign
    from propagate.picture import plot
    from propagate.readable import report
    from propagate.references import citation
    from propagate.sweeps.sweep import sweep
    from propagate.systems import Configuration, configuration, configurations
    from propagate.text import equations
    from propagate.theory.active_experts import active_experts
    from propagate.theory.balance import balanced, predict_balance
    from propagate.theory.balance_loss import balance_gradient
    from propagate.theory.calls import predict_calls
    from propagate.theory.crossing import memory_gradient, memory_of
    from propagate.theory.diagnose import diagnose
    from propagate.theory.predict import predict
    from propagate.theory.predict_change import predict_change
    from propagate.theory.predict_growth import predict_growth
    from propagate.theory.predict_step import predict_step
    from propagate.theory.recursion import recursion
    from propagate.theory.validity import ValidityWarning, validity
    from propagate.tracing.build import build, build_language_model
    from propagate.tracing.describe import describe
    from propagate.tracing.growth import grow
    from propagate.tracing.steps import trace_steps
    from propagate.tracing.trace import trace
    from propagate.tracing.training.train import train
    from propagate.verification import verify


__all__ = [
    "FFN",
    "SGD",
    "Activation",
    "Adam",
    "Attention",
    "AttentionShare",
    "Configuration",
    "CoordinateCheck",
    "Corpus",
    "CrossAttention",
    "CrossEntropy",
    "Diagnosis",
    "Distinct",
    "Divergence",
    "Experts",
    "FirstStep",
    "Gains",
    "GradientGain",
    "Growth",
    "LatentAttention",
    "Linear",
    "LinearAttention",
    "Memory",
    "Model",
    "ModelError",
    "Muon",
    "NGrams",
    "Norm",
    "Placement",
    "ScaleInit",
    "Sign",
    "Solution",
    "Start",
    "StreamGain",
    "Sublayer",
    "TokenEmbedding",
    "ValidityWarning",
    "active_experts",
    "audit",
    "balance_gradient",
    "balanced",
    "build",
    "build_language_model",
    "citation",
    "compare",
    "configuration",
    "configurations",
    "coordinate_check",
    "corpus",
    "describe",
    "diagnose",
    "equations",
    "explore",
    "first_divergence",
    "grow",
    "grown",
    "memory_gradient",
    "memory_of",
    "placement",
    "placements",
    "plot",
    "predict",
    "predict_balance",
    "predict_calls",
    "predict_change",
    "predict_growth",
    "predict_step",
    "process_pool",
    "recursion",
    "report",
    "simulate",
    "simulate_balance",
    "simulate_growth",
    "simulate_steps",
    "solve",
    "start_of",
    "sweep",
    "trace",
    "trace_steps",
    "train",
    "use_device",
    "validity",
    "verify",
]

_LAZY = {
    "Adam": "propagate.optimizers",
    "CrossEntropy": "propagate.losses",
    "Linear": "propagate.losses",
    "Muon": "propagate.optimizers",
    "NGrams": "propagate.embeddings",
    "SGD": "propagate.optimizers",
    "Sign": "propagate.optimizers",
    "TokenEmbedding": "propagate.embeddings",
    "Configuration": "propagate.systems",
    "CoordinateCheck": "propagate.coordinates.check",
    "Corpus": "propagate.documents",
    "AttentionShare": "propagate.inverse.conditions",
    "Diagnosis": "propagate.diagnosis",
    "Distinct": "propagate.inverse.conditions",
    "Divergence": "propagate.divergence",
    "active_experts": "propagate.theory.active_experts",
    "balance_gradient": "propagate.theory.balance_loss",
    "balanced": "propagate.theory.balance",
    "FirstStep": "propagate.inverse.conditions",
    "GradientGain": "propagate.inverse.conditions",
    "Growth": "propagate.inverse.conditions",
    "Solution": "propagate.inverse.solve",
    "StreamGain": "propagate.inverse.conditions",
    "audit": "propagate.claims.audit",
    "build": "propagate.tracing.build",
    "build_language_model": "propagate.tracing.build",
    "citation": "propagate.references",
    "compare": "propagate.agreement",
    "configuration": "propagate.systems",
    "configurations": "propagate.systems",
    "coordinate_check": "propagate.coordinates.check",
    "corpus": "propagate.documents",
    "describe": "propagate.tracing.describe",
    "diagnose": "propagate.theory.diagnose",
    "equations": "propagate.text",
    "explore": "propagate.explorer.notebook",
    "first_divergence": "propagate.divergence",
    "memory_gradient": "propagate.theory.crossing",
    "memory_of": "propagate.theory.crossing",
    "grow": "propagate.tracing.growth",
    "grown": "propagate.growth",
    "plot": "propagate.picture",
    "predict": "propagate.theory.predict",
    "predict_balance": "propagate.theory.balance",
    "predict_calls": "propagate.theory.calls",
    "predict_change": "propagate.theory.predict_change",
    "predict_growth": "propagate.theory.predict_growth",
    "predict_step": "propagate.theory.predict_step",
    "process_pool": "propagate.montecarlo.workers",
    "recursion": "propagate.theory.recursion",
    "report": "propagate.readable",
    "simulate": "propagate.montecarlo.simulate",
    "simulate_balance": "propagate.montecarlo.balance",
    "simulate_growth": "propagate.montecarlo.growth",
    "simulate_steps": "propagate.montecarlo.steps.simulate",
    "solve": "propagate.inverse.solve",
    "sweep": "propagate.sweeps.sweep",
    "trace": "propagate.tracing.trace",
    "trace_steps": "propagate.tracing.steps",
    "train": "propagate.tracing.training.train",
    "use_device": "propagate.montecarlo.workers",
    "ValidityWarning": "propagate.theory.validity",
    "validity": "propagate.theory.validity",
    "verify": "propagate.verification",
}


_WITNESSES = ("montecarlo", "theory", "tracing")
"""Packages in which descriptions of one's own are registered, such as `montecarlo.apply`."""

if not TYPE_CHECKING:  # a name that is not above is an error to those who check types

    def __getattr__(name: str) -> Any:
        if name in _WITNESSES:
            return import_module(f"propagate.{name}")
        if name not in _LAZY:
            raise AttributeError(f"module 'propagate' has no attribute {name!r}")
        try:
            return getattr(import_module(_LAZY[name]), name)
        except ModuleNotFoundError as error:
            if error.name != "torch":
                raise
            raise ModuleNotFoundError(
                f"propagate.{name} needs torch: pip install 'propagate[torch]'", name="torch"
            ) from None


def __dir__() -> list[str]:
    return sorted(__all__)
