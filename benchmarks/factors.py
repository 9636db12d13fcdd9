"""Ways to factor token arrays, side by side: errors where tokens collapse, and milliseconds a draw.

    python benchmarks/factors.py --out benchmarks/results/factors_numpy.json

Errors at 32 tokens: of the deviations' Gram matrix, relative to its largest entry or, where that is zero, to the
tokens'; and of rows @ rows^T as a projection, absolute. "fails" means an exception or a NaN.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from propagate.files import replace
from propagate.montecarlo.factor import factor

Factor = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


def householder(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    columns, upper = np.linalg.qr(x.swapaxes(-1, -2))
    return upper.swapaxes(-1, -2), columns.swapaxes(-1, -2)


def cholesky(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    lower = np.linalg.cholesky(x @ x.swapaxes(-1, -2))
    return lower, np.linalg.inv(lower) @ x


def cholesky_twice(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    first, rows = cholesky(x)
    second, rows = cholesky(rows)
    return first @ second, rows


def eigh(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    values, vectors = np.linalg.eigh(x @ x.swapaxes(-1, -2))
    kept = values > 1e-15 * x.shape[-2] * values[..., -1:]
    root = np.sqrt(np.where(kept, values, 0.0))
    inverse = np.where(kept, 1 / np.where(kept, root, 1.0), 0.0)
    return vectors * root[..., None, :], (inverse[..., None] * vectors.swapaxes(-1, -2)) @ x


def eigh_twice(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    _, vectors = np.linalg.eigh(x @ x.swapaxes(-1, -2))
    turned = vectors.swapaxes(-1, -2) @ x
    length = np.sqrt((turned * turned).sum(axis=-1, keepdims=True))
    root, rows = eigh(turned / np.where(length > 0, length, 1.0))
    return vectors @ (length * root), rows


def differences(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    root, change, basis = factor(np, x)
    return root, change @ basis


CANDIDATES: dict[str, Factor] = {
    "differences": differences,
    "householder": householder,
    "cholesky": cholesky,
    "cholesky twice": cholesky_twice,
    "eigh": eigh,
    "eigh twice": eigh_twice,
}


def arrays(draws: int, tokens: int, width: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    z, shared = rng.standard_normal((draws, tokens, width)), rng.standard_normal((draws, 1, width))
    first_alike = z.copy()
    first_alike[:, 1] = z[:, 0] + 1e-6 * z[:, 1]
    line = rng.standard_normal((draws, tokens, 1)) * rng.standard_normal((draws, 1, width))
    return {
        "independent": z,
        "1 - c = 1e-6": shared + 1e-3 * z,
        "1 - c = 1e-12": shared + 1e-6 * z,
        "equal": shared + 0 * z,
        "first two alike": first_alike,
        "graded": shared + z * np.logspace(0, -6, tokens)[:, None],
        "deviations on a line": shared + 1e-6 * line,
    }


def deviations(x: np.ndarray) -> np.ndarray:
    exact = x.astype(np.longdouble)
    spread = exact - exact.mean(axis=1, keepdims=True)
    return np.einsum("dti,dsi->dts", spread, spread)


def errors(candidate: Factor, x: np.ndarray) -> tuple[float, float] | None:
    """Of the deviations and of the projection; None for a failure."""
    try:
        root, rows = candidate(x)
    except np.linalg.LinAlgError:
        return None
    expected = deviations(x)
    scale = float(np.abs(expected).max()) or float((x * x).sum(axis=-1).max())
    gram = rows @ rows.swapaxes(-1, -2)
    found = float(np.abs(deviations(root) - expected).max()) / scale, float(np.abs(gram @ gram - gram).max())
    return found if np.isfinite(found).all() else None


def milliseconds(candidate: Factor, x: np.ndarray) -> float:
    candidate(x)
    took = []
    for _ in range(7):
        began = time.perf_counter()
        candidate(x)
        took.append(time.perf_counter() - began)
    return 1e3 * min(took) / len(x)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()

    accuracy, speed = [], []
    for kind, x in arrays(2, 32, 1024).items():
        for name, candidate in CANDIDATES.items():
            found = errors(candidate, x)
            row = {
                "tokens are": kind,
                "method": name,
                "deviation_error": found and found[0],
                "rows_error": found and found[1],
            }
            accuracy.append(row)
            print(f"{kind:22s} {name:15s} " + (f"{found[0]:.1e} {found[1]:.1e}" if found else "fails"))
    for tokens in (16, 32, 64):
        for width in (512, 1024, 4096):
            x = arrays(4, tokens, width)["independent"]
            times = {name: milliseconds(candidate, x) for name, candidate in CANDIDATES.items()}
            speed.append({"tokens": tokens, "width": width, "milliseconds a draw": times})
            print(tokens, width, " ".join(f"{name} {ms:.3f}" for name, ms in times.items()))

    if options.out:
        summary = {
            "command": "python " + " ".join(sys.argv),
            "device": "CPU",
            "machine": platform.machine(),
            "threads": os.environ.get("OMP_NUM_THREADS", "default"),
            "python": platform.python_version(),
            "numpy": np.__version__,
        }
        options.out.parent.mkdir(parents=True, exist_ok=True)
        replace(options.out, json.dumps({"summary": summary, "accuracy": accuracy, "speed": speed}, indent=1).encode())


if __name__ == "__main__":
    main()
