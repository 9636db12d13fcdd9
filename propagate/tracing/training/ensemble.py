"""Arms of one model in lockstep: a step of all of them is one function of the device, on CUDA one graph."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from propagate.tracing.training.arm import Arm
from propagate.tracing.training.batches import begins_of, held_out_of
from propagate.tracing.training.fused import fuse
from propagate.tracing.training.members import stack
from propagate.tracing.training.precision import products_in
from propagate.tracing.training.probes import evaluated, loss_of
from propagate.tracing.training.rows import plainly, row_norms, rows_for
from propagate.tracing.training.updates import Now

WARM_UP = 3
"""Steps that nothing comes of, in which libraries make what they need: no graph may hold that."""
COLUMNS, ALL = 2**19, 2**40
"""Of gradients, that are summed at a time."""
State = dict[str, Any]


class Ensemble:
    """Members that differ in seed and rate, each trained as by the plain loop up to rounding.

    Whatever becomes of one member, the others do not see it: losses are summed, each has its own rows of every product
    and its own norm, and one that diverges keeps the weights of that step.

    Attributes:
        arms: of one model, corpus, plan, kind of optimiser, device and precision.
        learner: all members as one module: token ids (members, sequences, tokens) to logits.
    """

    def __init__(self, arms: Sequence[Arm], backend: str | None = None) -> None:
        """`backend`: of `torch.compile` for blocks and updates; None compiles nothing."""
        self.arms, one = list(arms), arms[0]
        plan, device, members = one.plan, one.device, len(arms)
        self.learner = one.learner()
        self._rows = rows_for(self.learner, one.optimizer, one.factors, members)
        views = {path: nn.Parameter(rows.view(rows.values, path)) for rows in self._rows for path in rows.places}
        self._fixed = {path: kept for path, kept in self.learner.state_dict().items() if path not in views}
        stack(self.learner, views)
        self._weights = views
        self._text = torch.from_numpy(one.corpus.stream("training").astype(np.int32)).to(device)
        self._begins = torch.from_numpy(_begins(self.arms)).to(device)
        self._window = torch.arange(one.model.tokens + 1, device=device)
        shares = [plan.share(step) for step in range(plan.steps)]
        self._shares = torch.tensor(shares, dtype=torch.float64, device=device)
        self._peaks = torch.tensor([[arm.optimizer.lr] for arm in arms], dtype=torch.float64, device=device)
        self._seen = torch.zeros(2, plan.steps, members, dtype=torch.float64, device=device)  # losses, norms
        self._alive = torch.zeros(members, 1, dtype=torch.bool, device=device)
        self._at = torch.zeros(1, dtype=torch.int64, device=device)
        self._held_out = held_out_of(one.corpus, one.model.tokens).to(device).expand(members, -1, -1)
        for seed in {arm.seed for arm in arms}:
            first = dataclasses.replace(one, seed=seed).learner().state_dict()
            for member in [place for place, arm in enumerate(arms) if arm.seed == seed]:
                self.load(member, {"learner": first})
        self._by: Callable[..., Any] = plainly(one.optimizer)
        self._norms: Callable[..., Any] = row_norms
        self._columns = COLUMNS
        if backend is not None:
            with products_in(one.precision, device):
                fuse(self.learner, self._held_out[:, : plan.batch, :-1], backend)
            self._by = torch.compile(self._by, backend=backend, fullgraph=True, dynamic=False)
            self._norms = torch.compile(row_norms, backend=backend, fullgraph=True, dynamic=False)
            self._columns = ALL  # compiled, it copies nothing
        self._graph = _captured(self._step, self._at) if self._at.is_cuda else None
        self.evaluated()  # so that it is known at once whether there is memory for it
        self._alive.fill_(True)

    def advance(self, begin: int, end: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Take steps `begin` to `end` - 1: losses and norms of gradients, (steps, members), waited for once."""
        self._at.fill_(begin)
        take = self._step if self._graph is None else self._graph.replay
        for _ in range(begin, end):
            take()
        losses, norms = self._seen[:, begin:end].cpu().numpy()
        return losses, norms

    def evaluated(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Loss and mean log Z of each member on the held-out sequences."""
        return evaluated(self.learner, self._held_out, self.arms[0].plan.batch)

    def state(self, member: int) -> State:
        """Copies: `learner`, as a plain language model's, and `optimizers`, the moments."""
        moments: dict[str, dict[str, Tensor]] = {}
        for rows in self._rows:
            for path in rows.places:
                moments[path] = {name: rows.view(m, path)[member].clone() for name, m in rows.moments.items()}
        return {"learner": self.weights(member), "optimizers": moments}

    def weights(self, member: int) -> dict[str, Tensor]:
        """Copies, by the paths of a plain language model."""
        trained = {path: weight.detach()[member].clone() for path, weight in self._weights.items()}
        return trained | self._fixed

    @torch.no_grad()
    def load(self, member: int, state: State) -> None:
        """What `state` gave; without moments they stay as they are.

        Raises:
            KeyError, RuntimeError, TypeError, AttributeError: for a state of another network.
        """
        for rows in self._rows:
            for path in rows.places:
                rows.view(rows.values, path)[member].copy_(state["learner"][path])
                for name, kept in rows.moments.items() if "optimizers" in state else ():
                    rows.view(kept, path)[member].copy_(state["optimizers"][path][name])

    def _step(self) -> None:
        """One step of all members, in which nothing is known on the host or comes from there."""
        one = self.arms[0]
        begins = self._begins.index_select(0, self._at)[0]
        ids = self._text[begins[..., None] + self._window].long()
        with products_in(one.precision, one.device):
            losses = loss_of(self.learner, ids)
            gradients = torch.autograd.grad(losses.sum(), list(self._weights.values()), allow_unused=True)
        with torch.no_grad():
            self._update(losses, dict(zip(self._weights, gradients, strict=True)))

    def _update(self, losses: Tensor, gradients: dict[str, Tensor | None]) -> None:
        plan = self.arms[0].plan
        for rows in self._rows:
            rows.fill_gradient({path: found for path in rows.places if (found := gradients[path]) is not None})
        norms = [self._norms(rows.gradient, self._columns) for rows in self._rows]
        norm = torch.linalg.vector_norm(torch.stack(norms), dim=0)
        losses = losses.double()
        self._seen.index_copy_(1, self._at, torch.stack([losses, norm])[:, None])
        self._alive.logical_and_((losses.isfinite() & norm.isfinite())[:, None])
        scale = torch.ones_like(norm) if plan.clip is None else torch.where(norm > plan.clip, plan.clip / norm, 1.0)
        rate = torch.where(self._alive, self._peaks * self._shares.index_select(0, self._at), 0.0)
        self._at.add_(1)
        now = Now(rate, self._at.double())
        for rows in self._rows:
            rows.update(self._by, scale[:, None], self._alive, now)


def _begins(arms: Sequence[Arm]) -> NDArray[np.int64]:
    """Where the sequences begin that the plain loop would draw, (steps, members, batch)."""
    corpus, tokens, plan = arms[0].corpus, arms[0].model.tokens, arms[0].plan
    of_seed = {
        seed: np.array([begins_of(corpus, tokens, plan.batch, seed, step) for step in range(plan.steps)])
        for seed in {arm.seed for arm in arms}
    }
    return np.stack([of_seed[arm.seed] for arm in arms], axis=1)


def _captured(step: Any, at: Tensor) -> torch.cuda.CUDAGraph:
    """The graph of a step. No member is alive, so that nothing comes of those that are taken first."""
    with torch.cuda.device(at.device):
        aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(WARM_UP):
                at.zero_()
                step()
        torch.cuda.current_stream().wait_stream(aside)
        at.zero_()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
    return graph
