"""What continues old work knows the text it was drawn from: an edited placement is refused, and nothing is lost."""

import dataclasses
import functools
import importlib
import sys
import types
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import propagate as pg
from propagate import identity, verification
from propagate.cells import Settings, cells_of

TEXT = '''"""A user's own file."""

from dataclasses import dataclass

import propagate as pg
import factors

SKIP = 1.0
{above}

def weighted(x):
    return SKIP * x


class Base(pg.Placement):
    def embed(self, x, block):
        return 1 * x


class Edited(Base):
    """Its docstring."""

    branch: float = 1.0

    def block(self, x, block):
        y = weighted(x) + self.branch * block.attention(block.norm(x))
        return y + factors.FFN * block.ffn(block.norm(y))


@dataclass(frozen=True)
class Halved:
    exponent: float = 0.0

    def gains(self, index, depth):
        return pg.Gains(ffn_out=depth**self.exponent)
'''
EDITS = {
    "its equation": ("= weighted(x) +", "= 2 * weighted(x) +", r"placement\.block \('y = weighted"),
    "a helper": ("return SKIP * x", "return SKIP * x + x", r"weighted"),
    "a constant": ("SKIP = 1.0", "SKIP = 3.0", r"SKIP \(1.0 there, 3.0 now\)"),
    "its base": ("return 1 * x", "return 2 * x", r"Base\.embed"),
    "a module beside it": (None, "FFN = 3.0", r"FFN \(1.0 there, 3.0 now\)"),
    "the scaling": ("depth**self.exponent", "2 + depth**self.exponent", r"scaling\.gains"),
}
HARMLESS = {
    "a comment": ("        y = w", "        # as the paper has it\n        y = w"),
    "the docstring": ("Its docstring.", "Another."),
    "a function that nothing reads": ("SKIP = 1.0", "SKIP = 1.0\n\n\ndef other():\n    return 1\n"),
    "layout": ("y + factors.FFN", "(y) +  factors.FFN"),
}
RUN = {"seed": 1, "backend": "numpy", "progress": False}


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., pg.Model]:
    """Writes the user's files, and imports them as a new process would."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def written(old: str | None = "", new: str = "", **fields: float) -> pg.Model:
        text = TEXT.replace("{above}", "")
        (tmp_path / "edited_placement.py").write_text(text.replace(old, new) if old else text)
        (tmp_path / "factors.py").write_text(new if old is None else "FFN = 1.0")
        for name in ("edited_placement", "factors"):
            monkeypatch.delitem(sys.modules, name, raising=False)
        importlib.invalidate_caches()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            module = importlib.import_module("edited_placement")
        network = {"depth": 2, "width": 16, "tokens": 4, "heads": 2, "scaling": module.Halved()}
        return pg.Model(module.Edited(**fields), **network)

    return written


@pytest.mark.parametrize("edit", EDITS)
def test_a_checkpoint_of_an_edited_placement_is_refused_in_words(edit: str, write, tmp_path: Path) -> None:
    file, (old, new, words) = tmp_path / "run.npz", EDITS[edit]
    pg.simulate(write(), draws=4, checkpoint=file, **RUN)
    before = file.read_bytes()
    edited = write(old, new)
    with pytest.raises(pg.ModelError, match=words):
        pg.simulate(edited, draws=8, checkpoint=file, **RUN)
    assert file.read_bytes() == before
    whole = pg.simulate(write(), draws=8, checkpoint=file, **RUN)  # nothing is lost: the old text goes on
    assert np.array_equal(whole.variance, pg.simulate(write(), draws=8, **RUN).variance)
    assert not np.allclose(whole.variance, pg.simulate(edited, draws=8, **RUN).variance)


@pytest.mark.parametrize("edit", HARMLESS)
def test_what_decides_no_draw_may_be_edited(edit: str, write) -> None:
    assert identity.described(write()) == identity.described(write(*HARMLESS[edit]))


def test_fields_count(write) -> None:
    one, other = (identity.described(write(branch=branch)) for branch in (1.0, 2.0))
    assert identity.differences(one, other) == ["placement.branch (1.0 there, 2.0 now)"]


def test_a_file_edited_behind_a_running_process_is_not_what_runs(write, tmp_path: Path) -> None:
    """The text that stands in the file is not the text that was imported: bytecode stands for it."""
    model = write()
    fresh = identity.described(model)
    file = tmp_path / "edited_placement.py"
    file.write_text(file.read_text().replace("= weighted(x) +", "= 2 * weighted(x) +"))
    stale = identity.described(model)
    assert "code" in stale["fields"]["placement"]["class"]["block"]
    edited = identity.described(write("= weighted(x) +", "= 2 * weighted(x) +"))
    assert stale != edited != fresh


@pytest.mark.parametrize("factor", [1, 2])
def test_without_a_text_bytecode_decides(factor: int) -> None:
    """As at a prompt: no file has the text. Another number in it is another network."""

    def typed(factor: int, line: int = 0) -> type:
        space = {"pg": pg, "__name__": "__main__"}
        text = f"class Typed(pg.Placement):\n  def block(self, x, block): return {factor} * x + block.ffn(x)"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            exec("\n" * line + text, space)
        return space["Typed"]

    here, there = (identity.described(typed(1, line)()) for line in (0, 7))
    assert "code" in here["class"]["block"]
    assert (here == identity.described(typed(factor)())) == (factor == 1)
    assert here == there


@dataclasses.dataclass(frozen=True)
class _Wrapped:
    gains: object


def test_closures_lambdas_and_partial_functions_count() -> None:
    def made(power: float) -> Callable[..., pg.Gains]:
        return lambda index, depth: pg.Gains(ffn_out=depth**power)

    def gains(index: int, depth: int, power: float) -> pg.Gains:
        return pg.Gains(ffn_out=depth**power)

    for kind in (made, lambda power: functools.partial(gains, power=power)):
        one, again, other = (identity.described(_Wrapped(kind(power))) for power in (0.5, 0.5, 1.0))
        assert one == again != other
        bare = (identity.described(types.SimpleNamespace(gains=kind(power))) for power in (0.5, 1.0))
        assert next(bare) != next(bare)


def test_long_arrays_and_masks_count() -> None:
    mask = np.tril(np.ones((40, 40), dtype=bool))
    other = mask.copy()
    other[30, 1] = False
    one, two = (pg.Model("prenorm", depth=1, tokens=40, mask=each) for each in (mask, other))
    assert identity.described(one) == identity.described(pg.Model("prenorm", depth=1, tokens=40, mask=mask.copy()))
    assert identity.described(one) != identity.described(two)
    assert identity.described(np.zeros(3)) != identity.described(np.zeros(3, dtype=np.float32))


@pytest.mark.parametrize("what", ["propagate", "simulation", "numpy"])
def test_another_version_is_refused(what: str, write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from propagate.montecarlo import simulate as module

    file = tmp_path / "run.npz"
    pg.simulate(write(), draws=2, checkpoint=file, **RUN)
    if what == "simulation":
        monkeypatch.setattr(module, "simulation_digest", lambda: "another")
    else:
        monkeypatch.setattr(module, "provenance", lambda: identity_of_versions() | {what: "9.9"})
    with pytest.raises(pg.ModelError, match=f"another run, which differs in {what} "):
        pg.simulate(write(), draws=3, checkpoint=file, **RUN)


def test_a_placement_of_an_installed_library_is_read_too(
    write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(identity.sysconfig, "get_path", lambda name: str(tmp_path))
    identity._installed.cache_clear()
    one, other = identity.described(write()), identity.described(write("= weighted(x) +", "= 2 * weighted(x) +"))
    identity._installed.cache_clear()
    assert identity.differences(one, other)


def identity_of_versions() -> dict[str, str]:
    from propagate.table import provenance

    return provenance()


SETTINGS = Settings(width=32, depth=2, tokens=4, heads=2, draws=4, backend="numpy")


def test_a_file_of_verdicts_refuses_an_edited_placement(write, tmp_path: Path) -> None:
    write()
    out, cells = tmp_path / "found.json", cells_of(["edited"], ["linear"], ["bidirectional"], ["none"])
    ran: list[dict] = []
    verification.verify(cells, SETTINGS, out=out, report=ran.append)
    before = out.read_bytes()
    write("= weighted(x) +", "= 2 * weighted(x) +")
    with pytest.raises(pg.ModelError, match=r"results that differ in edited\.block \('y = weighted"):
        verification.verify(cells, SETTINGS, out=out)
    assert out.read_bytes() == before
    others = cells_of(["prenorm"], ["linear"], ["bidirectional"], ["none"])
    verification.verify(others, SETTINGS, out=out, report=ran.append)  # what is asked for is as it was
    write()
    verification.verify([*cells, *others], SETTINGS, out=out, report=ran.append)
    assert len(ran) == 2


def test_measured_tables_of_an_edited_placement_are_measured_anew(write, tmp_path: Path) -> None:
    write()
    (cell,) = cells_of(["edited"], ["linear"], ["bidirectional"], ["none"])
    tables = tmp_path / "tables"
    tables.mkdir()
    first = verification.measured(SETTINGS, cell, tables)
    write("= weighted(x) +", "= 2 * weighted(x) +")
    second = verification.measured(SETTINGS, cell, tables)
    assert float(second.variance[-1]) > 1.5 * float(first.variance[-1])
    assert len(list(tables.iterdir())) == 2
    write()
    assert verification.measured(SETTINGS, cell, tables).identical(verification.measured(SETTINGS, cell, tables))
    assert len(list(tables.iterdir())) == 2


def _named(factor: float, module: str = __name__, name: str = "TwiceNamed") -> type[pg.Placement]:
    def block(self, x, block):
        return factor * x + block.ffn(x)

    return type(name, (pg.Placement,), {"block": block, "__module__": module})


def test_a_second_placement_of_the_same_name_warns_and_names_both_modules() -> None:
    _named(1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _named(1.0)  # the same again, as a cell that is run twice
    with pytest.warns(UserWarning, match=rf"'twicenamed' meant .* of {__name__}; from now on .* of another_module"):
        _named(1.0, "another_module")
    with pytest.warns(UserWarning, match="which is another"):
        _named(2.0, "another_module")
    assert pg.placement("twice named").block(1.0, types.SimpleNamespace(ffn=lambda x: 0)) == 2.0


def test_another_default_is_another_placement() -> None:
    def made(skip: float) -> None:
        space = {"__annotations__": {"skip": "float"}, "skip": skip, "__module__": __name__}
        type("ThriceNamed", (pg.Placement,), space)

    made(1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made(1.0)
    with pytest.warns(UserWarning, match="thricenamed"):
        made(2.0)
