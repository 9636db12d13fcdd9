"""The description of a mixture of experts, which stands in place of a dense FFN."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

from propagate.checks import ModelError, as_array, choice, integer, number, shown
from propagate.scaling import Gains
from propagate.sublayers import FFN, Sublayer

MOST = 4096  # candidates of a router: averages over them take arrays of their number squared
MOST_STEPS = 10**6  # of bias control
Kind = Literal["after", "before", "sigmoid", "sigmoid_after"]


@dataclass(frozen=True)
class Experts(Sublayer):
    """A sparse mixture of experts: sum over the chosen e of gate_e FFN_e(x), and over shared ones of FFN_e(x).

    A router, one fresh linear map, gives each candidate a logit; the `top_k` largest are chosen, for each token by
    itself. Each FFN is as wide as the model's own unless `split`.

    Attributes:
        count: routed FFN experts.
        top_k: candidates chosen for a token.
        router_std: standard deviation of a router logit at unit-variance input; positive, since equal
            logits leave nothing to choose by.
        softmax: "after" the choice, over the chosen logits, so that gates sum to 1 (Mixtral, arXiv:2401.04088);
            "before" it, over all logits, and not renormalised (Switch Transformer, arXiv:2101.03961); or none:
            "sigmoid" takes logistic functions of the logits for gates, which do not compete, and "sigmoid_after"
            divides those of the chosen by their sum (DeepSeek-V3, arXiv:2412.19437, Eq. 13 to 16).
        shared: FFN experts that every token uses with weight 1, outside the router (DeepSeekMoE, arXiv:2401.06066).
        identity: further candidates that return the FFN's own input times their gate, the zero-computation experts of
            LongCat-Flash (arXiv:2509.01322).
        split: m cuts every routed expert into m of 1/m of the hidden width, of which m top_k are chosen. Entries of
            their output matrices keep the standard deviation that they had in the uncut expert.
        bias: of each candidate, identity experts last, from -1 to 1: added to its softmax or logistic function when
            candidates are chosen, and to nothing else (DeepSeek-V3 and LongCat-Flash, which moves it so that loads are
            even: `simulate_balance`); None is none, as with softmax "after" always.
        gain: factor on all gates; None means `split`, LongCat-Flash's variance compensation: with m times as many
            gates, each 1/m as large, and outputs of 1/m of the variance, sqrt(m m) restores the sum's variance.
        ffn: what each expert is; None is the model's own FFN.

    Raises:
        ModelError: names the field, the value and what is allowed.

    Example:
        >>> fine = Experts(count=8, top_k=2, split=4)
        >>> fine.routed, fine.chosen, fine.factor
        (32, 8, 4.0)
    """

    inner_norms: ClassVar[tuple[str, ...]] = ("hidden",)

    count: int
    top_k: int = 2
    router_std: float = 1.0
    softmax: Kind = "after"
    shared: int = 0
    identity: int = 0
    split: int = 1
    gain: float | None = None
    ffn: FFN | None = None
    bias: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        for field, at_least in (("count", 1), ("top_k", 1), ("shared", 0), ("identity", 0), ("split", 1)):
            object.__setattr__(self, field, integer(f"experts.{field}", getattr(self, field), at_least=at_least))
        object.__setattr__(self, "router_std", number("experts.router_std", self.router_std, positive=True))
        choice("experts.softmax", self.softmax, get_args(Kind))
        if self.gain is not None:
            object.__setattr__(self, "gain", number("experts.gain", self.gain, positive=False))
        integer("experts.count * split + identity", self.candidates, at_most=MOST)
        if self.bias is not None:
            object.__setattr__(self, "bias", _bias(self.bias, self.candidates, self.softmax))
        most = self.candidates // self.split
        integer("experts.top_k", self.top_k, at_most=most)
        if not (self.ffn is None or isinstance(self.ffn, FFN)):
            raise ModelError(f"experts.ffn must be None or a propagate.FFN, got {shown(self.ffn)}")

    def fitted(self, width: int, tokens: int) -> Experts:
        ffn = self.expert.fitted(width, tokens)
        if ffn.units % self.split:
            raise ModelError(f"experts.split must divide the hidden width, got split={self.split} for {ffn.units}")
        return self.with_(ffn=ffn)

    def scaled(self, gains: Gains) -> Experts:
        return self.with_(ffn=self.expert.scaled(gains))

    def norming(self, names: Iterable[str]) -> Experts:
        return self.with_(ffn=self.expert.norming(names))

    @property
    def expert(self) -> FFN:
        """What each expert is, once that is known."""
        assert self.ffn is not None
        return self.ffn

    @property
    def routed(self) -> int:
        """FFN experts that the router chooses from."""
        return self.count * self.split

    @property
    def candidates(self) -> int:
        """How many router logits a token has, of routed and identity experts, the identity experts last."""
        return self.routed + self.identity

    @property
    def chosen(self) -> int:
        """Candidates chosen for a token."""
        return self.top_k * self.split

    @property
    def logistic(self) -> bool:
        """Whether candidates have logistic functions of their logits, and no softmax."""
        return self.softmax.startswith("sigmoid")

    @property
    def renormalised(self) -> bool:
        """Whether a token's gates sum to `factor`."""
        return self.softmax.endswith("after")

    @property
    def factor(self) -> float:
        """What multiplies every gate."""
        return float(self.split) if self.gain is None else self.gain


def checked_control(experts: Experts, expected: Any, rate: Any, steps: Any) -> tuple[float, float, int]:
    """What bias control aims at, its rate and its steps.

    Raises:
        ModelError: names the argument, the value and what is allowed.

    Example:
        >>> checked_control(Experts(16, 6, identity=8, softmax="before"), 3, 0.1, 100)
        (3.0, 0.1, 100)
    """
    if not isinstance(experts, Experts) or experts.softmax == "after":
        raise ModelError(f'experts must be propagate.Experts with another softmax than "after", got {shown(experts)}')
    least, most = max(0, experts.chosen - experts.identity), min(experts.chosen, experts.routed)
    aim = number("expected", expected, positive=True)
    if not least < aim < most:
        raise ModelError(f"expected must lie between {least} and {most}, which no bias reaches, got {shown(expected)}")
    gain = number("rate", rate, positive=True)
    if gain > experts.routed:
        raise ModelError(f"rate must be at most {experts.routed}: scores have no more to overrule, got {shown(rate)}")
    return aim, gain, integer("steps", steps, at_most=MOST_STEPS)


def _bias(given: Any, candidates: int, softmax: str) -> tuple[float, ...]:
    """A number for each candidate; ModelError for anything else."""
    if softmax == "after":
        raise ModelError('experts.bias must be None with softmax="after", where it would have nothing to be added to')
    try:
        values = as_array(given).tolist()
    except Exception:  # TypeError, or whatever an array of somebody else's raises
        values = None
    if not isinstance(values, list) or len(values) != candidates:
        raise ModelError(f"experts.bias must be {candidates} numbers, one a candidate, got {shown(given)}")
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int | float) or not -1 <= value <= 1:
            raise ModelError(f"experts.bias must be numbers between -1 and 1, got {shown(value)}")
    return tuple(float(value) for value in values)
