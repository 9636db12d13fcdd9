"""Finds what lies beside the package in a checkout: `proofs/` and `figures/` import the package, never the reverse."""

from __future__ import annotations

import sys
from pathlib import Path

from propagate.model import ModelError


def folder(name: str) -> Path:
    """The checkout's folder of that name.

    Raises:
        ModelError: for an installed package without a checkout.
    """
    found = Path(__file__).resolve().parent.parent / name
    if not found.is_dir():
        raise ModelError(f"{name}/ lies beside the package in a checkout of the project, and there is none here")
    return found


def importable(name: str) -> Path:
    """Like `folder`, and `import <name>` works from now on."""
    found = folder(name)
    if str(found.parent) not in sys.path:
        sys.path.insert(0, str(found.parent))
    return found
