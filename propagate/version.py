"""The version: the one place that says it, which pyproject.toml and the package read."""

__version__ = "0.2.0"
