"""`import propagate` is light, and every public name resolves when first used."""

import json
import subprocess
import sys

import pytest

import propagate as pg

HEAVY = ("torch", "cupy", "matplotlib", "sympy", "xarray", "scipy", "typer", "rich")
TOUCHES = {
    "import propagate": set(),
    "import propagate; propagate.Model('spannorm', depth=3, scaling=propagate.ScaleInit())": set(),
    "import propagate; propagate.placements()": set(),
    "import propagate; propagate.montecarlo, propagate.theory": set(),
    "import propagate; propagate.montecarlo.apply": {"scipy"},
    "import propagate; propagate.predict(propagate.Model('spannorm', depth=2))": {"scipy", "xarray"},
    "import propagate; propagate.recursion('spannorm', activation='linear')": {"sympy", "scipy", "xarray"},
}


def loaded_after(code: str, names: tuple[str, ...] = HEAVY) -> set[str]:
    report = f"{code}\nimport json, sys; print(json.dumps([m for m in {names!r} if m in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", report], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("code", TOUCHES)
def test_only_what_is_used_is_loaded(code: str) -> None:
    allowed = TOUCHES[code]
    looks_for_cupy = "xarray" in allowed  # by itself, wherever it is installed
    assert loaded_after(code) <= (allowed | {"cupy"} if looks_for_cupy else allowed)


@pytest.mark.slow
def test_what_writes_figures_is_imported_before_there_are_threads() -> None:
    """Two threads that imported dask at once found it without `dask.utils`."""
    pytest.importorskip("distributed")
    once = "import xarray; from propagate import figures; figures._import_what_writes()"
    again = f"{once}; xarray.Dataset({{'x': ('block', [1.0])}}).to_netcdf(engine='scipy')"
    of_dask = ("dask", "dask.utils", "distributed", "distributed.protocol.utils")
    assert loaded_after(once, of_dask) == loaded_after(again, of_dask) == set(of_dask)
    assert loaded_after("import xarray", of_dask) == set()


def test_the_check_sees_a_heavy_import() -> None:
    assert loaded_after("import propagate, sympy") == {"sympy"}


def test_public_names_resolve() -> None:
    for name in pg.__all__:
        assert getattr(pg, name) is not None
    assert pg.__dir__() == sorted(pg.__all__) == dir(pg)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="foo"):
        _ = pg.foo
