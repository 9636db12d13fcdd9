"""Variants in the agreement matrix: other attention, experts, patterns of blocks, ends, and stacks of copies."""

import numpy as np
import pytest

import propagate as pg
from propagate.cells import ACTIVATION, Cell, Settings, cells_of
from propagate.theory.ngrams import embedded_gram
from propagate.variants import EMBEDDING, PLAIN, VARIANTS, _text
from propagate.verification import judged, table_name

SMALL = Settings(width=64, depth=4, tokens=6, heads=4, draws=32, backend="numpy")
LARGE = Settings(width=512, depth=4, tokens=6, heads=8, draws=32, backend="numpy")  # allowances tell laws apart
NAMES = [name for name in VARIANTS if name != PLAIN]
TOLD = [name for name in NAMES if name != "scalar decay"]  # whose allowance is too wide at this width to tell its own


@pytest.mark.few(3)
@pytest.mark.parametrize("name", TOLD[::-1])
def test_theory_agrees_and_what_is_near_it_does_not(name: str) -> None:
    """Of PreNorm; a wrong theory of the variant's own is rejected."""
    row = judged(SMALL, Cell("prenorm", ACTIVATION, "causal", "none", name))
    assert "refused" not in row
    assert row["verdict"] != "disagrees", (row["z"], row["quantity"])
    apart = {control["theory"]: control["rejected"] for control in row["controls"] if control["differs"]}
    assert any(apart.get(wrong) for wrong in VARIANTS[name].wrong), apart


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_in_every_placement(name: str) -> None:
    rows = [judged(LARGE, cell) for cell in cells_of(variants=[name])]
    assert [row for row in rows if row["verdict"] == "disagrees"] == []
    told = [control for row in rows for control in row["controls"] if control["differs"]]
    assert sum(control["rejected"] for control in told) > 0.8 * len(told)


def test_the_matrix_has_every_variant_where_it_is_verified() -> None:
    cells = cells_of()
    assert {cell.variant for cell in cells} == set(VARIANTS)
    for name in NAMES:
        own = VARIANTS[name]
        found = [cell for cell in cells if cell.variant == name]
        assert len(found) == len(set(found)) == 2 * len(own.placements) * len(own.masks)
        assert found == cells_of(variants=[name])
    some = cells_of(["postnorm"], masks=["causal"], scalings=["none"])
    assert {cell.variant for cell in some if cell.activation == ACTIVATION} == set(VARIANTS)


def test_a_cell_of_a_variant_has_networks_of_its_own() -> None:
    """The plain network's draws and tables are as they were before there were variants."""
    labels = ("prenorm", ACTIVATION, "causal", "none")
    plain, other = Cell(*labels), Cell(*labels, "growth")
    assert plain.labels == labels
    assert plain.seed(0) != other.seed(0)
    assert table_name(SMALL, plain) != table_name(SMALL, other)


def test_three_words_follow_one_another_once() -> None:
    """So no two tokens of the text are embedded alike, and bias is not refused."""
    gram = embedded_gram(EMBEDDING, _text(Settings(tokens=27)), width=64)
    apart = gram.diagonal()[:, None] + gram.diagonal() - 2 * gram
    assert apart[np.triu_indices(27, k=1)].min() > 0.3


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        ({"variants": ["retentoin"]}, "variant must be one of plain, latent attention"),
        ({"variants": ["retention"], "masks": ["bidirectional"]}, "'retention' is verified with swiglu, causal, in"),
        ({"variants": ["growth"], "placements": ["residual"]}, "in prenorm, postnorm, spannorm, periln, which nothing"),
    ],
)
def test_what_is_verified_nowhere_is_refused(selection: dict[str, list[str]], message: str) -> None:
    with pytest.raises(pg.ModelError, match=message):
        cells_of(**selection)
