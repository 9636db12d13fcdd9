"""Propositions as Markdown with LaTeX. The same bytes each time: nothing measured, nothing drawn at random."""

from __future__ import annotations

import re
from pathlib import Path

import sympy as sp

from proofs import axioms
from proofs.induction import claim_latex
from proofs.vocabulary import (
    Axiom,
    Bounds,
    Chain,
    Conclusion,
    Equality,
    Hypothesis,
    Inequality,
    Instance,
    Lemma,
    Limit,
    Proposition,
    Quantity,
    Recurrence,
    Series,
    Step,
    axioms_of,
    conclusion_of,
    expressions,
    foundation,
    parts,
    steps_of,
)

KINDS = {
    Equality: "equality",
    Inequality: "inequality",
    Limit: "limit",
    Series: "expansion",
    Recurrence: "induction",
    Bounds: "bound by induction",
    Chain: "chain",
    Instance: "instance",
}
INTRODUCTION = Path(__file__).with_name("introduction.md")


def file_name(proposition: Proposition) -> str:
    """The page's file name; 03a for 3a, so that pages sort as they are numbered."""
    digits = re.sub(r"\D", "", proposition.number)
    return f"{digits.zfill(2)}{proposition.number[len(digits) :]}_{proposition.name}.md"


def statement(proposition: Proposition) -> str:
    """The statement: <<name>> is the conclusion of that name, <<prefix*>> a column of those that begin so."""
    named = {conclusion.name: claim_latex(*conclusion.claims) for conclusion in conclusion_of(proposition)}

    def column(match: re.Match[str]) -> str:
        rows = [claim for name, claim in named.items() if name.startswith(match.group(1))]
        return r"\begin{gathered}" + r" \\[4pt] ".join(rows) + r"\end{gathered}"

    columns = re.sub(r"<<(\w+)\*>>", column, proposition.statement)
    return re.sub(r"<<(\w+)>>", lambda match: named[match.group(1)], columns)


def definitions(quantities: tuple[Quantity, ...], steps: tuple[Step, ...]) -> str:
    """A table of the symbols that occur."""
    found: set[sp.Symbol] = set().union(*(e.free_symbols for step in steps for e in expressions(step)))
    shown = [q for q in quantities if q.symbol in found and not q.symbol.name.startswith("Gamma_")]
    rows = [f"| ${sp.latex(q.symbol)}$ | {q.meaning} | ${q.interval()}$ |" for q in shown]
    return "\n".join(["| symbol | meaning | range |", "|---|---|---|", *rows])


def sentence(words: str) -> str:
    """The reason as a sentence: a capital, unless it opens with a formula, and a colon before its equation."""
    return words[:1].upper() + words[1:] + ":"


def _numbers(found: list[int]) -> str:
    return ", ".join(f"({n})" for n in sorted(set(found)))


def used(step: Step, steps: tuple[Step, ...], hypotheses: tuple[Hypothesis, ...]) -> str:
    """What the step uses, by numbers and names; the empty string for a step that stands alone."""
    at = {s.name: number for number, s in enumerate(steps, start=1) if s.name}
    numbers = [at[use] for use in step.uses if isinstance(use, str)]
    numbers += [steps.index(part) + 1 for part in parts(step)]
    suppositions = [f"H{hypotheses.index(use) + 1}" for use in step.uses if isinstance(use, Hypothesis)]
    lemmas = [f"proposition {use.proposition.number}" for use in step.uses if isinstance(use, Lemma)]
    admitted = [use.name for use in step.uses if isinstance(use, Axiom)]
    return ", ".join(([_numbers(numbers)] if numbers else []) + suppositions + list(dict.fromkeys(lemmas)) + admitted)


def derivation(proposition: Proposition) -> str:
    """The numbered steps; those that no conclusion rests on are marked as asides."""
    steps = steps_of(proposition)
    bearing = foundation(steps, {name for c in conclusion_of(proposition) for name in c.uses})
    blocks = []
    for number, step in enumerate(steps, start=1):
        aside = "" if step in bearing else " *Aside.*"
        uses = used(step, steps, proposition.hypotheses)
        rests = f"\n\n<small>uses {uses}</small>" if uses else ""
        blocks.append(f"**({number})**{aside} {sentence(step.reason)}\n\n$${step.latex()}$${rests}")
    return "\n\n".join(blocks)


def _axiom(axiom: Axiom) -> str:
    return f"- **{axiom.name}.** {axiom.statement} *{axiom.reference}.*"


