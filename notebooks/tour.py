"""What the notebooks share: one switch. With PROPAGATE_FAST=1 in the environment they run small, as in CI."""

import os
import warnings
from typing import TypeVar

T = TypeVar("T")
FAST = os.environ.get("PROPAGATE_FAST", "0") != "0"
warnings.filterwarnings("ignore", message="IProgress not found")  # a progress bar of tqdm's that nothing here shows


def size(full: T, *, fast: T) -> T:
    """The first, or `fast` where everything is to run small. The committed outputs are of full runs."""
    return fast if FAST else full
