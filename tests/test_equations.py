"""Equations as text, norms on the skip path, and the papers behind them."""

import re

import pytest

import propagate as pg
from propagate.placement import SHIPPED
from propagate.placements import DyT
from propagate.references import REFERENCES
from propagate.text import norms_on_skip

NAMES = [name for name, kind in pg.placements().items() if kind.__module__ == DyT.__module__]
TEXT = {
    "prenorm": "a = Attn(N(x)); x' = x + a + FFN(N(x + a))",
    "postnorm": "a = N(x + Attn(x)); x' = N(a + FFN(a))",
    "spannorm": "x' = N(x + FFN(N(x + Attn(x))))",
    "b2t": "a = N(x + Attn(x)); x' = N(x + a + FFN(a))",
    "admin": "a = w x + Attn(x); b = N(a); c = std(a) b + FFN(b); x' = N(c); w' = std(c)",
    "hybridnorm": "a = N(x + Attn[query, key, value normed](x)); x' = a + FFN(a)",
    "layerscale": "a = Attn(N(x)); x' = x + 0.1 a + 0.1 FFN(N(x + 0.1 a))",
    "residual": "a = Attn(x); b = N(x + a); c = FFN(b); x' = N(b + c); y' = y + a + c",
    "mixln": "a = N(x + Attn(x)); x' = N(a + FFN(a)); or: a = Attn(N(x)); x' = x + a + FFN(N(x + a))",
}
BRANCHES_ALONE = """
deepscalelm dyt layernormscaling layerscale olmo2 parallelprenorm periln prenorm rezero sandwichnorm subln
tfixup
"""
NORMS = {
    **dict.fromkeys(BRANCHES_ALONE.split(), "0"),
    **dict.fromkeys(("admin", "deepnorm", "dsinit", "keel", "ngpt", "postnorm"), "2"),
    **dict.fromkeys(("hybridnorm", "spannorm"), "1"),
    "b2t": "1-2",
    "mixln": "2 or 0",
    "residual": "2, 0",
    "siamesenorm": "2, 0",
}


@pytest.mark.parametrize("name", TEXT)
def test_equations(name: str) -> None:
    assert pg.equations(name) == TEXT[name]


@pytest.mark.parametrize("name", NORMS)
def test_norms_on_the_skip_path(name: str) -> None:
    assert norms_on_skip(name) == NORMS[name]


@pytest.mark.parametrize("name", NAMES)
def test_the_text_holds_the_sublayers(name: str) -> None:
    """One attention and one FFN a block, in each of its readings."""
    text = pg.equations(name)
    readings = text.count("; or: ") + 1
    assert len(re.findall(r"Attn(?:\[[^]]*\])?\(", text)) == readings
    assert len(re.findall(r"FFN(?:\[[^]]*\])?\(", text)) == readings


@pytest.mark.parametrize("name", NAMES)
def test_every_placement_has_its_paper(name: str) -> None:
    key = pg.placements()[name].citation
    entry = pg.citation(name)
    assert entry.startswith("@")
    assert entry.count("{") == entry.count("}")
    assert (f"eprint = {{{key}}}" in entry) or "booktitle" in entry
    assert "title = {{" in entry


def test_no_paper_is_listed_in_vain() -> None:
    shipped = (kind.citation for kind in pg.placements().values() if kind.__module__ in SHIPPED)
    assert set(REFERENCES) == set(shipped)


class ByDescriptions(pg.Placement):
    """Sublayers by their descriptions, one of a user's own."""

    def block(self, x, block):
        y = x + block.apply(pg.Attention(normed=("key",)), block.norm(x), normed=("query",))
        return y + block.apply(Mixing(), y) + block.experts(y)


class Mixing(pg.Sublayer):
    """Of a user's own."""


def test_descriptions_are_named() -> None:
    text = pg.equations("bydescriptions")
    assert text == "a = Attn[key, query normed](N(x)); b = x + a; x' = x + a + Mixing(b) + Experts(b)"


class Uncited(pg.Placement):
    """Of no paper."""

    def block(self, x, block):
        return x


def test_a_placement_without_paper_is_refused() -> None:
    with pytest.raises(pg.ModelError, match="names no paper"):
        pg.citation("uncited")
    with pytest.raises(pg.ModelError, match="did you mean"):
        pg.citation("spannrom")
