"""Propositions as Markdown with LaTeX. The same bytes each time: nothing measured, nothing drawn at random."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import sympy as sp

from proofs import axioms
from proofs.vocabulary import (
    Axiom,
    Equality,
    Inequality,
    Limit,
    Proposition,
    Quantity,
    Recurrence,
    Series,
    Step,
    steps_of,
)

KINDS = {
    Equality: "equality",
    Inequality: "inequality",
    Limit: "limit",
    Series: "expansion",
    Recurrence: "induction",
}
INTRODUCTION = Path(__file__).with_name("introduction.md")


def file_name(proposition: Proposition) -> str:
    """The page's file name; 03a for 3a, so that pages sort as they are numbered."""
    digits = re.sub(r"\D", "", proposition.number)
    return f"{digits.zfill(2)}{proposition.number[len(digits) :]}_{proposition.name}.md"


def statement(proposition: Proposition, steps: tuple[Step, ...]) -> str:
    """The statement: <<name>> is the equation of the step of that name, <<prefix*>> a column of those that begin so."""
    named = {step.name: step for step in steps if step.name}

    def equation(match: re.Match[str]) -> str:
        return named[match.group(1)].latex(short=True)

    def column(match: re.Match[str]) -> str:
        rows = [named[name].latex(short=True) for name in named if name.startswith(match.group(1))]
        return r"\begin{gathered}" + r" \\[4pt] ".join(rows) + r"\end{gathered}"

    return re.sub(r"<<(\w+)>>", equation, re.sub(r"<<(\w+)\*>>", column, proposition.statement))


def occurring(step: Step) -> set[sp.Symbol]:
    """The symbols of a step's expressions."""
    values = [getattr(step, f.name) for f in fields(step)]
    if isinstance(step, Recurrence):
        values.append(step.update(step.index, sp.Integer(1)))
    return set().union(*(v.free_symbols for v in values if isinstance(v, sp.Basic)))


def definitions(quantities: tuple[Quantity, ...], steps: tuple[Step, ...]) -> str:
    """A table of the symbols that occur."""
    found = set().union(*map(occurring, steps))
    shown = [q for q in quantities if q.symbol in found and not q.symbol.name.startswith("Gamma_")]
    rows = [f"| ${sp.latex(q.symbol)}$ | {q.meaning} | ${q.interval()}$ |" for q in shown]
    return "\n".join(["| symbol | meaning | range |", "|---|---|---|", *rows])


def sentence(words: str) -> str:
    """The reason as a sentence: a capital, unless it opens with a formula, and a colon before its equation."""
    return words[:1].upper() + words[1:] + ":"


def derivation(steps: tuple[Step, ...]) -> str:
    """The numbered steps."""
    parts = []
    for number, step in enumerate(steps, start=1):
        parts.append(f"**({number})** {sentence(step.reason)}\n\n$${step.latex()}$$")
    return "\n\n".join(parts)


def _axiom(axiom: Axiom) -> str:
    return f"- **{axiom.name}.** {axiom.statement} *{axiom.reference}.*"


def _counted(steps: tuple[Step, ...]) -> str:
    """`3 equalities, 1 limit` in words of the reader."""
    plural = {"equality": "equalities", "inequality": "inequalities"}
    counts: dict[str, int] = {}
    for step in steps:
        kind = KINDS[type(step)]
        counts[kind] = counts.get(kind, 0) + 1
    return ", ".join(f"{n} {kind if n == 1 else plural.get(kind, kind + 's')}" for kind, n in counts.items())


def page(proposition: Proposition) -> str:
    """One proposition."""
    steps = steps_of(proposition)
    used = "\n".join(map(_axiom, proposition.axioms)) or "None."
    parts = [
        f"# Proposition {proposition.number}. {proposition.title}",
        "[All propositions](README.md)",
        f"## Setting\n\n{proposition.setting}",
        definitions(proposition.quantities, steps),
        "## Hypotheses\n\n" + "\n".join(f"- {h}" for h in proposition.hypotheses),
        f"## Statement\n\n{statement(proposition, steps)}",
        f"## Derivation\n\n{derivation(steps)}\n\n∎",
    ]
    if proposition.remark:
        parts.append(f"## Remark\n\n{proposition.remark}")
    parts += [
        f"## What this rests on\n\n{len(steps)} checked steps ({_counted(steps)}). Axioms:\n\n{used}",
        f"Source: {proposition.source}",
        f"Confronted with simulation in: `{proposition.confronted}`",
    ]
    return "\n\n".join(parts) + "\n"


def index(known: tuple[Proposition, ...]) -> str:
    """The index, a short paper: definitions, axioms, lemmas on the parts, propositions on the placements."""
    used = [axiom for axiom in axioms.ALL if any(axiom in p.axioms for p in known)]
    parts = [INTRODUCTION.read_text(encoding="utf-8") + "\n" + "\n".join(map(_axiom, used))]
    lemmas = tuple(p for p in known if int(re.sub(r"\D", "", p.number)) <= 6)
    for heading, group in (
        ("## Lemmas: the parts of a block", lemmas),
        ("## Propositions: placements", tuple(p for p in known if p not in lemmas)),
    ):
        parts.append(heading)
        for p in group:
            steps = steps_of(p)
            parts.append(
                f"### {p.number}. [{p.title}]({file_name(p)})\n\n*Hypotheses: {'; '.join(p.hypotheses)}.*\n\n"
                f"{statement(p, steps)}\n\n"
                f"{len(steps)} checked steps; axioms: {', '.join(a.name for a in p.axioms) or 'none'}. "
                f"Confronted with simulation in: `{p.confronted}`"
            )
    return "\n\n".join(parts) + "\n"
