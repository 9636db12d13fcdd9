"""The gradient of the load-balance loss: what is predicted is what torch finds for the loss written out."""

import math

import numpy as np
import pytest

import propagate as pg

torch = pytest.importorskip("torch", reason="torch is absent: install the extra [torch]")

KIND = pg.Experts(12, 4, 1.5, softmax="before", identity=6)


def measured(
    kind: pg.Experts, aim: float, tokens: int, correlation: float, networks: int = 120, width: int = 96
) -> np.ndarray:
    """Mean squares by logits and by entries of the router, (networks, 2)."""
    draw, found = torch.Generator().manual_seed(0), []
    for _ in range(networks):
        x = math.sqrt(correlation) * torch.randn(width, generator=draw, dtype=torch.float64)
        x = x + math.sqrt(1 - correlation) * torch.randn(tokens, width, generator=draw, dtype=torch.float64)
        router = torch.randn(width, 18, generator=draw, dtype=torch.float64) * (1.5 / math.sqrt(width))
        router.requires_grad_()
        logits = x @ router
        scores = logits.sigmoid() if kind.logistic else logits.exp()
        softmax = scores / scores.sum(-1, keepdim=True)
        chosen = torch.zeros_like(softmax).scatter(1, softmax.topk(4, dim=-1).indices, 1.0)
        loss = torch.zeros(())
        for expert in range(12):
            loss = loss + 12 / (aim * tokens) * chosen[:, expert].sum() * softmax[:, expert].mean()
        of_identity = chosen[:, 12:].sum() / ((4 - aim) * tokens)
        loss = loss + of_identity * softmax[:, 12:].sum(-1).mean()
        by_logits, by_router = torch.autograd.grad(loss, (logits, router))
        found.append([float(by_logits.square().mean()), float(by_router.square().mean())])
    return np.array(found)


@pytest.mark.few(1)
@pytest.mark.parametrize(
    ("aim", "correlation", "softmax"), [(8 / 3, 0.0, "before"), (8 / 3, 0.5, "sigmoid_after"), (3.0, 0.5, "before")]
)
def test_the_mean_squares_are_those_of_autograd(aim: float, correlation: float, softmax: str) -> None:
    kind, other = KIND.with_(softmax=softmax), "before" if softmax.startswith("sigmoid") else "sigmoid"
    said = pg.balance_gradient(kind, 40, expected=aim, correlation=correlation)
    seen = measured(kind, aim, 40, correlation)
    for at, (value, own) in enumerate(((said.logits, said.logits_se), (said.router, said.router_se))):
        error = math.hypot(seen[:, at].std() / math.sqrt(len(seen)), own)
        assert abs(seen[:, at].mean() - value) < 4 * error
        for changed in ({"experts": kind.with_(softmax=other)}, {"correlation": 0.5 - correlation}):
            wrong = pg.balance_gradient(
                **{"experts": kind, "tokens": 40, "expected": aim, "correlation": correlation} | changed
            )
            assert abs(seen[:, at].mean() - (wrong.logits, wrong.router)[at]) > 4 * error


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: pg.balance_gradient("mixture", 8), "experts must be propagate.Experts"),
        (lambda: pg.balance_gradient(KIND, 8, expected=4.0), "expected must be below 4"),
        (lambda: pg.balance_gradient(pg.Experts(4, 2), 8, expected=1.0), "expected must be None or 2"),
        (lambda: pg.balance_gradient(KIND, 8, correlation=2.0), "correlation must lie between 0 and 1"),
        (lambda: pg.balance_gradient(KIND, 2**40), "needs .* GiB of memory"),
    ],
)
def test_what_is_refused(call, words: str) -> None:
    with pytest.raises(pg.ModelError, match=words):
        call()
