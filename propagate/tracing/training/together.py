"""Arms trained as one ensemble from where their files stand to their end, seen and kept each by itself."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from propagate.model import ModelError
from propagate.progress import Advance, silent
from propagate.tracing.build import LanguageModel
from propagate.tracing.training.arm import ENDED, Arm
from propagate.tracing.training.batches import held_out_of
from propagate.tracing.training.columns import Columns, add, nothing_yet
from propagate.tracing.training.ensemble import Ensemble, State
from propagate.tracing.training.pieces import pieces_of
from propagate.tracing.training.probes import ratio, traced
from propagate.tracing.training.states import load, save

REPORT = 20
"""Steps, at most, between two moments in which the host waits for the device."""
WORTH_COMPILING = 5e10
"""Entries of streams, over steps, blocks and members, from which on what `torch.compile` saves is worth its seconds."""


@dataclass(eq=False)
class Member:
    """One arm on its way.

    Attributes:
        arm: what is trained.
        file: that keeps it, if any.
        columns: what was seen.
        begin: updates made, when it was read from its file.
        state: from there; None at first.
    """

    arm: Arm
    file: Path | None
    columns: Columns
    begin: int = 0
    state: State | None = field(default=None, repr=False)

    @property
    def diverged(self) -> bool:
        return bool(np.isfinite(self.columns["diverged_at"]))

    def keep(self, step: int, state: State) -> None:
        if self.file is not None:
            save(self.file, self.arm.identity(), step, self.columns, **state)


def trained_together(
    arms: Sequence[Arm], files: Sequence[Path | None], every: int = 100, advance: Advance = silent
) -> list[Columns]:
    """What is seen of each arm, as `trained` gives it.

    Arms whose files stand at one step train together; those that do not fit into the device's memory, in halves.

    Args:
        arms: of one model, corpus and plan.
        files: one an arm, or None.
        every: steps after which they are written.
        advance: called with steps that are done, of all arms.

    Raises:
        ModelError: for a file of another arm, and an arm that by itself does not fit into memory.
    """
    members = [_member(arm, file) for arm, file in zip(arms, files, strict=True)]
    advance(sum(one.arm.plan.steps if one.begin == ENDED else one.begin for one in members))
    for begin in sorted({one.begin for one in members} - {ENDED}):
        _train([one for one in members if one.begin == begin], every, advance)
    return [one.columns for one in members]


def _member(arm: Arm, file: Path | None) -> Member:
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)  # it may be a worker's on another machine
        if (kept := load(file, arm.identity())) is not None:
            begin, columns, state = kept
            return Member(arm, file, columns, begin, state)
    return Member(arm, file, nothing_yet(arm.plan))


def _train(members: list[Member], every: int, advance: Advance) -> None:
    try:
        ensemble = _made([one.arm for one in members])
    except torch.cuda.OutOfMemoryError as error:
        if len(members) == 1:
            raise ModelError(f"the device has too little memory for one arm: {error}") from None
        ensemble = None
    if ensemble is None:  # here, where nothing holds the failed one any more
        half = len(members) // 2
        for some in (members[:half], members[half:]):
            _train(some, every, advance)
        return
    for place, one in enumerate(members):
        if one.state is not None:
            _restore(ensemble, place, one)
    plan = members[0].arm.plan
    for step, stop in pairwise(_stops(members, every)):
        if step in plan.probes:
            _look(ensemble, members, step)
        before = _weights(ensemble, members) if step in plan.traces else {}
        losses, norms = ensemble.advance(step, stop)
        _note(ensemble, members, step, losses, norms)
        for place, weights in before.items():
            if not members[place].diverged:
                _look_at_update(ensemble, members, place, step, weights)
        if stop % every == 0 and stop < plan.steps:
            for place, one in enumerate(members):
                if one.file is not None and not one.diverged:
                    one.keep(stop, ensemble.state(place))
        alive = np.array([not one.diverged for one in members])
        advance((stop - step) * len(members), f"loss {losses[-1, alive].mean():.3f}" if alive.any() else "")
        if not alive.any():
            advance((plan.steps - stop) * len(members))
            return
    _look(ensemble, members, plan.steps)
    for place, one in enumerate(members):
        if one.file is not None and not one.diverged:
            one.keep(ENDED, {"learner": ensemble.weights(place)})


def _made(arms: list[Arm]) -> Ensemble:
    """Compiled where that is worth its time; as it is where compiling fails, as without a C compiler."""
    gc.collect()  # an earlier ensemble may still hold the device's memory
    torch.cuda.empty_cache()
    one = arms[0]
    work = one.plan.steps * one.plan.batch * one.model.tokens * one.model.depth * one.model.width * len(arms)
    if torch.device(one.device).type != "cuda" or work < WORTH_COMPILING:
        return Ensemble(arms)
    try:
        return Ensemble(arms, "inductor")
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception as error:  # whatever a compiler raises
        said = (str(error).splitlines() or [type(error).__name__])[0]
        warnings.warn(f"torch.compile failed, so that arms train about half as fast: {said[:200]}", stacklevel=2)
    return Ensemble(arms)


def _stops(members: Sequence[Member], every: int) -> list[int]:
    """Steps before which the host looks at the device, from the first to the number of steps."""
    begin, plan = members[0].begin, members[0].arm.plan
    kept = range(0, plan.steps, every) if any(one.file for one in members) else ()
    found = {*range(0, plan.steps, REPORT), *kept, *plan.probes, *(step + 1 for step in plan.traces)}
    return sorted({begin} | {step for step in found if begin < step <= plan.steps})


def _restore(ensemble: Ensemble, place: int, one: Member) -> None:
    try:
        assert one.state is not None
        ensemble.load(place, one.state)
    except (KeyError, ValueError, RuntimeError, TypeError, AttributeError) as error:
        raise ModelError(f"checkpoint {str(one.file)!r} is damaged or no checkpoint: remove it ({error})") from None
    one.state = None


def _note(
    ensemble: Ensemble,
    members: Sequence[Member],
    step: int,
    losses: np.ndarray[tuple[int, int], np.dtype[np.float64]],
    norms: np.ndarray[tuple[int, int], np.dtype[np.float64]],
) -> None:
    """What a few steps gave, up to the one in which a member diverged, which then is kept as it stands."""
    for place, one in enumerate(members):
        if one.diverged:
            continue
        loss, norm = losses[:, place], norms[:, place]
        lost = np.flatnonzero(~(np.isfinite(loss) & np.isfinite(norm)))
        count = len(loss) if not len(lost) else int(lost[0]) + 1
        one.columns["loss"][step : step + count] = loss[:count]
        one.columns["grad_norm"][step : step + count] = norm[:count]
        if len(lost):
            one.columns["diverged_at"][...] = step + lost[0]
            one.columns["diverged_value"][...] = norm[lost[0]] if np.isfinite(loss[lost[0]]) else loss[lost[0]]
            one.keep(ENDED, {"learner": ensemble.weights(place)})


def _look(ensemble: Ensemble, members: Sequence[Member], step: int) -> None:
    losses, partitions = ensemble.evaluated()
    plan = members[0].arm.plan
    for place, one in enumerate(members):
        if one.diverged:
            continue
        add(one.columns, plan, step, {"held_out_loss": losses[place], "log_z": partitions[place]})
        if step in plan.traces:
            learner, held_out = one.arm.learner(), held_out_of(one.arm.corpus, one.arm.model.tokens)
            first = [piece.tensor.clone() for piece in pieces_of(learner)]
            learner.load_state_dict(ensemble.weights(place))
            seen = traced(learner, held_out.to(one.arm.device), plan.batch, pieces_of(learner), first)
            add(one.columns, plan, step, seen)


def _weights(ensemble: Ensemble, members: Sequence[Member]) -> dict[int, dict[str, Tensor]]:
    return {place: ensemble.weights(place) for place, one in enumerate(members) if not one.diverged}


def _look_at_update(
    ensemble: Ensemble, members: Sequence[Member], place: int, step: int, before: dict[str, Tensor]
) -> None:
    """The size of the update that a traced member has just made."""
    arm = members[place].arm
    learner: LanguageModel = arm.learner()
    learner.load_state_dict(before)
    pieces = pieces_of(learner)
    first = [piece.tensor.clone() for piece in pieces]
    learner.load_state_dict(ensemble.weights(place))
    add(members[place].columns, arm.plan, step, {"step_ratio": ratio(pieces, first, first, arm.model.depth)})
