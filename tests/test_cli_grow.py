"""`propagate grow`: what it prints is `predict_growth`, beside the network before, and judged where it is simulated."""

import json

import pytest

import propagate as pg
from propagate import cli

SIZE = {"depth": 2, "width": 64, "tokens": 4, "heads": 4}
LINE = ["grow", "prenorm", "--covariance", "0.3", *(word for name, n in SIZE.items() for word in (f"--{name}", str(n)))]


def run(line: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> tuple[int, str, str]:
    monkeypatch.setattr("sys.argv", ["propagate", *line])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    printed = capsys.readouterr()
    return int(ended.value.code or 0), printed.out, printed.err


def test_before_after_and_fresh(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    code, out, _ = run([*LINE, "--times", "3", "--scale-init", "0.5", "--rescaled"], capsys, monkeypatch)
    model = pg.Model("prenorm", scaling=pg.ScaleInit(0.5), **SIZE)
    said = pg.predict_growth(model, pg.Start(covariance=0.3), times=3, rescaled=True)
    rows = [line.split() for line in out.splitlines()]
    assert code == 0
    assert " ".join(rows[0]) == (
        "block copy stream before stream after stream fresh gradient before gradient after gradient fresh"
    )
    assert [row[:2] for row in rows[1:]] == [[str(block), str(max(-(-block // 2), 1))] for block in range(7)]
    assert rows[-1][2] == "-"
    assert float(rows[-1][3]) == pytest.approx(float(said.variance[6]), rel=1e-4)
    assert float(rows[-1][4]) == pytest.approx(float(said.variance_fresh[6]), rel=1e-4)
    assert float(rows[3][2]) == pytest.approx(float(pg.predict(model, covariance=0.3).variance[2]), rel=1e-4)


def test_simulated_and_judged(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    line = [*LINE, "--draws", "16", "--backend", "numpy"]
    code, out, _ = run([*line, "--json"], capsys, monkeypatch)
    table = json.loads(out)
    assert code == {"agrees": 0, "cannot tell": 3}[table["attributes"]["verdict"]]
    assert table["variance_before"][3:] == [None, None]
    assert abs(table["variance_measured"][4] - table["variance"][4]) < 5 * table["variance_measured_se"][4]
    right = pg.predict_growth
    monkeypatch.setattr(pg, "predict_growth", lambda *given, **options: 1.5 * right(*given, **options))
    code, out, _ = run(line, capsys, monkeypatch)
    assert (code, "simulation disagree" in out, "stream measured" in out) == (1, True, True)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--experts", "4:2"], "predict_growth needs experts=None"),
        (["--times", "0"], "times must be at least 1"),
        (["--draws", "1"], "draws must be at least 2"),
    ],
)
def test_what_is_refused(
    more: list[str], words: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, _, err = run([*LINE, *more], capsys, monkeypatch)
    assert (code, words in err) == (2, True), err
