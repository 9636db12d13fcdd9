"""Reads a placement's equations, at any resolution, and pulls cotangents back along them."""
