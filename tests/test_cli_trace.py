"""`propagate trace` measures a configuration or a checkpoint on a text, prints, draws and stores it."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from propagate.cli import app

pytest.importorskip("torch", reason="torch is absent: install the extra [torch]")
pytest.importorskip("transformers", reason="transformers is absent: install the extra [text]")

RUN = CliRunner()
BERT = {
    "model_type": "bert",
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "vocab_size": 256,
}


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    config, text = tmp_path / "config.json", tmp_path / "text.txt"
    config.write_text(json.dumps(BERT))
    text.write_text("In the beginning was the word. " * 20)
    return config, text


def test_table_picture_and_file(files: tuple[Path, Path], tmp_path: Path) -> None:
    config, text = files
    sizes = ["--tokens", "8", "--sequences", "4", "--draws", "3"]
    targets = ["--plot", str(tmp_path / "p.png"), "--out", str(tmp_path / "t.nc")]
    done = RUN.invoke(app, ["trace", str(config), "--text", str(text), *sizes, *targets])
    assert done.exit_code == 0, done.output
    assert "BertModel, 4 sequences of 8 tokens, 32 counted" in done.output
    assert "Theory of PostNorm" in done.output
    assert (tmp_path / "p.png").read_bytes()[1:4] == b"PNG"
    import xarray as xr

    stored = xr.load_dataset(tmp_path / "t.nc")
    assert stored.attrs["draws"] == 3
    assert {"variance", "variance_se", "theory_grad_variance"} <= set(stored)


def test_json(files: tuple[Path, Path]) -> None:
    done = RUN.invoke(app, ["trace", str(files[0]), "--text", str(files[1]), "--draws", "1", "--json"])
    assert len(json.loads(done.stdout)["variance"]) == 4


def test_bad_input_ends_in_one_line_and_status_2(files: tuple[Path, Path], tmp_path: Path) -> None:
    config, text = map(str, files)
    for arguments, named in (
        ([config, "--text", text], "no weights"),
        ([config, "--text", str(tmp_path / "absent")], "--text"),
        ([config, "--text", text, "--draws", "0"], "--draws"),
        ([config, "--text", text, "--plot", "x.gif"], "--plot"),
        ([config, "--text", text, "--out", str(tmp_path / "no" / "t.nc")], "--out"),
    ):
        done = RUN.invoke(app, ["trace", *arguments])
        assert done.exit_code == 2
        assert named in done.output
        assert done.output.count("\n") == 1
    assert RUN.invoke(app, ["weights", "llama"]).exit_code == 2
