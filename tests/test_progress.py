"""Progress is seen by those who watch a terminal and by those who read a log, and by nobody else."""

import pytest

from propagate import progress
from propagate.progress import progress_bar


def lines(capsys: pytest.CaptureFixture[str], show: bool | None, total: int = 3) -> list[str]:
    with progress_bar(show, total, 0, "cells") as advance:
        for number in range(3):
            advance(1, f"no. {number}", more=0 if total else 1)
    return capsys.readouterr().err.splitlines()


def test_a_line_every_few_seconds_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter((0.0, 4.0, 6.0, 12.0))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    assert lines(capsys, True) == ["cells: 2 of 3, 0:00:03 left, no. 1", "cells: 3 of 3, 0:00:00 left, no. 2"]


def test_work_that_becomes_known_later_is_counted(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter((0.0, 6.0, 7.0, 12.0))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    assert [line[:13] for line in lines(capsys, True, total=0)] == ["cells: 1 of 1", "cells: 3 of 3"]


@pytest.mark.parametrize("show", [None, False])
def test_nothing_unless_it_is_wanted(
    show: bool | None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "PAUSE", -1.0)
    assert lines(capsys, show) == []
