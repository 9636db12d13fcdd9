"""The documentation's sources, and what makes pages of the registry and of results."""
