"""The third witness: torch. Builds trainable modules from a placement's text, and measures any torch model by hooks.

Not called `trace`, because `propagate.trace` is the function. `propagate.tracing.apply` makes the module of a
description; kinds of one's own are registered with it. `propagate.tracing.remember` gives a decoder its memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from propagate.tracing.crossing import remember as remember
    from propagate.tracing.setting import apply as apply


def __getattr__(name: str) -> Any:
    if name == "remember":
        from propagate.tracing.crossing import remember

        return remember
    if name != "apply":
        raise AttributeError(f"module 'propagate.tracing' has no attribute {name!r}")
    from propagate.tracing.build import apply  # which imports those that register the package's kinds

    return apply
