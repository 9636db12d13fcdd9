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


T5 = {"model_type": "t5", "d_model": 32, "num_layers": 2, "num_heads": 2, "d_ff": 64, "d_kv": 16, "vocab_size": 256}
VIT = BERT | {"model_type": "vit", "image_size": 16, "patch_size": 4}


def test_a_stack_of_several_images_and_inputs_of_ones_own(files: tuple[Path, Path], tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    config, text = files
    config.write_text(json.dumps(T5))
    few = ["--tokens", "8", "--sequences", "2", "--draws", "1"]
    refused = RUN.invoke(app, ["trace", str(config), "--text", str(text), *few])
    assert (refused.exit_code, "name one with blocks=" in refused.output) == (2, True)
    done = RUN.invoke(app, ["trace", str(config), "--text", str(text), *few, "--blocks", "encoder.block"])
    assert "T5Model, 2 sequences of 8 tokens" in done.output
    config.write_text(json.dumps(VIT))
    assert "ViTModel, 2 images of 17 tokens" in RUN.invoke(app, ["trace", str(config), *few]).output
    config.write_text(json.dumps(BERT))
    save_file({"input_ids": torch.ones(3, 5, dtype=torch.long)}, tmp_path / "own.safetensors")
    own = RUN.invoke(app, ["trace", str(config), "--draws", "1", "--inputs", str(tmp_path / "own.safetensors")])
    assert "BertModel, 3 sequences of 5 tokens" in own.output


@pytest.mark.parametrize(
    ("settings", "options", "weights", "said"),
    [
        (BERT | {"max_position_embeddings": 16}, ["--draws", "1"], None, "cannot be run on these inputs"),
        (BERT | {"num_attention_heads": 3}, ["--draws", "1"], None, "makes no model"),
        (BERT | {"hidden_size": "x"}, ["--draws", "1"], None, "makes no model"),
        (BERT, ["--tokens", "8"], b"garbage", "is no file of safetensors"),
        (BERT, ["--tokens", "0", "--draws", "1"], None, "tokens must be at least 1"),
        (BERT, ["--draws", "1", "--blocks", "nowhere"], None, "must be the path of a module"),
        (BERT, ["--draws", "1", "--inputs", "absent"], None, "--inputs stands in place of --text"),
    ],
)
def test_what_does_not_fit_ends_in_one_line(
    settings: dict, options: list[str], weights: bytes | None, said: str, files: tuple[Path, Path]
) -> None:
    config, text = files
    config.write_text(json.dumps(settings))
    if weights is not None:
        (config.parent / "model.safetensors").write_bytes(weights)
    done = RUN.invoke(app, ["trace", str(config.parent), "--text", str(text), *options])
    assert (done.exit_code, said in done.output, done.output.count("\n")) == (2, True, 1)


def test_weights_of_another_size_are_refused(files: tuple[Path, Path]) -> None:
    from safetensors.torch import save_file

    from propagate.tracing.checkpoints import load

    config, text = files
    save_file(load(config, seed=0).state_dict(), config.parent / "model.safetensors")
    config.write_text(json.dumps(BERT | {"intermediate_size": 32}))
    done = RUN.invoke(app, ["trace", str(config.parent), "--text", str(text), "--tokens", "8"])
    assert (done.exit_code, "are of another model" in done.output, done.output.count("\n")) == (2, True, 1)
