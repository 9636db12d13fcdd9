"""Released systems at their published sizes and initialisation, read from `data/configurations.toml`.

An initialisation that draws all entries of all matrices with one standard deviation is one of gains: std sqrt(fan_in),
as `describe` measures them. The gain of an FFN's output matrix is times the root mean square of what that reads.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from propagate.activations import as_activation
from propagate.checks import ModelError, choice
from propagate.embeddings import NGrams, TokenEmbedding
from propagate.experts import Experts
from propagate.latent import LatentAttention, SelfAttention
from propagate.losses import CrossEntropy
from propagate.norms import Norm
from propagate.start import Start
from propagate.sublayers import FFN, Attention

DATA = Path(__file__).parent / "data" / "configurations.toml"
CHANGES = ("depth", "tokens", "weights", "dropout", "scaling")
"""Fields of a Model that do not touch a configuration's sizes."""


@dataclass(frozen=True)
class Configuration:
    """A released system.

    Attributes:
        name, title: under which it is found, and its own.
        values: sizes and so on, as in the file.
        sources: where each was read.
        taken: of those that are not published or were not read, why they are what they are.
        left_out: in words, what the system has and `Model.from_config` has not.

    Example: DeepSeek-V3 makes its first three blocks dense.
        >>> deepseek = configuration("deepseek-v3")
        >>> sorted(deepseek.fields()["layers"])
        [1, 2, 3]
        >>> deepseek.sources["std"], sorted(deepseek.taken)
        ('arXiv:2412.19437, Section 4.2', ['rope'])
    """

    name: str
    title: str
    values: Mapping[str, Any]
    sources: Mapping[str, str]
    taken: Mapping[str, str]
    left_out: tuple[str, ...]

    def fields(self, **changes: Any) -> dict[str, Any]:
        """Those of its `Model`, over as many tokens as one has by default.

        Args:
            changes: other values of "depth", "tokens", "weights", "dropout" and "scaling".

        Raises:
            ModelError: for other changes.
        """
        for name in changes:
            if name not in CHANGES:
                raise ModelError(
                    f"{name} must be left out beside {self.name}, which has its own sizes; only"
                    f" {', '.join(CHANGES)} may be given"
                )
        own, depth = self.values, changes.get("depth", self.values["depth"])
        width, std = own["width"], own["std"]
        layers: dict[int, dict[str, Any]] = {}
        if every := own.get("window_but_every"):
            whole = _attention(own, window=None, rope=own["rope_of_every"])
            layers |= {index: {"attention": whole} for index in range(every, depth + 1, every)}
        layers |= {index: {"experts": None} for index in range(1, min(own.get("dense_blocks", 0), depth) + 1)}
        experts = None
        if "experts" in own:
            experts = Experts(
                own["experts"],
                own["top_k"],
                router_std=std * math.sqrt(width),
                softmax=own["softmax"],
                shared=own.get("shared", 0),
                identity=own.get("identity", 0),
                gain=own["routed_scale"],
                ffn=_ffn(own, own["expert_hidden"]),
            )
        fields: dict[str, Any] = {
            "attention": _attention(own, window=own.get("window"), rope=own.get("rope")),
            "ffn": _ffn(own, own["hidden"]),
            "experts": experts,
            "norm": Norm(own.get("norm", "rms"), own["eps"]),
            "normed": tuple(own.get("normed", ())),
            "layers": layers or None,
        }
        return {"placement": own["placement"], "depth": depth, "width": width} | fields | changes

    def embedding(self) -> TokenEmbedding:
        """Of its tokens, with n-grams where it has them.

        Raises:
            ModelError: where its vocabulary is not kept.

        Example: LongCat-Flash-Lite divides thirteen terms by thirteen.
            >>> made = configuration("longcat-flash-lite").embedding()
            >>> made.ngrams.divisor, made.ngrams.sizes[-1]
            (13.0, (4, 10223639))
        """
        own = self.values
        if "vocabulary" not in own:
            raise ModelError(f"vocabulary must be known of {self.name!r} for its embedding, and is not kept")
        ngrams = None
        if "ngram_ratio" in own:
            longest, tables = own["ngram_longest"], own["ngram_tables"]
            size = own["width"] // ((longest - 1) * tables)
            ngrams = NGrams.beside_multiple(
                own["vocabulary"],
                own["ngram_ratio"],
                longest=longest,
                tables=tables,
                std=own["std"],
                gain=own["std"] * math.sqrt(size),
            )
        return TokenEmbedding(own["vocabulary"], own["std"], ngrams)

    def start(self) -> Start:
        """What enters the first block at the published initialisation: distinct tokens' embeddings.

        Example: GPT-2 adds positions of the same size to the tokens.
            >>> round(configuration("gpt-2").start().variance, 6)
            0.0008
        """
        own = self.values
        if (made := self.embedding() if "ngram_ratio" in own else None) and (ngrams := made.ngrams):
            terms = made.std**2 + ngrams.count * (ngrams.gain * ngrams.std) ** 2
            return Start(variance=made.factor(own["width"]) ** 2 * terms)
        if "embedded_variance" in own:
            return Start(variance=own["embedded_variance"], covariance=own.get("embedded_covariance", 0.0))
        scale = own["width"] if own.get("embedding_scale_of_width") else own.get("embeddings", 1)
        return Start(variance=own["std"] ** 2 * scale)

    def loss(self, vocabulary: int) -> CrossEntropy:
        """The cross-entropy of an unembedding with entries as large as those of other matrices.

        Example:
            >>> configuration("llama-3-8b").loss(1000)
            CrossEntropy(vocabulary=1000, gain=1.28)
        """
        return CrossEntropy(vocabulary, gain=self.values["std"] * math.sqrt(self.values["width"]))