def _hypothesis(number: int, hypothesis: Hypothesis) -> str:
    equations = ", ".join(f"${sp.latex(e)}$" for e in hypothesis.equations)
    return f"- **H{number}.** {hypothesis.words}" + (f": {equations} (put in where it is used)" if equations else "")


def _counted(steps: tuple[Step, ...]) -> str:
    """`3 equalities, 1 limit` in words of the reader."""
    plural = {"equality": "equalities", "inequality": "inequalities", "bound by induction": "bounds by induction"}
    counts: dict[str, int] = {}
    for step in steps:
        kind = KINDS[type(step)]
        counts[kind] = counts.get(kind, 0) + 1
    return ", ".join(f"{n} {kind if n == 1 else plural.get(kind, kind + 's')}" for kind, n in counts.items())


def _rests(conclusion: Conclusion, proposition: Proposition) -> str:
    """One row: a conclusion, the steps that bear it, and its hypotheses and axioms."""
    steps = steps_of(proposition)
    at = {s.name: number for number, s in enumerate(steps, start=1) if s.name}
    through = [steps.index(s) + 1 for s in foundation(steps, conclusion.uses)]
    hypotheses = [f"H{proposition.hypotheses.index(h) + 1}" for h in conclusion.given if isinstance(h, Hypothesis)]
    admitted = [a.name for a in conclusion.given if isinstance(a, Axiom)]
    bearing = [at[name] for name in conclusion.uses]
    further = _numbers([n for n in through if n not in bearing]) or "–"
    return (
        f"| ${claim_latex(*conclusion.claims).replace('|', chr(92) + 'vert ')}$ | {_numbers(bearing)} | {further} | "
        f"{', '.join(hypotheses) or '–'} | {', '.join(admitted) or '–'} |"
    )


def support(proposition: Proposition) -> str:
    """A table of what each conclusion rests on."""
    rows = [_rests(c, proposition) for c in conclusion_of(proposition)]
    return "\n".join(["| stated | step | through | hypotheses | axioms |", "|---|---|---|---|---|", *rows])


def page(proposition: Proposition) -> str:
    """One proposition."""
    steps = steps_of(proposition)
    admitted = "\n".join(map(_axiom, axioms_of(proposition))) or "None."
    blocks = [
        f"# Proposition {proposition.number}. {proposition.title}",
        "[All propositions](README.md)",
        "*Formulas on lines of their own are checked, and printed from what was checked; so are the ranges in the "
        "table. Sentences, and formulas inside them, are prose.*",
        f"## Setting\n\n{proposition.setting}",
        definitions(proposition.quantities, steps),
        "## Hypotheses\n\n" + "\n".join(_hypothesis(n, h) for n, h in enumerate(proposition.hypotheses, start=1)),
        f"## Statement\n\n{statement(proposition)}",
        f"## Derivation\n\n{derivation(proposition)}\n\n∎",
        f"## What the statement rests on\n\n{support(proposition)}",
    ]
    if proposition.remark:
        blocks.append(f"## Remark\n\n*Prose:* {proposition.remark}")
    blocks += [
        f"## Axioms\n\n{len(steps)} checked steps ({_counted(steps)}). Used without proof, as the steps name it:"
        f"\n\n{admitted}",
        f"Source: {proposition.source}",
        f"Confronted with simulation in: `{proposition.confronted}`",
    ]
    return "\n\n".join(blocks) + "\n"


def index(known: tuple[Proposition, ...]) -> str:
    """The index, a short paper: definitions, axioms, lemmas on the parts, propositions on the placements."""
    admitted = [axiom for axiom in axioms.ALL if any(axiom in axioms_of(p) for p in known)]
    blocks = [INTRODUCTION.read_text(encoding="utf-8") + "\n" + "\n".join(map(_axiom, admitted))]
    lemmas = tuple(p for p in known if int(re.sub(r"\D", "", p.number)) <= 6)
    for heading, group in (
        ("## Lemmas: the parts of a block", lemmas),
        ("## Propositions: placements", tuple(p for p in known if p not in lemmas)),
    ):
        blocks.append(heading)
        for p in group:
            hypotheses = "; ".join(h.words for h in p.hypotheses)
            blocks.append(
                f"### {p.number}. [{p.title}]({file_name(p)})\n\n*Hypotheses: {hypotheses}.*\n\n{statement(p)}\n\n"
                f"{len(steps_of(p))} checked steps; axioms: {', '.join(a.name for a in axioms_of(p)) or 'none'}. "
                f"Confronted with simulation in: `{p.confronted}`"
            )
    return "\n\n".join(blocks) + "\n"
