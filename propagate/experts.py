"""The description of a mixture of experts, which stands in place of a dense FFN."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal

from propagate.checks import ModelError, choice, integer, number, shown
from propagate.scaling import Gains
from propagate.sublayers import FFN, Sublayer

MOST = 4096  # candidates of a router: averages over them take arrays of their number squared


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
        softmax: "after" the choice, over the chosen logits, so that gates sum to 1 (Mixtral, arXiv:2401.04088); or
            "before" it, over all logits, and not renormalised (Switch Transformer, arXiv:2101.03961).
        shared: FFN experts that every token uses with weight 1, outside the router (DeepSeekMoE, arXiv:2401.06066).
        identity: further candidates that return the FFN's own input times their gate, the zero-computation experts of
            LongCat-Flash (arXiv:2509.01322).
        split: m cuts every routed expert into m of 1/m of the hidden width, of which m top_k are chosen. Entries of
            their output matrices keep the standard deviation that they had in the uncut expert.
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
    softmax: Literal["after", "before"] = "after"
    shared: int = 0
    identity: int = 0
    split: int = 1
    gain: float | None = None
    ffn: FFN | None = None

    def __post_init__(self) -> None:
        for field, at_least in (("count", 1), ("top_k", 1), ("shared", 0), ("identity", 0), ("split", 1)):
            object.__setattr__(self, field, integer(f"experts.{field}", getattr(self, field), at_least=at_least))
        object.__setattr__(self, "router_std", number("experts.router_std", self.router_std, positive=True))
        choice("experts.softmax", self.softmax, ("after", "before"))
        if self.gain is not None:
            object.__setattr__(self, "gain", number("experts.gain", self.gain, positive=False))
        integer("experts.count * split + identity", self.candidates, at_most=MOST)
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
    def factor(self) -> float:
        """What multiplies every gate."""
        return float(self.split) if self.gain is None else self.gain
