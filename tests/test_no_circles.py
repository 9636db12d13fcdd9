"""The import graph has no circle, imports inside functions included, and no file is longer than one sitting."""

from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LONGEST = 400  # lines


@pytest.fixture(scope="module")
def imports() -> dict[str, set[str]]:
    grimp = pytest.importorskip("grimp")
    graph = grimp.build_graph("propagate", exclude_type_checking_imports=True)
    return {module: set(graph.find_modules_directly_imported_by(module)) for module in graph.modules}


def test_no_module_imports_itself(imports: dict[str, set[str]]) -> None:
    TopologicalSorter(imports).prepare()


def test_a_circle_would_be_found(imports: dict[str, set[str]]) -> None:
    """Also one through a function: the backend loads its kernels when they are wanted."""
    assert "propagate.montecarlo.cuda.activations" in imports["propagate.montecarlo.backend"]
    kernels = "propagate.montecarlo.cuda.kernels"
    with pytest.raises(CycleError):
        TopologicalSorter(imports | {kernels: imports[kernels] | {"propagate.montecarlo.backend"}}).prepare()


def test_no_file_is_longer_than_one_sitting() -> None:
    folders = ("propagate", "proofs", "figures", "tests", "benchmarks", "docs", "notebooks")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    assert len(files) > 200
    long = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in files}
    assert {name: lines for name, lines in long.items() if lines > LONGEST} == {}
