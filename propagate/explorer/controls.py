"""The widgets of a page: each holds one field of the state, and says when it is changed."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from propagate.activations import ACTIVATIONS
from propagate.explorer.state import (
    CLOSEST,
    DISTINCT,
    DRAWS,
    EXPERTS,
    GAIN,
    MASKS,
    MOST_PLACEMENTS,
    OPTIMIZERS,
    STEEPEST,
    TOKENS,
    WIDEST,
    WIDTHS,
    State,
    limits,
)

RATES = {"sgd": 1e-5, "muon": 0.02, "adam": 1e-3, "sign": 1e-3}
"""Learning rates that an optimiser begins with, which differ by magnitudes."""
GROUPS = {
    "": ("placements", "exponent", "depth"),
    "Network": ("width", "tokens", "activation", "mask", "logit_std", "experts", "covariance"),
    "First step and levels": ("optimizer", "lr", "distinct", "gain"),
}


class Controls:
    """Widgets that show a state.

    Args:
        state: the first.
        changed: is told of fields that somebody changed, and their values.
    """

    def __init__(self, state: State, changed: Callable[[dict[str, Any]], None]) -> None:
        self._changed, self._setting = changed, False
        self.widgets = _widgets(state)
        self.show(state)
        for field, widget in self.widgets.items():
            widget.param.watch(lambda event, field=field: self._event(field, event.new), "value")

    def show(self, state: State) -> None:
        """Set every widget to what a state says."""
        self._setting = True
        try:
            deepest, most = limits(state.mask, state.experts)
            depth, tokens = self.widgets["depth"], self.widgets["tokens"]
            depth.param.update(end=deepest, value=state.depth)
            tokens.param.update(options=[size for size in TOKENS if size <= most], value=state.tokens)
            for field, widget in self.widgets.items():
                if field not in ("depth", "tokens"):
                    value = _shown(field, getattr(state, field))
                    if widget.value != value:
                        widget.value = value
        finally:
            self._setting = False

    def groups(self) -> list[Any]:
        """The widgets, in groups with headings that fold."""
        import panel as pn

        found: list[Any] = []
        for title, fields in GROUPS.items():
            own = [self.widgets[field] for field in fields]
            found += (
                [pn.Card(*own, title=title, collapsed=False, sizing_mode="stretch_width", margin=(5, 0))]
                if title
                else own
            )
        return found

    def _event(self, field: str, value: Any) -> None:
        if self._setting:
            return
        if field == "placements":
            if not value:
                return  # one is being replaced
            self._changed({field: tuple(value)})
        elif field == "optimizer":
            self._changed({field: value, "lr": RATES[value]})
        elif field == "lr":
            self._changed({field: float(f"{10**value:.2g}")})
        else:
            self._changed({field: value})


def _shown(field: str, value: Any) -> Any:
    if field == "lr":
        return min(0.0, max(-8.0, math.log10(value)))
    return list(value) if field == "placements" else value


def _widgets(state: State) -> dict[str, Any]:
    import panel as pn

    from propagate.placement import placements

    w, wide = pn.widgets, {"sizing_mode": "stretch_width", "margin": (4, 8)}
    return {
        "placements": w.MultiChoice(
            label="Placements",
            options=list(placements()),
            max_items=MOST_PLACEMENTS,
            value=list(state.placements),
            **wide,
        ),
        "exponent": w.FloatSlider(label="ScaleInit's exponent (0: none)", start=0.0, end=STEEPEST, step=0.01, **wide),
        "depth": w.IntSlider(label="Depth", start=1, end=state.deepest, **wide),
        "width": w.DiscreteSlider(label="Width", options=list(WIDTHS), **wide),
        "tokens": w.DiscreteSlider(label="Tokens", options=list(TOKENS), **wide),
        "activation": w.Select(label="Activation", options=list(ACTIVATIONS), **wide),
        "mask": w.RadioButtonGroup(label="Mask", options={_mask(name): name for name in MASKS}, **wide),
        "logit_std": w.FloatSlider(label="Logits' standard deviation", start=0.0, end=WIDEST, step=0.1, **wide),
        "experts": w.Select(label="Experts (count:top k)", options=list(EXPERTS), **wide),
        "covariance": w.FloatSlider(label="Covariance at the start", start=0.0, end=CLOSEST, step=0.05, **wide),
        "optimizer": w.Select(label="Optimizer of the first step", options=list(OPTIMIZERS), **wide),
        "lr": w.FloatSlider(label="Learning rate, log10", start=-8.0, end=0.0, step=0.1, **wide),
        "distinct": w.Select(label="Collapsed: 1 - correlation below", options=list(DISTINCT), **wide),
        "gain": w.Select(label="Lost: gradient gain beyond a factor", options=list(GAIN), **wide),
        "draws": w.Select(label="Networks", options=list(DRAWS), width=90, margin=(4, 8)),
    }


def _mask(name: str) -> str:
    return {"none": "no mask", "window": "window of 4"}.get(name, name)
