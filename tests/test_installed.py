"""What those who install it get: a wheel with its types and data, one version, and the names that were promised."""

import ast
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

import propagate as pg
from propagate.checkout import folder
from propagate.claims.audit import claims as all_claims

ROOT = folder("propagate").parent
USER = """
import propagate as pg
from propagate.placement import Block, S


class Mine(pg.Placement):
    skip: float = 1.0

    def block(self, x: S, block: Block[S]) -> S:
        y = self.skip * x + block.attention(block.norm(x))
        return y + block.ffn(block.norm(y))


model = pg.Model(Mine(skip=2.0), depth=2, scaling=pg.ScaleInit(0.5), experts=pg.Experts(4))
theory = pg.predict(model, covariance=0.3)
measured = pg.simulate(model, draws=4, **pg.start_of(theory))
verdict: str = pg.compare(theory, measured).attrs["verdict"]
reveal_type(pg.predict(model))
reveal_type(pg.first_divergence(theory, measured))
reveal_type(pg.placements())
"""
WRONG = {
    "pg.simulate(model, drws=4)": "drws",
    "pg.predict(3)": "arg-type",
    "pg.Model('prenorm', depth='2')": "arg-type",
    "pg.simulat(model)": "attr-defined",
    "Mine(skipp=1.0)": "skipp",
    "pg.compare(theory)": "call-arg",
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built without a network by the backend that is installed."""
    pytest.importorskip("hatchling", reason="the wheel's backend is among the package's own development extras")
    to = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "--no-index", "--quiet"]
    subprocess.run([*build, "--wheel-dir", str(to), str(ROOT)], check=True)
    (found,) = to.glob("*.whl")
    return found


def test_the_wheel_has_the_package_its_types_and_its_data_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = archive.read(f"propagate-{pg.__version__}.dist-info/METADATA").decode()
    assert f"\nVersion: {pg.__version__}\n" in metadata
    tops = {name.partition("/")[0] for name in names}
    assert tops == {"propagate", f"propagate-{pg.__version__}.dist-info"}
    package = ROOT / "propagate"
    kept = {p.relative_to(ROOT).as_posix() for p in package.rglob("*") if p.is_file() and "__pycache__" not in p.parts}
    brought = {name for name in names if name.startswith("propagate/beside/")}
    assert {name for name in names if name.startswith("propagate/")} == kept | brought
    claims = "".join(path.read_text(encoding="utf-8") for path in (package / "claims").glob("*.py"))
    records = {f"figures/measured/training_{name}.nc" for name in re.findall(r'(?:of_runs|trained)\("(\w+)"\)', claims)}
    proofs = {p.relative_to(ROOT).as_posix() for p in ROOT.glob("proofs/**/*.py")} | {"proofs/introduction.md"}
    assert brought == {f"propagate/beside/{name}" for name in records | proofs}
    assert {"propagate/py.typed", "propagate/data/validity.json", "propagate/propagate.mplstyle"} <= names


AUDIT = """
import sys
from propagate import checkout
from propagate.claims.audit import _trained, audit
print(*audit(sys.argv[1:]), sep="\\n\\n")
checkout.BROUGHT = checkout.ROOT / "nowhere"
_trained.cache_clear()
print(audit(["C5"])[0].verdict)
"""


@pytest.mark.claims
@pytest.mark.parametrize(
    "claims", [("C5", "C7"), pytest.param([one.name for one in all_claims()], marks=pytest.mark.slow)]
)
def test_a_wheel_judges_claims_as_the_checkout_does(claims: Sequence[str], wheel: Path, tmp_path: Path) -> None:
    command = [str(installed(wheel, tmp_path)), "-c", AUDIT, *claims]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    told = subprocess.run(command, capture_output=True, text=True, cwd="/", env=environment, check=True).stdout
    assert told == "\n\n".join(map(str, pg.audit(claims))) + "\nnot testable here\n"


@pytest.mark.slow
def test_a_users_file_is_checked_against_the_installed_wheel(wheel: Path, tmp_path: Path) -> None:
    """By `mypy --strict`: a right file has no error but what it reveals, each wrong line has the error it should."""
    python = installed(wheel, tmp_path / "venv")
    user = tmp_path / "user.py"
    user.write_text(USER + "\n".join(WRONG) + "\n")
    first = USER.count("\n") + 1
    found = checked(python, user)
    errors = {n - first: line for line in found if ": error:" in line for n in [int(line.split(":")[1])]}
    for number, (line, word) in enumerate(WRONG.items()):
        assert word in errors.pop(number, ""), (line, found)
    assert errors == {}
    revealed = "\n".join(line for line in found if "Revealed type" in line)
    for kind in ("xarray.core.dataset.Dataset", "propagate.divergence.Divergence | None", "type[propagate.placement.P"):
        assert kind in revealed
    (typed,) = (tmp_path / "venv").rglob("py.typed")  # without it, all of the package is `Any`
    typed.unlink()
    assert any("py.typed marker" in line for line in checked(python, user))


def installed(wheel: Path, environment: Path) -> Path:
    """An environment with the wheel in it, which sees this one's dependencies but not this checkout."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    (packages,) = environment.glob("lib/python*/site-packages")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(packages)
    import numpy as np

    (packages / "dependencies.pth").write_text(f"{Path(np.__file__).parent.parent}\n")
    return environment / "bin" / "python"


def checked(python: Path, user: Path) -> list[str]:
    options = [
        "--strict",
        "--no-error-summary",
        "--python-executable",
        str(python),
        "--cache-dir",
        str(ROOT / ".mypy_cache"),
    ]
    command = [sys.executable, "-m", "mypy", "--config-file=", *options, str(user)]
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(user.parent)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=user.parent, env=environment, check=False)
    assert done.returncode in (0, 1), done.stderr
    return done.stdout.splitlines()


