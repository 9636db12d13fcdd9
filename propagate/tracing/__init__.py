"""The third witness: torch. Builds trainable modules from a placement's text, and measures any torch model by hooks.

Not called `trace`, because `propagate.trace` is the function.
"""
