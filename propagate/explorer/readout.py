"""The table beneath the curves, and what is to be said, as HTML in which nothing that came from outside is markup."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from propagate.explorer.curves import CRITICAL, GRID, MOMENTS, SHARE, STEP, Critical, Moments, Refused, Share, Step
from propagate.explorer.growing import Growing
from propagate.explorer.state import State
from propagate.table import JOINED, STREAM

HEADINGS = (
    ("placement", ""),
    ("stream gain", "variance behind the last block over that at the embedding"),
    ("gradient gain", "variance of the gradient at the embedding over that behind the last block"),
    ("1 - correlation", "of two tokens, behind the last block"),
    ("attention's share", "of one token's gradient, what reaches the inputs of other tokens"),
    ("first step", "relative change of the stream behind the last block, along the gradient, to first order"),
    ("collapse at", "least depth at which 1 - correlation lies below its level, at this exponent"),
    ("gradient lost at", "least depth at which its gain leaves the factor that is allowed, at this exponent"),
)


def rows(
    placements: Sequence[str],
    colours: Mapping[str, str],
    theory: Mapping[str, Any],
    shares: Mapping[str, Share],
    steps: Mapping[str, Step],
    here: Mapping[str, Critical],
    refused: Mapping[tuple[str, str], Refused],
) -> str:
    """The table: a number where it is known, a dash where the theory refuses it, dots where it is still computed.

    Example:
        >>> text = rows(["prenorm"], {"prenorm": "#000000"}, {}, {"prenorm": Share("prenorm", 0.25)}, {}, {}, {})
        >>> "<td>0.25</td>" in text, text.count("<td>…</td>")
        (True, 6)
    """
    head = "".join(f'<th title="{escape(why)}">{escape(name)}</th>' for name, why in HEADINGS)
    body = ""
    for name in placements:
        cells = [*_gains(theory.get(name)), _number(shares.get(name), "value"), _number(steps.get(name), "moved")]
        cells += [_depth(here.get(name), what) for what in ("collapse", "gradient")]
        lacking = (MOMENTS, MOMENTS, MOMENTS, SHARE, STEP, CRITICAL, CRITICAL)
        shown = [
            "–" if cell is None and (name, what) in refused else cell or "…"
            for cell, what in zip(cells, lacking, strict=True)
        ]
        chip = f'<span style="color:{colours.get(name, "#000")}">■</span> {escape(name)}'
        body += f"<tr><td>{chip}</td>{''.join(f'<td>{escape(cell)}</td>' for cell in shown)}</tr>"
    return f'<div class="readout"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _gains(table: Any) -> list[str | None]:
    if table is None:
        return [None, None, None]
    one = table.sel({STREAM: JOINED}) if STREAM in table.dims else table
    variance, gradient, deviation = (one[name].to_numpy() for name in ("variance", "grad_variance", "deviation"))
    ratios = variance[-1] / variance[0], gradient[0] / gradient[-1], deviation[-1] / variance[-1]
    return [_figure(float(ratio)) for ratio in ratios]


def _number(found: Any, field: str) -> str | None:
    return None if found is None else _figure(getattr(found, field))


def _figure(value: float) -> str:
    return f"{value:.3g}" if math.isfinite(value) else str(value)


def _depth(found: Critical | None, what: str) -> str | None:
    if found is None:
        return None
    depth = getattr(found, what)
    return f"> {found.deepest}" if depth is None else str(depth)


def coming(
    state: State,
    found: Mapping[str, Moments],
    growing: Mapping[str, Growing],
    shares: Mapping[str, Share],
    steps: Mapping[str, Step],
    here: Mapping[str, Critical],
    refused: Mapping[tuple[str, str], Refused],
    maps: Sequence[Sequence[Critical]],
) -> str:
    """What is still to come, in the order in which it does; curves that better ones will replace state their errors.

    Example:
        >>> state, none = State(placements=("prenorm",)), {}
        >>> step, row = Step("prenorm", 0.1, {}), [Critical("prenorm", exponent, None, None, 128) for exponent in GRID]
        >>> coming(state, none, none, none, {"prenorm": step}, {"prenorm": row[0]}, none, [row])
        "still to come: curves of prenorm; attention's share"
    """
    parts = []

    def lacking(what: str, known: Mapping[str, Any]) -> list[str]:
        return [name for name in state.placements if name not in known and (name, what) not in refused]

    curves = lacking(MOMENTS, found)
    if curves:
        at = [f"{name} (at block {growing[name].block})" if name in growing else name for name in curves]
        parts.append(f"curves of {', '.join(at)}")
    drafts = [one for one in found.values() if one.quick]
    if drafts:
        names = ", ".join(one.placement for one in drafts)
        error = max(sampling_error(one.table) for one in drafts)
        parts.append(f"curves of {names} from more draws (now within {_figure(100 * error)} %)")
    parts += [what for what, known in ((SHARE, shares), (STEP, steps)) if lacking(what, known)]
    mapped = zip(state.placements, maps, strict=True)
    known = [name for name, row in mapped if {one.exponent for one in row} >= set(GRID)]
    if lacking(CRITICAL, here) or lacking(CRITICAL, dict.fromkeys(known)):
        parts.append("critical depths")
    return f"still to come: {'; '.join(parts)}" if parts else ""


def sampling_error(table: Any) -> float:
    """The largest standard error of the theory's own draws, relative to what is drawn of it.

    Example:
        >>> import propagate as pg
        >>> plain, masked = (pg.Model("prenorm", depth=2, tokens=4, causal=causal) for causal in (False, True))
        >>> 0 < sampling_error(pg.predict(masked, samples=16)) < 0.1, sampling_error(pg.predict(plain))
        (True, 0.0)
    """
    names = [name for name in ("variance", "deviation", "grad_variance") if f"{name}_se" in table]
    errors = [(table[f"{name}_se"] / table[name]).to_numpy().ravel() for name in names]
    return max((float(error) for row in errors for error in row if math.isfinite(error)), default=0.0)


def status(said: str) -> str:
    """A line that keeps its place when there is nothing to say."""
    return f'<div class="status">{escape(said) or "&nbsp;"}</div>'


def notes(said: Sequence[str]) -> str:
    """Messages, one a line.

    Example:
        >>> notes(["<script>"])
        '<ul class="notes"><li>&lt;script&gt;</li></ul>'
    """
    items = "".join(f"<li>{escape(one)}</li>" for one in dict.fromkeys(said))
    return f'<ul class="notes">{items}</ul>' if items else ""


def listing(text: str) -> str:
    """Code as it is.

    Example:
        >>> listing("a < b")
        '<pre class="listing">a &lt; b</pre>'
    """
    return f'<pre class="listing">{escape(text)}</pre>'