def test_the_names_that_run_are_the_names_that_are_typed() -> None:
    """`__all__`, the lazy table and the imports for those who check types are one list, each name from one module."""
    tree = ast.parse((ROOT / "propagate" / "__init__.py").read_text(encoding="utf-8"))
    eager = {alias.name: node.module for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    (checking,) = (node for node in tree.body if isinstance(node, ast.If) and not isinstance(node.test, ast.UnaryOp))
    typed = {alias.name: node.module for node in checking.body for alias in node.names}
    assert {name for name, module in typed.items() if module == "propagate"} == set(pg._WITNESSES)
    typed = {name: module for name, module in typed.items() if module != "propagate"}
    assert typed == pg._LAZY
    ours = {name for name, module in eager.items() if module.startswith("propagate") and name != "__version__"}
    assert sorted(ours | set(typed)) == sorted(pg.__all__) == dir(pg)
    for name, module in typed.items():  # not imported: torch takes seconds
        text = ROOT.joinpath(*module.split(".")).with_suffix(".py").read_text(encoding="utf-8")
        assert re.search(rf"^(?:def|class) {name}\b", text, re.MULTILINE), (name, module)


def test_one_version_everywhere() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "version" not in project["project"]
    assert project["tool"]["hatch"]["version"]["path"] == "propagate/version.py"
    assert f"\nversion: {pg.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## [{pg.__version__}] - 20" in (ROOT / "CHANGELOG.md").read_text()


def test_the_command_line_says_its_version_at_once() -> None:
    """It loads nothing that computes: half a second on an idle core, most of it Python's own."""
    heavy = ["numpy", "scipy", "sympy", "xarray", "matplotlib", "torch"]
    program = (
        "import sys; sys.argv = ['propagate', '--version']\n"
        "from propagate.cli import main\n"
        f"try: main()\nfinally: print([name for name in {heavy} if name in sys.modules])"
    )
    began = os.times().children_user
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [pg.__version__, "[]"]
    assert os.times().children_user - began < 0.5
