"""A coordinate check names the matrix whose rate, multiplier or gain is wrong, and stays quiet where none is."""

import re
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

import propagate as pg
from propagate.transfer import Factors, MuP, kind_of

torch = pytest.importorskip("torch", reason="torch is absent: install the extra [torch]")
nn = torch.nn

torch.set_num_threads(1)
MODEL = pg.Model("prenorm", depth=1, heads=2, tokens=6, activation="gelu")
WIDTHS = (32, 64, 128)
QUICK: dict[str, Any] = {"optimizer": pg.Adam(lr=2e-3), "widths": WIDTHS, "steps": 1, "draws": 4}


@dataclass(frozen=True)
class Wrong:
    """muP with one kind's rate or multiplier wrong."""

    kind: str
    rate: float = 0.0
    multiplier: float = 0.0

    def factors(self, kind: Any, width: Any, depth: Any) -> Factors:
        right = MuP().factors(kind, width, depth)
        if kind != self.kind:
            return right
        return replace(right, lr=right.lr * width**self.rate, multiplier=right.multiplier * width**self.multiplier)


def matrices(check: pg.CoordinateCheck) -> list[str]:
    """Those that depart by themselves, not by what reaches them alone."""
    return list(dict.fromkeys(one.name for one in check.departures if one.quantity != "change" and not one.follows))


@pytest.fixture(scope="module")
def right() -> pg.CoordinateCheck:
    return pg.coordinate_check(MODEL, transfer="mup", **QUICK)


def test_mup_is_as_wanted(right: pg.CoordinateCheck) -> None:
    assert right.verdict != "disagrees", right
    assert all(abs(one.slope.value) < 0.15 for one in right.findings if one.quantity == "response")


@pytest.mark.parametrize(
    "wrong",
    [
        Wrong("branch_out", rate=0.5),
        Wrong("unembedding", multiplier=0.5),
        pytest.param(Wrong("embedding", rate=-1), marks=pytest.mark.slow),
        pytest.param(Wrong("hidden", rate=1), marks=pytest.mark.slow),
        pytest.param(Wrong("hidden", multiplier=-0.5), marks=pytest.mark.slow),
    ],
    ids=repr,
)
def test_each_wrong_kind_is_named(wrong: Wrong, right: pg.CoordinateCheck) -> None:
    check = pg.coordinate_check(MODEL, transfer=wrong, **QUICK)
    assert check.verdict == "disagrees"
    assert {kind_of(name) for name in matrices(check)} == {wrong.kind}, check
    exponent = wrong.rate + wrong.multiplier
    (first, *_) = [one for one in check.departures if one.quantity == "response"]
    assert first.rule == pytest.approx(exponent, abs=0.02)
    assert first.slope.value == pytest.approx(exponent, abs=0.15)
    assert f"{'falls' if exponent < 0 else 'grows'} as width^{first.slope}; it should go as width^0" in check.summary
    after = {one.name for one in check.departures if one.follows}
    assert ("whose response departs after these" in check.summary) == bool(after)
    others = [name for name in right.table.name.values if kind_of(name) != wrong.kind]
    for quantity in ("response", "gain") if wrong.rate else ():
        # a rate is of one matrix alone: all others respond as before, to the bit
        found, before = (table[quantity].sel(name=others) for table in (check.table, right.table))
        np.testing.assert_array_equal(found, before)


@pytest.mark.parametrize(
    "optimizer",
    [pg.SGD(lr=1e-2), pg.Adam(lr=1e-3, eps=1.0), pg.Muon(lr=1e-2, scale="rms")],
    ids=lambda one: type(one).__name__,
)
def test_the_slope_that_the_factors_give_is_the_measured_one(optimizer: Any) -> None:
    """Under a rule that is wrong for all of these, so that exponents are not 0."""
    model = pg.Model("spannorm", depth=1, heads=2, tokens=6)
    settings = QUICK | {"optimizer": optimizer, "loss": pg.Linear()}
    check = pg.coordinate_check(model, transfer=Wrong("hidden", rate=1.5), **settings)
    found = {one.name: one for one in check.findings if one.quantity == "response"}
    apart = [one.slope.value - one.rule for one in found.values()]
    assert max(map(abs, apart)) < 0.2, check
    assert max(abs(one.rule) for one in found.values()) > 0.4  # so no law at all would not pass
    assert check.verdict == "disagrees"


