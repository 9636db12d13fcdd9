"""The numbers of docs/training.md are those that the figures' captions have, which are made from the stored runs."""

import re
from functools import cache

import pytest

from propagate import figures

PAGE = figures.ROOT / "docs" / "training.md"
NUMBER = re.compile(r"(?<![\w.])-?\d+\.\d+(?: ± \d+\.\d+)?(?!\w|\.\d)")
WHOLE = re.compile(r"(?<![\w.,^-])\d+(?= (?:traced )?runs| of \d| %| blocks)")
"""Of runs, of cases, of percents and of blocks."""
OTHER = {"0.01", "3.2"}
"""The threshold of a block that can be left out; the largest rate of the sweep, 3.2e-2."""


def bullets() -> list[tuple[str, str]]:
    """Each finding's text, and the captions that it leads to."""
    text = PAGE.read_text(encoding="utf-8")
    found = text[text.index("## What was found") : text.index("All of that is small")]
    captions = []
    for item in found.split("\n- ")[1:]:
        named = re.findall(r"\.\./figures/(\w+)\.md", item)
        told = [(figures.ROOT / "figures" / f"{name}.md").read_text(encoding="utf-8") for name in named]
        captions.append((" ".join(item.split()), " ".join(" ".join(told).split())))
    return captions


def stale(item: str, captions: str) -> list[str]:
    """Decimal numbers of a finding that its captions do not have, or have not with more digits."""
    told = NUMBER.findall(captions)
    alone = [float(one.split(" ± ")[0]) for one in told]
    known = {*told, *OTHER, *differences()}
    return [number for number in NUMBER.findall(item) if number not in known and not rounded(number, alone)]


def rounded(number: str, known: list[float]) -> bool:
    """Whether a number without an error is one of those, to its digits."""
    if "±" in number:
        return False
    return any(f"{one:.{len(number.partition('.')[2])}f}" == number for one in known)


def stale_integers(item: str, captions: str) -> list[str]:
    """Counts and percents of a finding that its captions do not have; percents also as what is over 1 in a ratio."""
    known = set(re.findall(r"(?<![\w.])\d+(?![\w.]*\d)", captions))
    return [one for one in WHOLE.findall(item) if one not in known and f" {1 + int(one) / 100:.2f}" not in captions]


@cache
def differences() -> set[str]:
    """Between the best losses of PostNorm and SpanNorm, exponent by exponent, at the depth of most runs."""
    figures.load("stability")  # puts the checkout on the path
    from figures import training_results as results

    table = results.chosen(results.stored("sweeps"), text="text", experts=0, warmup=0.1)
    table = results.chosen(table, depth=results.main_depth(table))
    lowest = {}
    for placement in ("postnorm", "spannorm"):
        for exponent in (0.25, 0.5, 1.0):
            _, loss, _ = results.best(results.chosen(table, placement=placement, exponent=exponent))
            lowest[placement, exponent] = float(loss.item())
    apart = [lowest["postnorm", k] - lowest["spannorm", k] for k in (0.25, 0.5, 1.0)]
    return {f"{max(apart):.2f}", f"{min(apart):.2f}"}


@pytest.mark.parametrize(("item", "captions"), [pair for pair in bullets() if pair[1]])
def test_what_was_found_is_what_the_captions_say(item: str, captions: str) -> None:
    assert stale(item, captions) == []
    assert stale_integers(item, captions) == []


def test_a_stale_number_would_be_found() -> None:
    item, captions = next(pair for pair in bullets() if "4.202" in pair[0])
    assert stale(item.replace("4.202", "4.203"), captions) == ["4.203 ± 0.005"]


@pytest.mark.parametrize(
    ("told", "wrong"), [("945 runs", "946 runs"), ("36 % more", "37 % more"), ("79 % of", "80 % of")]
)
def test_a_stale_integer_would_be_found(told: str, wrong: str) -> None:
    found = [stale_integers(item.replace(told, wrong), captions) for item, captions in bullets() if told in item]
    assert found == [[wrong.split()[0]]] * len(found)
    assert found


def test_hits_are_those_of_the_stored_runs() -> None:
    import xarray as xr

    with xr.open_dataset(figures.ROOT / "figures" / "foretold.nc", engine="scipy") as data:
        said = data.attrs
    text = PAGE.read_text(encoding="utf-8")
    for hits, count in ((said["all_hits"], said["all_count"]), (said["hits"], said["count"])):
        assert f"{hits} of {count}" in text
