"""Seconds of a task, and what ran it, for all benchmarks."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from propagate.files import replace
from propagate.montecarlo.backend import Backend


def seconds(task: Callable[[], object], repeats: int, wait: Callable[[], object] = lambda: None) -> float:
    """Of the fastest of several runs; the first is not counted. `wait` returns when a device is done."""
    task()
    wait()
    took = []
    for _ in range(repeats):
        began = time.perf_counter()
        task()
        wait()
        took.append(time.perf_counter() - began)
    return min(took)


def wait_for(backend: Backend) -> Callable[[], object]:
    """A function that returns when the backend's device is done."""
    return backend.xp.cuda.Device().synchronize if backend.name == "cupy" else lambda: None


def provenance(device: str, packages: tuple[str, ...] = ("numpy", "scipy")) -> dict[str, Any]:
    """Command, device, processor, threads and versions."""
    return {
        "command": "python " + " ".join(sys.argv),
        "device": device,
        "processor": processor(),
        "processors": os.cpu_count(),
        "threads": os.environ.get("OMP_NUM_THREADS", "default"),
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
    }


def version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def processor() -> str:
    """The processor's name, where Linux tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def write(path: Path | None, content: dict[str, Any]) -> None:
    """As JSON, to a file if one is named."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace(path, json.dumps(content, indent=1).encode())