def test_over_depths_a_branch_is_to_fall_as_the_rule_says() -> None:
    settings: dict[str, Any] = {"optimizer": pg.Adam(lr=1e-3), "depths": (2, 4, 8), "steps": 1, "draws": 3}
    model = pg.Model("prenorm", depth=2, width=32, heads=2, tokens=4)
    check = pg.coordinate_check(model, transfer="complete-p", **settings)
    found = {one.name: one for one in check.findings if one.quantity == "response"}
    assert found["ffn_out"].wanted == pytest.approx(-1)
    assert check.verdict != "disagrees", check
    without = pg.coordinate_check(model, transfer="mup", **settings)  # which leaves branches as they are
    assert "stream" in [one.name for one in without.departures]


def test_both_witnesses_find_the_same_exponents(right: pg.CoordinateCheck) -> None:
    traced = pg.coordinate_check(MODEL, transfer="mup", by="torch", **QUICK).table
    for quantity in ("response", "gain"):
        ours, theirs = (table[f"log_{quantity}"] for table in (right.table, traced))
        errors = np.hypot(right.table[f"log_{quantity}_se"], traced[f"log_{quantity}_se"])
        apart = np.abs(ours - theirs) / np.maximum(errors, 0.01)
        assert float((apart.isel(step=1) if "step" in apart.dims else apart).max()) < 8  # of four networks each


def test_what_no_matrix_does_by_itself_shows_in_the_stream() -> None:
    """Queries and keys turn towards one another, and logits over the root of a growing head add that up."""
    settings: dict[str, Any] = {"optimizer": pg.Muon(lr=0.01), "transfer": "spectral", "loss": pg.Linear(), "steps": 2}
    settings |= {"widths": (256, 1024, 4096), "draws": 4}
    model = pg.Model("prenorm", depth=1, heads=2, tokens=4)
    found = pg.coordinate_check(model, **settings)
    assert [one.name for one in found.departures] == ["stream"], found
    assert "No matrix departs by itself" in found.summary
    assert pg.coordinate_check(replace(model, logit_std=0.0), **settings).verdict == "agrees"


class Scaled(nn.Linear):
    def __init__(self, fan_in: int, fan_out: int, std: float = 1.0, multiplier: float = 1.0) -> None:
        super().__init__(fan_in, fan_out)
        self.multiplier = multiplier
        nn.init.normal_(self.weight, std=std * fan_in**-0.5)

    def forward(self, x: Any) -> Any:
        return super().forward(self.multiplier * x)


def network(width: int, zero: bool = False) -> Any:
    ratio = width / WIDTHS[0]
    head = Scaled(width, 5, std=0.0 if zero else ratio**0.5, multiplier=1 / ratio)
    return nn.Sequential(Scaled(8, width), nn.ReLU(), Scaled(width, width), nn.ReLU(inplace=True), head)


def rates(module: Any, width: int, wrong: str = "", factor: float = 1.0) -> Any:
    groups = []
    for name, parameter in module.named_parameters():
        lr = 1e-3 * (WIDTHS[0] / width if name == "2.weight" else 1.0) * (factor if name == wrong else 1.0)
        groups.append({"params": [parameter], "lr": lr})
    return torch.optim.Adam(groups)


FAMILY: dict[str, Any] = {
    "inputs": lambda draw: torch.randn((12, 8), generator=torch.Generator().manual_seed(draw)),
    "loss": lambda output: nn.functional.cross_entropy(output, torch.arange(12) % 5),
    "widths": WIDTHS,
    "draws": 6,
    "steps": 1,
}


def test_of_any_torch_family_the_parameter_is_named() -> None:
    assert pg.coordinate_check(network, optimizer=rates, **FAMILY).verdict != "disagrees"
    for wrong, exponent in (("2.weight", 1.0), ("0.weight", -0.5), ("2.bias", -1.0)):
        check = pg.coordinate_check(
            network, optimizer=lambda m, w, n=wrong, e=exponent: rates(m, w, n, (w / WIDTHS[0]) ** e), **FAMILY
        )
        assert matrices(check) == [wrong], check


