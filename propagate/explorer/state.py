"""Everything that is chosen in the explorer, as one frozen value: an address says it, and networks are made of it."""

from __future__ import annotations

import dataclasses
import typing
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal
from urllib.parse import parse_qsl, urlencode

from propagate.activations import ACTIVATIONS
from propagate.checks import ModelError, choice, integer, number, shown
from propagate.experts import Experts
from propagate.model import Model
from propagate.optimizers import SGD, Adam, Muon, Optimizer, Sign
from propagate.placement import Placement
from propagate.placement import placement as placement_of
from propagate.scaling import ScaleInit
from propagate.start import Start

MOST_PLACEMENTS = 4  # curves that can be told apart, and computed while a slider moves
WIDTHS, TOKENS = (64, 128, 256, 512, 1024), (2, 4, 8, 16, 32, 64)
MASKS: dict[str, dict[str, Any]] = {"none": {}, "causal": {"causal": True}, "window": {"causal": True, "window": 4}}
EXPERTS: dict[str, Experts | None] = {"none": None} | {
    f"{count}:{top_k}": Experts(count, top_k) for count, top_k in ((4, 1), (8, 2), (16, 4))
}
OPTIMIZERS: dict[str, type[Any]] = {"sgd": SGD, "muon": Muon, "adam": Adam, "sign": Sign}
DISTINCT, GAIN, DRAWS = (0.5, 0.1, 0.01), (1.5, 2.0, 10.0), (16, 64, 256)
ALIKE, MASKED, MIXED = (128, 64), (64, 16), (32, 8)
"""The most blocks and tokens: where all tokens are alike, where a mask makes each its own, and with experts."""
MODELS = 64  # that are kept
STEEPEST, WIDEST, CLOSEST = 1.0, 3.0, 0.95  # exponent, standard deviation of logits, covariance


