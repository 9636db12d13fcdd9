"""The stability suite: what theory predicts of gradients, the hidden z-loss and routers is what torch finds."""

import math
from functools import cache
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import propagate as pg
from propagate.diagnosis import Diagnosis, lines_of
from propagate.theory.gaussian.hidden_z import hidden_z

torch = pytest.importorskip("torch", reason="torch is absent: install the extra [torch]")

SIZES: dict[str, Any] = {"depth": 3, "width": 64, "tokens": 8, "heads": 8, "activation": "swiglu", "ffn_ratio": 2.0}
MIXTURE = pg.Experts(6, 2, 1.5, softmax="before", gain=2.0)
MODELS = {
    "span": pg.Model("spannorm", scaling=pg.ScaleInit(0.5), **SIZES),
    "pre, causal": pg.Model("prenorm", causal=True, **SIZES),
    "experts": pg.Model("prenorm", experts=MIXTURE, **SIZES | {"depth": 2}),
}
LOSS, NETWORKS, BATCH = pg.CrossEntropy(512, gain=0.5), 24, 4


@cache
def measured(case: str) -> dict[tuple[int, str], np.ndarray]:
    """Of every network, by block and name: mean squares of gradients; and what is said of the stream and of routers."""
    from propagate.tracing.build import build_language_model
    from propagate.tracing.training.pieces import pieces_of

    model, found = MODELS[case], {}

    def add(block: int, name: str, value: float) -> None:
        found.setdefault((block, name), []).append(value)

    for seed in range(NETWORKS):
        learner = build_language_model(model, LOSS.vocabulary, seed=seed)
        with torch.no_grad():
            learner.head.weight *= LOSS.gain
        draw = torch.Generator().manual_seed(1000 + seed)
        ids, targets = torch.randint(LOSS.vocabulary, (2, BATCH, model.tokens), generator=draw)
        streams, routers = [], []
        learner.network.blocks[-1].register_forward_hook(lambda _, __, out, kept=streams: kept.append(out))
        for index, block in enumerate(learner.network.blocks, start=1):
            for part in block.modules():
                if hasattr(part, "router"):
                    part.router.register_forward_hook(
                        lambda own, given, out, index=index, kept=routers: kept.append((index, own, given[0], out))
                    )
        logits = learner(ids)
        streams[0].retain_grad()
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten()).backward(retain_graph=True)
        squares: dict[tuple[int, str], list[float]] = {}
        for piece in pieces_of(learner):
            name = piece.name.replace("ffn", "expert") if model.experts else piece.name
            squares.setdefault((piece.block, name), []).append(float(piece.gradient().square().mean()))
        for (block, name), values in squares.items():
            add(block, name, float(np.mean(values)))
        once = [int(i) for i, count in zip(*torch.unique(ids, return_counts=True), strict=True) if count == 1]
        add(0, "row", float(learner.embedding.weight.grad[once].square().mean()))
        z = streams[0].detach().clone().requires_grad_()
        of_tokens = z.abs().logsumexp(-1).square()
        of_tokens.mean().backward()
        add(0, "hidden_z", float(of_tokens.detach().mean()))
        add(0, "hidden_z_grad", float(z.grad.square().mean()))
        add(0, "stream_grad", float(streams[0].grad.square().mean()))
        for index, own, _, logits in routers:
            rows = torch.nn.functional.normalize(own.weight.detach(), dim=-1)
            cosines = rows @ rows.mT
            add(index, "cosine", float(cosines[~torch.eye(len(rows), dtype=torch.bool)].square().mean()))
            balance = 0.0  # of the first sequence alone
            softmax = logits[: model.tokens].softmax(-1)
            shares = torch.zeros_like(softmax).scatter(1, softmax.topk(2, dim=-1).indices, 1.0).mean(0)
            balance = (shares * len(rows) / 2 * softmax.mean(0)).sum()
            (sent,) = torch.autograd.grad(balance, own.weight, retain_graph=True)
            add(index, "balance", float(sent.square().mean()))
    return {key: np.array(values) for key, values in found.items()}