def test_the_response_is_that_of_the_change_of_one_parameter() -> None:
    from propagate.tracing.family import coordinates_of_family

    x, module = torch.randn((3, 8), generator=torch.Generator().manual_seed(1)), network(16)
    before, bias = module[0].weight.detach().clone(), module[0].bias.detach().clone()
    (seen,) = coordinates_of_family(lambda width: module, 16, x, torch.sum, rates, 1, [4])

    def rms(value: Any) -> float:
        return float(value.detach().square().mean().sqrt())

    moved = module[0].weight - before
    assert seen.response["0.weight"][1] == pytest.approx(rms(x @ moved.T) / rms(x), rel=1e-4)
    assert seen.own_change["0.bias"][1] == pytest.approx(rms(module[0].bias - bias), rel=1e-4)
    assert seen.gain["0.weight"] == pytest.approx(rms(x @ before.T + bias) / rms(x), rel=1e-6)


def test_behind_a_head_of_zeros_the_second_step_is_judged_and_what_never_moves_is_not() -> None:
    def frozen(module: Any, width: int) -> Any:
        return rates(module, width, "2.bias", 0.0)

    check = pg.coordinate_check(lambda w: network(w, zero=True), optimizer=frozen, **FAMILY | {"steps": 2})
    steps = dict(zip(check.table.name.values, check.table.judged_step.values, strict=True))
    assert steps["4.weight"] == 1
    assert steps["2.weight"] == 2
    assert steps["2.bias"] == 0
    assert "2.bias" not in {one.name for one in check.findings if one.quantity == "response"}
    assert check.verdict != "disagrees", check


def test_text_and_picture_say_what_departs() -> None:
    check = pg.coordinate_check(MODEL, transfer="standard", **QUICK)
    assert "query" in str(check)
    assert str(check).endswith(check.summary)
    assert re.match(
        r"The gain of attention's query matrix grows as width\^0\.[45]\d ± 0\.\d\d; it should", check.summary
    )
    figure = check.plot()
    titles = [axis.get_title().split()[0] for axis in figure.axes if axis.get_visible()]
    assert titles == [*check.table.name.values, "stream", "logits"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"widths": (32,)}, "widths must be at least two"),
        ({"widths": 32}, "widths must be a list"),
        ({"depths": (1, 2)}, "widths and depths must not both"),
        ({"widths": (32, 33)}, "heads must divide the width"),
        ({"optimizer": "adam"}, "optimizer must be one of"),
        ({"transfer": "mub"}, "transfer must be one of"),
        ({"inputs": 1}, "inputs must be left out"),
        ({"tolerance": 0}, "tolerance must be positive"),
    ],
)
def test_what_does_not_fit_is_refused_before_any_work(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(pg.ModelError, match=message):
        pg.coordinate_check(MODEL, **QUICK | changes)


def test_a_family_needs_its_functions() -> None:
    for changes, message in (
        ({"optimizer": pg.SGD(lr=0.1)}, "optimizer and loss must be functions"),
        ({"transfer": "mup", "optimizer": rates}, "transfer and start must be left out"),
        ({"widths": None, "depths": (1, 2), "optimizer": rates}, "depths must be left out beside a function"),
        ({"optimizer": lambda m, w: None}, "optimizer must give an optimiser of torch"),
        ({"optimizer": rates, "loss": lambda output: output}, "loss must give a tensor with one number"),
    ):
        with pytest.raises(pg.ModelError, match=message):
            pg.coordinate_check(network, **FAMILY | changes)
    with pytest.raises(pg.ModelError, match="must give a torch module"):
        pg.coordinate_check(lambda width: 3, optimizer=rates, **FAMILY)
    with pytest.raises(pg.ModelError, match="all sizes must have the same parameters"):
        pg.coordinate_check(lambda w: network(w)[: 3 if w == 64 else 5], optimizer=rates, **FAMILY)
