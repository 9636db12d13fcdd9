"""Closed forms for exchangeable tokens, whose second moments are a pair of numbers."""
