"""Results of `verify` and checkpoints know the functions registered for one's own descriptions, and are not mixed."""

from dataclasses import dataclass
from pathlib import Path

import pytest

import propagate as pg
from propagate.verification import Cell, Settings, table_name


@dataclass(frozen=True)
class Turned(pg.Sublayer):
    """A description whose functions are edited."""


class AppliesTurned(pg.Placement):
    """A placement whose own text does not change with them."""

    def block(self, x, block):
        return x + block.apply(Turned(), block.norm(x))


def once(description, x, block):
    return block.matrix(x, block.width)


def twice(description, x, block):
    return block.matrix(x, block.width, 2.0)


def test_an_edited_function_names_other_tables() -> None:
    cell, names = Cell("appliesturned", "relu", "causal", "none"), []
    for verb in (pg.montecarlo.apply, pg.theory.apply):
        for function in (once, once, twice):
            verb.register(Turned, function)
            names.append(table_name(Settings(), cell))
    first, again, *others = names
    assert first == again
    assert others[1] == others[2]
    assert len({first, *others}) == 4


def test_the_package_s_own_have_none() -> None:
    from propagate.own_functions import functions_of_placement

    assert functions_of_placement(pg.placement("spannorm")) == {}
    assert list(functions_of_placement(AppliesTurned())) == [
        "propagate.theory of Turned",
        "propagate.montecarlo of Turned",
    ]


@dataclass(frozen=True)
class EditedNorm(pg.Norm):
    """A norm whose function is edited."""


def thirds(description, x, backend):
    return x / 3, lambda g: g / 3


def halves(description, x, backend):
    return x / 2, lambda g: g / 2


SMALL = {"depth": 3, "width": 16, "tokens": 4, "heads": 2}
RUN = {"seed": 1, "backend": "numpy", "progress": False}


@pytest.mark.parametrize("fields", [{"norm": EditedNorm()}, {"layers": {2: {"norm": EditedNorm()}}}], ids=str)
def test_a_checkpoint_of_an_edited_norm_is_refused_in_words(fields, tmp_path: Path) -> None:
    model, file = pg.Model("prenorm", **SMALL, **fields), tmp_path / "run.npz"
    pg.montecarlo.norm.register(EditedNorm, thirds)
    pg.simulate(model, draws=2, checkpoint=file, **RUN)
    pg.montecarlo.norm.register(EditedNorm, halves)
    with pytest.raises(pg.ModelError, match=r"functions\..*EditedNorm \('def thirds"):
        pg.simulate(model, draws=3, checkpoint=file, **RUN)
    pg.montecarlo.norm.register(EditedNorm, thirds)
    assert int(pg.simulate(model, draws=3, checkpoint=file, **RUN).attrs["draws"]) == 3


def test_of_a_function_of_the_index_what_blocks_have_of_it_decides(tmp_path: Path) -> None:
    """Not how it is written: its rows may come of a closure, a table or another function."""
    wide, file, table = (
        {"ffn": pg.FFN("gelu", ratio=2.0)},
        tmp_path / "run.npz",
        {2: {"ffn": pg.FFN("gelu", ratio=2.0)}},
    )
    ways = (lambda index: wide if index == 2 else {}, table, [{}, wide, None], lambda index: table.get(index, {}))
    one, *others = (pg.Model("prenorm", **SMALL, layers=layers) for layers in ways)
    pg.simulate(one, draws=2, checkpoint=file, **RUN)
    for count, other in enumerate(others, 3):
        pg.simulate(other, draws=count, checkpoint=file, **RUN)
    table[2] = {"ffn": pg.FFN("gelu", ratio=3.0)}  # the same function, and another network
    changed = pg.Model("prenorm", **SMALL, layers=ways[3])
    with pytest.raises(pg.ModelError, match=r"model\.layers\.2\.ffn\.ratio \(2\.0 there, 3\.0 now\)"):
        pg.simulate(changed, draws=6, checkpoint=file, **RUN)
    with pytest.raises(pg.ModelError, match=r"model\.layers"):
        pg.simulate(pg.Model("prenorm", **SMALL), draws=6, checkpoint=file, **RUN)