def score(values: np.ndarray, said: float, allowance: float = 0.0) -> float:
    """Of the mean over networks; the allowance is relative."""
    return abs(values.mean() - said) / math.hypot(values.std(ddof=1) / math.sqrt(len(values)), allowance * said)


@pytest.mark.parametrize("case", [pytest.param(c, marks=[pytest.mark.slow] * (c == "experts")) for c in MODELS])
def test_the_rms_of_gradients_is_that_of_torch(case: str) -> None:
    seen, model = measured(case), MODELS[case]
    own, whole, wrong = (
        pg.diagnose(model, loss=loss, batch=batch).table
        for loss, batch in ((LOSS, BATCH), (LOSS, 1), (pg.CrossEntropy(512), BATCH))
    )
    blocks = range(1, model.depth + 1)
    places = [(block, str(name)) for block in blocks for name in own.matrix.values]
    scores = []
    for table in (own, whole, wrong):
        rms, allowed = table.grad_rms, table.grad_rms_allowance
        scores.append(
            [
                score(seen[block, name], float(rms.sel(block=block, matrix=name)) ** 2,
                      2 * float(allowed.sel(block=block, matrix=name)))
                for block, name in places
            ]
        )  # fmt: skip
    assert max(scores[0]) < 4, dict(zip(places, scores[0], strict=True))
    assert np.median(scores[1]) > 4  # a batch of one
    assert np.median(scores[2]) > 4  # another unembedding
    row = seen[0, "row"]
    assert score(row, float(own.embedding_grad_rms) ** 2, 0.05) < 4
    assert score(row, float(whole.embedding_grad_rms) ** 2 / BATCH, 0.05) > 4  # as if rows fell like matrices


def test_the_hidden_z_loss_is_that_of_streams_and_not_the_law_of_large_numbers() -> None:
    for case in MODELS:
        seen, table = measured(case), pg.diagnose(MODELS[case], loss=LOSS, batch=BATCH).table
        assert score(seen[0, "hidden_z"], float(table.hidden_z), 1 / 64) < 4, case
        assert score(seen[0, "hidden_z_grad"], float(table.hidden_z_grad_rms) ** 2, 2 / 64) < 4, case
        ratio = seen[0, "hidden_z_grad"].mean() / seen[0, "stream_grad"].mean()
        assert math.sqrt(ratio) == pytest.approx(float(table.hidden_z_ratio), rel=0.05), case
    draw = np.random.default_rng(0)
    for variance in (0.3, 8.0, 60.0):
        z = abs(draw.standard_normal((6000, 64))) * math.sqrt(variance)
        log = z.max(1) + np.log(np.exp(z - z.max(1, keepdims=True)).sum(1))
        gradient = 4 * log**2 * np.exp(2 * z - 2 * log[:, None]).mean(1)
        said = hidden_z(variance, 64)
        assert score(log**2, said.loss) < 4
        assert score(gradient, said.gradient) < 4
        # as if the sum were its mean, and as if the mean of the square were the square of the mean
        assert score(log**2, (math.log(64) + math.log(np.exp(z).mean())) ** 2) > 4 or variance < 1
        assert score(log**2, said.mean**2) > 4 or variance < 10
        assert score(gradient, 4 * said.loss / 64**2) > 4
    several = hidden_z(np.linspace(0.5, 30.0, 40), 64)
    assert several.loss[7] == pytest.approx(hidden_z(float(np.linspace(0.5, 30.0, 40)[7]), 64).loss, rel=1e-4)


