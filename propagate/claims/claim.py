"""What a claim is, what evidence says of it, and the verdict that follows: nobody types one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import wraps
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import xarray as xr

Table = Any  # an xarray.Dataset
Witness = Literal["theory", "proof", "simulation", "training"]
NOT_TESTABLE = "not testable here"


@dataclass(frozen=True)
class Sources:
    """Where evidence takes its tables from.

    Attributes:
        predict, simulate: the verbs of those names.
        proved: whether the propositions of these numbers are proved, every step checked, or None if not at hand.
        trained: the measured runs of that name ("sweeps", "profiles", "transfer"), or None where they are not at hand.
    """

    predict: Callable[..., xr.Dataset]
    simulate: Callable[..., xr.Dataset]
    proved: Callable[[Sequence[str]], bool | None]
    trained: Callable[[str], xr.Dataset | None]


@dataclass(frozen=True)
class Evidence:
    """One finding.

    Attributes:
        witness: who says it.
        said: a sentence, with numbers, their errors and how many networks or runs stand behind them.
        holds: whether the statement does, by this.
        under: the condition under which it was tried, if it is one that the claim does not make.
        device: that ran what was simulated or trained.
    """

    witness: Witness
    said: str
    holds: bool
    under: str = ""
    device: str = ""

    def __str__(self) -> str:
        """As a line of text.

        Example:
            >>> print(Evidence("training", "3 runs end at 4.2.", True, under="warm-up", device="NVIDIA H200"))
            training (NVIDIA H200), under warm-up: 3 runs end at 4.2. So it holds.
        """
        device = f" ({self.device})" if self.device else ""
        under = f", under {self.under}" if self.under else ""
        return f"{self.witness}{device}{under}: {self.said} {'So it holds.' if self.holds else 'So it does not.'}"


@dataclass(frozen=True)
class Claim:
    """A claim of a paper, and what was done to test it.

    Attributes:
        name: short, such as "C1".
        words: as the source has them.
        source: where they stand.
        sure: how sure it is that these are the source's words.
        statement: the exact statement that is tested.
        tests: each makes evidence of the sources, or None where these do not hold what it needs.
        change: what would change the verdict.
    """

    name: str
    words: str
    source: str
    sure: str
    statement: str
    tests: tuple[Callable[[Sources], Evidence | None], ...]
    change: str


@dataclass(frozen=True)
class Judged:
    """A claim, its evidence and the verdict that follows."""

    claim: Claim
    evidence: tuple[Evidence, ...]

    @property
    def verdict(self) -> str:
        """See `verdict_of`."""
        return verdict_of(self.evidence)

    @property
    def missing(self) -> int:
        """How many tests found no proofs or records to read."""
        return len(self.claim.tests) - len(self.evidence)

    def __str__(self) -> str:
        """Words, statement, evidence, verdict, and what would change it."""
        from propagate.claims.text import text_of

        return text_of([self])


def of_runs(name: str) -> Callable[[Callable[..., Evidence]], Callable[..., Evidence | None]]:
    """Makes a test of sources out of a test of the measured runs of that name, and tells the device that ran them.

    Without these runs there is no evidence.
    """

    def made(test: Callable[..., Evidence]) -> Callable[..., Evidence | None]:
        @wraps(test)
        def tested(sources: Sources, **options: Any) -> Evidence | None:
            table = sources.trained(name)
            if table is None:
                return None
            device = str(table.attrs["device"])
            return replace(test(table, **options), device="CPU" if device == "cpu" else device)

        return tested

    return made


def judged(claim: Claim, sources: Sources) -> Judged:
    """The claim with what its tests find."""
    found = (test(sources) for test in claim.tests)
    return Judged(claim, tuple(one for one in found if one is not None))


def verdict_of(evidence: Sequence[Evidence]) -> str:
    """What evidence amounts to.

    "holds": all that was tried without a condition says so, training among it. "holds at initialisation": the same
    without training. "only under ...": what was tried without a condition does not say so, or was not tried, and what
    was tried under these conditions does. "fails": it does not, under no condition that was tried.

    Example:
        >>> at_rest, trained = Evidence("theory", "1.0", True), Evidence("training", "0.1", False)
        >>> verdict_of([at_rest]), verdict_of([at_rest, trained]), verdict_of([])
        ('holds at initialisation', 'fails', 'not testable here')
        >>> verdict_of([trained, Evidence("theory", "2.0", True, under="a causal mask")])
        'only under a causal mask'
    """
    if not evidence:
        return NOT_TESTABLE
    plain = [one for one in evidence if not one.under]
    if plain and all(one.holds for one in plain):
        return "holds" if any(one.witness == "training" for one in plain) else "holds at initialisation"
    conditions = dict.fromkeys(one.under for one in evidence if one.under)
    met = [name for name in conditions if all(one.holds for one in evidence if one.under == name)]
    return f"only under {', and under '.join(met)}" if met else "fails"
