"""Small language models, trained, stacked on themselves, and trained on: `load()` reads the record.

Running this file trains afresh, on the text that comes with the package: ten minutes on two cores that do nothing else.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import propagate as pg
from propagate.files import replace

if TYPE_CHECKING:
    from propagate.tracing.build import LanguageModel

STORED = Path(__file__).resolve().parent / "measured" / "growth.json"
PLACEMENTS = ("prenorm", "spannorm", "postnorm", "deepnorm", "layernormscaling", "periln")
TRAINED_ON = ("prenorm", "spannorm")
SIZES: dict[str, Any] = {
    "depth": 4,
    "width": 64,
    "tokens": 32,
    "heads": 4,
    "activation": "swiglu",
    "ffn_ratio": 2.0,
    "causal": True,
    "rope": 10000.0,
}
SEEDS, STEPS, MORE, EVERY, BATCH, RATE = (0, 1), 150, 75, 25, 8, 4e-3
FACTORS = (0.0, 0.25, 0.5, 0.7071, 1.0)
WAYS: dict[str, dict[str, Any]] = {
    **{f"copy {f:g}": {"branches": (1.0, f)} for f in FACTORS},
    **{f"both {f:g}": {"branches": f} for f in FACTORS[2:4]},
    **{f"adjacent {f:g}": {"branches": f, "adjacent": True} for f in (0.5, 0.7071, 1.0)},
}
"""How a network is stacked: factors on the second copy's branches, on both copies', copies of blocks side by side."""
STARTS = ("copy 1", "copy 0", "adjacent 0.5")
"""Of those that are trained on; beside them a network of the whole depth, from its own initialisation."""


def load() -> dict[str, Any]:
    """The stored measurement, as `main` wrote it."""
    return dict(json.loads(STORED.read_text(encoding="utf-8")))


def model_of(placement: str, depth: int = 4) -> pg.Model:
    """DeepNorm has gains of its own."""
    scaling = None if placement == "deepnorm" else pg.ScaleInit(0.5)
    return pg.Model(placement, scaling=scaling, **SIZES | {"depth": depth})


def trained(learner: LanguageModel, text: pg.Corpus, seed: int, first: int, steps: int) -> list[float]:
    """In place, by Adam at a rate that rises over 20 steps and then stays; held-out losses every so many updates."""
    import torch

    from propagate.tracing.training.batches import batch_of, held_out_of
    from propagate.tracing.training.probes import evaluated, loss_of

    optimizer = torch.optim.Adam(learner.parameters(), lr=RATE)
    held_out, seen = held_out_of(text, SIZES["tokens"]), []
    for step in range(steps + 1):
        if step % EVERY == 0:
            seen.append(float(evaluated(learner, held_out, BATCH)[0]))
        if step == steps:
            break
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, (step + 1) / 20)
        optimizer.zero_grad()
        loss_of(learner, batch_of(text, SIZES["tokens"], BATCH, seed, first + step)).backward()
        torch.nn.utils.clip_grad_norm_(learner.parameters(), 1.0)
        optimizer.step()
    return seen


def at_growth(learner: LanguageModel, text: pg.Corpus, way: dict[str, Any]) -> dict[str, float] | None:
    """Loss, norm of its gradient and size of the last stream right after stacking; None where a way is refused."""
    try:
        stack = pg.grow(learner, **way)
    except pg.ModelError:
        return None
    return measured(stack, text)


def measured(learner: LanguageModel, text: pg.Corpus) -> dict[str, float]:
    """On held-out sequences: loss, norm of its gradient by all parameters, mean square of the last block's stream."""
    import torch

    from propagate.tracing.training.batches import held_out_of
    from propagate.tracing.training.probes import loss_of

    ids, streams = held_out_of(text, SIZES["tokens"]), []
    handle = learner.network.blocks[-1].register_forward_hook(lambda _, __, out: streams.append(out.detach()))
    loss = loss_of(learner, ids)
    grads = torch.autograd.grad(loss, list(learner.parameters()))
    handle.remove()
    size = sum(float(g.double().square().sum()) for g in grads)
    return {"loss": float(loss.detach()), "grad_norm": size**0.5, "variance": float(streams[0].square().mean())}


def main() -> None:
    """Every placement and seed; the two of `TRAINED_ON` are trained on."""
    import torch

    text, found = pg.corpus(), {"moments": {}, "before": {}, "losses": {}, "on": {}}
    for placement in PLACEMENTS:
        for seed in SEEDS:
            key = f"{placement} {seed}"
            learner = pg.build_language_model(model_of(placement), text.vocabulary, seed=seed)
            found["losses"][key] = trained(learner, text, seed, 0, STEPS)
            found["before"][key] = measured(learner, text)
            found["moments"][key] = {name: at_growth(learner, text, way) for name, way in WAYS.items()}
            print(key, found["before"][key], found["moments"][key], flush=True)
            if placement in TRAINED_ON:
                runs = {name: pg.grow(learner, **WAYS[name]) for name in STARTS}
                runs["shallow, on"] = learner
                runs["deep, from scratch"] = pg.build_language_model(model_of(placement, 8), text.vocabulary, seed=seed)
                for name, one in runs.items():
                    scratch = name == "deep, from scratch"
                    steps = STEPS + MORE if scratch else MORE
                    found["on"][f"{key} {name}"] = trained(one, text, seed, 0 if scratch else STEPS, steps)
                    print(key, name, found["on"][f"{key} {name}"][-1], flush=True)
    replace(STORED, (json.dumps(found | {"every": EVERY, "steps": STEPS, "torch": torch.__version__}) + "\n").encode())
    print(STORED, file=sys.stderr)


if __name__ == "__main__":
    main()