@dataclass(frozen=True)
class State:
    """What is chosen.

    Attributes:
        placements: names, one to four.
        depth, width, tokens: sizes; at most 128 blocks and 64 tokens, with a mask 64 and 16, with experts 32 and 8.
        exponent: of ScaleInit, from 0 (no scaling) to 1.
        activation: of the FFN.
        mask: "none", "causal", or "window", a causal one of 4 tokens.
        logit_std: of attention's logits, from 0 to 3.
        experts: "none" or COUNT:TOP_K.
        covariance: of two tokens at the start, of variance 1; from 0 to 0.95.
        optimizer: of the first step: "sgd", "muon", "adam" or "sign".
        lr: its rate.
        distinct: the level of 1 - correlation below which tokens count as collapsed.
        gain: the factor beyond which the gradient's gain counts as lost, from the last block to the first.
        draws: networks to simulate.

    Raises:
        ModelError: names the field, the value and what is allowed.

    Example:
        >>> state = State(placements=("spannorm",), depth=12, exponent=0.25)
        >>> State.of_query(state.query) == state
        True
        >>> state.model("spannorm").scaling
        ScaleInit(exponent=0.25, per='block')
    """

    placements: tuple[str, ...] = ("prenorm", "postnorm", "spannorm")
    depth: int = 24
    width: int = 512
    tokens: int = 32
    exponent: float = 0.25
    activation: str = "relu"
    mask: Literal["none", "causal", "window"] = "none"
    logit_std: float = 1.0
    experts: str = "none"
    covariance: float = 0.3
    optimizer: str = "sgd"
    lr: float = 1e-5
    distinct: float = 0.1
    gain: float = 2.0
    draws: int = 64

    def __post_init__(self) -> None:
        names = self.placements
        if not isinstance(names, tuple) or not all(isinstance(name, str) for name in names):
            raise ModelError(f"placements must be a tuple of names, got {shown(names)}")
        if not 1 <= len(set(names)) == len(names) <= MOST_PLACEMENTS:
            raise ModelError(f"placements must be 1 to {MOST_PLACEMENTS} different names, got {shown(names)}")
        choice("activation", self.activation, ACTIVATIONS)
        choice("mask", self.mask, tuple(MASKS))
        choice("experts", self.experts, tuple(EXPERTS))
        choice("optimizer", self.optimizer, tuple(OPTIMIZERS))
        for field, allowed in (("width", WIDTHS), ("tokens", TOKENS), ("draws", DRAWS)):
            _one_of(field, integer(field, getattr(self, field)), allowed)
        integer("depth", self.depth, at_most=self.deepest)
        if self.tokens > self.most_tokens:
            raise ModelError(f"tokens must be at most {self.most_tokens} with {self._why}, got {self.tokens}")
        for field, most in (("exponent", STEEPEST), ("logit_std", WIDEST), ("covariance", CLOSEST)):
            if number(field, getattr(self, field), positive=False) > most:
                raise ModelError(f"{field} must be at most {most:g}, got {shown(getattr(self, field))}")
        number("lr", self.lr, positive=True)
        _one_of("distinct", self.distinct, DISTINCT)
        _one_of("gain", self.gain, GAIN)
        for name in names:
            self.model(name)

    @property
    def _limits(self) -> tuple[int, int]:
        return limits(self.mask, self.experts)

    @property
    def _why(self) -> str:
        return "experts" if self.experts != "none" else "a mask" if self.mask != "none" else "tokens alike"

    @property
    def deepest(self) -> int:
        """The most blocks; the theory of more takes too long to follow a slider."""
        return self._limits[0]

    @property
    def most_tokens(self) -> int:
        """The most tokens, for the same reason."""
        return self._limits[1]

    @property
    def alike(self) -> bool:
        """Whether all tokens are alike, so that theory takes milliseconds."""
        return self._limits == ALIKE

    @classmethod
    def clamped(cls, **fields: Any) -> State:
        """A state with its depth and tokens made as few as its mask and experts allow.

        Example:
            >>> State.clamped(mask="causal", depth=100, tokens=32).tokens
            16
        """
        deepest, most = limits(fields.get("mask", cls.mask), fields.get("experts", cls.experts))
        sizes = {"depth": min(fields.get("depth", cls.depth), deepest)}
        return cls(**fields | sizes | {"tokens": min(fields.get("tokens", cls.tokens), most)})

    def model(self, placement: str, **other: Any) -> Model:
        """The network of one placement; `other` are fields of it that are not the state's own."""
        equations = placement_of(placement)
        return _model(equations, self) if not other else Model(equations, **_fields(self) | other)

    @property
    def start(self) -> Start:
        """What enters every network."""
        return Start(covariance=self.covariance)

    @property
    def rule(self) -> Optimizer:
        """The optimiser of the first step."""
        made: Optimizer = OPTIMIZERS[self.optimizer](lr=self.lr)
        return made

    @property
    def query(self) -> str:
        """All of it, as the query of an address.

        Example:
            >>> State(depth=8).query[:49]
            'placements=prenorm,postnorm,spannorm&depth=8&widt'
        """
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return urlencode(fields | {"placements": ",".join(self.placements)}, safe=",:")

    @classmethod
    def of_query(cls, query: str) -> State:
        """The state that an address says; what it does not say is as by default.

        Raises:
            ModelError: for a field that is none, or a value that it cannot have.

        Example:
            >>> State.of_query("depth=0")
            Traceback (most recent call last):
            propagate.checks.ModelError: depth must be at least 1, got 0
        """
        said = dict(parse_qsl(query.removeprefix("?"), keep_blank_values=True))
        kinds, fields = typing.get_type_hints(cls), dict[str, Any]()
        for name, text in said.items():
            if name not in kinds:
                raise ModelError(f"the address must say fields of {', '.join(kinds)}, got {shown(name)}")
            fields[name] = _read(name, text, kinds[name])
        return cls(**fields)


@lru_cache(maxsize=MODELS)
def _model(equations: Placement, state: State) -> Model:
    """A page asks for it many times; a model knows its layers once they were asked for."""
    return Model(equations, **_fields(state))


def _fields(state: State) -> dict[str, Any]:
    scaling = ScaleInit(state.exponent) if state.exponent else None
    of_state = {name: getattr(state, name) for name in ("depth", "width", "tokens", "activation", "logit_std")}
    return of_state | MASKS[state.mask] | {"experts": EXPERTS[state.experts], "scaling": scaling}


def limits(mask: str, experts: str) -> tuple[int, int]:
    """The most blocks and tokens.

    Example:
        >>> limits("none", "none"), limits("causal", "8:2")
        ((128, 64), (32, 8))
    """
    return MIXED if experts != "none" else MASKED if mask != "none" else ALIKE


def _read(name: str, text: str, kind: Any) -> Any:
    if name == "placements":
        return tuple(text.split(","))
    if kind not in (int, float):
        return text
    try:
        return kind(text)
    except ValueError:
        raise ModelError(f"{name} must be a {'whole ' if kind is int else ''}number, got {shown(text)}") from None


def _one_of(field: str, value: Any, allowed: tuple[float, ...]) -> None:
    if isinstance(value, bool) or value not in allowed:
        raise ModelError(f"{field} must be one of {', '.join(f'{one:g}' for one in allowed)}, got {shown(value)}")
