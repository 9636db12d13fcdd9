"""A 7B-shaped Llama traced on one device: time, peak memory, and agreement with theory.

    python benchmarks/llama_7b.py --device cuda --blocks 32 --output benchmarks/results/llama_7b_h100.json

Width 4096, 32 heads, FFN 11008, vocabulary 32000, random weights as `transformers` draws them, made on the device one
initialisation at a time. Memory is bounded: the weights of one, their gradients, and what autograd keeps of one pass
over `--sequences` x `--tokens` tokens, none of them twice in a sequence. Each initialisation is one draw; with two or
more the trace has standard errors, and `compare` judges the theory of what `describe` read off the first, sublayer by
sublayer, from where the trace begins. A theory with half the attention output must be rejected.
"""

from __future__ import annotations

import argparse
import dataclasses
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from timing import provenance, write

import propagate as pg

SHAPE = {"hidden_size": 4096, "num_attention_heads": 32, "intermediate_size": 11008, "vocab_size": 32000}
TINY = {"hidden_size": 64, "num_attention_heads": 2, "intermediate_size": 172, "vocab_size": 500}
TINY_STD, STD = 0.1, 0.02  # of an entry


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--blocks", type=int, default=32)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--sequences", type=int, default=4)
    parser.add_argument("--draws", type=int, default=8, help="initialisations")
    parser.add_argument("--tiny", action="store_true", help="width 64: to see that the script runs")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    import torch

    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no CUDA device")
    shape = TINY if options.tiny else SHAPE
    ids = token_ids(shape["vocab_size"], options.sequences, options.tokens).to(options.device)
    models = Timed(shape, options)
    began = time.perf_counter()
    seen = pg.trace(models.draws(), {"input_ids": ids})
    traced = time.perf_counter() - began
    peak = peak_bytes(options.device)

    model, unread = pg.describe(models.make(0), tokens=options.tokens)
    began = time.perf_counter()
    said = pg.predict_calls(model, **pg.start_of(seen))
    predicted = time.perf_counter() - began
    summary = provenance(device_name(options.device), ("numpy", "scipy", "torch", "transformers"))
    summary |= {"shape": shape, "blocks": options.blocks, "dtype": options.dtype, "draws": options.draws}
    summary |= {"tokens": options.tokens, "sequences": options.sequences, "parameters": models.parameters}
    summary |= {"seconds_traced": traced, "seconds_making": models.seconds, "seconds_predicted": predicted}
    summary |= {"peak_bytes": peak, "weight_bytes": models.bytes, "unread": list(unread)}
    size = f"{models.parameters / 1e9:.3f} billion parameters, {options.blocks} blocks"
    print(f"{size}, {options.dtype}, {summary['device']}")
    print(f"{traced:.1f} s for {options.draws} initialisations of {ids.numel()} tokens, forward and backward")
    print(f"of that {models.seconds:.1f} s to make their weights; theory {predicted:.1f} s")
    print(f"peak memory {peak / 2**30:.2f} GiB, weights of one {models.bytes / 2**30:.2f} GiB")
    rows = table(said, seen)
    for row in rows:
        print(f"{row['quantity']:16} largest difference {100 * row['difference']:+.2f} % at block {row['block']}")
    sound = True
    if options.draws > 1:
        found = judged(model, said, seen)
        sound, summary = found["agrees"] and found["other_rejected"], summary | found
        verdict = "agrees" if found["agrees"] else f"DISAGREES: {found['first_divergence']}"
        print(f"theory {verdict}, largest |z| {found['largest_z']:.2f} of {found['scores']} scores")
        other = f"rejected, {found['other_divergence']}" if found["other_rejected"] else "NOT REJECTED"
        print(f"theory with half the attention output: {other}")
    write(options.output, {"summary": summary, "rows": rows})
    return 0 if sound else 1


class Timed:
    """Initialisations of one configuration, made one at a time, and what making them took."""

    def __init__(self, shape: dict[str, int], options: argparse.Namespace) -> None:
        self.shape, self.options = shape, options
        self.seconds, self.parameters, self.bytes = 0.0, 0, 0

    def draws(self) -> Iterator[Any]:
        for seed in range(self.options.draws):
            yield self.make(seed)

    def make(self, seed: int) -> Any:
        """On the device and in the type asked for from the start: no copy in the host's memory."""
        import torch
        from transformers import LlamaConfig, LlamaModel

        began = time.perf_counter()
        torch.manual_seed(seed)
        config = LlamaConfig(
            **self.shape,
            num_hidden_layers=self.options.blocks,
            num_key_value_heads=self.shape["num_attention_heads"],
            max_position_embeddings=max(4096, self.options.tokens),
            initializer_range=TINY_STD if self.options.tiny else STD,
            use_cache=False,
        )
        before = torch.get_default_dtype()
        torch.set_default_dtype(getattr(torch, self.options.dtype))
        try:
            with torch.device(self.options.device):
                module = LlamaModel(config).eval()
        finally:
            torch.set_default_dtype(before)
        if self.options.device == "cuda":
            torch.cuda.synchronize()
        self.seconds += time.perf_counter() - began
        self.parameters = sum(p.numel() for p in module.parameters())
        self.bytes = sum(p.numel() * p.element_size() for p in module.parameters())
        return module


def token_ids(vocabulary: int, sequences: int, tokens: int) -> Any:
    """(sequences, tokens), none twice in a sequence."""
    import torch

    generator = torch.Generator().manual_seed(0)
    return torch.stack([torch.randperm(vocabulary - 3, generator=generator)[:tokens] + 3 for _ in range(sequences)])


def table(said: Any, seen: Any) -> list[dict[str, Any]]:
    """Where trace and theory differ most, of every quantity: relative, of covariances to the variance."""
    rows = []
    for name in ("variance", "covariance", "deviation", "grad_variance"):
        scale = said[name.replace("covariance", "variance")].to_numpy()
        ratio = (seen[name].to_numpy() - said[name].to_numpy()) / scale
        block = int(np.abs(ratio).argmax())
        rows.append({"quantity": name, "block": block, "difference": float(ratio[block])})
    return rows


def judged(model: pg.Model, said: Any, seen: Any) -> dict[str, Any]:
    """What `compare` finds, of this theory and of one with half the attention output."""
    right = pg.compare(said, seen)
    half = dataclasses.replace(model, attention_gain=model.attention_gain / 2)
    wrong = pg.compare(pg.predict_calls(half, **pg.start_of(seen)), seen)
    scores = right.z.to_numpy()
    return {
        "agrees": bool(right.attrs["agrees"]),
        "largest_z": float(np.nanmax(np.abs(scores))),
        "scores": int(np.isfinite(scores).sum()),
        "first_divergence": right.attrs["first_divergence"],
        "other_rejected": not wrong.attrs["agrees"],
        "other_divergence": wrong.attrs["first_divergence"],
    }


def peak_bytes(device: str) -> int:
    """Most memory taken so far: of the device, or of this process."""
    if device == "cuda":
        import torch

        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def device_name(device: str) -> str:
    if device == "cuda":
        import torch

        return str(torch.cuda.get_device_name())
    return "cpu"


if __name__ == "__main__":
    raise SystemExit(main())
