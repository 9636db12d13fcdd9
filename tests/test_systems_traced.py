"""Released systems' own classes in `transformers`, small: traces of eight initialisations are what is predicted."""

import dataclasses
import json
import warnings
from typing import Any

import pytest

import propagate as pg
from propagate.checkout import folder, importable

importable("docs")

from docs import systems_page  # noqa: E402

ROWS = json.loads((folder("benchmarks") / "results" / "systems.json").read_text())["rows"]
SLOW_TO_CONVERGE = [f"param_grad[{name}]" for name in ("query", "query_down", "key", "key_rotary")]
OTHER = {"before": "after", "sigmoid_after": "after"}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["name"])
def test_committed_systems_keep_to_theory(row: dict[str, Any]) -> None:
    """Within 6 %, but for gradients of the logits' matrices, which simulated networks of the same sizes have too."""
    for quantity, found in row["quantities"].items():
        again = row["simulated"][quantity]
        for at, ratio in enumerate(found["ratio"]):
            if ratio is not None and abs(ratio - 1) > systems_page.BAND:
                assert quantity in SLOW_TO_CONVERGE, at
                assert abs(again["ratio"][at] - 1) < systems_page.BAND, (quantity, at)


def test_the_page_is_made_of_them() -> None:
    page = systems_page.page()
    for row in ROWS:
        worst = row["worst"]["stream"]
        number = f"{worst['ratio']:.3f} ±\N{NO-BREAK SPACE}"
        assert f"\n| {row['name']} | {worst['quantity']}, block {worst['block']} | {number}" in page


@pytest.mark.slow
@pytest.mark.parametrize("name", ["DeepSeek-V2", "DeepSeek-V3", "LongCat-Flash"])
def test_traces_of_eight_initialisations_keep_to_theory(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within 6 % or four standard errors; with another softmax they do not."""
    torch = pytest.importorskip("torch", reason="torch is absent: install the extra [torch]")
    pytest.importorskip("transformers")
    monkeypatch.syspath_prepend(folder("benchmarks"))
    import systems

    torch.set_num_threads(1)
    model = pg.describe(systems.made(name, 0, 512), tokens=systems.TOKENS).model
    experts = model.experts
    wrong = dataclasses.replace(model, experts=experts.with_(softmax=OTHER[experts.softmax]))

    def beyond(given: pg.Model) -> list[str]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", pg.ValidityWarning)
            found = systems.row_of(name, 512, 16, 8, given)["quantities"]
        return [
            quantity
            for quantity, one in found.items()
            for ratio, error in zip(one["ratio"], one["se"], strict=True)
            if ratio is not None and abs(ratio - 1) > max(0.06, 4 * error) and quantity not in SLOW_TO_CONVERGE
        ]

    assert beyond(model) == []
    assert "param_grad[router]" in beyond(wrong)