def configurations() -> dict[str, str]:
    """Titles of the systems that are known, by name.

    Example:
        >>> configurations()["llama-3-8b"]
        'Llama 3 8B'
    """
    return {name: str(own["title"]) for name, own in _stored().items()}


def configuration(name: str) -> Configuration:
    """A system by its name.

    Raises:
        ModelError: for an unknown name, with those that are known.

    Example:
        >>> configuration("GPT-2").values["width"]
        768
        >>> configuration("gpt-5")
        Traceback (most recent call last):
        propagate.checks.ModelError: configuration must be one of llama-3-8b, gemma-3-4b, olmo-2-7b, deepseek-v2-lite, \
deepseek-v3, longcat-flash, longcat-flash-lite, gpt-2, bert-base, vit-b, got 'gpt-5'; did you mean gpt-2?
    """
    found = known_as(name)
    if found is None:
        choice("configuration", name, tuple(_stored()))
    own = _stored()[str(found)]
    parts = [*own["read"], *own.get("taken", ())]
    values = {key: value for part in parts for key, value in part.items() if key != "source"}
    values |= {key: own[key] for key in ("placement", "norm", "normed", "causal") if key in own}
    sources = {key: part["source"] for part in parts for key in part if key != "source"}
    taken = {key: part["source"] for part in own.get("taken", ()) for key in part if key != "source"}
    return Configuration(str(found), own["title"], values, sources, taken, tuple(own["left_out"]))


def known_as(name: Any) -> str | None:
    """The name under which a system is kept, or None.

    Example:
        >>> known_as("Gemma 3"), known_as("prenorm")
        ('gemma-3-4b', None)
    """
    if not isinstance(name, str):
        return None
    plain = "-".join(name.lower().replace("_", "-").split())
    return next((key for key, own in _stored().items() if plain in (key, *own.get("also", ()))), None)


@lru_cache(maxsize=1)
def _stored() -> dict[str, Any]:
    return tomllib.loads(DATA.read_text(encoding="utf-8"))


def _attention(own: Mapping[str, Any], *, window: int | None, rope: float | None) -> SelfAttention:
    width, std, heads = own["width"], own["std"], own["heads"]
    common: dict[str, Any] = {"heads": heads, "causal": own.get("causal", True), "rope": rope}
    if "key_value_rank" in own:
        sizes = {name: own[name] for name in ("head_size", "rope_size", "value_size", "key_value_rank")}
        more = {name: own[name] for name in ("query_rank", "scale_correction") if name in own}
        return LatentAttention.of_std(std, width, **common, **sizes, **more)
    size, read = own.get("head_size", width // heads), std * math.sqrt(width)
    written = std * math.sqrt(heads * size) * _of_output(own)
    gains = {"query_gain": read, "key_gain": read, "value_gain": read, "out_gain": written}
    return Attention(
        key_value_heads=own.get("key_value_heads"), head_size=own.get("head_size"), window=window, **common, **gains
    )


def _ffn(own: Mapping[str, Any], hidden: int) -> FFN:
    std, activation = own["std"], own["activation"]
    out = std * math.sqrt(hidden) * rms_of(activation) * _of_output(own)
    return FFN(activation, hidden=hidden, in_gain=std * math.sqrt(own["width"]), out_gain=out)


def _of_output(own: Mapping[str, Any]) -> float:
    """What entries of output matrices are smaller by than the others."""
    return (2 * own["depth"]) ** -0.5 if own.get("outputs_over_root_of_sublayers") else 1.0


@lru_cache(maxsize=16)
def rms_of(activation: str) -> float:
    """Root mean square of an activation at standard normal arguments.

    Example:
        >>> round(rms_of("relu") ** 2, 9), round(rms_of("swiglu") ** 2, 5)
        (0.5, 0.35578)
    """
    import numpy as np
    import sympy

    from propagate.expressions import form, symbol

    z = np.linspace(-12.0, 12.0, 24_001)  # 0, where some have a kink, is a node
    values = sympy.lambdify(symbol(), form(as_activation(activation).core).value, ["scipy", "numpy"])(z)
    density = np.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    return math.sqrt(float(np.trapezoid(values * values * density, z)))
