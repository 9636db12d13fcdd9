"""Results of `verify` know the functions that are registered for a user's own sublayer, and are not mixed."""

from dataclasses import dataclass

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
    from propagate.verification import _functions_of

    assert _functions_of(pg.placement("spannorm")) == {}
    assert list(_functions_of(AppliesTurned())) == ["propagate.theory of Turned", "propagate.montecarlo of Turned"]