def test_routers_are_as_torch_finds_them() -> None:
    seen, model = measured("experts"), MODELS["experts"]
    table = pg.diagnose(model, loss=LOSS, batch=1).table
    for block in (1, 2):
        assert score(seen[block, "cosine"], float(table.router_cosine[block]) ** 2) < 4
        assert score(seen[block, "cosine"], 2 / 64) > 4
        # the loss's own is of a batch of 4, and of one sequence four times that
        ratio = math.sqrt(seen[block, "balance"].mean() / seen[block, "router"].mean() / BATCH)
        assert ratio == pytest.approx(float(table.balance_ratio[block]), rel=0.2)
        assert ratio != pytest.approx(2 * float(table.balance_ratio[block]), rel=0.2)


def test_verdicts_are_computed_from_the_numbers() -> None:
    model = MODELS["experts"]
    found = pg.diagnose(model, loss=LOSS)
    least = float(found.table.grad_rms.where(found.table.grad_rms > 0).min())

    def said(**attributes: float) -> Diagnosis:
        table = found.table.assign_attrs(attributes)
        return Diagnosis(table, lines_of(table))

    for eps, verdict in ((0.0, "well"), (least / 200, "well"), (least / 50, "near"), (least / 5, "trouble")):
        line = said(eps=eps).line("eps, matrices")
        assert line.verdict == verdict
        assert line.value == pytest.approx(eps / (eps + least))
    for name, ratio in (("z_weight", found.table.hidden_z_ratio), ("balance_weight", found.table.balance_ratio.max())):
        line = "hidden z-loss" if name == "z_weight" else "router, balance"
        assert found.line(line).verdict == "known"
        for share, verdict in ((0.005, "well"), (0.05, "near"), (0.5, "trouble")):
            judged = said(eps=0.0, **{name: share / float(ratio)})
            assert (judged.line(line).verdict, judged.verdict) == (verdict, verdict)
            assert judged.line(line).value == pytest.approx(share, rel=1e-3)
    alike = found.table.assign(router_cosine=3 * found.table.router_cosine)
    assert [line.verdict for line in lines_of(alike) if line.name == "router, cosines"] == ["trouble"]


def test_gradients_fall_as_the_root_of_the_width_so_that_the_width_at_which_eps_bites_is_told() -> None:
    words = pg.diagnose(MODELS["span"], loss=LOSS).line("eps, matrices").words
    width = float(words.rsplit("width ", 1)[1])
    wide = pg.Model("spannorm", scaling=pg.ScaleInit(0.5), **SIZES | {"width": 2 ** round(math.log2(width))})
    share = pg.diagnose(wide, loss=LOSS).line("eps, matrices").value
    assert 0.06 < share < 0.15


def test_on_the_command_line_a_system_has_its_own_unembedding() -> None:
    from propagate.cli import app

    asked = ["diagnose", "vit-b", "--depth", "2", "--tokens", "4", "--json"]
    plain = CliRunner().invoke(app, asked)
    assert plain.exit_code == 0, plain.output
    assert "CrossEntropy(vocabulary=32768, gain=0.554" in plain.output
    bad = CliRunner().invoke(app, ["diagnose", "prenorm", "--depth", "2", "--eps", "0.1"])
    assert bad.exit_code == 1
    assert "trouble" in bad.output


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: pg.diagnose("prenorm"), "model must be a propagate.Model"),
        (lambda: pg.diagnose(MODELS["span"], pg.SGD(1.0)), "optimizer must be propagate.Adam"),
        (lambda: pg.diagnose(MODELS["span"], loss=pg.Linear()), "loss must be propagate.CrossEntropy"),
        (lambda: pg.diagnose(MODELS["span"], batch=0), "batch must be"),
        (lambda: pg.diagnose(MODELS["span"], z_weight=-1.0), "z_weight must be"),
        (lambda: pg.diagnose(MODELS["span"], start=pg.Start(covariance=0.5)), "start must hold only variance"),
        (lambda: hidden_z(1e5, 64), "variance must be at most 10000"),
        (lambda: hidden_z([1.0, math.nan], 64), "variance must hold numbers"),
    ],
)
def test_what_is_refused(call: Any, words: str) -> None:
    with pytest.raises(pg.ModelError, match=words):
        call()
