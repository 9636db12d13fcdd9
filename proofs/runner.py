"""Finds the propositions, proves them, and writes them out as pages.

`prove()` returns one report per proposition; `write(directory)` renders the pages. Both read the modules of
`proofs.propositions`, in the order of their numbers.
"""

from __future__ import annotations

import hashlib
import importlib
import pkgutil
from collections.abc import Iterable
from pathlib import Path

from proofs import axioms, propositions, proving, render
from proofs.proving import Report
from proofs.vocabulary import Axiom, Proposition, Step

HERE = Path(__file__).parent
RENDERED = HERE / "rendered"


def discover() -> tuple[Proposition, ...]:
    """Every module's PROPOSITION, in the order of the modules' names."""
    return tuple(map(load, sorted(module.name for module in pkgutil.iter_modules(propositions.__path__))))


def load(module: str) -> Proposition:
    """The module's PROPOSITION; for a module that cannot be read, one that cannot be proved, and says why."""
    try:
        return importlib.import_module(f"{propositions.__name__}.{module}").PROPOSITION
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"

    def derivation() -> tuple[Step, ...]:
        raise ImportError(reason)

    return Proposition(module, module, "a module that cannot be read", (), "", (), "", "", derivation, lambda: ())


def select(names: Iterable[str] | None = None) -> tuple[Proposition, ...]:
    """The propositions of these names or numbers; all of them for none. An unknown name is an error."""
    known = discover()
    if names is None:
        return known
    wanted = list(names)
    unknown = [w for w in wanted if not any(w in (p.name, p.number) for p in known)]
    if unknown:
        raise LookupError(f"no proposition called {', '.join(unknown)}; there are {', '.join(p.name for p in known)}")
    return tuple(p for p in known if p.name in wanted or p.number in wanted)


def prove(names: Iterable[str] | None = None) -> list[Report]:
    """Proves the named propositions, or all."""
    return [proving.prove(proposition, axioms.ALL) for proposition in select(names)]


def axioms_used(reports: Iterable[Report]) -> tuple[Axiom, ...]:
    """Every axiom that occurs, once, in the order of the list of axioms."""
    used = {axiom for report in reports for axiom in report.axioms}
    return tuple(axiom for axiom in axioms.ALL if axiom in used)


def digest(folder: Path = HERE) -> str:
    """Of the text of all that pages are made of: to render them takes twenty seconds, to see them stale none."""
    sources = sorted(path for path in folder.rglob("*") if path.suffix == ".py" or path == render.INTRODUCTION)
    texts = [path.relative_to(folder).as_posix() + "\n" + path.read_text(encoding="utf-8") for path in sources]
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]


def pages() -> dict[str, str]:
    """File name -> Markdown, of the index, which ends in the digest of its sources, and of every proposition."""
    known = discover()
    index = f"{render.index(known)}\n*Written from sources `{digest()}`.*\n"
    return {"README.md": index} | {render.file_name(p): render.page(p) for p in known}


def write(directory: Path = RENDERED) -> list[Path]:
    """Writes the pages and returns their paths; pages of propositions no longer there are removed."""
    directory.mkdir(parents=True, exist_ok=True)
    current = pages()
    for stale in directory.glob("*.md"):
        if stale.name not in current:
            stale.unlink()
    paths = [directory / name for name in current]
    for path in paths:
        path.write_text(current[path.name], encoding="utf-8")
    return paths


def main() -> int:
    """Prints a table of reports; 1 if any proposition fails."""
    reports = prove()
    for r in reports:
        verdict = "proved" if r.proved else f"FAILED at {r.failure}"
        print(f"{r.number:>4}  {r.title:<72} {r.steps:>3} steps  {len(r.axioms)} axioms {r.seconds:6.1f} s  {verdict}")
    for axiom in axioms_used(reports):
        print(f"axiom: {axiom.name}. {axiom.reference}")
    return int(not all(r.proved for r in reports))


if __name__ == "__main__":
    raise SystemExit(main())
