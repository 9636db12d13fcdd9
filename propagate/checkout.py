"""Finds what lies beside the package in a checkout: `proofs/` and `figures/` import the package, never the reverse.

A wheel brings some of it, inside the package: proofs, and the records of training that claims are judged by.
"""

from __future__ import annotations

import sys
from pathlib import Path

from propagate.checks import ModelError

ROOT = Path(__file__).resolve().parent.parent
BROUGHT = Path(__file__).resolve().parent / "beside"
"""Where a wheel has what it brings; in a checkout there is no such folder."""


def folder(name: str) -> Path:
    """The checkout's folder of that name.

    Raises:
        ModelError: for an installed package without a checkout.
    """
    found = ROOT / name
    if not (ROOT / "pyproject.toml").is_file() or not found.is_dir():  # folders of that name may be other packages
        raise ModelError(f"{name}/ lies beside the package in a checkout of the project, and there is none here")
    return found


def at_hand(name: str) -> Path:
    """The checkout's folder of that name, or as much of it as a wheel brought.

    Raises:
        ModelError: where there is neither.
    """
    brought = BROUGHT / name
    return brought if brought.is_dir() else folder(name)


def importable(name: str) -> Path:
    """Like `at_hand`, and `import <name>` works from now on."""
    found = at_hand(name)
    if str(found.parent) not in sys.path:
        sys.path.insert(0, str(found.parent))
    return found
